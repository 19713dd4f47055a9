"""What happens to the grey values: uneven gain, tone, focus, resolution, noise. Labels stay.

Images are uint8 [B, H, W, C] in and out; all channels of an example get the same change, so that
a grey image repeated over three channels stays grey. Channels that are scans of their own come here
one by one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import tensorflow as tf

from flexunet.pipelines import tf_data
from flexunet.pipelines.augmentation import draws
from flexunet.pipelines.augmentation.config import AugmentationConfig
from flexunet.pipelines.augmentation.spatial import Window, in_window, where_drawn

# Control points of the bias field along each axis: it varies as slowly as a coil's sensitivity.
_BIAS_POINTS = 5
_SHARPENING_SIGMA = 1.0
# A Gaussian beyond three widths is below a grey level of 255.
_REACH = 3.0


class View(NamedTuple):
  """What an image is of that is a part of a slice.

  Attributes:
    window: Its pixels in the slice.
    whole_hw: (height, width) of the slice.
    stored: uint8 [B, H, W, C], the slice before any change. Contrast is changed about its mean:
      a property of the scan, wherever a part of it lies.
    label: uint8 [B, H, W], of that slice.
    margin: Pixels along each edge that only serve their neighbours and are cut off.
  """

  window: Window
  whole_hw: tuple[int, int]
  stored: tf.Tensor
  label: tf.Tensor
  margin: int = 0


def reach(config: AugmentationConfig) -> int:
  """Returns from how many pixels away a grey value may come, for any draw of a config."""
  blur, sharpening = config.blur_probability, config.sharpening_probability
  # One example is blurred or sharpened, never both.
  focus = max(
      reach_of(config.blur_sigma) if blur else 0,
      reach_of(_SHARPENING_SIGMA) if sharpening else 0,
  )
  coarse = math.ceil(config.low_resolution_factor) + 1
  mixed = bool(config.synthetic_share and config.synthetic_blur_sigma)
  return (
      focus
      + (coarse if config.low_resolution_probability else 0)
      + (reach_of(config.synthetic_blur_sigma) if mixed else 0)
  )


def change(
    config: AugmentationConfig,
    draw: draws.Draw,
    seeds: tf.Tensor,
    image: tf.Tensor,
    view: View | None = None,
) -> tf.Tensor:
  """Applies the drawn changes in the order in which a scanner makes them; noise comes last.

  A part of a slice is changed as it would be within the slice, with noise of its own; its margin
  is cut off.
  """
  def fused(change):
    return tf_data.fused(change, image)

  steps = {
      "bias_field": fused(lambda x: _bias_field(draw["bias_field"], seeds, x, view)),
      "tone": lambda x: fused(lambda x, mean: _tone(draw, x, mean))(
          x, _mean(x if view is None else view.stored)
      ),
      "blur": fused(lambda x: _blurred(draw["blur"], config.blur_sigma, x)),
      "sharpening": fused(lambda x: _sharper(draw["sharpening"], x)),
      # Copies of whole rows, which XLA does no faster.
      "low_resolution": lambda x: _coarser(*_factors(draw), x, view),
      "noise": fused(lambda x: _noisy(draw["noise"], seeds, x)),
  }
  tone = (config.brightness_probability, config.contrast_probability, config.gamma_probability)
  probabilities = {
      "bias_field": config.bias_field_probability,
      "tone": max(tone),
      "blur": config.blur_probability,
      "sharpening": config.sharpening_probability,
      "low_resolution": config.low_resolution_probability,
      "noise": config.noise_probability,
  }
  drawn = draw.stages()
  for name, step in steps.items():
    if name == "noise" and view is not None and view.margin:
      inner = slice(view.margin, -view.margin)
      image = image[:, inner, inner]
    if probabilities[name]:
      (image,) = where_drawn(drawn[name], lambda x, step=step: [step(x)], (image,))
  return image


def _floats(image: tf.Tensor) -> tf.Tensor:
  return tf.cast(image, tf.float32)


def to_bytes(values: tf.Tensor) -> tf.Tensor:
  """Returns values rounded to the nearest grey value and saturated, uint8."""
  return tf.cast(tf.clip_by_value(values + 0.5, 0.0, 255.0), tf.uint8)


def _mean(image: tf.Tensor) -> tf.Tensor:
  """uint8 [B, H, W, C] -> float32 [B, 1, 1, 1]; not fused: XLA adds up one number at a time."""
  return tf.reduce_mean(_floats(image), axis=[1, 2, 3], keepdims=True)


def _each(values: tf.Tensor) -> tf.Tensor:
  """[B] -> [B, 1, 1, 1]."""
  return values[:, None, None, None]


def _tone(draw: draws.Draw, image: tf.Tensor, mean: tf.Tensor) -> tf.Tensor:
  """Brightness and its offset, then contrast about the mean grey, then gamma."""
  brightness, contrast = _each(1 + draw["brightness"]), _each(1 + draw["contrast"])
  offset = _each(255 * draw["brightness_shift"])
  # The mean grey moves with the offset, so that contrast leaves the offset as it is.
  slope, shift = brightness * contrast, mean * brightness * (1 - contrast) + offset
  # The logarithm of 0 is no number; that of 1e-6 ends as black as 0 for every exponent allowed.
  share = tf.clip_by_value((_floats(image) * slope + shift) * (1 / 255), 1e-6, 1.0)
  return to_bytes(255 * tf.exp(tf.math.log(share) * _each(tf.exp(draw["gamma"]))))


def _bias_field(
    strength: tf.Tensor, seeds: tf.Tensor, image: tf.Tensor, view: View | None
) -> tf.Tensor:
  """Multiplies by a smooth gain between exp(-strength) and exp(strength)."""
  whole_hw = image.shape[1:3] if view is None else view.whole_hw
  rows, columns = (draws.spline_basis(edge, _BIAS_POINTS) for edge in whole_hw)
  rows, columns = in_window(rows, columns, None if view is None else view.window)
  shape = [_BIAS_POINTS, _BIAS_POINTS]
  noise = 2 * draws.uniform_numbers(seeds, draws.BIAS_SALT, shape) - 1
  gain = tf.exp(draws.field(rows, noise * strength[:, None, None], columns))
  return to_bytes(_floats(image) * gain[..., None])


def gaussian_smoothed(values: tf.Tensor, sigma: tf.Tensor, largest: float) -> tf.Tensor:
  """Returns float32 [B, H, W, C] smoothed by sigma [B] <= largest; the border is a mirror."""
  reach = reach_of(largest)
  offsets = tf.range(-reach, reach + 1, dtype=tf.float32)
  # A width of 0 gives the weights 0 .. 1 .. 0.
  weights = tf.exp(-(offsets**2) / (2 * tf.maximum(sigma[:, None], 1e-3) ** 2))
  weights = tf.unstack(weights / tf.reduce_sum(weights, axis=1, keepdims=True), axis=1)
  for axis in (1, 2):
    padded = _mirrored(values, axis, reach)
    parts = []
    for index, weight in enumerate(weights):
      begin, size = [0] * 4, [-1] * 4
      begin[axis], size[axis] = index, values.shape[axis]
      parts.append(_each(weight) * tf.slice(padded, begin, size))
    values = tf.add_n(parts)
  return values


def reach_of(sigma: float) -> int:
  """Returns the pixels beyond which a Gaussian is not computed."""
  return max(1, math.ceil(_REACH * sigma))


def _mirrored(values: tf.Tensor, axis: int, reach: int) -> tf.Tensor:
  """Adds `reach` pixels on both sides of an axis; a mirror image cannot exceed what it mirrors."""
  while reach:
    more = min(reach, values.shape[axis])
    values = tf.pad(values, [[more * (dim == axis)] * 2 for dim in range(4)], "SYMMETRIC")
    reach -= more
  return values


def _blurred(sigma: tf.Tensor, largest: float, image: tf.Tensor) -> tf.Tensor:
  return to_bytes(gaussian_smoothed(_floats(image), sigma, largest))


def _sharper(amount: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
  """Adds the detail that a blur of one pixel would take away (unsharp masking)."""
  values = _floats(image)
  sigma = tf.fill(tf.shape(amount), _SHARPENING_SIGMA)
  detail = values - gaussian_smoothed(values, sigma, _SHARPENING_SIGMA)
  return to_bytes(values + _each(amount) * detail)


def _factors(draw: draws.Draw) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns by how much rows and columns become fewer, each [B]."""
  factor, skew = draw["low_resolution"], draw["low_resolution_skew"]
  return tf.exp(factor * (1 - tf.nn.relu(-skew))), tf.exp(factor * (1 - tf.nn.relu(skew)))


