"""The options of a build: everything a user may change about the records on disk.

They are plain dataclasses without TFDS: the flags of the build tool and its --help come from them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flexunet.core import config_fields
from flexunet.core.config_fields import knob
from flexunet.core.errors import InputError
from flexunet.imaging import slicing

FORMS = ("slices", "volumes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordOptions(config_fields.Checked):
  """Options of every dataset; a dataset adds its own in a subclass."""

  empty_slices: str = knob(
      "keep",
      "Slices without a labelled pixel, in the training split: keep, drop, or the share 0..1 to"
      " keep. Other splits keep them all, so that scores are of whole volumes.",
  )
  min_foreground_pixels: int = knob(
      0,
      "Leave out slices of the training split that have labelled pixels, but fewer than this.",
      minimum=0,
  )

  def __post_init__(self):
    if isinstance(self.empty_slices, (int, float)):
      object.__setattr__(self, "empty_slices", f"{self.empty_slices:g}")
    super().__post_init__()
    try:
      share = self.empty_share
    except ValueError:
      share = -1.0
    if not 0 <= share <= 1:
      raise InputError(
          f"empty_slices must be keep, drop or a share 0..1. Got: {self.empty_slices!r}."
      )

  @property
  def empty_share(self) -> float:
    """Share of the slices without a labelled pixel that is kept."""
    if self.empty_slices in ("keep", "drop"):
      return 1.0 if self.empty_slices == "keep" else 0.0
    return float(self.empty_slices)

  def changed(self) -> dict[str, Any]:
    """Returns {name: value} of the options that differ from their defaults, for the report."""
    values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)
              if getattr(self, field.name) != field.default}  # fmt: skip
    if values.get("empty_slices", "drop") != "drop":
      values["empty_slices"] = self.empty_share
    return values


@dataclasses.dataclass(frozen=True, kw_only=True)
class VolumeOptions(RecordOptions):
  """Options of the datasets of scans."""

  form: str = knob(
      "slices",
      "A record is a 2-D slice as 8-bit image, or a whole scan without loss.",
      choices=FORMS,
  )
  plane: str | None = knob(
      None, "Plane along which scans are cut.", choices=slicing.PLANES,
      unset="the plane of the dataset",
  )  # fmt: skip
  window: tuple[float, float] | None = knob(
      None, "Intensities LOW,HIGH that become 0 and 255, such as -20,100 for CT.",
      unset="the window of the dataset",
  )  # fmt: skip
  isotropic_mm: float | None = knob(
      None, "Resample scans to this spacing along all axes before they are cut.",
      minimum=0.05, maximum=50, unset="as scanned",
  )  # fmt: skip

  def __post_init__(self):
    super().__post_init__()
    if self.window is not None and not self.window[0] < self.window[1]:
      raise InputError(f"window must be LOW,HIGH with LOW below HIGH. Got: {self.window}.")
    of_slices = ("empty_slices", "min_foreground_pixels", "plane", "window", "isotropic_mm")
    if self.form == "volumes" and (given := [name for name in of_slices if name in self.changed()]):
      raise InputError(f"form=volumes stores scans as they are: leave out {', '.join(given)}.")
