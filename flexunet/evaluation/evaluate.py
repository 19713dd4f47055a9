"""Evaluates a run: opens what it states, scores splits, writes `evaluation/` and the report."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import flexunet
from flexunet import config, run_folder, seen_subjects
from flexunet.core import files, progress
from flexunet.core.errors import InputError
from flexunet.evaluation import examples, summary
from flexunet.evaluation.scores import (
  DEFAULT_TOLERANCES_MM,
  VOLUME_NAMES,
  checked_tolerances,
)
from flexunet.evaluation.split_scores import SplitScores, score_split
from flexunet.evaluation.volume_scores import volume_score_names
from flexunet.pipelines import dataset_source, readers
from flexunet.pipelines.dataset_source import DatasetSource, open_dataset
from flexunet.pipelines.record_table import RecordTable
from flexunet.prediction.predictor import Predictor, load_model
from flexunet.prediction.test_time import ONE_VIEW, ViewOptions
from flexunet.prediction.tiles import WHERE_NEEDED, TileOptions
from flexunet.reporting import report


def evaluate(
    run: run_folder.RunFolder,
    splits: Sequence[str],
    *,
    data_dir: str | os.PathLike | None = None,
    allow_other_data: bool = False,
    tolerances_mm: Sequence[float | str] = DEFAULT_TOLERANCES_MM,
    batch_size: int = 8,
    views: ViewOptions = ONE_VIEW,
    tiles: TileOptions = WHERE_NEEDED,
    show_progress: bool = True,
) -> dict[str, Any]:
  """Scores splits and writes metrics.json, cases.csv, examples and the report.

  Figures of other splits are kept where they have the same form. All is checked before the start.
  One program at a time writes into `evaluation/`; training may continue meanwhile.

  Args:
    run: A trained run.
    splits: Names; at least one.
    data_dir: Where the dataset lies; as in training where None.
    allow_other_data: Accepts records that differ from those of the training.
    tolerances_mm: Distances up to which two surfaces agree, one surface Dice each.
    batch_size: Slices per step.
    views: Test-time augmentation.
    tiles: Which slices are predicted in tiles.
    show_progress: Draws a bar on standard error.

  Returns:
    Split -> its entry in `metrics.json`.

  Raises:
    InputError: Nothing to evaluate, data of another kind, no trained network, or another program
      evaluates the run.
  """
  run_config = run.read_config()
  tolerances = checked_tolerances(tolerances_mm)
  source = open_run_dataset(run_config, data_dir)
  check_data(source, run_config, splits, allow_other_data)
  predictor = Predictor(
      load_model(run), run_config, batch_size=batch_size, views=views, tiles=tiles
  )
  about = {**_provenance(source, run), "surface_tolerances_mm": tolerances}
  seen, unsaid = _seen(run, source, run_config)
  written = {}
  with files.locked(run.evaluation, "--run_dir"):
    for split, table in _tables(source, run_config, splits).items():
      scores = score_split(
          source, table, predictor, run_config.dataset_facts.label_scheme.names, split=split,
          keys=(source.keys.image, source.keys.label), tolerances_mm=tolerances,
          show_progress=show_progress, shown_channel=run_config.shown_channel,
      )  # fmt: skip
      known = seen_subjects.overlap(table.subject, source.name, seen)
      scores.warnings += [*known.warnings(), *unsaid]
      passes = {"passes": predictor.pass_lines()}
      written[split] = _figures(split, scores, {**known.to_json(), **about, **passes})
      _write_split(run, split, written[split], scores)
    report.write_report(run)
  return written


def _provenance(source: DatasetSource, run: run_folder.RunFolder) -> dict[str, Any]:
  return {
      "dataset": source.name,
      "counted_by": source.counted_by,
      "fingerprint": source.fingerprint,
      "model_sha256": files.sha256_of(run.model_keras),
      "flexunet": flexunet.__version__,
      "dataset_splits": dataset_source.split_counts(source),
  }


def _figures(split: str, scores: SplitScores, about: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the entry of a split in `metrics.json`."""
  names = volume_score_names(about["surface_tolerances_mm"])
  averaged = [name for name in names if name not in VOLUME_NAMES]
  figures = summary.summarize(scores.rows, scores.class_names, averaged)
  figures |= scores.voxel_figures
  figures["evaluated"] = {"split": split, **scores.counts, **about, "warnings": scores.warnings}
  return summary.strict(figures)


