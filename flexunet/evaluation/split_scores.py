"""Scores a network on a split: volumes put together from slices, on their scans' own grid.

Volumes pass one at a time. Observers of voxels see the probabilities of each slice, those of labels
what is scored, after the clean-up; both add an entry of their own to `metrics.json`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from flexunet.core import progress
from flexunet.core.errors import InputError
from flexunet.evaluation import examples
from flexunet.evaluation.calibration import CalibrationFigures
from flexunet.evaluation.confusion import ConfusionMatrix
from flexunet.evaluation.labelled_volumes import LabelledVolume, read_volumes
from flexunet.evaluation.published_figures import PublishedFigures
from flexunet.evaluation.slice_errors import SliceErrors
from flexunet.evaluation.split_contents import SplitContents
from flexunet.evaluation.volume_scores import score_volume
from flexunet.imaging.clean_up import CleanUp
from flexunet.pipelines.dataset_source import DatasetSource
from flexunet.pipelines.record_table import RecordTable
from flexunet.prediction.ensemble import Ensemble
from flexunet.prediction.predictor import Predictor, to_label


class VoxelObserver(Protocol):
  """Makes figures of all voxels of a split that count, in one pass."""

  def add(self, label: np.ndarray, probability: np.ndarray) -> None:
    """Takes a slice: uint8 [H, W] and float32 [H, W, classes], or its voxels in a row."""

  def figures(self) -> dict[str, Any]:
    """Returns what is to stand in `metrics.json`."""


class LabelObserver(Protocol):
  """Makes figures of the labels of a split as they are scored, in one pass."""

  def add(self, truth: np.ndarray, predicted: np.ndarray) -> None:
    """Takes a slice: class ids uint8 [H, W] each, or its voxels in a row."""

  def figures(self) -> dict[str, Any]:
    """Returns what is to stand in `metrics.json`."""


# Key in metrics.json -> what makes its entry, from the number of classes.
VOXEL_OBSERVERS: dict[str, Callable[[int], VoxelObserver]] = {
    "published": lambda num_classes: PublishedFigures(),
}
# Likewise from the names of the classes.
LABEL_OBSERVERS: dict[str, Callable[[Sequence[str]], LabelObserver]] = {
    "confusion": ConfusionMatrix,
}


@dataclasses.dataclass(eq=False)
class SplitScores:
  """What scoring a split gives.

  Attributes:
    rows: One a volume and foreground class: the columns of `cases.csv` without `split`.
    examples: The best and worst volumes.
    voxel_figures: Key in `metrics.json` -> the figures of an observer of voxels, labels or slices.
    counts: subjects, volumes, slices, volumes_with_2d_distances, volumes_without_spacing,
      volumes_without_some_slices, volumes_on_resampled_grid.
    volumes_cleaned_up: Whose labels the clean-up changed.
    class_names: The foreground classes.
    warnings: What a reader of the scores must know, one sentence each.
  """

  rows: list[dict[str, Any]]
  examples: list[examples.Example]
  voxel_figures: dict[str, dict[str, Any]]
  counts: dict[str, int]
  volumes_cleaned_up: int
  class_names: list[str]
  warnings: list[str]


class _Observers:
  """All that look on while the volumes of a split are scored."""

  def __init__(self, class_names: Sequence[str]):
    count = len(class_names)
    self.of_voxels = {key: new(count) for key, new in VOXEL_OBSERVERS.items()}
    self.calibration = CalibrationFigures(class_names)
    self._of_labels = {key: new(class_names) for key, new in LABEL_OBSERVERS.items()}
    self._positions = SliceErrors(class_names)

  def show(self, volume: LabelledVolume, predictions: Sequence[np.ndarray]) -> None:
    """Shows the labels of a volume, cleaned up, to those who look at labels."""
    _show_labels(volume, predictions, list(self._of_labels.values()))
    self._positions.add(volume, predictions)

  def figures(self) -> dict[str, dict[str, Any]]:
    """Returns key in `metrics.json` -> figures."""
    named: dict[str, Any] = {**self.of_voxels, **self._of_labels}
    named |= {"calibration": self.calibration, "slice_errors": self._positions}
    return {key: one.figures() for key, one in named.items()}


def score_split(
    source: DatasetSource,
    table: RecordTable,
    predictor: Predictor | Ensemble,
    class_names: Sequence[str],
    *,
    split: str,
    keys: tuple[str, str] = ("image", "label"),
    tolerances_mm: Sequence[float],
    lesion_overlap: float | None = None,
    show_progress: bool = True,
    shown_channel: int | None = None,
) -> SplitScores:
  """Predicts every slice of a split and scores each volume; one volume is in memory at a time.

  Args:
    source: The opened dataset.
    table: The records to be scored.
    predictor: The network, or several.
    class_names: By id, background first.
    split: Its name, for the rows.
    keys: Features of the image and of the label.
    tolerances_mm: Distances up to which two surfaces agree, one surface Dice each.
    lesion_overlap: See `volume_scores.score_volume`.
    show_progress: Draws a bar on standard error.
    shown_channel: Which channel the examples show; None: the mean of all.
  """
  rows: list[dict[str, Any]] = []
  keeper = examples.ExampleKeeper()
  observers = _Observers(class_names)
  seen, cleaned_up = SplitContents(source), 0
  with progress.bar(
      total=len(table), desc=split, unit="slice", disable=not show_progress
  ) as bar:
    for shown in read_volumes(source, table, keys):
      volume = shown.on_native_grid()
      predictions = _predicted(shown, volume, predictor, observers, bar)
      predictions, changed = _cleaned_up(volume, predictions, predictor.clean_up)
      cleaned_up += changed
      observers.show(volume, predictions)
      own = score_volume(volume, predictions, class_names, tolerances_mm, lesion_overlap)
      rows += own
      seen.add(volume, is_native=shown.keeps_native_labels)
      keeper.offer(examples.example_of(volume, predictions, own, shown_channel))
  return SplitScores(
      rows=rows,
      examples=keeper.chosen(),
      voxel_figures=observers.figures(),
      counts=seen.counts(),
      volumes_cleaned_up=cleaned_up,
      class_names=list(class_names[1:]),
      warnings=[*source.warnings, *seen.warnings(tolerances_mm)],
  )


def _predicted(
    shown: LabelledVolume,
    volume: LabelledVolume,
    predictor: Predictor | Ensemble,
    observers: _Observers,
    bar: Any,
) -> list[np.ndarray]:
  """Returns the labels of a volume as the network gives them, on the scan's own grid.

  Args:
    shown: As the network sees it.
    volume: On the scan's own grid.
    predictor: The network.
    observers: See each slice.
    bar: Counts the slices.
  """
  predictions: list[np.ndarray] = []
  spacing_mm = (*shown.spacing_mm, shown.slice_spacing_mm)
  answers = predictor.probabilities(shown.images, spacing_mm)
  for place, seen_by_network in enumerate(answers):
    for probability in shown.to_native_grid(place, seen_by_network):
      index = len(predictions)
      _check_ids(volume, volume.labels[index], probability.shape[-1])
      counted = ~volume.ignored[index] if volume.ignored else None
      observers.calibration.add(volume.labels[index], probability, counted)
      predictions.append(_judged(volume, index, probability, observers.of_voxels.values()))
    bar.update()
  return predictions


def _judged(
    volume: LabelledVolume,
    index: int,
    probability: np.ndarray,
    observers: Iterable[VoxelObserver],
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


def _cleaned_up(
    volume: LabelledVolume, predictions: list[np.ndarray], clean_up: CleanUp
) -> tuple[list[np.ndarray], bool]:
  """Returns the labels after the clean-up, as prediction writes them, and whether they changed."""
  cleaned = clean_up.apply_to_slices(
      predictions, volume.spacing_mm, volume.slice_spacing_mm, is_solid=volume.is_solid
  )
  pairs = zip(cleaned, predictions, strict=True)
  changed = any(one is not other and not np.array_equal(one, other) for one, other in pairs)
  if changed and volume.ignored:
    counted = zip(cleaned, volume.ignored, strict=True)
    cleaned = [np.where(ignored, 0, one).astype(one.dtype) for one, ignored in counted]
  return (cleaned if changed else predictions), changed


def _show_labels(
    volume: LabelledVolume, predictions: Sequence[np.ndarray], observers: Sequence[LabelObserver]
) -> None:
  for index, (truth, predicted) in enumerate(zip(volume.labels, predictions, strict=True)):
    if volume.ignored:
      counted = ~volume.ignored[index]
      truth, predicted = truth[counted], predicted[counted]
    for observer in observers:
      observer.add(truth, predicted)


def _check_ids(volume: LabelledVolume, label: np.ndarray, num_classes: int) -> None:
  if label.size and label.max() >= num_classes:
    raise InputError(
        f"Volume {volume.volume!r}: label ids must lie in 0..{num_classes - 1}, the classes of the"
        f" run. Got: {label.max()}. Build the dataset again, or evaluate the run on its own data."
    )
