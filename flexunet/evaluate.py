"""Scores a trained run on a split of its dataset, per volume and class, at native resolution.

  flexunet evaluate --run_dir=RUN --split=test

Writes RUN/evaluation/metrics.json and cases.csv and RUN/report.html. Several splits may be named,
separated by commas; scores of splits evaluated before are kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from flexunet import run_folder
from flexunet.core import command_line, files, flags, progress
from flexunet.core.errors import InputError
from flexunet.pipelines import dataset_source

_PROGRAM = flags.Program(__doc__, first=("run_dir", "split", "data_dir", "json"))
_RUN_DIR = _PROGRAM.string("run_dir", None, "Folder of the run.", required=True)
_SPLIT = _PROGRAM.list("split", ["test"], "Splits to score, separated by commas.")
_DATA_DIR = _PROGRAM.string(
    "data_dir", None,
    "Folder of built datasets, or the version folder of one. Default: that of the training.",
)  # fmt: skip
_JSON = _PROGRAM.boolean("json", False, "Prints one JSON object per split instead of a table.")
_ALLOW_OTHER_DATA = _PROGRAM.boolean(
    "allow_other_data", False, "Accepts records other than those of the training."
)
_TOLERANCE = _PROGRAM.float(
    "surface_tolerance_mm", 1.0, "Distance in mm up to which two surfaces count as agreeing."
)
_BATCH_SIZE = _PROGRAM.integer("batch_size", 8, "Slices per step.", lower_bound=1)
_TTA = _PROGRAM.boolean("tta", False, "Averages over mirrored slices; doubles the time.")


def main(argv: Sequence[str]) -> None:
  command_line.no_words(argv)
  run = run_folder.RunFolder.open(_RUN_DIR.value)
  run.check_trained()
  files.check_writable(run.evaluation, "--run_dir")
  if not _TOLERANCE.value > 0:
    raise InputError(f"--surface_tolerance_mm must be above 0. Got: {_TOLERANCE.value}.")
  splits = list(dict.fromkeys(name.strip() for name in _SPLIT.value if name.strip()))
  dataset_source.check_folder(*run.read_config().dataset_in(_DATA_DIR.value), splits)

  progress.say("Loading TensorFlow ...")
  command_line.load_tensorflow()
  # Heavy: a wrong flag or path is answered before they are loaded.
  from flexunet.evaluation import evaluate

  figures = evaluate.evaluate(
      run,
      splits,
      data_dir=_DATA_DIR.value,
      allow_other_data=_ALLOW_OTHER_DATA.value,
      tolerance_mm=_TOLERANCE.value,
      batch_size=_BATCH_SIZE.value,
      mirror=_TTA.value,
  )
  for split, entry in figures.items():
    print(json.dumps(_summary(split, entry)) if _JSON.value else scores_text(split, entry))
  if not _JSON.value:
    print(f"\nReport  {run.report_html}\nCases   {run.cases_csv}")


def _summary(split: str, entry: Mapping[str, Any]) -> dict[str, Any]:
  return {
      "split": split,
      "subjects": entry["evaluated"]["subjects"],
      "volumes": entry["evaluated"]["volumes"],
      "foreground_dice": entry["foreground_dice"]["mean"],
      "ci95": entry["foreground_dice"]["ci95"],
      "dice": {name: scores["dice"]["mean"] for name, scores in entry["per_class"].items()},
  }


def scores_text(split: str, entry: Mapping[str, Any]) -> str:
  """Returns the scores of a split as a table for people.

  Args:
    split: Its name.
    entry: Its entry in metrics.json.
  """
  table = [("class", "Dice", "95 % interval", "HD95 mm", "surface Dice", "volumes", "empty")]
  for name, scores in entry["per_class"].items():
    table.append((
        name, *_dice(scores["dice"]), _number(scores["hd95_mm"]["mean"], 1),
        _number(scores["nsd"]["mean"], 3), str(scores["dice"]["n"]),
        str(scores["dice"]["n_empty"]),
    ))  # fmt: skip
  mean = entry["foreground_dice"]
  table.append(("mean", *_dice(mean), "", "", str(mean["n"]), str(mean["n_empty"])))
  subjects = progress.count(entry["evaluated"]["subjects"], "subject")
  heading = f"{split}: {subjects}, {progress.count(entry['evaluated']['volumes'], 'volume')}"
  empty = "empty: volumes without the class in truth and prediction, which have no Dice"
  return "\n".join(["", heading, progress.table(table), empty])


def _dice(scores: Mapping[str, Any]) -> tuple[str, str]:
  interval = scores["ci95"]
  return (
      _number(scores["mean"], 3),
      f"{interval[0]:.3f} .. {interval[1]:.3f}" if interval else "-",
  )


def _number(value: float | None, digits: int) -> str:
  return "-" if value is None else f"{value:.{digits}f}"


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()
