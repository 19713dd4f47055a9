"""How the volumes of a dataset become 8-bit slices, and how labels on slices go back.

The only place that knows: building, reading whole volumes, prediction and statistics all cut here,
so that a network sees a scan as it saw those it was trained on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flexunet.core import progress
from flexunet.core.errors import InputError, unknown_name
from flexunet.imaging import bias_correction, slicing
from flexunet.imaging.channels import channel_suffixes
from flexunet.imaging.intensity import IntensityWindow
from flexunet.imaging.slicing import SlicePlan, Slices
from flexunet.imaging.volume import Volume


@dataclasses.dataclass(frozen=True, eq=False)
class StoredChannel:
  """A further channel of a scan, on the grid of the first: stored * slope + inter."""

  stored: Volume
  slope: float = 1.0
  inter: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class CutVolume:
  """The slices of one volume.

  Attributes:
    slices: uint8 [row, column, slice] with spacing, resampled where the recipe says so.
    label: Class ids on the grid of `slices`; None when there are none.
    native: The slices on the scan's own grid; `slices` itself where nothing is resampled.
    native_label: Class ids on that grid; None when there are none.
    others: The same as the pixels of `slices`, of each further channel.
    native_others: The same as the pixels of `native`, of each further channel.
  """

  slices: Slices
  label: np.ndarray | None
  native: Slices
  native_label: np.ndarray | None
  others: tuple[np.ndarray, ...] = ()
  native_others: tuple[np.ndarray, ...] = ()

  def shown(self, channel: int | None) -> Slices:
    """Returns the slices of one channel on the scan's own grid; None: of the first."""
    if not channel:
      return self.native
    return dataclasses.replace(self.native, pixels=self.native_others[channel - 1])

  def images(self) -> np.ndarray:
    """Returns all channels as a network takes them: uint8 [slice, row, column, channel]."""
    return np.moveaxis(np.stack([self.slices.pixels, *self.others], axis=-1), 2, 0)


