"""Where along its volumes a network errs: pixels missed and found falsely, by slice position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # It loads TensorFlow, which a page of stored figures does not need.
  from flexunet.evaluation.labelled_volumes import LabelledVolume

NUM_BINS = 10
RULE = (
    "Slices are counted by their relative position between the first (0) and the last (1) slice of"
    " their volume. Missed is the share of the true pixels of a class that were not predicted as"
    " it, false the share of its predicted pixels that are not truly of it, over all volumes"
    " together. A volume of a single slice has no position."
)
_COUNTS = ("true", "predicted", "false_negative", "false_positive")


class SliceErrors:
  """Counts pixels of each class by relative position in the volume; volumes pass one at a time."""

  def __init__(self, class_names: Sequence[str]):
    """Takes the names of the classes by id, background first."""
    self._names = list(class_names)
    self._pixels = np.zeros((len(_COUNTS), NUM_BINS, len(self._names)), np.int64)
    self._slices = np.zeros(NUM_BINS, np.int64)
    self._without_position = 0

  def add(self, volume: LabelledVolume, predictions: Sequence[np.ndarray]) -> None:
    """Takes a volume and the predicted class ids, uint8 [H, W], of each of its slices."""
    first, last = min(volume.slice_index), max(volume.slice_index)
    if first == last:
      self._without_position += 1
      return
    for index, truth, found in zip(volume.slice_index, volume.labels, predictions, strict=True):
      place = min(NUM_BINS - 1, NUM_BINS * (index - first) // (last - first))
      self._slices[place] += 1
      wrong = truth != found
      for row, label in enumerate((truth, found, truth[wrong], found[wrong])):
        self._pixels[row, place] += np.bincount(label.ravel(), minlength=len(self._names))

  def figures(self) -> dict[str, Any]:
    """Returns what stands in `metrics.json`.

    `low`, `high` and `slices` of each bin; `per_class` and `all_classes`, the sum over the
    foreground, hold four counts of pixels per bin: true, predicted, false_negative, false_positive.
    """
    ends = np.linspace(0, 1, NUM_BINS + 1).round(6).tolist()
    return {
        "low": ends[:-1],
        "high": ends[1:],
        "slices": self._slices.tolist(),
        "all_classes": _counts(self._pixels[..., 1:].sum(axis=-1)),
        "per_class": {
            name: _counts(self._pixels[..., class_id])
            for class_id, name in enumerate(self._names) if class_id
        },
        "volumes_without_position": self._without_position,
        "rule": RULE,
    }  # fmt: skip


def _counts(pixels: np.ndarray) -> dict[str, list[int]]:
  """Returns counts int64 [4, bins] under their names."""
  return {name: of_bins.tolist() for name, of_bins in zip(_COUNTS, pixels, strict=True)}
