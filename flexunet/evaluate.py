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
from flexunet.pipelines import dataset_source
from flexunet.prediction import test_time, tiles

_PASSES = "Tiles and views"

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
_TOLERANCES = _PROGRAM.list(
    "surface_tolerance_mm", ["1"],
    "Distances in mm up to which two surfaces agree: one surface Dice each, as in 1,2,3.",
)  # fmt: skip
_BATCH_SIZE = _PROGRAM.integer("batch_size", 8, "Slices per step.", lower_bound=1)
_VIEWS = _PROGRAM.fields(test_time.ViewOptions, _PASSES)
_TILES = _PROGRAM.fields(tiles.TileOptions, _PASSES)


def main(argv: Sequence[str]) -> None:
  command_line.no_words(argv)
  run = run_folder.RunFolder.open(_RUN_DIR.value)
  run.check_trained()
  views, cuts = flags.read(test_time.ViewOptions, _VIEWS), flags.read(tiles.TileOptions, _TILES)
  files.check_writable(run.evaluation, "--run_dir")
  files.check_unlocked(run.evaluation, "--run_dir")
  # SciPy: --help does without.
  from flexunet.evaluation.scores import checked_tolerances

  tolerances_mm = checked_tolerances(_TOLERANCES.value)
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
      tolerances_mm=tolerances_mm,
      batch_size=_BATCH_SIZE.value,
      views=views,
      tiles=cuts,
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
      "volumes_without_some_slices": entry["evaluated"]["volumes_without_some_slices"],
      "volumes_on_resampled_grid": entry["evaluated"]["volumes_on_resampled_grid"],
      "foreground_dice": entry["foreground_dice"]["mean"],
      "ci95": entry["foreground_dice"]["ci95"],
      "dice": {name: scores["dice"]["mean"] for name, scores in entry["per_class"].items()},
      **_surface_dice(entry),
      "warnings": entry["evaluated"]["warnings"],
  }


def _surface_dice(entry: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
  """Returns score -> class -> mean, of the surface Dice at each tolerance in 3-D and in slices."""
  per_class = entry["per_class"]
  return {
      score: {name: scores[score]["mean"] for name, scores in per_class.items()}
      for score in next(iter(per_class.values()))
      if score.startswith("surface_dice_")
  }


def scores_text(split: str, entry: Mapping[str, Any]) -> str:
  """Returns the scores of a split as tables for people.

  Args:
    split: Its name.
    entry: Its entry in metrics.json.
  """
  overlaps = [("class", "Dice", "95 % interval", "volumes", "empty")]
  for name, scores in entry["per_class"].items():
    dice = scores["dice"]
    overlaps.append((name, *_dice(dice), str(dice["n"]), str(dice["n_empty"])))
  mean = entry["foreground_dice"]
  overlaps.append(("mean", *_dice(mean), str(mean["n"]), str(mean["n_empty"])))
  evaluated = entry["evaluated"]
  # Without subjects whatever counts as independent takes their place.
  subjects = progress.count(evaluated["subjects"], evaluated["counted_by"])
  lines = ["", f"{split}: {subjects}, {progress.count(evaluated['volumes'], 'volume')}"]
  if parts := evaluated["volumes_without_some_slices"]:
    lines[-1] += f", {parts} of them not whole"
  if resampled := evaluated["volumes_on_resampled_grid"]:
    lines[-1] += f", {resampled} of them on the resampled grid"
  lines.append(progress.table(overlaps))
  lines.append("empty: volumes without the class in truth and prediction, which have no Dice")
  flat = evaluated["volumes_with_2d_distances"]
  solid = evaluated["volumes"] - flat - evaluated["volumes_without_spacing"]
  if solid:
    lines += ["", f"surfaces in 3-D: {progress.count(solid, 'volume')}"]
    lines.append(progress.table(_surface_table(entry, "")))
  if flat:
    lines += ["", f"surfaces within slices: {progress.count(flat, 'volume')}"]
    lines.append(progress.table(_surface_table(entry, "2d_")))
  if solid or flat:
    lines.append("none: volumes in which the distances are not defined")
  return "\n".join(lines)


def _surface_table(entry: Mapping[str, Any], kind: str) -> list[tuple[str, ...]]:
  """Returns the rows of the scores of surfaces, the heading first.

  Args:
    entry: That of the split in metrics.json.
    kind: "2d_" for surfaces compared within slices, "" for those in 3-D.
  """
  tolerances = [f"{tolerance:g}" for tolerance in entry["evaluated"]["surface_tolerances_mm"]]
  shares = [f"surface Dice {tolerances[0]} mm", *(f"{other} mm" for other in tolerances[1:])]
  table = [("class", "HD95 mm", "ASSD mm", "none", *shares)]
  for name, scores in entry["per_class"].items():
    table.append((
        name,
        *(_number(scores[f"{score}_{kind}mm"]["mean"], 1) for score in ("hd95", "assd")),
        str(scores[f"hd95_{kind}mm"]["n_undefined"]),
        *(_number(scores[f"surface_dice_{kind}{each}mm"]["mean"], 3) for each in tolerances),
    ))
  return table


def _dice(scores: Mapping[str, Any]) -> tuple[str, str]:
  interval = scores["ci95"]
  return (
      _number(scores["mean"], 3),
      f"{interval['low']:.3f} .. {interval['high']:.3f}" if interval else "-",
  )


def _number(value: float | None, digits: int) -> str:
  return "-" if value is None else f"{value:.{digits}f}"


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()