def open_run_dataset(
    run_config: config.RunConfig, data_dir: str | os.PathLike | None
) -> DatasetSource:
  """Opens the dataset a run was trained on, or that of the same name in `data_dir`."""
  return open_dataset(*run_config.dataset_in(data_dir), run_config.data.feature_keys)


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
    if split in dataset_source.WITHOUT_TRUTH:
      raise InputError(
          f"Split {split!r} of {source.name} has no labels to compare with. Use"
          " flexunet-predict to look at it."
      )
  facts = run_config.dataset_facts
  trained = facts.label_scheme.names
  found = source.label_scheme(source.keys.label, run_config.model.num_classes).names
  if trained != found:
    raise InputError(
        f"Dataset {source.name} must have the classes of the run, {trained}. It has {found}."
    )
  channels = facts.channel_names or ("image",)
  if source.channel_names != channels:
    raise InputError(
        f"Dataset {source.name} must have the channels of the run, {', '.join(channels)}. It has"
        f" {', '.join(source.channel_names)}."
    )
  if source.fingerprint != facts.fingerprint and not allow_other_data:
    raise InputError(
        f"Dataset {source.name} has the fingerprint {source.fingerprint}, the run was trained on"
        f" {facts.fingerprint} ({facts.name}): other records, so a subject of its test split may"
        " have been trained on. Name the right --data_dir, or pass --allow_other_data: subjects"
        " that were trained on are then named."
    )


def _tables(
    source: DatasetSource, run_config: config.RunConfig, splits: Sequence[str]
) -> dict[str, RecordTable]:
  """Returns the records of each split to be scored.

  A run on a fold has divided its training and validation splits again: its validation split is the
  fold.
  """
  data = run_config.data
  tables = {split: readers.slice_table(source, split) for split in splits}
  if data.fold < 0:
    return tables
  train, held_out = readers.split_tables(
      source, data.train_split, data.validation_split, data.fold
  )
  divided = {data.train_split: train, data.validation_split: held_out}
  return {split: divided.get(split, table) for split, table in tables.items()}


def _seen(
    run: run_folder.RunFolder, source: DatasetSource, run_config: config.RunConfig
) -> tuple[list[seen_subjects.SubjectsSeen], list[str]]:
  """Returns whom the run has seen, and a warning where it does not say so.

  The splits of today then stand in for those of the training.
  """
  if (seen := seen_subjects.of_run(run)) is not None:
    return seen, []
  data = run_config.data
  unsaid = (
      "the run does not say whom it was trained on (another version of FlexUNet wrote it): its"
      " subjects are compared with the dataset's splits of today."
  )
  if not {data.train_split, data.validation_split} <= set(source.splits):
    return [], [unsaid]
  tables = readers.split_tables(
      source, data.train_split, data.validation_split, None if data.fold < 0 else data.fold
  )
  names = [seen_subjects.names_of(table.subject) for table in tables]
  return [seen_subjects.SubjectsSeen(source.name, *names)], [unsaid]


def _write_split(
    run: run_folder.RunFolder,
    split: str,
    figures: Mapping[str, Any],
    scores: SplitScores,
) -> None:
  """Puts one split into the files of `evaluation/`, each replaced in one step; says warnings."""
  for warning in scores.warnings:
    progress.say(f"warning: {split}: {warning}")
  metrics = {}
  if run.metrics_json.is_file():
    stored = files.read_json(run.metrics_json)
    metrics = {name: entry for name, entry in stored.items() if summary.is_current(entry)}
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
  examples.write(examples.path_of(run, split), scores.examples)
  files.write_bytes(run.cases_csv, text.getvalue().encode("utf-8"))
  files.write_json(run.metrics_json, {**metrics, split: figures})


def _cell(value: Any) -> Any:
  """Returns a value as it stands in the CSV: an empty cell for what is not defined."""
  return "" if isinstance(value, float) and math.isnan(value) else value
