"""Brings slices to an isotropic spacing: images are averaged, labels are picked."""

from __future__ import annotations

import numpy as np

from flexunet.datasets.errors import InputError
from flexunet.datasets.slicing import Slices


def isotropic(slices: Slices, label: np.ndarray | None, spacing_mm: float, name: str):
  """Returns (slices, label) with one spacing along rows, columns and slices.

  The field of view is kept: n voxels of s mm become round(n * s / spacing_mm) voxels, and the
  centres of the outermost voxels move accordingly.

  Args:
    slices: [row, column, slice] with known spacing.
    label: Ids on the same grid, or None.
    spacing_mm: The spacing wanted.
    name: Names the scan in errors.

  Raises:
    InputError: When the scan states no spacing.
  """
  from scipy import ndimage

  spacing = np.array([*slices.spacing_mm, slices.slice_spacing_mm])
  if not (np.isfinite(spacing).all() and (spacing > 0).all()):
    raise InputError(
        f"{name}: isotropic_mm needs a scan with known spacing, but its header states none. Build"
        " this dataset without isotropic_mm."
    )
  shape = np.array(slices.pixels.shape)
  target = np.maximum(1, np.round(shape * spacing / spacing_mm).astype(int))
  step = shape / target
  # Voxel centres, not corners, are what both grids sample.
  offset = step / 2 - 0.5

  def sample(voxels: np.ndarray, order: int) -> np.ndarray:
    return ndimage.affine_transform(
        voxels, step, offset, tuple(target), order=order, mode="nearest", prefilter=False
    )

  pixels = sample(slices.pixels.astype(np.float32), order=1)
  label = None if label is None else sample(label, order=0)
  return Slices(pixels, (spacing_mm, spacing_mm), spacing_mm), label
