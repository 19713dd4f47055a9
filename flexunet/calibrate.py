"""Calibrates a run on its validation subjects: probabilities, clean-up, margins, volume intervals.

  flexunet calibrate --run_dir=RUN

Writes RUN/calibration.json, which prediction and evaluation apply from then on (--nocalibrated
leaves it aside). Test data are not read. Learnt are
- the temperature of the probabilities, at which the truth is most likely; no label changes by it;
- the clean-up of labels, where it helps (--noclean_up leaves it aside);
- the margins by which each structure must be widened to contain the truth, for predict --margin;
- the ratios of true to predicted volumes, for predict --volume_interval.

For the folder of a cross-validation each fold is calibrated on the subjects that it held out, and
all of them together give the margins and intervals of the ensemble of the folds. Its networks are
others than the one a subject was held out of, so the share is not guaranteed: how many of each
fold's subjects the others cover is shown.

Margins and intervals at a level, such as 0.9, hold for that share of new subjects that are drawn as
the validation subjects were. A level needs level / (1 - level) subjects: 4 for 0.8, 9 for 0.9, 19
for 0.95. The validation subjects also chose the best epoch, which makes them a little optimistic.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flexunet import ensemble_folder
from flexunet.core import command_line, flags, progress
from flexunet.core.errors import InputError

if TYPE_CHECKING:  # SciPy: --help does without.
  from flexunet.evaluation.conformal import Scores
  from flexunet.run_calibration import RunCalibration

_PROGRAM = flags.Program(__doc__, first=("run_dir", "data_dir", "json"))
_RUN_DIR = _PROGRAM.string(
    "run_dir", None, "Folder of the run, or of a cross-validation.", required=True
)
_DATA_DIR = _PROGRAM.string(
    "data_dir", None,
    "Folder of built datasets, or the version folder of one. Default: that of the training.",
)  # fmt: skip
_JSON = _PROGRAM.boolean("json", False, "Prints calibration.json instead of tables.")
_ALLOW_OTHER_DATA = _PROGRAM.boolean(
    "allow_other_data", False, "Accepts records other than those of the training."
)
_CONTAINED = _PROGRAM.float(
    "contained", 1.0,
    "Share of a structure's voxels that a margin must contain; below 1 stray voxels do not count.",
)  # fmt: skip
_BATCH_SIZE = _PROGRAM.integer("batch_size", 8, "Slices per step.", lower_bound=1)

# At which the tables show margins and intervals.
_LEVELS = (0.5, 0.75, 0.8, 0.9, 0.95)


def main(argv: Sequence[str]) -> None:
  command_line.no_words(argv)
  if not 0 < _CONTAINED.value <= 1:
    raise InputError(f"--contained must be above 0 and at most 1. Got: {_CONTAINED.value:g}.")
  run = ensemble_folder.open_runs(_RUN_DIR.value)
  run.check_trained()
  progress.say("Loading TensorFlow ...")
  command_line.load_tensorflow()
  # Heavy: a wrong flag or path is answered before they are loaded.
  from flexunet.evaluation import calibrate

  learnt, path = calibrate.calibrate_named(
      run,
      data_dir=_DATA_DIR.value,
      allow_other_data=_ALLOW_OTHER_DATA.value,
      batch_size=_BATCH_SIZE.value,
      contained=_CONTAINED.value,
  )
  print(json.dumps(learnt.to_json()) if _JSON.value else calibration_text(learnt))
  if not _JSON.value:
    print(f"\nCalibration  {path}")


def calibration_text(learnt: RunCalibration) -> str:
  """Returns what was learnt as tables for people."""
  about = learnt.learnt_on
  subjects = progress.count(len(about["subjects"]), about["counted_by"])
  lines = ["", f"{about['split']}: {subjects}, {progress.count(about['volumes'], 'volume')}"]
  if learnt.temperature:
    lines += ["", *_temperature_lines(learnt.temperature)]
  margins = learnt.margins
  if learnt.clean_up:
    # SciPy: --help does without.
    from flexunet.imaging.clean_up import CleanUp

    rules = CleanUp.from_json(learnt.clean_up, ["background", *margins.classes]).sentences()
    lines += ["", f"clean-up: {'; '.join(rules) or 'none, nothing gains enough by it'}"]
  share = "all" if margins.contained == 1 else f"{margins.contained:g} of all"
  where = "" if margins.geometry == "3d" else " within slices"
  heading = f"margins in {margins.unit}{where} around {share} true voxels, by share of subjects"
  lines += ["", heading]
  lines.append(_levels_table(margins.classes, _margin_cell))
  if learnt.volume_ratios:
    lines += ["", "true volume as a multiple of the predicted one, by share of subjects"]
    lines.append(_levels_table(learnt.volume_ratios.classes, _ratio_cell))
  if learnt.coverage:
    lines += ["", *_coverage_lines(learnt.coverage)]
  return "\n".join(lines)


def _temperature_lines(fit: Mapping[str, Any]) -> list[str]:
  rows = [("", "before", "after")]
  for name, shown in (("ece", "ECE"), ("brier", "Brier score"), ("nll", "NLL")):
    rows.append((shown, f"{fit['before'][name]:.4f}", f"{fit['after'][name]:.4f}"))
  lines = [
      f"temperature {fit['temperature']:.3f}, of {progress.count(fit['voxels'], 'voxel')}:"
      f" {fit['region']}",
      progress.table(rows),
  ]
  if fit["at_bound"]:
    lines.append("It ended at its bound: how certain the network is says little here.")
  return lines


def _levels_table(classes: Mapping[str, Scores], cell: Callable[[Scores, float], str]) -> str:
  """Returns a row per class and a column per level; "needs n" where subjects are too few."""
  rows = [("class", "subjects", *(f"{level:g}" for level in _LEVELS))]
  for name, scores in classes.items():
    cells = []
    for level in _LEVELS:
      wanted = _conformal().required(level)
      few = len(scores.subjects) < wanted
      cells.append(f"needs {wanted}" if few else cell(scores, level))
    rows.append((name, str(len(scores.subjects)), *cells))
  return progress.table(rows)


def _conformal() -> Any:
  # SciPy: --help does without.
  from flexunet.evaluation import conformal

  return conformal


def _margin_cell(scores: Scores, level: float) -> str:
  margin = _conformal().bound(scores.values.tolist(), level)
  return f"{margin:.2f}" if math.isfinite(margin) else "missed"


def _ratio_cell(scores: Scores, level: float) -> str:
  bounds = _conformal().ratio_bounds(scores.values, level)
  return f"{bounds.low:.2f}-{bounds.high:.2f}"


def _coverage_lines(coverage: Mapping[str, Any]) -> list[str]:
  rows = [("share asked for", "class", "margin holds for", "interval holds for")]
  for entry in coverage["levels"]:
    for name in dict.fromkeys([*entry["margin"], *entry["volume_interval"]]):
      cells = [_covered(entry[kind].get(name)) for kind in ("margin", "volume_interval")]
      rows.append((f"{entry['level']:g}", name, *cells))
  return ["each fold's subjects, by what the other folds say of them", progress.table(rows)]


def _covered(counts: Mapping[str, int] | None) -> str:
  return f"{counts['covered']} of {counts['subjects']}" if counts else "-"


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()
