"""Geometry as a type: voxels together with where they lie in the patient.

Voxel axes are [i, j, k] in file order. World coordinates are RAS+ millimetres.
"""

from __future__ import annotations

import dataclasses

import nibabel as nib
import numpy as np


def spacing_of(affine: np.ndarray) -> np.ndarray:
  """Returns the edge lengths of a voxel in mm, float64 [3]; NaN where the file states none."""
  return np.sqrt((np.asarray(affine, np.float64)[:3, :3] ** 2).sum(axis=0))


def axis_codes_of(affine: np.ndarray) -> str:
  """Returns which way each voxel axis points, such as "RAS"; "???" for a singular affine."""
  affine = np.asarray(affine, np.float64)
  if not np.isfinite(affine).all():
    return "???"
  return "".join(code or "?" for code in nib.orientations.aff2axcodes(affine))


@dataclasses.dataclass(frozen=True, eq=False)
class Volume:
  """Voxels and where they lie.

  Attributes:
    voxels: Array [i, j, k] in file order.
    affine: float64 [4, 4]; maps (i, j, k, 1) to RAS+ mm.
    oriented: False when the file states no orientation (ANALYZE, NIfTI without qform and sform):
      the affine then holds the spacing only, and its directions are a reader's convention.
  """

  voxels: np.ndarray
  affine: np.ndarray
  oriented: bool

  def __post_init__(self):
    object.__setattr__(self, "affine", np.asarray(self.affine, np.float64))
    if self.voxels.ndim != 3 or self.affine.shape != (4, 4):
      raise ValueError(
          f"A volume has voxels [i, j, k] and an affine [4, 4], got {self.voxels.shape} and"
          f" {self.affine.shape}."
      )

  @property
  def spacing_mm(self) -> np.ndarray:
    """float64 [3], in the order of the voxel axes."""
    return spacing_of(self.affine)

  @property
  def axis_codes(self) -> str:
    """Which way the axes point; a convention only where `oriented` is False."""
    return axis_codes_of(self.affine)

  def turned_like(self, other: Volume) -> Volume:
    """Returns the volume with its voxel axes in the order and direction of another's.

    Nothing is interpolated. Where one of the two states no orientation, or the axes agree, this is
    the volume itself.
    """
    if not (self.oriented and other.oriented) or self.axis_codes == other.axis_codes:
      return self
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(self.affine), nib.orientations.io_orientation(other.affine)
    )
    affine = self.affine @ nib.orientations.inv_ornt_aff(turn, self.voxels.shape)
    return Volume(nib.orientations.apply_orientation(self.voxels, turn), affine, True)

  def scaled(self, slope: float, inter: float) -> Volume:
    """Returns the intensities of stored numbers, voxels * slope + inter.

    Without scale factors (1 and 0) this is the volume itself. Otherwise the voxels are float32, or
    float64 where the stored numbers have more than 24 bits.
    """
    if (slope, inter) == (1.0, 0.0):
      return self
    stored = self.voxels.dtype
    few_bits = stored == np.float32 or stored.itemsize <= 2
    target = np.float32 if few_bits else np.float64
    voxels = (self.voxels.astype(np.float64) * slope + inter).astype(target)
    return Volume(voxels, self.affine, self.oriented)


@dataclasses.dataclass(frozen=True, eq=False)
class VolumeHeader:
  """What a header states before any voxel is read.

  Attributes:
    shape: Voxels along [i, j, k].
    dtype: How the file stores a voxel, before its scale factors.
    spacing_mm: Edge lengths of a voxel; NaN where the file states none.
    axis_codes: Such as "LAS"; "" where the file states no orientation.
    oriented: Whether the file states an orientation.
    affine: float64 [4, 4], as in `Volume`.
  """

  shape: tuple[int, int, int]
  dtype: np.dtype
  spacing_mm: tuple[float, float, float]
  axis_codes: str
  oriented: bool
  affine: np.ndarray

  @classmethod
  def of(
      cls, shape: tuple[int, int, int], dtype: np.dtype, affine: np.ndarray, oriented: bool
  ) -> VolumeHeader:
    """Returns the header whose spacing and axis codes follow from the affine."""
    i_mm, j_mm, k_mm = map(float, spacing_of(affine))
    return cls(
        shape=shape,
        dtype=np.dtype(dtype).newbyteorder("="),
        spacing_mm=(i_mm, j_mm, k_mm),
        axis_codes=axis_codes_of(affine) if oriented else "",
        oriented=oriented,
        affine=affine,
    )

  def shape_like(self, other: VolumeHeader) -> tuple[int, int, int]:
    """Returns the shape that `Volume.turned_like` another volume gives."""
    if not (self.oriented and other.oriented):
      return self.shape
    own, wanted = (nib.orientations.io_orientation(one.affine)[:, 0] for one in (self, other))
    i, j, k = (self.shape[list(own).index(axis)] for axis in wanted)
    return i, j, k
