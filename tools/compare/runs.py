"""Runs that are compared: their scores, settings and what their scores were measured on."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from flexunet import run_folder
from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.ensemble_folder import EnsembleFolder
from flexunet.evaluation import scores, stress_summary

_COLUMNS = ("split", "subject", "volume", "class", "dice")
_VOLUME_ERROR, _REFERENCE_ML, _PREDICTED_ML = "volume_error_ml", "reference_ml", "predicted_ml"
# Of the scores of cases.csv those that are compared, as far as every run has them. Of a score that
# begins so, any: surface Dice has one per tolerance.
_COMPARED = (
    "dice", "surface_dice_", "lesion_f1", "hd95_mm", "hd95_2d_mm", "hd95_px", "hd95_2d_px",
    _VOLUME_ERROR,
)  # fmt: skip
# Settings that say where things lie, or how fast a run was.
_NO_SETTINGS = ("data.data_dir", "data.cache_dir", "data.cache", "training.init_from")
_Volume = tuple[str, str]


@dataclasses.dataclass(frozen=True, eq=False)
class ScoredRun:
  """A run, an ensemble or a cross-validation, with its scores.

  Attributes:
    path: Its folder.
    name: What it is called here.
    scores: (class, score) -> (subject, volume) -> value; NaN where undefined.
    class_names: Foreground classes, by id.
    settings: part.name -> value, of its config.
    dataset, fingerprint: Of the data it was evaluated on.
    truth: (subject, volume, class) -> (pixels of the class, slices): what it was scored against.
    remarks: What a reader must know of its scores, one sentence each.
    stress: Its figures on disturbed volumes, as in `stress.json`; {} where there are none.
  """

  path: pathlib.Path
  name: str
  scores: dict[tuple[str, str], dict[_Volume, float]]
  class_names: tuple[str, ...]
  settings: dict[str, Any]
  dataset: str
  fingerprint: str | None
  truth: dict[tuple[str, str, str], tuple[str, str]]
  remarks: list[str]
  stress: dict[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def volumes(self) -> set[_Volume]:
    """(subject, volume) of each."""
    return set(self.scores[self.class_names[0], "dice"])


def read(paths: Sequence[pathlib.Path], split: str) -> list[ScoredRun]:
  """Reads the scores of runs, ensembles and cross-validations.

  Args:
    paths: Their folders, two at least.
    split: Of the scores of runs and ensembles; those of a cross-validation are of its held-out
      subjects.

  Raises:
    InputError: There are fewer than two, one is no such folder, one has no scores, or they have
      other classes.
  """
  if len(paths) < 2:
    raise InputError(f"There must be two runs or more to compare. Got: {len(paths)}.")
  if len({path.resolve() for path in paths}) < len(paths):
    raise InputError("Each run must be named once. Remove the repeated folder.")
  runs = [_read(path, name, split) for path, name in zip(paths, _names(paths), strict=True)]
  for run in runs[1:]:
    if run.class_names != runs[0].class_names:
      raise InputError(
          f"Runs must have the same classes to be compared. {runs[0].name} has"
          f" {', '.join(runs[0].class_names)}; {run.name} has {', '.join(run.class_names)}."
      )
  return runs


def _names(paths: Sequence[pathlib.Path]) -> list[str]:
  """Returns the shortest ends of the paths that differ from each other."""
  parts = [path.resolve().parts for path in paths]
  for length in range(1, max(map(len, parts)) + 1):
    names = ["/".join(own[-length:]) for own in parts]
    if len(set(names)) == len(names):
      return names
  return [str(path) for path in paths]


def _read(path: pathlib.Path, name: str, split: str) -> ScoredRun:
  folds = sorted(path.glob("fold_*/config.json"))
  ensemble = EnsembleFolder(path)
  if ensemble.ensemble_json.is_file() and not folds:
    run: run_folder.RunFolder = ensemble
    entry = _entry(run, split)
    rows = _rows(run.cases_csv, split, run.path)
    runs = ensemble.read()
    settings = {**_settings(run), "ensemble.runs": len(runs.runs), "ensemble.weights": runs.kind}
  elif (path / "config.json").is_file() or not folds:
    run = run_folder.RunFolder.open(path)
    entry = _entry(run, split)
    rows = _rows(run.cases_csv, split, run.path)
    settings = _settings(run)
  else:
    run = run_folder.RunFolder.open(folds[0].parent)
    entry = {}
    rows = _rows(path / "cases.csv", None, path)
    settings = {**_settings(run), "data.fold": "each once"}
  facts = run.read_config().dataset_facts
  return ScoredRun(
      path, name, _scores(rows), tuple(facts.label_scheme.names[1:]), settings,
      str(entry.get("dataset", facts.name)), entry.get("fingerprint", facts.fingerprint),
      {(row["subject"], row["volume"], row["class"]):
       (row.get("reference_pixels", ""), row.get("slices", "")) for row in rows},
      _remarks(name, run, entry),
      stress_summary.read_figures(run).get(split, {}) if entry else {},
  )  # fmt: skip


def _rows(path: pathlib.Path, split: str | None, run: pathlib.Path) -> list[dict[str, str]]:
  """Returns the rows of a split; of all where it is None."""
  advice = f"Run flexunet evaluate --run_dir={run} --split={split}."
  if not path.is_file():
    raise InputError(f"{path} must hold the scores of volumes, but is not there. {advice}")
  rows = files.read_table(path, _COLUMNS)
  chosen = [row for row in rows if split in (None, row["split"])]
  if not chosen:
    there = ", ".join(sorted({row["split"] for row in rows})) or "none"
    raise InputError(f"{path} must hold scores of the split {split}. It holds: {there}. {advice}")
  return chosen


def _scores(
    rows: Sequence[Mapping[str, str]],
) -> dict[tuple[str, str], dict[_Volume, float]]:
  """Returns the compared scores that have a value anywhere."""
  columns = [
      column for column in rows[0]
      if column in _COMPARED or column.startswith("surface_dice_")
  ]  # fmt: skip
  if _VOLUME_ERROR not in columns and {_REFERENCE_ML, _PREDICTED_ML} <= set(rows[0]):
    columns.append(_VOLUME_ERROR)
  found: dict[tuple[str, str], dict[_Volume, float]] = {}
  for row in rows:
    for column in columns:
      own = found.setdefault((row["class"], column), {})
      own[row["subject"], row["volume"]] = _value(row, column)
  used = {
      column for (_, column), values in found.items()
      if column == "dice" or not all(map(math.isnan, values.values()))
  }  # fmt: skip
  return {key: values for key, values in found.items() if key[1] in used}


def _value(row: Mapping[str, str], column: str) -> float:
  """Returns a score; of errors of volume their size."""
  if column != _VOLUME_ERROR:
    return _number(row, column)
  if _VOLUME_ERROR in row:
    return abs(_number(row, column))
  return abs(_number(row, _PREDICTED_ML) - _number(row, _REFERENCE_ML))


def _number(row: Mapping[str, str], column: str) -> float:
  try:
    return float(row[column]) if row[column] else math.nan
  except ValueError as error:
    raise InputError(
        f"cases.csv must hold numbers in the column {column}. Got: {row[column]!r}, of the volume"
        f" {row['volume']}. Evaluate the run again."
    ) from error


def _settings(run: run_folder.RunFolder) -> dict[str, Any]:
  values = run.read_config().to_json()
  return {
      f"{part}.{name}": value
      for part, fields in values.items() if part not in ("reasons", "dataset_facts")
      for name, value in fields.items() if f"{part}.{name}" not in _NO_SETTINGS
  }  # fmt: skip


def _entry(run: run_folder.RunFolder, split: str) -> dict[str, Any]:
  """Returns what metrics.json says of how a split was evaluated."""
  if not run.metrics_json.is_file():
    return {}
  entries = files.read_json(run.metrics_json)
  entry = entries.get(split, {}) if isinstance(entries, dict) else None
  evaluated = entry.get("evaluated", {}) if isinstance(entry, dict) else None
  if not isinstance(evaluated, dict):
    raise InputError(f"{run.metrics_json} must be as evaluate wrote it. Evaluate the run again.")
  return evaluated


def _remarks(name: str, run: run_folder.RunFolder, entry: Mapping[str, Any]) -> list[str]:
  lines = []
  for seen, did in (("trained", "trained"), ("validated", "chosen")):
    if shared := entry.get(f"subjects_also_{seen}_on"):
      lines.append(f"{name} was {did} on {len(shared)} of the subjects that it is scored on.")
  known = run_folder.read_manifest(run.manifest_json).get("model_sha256")
  if known and entry.get("model_sha256") not in (None, *known):
    lines.append(f"{name} was evaluated before its network changed. Evaluate it again.")
  return lines


def common_volumes(runs: Sequence[ScoredRun]) -> set[_Volume]:
  """Returns (subject, volume) of those that every run has scored.

  Raises:
    InputError: There are none.
  """
  common = set.intersection(*(run.volumes for run in runs))
  if not common:
    raise InputError(
        "Runs must have been scored on the same subjects to be compared. No volume is common to "
        + ", ".join(run.name for run in runs) + "."
    )  # fmt: skip
  return common


def common_scores(runs: Sequence[ScoredRun]) -> list[str]:
  """Returns the scores that every run has, Dice first."""
  shared = set.intersection(*({score for _, score in run.scores} for run in runs))

  def place(score: str) -> tuple[int, str]:
    ranks = [rank for rank, own in enumerate(_COMPARED) if score.startswith(own)]
    return ranks[0] if ranks else len(_COMPARED), score

  return sorted((one for one in shared if not scores.is_in_slices(one)), key=place) + sorted(
      (one for one in shared if scores.is_in_slices(one)), key=place
  )


def setting_differences(runs: Sequence[ScoredRun]) -> list[tuple[str, list[Any]]]:
  """Returns (setting, its value in each run) of those that differ; None where there is none."""
  names = dict.fromkeys(name for run in runs for name in run.settings)
  values = [(name, [run.settings.get(name) for run in runs]) for name in names]
  return [(name, own) for name, own in values if any(one != own[0] for one in own[1:])]


def warnings(runs: Sequence[ScoredRun], common: set[_Volume]) -> list[str]:
  """Returns what a reader must know before the figures, one sentence each."""
  lines = [line for run in runs for line in run.remarks]
  if len({run.dataset for run in runs}) > 1:
    built = "; ".join(f"{run.name} {run.dataset}" for run in runs)
    lines.append(f"The runs were scored on datasets of other names: {built}.")
  if len({run.fingerprint for run in runs}) > 1:
    lines.append("The fingerprints of the data differ: the runs were scored on other records.")
  kinds = [
      {key: value for key, value in run.truth.items() if key[:2] in common} for run in runs
  ]
  others = {key[:2] for own in kinds[1:] for key in own if own[key] != kinds[0].get(key)}
  if others:
    lines.append(
        f"{len(others)} of {len(common)} common volumes were scored on other grids or labels:"
        " their slices or reference pixels differ between runs."
    )
  for run in runs:
    if missing := sorted({subject for subject, _ in run.volumes - common}):
      lines.append(
          f"{run.name} was also scored on subjects that another run lacks, left out here:"
          f" {', '.join(missing)}."
      )
  return lines
