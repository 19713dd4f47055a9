"""The base of builders of scans: slices in any plane, or whole volumes without loss."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from flexunet.core.errors import InputError
from flexunet.datasets.builder import identical_images, native_labels, segmentation_builder
from flexunet.datasets.builder.raw_folder import Case, Findings, Notes
from flexunet.datasets.builder.record_options import RecordOptions, VolumeOptions
from flexunet.datasets.builder.segmentation_builder import RecordConfig, Slice
from flexunet.imaging import bias_correction, intensity, scan_files
from flexunet.imaging.channels import channel_suffixes
from flexunet.imaging.intensity import IntensityWindow
from flexunet.imaging.slice_recipe import SliceRecipe, StoredChannel
from flexunet.imaging.slicing import SlicePlan
from flexunet.imaging.volume import Volume

_ROUNDING = 1e-3  # Labels saved as floats come back this near to whole numbers.
_SMALL_RANGE = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class Scan:
  """A scan as its file stores it, and its label.

  Attributes:
    stored: The stored numbers; intensity = stored * slope + inter.
    label: Class ids uint8 [i, j, k] on the same grid; None when there is none.
    spacing_mm: Overrides the file's spacing where a better source is known; float64 [3].
    others: Its further channels, on the grid of `stored`.
  """

  stored: Volume
  slope: float
  inter: float
  label: np.ndarray | None
  spacing_mm: np.ndarray | None = None
  extras: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  others: tuple[StoredChannel, ...] = ()


class VolumeConfig(RecordConfig):
  """A config of a dataset of scans."""

  OPTIONS: ClassVar[type[RecordOptions]] = VolumeOptions


class VolumeBuilder(segmentation_builder.SegmentationBuilder, skip_registration=True):
  """Builder of scans whose cases have the files "image" and, when labelled, "label".

  Attributes:
    LABEL_ADVICE: What to do about a label value that is not in `label_map`.
  """

  LABEL_ADVICE: ClassVar[str] = "Is this the label file?"

  def label_map(self) -> dict[int, int]:
    """Returns {value in the label file: class id}; any other value is refused."""
    raise NotImplementedError

  def read_scan(self, case: Case, notes: Notes) -> Scan:
    """Reads one case, in a worker process."""
    first, *others = scan_files.read_channels(case.files["image"], self.components_of(case))
    stored, slope, inter = first
    notes.warnings += intensity.unknown_voxels(stored.voxels, case.volume)
    label = None
    if case.labelled:
      path = case.files["label"]
      raw, _ = scan_files.read_label(path, stored, case.files["image"])
      check_same_grid(stored, raw, path, notes)
      label = map_label(
          raw.voxels, self.label_map(), path, notes, advice=self.LABEL_ADVICE
      )
    return Scan(stored, slope, inter, label, others=tuple(StoredChannel(*one) for one in others))

  def components_of(self, case: Case) -> Sequence[int]:
    """Returns which volumes along the fourth axis of "image" are the channels; () where 3-D."""
    return ()

  def active_plan(self) -> SlicePlan | None:
    """Returns how volumes are cut, by the plane of the config first."""
    plan = self.slice_plan()
    if plan is None or self.options.plane is None:
      return plan
    return dataclasses.replace(plan, plane=self.options.plane)

  def active_intensity(self) -> IntensityWindow:
    """Returns how intensities become 8 bits, by the window of the config first."""
    if self.options.window is not None:
      return IntensityWindow("window", *self.options.window)
    return self.intensity()

  @property
  def resamples(self) -> bool:
    """Whether slices lie on another grid than that of their scan."""
    # Not by the recipe, which a builder may know only once it has seen the raw folder.
    return self.options.isotropic_mm is not None or self.in_plane_mm() is not None

  def recipe(self) -> SliceRecipe:
    """Returns how volumes become slices."""
    plan = self.active_plan()
    if plan is None:
      raise ValueError(f"{self.name} cuts volumes, so it must give a slice plan.")
    return SliceRecipe(
        plan, self.active_intensity(), self.options.isotropic_mm, self.in_plane_mm(),
        self.other_intensities(), self.options.bias_correction,
    )  # fmt: skip

  def slices_of(self, case: Case, notes: Notes) -> Iterator[Slice]:
    """Reads one case, in a worker process, and cuts it."""
    scan = self.read_scan(case, notes)
    cut = self.recipe().cut(
        scan.stored, scan.slope, scan.inter,
        label=scan.label, spacing_mm=scan.spacing_mm, name=case.files["image"].name,
        others=scan.others,
    )  # fmt: skip
    slices, label = cut.slices, cut.label
    native = list(native_labels.of_slices(cut)) if self.resamples else None
    for index in range(slices.pixels.shape[2]):
      yield Slice(
          index=index,
          image=np.ascontiguousarray(slices.pixels[:, :, index]),
          label=None if label is None else np.ascontiguousarray(label[:, :, index]),
          spacing_mm=slices.spacing_mm,
          slice_spacing_mm=slices.slice_spacing_mm,
          extras={**scan.extras, **(native[index] if native else {})},
          others=tuple(np.ascontiguousarray(pixels[:, :, index]) for pixels in cut.others),
      )

  def records_of(
      self, case: Case, fold: int, notes: Notes
  ) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yields (key, example, columns of the record table) of one case."""
    if self.options.form != "volumes":
      yield from super().records_of(case, fold, notes)
      return
    scan = self.read_scan(case, notes)
    stored = scan.stored
    label = np.zeros(stored.voxels.shape, np.uint8) if scan.label is None else scan.label
    spacing = stored.spacing_mm if scan.spacing_mm is None else scan.spacing_mm
    channels: dict[str, Any] = {}
    every = (StoredChannel(stored, scan.slope, scan.inter), *scan.others)
    for end, channel in zip(channel_suffixes(len(every)), every, strict=True):
      voxels = channel.stored.voxels
      channels |= {
          f"image{end}": voxels.astype(self.voxel_dtype, casting="safe"),
          f"scale_slope{end}": np.float64(channel.slope),
          f"scale_inter{end}": np.float64(channel.inter),
          f"source_dtype{end}": voxels.dtype.name,
      }
    example = {
        **channels,
        "label": np.ascontiguousarray(label),
        "affine": stored.affine,
        "oriented": stored.oriented,
        "spacing_mm": np.asarray(spacing, np.float64),
        "subject": case.subject,
        "volume": case.volume,
        "fold": fold,
        **scan.extras,
    }
    row = {
        "slice_index": None,
        "height": None,
        "width": None,
        "pixels": tuple(map(int, self.label_scheme().count(label))),
        "content": identical_images.digests_of_volume(stored.voxels, scan.slope, scan.inter),
    }
    yield case.key, example, row

  def _make_features(self) -> tfds.features.FeaturesDict:
    if self.options.form != "volumes":
      made = super()._make_features()
      if not self.resamples:
        return made
      return tfds.features.FeaturesDict({**made, **native_labels.features()})
    return segmentation_builder.volume_features(
        self.label_scheme(), self._stored_dtype(), self.extra_features(),
        len(self.channel_names()),
    )

  def _stored_dtype(self) -> np.dtype:
    """Returns the dtype of an already built dataset, else the one found in the source."""
    if (self.data_path / "features.json").exists():
      built = tfds.features.FeaturesDict.from_config(self.data_path)
      return np.dtype(built["image"].np_dtype)
    return self.voxel_dtype

  def set_source(
      self, release: str, voxel_dtype: np.dtype, decided: Mapping[str, Any]
  ) -> None:
    """Takes what the raw folder decides; whole scans are stored in a dtype that holds them all."""
    super().set_source(release, voxel_dtype, decided)
    self._check_bias_correction()
    if self.options.form == "volumes":
      self.info._features = self._make_features()

  def _check_bias_correction(self) -> None:
    """Refuses, before any scan is read, to correct what is no MRI, or without SimpleITK."""
    if self.options.bias_correction == "none":
      return
    windows = (self.active_intensity(), *self.other_intensities())
    if any(window.kind != "percentile" for window in windows):
      raise InputError(
          f"bias_correction={self.options.bias_correction} is for MRI, but {self.name} has a fixed"
          " window, as CT has: its numbers are a scale already. Leave bias_correction out."
      )
    bias_correction.require()

  def voxel_dtype_of(self, findings: Findings) -> np.dtype:
    """Returns the dtype that holds the voxels of all cases without loss."""
    if self.options.form != "volumes":
      return self.voxel_dtype
    # Every channel of a case is a file whose role begins so.
    dtypes = {
        scan_files.read_header(path, next(iter(self.components_of(case)), None)).dtype
        for case in findings.cases
        for role, path in case.files.items()
        if role.startswith("image") and not role.endswith("_voxels")
    }
    return functools.reduce(np.promote_types, sorted(dtypes, key=str))


