"""Disturbances of grey values: bias field, noise, blur, gamma.

They act on the 8-bit slices that the network sees, channel by channel, and each has a definition
that can be repeated by hand. Where the window of a dataset follows percentiles of the scan, a
disturbed scan is windowed anew, as it would be had it been acquired so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.polynomial import legendre
from scipy import ndimage

from flexunet.evaluation.stress_base import (
    Disturbance,
    Disturbed,
    Setting,
    generator,
    in_eight_bits,
    spacing_of,
)

if TYPE_CHECKING:  # It loads TensorFlow, which the check of a flag does not need.
  from flexunet.evaluation.labelled_volumes import LabelledVolume

_TISSUE = 25  # A tenth of the window: what is darker is air.
_FWHM = 2.354820045  # Full width at half maximum of a Gaussian of deviation 1.
_DEGREES_OF_FIELD = 3


def _changed(
    volume: LabelledVolume, values: Sequence[np.ndarray], setting: Setting
) -> Disturbed:
  """Returns a volume of which grey values alone were changed."""
  return Disturbed(in_eight_bits(values, volume.images, setting.windowed), spacing_of(volume))


def _not_in_ct(setting: Setting) -> str:
  if not setting.is_ct:
    return ""
  return "the scans are of CT, whose Hounsfield units have no such error"


class BiasField(Disturbance):
  """A smooth gain over the volume, as of receive coils."""

  name, title = "bias", "Bias field"
  what = (
      "Intensities are multiplied by a smooth random gain (Legendre polynomials up to degree 3"
      " along rows, columns and slices). The strength is its range over the tissue: 0.4 is a gain"
      " from 0.8 to 1.2."
  )
  strengths = (0.2, 0.4, 0.6, 0.8, 1.0, 1.4)

  def against(self, setting: Setting) -> str:
    return _not_in_ct(setting)

  def apply(self, volume: LabelledVolume, strength: float, setting: Setting) -> Disturbed:
    # Channels that are scans of their own have fields of their own.
    count = volume.images[0].shape[-1] if setting.separate_channels else 1
    fields = [field(volume, channel) for channel in range(count)]
    values = [
        image * np.stack([1 + strength * own[place] for own in fields], axis=-1)
        for place, image in enumerate(volume.images)
    ]
    return _changed(volume, values, setting)


def field(volume: LabelledVolume, channel: int = 0) -> list[np.ndarray]:
  """Returns a smooth random field, float32 [H, W] per slice, from -0.5 to 0.5 over the tissue."""
  degrees = _DEGREES_OF_FIELD + 1
  drawn = generator(volume, BiasField.name, channel).normal(size=(degrees,) * 3)
  total = np.add.outer(np.add.outer(np.arange(degrees), np.arange(degrees)), np.arange(degrees))
  drawn[(total == 0) | (total > _DEGREES_OF_FIELD)] = 0
  count, made = len(volume.images), []
  for place, image in enumerate(volume.images):
    across = legendre.legvander(np.array([(2 * place + 1) / count - 1]), degrees - 1)[0]
    rows, columns = (
        legendre.legvander((2 * np.arange(size) + 1) / size - 1, degrees - 1)
        for size in image.shape[:2]
    )
    made.append((rows @ (drawn @ across) @ columns.T).astype(np.float32))
  tissue = [image[..., channel] > _TISSUE for image in volume.images]
  if not any(one.any() for one in tissue):
    tissue = [np.ones(one.shape, bool) for one in tissue]
  pairs = list(zip(made, tissue, strict=True))
  low = min(float(one[seen].min()) for one, seen in pairs if seen.any())
  high = max(float(one[seen].max()) for one, seen in pairs if seen.any())
  # Where there is air the polynomials may run on; a gain there is of no concern.
  span = high - low or 1.0
  return [np.clip((one - low) / span - 0.5, -0.5, 0.5) for one in made]


class Noise(Disturbance):
  """White noise, in magnitude images of MRI with Rice's distribution."""

  name, title = "noise", "Noise"
  what = (
      "White noise, each channel its own; in MRI that of a magnitude image (Rician), else Gaussian."
      " The strength is its deviation as a share of the window of 255 grey values; SNR is the mean"
      " of the labelled foreground over that deviation."
  )
  strengths = (0.02, 0.04, 0.08, 0.12, 0.18, 0.26)

  def unit(self, setting: Setting) -> str:
    return "of the window"

  def apply(self, volume: LabelledVolume, strength: float, setting: Setting) -> Disturbed:
    sigma = np.float32(255 * strength)
    magnitude = setting.windowed[0] and not setting.is_ct
    values = []
    for place, image in enumerate(volume.images):
      draw = generator(volume, self.name, place)
      noisy = image + sigma * draw.standard_normal(image.shape, np.float32)
      if magnitude:
        noisy = np.hypot(noisy, sigma * draw.standard_normal(image.shape, np.float32))
      values.append(noisy)
    return _changed(volume, values, setting)


class Blur(Disturbance):
  """A Gaussian point spread within slices."""

  name, title = "blur", "Blur"
  what = (
      "Slices are convolved with a Gaussian. The strength is its full width at half maximum, within"
      " slices."
  )
  strengths = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0)

  def unit(self, setting: Setting) -> str:
    return setting.length_unit

  def apply(self, volume: LabelledVolume, strength: float, setting: Setting) -> Disturbed:
    sigmas = [strength / _FWHM / edge for edge in setting.edges(volume)]
    values = [
        ndimage.gaussian_filter(image.astype(np.float32), (*sigmas, 0), mode="nearest")
        for image in volume.images
    ]
    return _changed(volume, values, setting)


class Gamma(Disturbance):
  """A change of contrast: grey values, as shares of the window, to a power."""

  neutral = 1.0

  def against(self, setting: Setting) -> str:
    return _not_in_ct(setting)

  def apply(self, volume: LabelledVolume, strength: float, setting: Setting) -> Disturbed:
    table = np.rint(255 * (np.arange(256) / 255) ** strength).astype(np.uint8)
    return Disturbed([table[image] for image in volume.images], spacing_of(volume))


class Darker(Gamma):
  """Gamma above 1."""

  name, title = "gamma_dark", "Gamma, darker"
  what = "Grey values, as shares of the window, are raised to a power above 1: the strength."
  strengths = (1.15, 1.3, 1.5, 1.8, 2.2, 3.0)


class Brighter(Gamma):
  """Gamma below 1."""

  name, title = "gamma_bright", "Gamma, brighter"
  what = "Grey values, as shares of the window, are raised to a power below 1: the strength."
  strengths = (0.87, 0.77, 0.67, 0.55, 0.45, 0.33)
