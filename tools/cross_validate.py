"""Cross-validates: trains a network without each fold, scores it on that fold, pools all subjects.

  flexunet cross_validate --dataset=hippocampus_t1w --data_dir=DATA --run_dir=CV --max_minutes=10

Each fold is a run of its own, CV/fold_0 to CV/fold_4, trained by the flags of flexunet train.
CV/report.html, cases.csv and cross_validation.json hold the scores of all subjects for training
and validation, each held out once; the test split stays out. After a kill, a power cut or Ctrl-C
the same command with --resume continues where it stopped.

Afterwards the runs are an ensemble: flexunet predict --run_dir=CV --input=SCANS --output_dir=OUT
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from flexunet import evaluate, train
from flexunet.core import command_line, flags, progress
from flexunet.presets import preset_files

_PROGRAM = flags.Program(
    __doc__,
    first=(
        "dataset", "data_dir", "run_dir", "folds", "parallel", "max_minutes", "epochs", "preset",
        "resume", "seed",
    ),
)  # fmt: skip
_RUN_DIR = _PROGRAM.string("run_dir", None, "New folder for all folds.", required=True)
_FOLDS = _PROGRAM.list("folds", None, "Folds to run, as in 0,1,2. Default: all of the dataset.")
_PARALLEL = _PROGRAM.integer(
    "parallel", 0,
    "Folds that run at a time, each with its own GPUs, or its share of the processors and of the"
    " memory. 0: one per GPU; one on a machine without.",
    lower_bound=0,
)  # fmt: skip
_RESUME = _PROGRAM.boolean(
    "resume",
    False,
    "Continues what is in --run_dir exactly as if it had not stopped; starts where there is nothing"
    " yet. The other flags stay as they were; --epochs, --max_minutes and --folds may grow.",
)
_TOLERANCES = _PROGRAM.list(
    "surface_tolerance_mm", ["1"],
    "Distances in mm up to which two surfaces agree: one surface Dice each, as in 1,2,3.",
)  # fmt: skip
_EVALUATE_TEST = _PROGRAM.boolean(
    "evaluate_test",
    False,
    "Also scores the mean of all networks on the test split, into CV/ensemble.html.",
)
_JSON = _PROGRAM.boolean("json", False, "Prints one JSON object instead of tables.")
_TRAINER = train.TrainerFlags(_PROGRAM, skip=["fold"])


def main(argv: Sequence[str]) -> None:
  command_line.no_words(argv)
  given = _TRAINER.read()
  folds = None if _FOLDS.value is None else flags.numbers("folds", _FOLDS.value, int)
  # SciPy and Matplotlib: --help does without.
  from flexunet.cross_validation import cross_validate, processes

  job = cross_validate.check(
      given,
      _RUN_DIR.value,
      folds=folds,
      parallel=_PARALLEL.value,
      resume=_RESUME.value,
      tolerances_mm=_TOLERANCES.value,
      evaluate_test=_EVALUATE_TEST.value,
  )
  try:
    figures = cross_validate.run(job)
  except processes.Stopped as stopped:
    progress.say(f"{stopped}: saved. The same command with --resume continues from there.")
    sys.exit(128 + stopped.signal_number)  # As a shell reports it: 143 SIGTERM, 130 Ctrl-C.
  if _JSON.value:
    print(json.dumps(_summary(figures)))
    return
  print(folds_text(figures))
  print(evaluate.scores_text("all folds", figures["pooled"]))
  if "ensemble_test" in figures:
    print(evaluate.scores_text("test, by the mean of all networks", figures["ensemble_test"]))
  quoted = shlex.quote(str(job.folder.path))
  print(f"\nReport  {job.folder.report_html}\nCases   {job.folder.cases_csv}")
  print(f"Next    flexunet predict --run_dir={quoted} --input=SCANS --output_dir=OUT")


def _summary(figures: Mapping[str, Any]) -> dict[str, Any]:
  pooled = figures["pooled"]
  test = figures.get("ensemble_test", {}).get("foreground_dice")
  return {
      "folds": figures["folds"],
      "subjects": pooled["evaluated"]["subjects"],
      "volumes": pooled["evaluated"]["volumes"],
      "foreground_dice": pooled["foreground_dice"]["mean"],
      "ci95": pooled["foreground_dice"]["ci95"],
      "dice": {name: scores["dice"]["mean"] for name, scores in pooled["per_class"].items()},
      "dice_of_folds": [one["foreground_dice"]["mean"] for one in figures["per_fold"]],
      "sd_between_folds": figures["between_folds"]["sd"],
      "test_foreground_dice_of_ensemble": test["mean"] if test else None,
      "warnings": pooled["evaluated"]["warnings"],
  }


def folds_text(figures: Mapping[str, Any]) -> str:
  """Returns a table with a line per fold.

  Args:
    figures: `cross_validation.json`.
  """
  table = [("fold", "held out", "trained on", "Dice", "best epoch")]
  for one in figures["per_fold"]:
    mean, best = one["foreground_dice"]["mean"], one["best_epoch"]
    table.append((
        str(one["fold"]),
        progress.count(len(one["subjects"]), "subject"),
        progress.count(one["trained_on_subjects"], "subject"),
        "-" if mean is None else f"{mean:.3f}",
        "-" if best is None else f"{best:g} of {one['epochs']:g}",
    ))
  return progress.table(table)


def run() -> None:
  command_line.run(main, _PROGRAM, expand=preset_files.expand)


if __name__ == "__main__":
  run()