def check_same_grid(
    image: Volume, label: Volume, path: str | os.PathLike, notes: Notes
) -> None:
  """Refuses a label that does not lie voxel by voxel on its scan.

  Where only one of the two states how its axes point, nothing shows that they agree: `notes` gets a
  warning.
  """
  if image.voxels.shape != label.voxels.shape:
    raise InputError(
        f"{path}: a label must lie on the grid of its scan. Scan {image.voxels.shape}, label"
        f" {label.voxels.shape}."
    )
  if image.oriented != label.oriented:
    stating, silent = ("scan", "label") if image.oriented else ("label", "scan")
    notes.warnings.append(
        f"{pathlib.Path(path).name}: the {stating} states an orientation, the {silent} does not:"
        " the label is taken to lie on the scan voxel by voxel, as both are stored."
    )
  elif image.oriented:
    # A tenth of a voxel: headers round, and no label is shifted by that little.
    tolerance = 0.1 * float(image.spacing_mm.min())
    corners = np.array([[0, 0, 0, 1], [*image.voxels.shape, 1]], np.float64)
    if np.abs(corners @ (image.affine - label.affine).T).max() > tolerance:
      raise InputError(
          f"{path}: the label's header places it elsewhere than its scan. Resample the label onto"
          " the scan first."
      )


