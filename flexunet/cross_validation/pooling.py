"""From the scores of single folds to one table of all subjects, each held out once."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flexunet import run_folder, seen_subjects
from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.cross_validation.folder import CrossValidationFolder, Plan
from flexunet.evaluation import summary
from flexunet.evaluation.confusion import shares_of
from flexunet.reporting import report, training_section

Row = dict[str, Any]
_TEXTS = ("subject", "volume", "class", "status", "distances")  # And `distances_px`.
_COUNTS = ("subjects", "volumes", "slices")  # And all that begin with "volumes_".
# Of one fold alone.
_OWN = ("split", "warnings", "dataset_splits", "subjects_also_trained_on",
        "subjects_also_validated_on", "model_sha256")  # fmt: skip


def is_scored(
    run: run_folder.RunFolder, split: str, digest: str, tolerances_mm: Sequence[float]
) -> bool:
  """Returns whether a fold has scores of its network, in today's form and with these tolerances.

  Args:
    run: Of the fold.
    split: The split whose name its held-out subjects go by.
    digest: sha256 of its network.
    tolerances_mm: Of the surface Dice.
  """
  entry = files.read_json(run.metrics_json).get(split) if run.metrics_json.is_file() else None
  if entry is None or not summary.is_current(entry):
    return False
  return (
      entry["evaluated"]["model_sha256"] == digest
      and entry["evaluated"]["surface_tolerances_mm"] == list(tolerances_mm)
      and run.cases_csv.is_file()
  )


def read_rows(run: run_folder.RunFolder, split: str) -> list[Row]:
  """Returns the rows of `cases.csv` of one split as `summary` takes them, with NaN for no value."""
  return [
      {
          name: text if name in (*_TEXTS, "distances_px") else _number(text, name, run)
          for name, text in row.items() if name != "split"
      }
      for row in files.read_table(run.cases_csv, ["split", *_TEXTS])
      if row["split"] == split
  ]  # fmt: skip


def _number(text: str, name: str, run: run_folder.RunFolder) -> float | int:
  if not text:
    return math.nan
  try:
    return int(text) if text.lstrip("-").isdecimal() else float(text)
  except ValueError as error:
    raise InputError(
        f"{run.cases_csv} must hold numbers in the column {name!r}. Got: {text!r}. Put the original"
        " back, or run flexunet evaluate again."
    ) from error


def pool(folder: CrossValidationFolder, plan: Plan) -> tuple[dict[str, Any], list[Row]]:
  """Returns the results of all folds, and the rows of `cases.csv`.

  Args:
    folder: All its folds are trained and scored.
    plan: What was run.

  Returns:
    ({"per_fold", "between_folds", "pooled"} of `cross_validation.json`, rows with their fold).

  Raises:
    InputError: A subject was held out by two folds, or files are not as they were written.
  """
  rows, entries, per_fold = [], [], []
  for fold in plan.folds:
    run = folder.run(fold)
    entry = files.read_json(run.metrics_json)[plan.validation_split]
    own = read_rows(run, plan.validation_split)
    entries.append(entry)
    rows += [{"fold": fold, **row} for row in own]
    per_fold.append(_fold_entry(fold, run, entry, plan))
  _check_disjoint(per_fold)
  class_names = list(entries[0]["per_class"])
  # A fold whose volumes all have a spacing has no column of distances in pixels.
  columns = list(dict.fromkeys(name for row in rows for name in row))
  rows = [{name: row.get(name, math.nan) for name in columns} for row in rows]
  figures = summary.summarize(rows, class_names, _averaged(entries, columns))
  figures["rules"] = {**entries[0]["rules"], **figures["rules"]}
  if all("confusion" in entry for entry in entries):
    figures["confusion"] = _confusion([entry["confusion"] for entry in entries])
  chosen = plan.given.get("save_best", True)
  figures["evaluated"] = _evaluated(entries, per_fold, chosen)
  means = [one["foreground_dice"]["mean"] for one in per_fold]
  spread = summary.statistics([math.nan if mean is None else mean for mean in means])
  results = {"per_fold": per_fold, "between_folds": spread, "pooled": figures}
  return summary.strict(results), rows


def _averaged(entries: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
  """Returns the scores that an evaluation averages: columns of the table with statistics."""
  found: dict[str, None] = {}
  for entry in entries:
    for name, value in next(iter(entry["per_class"].values())).items():
      if isinstance(value, Mapping) and "mean" in value and name in columns:
        found[name] = None
  return list(found)


def _confusion(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns the confusion of all folds: rows are the truth, columns the prediction."""
  pixels = [
      [sum(cells) for cells in zip(*rows, strict=True)]
      for rows in zip(*(entry["pixels"] for entry in entries), strict=True)
  ]
  return {**entries[0], "pixels": pixels, "shares": shares_of(np.array(pixels)).tolist()}


