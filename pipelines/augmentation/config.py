"""Which random changes an example gets, how strong and how often: flags, presets, checks.

Every transformation has a probability and a largest strength; the strength of one draw is uniform
up to it. A field left at None takes the value of the preset named by `augmentation`.

Some transformations share a coin: rotation, scaling, shear, translation, elastic and smooth
distortion are one resampling of the image, so they are drawn together and its cost is paid once.
With probabilities 0.3 and 0.2, 20 % of the examples get both and 10 % only the first. The same
holds for brightness, contrast and gamma. Barrel excludes pincushion, blur excludes sharpening.

`synthetic_share` is a probability too: that the grey values of an example are made from its label
(`contrast.py`). The preset "contrast" is the one that sets it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from flexunet.core.config_fields import Checked, from_mapping, knob
from flexunet.core.errors import InputError

PRESETS = ("none", "default", "strong", "contrast")
_UNSET = ""  # The help of --augmentation says it for all of them.


def _probability(what: str) -> Any:
  return knob(None, f"Probability of {what}.", minimum=0.0, maximum=1.0, unset=_UNSET)


def _strength(help: str, low: float, high: float) -> Any:
  return knob(None, help, minimum=low, maximum=high, unset=_UNSET)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentationConfig(Checked):
  """The augmentation of a run; `resolve` fills in what is None.

  The preset "auto" is for the trainer to decide; resolved as it is, it is "default".
  """

  augmentation: str = knob(
      "auto",
      "Preset that every setting below takes its default from. 'auto' is 'default', or 'none' in a"
      " run so short that it sees each slice only a few times. 'contrast' draws the contrast of"
      " images anew, so that the network labels scans of other MRI sequences too.",
      choices=("auto", *PRESETS),
  )
  flip_horizontal_probability: float = _probability("a mirror image, left to right")
  flip_vertical_probability: float = _probability("a mirror image, top to bottom")
  right_angle_probability: float = _probability(
      "a turn by 90, 180 or 270 degrees (by 180 where the image is not square)"
  )
  rotation_degrees: float = _strength("Largest rotation, either way.", 0, 180)
  rotation_probability: float = _probability("a rotation")
  scale_min: float = _strength("Smallest scale; below 1 the image shrinks.", 0.1, 1)
  scale_max: float = _strength("Largest scale; above 1 the image grows.", 1, 10)
  scale_probability: float = _probability("a scaling")
  shear_degrees: float = _strength("Largest shear along each axis, either way.", 0, 40)
  shear_probability: float = _probability("a shear")
  translation_fraction: float = _strength(
      "Largest shift, as a share of the height and of the width.", 0, 1
  )
  translation_probability: float = _probability("a shift")
  elastic_alpha: float = _strength(
      "Largest strength of the elastic deformation, in pixels of an image of 512: it multiplies"
      " uniform noise smoothed by a Gaussian (Simard et al. 2003).",
      0,
      5000,
  )
  elastic_sigma: float = _strength(
      "Width of that Gaussian, in pixels of an image of 512; larger is smoother.",
      4,
      200,
  )
  elastic_probability: float = _probability("an elastic deformation")
  distortion_amount: float = _strength(
      "Largest shift of the control points of the smooth distortion, in shorter edges.",
      0,
      0.3,
  )
  distortion_points: int = _strength("Control points along each axis.", 4, 32)
  distortion_probability: float = _probability("a smooth distortion")
  barrel_amount: float = _strength(
      "Largest barrel distortion; the centre grows by up to 1 / (1 - amount).", 0, 0.8
  )
  barrel_probability: float = _probability("a barrel distortion")
  pincushion_amount: float = _strength(
      "Largest pincushion distortion; the centre shrinks by up to 1 / (1 + amount).", 0, 0.45
  )
  pincushion_probability: float = _probability("a pincushion distortion")
  lens_radius: float = _strength(
      "Radius of barrel and pincushion, in halves of the shorter edge; nothing moves beyond it.",
      0.1,
      3,
  )
  lens_center_range: float = _strength(
      "Largest distance of their centre from the middle, as a share of height and width.", 0, 0.5
  )
  brightness_change: float = _strength(
      "Largest change of brightness, which is multiplied by 1 +- this.", 0, 1
  )
  brightness_shift: float = _strength(
      "Largest amount added to the brightness beside it, either way, as a share of the grey range.",
      0,
      1,
  )
  brightness_probability: float = _probability("a change of brightness")
  contrast_change: float = _strength(
      "Largest change of contrast: distances from the mean grey are multiplied by 1 +- this.", 0, 1
  )
  contrast_probability: float = _probability("a change of contrast")
  gamma_max: float = _strength(
      "Largest exponent of the grey values; 1/this is the smallest.", 1, 5
  )
  gamma_probability: float = _probability("a gamma correction")
  sharpening_amount: float = _strength(
      "Largest weight of the detail (the image less its blurred self) that is added.", 0, 10
  )
  sharpening_probability: float = _probability("sharpening")
  blur_sigma: float = _strength("Largest width of the Gaussian blur, in pixels.", 0, 10)
  blur_probability: float = _probability("blur")
  noise_std: float = _strength(
      "Largest standard deviation of the Gaussian noise, as a share of the grey range.", 0, 1
  )
  noise_probability: float = _probability("Gaussian noise")
  low_resolution_factor: float = _strength(
      "Largest factor by which the resolution is lowered and interpolated back.", 1, 16
  )
  low_resolution_probability: float = _probability("a lower resolution")
  low_resolution_anisotropy: float = _strength(
      "How unequal the factors of rows and columns may be: 0 equal, 1 down to one of them alone.",
      0,
      1,
  )
  bias_field_strength: float = _strength(
      "Largest uneven gain as in MRI: the gain lies in exp(-this) .. exp(this).", 0, 2
  )
  bias_field_probability: float = _probability("a bias field")
  synthetic_share: float = knob(
      None,
      "Share of the examples whose grey values are drawn anew from label and image, class by class"
      " and cluster by cluster (after SynthSeg, Billot et al. 2023).",
      minimum=0.0,
      maximum=1.0,
      unset=_UNSET,
  )
  synthetic_clusters: int = _strength(
      "Clusters of grey values within the background, within each class and within the whole"
      " image, each with a drawn grey value.",
      1,
      16,
  )
  synthetic_by_class: float = _strength(
      "Largest weight of grey values drawn class by class; the rest is one curve for the whole"
      " image, which shows no border that the scan does not show.",
      0,
      1,
  )
  synthetic_class_range: float = _strength(
      "Largest distance of the clusters of one class from the grey value of the class, as a share"
      " of the grey range. The background has no such limit.",
      0,
      1,
  )
  synthetic_texture: float = _strength(
      "Largest weight of the scan's own texture in synthetic grey values; the rest is a drawn mean"
      " and noise for each cluster.",
      0,
      1,
  )
  synthetic_noise_std: float = _strength(
      "Largest standard deviation within a cluster, as a share of the grey range.", 0, 1
  )
  synthetic_blur_sigma: float = _strength(
      "Largest width, in pixels, of the Gaussian that mixes neighbouring tissues (partial volume).",
      0,
      10,
  )

  def resolve(self, *, mirroring: bool = True) -> AugmentationConfig:
    """Returns the config with every field given.

    Args:
      mirroring: Whether images may be mirrored (`laterality`). Where they may not, flips and turns
        by right angles are left out unless they were given.

    Raises:
      InputError: Barrel and pincushion (or blur and sharpening), which exclude each other, add up
        to more than 1.
    """
    if self.augmentation == "auto":
      return dataclasses.replace(self, augmentation="default").resolve(mirroring=mirroring)
    preset = _preset(self.augmentation)
    if not mirroring:
      preset.update(dict.fromkeys(_CHANGES_SIDES, 0.0))
    given = {n: v for n, v in dataclasses.asdict(self).items() if v is not None}
    complete = dataclasses.replace(self, **{**preset, **given})
    for first, second in _EXCLUSIVE:
      total = getattr(complete, first) + getattr(complete, second)
      if total > 1:
        raise InputError(
            f"--{first} and --{second} exclude each other in one example, so that their sum must"
            f" be at most 1. Got: {total:g}."
        )
    return complete

  @classmethod
  def of_run(cls, values: Mapping[str, Any]) -> AugmentationConfig:
    """Reads the resolved config of a run; what is younger than the run has the preset's value."""
    read = from_mapping(cls, values)
    missing = {field.name for field in dataclasses.fields(cls)} - set(values)
    if not missing:
      return read
    complete = read.resolve()
    return dataclasses.replace(read, **{name: getattr(complete, name) for name in missing})

  @property
  def given(self) -> bool:
    """Whether any setting was given beside the preset."""
    return any(v is not None for n, v in dataclasses.asdict(self).items() if n != "augmentation")

  @property
  def enabled(self) -> bool:
    """Whether a resolved config changes anything at all."""
    return any(getattr(self, name) for name in PROBABILITIES)


