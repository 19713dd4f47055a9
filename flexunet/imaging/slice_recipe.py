"""How the volumes of a dataset become 8-bit slices, and how labels on slices go back.

The only place that knows: building, reading whole volumes, prediction and statistics all cut here,
so that a network sees a scan as it saw those it was trained on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from flexunet.imaging import slicing
from flexunet.imaging.intensity import IntensityWindow
from flexunet.imaging.slicing import SlicePlan, Slices
from flexunet.imaging.volume import Volume


@dataclasses.dataclass(frozen=True, eq=False)
class CutVolume:
  """The slices of one volume.

  Attributes:
    slices: uint8 [row, column, slice] with spacing, resampled where the recipe says so.
    label: Class ids on the grid of `slices`; None when there are none.
    native: The slices on the scan's own grid; `slices` itself where nothing is resampled.
    native_label: Class ids on that grid; None when there are none.
  """

  slices: Slices
  label: np.ndarray | None
  native: Slices
  native_label: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class SliceRecipe:
  """Everything that decides the slices of a volume.

  Attributes:
    plan: Orientation and plane.
    intensity: What becomes 0 and 255.
    isotropic_mm: Spacing to which slices are resampled; None keeps that of the scan.
  """

  plan: SlicePlan
  intensity: IntensityWindow
  isotropic_mm: float | None = None

  def cut(
      self,
      stored: Volume,
      slope: float = 1.0,
      inter: float = 0.0,
      *,
      label: np.ndarray | None = None,
      spacing_mm: np.ndarray | None = None,
      name: str = "",
  ) -> CutVolume:
    """Cuts a volume into upright 8-bit slices.

    Args:
      stored: The numbers as the file stores them, in its dtype, [i, j, k].
      slope, inter: Intensity is stored * slope + inter.
      label: Class ids uint8 [i, j, k] on the same grid.
      spacing_mm: Voxel edges [3] where they are better known than from the volume; NaN unknown.
      name: Names the scan in errors.

    Raises:
      InputError: The slices must be resampled, but the spacing is unknown.
    """
    volume = stored.scaled(slope, inter)
    cut = self.plan.extract(volume, spacing_mm)
    if label is not None:
      label = self.plan.extract(Volume(label, volume.affine, volume.oriented)).pixels
    # The window belongs to the scan, not to the grid it is put on.
    native = dataclasses.replace(cut, pixels=self.intensity.to_uint8(cut.pixels))
    if self.isotropic_mm is None:
      return CutVolume(native, label, native, label)
    resampled, picked = slicing.isotropic(native, label, self.isotropic_mm, name)
    pixels = np.round(resampled.pixels).astype(np.uint8)
    return CutVolume(dataclasses.replace(resampled, pixels=pixels), picked, native, label)

  def cut_record(self, record: Mapping[str, Any]) -> CutVolume:
    """Cuts a record of config `volumes`, as TFDS decodes it, the way its build would."""
    # All scans of a dataset are stored in one dtype; that of the file decides the arithmetic.
    dtype = record["source_dtype"]
    voxels = record["image"].astype(dtype.decode() if isinstance(dtype, bytes) else dtype)
    return self.cut(
        Volume(voxels, record["affine"], bool(record["oriented"])),
        float(record["scale_slope"]),
        float(record["scale_inter"]),
        label=record["label"],
        spacing_mm=record["spacing_mm"],
    )

  def restore(self, pixels: np.ndarray, like: Volume) -> np.ndarray:
    """Puts values on slices back on the grid of a scan: the inverse of `cut`.

    Args:
      pixels: [row, column, slice], such as labels, of the size of `CutVolume.slices`.
      like: The scan.

    Returns:
      [i, j, k]; each voxel gets the value of the resampled voxel nearest to it.
    """
    return self.plan.restore(to_grid(pixels, self.plan.shape(like)), like)

  def to_json(self) -> dict[str, Any]:
    """Returns {"slice_plan", "intensity", "isotropic_mm"}."""
    return {
        "slice_plan": dataclasses.asdict(self.plan),
        "intensity": dataclasses.asdict(self.intensity),
        "isotropic_mm": self.isotropic_mm,
    }

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> SliceRecipe:
    """Reads what `to_json` wrote."""
    return cls(
        SlicePlan(**values["slice_plan"]),
        IntensityWindow(**values["intensity"]),
        values["isotropic_mm"],
    )

  @classmethod
  def of_report(cls, report: Mapping[str, Any]) -> SliceRecipe | None:
    """Returns the recipe that a build report states; None for images."""
    if not report.get("slice_plan") or not report.get("intensity"):
      return None
    isotropic_mm = (report.get("options") or {}).get("isotropic_mm")
    return cls.from_json({**report, "isotropic_mm": isotropic_mm})


def to_grid(pixels: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
  """Returns [row, column, slice] picked onto a grid of another size over the same field of view."""
  if pixels.shape == shape:
    return pixels
  picked = [nearest(source, target) for source, target in zip(pixels.shape, shape, strict=True)]
  return pixels[np.ix_(*picked)]


def nearest(source: int, target: int) -> np.ndarray:
  """Returns which of `source` voxels is nearest to each of `target` over the same length.

  By their centres, int [target]; the same along each axis of `to_grid`.
  """
  return np.minimum(((np.arange(target) + 0.5) * source / target).astype(int), source - 1)
