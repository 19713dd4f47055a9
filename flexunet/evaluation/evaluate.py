"""Scores a run's network on a split: volumes put together from slices, on their scans' own grid.

Evaluates a run: opens what it states, scores splits, writes `evaluation/` and the report.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import io
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import flexunet
from flexunet import config, run_folder, seen_subjects
from flexunet.core import files, progress
from flexunet.core.errors import InputError
from flexunet.evaluation import examples, summary
from flexunet.evaluation.labelled_volumes import LabelledVolume, read_volumes
from flexunet.evaluation.scores import (
    DEFAULT_TOLERANCES_MM,
    VOLUME_NAMES,
    checked_tolerances,
)
from flexunet.evaluation.volume_scores import score_volume, volume_score_names
from flexunet.pipelines import dataset_source, readers
from flexunet.pipelines.dataset_source import DatasetSource, open_dataset
from flexunet.pipelines.record_table import RecordTable
from flexunet.prediction import test_time
from flexunet.prediction.predictor import Predictor, load_model, to_label
from flexunet.prediction.tiles import TileOptions
from flexunet.reporting import overlay, report


@dataclasses.dataclass(eq=False)
class SplitScores:
  """What scoring a split gives.

  Attributes:
    rows: One a volume and foreground class: the columns of `cases.csv` without `split`.
    examples: The best and worst volumes.
    published: `dice_coef_multiclass` and `pixel_accuracy`.
    counts: subjects, volumes, slices, volumes_with_2d_distances, volumes_without_spacing,
      volumes_without_some_slices, volumes_on_resampled_grid.
    class_names: The foreground classes.
    warnings: What a reader of the scores must know, one sentence each.
  """

  rows: list[dict[str, Any]]
  examples: list[examples.Example]
  published: dict[str, float]
  counts: dict[str, int]
  class_names: list[str]
  warnings: list[str]


def score_split(
    source: DatasetSource,
    table: RecordTable,
    predictor: Predictor,
    class_names: Sequence[str],
    *,
    split: str,
    keys: tuple[str, str] = ("image", "label"),
    tolerances_mm: Sequence[float],
    show_progress: bool = True,
    shown_channel: int | None = None,
) -> SplitScores:
  """Predicts every slice of a split and scores each volume; one volume is in memory at a time.

  Args:
    source: The opened dataset.
    table: The records to be scored.
    predictor: The network.
    class_names: By id, background first.
    split: Its name, for the rows.
    keys: Features of the image and of the label.
    tolerances_mm: Distances up to which two surfaces agree, one surface Dice each.
    show_progress: Draws a bar on standard error.
    shown_channel: Which channel the examples show; None: the mean of all.
  """
  rows: list[dict[str, Any]] = []
  keeper = examples.ExampleKeeper()
  published = _Published()
  seen = _Volumes(source)
  with progress.bar(
      total=len(table), desc=split, unit="slice", disable=not show_progress
  ) as bar:
    for shown in read_volumes(source, table, keys):
      volume = shown.on_native_grid()
      predictions: list[np.ndarray] = []
      answers = predictor.probabilities(shown.images, shown.spacing_mm)
      for place, seen_by_network in enumerate(answers):
        for probability in shown.to_native_grid(place, seen_by_network):
          _check_ids(volume, volume.labels[len(predictions)], len(class_names))
          predictions.append(_judged(volume, len(predictions), probability, published))
        bar.update()
      own = score_volume(volume, predictions, class_names, tolerances_mm)
      rows += own
      seen.add(volume, is_native=shown.keeps_native_labels)
      keeper.offer(_example(volume, predictions, own, shown_channel))
  return SplitScores(
      rows=rows,
      examples=keeper.chosen(),
      published=published.figures(),
      counts=seen.counts(),
      class_names=list(class_names[1:]),
      warnings=[*source.warnings, *seen.warnings(tolerances_mm)],
  )


class _Volumes:
  """Takes note of what kind of volumes a split holds."""

  def __init__(self, source: DatasetSource):
    self._left_out: Mapping[str, Mapping[str, int]] = source.report.get("slices_left_out") or {}
    self._reasons: collections.Counter[str] = collections.Counter()
    self._subjects: set[str] = set()
    self._distances: list[str] = []
    self._axes_mm: list[tuple[float, ...]] = []
    self._slices = self._incomplete = self._resampled = 0
    recipe = source.recipe
    self._build_resamples = recipe is not None and recipe.resamples

  def add(self, volume: LabelledVolume, is_native: bool) -> None:
    """Takes note of one as it is scored; `is_native`: on a grid that is not that of its slices."""
    self._resampled += self._build_resamples and not is_native
    self._subjects.add(volume.subject)
    self._distances.append(volume.distances)
    self._axes_mm.append(volume.axes_mm)
    self._slices += len(volume.labels)
    reasons = self._left_out.get(volume.volume, {})
    self._reasons.update(reasons)
    self._incomplete += bool(reasons) or volume.has_gaps

  def counts(self) -> dict[str, int]:
    """Returns the counts of `SplitScores`."""
    return {
        "subjects": len(self._subjects),
        "volumes": len(self._distances),
        "slices": self._slices,
        "volumes_with_2d_distances": self._distances.count("2d"),
        "volumes_without_spacing": self._distances.count("none"),
        "volumes_without_some_slices": self._incomplete,
        "volumes_on_resampled_grid": self._resampled,
    }

  def warnings(self, tolerances_mm: Sequence[float]) -> list[str]:
    """Returns what a reader of the scores must know, one sentence each."""
    return [
        *self._grid_warnings(), *self._part_warnings(), *self._voxel_warnings(tolerances_mm)
    ]  # fmt: skip

  def _grid_warnings(self) -> list[str]:
    """Returns a sentence where scores are not on the grids of the scans."""
    if not self._resampled:
      return []
    volumes = progress.count(len(self._distances), "volume")
    return [
        f"{self._resampled} of {volumes} scored on the grid to which the build resampled them, not"
        " on that of the scans, where scores are usually lower: the dataset does not hold the"
        " labels of the scans. Build it again."
    ]

  def _part_warnings(self) -> list[str]:
    """Returns a sentence where scores are of parts of volumes."""
    if not self._incomplete:
      return []
    said = "; ".join(f"{progress.count(n, 'slice')}: {why}" for why, n in self._reasons.items())
    reason = f"the build left out {said}" if said else "there are gaps between their slices"
    volumes = progress.count(len(self._distances), "volume")
    return [
        f"{self._incomplete} of {volumes} not whole: {reason}. Scores are of the slices that there"
        " are; what is found wrongly elsewhere does not count."
    ]

  def _voxel_warnings(self, tolerances_mm: Sequence[float]) -> list[str]:
    """Returns a sentence for each tolerance that is below the voxel size of some volumes.

    Surfaces lie on a grid: a distance along an axis is 0 or at least the spacing of that axis.
    """
    sizes = [max(axes) for axes in self._axes_mm if axes]
    found = []
    for tolerance in tolerances_mm:
      coarse = [size for size in sizes if size > tolerance + 1e-6]
      if coarse:
        found.append(
            f"surface Dice at {tolerance:g} mm: the tolerance is below the voxel size, up to"
            f" {max(coarse):.3g} mm, of {len(coarse)} of {progress.count(len(sizes), 'volume')}."
            " Along such an axis surfaces agree only where they coincide."
        )
    return found


class _Published:
  """Running means of the two figures that published FlexUNet results state."""

  def __init__(self) -> None:
    self._coefficients: list[float] = []
    self._right = self._pixels = 0

  def add(self, label: np.ndarray, probability: np.ndarray) -> None:
    """Takes one slice: uint8 [H, W] and float32 [H, W, classes], or its pixels in a row."""
    overlap = np.take_along_axis(probability, label[..., None].astype(np.intp), axis=-1)
    overlap_sum = float(overlap.sum(dtype=np.float64))
    mass = label.size + float(probability.sum(dtype=np.float64))
    self._coefficients.append((2 * overlap_sum + 1) / (mass + 1))
    self._right += int(np.count_nonzero(to_label(probability) == label))
    self._pixels += label.size

  def figures(self) -> dict[str, float]:
    return {
        "dice_coef_multiclass": float(np.mean(self._coefficients)),
        "pixel_accuracy": self._right / self._pixels,
    }


def _judged(
    volume: LabelledVolume, index: int, probability: np.ndarray, published: _Published
) -> np.ndarray:
  """Returns the predicted label of a slice; what is not counted is background, as in the truth."""
  label, predicted = volume.labels[index], to_label(probability)
  if volume.ignored:
    counted = ~volume.ignored[index]
    label, probability, predicted = label[counted], probability[counted], predicted * counted
  if label.size:
    published.add(label, probability)
  return predicted


def _check_ids(volume: LabelledVolume, label: np.ndarray, num_classes: int) -> None:
  if label.size and label.max() >= num_classes:
    raise InputError(
        f"Volume {volume.volume!r}: label ids must lie in 0..{num_classes - 1}, the classes of the"
        f" run. Got: {label.max()}. Build the dataset again, or evaluate the run on its own data."
    )


def _example(
    volume: LabelledVolume,
    predictions: Sequence[np.ndarray],
    rows: Sequence[dict[str, Any]],
    shown_channel: int | None,
) -> examples.Example:
  """Returns the slice with most true foreground; with most predicted, where there is none."""
  areas = [np.count_nonzero(label) for label in volume.labels]
  if not any(areas):
    areas = [np.count_nonzero(label) for label in predictions]
  shown = int(np.argmax(areas))
  dice = {row["class"]: row["dice"] for row in rows}
  defined = [value for value in dice.values() if not np.isnan(value)]
  height, width = volume.spacing_mm
  return examples.Example(
      image=overlay.grey_of(volume.images[shown], shown_channel),
      truth=volume.labels[shown],
      prediction=predictions[shown],
      subject=volume.subject,
      volume=volume.volume,
      slice_index=volume.slice_index[shown],
      foreground_dice=float(np.mean(defined)) if defined else float("nan"),
      dice={name: None if np.isnan(value) else value for name, value in dice.items()},
      aspect=height / width if np.isfinite([height, width]).all() and width > 0 else 1.0,
  )


def evaluate(
    run: run_folder.RunFolder,
    splits: Sequence[str],
    *,
    data_dir: str | os.PathLike | None = None,
    allow_other_data: bool = False,
    tolerances_mm: Sequence[float | str] = DEFAULT_TOLERANCES_MM,
    batch_size: int = 8,
    views: test_time.ViewOptions = test_time.ViewOptions(),
    tiles: TileOptions = TileOptions(),
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
          source,
          table,
          predictor,
          run_config.dataset_facts.label_scheme.names,
          split=split,
          keys=(source.keys.image, source.keys.label),
          tolerances_mm=tolerances,
          show_progress=show_progress,
          shown_channel=run_config.shown_channel,
      )
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
  figures["published"] = scores.published
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
