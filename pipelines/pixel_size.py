"""The pixel sizes that a network was trained on, and those a scan is brought to before it.

A convolution knows no millimetres: a structure that covers other numbers of pixels than in training
is another structure to it. What counts is a pixel of the network's input, after `Resizing`: with
'pad' that of the scan itself, with 'fit' and 'stretch' that of the scaled image.

Each axis is decided by itself. Within what training saw nothing is changed, so that scans like the
training's are predicted as validation sees them; beyond, the axis is scaled to the median of the
training. Where a header asks for more than a factor of four, it is not believed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from flexunet.core.config_fields import Checked
from flexunet.core.errors import InputError

# Of the training slices: a few with an odd header must not stand for what the network knows.
_LOW_PERCENT, _HIGH_PERCENT = 5.0, 95.0
# Closer to the range than this nothing is gained by interpolation.
_TOLERANCE = 0.05
# What a truthful header may ask for; it also bounds the memory of a step.
MOST_SCALING = 4.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelSizes(Checked):
  """Edges of a pixel of the network's input over the training slices, (row, column) in mm.

  Attributes:
    low_mm, high_mm: The range that holds nine tenths of the slices.
    median_mm: Their median.
  """

  low_mm: tuple[float, float]
  median_mm: tuple[float, float]
  high_mm: tuple[float, float]

  def __post_init__(self):
    super().__post_init__()
    for low, median, high in zip(self.low_mm, self.median_mm, self.high_mm, strict=True):
      if not 0 < low <= median <= high:
        raise InputError(
            "Pixel sizes must be above 0 mm and ascend as low, median, high. Got:"
            f" {low}, {median}, {high}."
        )

  @classmethod
  def of_slices(cls, sizes_mm: np.ndarray) -> PixelSizes | None:
    """Summarizes float [N, 2]; None where no slice states its pixel size."""
    known = sizes_mm[np.isfinite(sizes_mm).all(axis=1) & (sizes_mm > 0).all(axis=1)]
    if not len(known):
      return None
    # Values that occur, never means of two: a set of two spacings has no third one.
    low, median, high = np.percentile(
        known, [_LOW_PERCENT, 50.0, _HIGH_PERCENT], axis=0, method="nearest"
    )
    return cls(low_mm=_pair(low), median_mm=_pair(median), high_mm=_pair(high))

  @property
  def unchanged_mm(self) -> tuple[tuple[float, float], tuple[float, float]]:
    """The least and the greatest (row, column) edges of a pixel that stay as they are."""
    low, high = (
        tuple(edge * (1 + sign * _TOLERANCE) for edge in edges)
        for sign, edges in ((-1, self.low_mm), (1, self.high_mm))
    )
    return (low[0], low[1]), (high[0], high[1])

  def scaling(self, size_mm: Sequence[float]) -> tuple[float, float]:
    """Returns the factors (row, column) by which an image must become larger.

    Args:
      size_mm: Edges of a pixel of the network's input, (row, column); NaN where unknown.

    Returns:
      1.0 for an axis that stays as it is. `believed` says whether the factors may be used.
    """
    lows, highs = self.unchanged_mm
    factors = [
        _factor(size, *limits)
        for size, *limits in zip(size_mm, lows, self.median_mm, highs, strict=True)
    ]
    return factors[0], factors[1]


def believed(scaling: Sequence[float]) -> bool:
  """Returns whether factors of `PixelSizes.scaling` may come of a truthful header."""
  return all(1 / MOST_SCALING <= factor <= MOST_SCALING for factor in scaling)


def _factor(size: float, low: float, median: float, high: float) -> float:
  if not (math.isfinite(size) and size > 0):
    return 1.0
  if low <= size <= high:
    return 1.0
  return size / median


def _pair(values: np.ndarray) -> tuple[float, float]:
  return float(values[0]), float(values[1])