def map_label(
    values: np.ndarray,
    label_map: Mapping[int, int],
    path: str | os.PathLike,
    notes: Notes,
    kind: str = "label",
    advice: str = "Is this the label file?",
) -> np.ndarray:
  """Returns class ids uint8 of the values of a label file, and notes their histogram.

  Float files are rounded; a value that is no whole number, or is not in `label_map`, is refused.
  Goes slice by slice, so that a large scan needs no copies of its own size.
  """
  ids = np.zeros(values.shape, np.uint8, order="F")
  histogram: dict[float, int] = {}
  wrong: dict[float, int] = {}
  for k in range(values.shape[2]):
    stored = values[:, :, k]
    found, positions, counts = _distinct(stored)
    classes = np.zeros(len(found), np.uint8)
    for position, (value, count) in enumerate(zip(found, counts)):
      if not count:
        continue
      whole = round(float(value)) if np.isfinite(value) else None
      if whole is None or abs(float(value) - whole) > _ROUNDING or whole not in label_map:
        wrong[float(value)] = wrong.get(float(value), 0) + int(count)
      else:
        classes[position] = label_map[whole]
      histogram[float(value)] = histogram.get(float(value), 0) + int(count)
    ids[:, :, k] = classes[positions]
  if wrong:
    shown = sorted(wrong)[:5]
    values_text = ", ".join(f"{value:g}" for value in shown)
    counts_text = ", ".join(f"{wrong[value]}" for value in shown)
    raise InputError(
        f"{path}: label values must be among {sorted(label_map)}, found"
        f" {values_text}{' ...' if len(wrong) > 5 else ''} (voxels: {counts_text}). {advice}"
    )
  notes.count_values(kind, histogram.keys(), histogram.values())
  return ids


def _distinct(stored: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns (values, position of each pixel's value in them, count of each value)."""
  if stored.dtype.kind in "iu":
    low, high = int(stored.min()), int(stored.max())
    if high - low < _SMALL_RANGE:
      # Counting needs no sorting, which takes longer than everything else.
      positions = stored.astype(np.intp) - low
      counts = np.bincount(positions.ravel(), minlength=high - low + 1)
      return np.arange(low, high + 1), positions, counts
  found, positions, counts = np.unique(stored, return_inverse=True, return_counts=True)
  return found, positions.reshape(stored.shape), counts
