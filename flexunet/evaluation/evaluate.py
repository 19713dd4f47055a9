"""Scores a run's network on a split: volumes put together from slices, at their own resolution.

Surfaces of a volume are compared in 3-D when its slices are gapless, of one size, more than one,
and their spacing is known; otherwise within slices, in scores of their own names. Without a pixel
spacing they are not compared. Overlaps always count all pixels of the volume.

Evaluates a run: opens what it states, scores splits, writes `evaluation/` and the report.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import flexunet
from flexunet import config, run_folder
from flexunet.core import files, progress
from flexunet.core.errors import InputError
from flexunet.evaluation import examples, summary, surface_distance
from flexunet.evaluation.labelled_volumes import LabelledVolume, read_volumes
from flexunet.evaluation.scores import (
    DEFAULT_TOLERANCES_MM,
    VOLUME_NAMES,
    checked_tolerances,
    in_slices,
    label_scores,
    score_names,
    surface_names,
)
from flexunet.pipelines import dataset_source, readers
from flexunet.pipelines.dataset_source import DatasetSource, open_dataset
from flexunet.pipelines.record_table import RecordTable
from flexunet.prediction.predictor import Predictor, load_model, to_label
from flexunet.reporting import overlay, report

# Splits whose records carry an empty label because the source has none.
_WITHOUT_TRUTH = ("unlabeled", "unlabelled")


@dataclasses.dataclass(eq=False)
class SplitScores:
  """What scoring a split gives.

  Attributes:
    rows: One a volume and foreground class: the columns of `cases.csv` without `split`.
    examples: The best and worst volumes.
    published: `dice_coef_multiclass` and `pixel_accuracy`.
    counts: subjects, volumes, slices, volumes_with_2d_distances, volumes_without_spacing.
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
  subjects, kinds, axes_mm = set(), [], []
  bar = progress.bar(total=len(table), desc=split, unit="slice", disable=not show_progress)
  with bar:
    for volume in read_volumes(source, table, keys):
      predictions: list[np.ndarray] = []
      for label, probability in zip(
          volume.labels, predictor.probabilities(volume.images), strict=True
      ):
        _check_ids(volume, label, len(class_names))
        predictions.append(_judged(volume, len(predictions), probability, published))
        bar.update()
      own = score_volume(volume, predictions, class_names, tolerances_mm)
      rows += own
      subjects.add(volume.subject)
      kinds.append(volume.distances)
      axes_mm.append(volume.axes_mm)
      keeper.offer(_example(volume, predictions, own, shown_channel))
  return SplitScores(
      rows=rows,
      examples=keeper.chosen(),
      published=published.figures(),
      counts={
          "subjects": len(subjects),
          "volumes": len(kinds),
          "slices": len(table),
          "volumes_with_2d_distances": kinds.count("2d"),
          "volumes_without_spacing": kinds.count("none"),
      },
      class_names=list(class_names[1:]),
      warnings=_voxel_warnings(axes_mm, tolerances_mm),
  )


def _voxel_warnings(
    axes_mm: Sequence[tuple[float, ...]], tolerances_mm: Sequence[float]
) -> list[str]:
  """Returns a sentence for each tolerance that is below the voxel size of some volumes.

  Surfaces lie on a grid: a distance along an axis is 0 or at least the spacing of that axis.

  Args:
    axes_mm: Of each volume, the spacing of the axes in which its surfaces are compared.
    tolerances_mm: Those of the surface Dice.
  """
  sizes = [max(axes) for axes in axes_mm if axes]
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


def score_volume(
    volume: LabelledVolume,
    predictions: Sequence[np.ndarray],
    class_names: Sequence[str],
    tolerances_mm: Sequence[float],
) -> list[dict[str, Any]]:
  """Returns one row per foreground class; see `scores` for what is in it.

  Args:
    volume: Truth.
    predictions: uint8 [H, W] of each slice.
    class_names: By id, background first.
    tolerances_mm: Distances up to which two surfaces agree, one surface Dice each.
  """
  kind = volume.distances
  spacing: tuple[float, ...]
  if kind == "3d":
    truth, found = np.stack(volume.labels), np.stack(predictions)
    spacing = (volume.slice_spacing_mm, *volume.spacing_mm)
  else:  # Slices may differ in size: overlaps need no more than the pixels in a row.
    truth = np.concatenate([label.ravel() for label in volume.labels])[None]
    found = np.concatenate([label.ravel() for label in predictions])[None]
    spacing = (np.nan, np.nan)
  rows = label_scores(truth, found, class_names, spacing, tolerances_mm)
  for class_id, row in enumerate(rows, start=1):
    row.update(_scores_in_slices(volume, predictions, class_id, tolerances_mm, kind == "2d"))
  return [
      {
          "subject": volume.subject,
          "volume": volume.volume,
          "class": row["class"],
          **{name: row[name] for name in volume_score_names(tolerances_mm)},
          **row,
          "slices": len(volume.labels),
          "distances": kind,
      }
      for row in rows
  ]


def volume_score_names(tolerances_mm: Sequence[float]) -> tuple[str, ...]:
  """Returns the name of every score in a row of `score_volume`, in the order of its columns."""
  return (*score_names(tolerances_mm), *map(in_slices, surface_names(tolerances_mm)))