_SYNTHETIC_SHARE = "synthetic_share"
PROBABILITIES = tuple(
    field.name
    for field in dataclasses.fields(AugmentationConfig)
    if field.name.endswith("_probability") or field.name == _SYNTHETIC_SHARE
)


def probability_of(transformation: str) -> str:
  """Returns the field that says how often a transformation is drawn."""
  name = f"{transformation}_probability"
  return name if name in PROBABILITIES else _SYNTHETIC_SHARE


_CHANGES_SIDES = (
    "flip_horizontal_probability",
    "flip_vertical_probability",
    "right_angle_probability",
)
_EXCLUSIVE = (
    ("barrel_probability", "pincushion_probability"),
    ("blur_probability", "sharpening_probability"),
)

# Chosen so that half the speed of reading 512 x 512 slices is left on a CPU: the warp costs most.
_DEFAULT: dict[str, float | int] = {
    "flip_horizontal_probability": 0.5,
    "rotation_degrees": 15.0,
    "rotation_probability": 0.25,
    "scale_min": 0.85,
    "scale_max": 1.2,
    "scale_probability": 0.25,
    "shear_degrees": 5.0,
    "shear_probability": 0.1,
    "translation_fraction": 0.05,
    "translation_probability": 0.25,
    "elastic_alpha": 400.0,
    "elastic_sigma": 24.0,
    "distortion_amount": 0.04,
    "distortion_points": 5,
    "distortion_probability": 0.05,
    "barrel_amount": 0.3,
    "pincushion_amount": 0.2,
    "lens_radius": 1.0,
    "lens_center_range": 0.2,
    "brightness_change": 0.25,
    "brightness_shift": 0.0,
    "brightness_probability": 0.3,
    "contrast_change": 0.25,
    "contrast_probability": 0.3,
    "gamma_max": 1.4,
    "gamma_probability": 0.3,
    "sharpening_amount": 1.0,
    "sharpening_probability": 0.05,
    "blur_sigma": 1.0,
    "blur_probability": 0.1,
    "noise_std": 0.04,
    "noise_probability": 0.1,
    "low_resolution_factor": 2.0,
    "low_resolution_probability": 0.1,
    "low_resolution_anisotropy": 0.0,
    "bias_field_strength": 0.3,
    "bias_field_probability": 0.1,
    "synthetic_clusters": 4,
    "synthetic_by_class": 1.0,
    "synthetic_class_range": 0.15,
    "synthetic_texture": 1.0,
    "synthetic_noise_std": 0.06,
    "synthetic_blur_sigma": 0.8,
}
_STRONG: dict[str, float | int] = {
    "rotation_degrees": 30.0,
    "rotation_probability": 0.6,
    "scale_min": 0.7,
    "scale_max": 1.4,
    "scale_probability": 0.6,
    "shear_degrees": 10.0,
    "shear_probability": 0.3,
    "translation_fraction": 0.1,
    "translation_probability": 0.6,
    "elastic_alpha": 800.0,
    "elastic_probability": 0.2,
    "distortion_amount": 0.08,
    "distortion_probability": 0.3,
    "barrel_probability": 0.1,
    "pincushion_probability": 0.1,
    "brightness_change": 0.4,
    "brightness_probability": 0.5,
    "contrast_change": 0.4,
    "contrast_probability": 0.5,
    "gamma_max": 1.8,
    "gamma_probability": 0.5,
    "sharpening_amount": 2.0,
    "sharpening_probability": 0.1,
    "blur_sigma": 1.5,
    "blur_probability": 0.2,
    "noise_std": 0.08,
    "noise_probability": 0.3,
    "low_resolution_factor": 3.0,
    "low_resolution_probability": 0.25,
    "bias_field_strength": 0.5,
    "bias_field_probability": 0.3,
}
# Geometry as of "default"; all that a scanner does to grey values is frequent and strong.
_CONTRAST: dict[str, float | int] = {
    "synthetic_share": 0.5,
    "bias_field_strength": 0.5,
    "bias_field_probability": 0.4,
    "gamma_max": 1.6,
    "gamma_probability": 0.4,
    "noise_std": 0.06,
    "noise_probability": 0.3,
    "blur_probability": 0.1,
    "low_resolution_factor": 3.0,
    "low_resolution_probability": 0.25,
    "low_resolution_anisotropy": 1.0,
}


def _preset(name: str) -> dict[str, Any]:
  """Returns all values of a preset; a probability that it does not name is 0."""
  values: dict[str, Any] = {**dict.fromkeys(PROBABILITIES, 0.0), **_DEFAULT}
  if name == "strong":
    values.update(_STRONG)
  if name == "contrast":
    values.update(_CONTRAST)
  if name == "none":
    # Strengths stay: a probability given beside it switches on just that transformation.
    values.update(dict.fromkeys(PROBABILITIES, 0.0))
  return values
