"""The two figures that published FlexUNet results state, kept for comparison alone."""

from __future__ import annotations

import numpy as np

from flexunet.prediction.predictor import to_label


class PublishedFigures:
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
    """Returns `dice_coef_multiclass` and `pixel_accuracy`."""
    return {
        "dice_coef_multiclass": float(np.mean(self._coefficients)),
        "pixel_accuracy": self._right / self._pixels,
    }
