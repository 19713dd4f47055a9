"""Distances between the surfaces of two masks, in the unit of `spacing_mm`.

Masks are boolean arrays of two or three axes; `spacing_mm` has one entry per axis, in the same
order. The surface of a mask is the set of its voxels with a neighbour outside along some axis
(4 neighbours in 2-D, 6 in 3-D); beyond the array is outside. Distances run between voxel centres,
and each surface voxel counts once: the convention of MONAI and MedPy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import spatial

from flexunet.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class SurfaceDistances:
  """For each surface voxel of one mask the distance to the nearest of the other.

  Attributes:
    from_reference: float64 [voxels of the reference's surface]; empty where either mask is empty.
    from_prediction: float64 [voxels of the prediction's surface]; likewise.
  """

  from_reference: np.ndarray
  from_prediction: np.ndarray

  @property
  def defined(self) -> bool:
    """Whether both masks have a surface."""
    return bool(self.from_reference.size and self.from_prediction.size)

  def hausdorff(self, percentile: float = 95.0) -> float:
    """Returns the larger of the two directed percentiles; NaN where a mask is empty."""
    if not self.defined:
      return float("nan")
    return float(max(np.percentile(d, percentile) for d in self._both()))

  def average(self) -> float:
    """Returns the mean over the voxels of both surfaces (ASSD); NaN where a mask is empty."""
    if not self.defined:
      return float("nan")
    return float(np.concatenate(self._both()).mean())

  def surface_dice(self, tolerance_mm: float) -> float:
    """Returns the share of both surfaces that lies within the tolerance of the other, in [0, 1].

    NaN where a mask is empty: the caller knows which of the two rules for empty masks applies.
    """
    if not self.defined:
      return float("nan")
    # A margin of 1e-6 mm: sums of spacings such as 3 x 0.1 must not be excluded by rounding.
    return float(np.mean(np.concatenate(self._both()) <= tolerance_mm + 1e-6))

  def _both(self) -> tuple[np.ndarray, np.ndarray]:
    return self.from_reference, self.from_prediction


def surface_distances(
    reference: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float] | np.ndarray
) -> SurfaceDistances:
  """Returns the distances between the surfaces of two masks of one shape.

  Raises:
    InputError: The shapes differ, or `spacing_mm` does not fit them.
  """
  reference, prediction = np.asarray(reference, bool), np.asarray(prediction, bool)
  spacing = checked_spacing(spacing_mm, reference, prediction)
  nothing = SurfaceDistances(np.zeros(0), np.zeros(0))
  if not reference.any() or not prediction.any():
    return nothing
  if not np.isfinite(spacing).all():
    raise InputError(
        f"Distances need a known spacing along each axis. Got spacing_mm {spacing.tolist()}."
    )
  # Surfaces are thin: a tree over their points visits less than a distance map of the volume.
  points = [_surface_points(mask) * spacing for mask in (reference, prediction)]
  trees = [spatial.cKDTree(each) for each in points]
  return SurfaceDistances(trees[1].query(points[0])[0], trees[0].query(points[1])[0])


def checked_spacing(
    spacing_mm: Sequence[float] | np.ndarray, reference: np.ndarray, prediction: np.ndarray
) -> np.ndarray:
  """Returns the spacing as float64 [axes].

  Raises:
    InputError: The arrays differ in shape, or the spacing does not fit them.
  """
  if reference.shape != prediction.shape or reference.ndim not in (2, 3):
    raise InputError(
        "Reference and prediction must have one shape of 2 or 3 axes."
        f" Got {reference.shape} and {prediction.shape}."
    )
  spacing = np.asarray(spacing_mm, np.float64)
  if spacing.shape != (reference.ndim,) or not np.all((spacing > 0) | np.isnan(spacing)):
    raise InputError(
        f"spacing_mm must hold {reference.ndim} positive numbers, one per axis of"
        f" {reference.shape}, NaN for an unknown one. Got: {spacing.tolist()}."
    )
  return spacing


def surface(mask: np.ndarray) -> np.ndarray:
  """Returns bool, of the mask's shape: its voxels with a neighbour outside."""
  inner = mask.copy()
  for axis in range(mask.ndim):
    # Views with the axis in front: writing to them writes to `inner`.
    along, whole = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
    along[1:] &= whole[:-1]
    along[:-1] &= whole[1:]
    along[:1] = along[-1:] = False
  return mask & ~inner


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
  """Returns the smallest box around the true voxels; an empty one where there are none."""
  box = []
  for axis in range(mask.ndim):
    others = tuple(other for other in range(mask.ndim) if other != axis)
    along = np.flatnonzero(mask.any(axis=others))
    box.append(slice(int(along[0]), int(along[-1]) + 1) if along.size else slice(0, 0))
  return tuple(box)


def _surface_points(mask: np.ndarray) -> np.ndarray:
  """Returns the indices of the surface voxels, float64 [voxels, axes]."""
  box = bounding_box(mask)
  corner = np.array([side.start for side in box], np.float64)
  return np.argwhere(surface(mask[box])) + corner
