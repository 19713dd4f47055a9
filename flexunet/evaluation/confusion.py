"""The confusion matrix of all voxels of a split that count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def confusion_of(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
  """Returns int64 [classes, classes], voxels by true (row) and predicted class (column).

  Args:
    truth: Class ids, uint8 of any shape.
    predicted: Of the same shape.
    num_classes: Background included.
  """
  pairs = truth.ravel().astype(np.intp) * num_classes + predicted.ravel()
  return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


class ConfusionMatrix:
  """Counts voxels by true and predicted class, slice by slice."""

  def __init__(self, class_names: Sequence[str]):
    self._names = list(class_names)
    self._pixels = np.zeros((len(self._names),) * 2, np.int64)

  def add(self, truth: np.ndarray, predicted: np.ndarray) -> None:
    """Takes a slice: class ids uint8 [H, W] each, or its voxels in a row."""
    self._pixels += confusion_of(truth, predicted, len(self._names))

  def figures(self) -> dict[str, Any]:
    """Returns `classes`, `pixels` (rows truth, columns prediction) and `shares` of each row.

    The row of a class without true voxels has shares NaN.
    """
    return {
        "classes": self._names,
        "pixels": self._pixels.tolist(),
        "shares": shares_of(self._pixels).tolist(),
    }


def shares_of(pixels: np.ndarray) -> np.ndarray:
  """Returns the shares of each row, float64 [classes, classes]; NaN where it has no voxels."""
  rows = pixels.sum(axis=1, keepdims=True)
  return np.where(rows > 0, pixels / np.maximum(rows, 1), np.nan)
