"""Disturbances of geometry: spacing, slice thickness, rotation, missing slices, left-right flip.

Answers are brought back to the undisturbed slices, and compared with their labels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from flexunet.evaluation import stress_geometry
from flexunet.evaluation.stress_base import (
    Disturbance,
    Disturbed,
    Setting,
    generator,
    in_eight_bits,
    spacing_of,
)
from flexunet.evaluation.stress_geometry import Geometry
from flexunet.imaging.slicing import SlicePlan

if TYPE_CHECKING:  # It loads TensorFlow, which the check of a flag does not need.
  from flexunet.evaluation.labelled_volumes import LabelledVolume

_TIMES = (1.5, 2.0, 2.5, 3.0, 4.0, 6.0)  # The spacing of the dataset, as strengths.
_GAP, _SLICES_FOR_GAPS = 3, 24


def one_size(volume: LabelledVolume) -> bool:
  """Returns whether all slices of a volume have one size."""
  return len({one.shape for one in volume.images}) == 1


class InPlaneSpacing(Disturbance):
  """Larger pixels."""

  name, title = "spacing_in_plane", "Pixel size"
  what = (
      "Slices are acquired with larger pixels, each the mean of what it covers; the network is"
      " given these with their spacing, and its answer is interpolated back. The strength is the"
      " edge of a pixel."
  )
  strengths = _TIMES

  def grades(self, setting: Setting) -> list[float]:
    """Returns multiples of the dataset's own spacing."""
    return [_rounded(times * self.neutral_strength(setting)) for times in self.strengths]

  def neutral_strength(self, setting: Setting) -> float:
    return 1.0 if setting.pixel_mm is None else setting.pixel_mm

  def unit(self, setting: Setting) -> str:
    return setting.length_unit

  def fits(self, volume: LabelledVolume) -> bool:
    return one_size(volume)

  def apply(self, volume: LabelledVolume, strength: float, setting: Setting) -> Disturbed:
    edges = setting.edges(volume)
    native_hw = volume.images[0].shape[:2]
    geometry = stress_geometry.resampling(native_hw, edges, strength)
    values = list(geometry.forward(volume.images))
    spacing = [
        mm * old / new
        for mm, old, new in zip(volume.spacing_mm, native_hw, values[0].shape[:2], strict=True)
    ]
    images = in_eight_bits(values, volume.images, setting.windowed)
    return Disturbed(images, (spacing[0], spacing[1], volume.slice_spacing_mm), geometry)


class SliceThickness(Disturbance):
  """Fewer and thicker slices."""

  name, title = "spacing_through", "Slice thickness"
  what = (
      "The volume is acquired in thicker slices without gaps, each the mean of what it covers; the"
      " answer is interpolated between their middles. The strength is their thickness, which is"
      " their distance."
  )
  strengths = _TIMES

  def grades(self, setting: Setting) -> list[float]:
    """Returns multiples of the dataset's own distance."""
    return [_rounded(times * self.neutral_strength(setting)) for times in self.strengths]

  def neutral_strength(self, setting: Setting) -> float:
    return 1.0 if setting.slice_mm is None else setting.slice_mm

  def unit(self, setting: Setting) -> str:
    return "slices" if setting.slice_mm is None else "mm"

  def against(self, setting: Setting) -> str:
    return "" if setting.has_solid else "there are no volumes of several slices without gaps"

  def fits(self, volume: LabelledVolume) -> bool:
    return volume.is_solid

  def apply(self, volume: LabelledVolume, strength: float, setting: Setting) -> Disturbed:
    size = len(volume.images)
    edge = 1.0 if setting.slice_mm is None else volume.slice_spacing_mm
    count = max(min(2, size), stress_geometry.coarse(size, edge, strength))
    slabs = [
        (np.flatnonzero(row), row[row > 0]) for row in stress_geometry.averaging(size, count)
    ]
    geometry = Geometry(slabs=slabs, between=stress_geometry.interpolation(size, count))
    images = in_eight_bits(list(geometry.forward(volume.images)), volume.images, setting.windowed)
    return Disturbed(images, (*volume.spacing_mm, volume.slice_spacing_mm * size / count), geometry)


def _rounded(value: float) -> float:
  """Returns a length with two digits after the first, for people."""
  return float(f"{value:.3g}")


