"""The options of a build: what changes the records on disk."""

from __future__ import annotations

import dataclasses

import tensorflow_datasets as tfds

from flexunet.core.errors import InputError, unknown_name
from flexunet.imaging import slicing

FORMS = ("slices", "volumes")


@dataclasses.dataclass(kw_only=True)
class RecordConfig(tfds.core.BuilderConfig):
  """Options every builder takes; a dataset may add its own in a subclass.

  Attributes:
    form: "slices": one record a 2-D slice. "volumes": one record a whole scan, lossless.
    plane: "axial", "coronal", "sagittal"; None is the dataset's own plane.
    empty_slices: "keep", "drop", or the share 0..1 to keep of the slices without a labelled
      pixel. Applies to all labelled splits; whole volumes can be scored with "keep" only.
    min_foreground_pixels: Slices with some labelled pixels, but fewer than this, are left out.
    window: (low, high) intensities that become 0 and 255, instead of the dataset's own.
    isotropic_mm: Resamples volumes to this spacing along all axes before they are cut.
  """

  form: str = "slices"
  plane: str | None = None
  empty_slices: str | float = "keep"
  min_foreground_pixels: int = 0
  window: tuple[float, float] | None = None
  isotropic_mm: float | None = None

  def __post_init__(self):
    if self.form not in FORMS:
      raise unknown_name("form", self.form, FORMS)
    if self.plane is not None and self.plane not in slicing.PLANES:
      raise unknown_name("plane", self.plane, slicing.PLANES)
    self.empty_slices = _parse_empty_slices(self.empty_slices)
    if self.min_foreground_pixels < 0:
      raise InputError(f"min_foreground_pixels counts pixels, got {self.min_foreground_pixels}.")
    if self.window is not None:
      self.window = tuple(float(limit) for limit in self.window)
      if len(self.window) != 2 or not self.window[0] < self.window[1]:
        raise InputError(f"window must be two intensities, low < high, got {self.window}.")
    if self.isotropic_mm is not None and not 0 < float(self.isotropic_mm) <= 50:
      raise InputError(f"isotropic_mm must lie in 0..50 mm, got {self.isotropic_mm}.")
    sliced = ("plane", "empty_slices", "min_foreground_pixels", "window", "isotropic_mm")
    changed = [name for name in sliced if name in self.options()]
    if self.form == "volumes" and changed:
      raise InputError(
          f"Config 'volumes' stores scans as they are; it does not take {', '.join(changed)}."
      )

  def options(self) -> dict:
    """Returns the options that differ from their defaults."""
    inherited = {field.name for field in dataclasses.fields(tfds.core.BuilderConfig)}
    return {
        field.name: getattr(self, field.name)
        for field in dataclasses.fields(self)
        if field.name not in inherited and getattr(self, field.name) != field.default
    }

  @property
  def empty_share(self) -> float:
    """Share of the empty slices to keep."""
    if isinstance(self.empty_slices, str):
      return {"keep": 1.0, "drop": 0.0}[self.empty_slices]
    return self.empty_slices


def _parse_empty_slices(value: str | float) -> str | float:
  if value in ("keep", "drop"):
    return value
  try:
    share = float(value)
  except (TypeError, ValueError):
    share = -1.0
  if not 0 <= share <= 1:
    raise InputError(f"empty_slices must be 'keep', 'drop' or a share 0..1, got {value!r}.")
  return share
