"""Scores a network on a split: volumes put together from slices, on their scans' own grid.

Volumes pass one at a time. Observers of voxels see each slice as it is scored and add an entry of
their own to `metrics.json`: see `VoxelObserver`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from flexunet.core import progress
from flexunet.core.errors import InputError
from flexunet.evaluation import examples
from flexunet.evaluation.labelled_volumes import LabelledVolume, read_volumes
from flexunet.evaluation.published_figures import PublishedFigures
from flexunet.evaluation.slice_errors import SliceErrors
from flexunet.evaluation.split_contents import SplitContents
from flexunet.evaluation.volume_scores import score_volume
from flexunet.pipelines.dataset_source import DatasetSource
from flexunet.pipelines.record_table import RecordTable
from flexunet.prediction.predictor import Predictor, to_label


class VoxelObserver(Protocol):
  """Makes figures of all voxels of a split that count, in one pass."""

  def add(self, label: np.ndarray, probability: np.ndarray) -> None:
    """Takes a slice: uint8 [H, W] and float32 [H, W, classes], or its voxels in a row."""

  def figures(self) -> dict[str, Any]:
    """Returns what is to stand in `metrics.json`."""


# Key in metrics.json -> what makes its entry, from the number of classes.
VOXEL_OBSERVERS: dict[str, Callable[[int], VoxelObserver]] = {
    "published": lambda num_classes: PublishedFigures(),
}


@dataclasses.dataclass(eq=False)
class SplitScores:
  """What scoring a split gives.

  Attributes:
    rows: One a volume and foreground class: the columns of `cases.csv` without `split`.
    examples: The best and worst volumes.
    voxel_figures: Key in `metrics.json` -> the figures of an observer of voxels, or of slices.
    counts: subjects, volumes, slices, volumes_with_2d_distances, volumes_without_spacing,
      volumes_without_some_slices, volumes_on_resampled_grid.
    class_names: The foreground classes.
    warnings: What a reader of the scores must know, one sentence each.
  """

  rows: list[dict[str, Any]]
  examples: list[examples.Example]
  voxel_figures: dict[str, dict[str, Any]]
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
  observers = {key: new(len(class_names)) for key, new in VOXEL_OBSERVERS.items()}
  watching = list(observers.values())
  positions = SliceErrors(class_names)
  seen = SplitContents(source)
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
          predictions.append(_judged(volume, len(predictions), probability, watching))
        bar.update()
      own = score_volume(volume, predictions, class_names, tolerances_mm)
      rows += own
      seen.add(volume, is_native=shown.keeps_native_labels)
      keeper.offer(examples.example_of(volume, predictions, own, shown_channel))
      positions.add(volume, predictions)
  return SplitScores(
      rows=rows,
      examples=keeper.chosen(),
      voxel_figures={
          **{key: one.figures() for key, one in observers.items()},
          "slice_errors": positions.figures(),
      },
      counts=seen.counts(),
      class_names=list(class_names[1:]),
      warnings=[*source.warnings, *seen.warnings(tolerances_mm)],
  )


def _judged(
    volume: LabelledVolume,
    index: int,
    probability: np.ndarray,
    observers: Sequence[VoxelObserver],
) -> np.ndarray:
  """Returns the predicted label of a slice; what is not counted is background, as in the truth."""
  label, predicted = volume.labels[index], to_label(probability)
  if volume.ignored:
    counted = ~volume.ignored[index]
    label, probability, predicted = label[counted], probability[counted], predicted * counted
  if label.size:
    for observer in observers:
      observer.add(label, probability)
  return predicted


def _check_ids(volume: LabelledVolume, label: np.ndarray, num_classes: int) -> None:
  if label.size and label.max() >= num_classes:
    raise InputError(
        f"Volume {volume.volume!r}: label ids must lie in 0..{num_classes - 1}, the classes of the"
        f" run. Got: {label.max()}. Build the dataset again, or evaluate the run on its own data."
    )
