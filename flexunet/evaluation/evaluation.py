"""Scores a run's network on a split: volumes put together from slices, at their own resolution.

Surface distances of a volume are measured in 3-D when its slices are gapless, of one size, more
than one, and their spacing is known; otherwise within slices, pooled over the volume. Without a
pixel spacing there are none. Overlaps always count all pixels of the volume.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from flexunet.datasets import progress
from flexunet.datasets.errors import InputError
from flexunet.evaluation import evaluation_examples, evaluation_metrics, surface_distance
from flexunet.evaluation.labelled_volumes import LabelledVolume, read_volumes
from flexunet.pipelines.record_table import RecordTable
from flexunet.pipelines.source import DatasetSource
from flexunet.prediction import inference


@dataclasses.dataclass(eq=False)
class SplitScores:
  """What scoring a split gives.

  Attributes:
    rows: One a volume and foreground class: the columns of `cases.csv` without `split`.
    examples: The best and worst volumes.
    published: `dice_coef_multiclass` and `pixel_accuracy`.
    counts: subjects, volumes, slices, volumes_with_2d_distances, volumes_without_spacing.
  """

  rows: list[dict[str, Any]]
  examples: list[evaluation_examples.Example]
  published: dict[str, float]
  counts: dict[str, int]


def score_split(
    source: DatasetSource,
    table: RecordTable,
    predictor: inference.Predictor,
    class_names: Sequence[str],
    *,
    split: str,
    keys: tuple[str, str] = ("image", "label"),
    tolerance_mm: float,
    show_progress: bool = True,
) -> SplitScores:
  """Predicts every slice of a split and scores each volume; one volume is in memory at a time.

  Args:
    source: The opened dataset.
    table: The records to be scored.
    predictor: The network.
    class_names: By id, background first.
    split: Its name, for the rows.
    keys: Features of the image and of the label.
    tolerance_mm: Of the surface Dice.
    show_progress: Draws a bar on standard error.
  """
  rows: list[dict[str, Any]] = []
  keeper = evaluation_examples.ExampleKeeper()
  published = _Published()
  subjects, kinds = set(), []
  with progress.bar(
      total=len(table), desc=split, unit="slice", disable=not show_progress
  ) as bar:
    for volume in read_volumes(source, table, keys):
      predictions = []
      for label, probability in zip(
          volume.labels, predictor.probabilities(volume.images), strict=True
      ):
        _check_ids(volume, label, len(class_names))
        published.add(label, probability)
        predictions.append(inference.to_label(probability))
        bar.update()
      own = score_volume(volume, predictions, class_names, tolerance_mm)
      rows += own
      subjects.add(volume.subject)
      kinds.append(volume.distances)
      keeper.offer(_example(volume, predictions, own))
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
  )


def score_volume(
    volume: LabelledVolume,
    predictions: Sequence[np.ndarray],
    class_names: Sequence[str],
    tolerance_mm: float,
) -> list[dict[str, Any]]:
  """Returns one row per foreground class; see `evaluation_metrics` for the scores.

  Args:
    volume: Truth.
    predictions: uint8 [H, W] of each slice.
    class_names: By id, background first.
    tolerance_mm: Of the surface Dice.
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
  scores = evaluation_metrics.label_scores(truth, found, class_names, spacing, tolerance_mm)
  if kind == "2d":
    for class_id, row in enumerate(scores, start=1):
      row.update(_distances_in_slices(volume, predictions, class_id, tolerance_mm))
  return [
      {
          "subject": volume.subject,
          "volume": volume.volume,
          "class": row["class"],
          **{name: row[name] for name in evaluation_metrics.SCORE_NAMES},
          **row,
          "slices": len(volume.labels),
          "distances": kind,
      }
      for row in scores
  ]


def _distances_in_slices(
    volume: LabelledVolume, predictions: Sequence[np.ndarray], class_id: int, tolerance_mm: float
) -> dict[str, float]:
  """Returns hd95_mm, assd_mm and nsd from the distances within each slice, pooled.

  A surface in a slice where the other mask is empty has no distance there; for nsd it counts as
  out of tolerance.
  """
  pooled: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
  alone = 0
  for label, prediction in zip(volume.labels, predictions, strict=True):
    truth, found = label == class_id, prediction == class_id
    if truth.any() and found.any():
      distances = surface_distance.surface_distances(truth, found, volume.spacing_mm)
      pooled[0].append(distances.from_reference)
      pooled[1].append(distances.from_prediction)
    elif truth.any() or found.any():
      alone += int(np.count_nonzero(surface_distance.surface(truth | found)))
  merged = surface_distance.SurfaceDistances(
      *(np.concatenate(parts) if parts else np.zeros(0) for parts in pooled)
  )
  matched = merged.from_reference.size + merged.from_prediction.size
  within = merged.surface_dice(tolerance_mm) * matched if merged.defined else 0.0
  return {
      "hd95_mm": merged.hausdorff(95.0),
      "assd_mm": merged.average(),
      "nsd": within / (matched + alone) if matched + alone else float("nan"),
  }


class _Published:
  """Running means of the two figures that published FlexUNet results state."""

  def __init__(self) -> None:
    self._coefficients: list[float] = []
    self._right = self._pixels = 0

  def add(self, label: np.ndarray, probability: np.ndarray) -> None:
    """Takes one slice: uint8 [H, W] and float32 [H, W, classes]."""
    overlap = np.take_along_axis(probability, label[..., None].astype(np.intp), axis=-1)
    overlap_sum = float(overlap.sum(dtype=np.float64))
    mass = label.size + float(probability.sum(dtype=np.float64))
    self._coefficients.append((2 * overlap_sum + 1) / (mass + 1))
    self._right += int(np.count_nonzero(inference.to_label(probability) == label))
    self._pixels += label.size

  def figures(self) -> dict[str, float]:
    return {
        "dice_coef_multiclass": float(np.mean(self._coefficients)),
        "pixel_accuracy": self._right / self._pixels,
    }


def _check_ids(volume: LabelledVolume, label: np.ndarray, num_classes: int) -> None:
  if label.size and label.max() >= num_classes:
    raise InputError(
        f"Volume {volume.volume!r}: label ids must lie in 0..{num_classes - 1}, the classes of the"
        f" run. Got: {label.max()}. Build the dataset again, or evaluate the run on its own data."
    )


def _example(
    volume: LabelledVolume, predictions: Sequence[np.ndarray], rows: Sequence[dict[str, Any]]
) -> evaluation_examples.Example:
  """Returns the slice with most true foreground; with most predicted, where there is none."""
  areas = [np.count_nonzero(label) for label in volume.labels]
  if not any(areas):
    areas = [np.count_nonzero(label) for label in predictions]
  shown = int(np.argmax(areas))
  dice = {row["class"]: row["dice"] for row in rows}
  defined = [value for value in dice.values() if not np.isnan(value)]
  height, width = volume.spacing_mm
  return evaluation_examples.Example(
      image=np.round(volume.images[shown].mean(axis=-1)).astype(np.uint8),
      truth=volume.labels[shown],
      prediction=predictions[shown],
      subject=volume.subject,
      volume=volume.volume,
      slice_index=volume.slice_index[shown],
      foreground_dice=float(np.mean(defined)) if defined else float("nan"),
      dice={name: None if np.isnan(value) else value for name, value in dice.items()},
      aspect=height / width if np.isfinite([height, width]).all() and width > 0 else 1.0,
  )
