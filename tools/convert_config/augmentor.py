"""The published augmentor: its sections as the flags of our augmentation.

The published generator makes a list of each image and its variants, one per flip, angle, shrink,
shear and so on, and fills a batch from that list at random. So each variant has an equal share of
the examples; here that share becomes the probability of the transformation. A strength that is
fixed there is the largest one here, of draws that are uniform up to it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from flexunet.core.errors import InputError
from flexunet.pipelines.augmentation.config import AugmentationConfig
from flexunet.tools.convert_config.values import (
    Check,
    Reader,
    checked_center,
    checked_number,
    checked_signed,
    checked_switch,
    held,
    list_of,
)

# Strengths of the elastic deformation are stated for images of this edge.
_REFERENCE_EDGE = 512
_NUMBERS, _CENTERS = list_of(checked_number), list_of(checked_center)
# (section, key): (check, value where the file is silent, the flags it decides).
_KNOBS: dict[tuple[str, str], tuple[Check, Any, str]] = {
    ("augmentor", "hflip"): (checked_switch, True, "flip_horizontal_probability"),
    ("augmentor", "vflip"): (checked_switch, True, "flip_vertical_probability"),
    ("augmentor", "rotation"): (
        checked_switch, True, "right_angle_probability and rotation_probability"
    ),
    ("augmentor", "angles"): (
        list_of(checked_signed), [90, 180, 270], "rotation_degrees and right_angle_probability"
    ),
    ("augmentor", "shrinks"): (_NUMBERS, [0.8], "scale_min and scale_probability"),
    ("augmentor", "shears"): (
        list_of(checked_signed), [], "shear_degrees and shear_probability"
    ),
    ("augmentor", "deformation"): (checked_switch, False, "elastic_probability"),
    ("augmentor", "distortion"): (checked_switch, False, "distortion_probability"),
    ("augmentor", "barrdistortion"): (checked_switch, False, "barrel_probability"),
    ("augmentor", "pincdistortion"): (checked_switch, False, "pincushion_probability"),
    ("augmentor", "sharpening"): (checked_switch, False, "sharpening_probability"),
    ("augmentor", "brightening"): (checked_switch, False, "brightness_probability"),
    ("deformation", "alpah"): (checked_number, 1300, "elastic_alpha"),
    ("deformation", "sigmoid"): (checked_number, 8, "elastic_sigma"),
    ("deformation", "sigmoids"): (_NUMBERS, [8], "elastic_sigma"),
    ("distortion", "distortions"): (_NUMBERS, [0.02], "distortion_amount"),
    ("distortion", "gaussian_filter_rsigma"): (checked_number, 40, "distortion_points"),
    ("distortion", "gaussian_filter_sigma"): (checked_number, 0.5, "distortion_amount"),
    ("barrdistortion", "amount"): (checked_number, 0.5, "barrel_amount"),
    ("barrdistortion", "radius"): (checked_number, 0.5, "lens_radius"),
    ("barrdistortion", "centers"): (_CENTERS, [(0.5, 0.5)], "lens_center_range"),
    ("pincdistortion", "amount"): (checked_signed, -0.5, "pincushion_amount"),
    ("pincdistortion", "radius"): (checked_number, 0.5, "lens_radius"),
    ("pincdistortion", "centers"): (_CENTERS, [(0.5, 0.5)], "lens_center_range"),
    ("sharpening", "k"): (checked_number, 1.0, "sharpening_amount"),
    ("brightening", "alpha"): (checked_number, 1.2, "brightness_change"),
    ("brightening", "beta"): (checked_signed, 10, "brightness_shift"),
}  # fmt: skip


def _readers() -> dict[str, dict[str, Reader]]:
  sections: dict[str, dict[str, Reader]] = {}
  for (section, key), (check, _, _) in _KNOBS.items():
    sections.setdefault(section, {})[key] = held(f"{section}.{key}", check)
  return sections


KEYS = _readers()


def unused(given: Mapping[str, tuple[Any, str]], reason: str) -> list[str]:
  """Returns a line for each key of the augmentor that was given, where the generator is off.

  Args:
    given: "section.key" -> (value, where), among other entries.
    reason: Why they are not read.
  """
  return [
      f"[{section}] {key}: not read, {reason}; beside --augmentation=default it is --{flag}"
      for (section, key), (_, _, flag) in _KNOBS.items()
      if f"{section}.{key}" in given
  ]


@dataclasses.dataclass
class AugmentorFlags:
  """The flags of an active augmentor, and what they cannot say.

  Attributes:
    flags: Flag -> value as text.
    notes: One line each.
  """

  flags: dict[str, str]
  notes: list[str]


def convert(
    given: Mapping[str, tuple[Any, str]], size_hw: tuple[int, int], channels: int
) -> AugmentorFlags:
  """Returns the flags by which training sees each variant as often as the published generator.

  Args:
    given: "section.key" -> (value, where); the published values stand in for what is missing.
    size_hw: Of the network's input, in pixels.
    channels: Of its input: the published deformation smooths over them too.
  """
  return _Conversion(given, size_hw, channels).result()


class _Conversion:
  """One augmentor on its way to flags."""

  def __init__(self, given: Mapping[str, tuple[Any, str]], size_hw: tuple[int, int], channels: int):
    self._given, self._size_hw, self._channels = given, size_hw, channels
    self._edge = min(size_hw)
    self._shares: dict[str, int] = {}  # Transformation -> number of variants that have it.
    self._strengths: dict[str, float] = {}
    self._notes: list[str] = []
    self._variants = 1  # The image itself.

  def result(self) -> AugmentorFlags:
    """Returns the flags of all sections together."""
    self._flips_and_shears()
    self._turns()
    self._shrinks()
    self._deformation()
    self._distortion()
    self._lenses()
    self._grey_values()
    flags = {}
    for name, value in self._strengths.items():
      flags[name] = self._bounded(name, value)
    for name, count in self._shares.items():
      if count:
        flags[f"{name}_probability"] = format(count / self._variants, ".4g")
    self._notes.insert(0, (
        f"[augmentor]: one of {self._variants} variants of a slice at random there; here each"
        " change has the same share of the slices, and several may meet in one"
    ))  # fmt: skip
    return AugmentorFlags(flags, self._notes)

  def _value(self, section: str, key: str) -> Any:
    if found := self._given.get(f"{section}.{key}"):
      return found[0]
    return _KNOBS[section, key][1]

  def _on(self, key: str) -> bool:
    return self._value("augmentor", key)

  def _add(self, name: str, count: int, variants: int | None = None) -> None:
    self._shares[name] = self._shares.get(name, 0) + count
    self._variants += count if variants is None else variants

  def _note(self, section: str, key: str, text: str) -> None:
    self._notes.append(f"[{section}] {key}: {text}")

  def _bounded(self, name: str, value: float) -> str:
    """Returns a strength as text, within the limits of its flag."""
    (field,) = (one for one in dataclasses.fields(AugmentationConfig) if one.name == name)
    low, high = field.metadata["minimum"], field.metadata["maximum"]
    nearest = min(max(value, low), high)
    if nearest != value:
      self._notes.append(f"--{name}: {value:.4g} there, the limit here is {nearest:g}")
    whole = isinstance(low, int) and name == "distortion_points"
    return str(round(nearest)) if whole else format(nearest, ".4g")

  def _flips_and_shears(self) -> None:
    flip_x, flip_y = self._on("hflip"), self._on("vflip")
    shears = self._value("augmentor", "shears")
    # Each shear comes as it is, and mirrored by every flip and by both.
    each = (1 + flip_x) * (1 + flip_y)
    self._add("shear", len(shears) * each)
    self._add("flip_horizontal", flip_x)
    self._add("flip_vertical", flip_y)
    self._add("flip_horizontal", flip_x * len(shears) * each // 2, variants=0)
    self._add("flip_vertical", flip_y * len(shears) * each // 2, variants=0)
    if shears:
      self._strengths["shear_degrees"] = math.degrees(math.atan(max(map(abs, shears))))
      self._note("augmentor", "shears", "along one axis there, along both here, either way")

  def _turns(self) -> None:
    angles = self._value("augmentor", "angles") if self._on("rotation") else []
    # 350 degrees are 10 the other way.
    folded = [(angle + 180) % 360 - 180 for angle in angles]
    right = [angle for angle in folded if angle % 90 == 0 and angle]
    other = [abs(angle) for angle in folded if angle % 90]
    self._variants += folded.count(0)
    self._add("right_angle", len(right))
    self._add("rotation", len(other))
    if other:
      self._strengths["rotation_degrees"] = max(other)
      self._note("augmentor", "angles", f"any angle up to {max(other):g} degrees, either way")
    if right and self._size_hw[0] != self._size_hw[1]:
      self._note("augmentor", "angles", "images that are not square turn by 180 degrees only")

  def _shrinks(self) -> None:
    shrinks = self._value("augmentor", "shrinks")
    if any(not 0 < shrink <= 1 for shrink in shrinks):
      where = self._given["augmentor.shrinks"][1]
      raise InputError(f"{where} must hold shares above 0 up to 1. Got: {shrinks!r}.")
    self._add("scale", len(shrinks))
    if shrinks:
      self._strengths.update(scale_min=min(shrinks), scale_max=1.0)

  def _deformation(self) -> None:
    if not self._on("deformation"):
      return
    sigmas = self._value("deformation", "sigmoids")
    if "deformation.sigmoid" in self._given and sigmas:
      self._note("deformation", "sigmoid", "sigmoids goes before it, there too")
    sigmas = [int(sigma) for sigma in sigmas or [self._value("deformation", "sigmoid")]]
    if min(sigmas) < 1:
      raise InputError(f"[deformation] sigmoids must be 1 or more pixels. Got: {sigmas!r}.")
    sigma = max(sigmas)
    if len(set(sigmas)) > 1:
      self._note("deformation", "sigmoids", f"one width at a time here: the largest, {sigma:g}")
    # The published filter runs over the colour channels too, which hold independent noise: that
    # leaves a small part of its strength.
    share = _channel_share(sigma, self._channels)
    ratio = self._edge / _REFERENCE_EDGE
    alpha = self._value("deformation", "alpah") * share / ratio**2
    self._add("elastic", len(sigmas))
    self._strengths.update(elastic_alpha=alpha, elastic_sigma=sigma / ratio)
    self._note(
        "deformation", "alpah",
        f"the published filter also smooths over the {self._channels} channels, which leaves"
        f" {share:.3f} of the shifts; image and mask got different ones there",
    )  # fmt: skip

  def _distortion(self) -> None:
    if not self._on("distortion"):
      return
    sizes = self._value("distortion", "distortions")
    sigma = max(1.0, self._value("distortion", "gaussian_filter_rsigma"))
    self._add("distortion", len(sizes))
    if sizes:
      self._strengths["distortion_amount"] = max(sizes)
      # A cubic B-spline is as wide as a Gaussian of its pitch over the root of 3.
      pitch = sigma * math.sqrt(3)
      self._strengths["distortion_points"] = max(4, round(max(self._size_hw) / pitch) + 3)
    if "distortion.gaussian_filter_sigma" in self._given:
      self._note(
          "distortion", "gaussian_filter_sigma",
          "the blurred image is not used there; --blur_probability blurs",
      )  # fmt: skip

  def _lenses(self) -> None:
    radii, ranges = [], []
    for section, name in (("barrdistortion", "barrel"), ("pincdistortion", "pincushion")):
      if not self._on(section):
        continue
      amount, centers = self._value(section, "amount"), self._value(section, "centers")
      # Pixels halfway to the radius move as far as there, where the distance r becomes
      # r sin(pi r / 2 radius) ^ amount; here r (1 -+ amount (1 - (r / radius)^2)).
      factor = math.sin(math.pi / 4) ** amount
      self._add(name, len(centers))
      self._strengths[f"{name}_amount"] = abs(1 - factor) / 0.75
      if (amount < 0) != (name == "pincushion"):
        self._note(section, "amount", "its sign is that of the other distortion; taken as this one")
      radii.append(2 * self._value(section, "radius") * self._size_hw[1] / self._edge)
      ranges += [abs(share - 0.5) for center in centers for share in center]
    if radii:
      self._strengths.update(lens_radius=max(radii), lens_center_range=max(ranges, default=0.0))
    if len(set(radii)) > 1:
      self._note("pincdistortion", "radius", "one radius for both lenses here: the larger")

  def _grey_values(self) -> None:
    if self._on("sharpening"):
      self._add("sharpening", 1)
      # Their kernel adds 9 k of the detail beside a mean over 3 x 3, of variance 2/3 along an
      # axis; ours that beside a Gaussian of variance 1.
      self._strengths["sharpening_amount"] = 6 * self._value("sharpening", "k")
    if self._on("brightening"):
      alpha, beta = self._value("brightening", "alpha"), self._value("brightening", "beta")
      self._add("brightness", 1)
      self._strengths["brightness_change"] = abs(alpha - 1)
      self._strengths["brightness_shift"] = abs(beta) / 255
      self._note("brightening", "alpha", "brighter only there, brighter or darker here")


def _channel_share(sigma: int, channels: int) -> float:
  """Returns what a Gaussian along the channel axis, zeros outside, leaves of white noise there.

  Args:
    sigma: Its width, in channels.
    channels: Of the image; the root of the mean variance over them is returned.
  """
  reach = int(4 * sigma + 0.5)
  total = sum(math.exp(-(offset**2) / (2 * sigma**2)) for offset in range(-reach, reach + 1))

  def weight(offset: int) -> float:
    return math.exp(-(offset**2) / (2 * sigma**2)) / total if abs(offset) <= reach else 0.0

  each = [sum(weight(i - j) ** 2 for j in range(channels)) for i in range(channels)]
  return math.sqrt(sum(each) / channels)