def _coarser(
    fewer_rows: tf.Tensor, fewer_columns: tf.Tensor, image: tf.Tensor, view: View | None
) -> tf.Tensor:
  """Picks every factor-th row and column and interpolates between them."""
  values = _floats(image)
  lines = [_Line(tf.range(edge, dtype=tf.float32)[None], edge) for edge in image.shape[1:3]]
  if view is not None:
    window = view.window
    lines = [
        _Line(pixels, edge, first)
        for pixels, edge, first in zip(
            (window.rows, window.columns), view.whole_hw, tf.unstack(window.first, axis=1),
            strict=True,
        )
    ]  # fmt: skip
  # Rows are fetched whole, so columns are made rows meanwhile.
  values = tf.transpose(_coarser_rows(fewer_rows, values, lines[0]), [0, 2, 1, 3])
  return to_bytes(tf.transpose(_coarser_rows(fewer_columns, values, lines[1]), [0, 2, 1, 3]))


class _Line(NamedTuple):
  """The pixels along an axis: float32 [1 or B, n], of a slice so long, from `first` [B] on."""

  pixels: tf.Tensor
  length: int
  first: tf.Tensor | None = None


def _coarser_rows(factor: tf.Tensor, values: tf.Tensor, line: _Line) -> tf.Tensor:
  length = line.length
  factor = factor[:, None]
  place = (line.pixels + 0.5) / factor - 0.5
  lower = tf.floor(place)
  last = tf.math.ceil(length / factor - 0.5) - 1

  def picked(number):
    """The pixel of the full grid that stands for a pixel of the coarse one."""
    index = tf.floor((tf.clip_by_value(number, 0.0, last) + 0.5) * factor)
    index = tf.clip_by_value(index, 0.0, length - 1.0)
    if line.first is not None:  # Within the margin it may lie outside of what is there.
      index = tf.clip_by_value(index - line.first[:, None], 0.0, values.shape[1] - 1.0)
    return tf.cast(index, tf.int32)

  share = (place - lower)[:, :, None, None]
  before = tf.gather(values, picked(lower), axis=1, batch_dims=1)
  after = tf.gather(values, picked(lower + 1), axis=1, batch_dims=1)
  return before + (after - before) * share


def _noisy(deviation: tf.Tensor, seeds: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
  shape = [image.shape[1], image.shape[2], 1]
  noise = draws.normal_numbers(seeds, draws.NOISE_SALT, shape)
  return to_bytes(_floats(image) + noise * _each(255 * deviation))
