"""From scanner units to 8 bits: one window per volume, never per slice.

A window per slice would make the same tissue brighter in one slice than in the next.
"""

from __future__ import annotations

import dataclasses
import math
import os

import numpy as np

from flexunet.core.errors import InputError, unknown_name

KINDS = ("percentile", "window", "none")
# Far beyond any unit of any scanner; what is larger comes from a damaged number.
_MOST_INTENSITY = 1e15


@dataclasses.dataclass(frozen=True)
class IntensityWindow:
  """Which intensities become 0 and 255.

  Attributes:
    kind: "percentile": `low` and `high` are percentiles of the volume's nonzero voxels (air that
      was cut away must not count). "window": they are intensities, e.g. Hounsfield units.
      "none": the numbers are 0..255 already and stay.
    low: What becomes 0.
    high: What becomes 255.
  """

  kind: str
  low: float = 0.0
  high: float = 255.0

  def __post_init__(self):
    if self.kind not in KINDS:
      raise unknown_name("intensity window", self.kind, KINDS)
    object.__setattr__(self, "low", float(self.low))
    object.__setattr__(self, "high", float(self.high))
    if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
      raise InputError(
          f"An intensity window needs finite low < high, got low={self.low}, high={self.high}."
      )
    if self.kind == "percentile" and not 0 <= self.low < self.high <= 100:
      raise InputError(f"Percentiles lie in 0..100, got low={self.low}, high={self.high}.")

  def limits(self, voxels: np.ndarray) -> tuple[float, float]:
    """Returns the intensities that become 0 and 255 in this volume."""
    if self.kind == "none":
      return 0.0, 255.0
    if self.kind == "window":
      return self.low, self.high
    counted = voxels[voxels != 0]
    if counted.dtype.kind == "f":
      counted = counted[np.isfinite(counted)]
    if not counted.size:
      return 0.0, 1.0
    low, high = np.percentile(counted, [self.low, self.high])
    return float(low), float(high)

  def to_uint8(self, voxels: np.ndarray) -> np.ndarray:
    """Maps a whole volume, of any shape, linearly to uint8.

    Values outside the window are clipped; NaN becomes 0. A volume in which all counted voxels
    are equal has no contrast to keep: what lies above becomes 255, the rest 0.
    """
    low, high = self.limits(voxels)
    if self.kind == "none" and voxels.dtype == np.uint8:
      return voxels.copy()
    working: type[np.floating] = np.float64 if voxels.dtype.itemsize > 4 else np.float32
    scaled: np.ndarray = voxels.astype(working)
    if high <= low:
      return np.where(scaled > low, 255, 0).astype(np.uint8)
    scaled -= working(low)
    scaled *= working(255.0 / (high - low))
    np.nan_to_num(scaled, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
    np.clip(scaled, 0.0, 255.0, out=scaled)
    scaled += working(0.5)  # Rounds to nearest: the cast below cuts.
    return scaled.astype(np.uint8)


def check_scan(voxels: np.ndarray, slope: float, inter: float, path: str | os.PathLike) -> None:
  """Refuses a scan that shows nothing, or whose intensities cannot be.

  Args:
    voxels: The stored numbers, of any shape; intensity = voxels * slope + inter.
    path: Names the file in errors.

  Raises:
    InputError: All voxels are NaN or equal, or an intensity is infinite or beyond any scanner's.
  """
  lowest, highest = voxels.min(), voxels.max()
  if np.isnan(lowest):  # One NaN makes both NaN.
    if np.isnan(voxels).all():
      raise InputError(f"{path}: a scan must hold numbers; all its voxels are NaN. Remove it.")
    lowest, highest = np.nanmin(voxels), np.nanmax(voxels)
  low, high = sorted((float(lowest) * slope + inter, float(highest) * slope + inter))
  # Written so that NaN fails too: it comes of infinity times zero.
  if not (low >= -_MOST_INTENSITY and high <= _MOST_INTENSITY):
    scale = "" if (slope, inter) == (1, 0) else f", after the slope {slope:g} and inter {inter:g}"
    raise InputError(
        f"{path}: intensities must be finite and at most {_MOST_INTENSITY:g}, found {low:g} to"
        f" {high:g}{scale}. The file is damaged, or its scale factors are wrong."
    )
  if low == high:
    what = "zero" if low == 0 else f"the same number, {low:g}"
    raise InputError(f"{path}: a scan must show something; all its voxels are {what}. Remove it.")


def unknown_voxels(voxels: np.ndarray, name: str | os.PathLike) -> list[str]:
  """Returns a warning where voxels are NaN in part, which some programs write around the head."""
  unknown = int(np.isnan(voxels).sum()) if voxels.dtype.kind == "f" else 0
  if not unknown:
    return []
  return [
      f"{name}: {unknown} of its {voxels.size} voxels are NaN; they count as the lowest intensity."
  ]
