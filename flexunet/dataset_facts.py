"""What a run remembers of its dataset, in real types, and as the JSON of `config.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from flexunet.core import config_fields
from flexunet.core.config_fields import Checked, from_mapping, refuse_unknown
from flexunet.core.errors import InputError
from flexunet.imaging import bias_correction
from flexunet.imaging.intensity import IntensityWindow
from flexunet.imaging.label_scheme import LabelScheme
from flexunet.imaging.slice_recipe import SliceRecipe
from flexunet.imaging.slicing import SlicePlan
from flexunet.pipelines.pixel_size import PixelSizes


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetFacts:
  """What a run remembers of the dataset it was trained on, enough to predict without it.

  Attributes:
    name: dataset/config/version.
    fingerprint: That of the records, from the build report; None for datasets built elsewhere.
    label_scheme: The classes, by id.
    slice_plan: How volumes are cut; None for images that are no slices of volumes.
    intensity: How intensities become 8 bits; None for such images.
    spacing_mm: Median (row, column) spacing of the training slices; None where unknown.
    isotropic_mm: Spacing the volumes were resampled to when the dataset was built; None: not.
    pixel_sizes: Those of the network's input in training; None where unknown.
    input_scale: Median factors (row, column) by which training slices were scaled to the network's
      input; None: they were not, or it is not known.
    in_plane_mm: (row, column) spacing the slices were brought to when the dataset was built; None:
      as scanned.
    other_intensities: How the intensities of each channel after the first become 8 bits.
    bias_correction: What takes the bias field out of scans before that; "none": nothing.
    resample_channels: Whether channels on other grids are brought onto that of the first.
    channel_names: Of a dataset of several channels, in the order of the network's input; () or
      one name: a scan is one file.
  """

  name: str
  fingerprint: str | None
  label_scheme: LabelScheme
  slice_plan: SlicePlan | None
  intensity: IntensityWindow | None
  spacing_mm: tuple[float, float] | None = None
  isotropic_mm: float | None = None
  pixel_sizes: PixelSizes | None = None
  input_scale: tuple[float, float] | None = None
  channel_names: tuple[str, ...] = ()
  in_plane_mm: tuple[float, float] | None = None
  resample_channels: bool = False
  other_intensities: tuple[IntensityWindow, ...] = ()
  bias_correction: str = "none"

  @property
  def recipe(self) -> SliceRecipe | None:
    """How volumes become slices; None for a run trained on images."""
    if self.slice_plan is None or self.intensity is None:
      return None
    return SliceRecipe(
        self.slice_plan, self.intensity, self.isotropic_mm, self.in_plane_mm,
        self.other_intensities, self.bias_correction,
    )  # fmt: skip

  def to_json(self) -> dict[str, Any]:
    """Returns the facts as JSON holds them."""
    return {**dataclasses.asdict(self), "label_scheme": self.label_scheme.to_json()}

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> DatasetFacts:
    """Reads what `to_json` wrote; anything else is an InputError."""
    if not isinstance(values, Mapping):
      raise InputError(f"dataset_facts must be names with their values. Got: {values!r:.99}.")
    names = [field.name for field in dataclasses.fields(cls)]
    refuse_unknown(values, names, "dataset_facts in config.json")
    values = {**_LATER, **values}
    if missing := [name for name in names if name not in values]:
      raise InputError(f"dataset_facts in config.json must hold {names}. Missing: {missing}.")
    plain = from_mapping(_PlainFacts, {name: values[name] for name in _PLAIN_FACTS})
    plan, window, sizes = values["slice_plan"], values["intensity"], values["pixel_sizes"]
    return cls(
        **{name: getattr(plain, name) for name in _PLAIN_FACTS},
        label_scheme=LabelScheme.from_json(values["label_scheme"]),
        slice_plan=None if plan is None else from_mapping(SlicePlan, plan),
        intensity=None if window is None else from_mapping(IntensityWindow, window),
        pixel_sizes=None if sizes is None else from_mapping(PixelSizes, sizes),
        other_intensities=tuple(
            from_mapping(IntensityWindow, one) for one in values["other_intensities"]
        ),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _PlainFacts(Checked):
  """Those dataset facts that are the same in JSON."""

  name: str
  fingerprint: str | None
  spacing_mm: tuple[float, float] | None
  isotropic_mm: float | None
  input_scale: tuple[float, float] | None
  channel_names: tuple[str, ...]
  in_plane_mm: tuple[float, float] | None
  resample_channels: bool
  bias_correction: str

  def __post_init__(self):
    super().__post_init__()
    config_fields.check_choice("bias_correction", self.bias_correction, bias_correction.KINDS)
    for number in (*(self.spacing_mm or ()), *(self.in_plane_mm or ()), self.isotropic_mm):
      if number is not None and not number > 0:
        raise InputError(f"A spacing in dataset_facts must be above 0 mm. Got: {number}.")
    if self.input_scale is not None and not min(self.input_scale) > 0:
      raise InputError(
          f"input_scale in dataset_facts must be above 0. Got: {list(self.input_scale)}."
      )


# Not in the config of runs that were trained before there were tiles, or bias correction.
_LATER = {"input_scale": None, "bias_correction": "none"}
_PLAIN_FACTS = [field.name for field in dataclasses.fields(_PlainFacts)]
