"""Clean-up of predicted labels: small components, all but the largest one, holes; per class.

A rule is of whole volumes [i, j, k], or of single images [H, W] where a network predicts these
alone; it is not applied to the other kind, whose components have other sizes.

What becomes of voxels does not depend on the order of the classes: all components to be removed
are found in the label as it was predicted. Each becomes the class that it has most faces in common
with, background included, among the voxels that stay; of equals the lower id. So a speck in the air
becomes background, and an island of one structure within another becomes that one: background
there would be a hole that nobody predicted. Holes are filled last. A hole is background that is
connected by faces, does not reach the edge of the array, and has voxels of one class alone around
it; that class fills it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from flexunet.core.errors import InputError
from flexunet.imaging.components import Components, bounding_box, components_of

UNITS = ("ml", "pixels")
_RULE_KEYS = ("largest", "min_size", "unit", "fill_holes")


@dataclasses.dataclass(frozen=True)
class ClassRule:
  """What is cleaned up in one class.

  Attributes:
    largest: Only the largest component stays; of equal ones the first.
    min_size: Components below this size are removed.
    unit: Of `min_size`: "ml", or "pixels" (voxels). Where the spacing of a volume is unknown,
      nothing is removed by a size in ml; images to be predicted have none, so theirs are pixels.
    fill_holes: Background that the class encloses becomes the class.
  """

  largest: bool = False
  min_size: float = 0.0
  unit: str = "pixels"
  fill_holes: bool = False

  def __bool__(self) -> bool:
    return self.largest or self.min_size > 0 or self.fill_holes

  def removes(self, sizes: np.ndarray, spacing_mm: Sequence[float] | np.ndarray) -> np.ndarray:
    """Returns bool [components], which of them go.

    Args:
      sizes: int64 [components], in voxels.
      spacing_mm: One per axis, NaN where unknown.
    """
    gone = np.zeros(sizes.shape, bool)
    if self.largest and sizes.size:
      gone[:] = True
      gone[np.argmax(sizes)] = False
    if self.min_size > 0:
      # A margin for rounding: 20 voxels of 0.001 ml are 0.02 ml.
      size = 1.0 if self.unit == "pixels" else math.prod(map(float, spacing_mm)) / 1000
      gone |= sizes * size < self.min_size * (1 - 1e-9)
    return gone

  def __str__(self) -> str:
    parts = []
    if self.largest:
      parts.append("only the largest component stays")
    if self.min_size > 0:
      parts.append(f"components below {self.min_size:g} {self.unit} are removed")
    if self.fill_holes:
      parts.append("holes are filled")
    return ", ".join(parts) or "nothing is changed"


@dataclasses.dataclass(frozen=True)
class CleanUp:
  """The rules of a run; `CleanUp()` changes nothing.

  Attributes:
    class_names: All, background first.
    rules: Class id -> its rule; classes without one are left as they are.
    in_slices: Whether they are rules of single images instead of volumes.
    evidence: On what they were decided, as JSON; see `clean_up_choice`.
  """

  class_names: tuple[str, ...] = ()
  rules: Mapping[int, ClassRule] = dataclasses.field(default_factory=dict)
  in_slices: bool = False
  evidence: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)

  def __bool__(self) -> bool:
    return any(self.rules.values())

  def fits(self, label: np.ndarray) -> bool:
    """Returns whether the rules are of this kind of label: a volume, or a single image."""
    return label.ndim == 2 if self.in_slices else label.ndim == 3 and min(label.shape) > 1

  def apply(
      self, label: np.ndarray, spacing_mm: Sequence[float] | np.ndarray = ()
  ) -> np.ndarray:
    """Returns the cleaned label; itself where nothing changes or the rules do not fit.

    Args:
      label: Class ids, uint8 [i, j, k] or [H, W].
      spacing_mm: One per axis of a volume, NaN where unknown; of no concern for images.
    """
    if not self or not self.fits(label):
      return label
    doomed = []
    for class_id, rule in self.rules.items():
      if rule.largest or rule.min_size > 0:
        found = components_of(label == class_id)
        doomed.append((found, rule.removes(found.sizes, spacing_mm)))
    places, values = replaced(label, doomed)
    cleaned = label
    if values.size:
      cleaned = label.copy()
      cleaned[places] = values
    filling = [class_id for class_id, rule in self.rules.items() if rule.fill_holes]
    if filling:
      places, values = filled(cleaned, filling)
      if values.size:
        cleaned = cleaned.copy() if cleaned is label else cleaned
        cleaned[places] = values
    return cleaned

  def apply_to_slices(
      self,
      slices: Sequence[np.ndarray],
      spacing_mm: Sequence[float],
      slice_spacing_mm: float = math.nan,
      *,
      is_solid: bool,
  ) -> list[np.ndarray]:
    """Returns the cleaned labels of the slices of one volume.

    Args:
      slices: uint8 [H, W] each.
      spacing_mm: (row, column).
      slice_spacing_mm: Distance of neighbouring slices.
      is_solid: Whether the slices form a volume: of one size, more than one, none missing. Others
        are left as they are by rules of volumes.
    """
    if self.in_slices:
      return [self.apply(one) for one in slices]
    if not self or not is_solid:
      return list(slices)
    return list(self.apply(np.stack(slices), (slice_spacing_mm, *spacing_mm)))

  def sentences(self) -> list[str]:
    """Returns what is done, a line per class with a rule: `lesion: holes are filled`."""
    return [f"{self.class_names[one]}: {rule}" for one, rule in self.rules.items() if rule]

  def to_json(self) -> dict[str, Any]:
    """Returns the rules by class name, and their evidence."""
    return {
        "in_slices": self.in_slices,
        "rules": {
            self.class_names[one]: dataclasses.asdict(rule)
            for one, rule in self.rules.items() if rule
        },
        "evidence": dict(self.evidence),
    }  # fmt: skip

  @classmethod
  def from_json(cls, values: Any, class_names: Sequence[str]) -> CleanUp:
    """Reads what `to_json` wrote.

    Args:
      values: JSON.
      class_names: Those of the run, background first.

    Raises:
      InputError: It is something else, or names a class that the run does not have.
    """
    names = tuple(class_names)
    try:
      if not isinstance(values["in_slices"], bool) or not isinstance(values["evidence"], dict):
        raise TypeError("in_slices is true or false, evidence a mapping")
      rules = {
          names.index(name, 1): _checked_rule(rule) for name, rule in values["rules"].items()
      }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
      raise InputError(
          "A clean-up must hold in_slices, evidence and rules by class name, each with"
          f" {', '.join(_RULE_KEYS)}, for the classes {', '.join(names[1:])}. Got:"
          f" {str(values)[:200]} ({error}). Write it again: flexunet calibrate."
      ) from error
    return cls(names, dict(sorted(rules.items())), values["in_slices"], values["evidence"])


def _checked_rule(values: Mapping[str, Any]) -> ClassRule:
  if sorted(values) != sorted(_RULE_KEYS) or values["unit"] not in UNITS:
    raise ValueError(f"a rule has {', '.join(_RULE_KEYS)}; units are {', '.join(UNITS)}")
  if not all(isinstance(values[name], bool) for name in ("largest", "fill_holes")):
    raise TypeError("largest and fill_holes are true or false")
  size = values["min_size"]
  if isinstance(size, bool) or not isinstance(size, (int, float)) or not 0 <= size < math.inf:
    raise ValueError("min_size is a number from 0")
  return ClassRule(values["largest"], float(size), values["unit"], values["fill_holes"])


def replaced(
    label: np.ndarray, doomed: Sequence[tuple[Components, np.ndarray]]
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
  """Returns what becomes of components that are removed.

  Args:
    label: Class ids, of two or three axes.
    doomed: Components of each class, and which of them go, bool [components].

  Returns:
    The voxels, as an index of the label, and their new class ids, uint8 [voxels].
  """
  found, numbers, count = [np.zeros((0, label.ndim), np.int64)], [np.zeros(0, np.int64)], 0
  for components, chosen in doomed:
    if chosen.any():
      own, number = components.places(chosen)
      found.append(own)
      numbers.append(number + count)
    count += chosen.size
  places, owners = np.concatenate(found), np.concatenate(numbers)
  index = tuple(places.T)
  if not owners.size:
    return index, np.zeros(0, np.uint8)
  gone = np.zeros(label.shape, bool)
  gone[index] = True
  most = int(label.max()) + 1
  faces = np.zeros((count, most), np.int64)
  for axis in range(label.ndim):
    for step in (-1, 1):
      beside = places.copy()
      beside[:, axis] += step
      within = (beside[:, axis] >= 0) & (beside[:, axis] < label.shape[axis])
      beside = beside[within]
      stays = ~gone[tuple(beside.T)]
      pairs = owners[within][stays] * most + label[tuple(beside[stays].T)]
      faces += np.bincount(pairs, minlength=faces.size).reshape(faces.shape)
  return index, faces.argmax(axis=1).astype(np.uint8)[owners]


def filled(
    label: np.ndarray, class_ids: Sequence[int]
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
  """Returns the holes that some classes fill, as `replaced` returns removed components.

  Args:
    label: Class ids, of two or three axes.
    class_ids: The classes whose holes are filled.
  """
  box = bounding_box(label > 0)
  inside = label[box]
  corner = np.array([side.start for side in box], np.int64)
  # Beyond the box all is background: what reaches its sides is no hole.
  numbers, count = ndimage.label(inside == 0)
  around = np.zeros((count + 1, int(inside.max(initial=0)) + 1), bool)
  is_open = np.zeros(count + 1, bool)
  for axis in range(label.ndim if count else 0):
    own, other = np.moveaxis(numbers, axis, 0), np.moveaxis(inside, axis, 0)
    is_open[np.unique(own[[0, -1]])] = True
    for hole, beside in ((own[:-1], other[1:]), (own[1:], other[:-1])):
      meets = (hole > 0) & (beside > 0)
      around[hole[meets], beside[meets]] = True
  closed = (around.sum(axis=1) == 1) & ~is_open
  classes = np.where(closed, around.argmax(axis=1), 0)
  classes[~np.isin(classes, class_ids)] = 0
  chosen = classes[numbers]
  places = np.argwhere(chosen) + corner
  return tuple(places.T), chosen[chosen > 0].astype(np.uint8)
