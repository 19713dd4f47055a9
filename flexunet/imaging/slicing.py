"""From volumes to upright slices and back, exactly.

Slices come as [row, column, slice]. Rows run from anterior to posterior (axial) or from superior
to inferior (coronal, sagittal). Columns keep the direction the dataset stores, and slices ascend
as stored, so nothing is claimed about left and right that the source does not say. Slices brought
to an isotropic spacing are interpolated; their labels are picked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import nibabel as nib
import numpy as np

from flexunet.core.errors import InputError, unknown_name
from flexunet.imaging.volume import Volume

PLANES = ("axial", "coronal", "sagittal")
_AXIS_OF_CODE = {"L": 0, "R": 0, "P": 1, "A": 1, "I": 2, "S": 2}
# Per plane: the code towards which rows run, and which anatomical axis columns and slices follow.
_FRAMES = {"axial": ("P", 0, 2), "coronal": ("I", 0, 1), "sagittal": ("I", 1, 0)}


@dataclasses.dataclass(frozen=True, eq=False)
class Slices:
  """Upright slices.

  Attributes:
    pixels: [row, column, slice], in the dtype of the voxels.
    spacing_mm: (row, column) distance of neighbouring pixels; NaN where unknown.
    slice_spacing_mm: Distance of neighbouring slices; NaN where unknown.
  """

  pixels: np.ndarray
  spacing_mm: tuple[float, float]
  slice_spacing_mm: float


@dataclasses.dataclass(frozen=True)
class SlicePlan:
  """How the volumes of a dataset are cut.

  Attributes:
    axes: Which way the stored axes of the dataset point, e.g. "LAS". A volume with a stated
      orientation is turned to them; one without is taken as stored.
    plane: "axial", "coronal" or "sagittal".
  """

  axes: str
  plane: str

  def __post_init__(self):
    if self.plane not in PLANES:
      raise unknown_name("plane", self.plane, PLANES)
    if sorted(_AXIS_OF_CODE.get(code, -1) for code in self.axes) != [0, 1, 2]:
      raise InputError(
          f"axes must name one of L/R, one of P/A and one of I/S, such as 'RAS'; got {self.axes!r}."
      )

  @property
  def display_axes(self) -> str:
    """Codes towards which row, column and slice run, e.g. "PLS" for axial slices of "LAS"."""
    stored = {_AXIS_OF_CODE[code]: code for code in self.axes}
    row, column_axis, slice_axis = _FRAMES[self.plane]
    return row + stored[column_axis] + stored[slice_axis]

  def extract(self, volume: Volume, spacing_mm: np.ndarray | None = None) -> Slices:
    """Cuts a volume into upright slices; every voxel appears once, unchanged.

    Args:
      volume: Voxels [i, j, k].
      spacing_mm: Voxel edges [3] where they are better known than from the volume; NaN unknown.
    """
    turn = self._turn(volume)
    pixels = nib.orientations.apply_orientation(volume.voxels, turn)
    # turn[i] is where stored axis i goes.
    spacing = np.empty(3)
    spacing[turn[:, 0].astype(int)] = volume.spacing_mm if spacing_mm is None else spacing_mm
    return Slices(pixels, (float(spacing[0]), float(spacing[1])), float(spacing[2]))

  def restore(self, pixels: np.ndarray, like: Volume) -> np.ndarray:
    """Puts [row, column, slice] back on the grid of `like`: the exact inverse of `extract`."""
    turn, expected = self._turn(like), self.shape(like)
    if pixels.shape != expected:
      raise ValueError(
          f"Slices of a volume {like.voxels.shape} have the shape {expected}, got"
          f" {pixels.shape}."
      )
    back = np.empty_like(turn)
    for stored_axis, (display_axis, flip) in enumerate(turn):
      back[int(display_axis)] = (stored_axis, flip)
    return nib.orientations.apply_orientation(pixels, back)

  def view(self, values: np.ndarray, like: Volume) -> np.ndarray:
    """Returns values on the grid of a scan, [i, j, k, ...], as [row, column, slice, ...].

    A view: what is written into it stands in `values`.
    """
    return nib.orientations.apply_orientation(values, self._turn(like))

  def turn_slices(self, slices: np.ndarray, plan: SlicePlan) -> np.ndarray:
    """Returns slices that another plan has cut as this one cuts the same volume; a view.

    Nothing is interpolated: every voxel appears once, unchanged.

    Args:
      slices: [row, column, slice, ...], all of a volume.
      plan: What cut them. Its `axes` must be those of this plan.
    """
    return nib.orientations.apply_orientation(slices, self._turn_from(plan))

  def turn_spacing(self, spacing_mm: Sequence[float], plan: SlicePlan) -> tuple[float, ...]:
    """Returns (row, column, slice) spacing as `turn_slices` changes the axes of another plan."""
    turned = np.empty(3)
    turned[self._turn_from(plan)[:, 0].astype(int)] = spacing_mm
    return tuple(turned.tolist())

  def _turn_from(self, plan: SlicePlan) -> np.ndarray:
    """Returns axis permutation and flips [3, 2] from slices of another plan to those of this."""
    if plan.axes != self.axes:
      raise ValueError(f"Slices of {plan.axes} volumes cannot be turned to those of {self.axes}.")
    start, end = (nib.orientations.axcodes2ornt(one.display_axes) for one in (plan, self))
    return nib.orientations.ornt_transform(start, end)

  def shape(self, volume: Volume) -> tuple[int, int, int]:
    """Returns the shape [row, column, slice] of the slices of a volume."""
    row, column, through = np.argsort(self._turn(volume)[:, 0])
    size = volume.voxels.shape
    return size[row], size[column], size[through]

  def _turn(self, volume: Volume) -> np.ndarray:
    """Returns the axis permutation and flips [3, 2] from the stored axes to the display axes."""
    if volume.oriented:
      stored = nib.orientations.io_orientation(volume.affine)
    else:
      stored = nib.orientations.axcodes2ornt(self.axes)
    display = nib.orientations.axcodes2ornt(self.display_axes)
    return nib.orientations.ornt_transform(stored, display)


def isotropic(
    slices: Slices, label: np.ndarray | None, spacing_mm: float, name: str
) -> tuple[Slices, np.ndarray | None]:
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
  spacing = np.array([*slices.spacing_mm, slices.slice_spacing_mm])
  _require_known(spacing, "isotropic_mm", name)
  pixels, label = _resampled(slices.pixels, label, spacing, np.full(3, spacing_mm))
  return Slices(pixels, (spacing_mm, spacing_mm), spacing_mm), label


def in_plane(
    slices: Slices, label: np.ndarray | None, spacing_mm: tuple[float, float], name: str
) -> tuple[Slices, np.ndarray | None]:
  """Returns (slices, label) with a spacing (row, column) within slices; their number stays.

  As `isotropic`, but what becomes coarser is smoothed first, so that fine detail does not turn
  into coarse stripes.

  Raises:
    InputError: When the scan states no spacing.
  """
  _require_known(np.array(slices.spacing_mm), "spacing_mm", name)
  spacing, wanted = np.array([*slices.spacing_mm, 1.0]), np.array([*spacing_mm, 1.0])
  pixels, label = _resampled(slices.pixels, label, spacing, wanted, smoothed=True)
  return Slices(pixels, spacing_mm, slices.slice_spacing_mm), label


def _require_known(spacing_mm: np.ndarray, option: str, name: str) -> None:
  if not (np.isfinite(spacing_mm).all() and (spacing_mm > 0).all()):
    raise InputError(
        f"{name}: {option} needs a scan with known spacing, but its header states none. Build this"
        f" dataset without {option}."
    )


def _resampled(
    pixels: np.ndarray,
    label: np.ndarray | None,
    spacing_mm: np.ndarray,
    wanted_mm: np.ndarray,
    smoothed: bool = False,
) -> tuple[np.ndarray, np.ndarray | None]:
  """Returns (pixels float32 interpolated, label picked) with another spacing along the axes."""
  # Few datasets are resampled, and programs import this module for the names of the planes.
  from scipy import ndimage

  shape = np.array(pixels.shape)
  target = np.maximum(1, np.round(shape * spacing_mm / wanted_mm).astype(int))
  step = shape / target
  # Voxel centres, not corners, are what both grids sample.
  offset = step / 2 - 0.5

  def sample(voxels: np.ndarray, order: int) -> np.ndarray:
    return ndimage.affine_transform(
        voxels, step, offset, tuple(target), order=order, mode="nearest", prefilter=False
    )

  values = pixels.astype(np.float32)
  if smoothed:
    values = ndimage.gaussian_filter(values, np.maximum(0.0, (step - 1) / 2), mode="nearest")
  return sample(values, order=1), None if label is None else sample(label, order=0)