def _fold_entry(
    fold: int, run: run_folder.RunFolder, entry: Mapping[str, Any], plan: Plan
) -> dict[str, Any]:
  settings = run.read_config()
  history = report.read_history(run)
  seen = seen_subjects.of_run(run) or [seen_subjects.SubjectsSeen(None)]
  return {
      "fold": fold,
      "run": run.path.name,
      "subjects": [one["subject"] for one in entry["per_subject"]],
      "trained_on_subjects": len(seen[0].train),
      "volumes": entry["evaluated"]["volumes"],
      "foreground_dice": {name: entry["foreground_dice"][name] for name in ("mean", "ci95")},
      "dice": {name: scores["dice"]["mean"] for name, scores in entry["per_class"].items()},
      "best_epoch": training_section.kept_epoch(history, settings.training),
      "epochs": max((row["epoch"] for row in history), default=0),
      "model_sha256": plan.trained[run.path.name],
  }


def _check_disjoint(per_fold: Sequence[Mapping[str, Any]]) -> None:
  """Raises InputError where a subject would count twice."""
  held_out: dict[str, str] = {}
  for entry in per_fold:
    for subject in entry["subjects"]:
      if subject in held_out:
        raise InputError(
            f"Each subject must be held out by one fold, but {subject!r} was by"
            f" {held_out[subject]} and {entry['run']}. Start again in another --run_dir."
        )
      held_out[subject] = entry["run"]


def _evaluated(
    entries: Sequence[Mapping[str, Any]], per_fold: Sequence[Mapping[str, Any]], chosen: bool
) -> dict[str, Any]:
  """Returns what was scored over all folds, in the form of an entry of `metrics.json`.

  Args:
    entries: That of each fold.
    per_fold: From `_fold_entry`.
    chosen: Whether the held-out subjects chose the epoch whose weights are kept.
  """
  parts = [entry["evaluated"] for entry in entries]
  first = parts[0]
  counts = [name for name in first if name in _COUNTS or name.startswith("volumes_")]
  same = [
      name for name in first
      if name not in (*counts, *_OWN) and all(part.get(name) == first[name] for part in parts)
  ]  # fmt: skip
  trained_on = [name for part in parts for name in part["subjects_also_trained_on"] or []]
  return {
      **{name: first[name] for name in same},
      **{name: sum(part[name] for part in parts) for name in counts},
      "subjects_also_trained_on": trained_on,
      "subjects_also_validated_on": sorted(name for one in per_fold for name in one["subjects"]),
      "warnings": _warnings(parts, per_fold, chosen),
  }


def _warnings(
    parts: Sequence[Mapping[str, Any]], per_fold: Sequence[Mapping[str, Any]], chosen: bool
) -> list[str]:
  """Returns what a reader of the pooled scores must know, one sentence each."""
  said: dict[str, list[str]] = {}
  for part, one in zip(parts, per_fold, strict=True):
    for warning in part["warnings"]:
      if not warning.startswith(seen_subjects.CHOSE):
        said.setdefault(warning, []).append(one["run"])
  optimistic = (
      "no network was trained on the subjects that it is scored on, but they chose its epoch, which"
      " makes the figures a little optimistic."
  )
  return [
      *([optimistic] if chosen else []),
      *(
          f"{'in each fold' if len(runs) == len(per_fold) else ', '.join(runs)}: {text}"
          for text, runs in said.items()
      ),
  ]


def table_bytes(rows: Sequence[Row]) -> bytes:
  """Returns `cases.csv`: a row per held-out volume and class, an empty cell for no value."""
  columns = list(dict.fromkeys(name for row in rows for name in row))
  text = io.StringIO()
  writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
  writer.writeheader()
  for row in rows:
    writer.writerow({
        name: "" if isinstance(value, float) and math.isnan(value) else value
        for name, value in row.items()
    })
  return text.getvalue().encode("utf-8")
