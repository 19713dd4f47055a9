"""Which features of a dataset hold what: named by the user, or found by the usual names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from flexunet.core.config_fields import Checked, knob
from flexunet.core.errors import InputError, unknown_name

# In the order of preference; capitals and hyphens do not count.
_USUAL: dict[str, tuple[str, ...]] = {
    "image": ("image", "img", "scan", "slice", "input", "picture", "pixels", "x"),
    "label": (
        "label", "segmentation_mask", "mask", "segmentation", "annotation", "seg", "labels",
        "masks", "label_map", "semantic", "target", "ground_truth", "gt", "y",
    ),
    "subject": (
        "subject", "subject_id", "patient", "patient_id", "participant", "participant_id", "person",
        "case", "case_id",
    ),
    "volume": (
        "volume", "volume_id", "scan_id", "series", "series_id", "series_uid", "study", "study_id",
    ),
    "slice": (
        "slice_index", "slice_id", "slice_number", "slice_idx", "slice_no", "slice", "z", "index",
    ),
    "spacing": ("spacing_mm", "spacing", "pixel_spacing", "pixel_spacing_mm", "voxel_spacing"),
}  # fmt: skip
_LARGEST_EDGE_OF_A_VECTOR = 4


@dataclasses.dataclass(frozen=True)
class FeatureKeys:
  """Names of features; "" and None where the user names none, or the dataset has none.

  Attributes:
    image, label: 2-D, with or without a channel axis.
    subject, volume: Text or whole numbers: whose slice it is, and of which scan.
    slice: Whole number: its place in the volume.
    spacing: (row, column) or (row, column, slice) in mm.
    label_values: Stored label values in the order of the classes, the background first; (): the
      values are the class ids.
  """

  image: str = ""
  label: str = ""
  subject: str | None = None
  volume: str | None = None
  slice: str | None = None
  spacing: str | None = None
  label_values: tuple[int, ...] = ()


_FOUND = "found by the usual names"
_ELSEWHERE = "Features of a dataset built elsewhere"
Flags = TypeVar("Flags", bound="FeatureFlags")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureFlags(Checked):
  """The flags that name features; None until a dataset has been opened."""

  image_key: str = knob(
      None, "Feature that holds the image.", unset=_FOUND, group=_ELSEWHERE
  )
  label_key: str = knob(
      None, "Feature that holds the label.", unset=_FOUND, group=_ELSEWHERE
  )
  label_values: tuple[str, ...] = knob(
      (),
      "Label values as stored, in the order of the classes, the background first:"
      " 0,255 for masks of black and white. Default: values are class ids.",
      group=_ELSEWHERE,
  )
  subject_key: str | None = knob(
      None, "Feature that says whose slice it is.", unset=_FOUND, group=_ELSEWHERE
  )
  volume_key: str | None = knob(
      None, "Feature that names the scan of a slice.", unset=_FOUND, group=_ELSEWHERE
  )
  slice_key: str | None = knob(
      None, "Feature of its place in the scan.", unset=_FOUND, group=_ELSEWHERE
  )
  spacing_key: str | None = knob(
      None,
      "Feature of its (row, column[, slice]) spacing in mm.",
      unset=_FOUND,
      group=_ELSEWHERE,
  )

  @property
  def feature_keys(self) -> FeatureKeys:
    """The features that are named, as `dataset_source.open_dataset` takes them."""
    if not all(value.strip().isdecimal() for value in self.label_values):
      raise InputError(
          "--label_values must be whole numbers such as 0,255. Got:"
          f" {','.join(self.label_values)}."
      )
    return FeatureKeys(
        image=self.image_key or "",
        label=self.label_key or "",
        subject=self.subject_key,
        volume=self.volume_key,
        slice=self.slice_key,
        spacing=self.spacing_key,
        label_values=tuple(int(value) for value in self.label_values),
    )

  def with_keys(self: Flags, keys: FeatureKeys) -> Flags:
    """Returns a copy that names the features that were found."""
    return dataclasses.replace(
        self,
        image_key=keys.image,
        label_key=keys.label,
        subject_key=keys.subject,
        volume_key=keys.volume,
        slice_key=keys.slice,
        spacing_key=keys.spacing,
    )


@dataclasses.dataclass(frozen=True)
class FeatureForm:
  """A feature as far as its role can be told from it.

  Attributes:
    shape: Its axes, None where they differ; () for one value.
    dtype: Of its values; object for text.
  """

  shape: tuple[int | None, ...]
  dtype: np.dtype

  def fits(self, role: str) -> bool:
    """Returns whether the feature can be what a field of `FeatureKeys` names."""
    if role in ("image", "label"):
      edges = self.shape[:2]
      large = all(edge is None or edge > _LARGEST_EDGE_OF_A_VECTOR for edge in edges)
      return len(self.shape) in (2, 3) and large and self.dtype != object
    if role == "spacing":
      return self.shape in ((2,), (3,)) and self.dtype.kind == "f"
    whole = self.dtype.kind in "iu"
    return self.shape == () and (whole or (role != "slice" and self.dtype == object))


def resolve(name: str, forms: Mapping[str, FeatureForm], given: FeatureKeys) -> FeatureKeys:
  """Returns all keys: those given, checked, and the others by the usual names.

  Args:
    name: The dataset, for errors.
    forms: Feature -> what it is like.
    given: What the user named.

  Raises:
    InputError: A feature that was named is not there or cannot be that; no image or no label.
  """
  found: dict[str, str | None] = {}
  for role in _USUAL:
    asked = getattr(given, role)
    if asked:
      _check_named(name, role, asked, forms)
    taken = {key for key in found.values() if key}
    found[role] = asked or _usual(role, forms, taken | _named(given))
  image, label = found.pop("image"), found.pop("label")
  if not image or not label:
    role = "label" if image else "image"
    raise InputError(
        f"{name}: no feature of a usual name can be {_MEANING[role]}; name it by --{role}_key. It"
        f" has {_listed(forms)}."
    )
  return FeatureKeys(
      image=image,
      label=label,
      subject=found["subject"],
      volume=found["volume"],
      slice=found["slice"],
      spacing=found["spacing"],
      label_values=given.label_values,
  )


def _check_named(name: str, role: str, key: str, forms: Mapping[str, FeatureForm]) -> None:
  if key not in forms:
    raise unknown_name(f"feature of {name}", key, forms)
  if not forms[key].fits(role):
    raise InputError(
        f"--{role}_key={key}: the feature cannot be {_MEANING[role]}. {name} has {_listed(forms)}."
    )


_MEANING = {
    "image": "the image, [H, W] or [H, W, C]",
    "label": "the label, [H, W] or [H, W, C]",
    "subject": "the subject, a text or a whole number",
    "volume": "the volume, a text or a whole number",
    "slice": "the slice's place, a whole number",
    "spacing": "the spacing, two or three floats in mm",
}


def _named(given: FeatureKeys) -> set[str]:
  return {key for role in _USUAL if (key := getattr(given, role))}


def _usual(role: str, forms: Mapping[str, FeatureForm], taken: set[str]) -> str | None:
  plain = {key.lower().replace("-", "_"): key for key in forms if key not in taken}
  fitting = (plain[name] for name in _USUAL[role] if name in plain)
  return next((key for key in fitting if forms[key].fits(role)), None)


def _listed(forms: Mapping[str, FeatureForm]) -> str:
  def one(form: FeatureForm) -> str:
    kind = "text" if form.dtype == object else form.dtype.name
    return f"{kind} [{', '.join('?' if edge is None else str(edge) for edge in form.shape)}]"

  return ", ".join(f"{key} ({one(form)})" for key, form in sorted(forms.items()))