@dataclasses.dataclass(frozen=True)
class SliceRecipe:
  """Everything that decides the slices of a volume.

  Attributes:
    plan: Orientation and plane.
    intensity: What becomes 0 and 255.
    isotropic_mm: Spacing to which volumes are resampled; None keeps that of the scan.
    in_plane_mm: (row, column) spacing to which slices are resampled; None keeps that of the scan.
    other_intensities: What becomes 0 and 255 in each further channel.
    bias_correction: What takes the bias field out of each channel before its window:
      one of `bias_correction.KINDS`.
  """

  plan: SlicePlan
  intensity: IntensityWindow
  isotropic_mm: float | None = None
  in_plane_mm: tuple[float, float] | None = None
  other_intensities: tuple[IntensityWindow, ...] = ()
  bias_correction: str = "none"

  def __post_init__(self):
    if self.bias_correction not in bias_correction.KINDS:
      raise unknown_name("bias correction", self.bias_correction, bias_correction.KINDS)

  @property
  def resamples(self) -> bool:
    """Whether slices may lie on another grid than that of their scan."""
    return self.isotropic_mm is not None or self.in_plane_mm is not None

  def cut(
      self,
      stored: Volume,
      slope: float = 1.0,
      inter: float = 0.0,
      *,
      label: np.ndarray | None = None,
      spacing_mm: np.ndarray | None = None,
      name: str = "",
      others: Sequence[StoredChannel] = (),
  ) -> CutVolume:
    """Cuts a volume into upright 8-bit slices.

    Args:
      stored: The numbers as the file stores them, in its dtype, [i, j, k].
      slope, inter: Intensity is stored * slope + inter.
      label: Class ids uint8 [i, j, k] on the same grid.
      spacing_mm: Voxel edges [3] where they are better known than from the volume; NaN unknown.
      name: Names the scan in errors.
      others: Its further channels, on the same grid.

    Raises:
      InputError: The slices must be resampled, but the spacing is unknown; there are more or
        fewer channels than the recipe has; or a bias field cannot be removed.
    """
    if len(others) != len(self.other_intensities):
      raise InputError(
          f"{name}: must have {progress.count(1 + len(self.other_intensities), 'channel')}. Got:"
          f" {1 + len(others)}."
      )
    native = self._windowed(
        StoredChannel(stored, slope, inter), self.intensity, spacing_mm, name
    )
    if label is not None:
      label = self.plan.extract(Volume(label, stored.affine, stored.oriented)).pixels
    slices, picked = self._resampled(native, label, name)
    further, native_further = [], []
    for channel, intensity in zip(others, self.other_intensities, strict=True):
      windowed = self._windowed(channel, intensity, spacing_mm, name)
      native_further.append(windowed.pixels)
      further.append(self._resampled(windowed, None, name)[0].pixels)
    return CutVolume(slices, picked, native, label, tuple(further), tuple(native_further))

  def _windowed(
      self,
      channel: StoredChannel,
      intensity: IntensityWindow,
      spacing_mm: np.ndarray | None,
      name: str,
  ) -> Slices:
    scan = channel.stored.scaled(channel.slope, channel.inter)
    # On the grid of the file, so that every plane cuts the same voxels.
    voxels = bias_correction.removed(scan.voxels, self.bias_correction, name)
    cut = self.plan.extract(dataclasses.replace(scan, voxels=voxels), spacing_mm)
    # The window belongs to the scan, not to the grid it is put on.
    return dataclasses.replace(cut, pixels=intensity.to_uint8(cut.pixels))

  def _resampled(
      self, native: Slices, label: np.ndarray | None, name: str
  ) -> tuple[Slices, np.ndarray | None]:
    """Returns 8-bit slices, and their label, with the spacing of the recipe."""
    if self.isotropic_mm is not None:
      found, label = slicing.isotropic(native, label, self.isotropic_mm, name)
    elif self.in_plane_mm is not None:
      found, label = slicing.in_plane(native, label, self.in_plane_mm, name)
    else:
      return native, label
    return dataclasses.replace(found, pixels=np.round(found.pixels).astype(np.uint8)), label

  def cut_record(self, record: Mapping[str, Any]) -> CutVolume:
    """Cuts a record of config `volumes`, as TFDS decodes it, the way its build would."""
    def channel(suffix: str) -> StoredChannel:
      # All scans of a dataset are stored in one dtype; that of the file decides the arithmetic.
      dtype = record[f"source_dtype{suffix}"]
      voxels = record[f"image{suffix}"]
      voxels = voxels.astype(dtype.decode() if isinstance(dtype, bytes) else dtype)
      return StoredChannel(
          Volume(voxels, record["affine"], bool(record["oriented"])),
          float(record[f"scale_slope{suffix}"]),
          float(record[f"scale_inter{suffix}"]),
      )

    first, *others = map(channel, channel_suffixes(1 + len(self.other_intensities)))
    return self.cut(
        first.stored, first.slope, first.inter,
        label=record["label"], spacing_mm=record["spacing_mm"], others=others,
    )  # fmt: skip

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
    """Returns its fields as JSON, those of a build report and of `DatasetFacts`."""
    return {
        "slice_plan": dataclasses.asdict(self.plan),
        "intensity": dataclasses.asdict(self.intensity),
        "isotropic_mm": self.isotropic_mm,
        "in_plane_mm": self.in_plane_mm,
        "other_intensities": [dataclasses.asdict(one) for one in self.other_intensities],
        "bias_correction": self.bias_correction,
    }

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> SliceRecipe:
    """Reads what `to_json` wrote."""
    return cls(
        SlicePlan(**values["slice_plan"]),
        IntensityWindow(**values["intensity"]),
        values["isotropic_mm"],
        None if values["in_plane_mm"] is None else tuple(values["in_plane_mm"]),
        tuple(IntensityWindow(**one) for one in values["other_intensities"]),
        values["bias_correction"],
    )

  @classmethod
  def of_report(cls, report: Mapping[str, Any]) -> SliceRecipe | None:
    """Returns the recipe that a build report states; None for images."""
    if not report.get("slice_plan") or not report.get("intensity"):
      return None
    options = report.get("options") or {}
    # Reports of datasets built before there were several channels do not speak of them.
    return cls.from_json({
        "in_plane_mm": None, "other_intensities": [], **report,
        "isotropic_mm": options.get("isotropic_mm"),
        "bias_correction": options.get("bias_correction", "none"),
    })  # fmt: skip


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