def _scores_in_slices(
    volume: LabelledVolume,
    predictions: Sequence[np.ndarray],
    class_id: int,
    tolerances_mm: Sequence[float],
    compared: bool,
) -> dict[str, Any]:
  """Returns the scores of the surfaces within each slice, pooled over the slices of the volume.

  Also how many slices have the class in the truth only (`slices_missed`) and in the prediction only
  (`slices_false_alarm`). In such a slice a surface agrees nowhere and has no distance: then neither
  has the volume, for that of its other slices would be better than the volume deserves.

  Args:
    volume: Truth.
    predictions: uint8 [H, W] of each slice.
    class_id: The class.
    tolerances_mm: Distances up to which two surfaces agree.
    compared: Whether surfaces are compared within slices; otherwise the scores are NaN.
  """
  slices = [
      (label == class_id, prediction == class_id)
      for label, prediction in zip(volume.labels, predictions, strict=True)
  ]
  present = [(bool(truth.any()), bool(found.any())) for truth, found in slices]
  counts = {
      "slices_missed": present.count((True, False)),
      "slices_false_alarm": present.count((False, True)),
  }
  names = [in_slices(name) for name in surface_names(tolerances_mm)]
  if not compared:
    return {**dict.fromkeys(names, math.nan), **counts}
  spacing_mm = volume.spacing_mm
  agreement = surface_distance.SurfaceAgreement(np.zeros(len(tolerances_mm)), 0.0)
  for masks in slices:
    agreement += surface_distance.surface_agreement(*masks, spacing_mm, tolerances_mm)
  hausdorff = average = math.nan
  if not any(counts.values()):
    each = [surface_distance.surface_distances(*masks, spacing_mm) for masks in slices]
    pooled = surface_distance.SurfaceDistances(
        np.concatenate([one.from_reference for one in each]),
        np.concatenate([one.from_prediction for one in each]),
    )
    hausdorff, average = pooled.hausdorff(95.0), pooled.average()
  values = (hausdorff, average, *agreement.surface_dice().tolist())
  return {**dict(zip(names, values, strict=True)), **counts}


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
    mirror: bool = False,
    show_progress: bool = True,
) -> dict[str, Any]:
  """Scores splits and writes metrics.json, cases.csv, examples and the report.

  Figures of other splits are kept where they have the same form. All is checked before the start.

  Args:
    run: A trained run.
    splits: Names; at least one.
    data_dir: Where the dataset lies; as in training where None.
    allow_other_data: Accepts records that differ from those of the training.
    tolerances_mm: Distances up to which two surfaces agree, one surface Dice each.
    batch_size: Slices per step.
    mirror: Averages over mirrored slices.
    show_progress: Draws a bar on standard error.

  Returns:
    Split -> its entry in `metrics.json`.

  Raises:
    InputError: Nothing to evaluate, data of another kind, or no trained network.
  """
  run_config = run.read_config()
  tolerances = checked_tolerances(tolerances_mm)
  source = open_run_dataset(run_config, data_dir)
  check_data(source, run_config, splits, allow_other_data)
  predictor = Predictor(load_model(run), run_config, batch_size=batch_size, mirror=mirror)
  made_with = {"surface_tolerances_mm": tolerances, "mirrored": mirror}
  about = {**_provenance(source, run), **made_with}
  written = {}
  trained, tables = _tables(source, run_config, splits)
  for split, table in tables.items():
    scores = score_split(
        source,
        table,
        predictor,
        run_config.dataset_facts.label_scheme.names,
        split=split,
        keys=(run_config.data.image_key, run_config.data.label_key),
        tolerances_mm=tolerances,
        show_progress=show_progress,
        shown_channel=run_config.shown_channel,
    )
    leaked = len(_subjects(table) & trained)
    for warning in scores.warnings:
      progress.say(f"warning: {split}: {warning}")
    written[split] = _figures(split, scores, {"subjects_also_trained_on": leaked, **about})
    _write_split(run, split, written[split], scores)
  report.write_report(run)
  return written


def _provenance(source: DatasetSource, run: run_folder.RunFolder) -> dict[str, Any]:
  return {
      "dataset": source.name,
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
  return open_dataset(*run_config.dataset_in(data_dir))


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
  trained = facts.label_scheme.names
  found = source.label_scheme(run_config.data.label_key, run_config.model.num_classes).names
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
  tables = {split: readers.slice_table(source, split) for split in splits}
  if data.fold < 0:
    known = data.train_split in source.splits
    return _subjects(readers.slice_table(source, data.train_split)) if known else set(), tables
  train, held_out = readers.split_tables(
      source, data.train_split, data.validation_split, data.fold
  )
  cut_anew = {data.train_split: train, data.validation_split: held_out}
  return _subjects(train), {split: cut_anew.get(split, table) for split, table in tables.items()}


def _subjects(table: RecordTable) -> set[str]:
  return set(table.subject.tolist()) - {""}


def _write_split(
    run: run_folder.RunFolder,
    split: str,
    figures: Mapping[str, Any],
    scores: SplitScores,
) -> None:
  """Puts one split into the files of `evaluation/`, each replaced in one step."""
  metrics = {}
  if run.metrics_json.is_file():
    stored = json.loads(run.metrics_json.read_text(encoding="utf-8"))
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
