"""What every disturbance of a stress test has: its strengths, its unit, the disturbed volume.

What is drawn at random is a function of subject, scan and disturbance alone: all strengths share
one draw, and order or choice of disturbances change nothing.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from flexunet.evaluation.stress_geometry import Geometry
from flexunet.imaging.slicing import SlicePlan

if TYPE_CHECKING:  # It loads TensorFlow, which the check of a flag does not need.
  from flexunet.evaluation.labelled_volumes import LabelledVolume

_STEPS = 4  # Of a grey value, by which the top of a window is found.
_MOST_GREY = 2048


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
  """What dataset and run decide about disturbances.

  Attributes:
    is_ct: Whether the scans are of computed tomography.
    windowed: Whether each channel is windowed by percentiles of the scan.
    separate_channels: Whether channels are scans of their own, not colours.
    plan: How volumes were cut; None for images.
    sides: Class id -> that of the other side of the body, uint8 [classes].
    whole_volumes: Whether the networks need whole volumes, being of several planes.
    pixel_mm: Median edge of a pixel; None where that of a volume is unknown.
    slice_mm: Median distance of slices; None where that of a volume is unknown.
    has_solid: Whether there are gapless volumes of more than one slice.
  """

  is_ct: bool
  windowed: tuple[bool, ...]
  separate_channels: bool
  plan: SlicePlan | None
  sides: np.ndarray
  whole_volumes: bool = False
  pixel_mm: float | None = None
  slice_mm: float | None = None
  has_solid: bool = True

  @property
  def length_unit(self) -> str:
    """Of lengths within slices."""
    return "pixels" if self.pixel_mm is None else "mm"

  def edges(self, volume: LabelledVolume) -> tuple[float, float]:
    """Returns (row, column) edge of a pixel in `length_unit`."""
    return (1.0, 1.0) if self.pixel_mm is None else volume.spacing_mm


@dataclasses.dataclass(frozen=True, eq=False)
class Disturbed:
  """A disturbed volume.

  Attributes:
    images: uint8 [h, w, channels] each.
    spacing_mm: (row, column, slice); NaN where unknown.
    geometry: Where its slices lie.
  """

  images: list[np.ndarray]
  spacing_mm: tuple[float, float, float]
  geometry: Geometry = dataclasses.field(default_factory=Geometry)


class Disturbance(abc.ABC):
  """A kind of disturbance.

  Attributes:
    name: Of the flag and in files.
    title: For people.
    what: What is done, and what a strength means; a sentence.
    neutral: The strength that changes nothing.
    strengths: Those that are tried, mildest first.
  """

  name: ClassVar[str]
  title: ClassVar[str]
  what: ClassVar[str]
  neutral: ClassVar[float] = 0.0
  strengths: ClassVar[tuple[float, ...]]

  def grades(self, setting: Setting) -> list[float]:
    """Returns the strengths that are tried on a dataset, mildest first."""
    return list(self.strengths)

  def neutral_strength(self, setting: Setting) -> float:
    """Returns the strength at which the median volume is as it is."""
    return self.neutral

  def unit(self, setting: Setting) -> str:
    """Returns the unit of a strength; "" for a mere number."""
    return ""

  def against(self, setting: Setting) -> str:
    """Returns why it cannot be tried on a dataset; "": it can."""
    return ""

  def fits(self, volume: LabelledVolume) -> bool:
    """Returns whether it can be tried on a volume."""
    return True

  @abc.abstractmethod
  def apply(self, volume: LabelledVolume, strength: float, setting: Setting) -> Disturbed:
    """Returns the disturbed volume."""


def generator(volume: LabelledVolume, name: str, *numbers: int) -> np.random.Generator:
  """Returns the source of random numbers of a volume and a disturbance."""
  text = "\0".join((volume.subject, volume.volume, name)).encode()
  words = np.frombuffer(hashlib.sha256(text).digest()[:16], np.uint32).tolist()
  return np.random.default_rng([*words, *numbers])


def in_eight_bits(
    values: Sequence[np.ndarray], before: Sequence[np.ndarray], windowed: Sequence[bool]
) -> list[np.ndarray]:
  """Returns disturbed slices as uint8, windowed anew where a channel asks for it.

  Anew: the values are scaled so that the share of pixels at 255 is as before, to a quarter of a
  grey value. Channels of which none was at 255 are left as they are.

  Args:
    values: float32 [h, w, channels] each.
    before: The undisturbed slices, uint8.
    windowed: Per channel, whether its window follows the scan.
  """
  factors = np.ones(values[0].shape[-1], np.float32)
  for channel in range(len(factors)):
    if windowed[min(channel, len(windowed) - 1)]:
      factors[channel] = _factor(
          [one[..., channel] for one in values], [one[..., channel] for one in before]
      )
  return [np.clip(np.rint(one * factors), 0, 255).astype(np.uint8) for one in values]


def _factor(values: Sequence[np.ndarray], before: Sequence[np.ndarray]) -> float:
  top = sum(int(np.count_nonzero(one == 255)) for one in before)
  if not top:
    return 1.0
  share = top / sum(one.size for one in before)
  wanted = max(1, round(share * sum(one.size for one in values)))
  most = _MOST_GREY * _STEPS
  counts = np.zeros(most + 1, np.int64)
  for one in values:
    steps = np.clip(one * _STEPS, 0, most).astype(np.int64)
    counts += np.bincount(steps.ravel(), minlength=most + 1)
  reached = np.flatnonzero(counts[::-1].cumsum()[::-1] >= wanted)
  edge = reached[-1] / _STEPS
  return 255.0 / edge if edge > 0 else 1.0


def spacing_of(volume: LabelledVolume) -> tuple[float, float, float]:
  """Returns (row, column, slice) spacing of a volume; NaN where unknown."""
  return (*volume.spacing_mm, volume.slice_spacing_mm)
