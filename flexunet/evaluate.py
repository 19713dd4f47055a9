"""Scores a trained run on a split of its dataset, per volume and class, at native resolution.

  flexunet evaluate --run_dir=RUN --split=test

Writes RUN/evaluation/metrics.json and cases.csv and RUN/report.html. Several splits may be named,
separated by commas; scores of splits evaluated before are kept.

  flexunet evaluate --run_dir=A,B,C --output_dir=ENSEMBLE --split=test --weights=learnt

Several runs are averaged voxel by voxel, also runs of different planes. Scores go into a folder of
their own, ENSEMBLE/evaluation and ENSEMBLE/ensemble.html; runs and weights into
ENSEMBLE/ensemble.json, so that ENSEMBLE can be named as --run_dir. Splits, slices and truth are
those of the first run's dataset. Whom one of the runs was trained on the ensemble has seen: of the
runs of a cross-validation the test split alone is new to all.

  flexunet evaluate --run_dir=RUN --stress

also scores the volumes disturbed by bias field, noise, blur, larger pixels, thicker slices, gamma,
rotation, missing slices, a left-right flip and other axes of the file, each in rising strength, and
says at which strength Dice has fallen by 0.05: RUN/evaluation/stress.json, stress.csv and the
report. What is known from an earlier call is not computed again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from flexunet import ensemble_folder
from flexunet.core import command_line, files, flags, progress
from flexunet.core.errors import InputError
from flexunet.ensemble_folder import RunSet
from flexunet.evaluation import stress_summary
from flexunet.pipelines import dataset_source
from flexunet.prediction import test_time, tiles
from flexunet.run_folder import RunFolder

_PASSES = "Tiles and views"
_DISTANCES = ("hd95", "hd100", "assd", "masd")

_PROGRAM = flags.Program(
    __doc__, first=("run_dir", "output_dir", "weights", "split", "data_dir", "stress", "json")
)
_RUN_DIR = _PROGRAM.string(
    "run_dir", None,
    "Folder of the run; several, as in A,B,C, or a folder of runs are averaged.",
    required=True,
)  # fmt: skip
_OUTPUT_DIR = _PROGRAM.string(
    "output_dir", None,
    "Where scores of several runs are written. Default: the folder that names them.",
)  # fmt: skip
_WEIGHTS = _PROGRAM.string(
    "weights",
    "",
    "Weights of several runs: equal, numbers as in 2,1,1, or learnt on the subjects of validation"
    " that none was trained on. Default: those of ensemble.json in the folder that is named, else"
    " equal.",
)
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
_LESIONS = _PROGRAM.enum(
    "lesions",
    "auto",
    {
        "auto": "where the dataset says that its classes are lesions",
        "on": "for each class",
        "off": "not at all",
    },
    "Counts lesions one by one, as connected components: which are found, which are false.",
)
_LESION_OVERLAP = _PROGRAM.float(
    "lesion_overlap", 0.0,
    "Share of a lesion's voxels that must be overlapped for it to be found, or not to be false; 0"
    " stands for one voxel.",
)  # fmt: skip
_STRESS = _PROGRAM.word(
    "stress",
    "quick",
    "Also scores disturbed volumes. quick (the default without a value): every second strength;"
    " full: all; or some of bias, noise, blur, spacing (spacing_in_plane, spacing_through), gamma"
    " (gamma_dark, gamma_bright), rotation, missing, flip, orientation, as in quick,noise,blur.",
)
_BATCH_SIZE = _PROGRAM.integer("batch_size", 8, "Slices per step.", lower_bound=1)
_VIEWS = _PROGRAM.fields(test_time.ViewOptions, _PASSES)
_TILES = _PROGRAM.fields(tiles.TileOptions, _PASSES)
_CALIBRATE = _PROGRAM.boolean(
    "calibrate", False, "First calibrates the run on its validation split, as flexunet calibrate."
)
_CALIBRATED = _PROGRAM.boolean(
    "calibrated", True, "Scales probabilities as the calibration of the run says, where it has one."
)
_CLEAN_UP = _PROGRAM.boolean(
    "clean_up", True, "Cleans labels up as the calibration of the run has chosen, where it has."
)


def main(argv: Sequence[str]) -> None:
  command_line.no_words(argv)
  run = ensemble_folder.open_runs(_RUN_DIR.value)
  _check_folders(run)
  views, cuts = flags.read(test_time.ViewOptions, _VIEWS), flags.read(tiles.TileOptions, _TILES)
  # SciPy: --help does without.
  from flexunet.evaluation.lesions import checked_overlap
  from flexunet.evaluation.scores import checked_tolerances
  from flexunet.evaluation.stress_disturbances import Request

  tolerances_mm = checked_tolerances(_TOLERANCES.value)
  if _CALIBRATE.value and not _CALIBRATED.value:
    raise InputError("--calibrate learns what --nocalibrated leaves aside. Pass one of the two.")
  lesion_overlap = checked_overlap(_LESION_OVERLAP.value)
  asked = Request.of(_STRESS.value)
  splits = list(dict.fromkeys(name.strip() for name in _SPLIT.value if name.strip()))
  run_config = run.configs()[0] if isinstance(run, RunSet) else run.read_config()
  dataset_source.check_folder(*run_config.dataset_in(_DATA_DIR.value), splits)

  progress.say("Loading TensorFlow ...")
  command_line.load_tensorflow()
  # Heavy: a wrong flag or path is answered before they are loaded.
  from flexunet.evaluation import calibrate, evaluate, evaluate_ensemble
  from flexunet.prediction import opening

  if _CALIBRATE.value:
    calibrate.calibrate_named(
        run,
        data_dir=_DATA_DIR.value,
        allow_other_data=_ALLOW_OTHER_DATA.value,
        batch_size=_BATCH_SIZE.value,
    )
  options: dict[str, Any] = {
      "data_dir": _DATA_DIR.value,
      "allow_other_data": _ALLOW_OTHER_DATA.value,
      "tolerances_mm": tolerances_mm,
      "lesions": _LESIONS.value,
      "lesion_overlap": lesion_overlap,
      "stress": _STRESS.value,
      "options": opening.PredictionOptions(
          batch_size=_BATCH_SIZE.value, views=views, tiles=cuts, calibrated=_CALIBRATED.value,
          clean_up=_CLEAN_UP.value,
      ),
  }
  if isinstance(run, RunSet):
    folder: RunFolder = ensemble_folder.output_folder(run, _OUTPUT_DIR.value)
    figures = evaluate_ensemble.evaluate_ensemble(
        run, splits, output_dir=_OUTPUT_DIR.value, weights=_WEIGHTS.value, **options
    )
  else:
    folder, figures = run, evaluate.evaluate(run, splits, **options)
  _show(folder, figures, stress_summary.read_figures(folder) if asked else {})


def _show(
    folder: RunFolder, figures: Mapping[str, Any], stressed: Mapping[str, Mapping[str, Any]]
) -> None:
  """Prints the scores of each split, of undisturbed and of disturbed volumes, and the files."""
  for split, entry in figures.items():
    own = {"stress": stressed[split]} if split in stressed else {}
    if _JSON.value:
      print(json.dumps({**_summary(split, entry), **own}))
      continue
    print(scores_text(split, entry))
    if own:
      print(f"\n{stress_summary.text(own['stress'])}")
  if not _JSON.value:
    print(f"\nReport  {folder.report_html}\nCases   {folder.cases_csv}")
    if stressed:
      print(f"Stress  {stress_summary.csv_path(folder)}")


def _check_folders(run: RunFolder | RunSet) -> None:
  """Refuses at once runs without a network, flags that do not fit, and folders in use."""
  if isinstance(run, RunSet):
    if _WEIGHTS.value.strip() != "learnt":
      ensemble_folder.chosen(run, _WEIGHTS.value)
    ensemble_folder.output_folder(run, _OUTPUT_DIR.value)
    return
  ensemble_folder.check_no_weights(_WEIGHTS.value)
  if _OUTPUT_DIR.value is not None:
    raise InputError(
        f"--output_dir is for several runs: the scores of a run lie in its folder, {run.path}. Got:"
        f" {_OUTPUT_DIR.value}."
    )
  run.check_trained()
  files.check_writable(run.evaluation, "--run_dir")
  files.check_unlocked(run.evaluation, "--run_dir")


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
      **_means(entry),
      "volume_agreement": {
          name: scores["volume_agreement"] for name, scores in entry["per_class"].items()
      },
      "confusion": entry["confusion"],
      "clean_up": entry["evaluated"]["clean_up"],
      "warnings": entry["evaluated"]["warnings"],
  }


def _means(entry: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
  """Returns score -> class -> mean, of surfaces and lesions; of lesions in all also the total."""
  per_class = entry["per_class"]
  first = next(iter(per_class.values()))
  told = ("surface_dice_", "hd95_", "hd100_", "assd_", "masd_", "lesion_", "lesions_")
  means = {
      score: {name: scores[score]["mean"] for name, scores in per_class.items()}
      for score in first
      if score.startswith(told) and score != "lesions_pooled"
  }
  if "lesions_pooled" in first:
    means["lesions_pooled"] = {
        name: scores["lesions_pooled"] for name, scores in per_class.items()
    }
  return means


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
  lines += _surface_lines(entry)
  if evaluated["lesion_overlap"] is not None:
    lines += ["", "lesions, means over the volumes; false: falsely found in a volume"]
    lines.append(progress.table(_lesion_table(entry)))
  lines += ["", "predicted - true volume, by subject; limits: of 95 % of the subjects"]
  lines.append(progress.table(_agreement_table(entry)))
  if clean_up := evaluated["clean_up"]:
    changed = f"{clean_up['volumes']} of {progress.count(evaluated['volumes'], 'volume')} changed"
    lines += ["", f"clean-up: {'; '.join(clean_up['sentences'])} ({changed})"]
  return "\n".join(lines)


def _surface_lines(entry: Mapping[str, Any]) -> list[str]:
  """Returns the tables of surfaces, one for each way in which they were compared."""
  evaluated = entry["evaluated"]
  flat, unknown = evaluated["volumes_with_2d_distances"], evaluated["volumes_without_spacing"]
  solid = evaluated["volumes"] - flat - unknown
  lines = []
  if solid:
    lines += ["", f"surfaces in 3-D: {progress.count(solid, 'volume')}"]
    lines.append(progress.table(_surface_table(entry, "")))
  if flat:
    lines += ["", f"surfaces within slices: {progress.count(flat, 'volume')}"]
    lines.append(progress.table(_surface_table(entry, "2d_")))
  if unknown:
    lines += ["", f"surfaces in pixels, no spacing known: {progress.count(unknown, 'volume')}"]
    lines.append(progress.table(_pixel_table(entry)))
  if lines:
    lines.append("none: volumes in which the distances are not defined")
  return lines


def _pixel_table(entry: Mapping[str, Any]) -> list[tuple[str, ...]]:
  """Returns the rows of the distances in pixels; 3-D and within slices apart."""
  table: list[tuple[str, ...]] = [
      ("class", "", "HD95 px", "HD100 px", "ASSD px", "MASD px", "volumes", "none")
  ]
  for name, scores in entry["per_class"].items():
    for kind, said in (("", "3-D"), ("2d_", "slices")):
      own = [scores[f"{score}_{kind}px"] for score in _DISTANCES]
      if own[0]["n"] or own[0]["n_undefined"]:
        counts = (str(own[0]["n"]), str(own[0]["n_undefined"]))
        table.append((name, said, *(_number(one["mean"], 1) for one in own), *counts))
  return table


def _lesion_table(entry: Mapping[str, Any]) -> list[tuple[str, ...]]:
  """Returns the rows of the scores of lesions, the heading first."""
  table: list[tuple[str, ...]] = [
      ("class", "sensitivity", "precision", "F1", "false", "lesions", "found")
  ]
  for name, scores in entry["per_class"].items():
    pooled = scores["lesions_pooled"]
    table.append((
        name,
        *(_number(scores[f"lesion_{score}"]["mean"], 3)
          for score in ("sensitivity", "precision", "f1")),
        _number(scores["lesions_false_positive"]["mean"], 2),
        str(pooled["lesions_reference"]),
        str(pooled["lesions_reference"] - pooled["lesions_missed"]),
    ))  # fmt: skip
  return table


def _agreement_table(entry: Mapping[str, Any]) -> list[tuple[str, ...]]:
  """Returns the rows of the agreement of volumes, the heading first."""
  table: list[tuple[str, ...]] = [
      ("class", "unit", "bias", "limits", "bias %", "limits %", "subjects")
  ]
  for name, scores in entry["per_class"].items():
    found = scores["volume_agreement"]
    unit = found["unit"]
    digits = 2 if unit == "ml" else 0
    own = [found[f"{key}_{unit}"] for key in ("bias", "low", "high")]
    shares = [
        None if found[f"relative_{key}"] is None else 100 * found[f"relative_{key}"]
        for key in ("bias", "low", "high")
    ]
    table.append((
        name, unit,
        _number(own[0], digits), _between(own[1:], digits),
        _number(shares[0], 1), _between(shares[1:], 1),
        str(found["n"]),
    ))  # fmt: skip
  return table


def _between(ends: Sequence[float | None], digits: int) -> str:
  return "-" if None in ends else " .. ".join(_number(end, digits) for end in ends)


def _surface_table(entry: Mapping[str, Any], kind: str) -> list[tuple[str, ...]]:
  """Returns the rows of the scores of surfaces in mm, the heading first.

  Args:
    entry: That of the split in metrics.json.
    kind: "2d_" for surfaces compared within slices, "" for those in 3-D.
  """
  tolerances = [f"{tolerance:g}" for tolerance in entry["evaluated"]["surface_tolerances_mm"]]
  shares = [f"surface Dice {tolerances[0]} mm", *(f"{other} mm" for other in tolerances[1:])]
  table: list[tuple[str, ...]] = [
      ("class", "HD95 mm", "HD100 mm", "ASSD mm", "MASD mm", "none", *shares)
  ]
  for name, scores in entry["per_class"].items():
    table.append((
        name,
        *(_number(scores[f"{score}_{kind}mm"]["mean"], 1) for score in _DISTANCES),
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
