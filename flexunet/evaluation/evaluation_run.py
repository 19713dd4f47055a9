"""Evaluates a run: opens what it states, scores splits, writes `evaluation/` and the report."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import flexunet
from flexunet import config, run_folder
from flexunet.datasets.errors import InputError
from flexunet.evaluation import (
  evaluation,
  evaluation_examples,
  evaluation_metrics,
  evaluation_summary,
)
from flexunet.pipelines import selection
from flexunet.pipelines.record_table import RecordTable
from flexunet.pipelines.source import DatasetSource, open_dataset
from flexunet.prediction import inference
from flexunet.reporting import report

_SCORES = tuple(name for name in evaluation_metrics.SCORE_NAMES if not name.endswith("_ml"))
# Splits whose records carry an empty label because the source has none.
_WITHOUT_TRUTH = ("unlabeled", "unlabelled")


def evaluate(
    run: run_folder.RunFolder,
    splits: Sequence[str],
    *,
    data_dir: str | os.PathLike | None = None,
    allow_other_data: bool = False,
    tolerance_mm: float = evaluation_metrics.DEFAULT_TOLERANCE_MM,
    batch_size: int = 8,
    mirror: bool = False,
    show_progress: bool = True,
) -> dict[str, Any]:
  """Scores splits and writes metrics.json, cases.csv, examples and the report.

  Earlier figures of other splits are kept. Everything is checked before anything is predicted.

  Args:
    run: A trained run.
    splits: Names; at least one.
    data_dir: Where the dataset lies; as in training where None.
    allow_other_data: Accepts records that differ from those of the training.
    tolerance_mm: Of the surface Dice.
    batch_size: Slices per step.
    mirror: Averages over mirrored slices.
    show_progress: Draws a bar on standard error.

  Returns:
    Split -> its entry in `metrics.json`.

  Raises:
    InputError: Nothing to evaluate, data of another kind, or no trained network.
  """
  run_config = run.read_config()
  if not tolerance_mm > 0:
    raise InputError(f"--surface_tolerance_mm must be above 0. Got: {tolerance_mm}.")
  source = open_run_dataset(run_config, data_dir)
  check_data(source, run_config, splits, allow_other_data)
  predictor = inference.Predictor(
      inference.load_model(run), run_config, batch_size=batch_size, mirror=mirror
  )
  names = inference.scheme_of(run_config).names
  about = {
      "dataset": source.name,
      "fingerprint": source.fingerprint,
      "model_sha256": report.file_sha256(run.model_keras),
      "surface_tolerance_mm": tolerance_mm,
      "mirrored": mirror,
      "flexunet": flexunet.__version__,
      "dataset_splits": split_counts(source),
  }
  written = {}
  trained, tables = _tables(source, run_config, splits)
  for split in splits:
    scores = evaluation.score_split(
        source,
        tables[split],
        predictor,
        names,
        split=split,
        keys=(run_config.data.image_key, run_config.data.label_key),
        tolerance_mm=tolerance_mm,
        show_progress=show_progress,
    )
    figures = evaluation_summary.summarize(scores.rows, names[1:], _SCORES)
    figures["published"] = scores.published
    figures["evaluated"] = {
        "split": split,
        **scores.counts,
        "subjects_also_trained_on": len(_subjects(tables[split]) & trained),
        **about,
    }
    written[split] = evaluation_summary.strict(figures)
    _write_split(run, split, written[split], scores)
  report.write_report(run)
  return written


def open_run_dataset(
    run_config: config.RunConfig, data_dir: str | os.PathLike | None
) -> DatasetSource:
  """Opens the dataset a run was trained on, or that of the same name in `data_dir`."""
  folder = pathlib.Path(data_dir or run_config.data.data_dir).expanduser()
  dataset = run_config.data.dataset
  if dataset is None and not (folder / "dataset_info.json").is_file():
    dataset = run_config.dataset_facts.name
  return open_dataset(dataset, folder)


def check_data(
    source: DatasetSource,
    run_config: config.RunConfig,
    splits: Sequence[str],
    allow_other_data: bool,
) -> None:
  """Refuses splits that cannot be scored and data that are not those of the run."""
  if not splits:
    raise InputError(f"--split must name a split. Dataset {source.name} has {source.splits}.")
  for split in splits:
    source.check_split(split)
    if split in _WITHOUT_TRUTH:
      raise InputError(
          f"Split {split!r} of {source.name} has no labels to compare with. Use"
          " flexunet-predict to look at it."
      )
  facts = run_config.dataset_facts
  trained = [entry["name"] for entry in facts.label_scheme]
  found = source.label_scheme(run_config.data.label_key, run_config.model.num_classes).names
  if trained != found:
    raise InputError(
        f"Dataset {source.name} must have the classes of the run, {trained}. It has {found}."
    )
  if source.fingerprint != facts.fingerprint and not allow_other_data:
    raise InputError(
        f"Dataset {source.name} has the fingerprint {source.fingerprint}, the run was trained on"
        f" {facts.fingerprint} ({facts.name}): other records, so a subject of its test split may"
        " have been trained on. Name the right --data_dir, or pass --allow_other_data when all its"
        " subjects are new."
    )


def _tables(
    source: DatasetSource, run_config: config.RunConfig, splits: Sequence[str]
) -> tuple[set[str], dict[str, RecordTable]]:
  """Returns the subjects that were trained on, and the records of each split to be scored.

  A run on a fold has cut its training and validation splits anew: its validation split is the
  fold. Builders split by subject, but published folders do not always: hence the subjects.
  """
  data = run_config.data
  tables = {split: source.table(split) for split in splits}
  if data.fold < 0:
    known = data.train_split in source.splits
    return _subjects(source.table(data.train_split)) if known else set(), tables
  train, held_out = selection.split_tables(
      source, data.train_split, data.validation_split, data.fold
  )
  cut_anew = {data.train_split: train, data.validation_split: held_out}
  return _subjects(train), {split: cut_anew.get(split, table) for split, table in tables.items()}


def _subjects(table: RecordTable) -> set[str]:
  return set(table.subject.tolist()) - {""}


def split_counts(source: DatasetSource) -> dict[str, dict[str, int]]:
  """Returns split -> how many subjects, volumes and slices it has; 0 subjects when unknown."""
  counts = {}
  for split in source.splits:
    if not source.info.splits[split].num_examples:
      continue
    table = source.table(split)
    subjects = {str(name) for name in np.unique(table.subject)} - {""}
    volumes = set(zip(table.subject.tolist(), table.volume.tolist(), strict=True)) - {("", "")}
    counts[split] = {"subjects": len(subjects), "volumes": len(volumes), "slices": len(table)}
  return counts


def _write_split(
    run: run_folder.RunFolder,
    split: str,
    figures: Mapping[str, Any],
    scores: evaluation.SplitScores,
) -> None:
  """Puts one split into the files of `evaluation/`, each replaced in one step."""
  metrics = {}
  if run.metrics_json.is_file():
    metrics = json.loads(run.metrics_json.read_text(encoding="utf-8"))
  others = []
  if run.cases_csv.is_file():
    with open(run.cases_csv, newline="", encoding="utf-8") as stream:
      others = [row for row in csv.DictReader(stream) if row["split"] != split]
  own = [{"split": split, **{key: _cell(value) for key, value in row.items()}}
         for row in scores.rows]  # fmt: skip
  columns = list(dict.fromkeys(name for row in [*own, *others] for name in row))
  text = io.StringIO()
  writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
  writer.writeheader()
  writer.writerows([*others, *own])
  evaluation_examples.write(evaluation_examples.path_of(run, split), scores.examples)
  run_folder.write_bytes(run.cases_csv, text.getvalue().encode("utf-8"))
  run_folder.write_json(run.metrics_json, {**metrics, split: figures})


def _cell(value: Any) -> Any:
  """Returns a value as it stands in the CSV: an empty cell for what is not defined."""
  return "" if isinstance(value, float) and math.isnan(value) else value