class Rotation(Disturbance):
  """A turn of the head within slices."""

  name, title = "rotation", "Rotation in plane"
  what = (
      "Slices are turned about their middle, to a side that is drawn for each scan; the answer is"
      " turned back. What leaves the slice is lost."
  )
  strengths = (5.0, 10.0, 15.0, 20.0, 30.0, 45.0)

  def unit(self, setting: Setting) -> str:
    return "degrees"

  def fits(self, volume: LabelledVolume) -> bool:
    return one_size(volume)

  def apply(self, volume: LabelledVolume, strength: float, setting: Setting) -> Disturbed:
    sign = generator(volume, self.name).choice((-1.0, 1.0))
    native_hw = volume.images[0].shape[:2]
    geometry = stress_geometry.turning(native_hw, setting.edges(volume), float(sign) * strength)
    values = geometry.forward(volume.images)
    images = [np.clip(np.rint(one), 0, 255).astype(np.uint8) for one in values]
    return Disturbed(images, spacing_of(volume), geometry)


class MissingSlices(Disturbance):
  """Gaps in the stack."""

  name, title = "missing", "Missing slices"
  what = (
      "Slices are taken out, three neighbours at a time (one of volumes of fewer than 24 slices),"
      " never the first and the last; the network is given the rest as neighbours. All slices"
      " count: answers are interpolated over the gaps. The strength is the share that is missing."
  )
  strengths = (0.1, 0.2, 0.3, 0.4, 0.55, 0.7)

  def unit(self, setting: Setting) -> str:
    return "of the slices"

  def against(self, setting: Setting) -> str:
    if setting.whole_volumes:
      return "runs of several planes need whole volumes"
    return "" if setting.has_solid else "there are no volumes of several slices without gaps"

  def fits(self, volume: LabelledVolume) -> bool:
    return volume.is_solid and len(volume.images) > 2

  def apply(self, volume: LabelledVolume, strength: float, setting: Setting) -> Disturbed:
    kept = self.kept(volume, strength)
    slabs = [(np.array([place]), np.ones(1, np.float32)) for place in kept.tolist()]
    where = np.interp(np.arange(len(volume.images)), kept, np.arange(len(kept)))
    places = [
        (int(one), min(int(one) + 1, len(kept) - 1), float(one - int(one))) for one in where
    ]
    images = [volume.images[place] for place in kept.tolist()]
    return Disturbed(images, spacing_of(volume), Geometry(slabs=slabs, between=places))

  def kept(self, volume: LabelledVolume, strength: float) -> np.ndarray:
    """Returns the slices that stay, int [kept], in order; a stronger one takes more of the same."""
    size = len(volume.images)
    gap = _GAP if size >= _SLICES_FOR_GAPS else 1
    starts = generator(volume, self.name).permutation(np.arange(1, size - 1, gap))
    there = np.ones(size, bool)
    for start in starts[: round(strength * size / gap)].tolist():
      there[start : min(start + gap, size - 1)] = False
    return np.flatnonzero(there)


class Flip(Disturbance):
  """The mirror image of the person."""

  name, title = "flip", "Left-right flip"
  what = (
      "Left and right of the scan are exchanged, and the answer back; classes of the two sides are"
      " exchanged by name."
  )
  strengths = (1.0,)

  def apply(self, volume: LabelledVolume, strength: float, setting: Setting) -> Disturbed:
    sides = setting.sides
    relabel = None if (np.arange(len(sides)) == sides).all() else sides
    axis = sides_axis(setting.plan)
    if axis == 2:
      geometry = Geometry(reversed_order=True, relabel=relabel)
    else:
      def mirrored(one: np.ndarray) -> np.ndarray:
        return np.flip(one, axis)

      geometry = Geometry(there=mirrored, back=mirrored, relabel=relabel)
    images = [np.ascontiguousarray(one) for one in geometry.forward(volume.images)]
    return Disturbed(images, spacing_of(volume), geometry)


def sides_axis(plan: SlicePlan | None) -> int:
  """Returns along which of row, column and slice left and right lie; columns where unknown."""
  if plan is None:
    return 1
  return next(axis for axis, code in enumerate(plan.display_axes) if code in "LR")


_SIDE = re.compile(r"(?<![^\W_\d])(left|right|lh|rh|l|r)(?![^\W_\d])", re.IGNORECASE)
_OTHER_SIDE = {"left": "right", "lh": "rh", "l": "r"}
_OTHER_SIDE |= {other: side for side, other in _OTHER_SIDE.items()}


def other_sides(class_names: Sequence[str]) -> np.ndarray:
  """Returns the id of each class on the other side of the body, uint8 [classes], itself if none.

  left_hippocampus and right_hippocampus, lh and rh, l and r are sides.
  """
  lowered = [name.lower() for name in class_names]
  mirrored = [_SIDE.sub(lambda found: _OTHER_SIDE[found[0].lower()], name) for name in lowered]
  places = [lowered.index(name) if name in lowered else at for at, name in enumerate(mirrored)]
  return np.array(places, np.uint8)
