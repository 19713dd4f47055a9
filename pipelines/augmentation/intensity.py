"""What happens to the grey values: uneven gain, tone, focus, resolution, noise. Labels stay.

Images are uint8 [B, H, W, C] in and out; all channels of an example get the same change, so that
a grey image repeated over three channels stays grey. Channels that are scans of their own come here
one by one.
"""

from __future__ import annotations

import math

import tensorflow as tf

from flexunet.pipelines import tf_data
from flexunet.pipelines.augmentation import draws
from flexunet.pipelines.augmentation.config import AugmentationConfig
from flexunet.pipelines.augmentation.spatial import where_drawn

# Control points of the bias field along each axis: it varies as slowly as a coil's sensitivity.
_BIAS_POINTS = 5
_SHARPENING_SIGMA = 1.0
# A Gaussian beyond three widths is below a grey level of 255.
_REACH = 3.0


def change(
    config: AugmentationConfig, draw: draws.Draw, seeds: tf.Tensor, image: tf.Tensor
) -> tf.Tensor:
  """Applies the drawn changes in the order in which a scanner makes them; noise comes last."""
  def fused(change):
    return tf_data.fused(change, image)

  steps = {
      "bias_field": fused(lambda x: _bias_field(draw["bias_field"], seeds, x)),
      "tone": lambda x: fused(lambda x, mean: _tone(draw, x, mean))(x, _mean(x)),
      "blur": fused(lambda x: _blurred(draw["blur"], config.blur_sigma, x)),
      "sharpening": fused(lambda x: _sharper(draw["sharpening"], x)),
      # Copies of whole rows, which XLA does no faster.
      "low_resolution": lambda x: _coarser(*_factors(draw), x),
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


def _bias_field(strength: tf.Tensor, seeds: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
  """Multiplies by a smooth gain between exp(-strength) and exp(strength)."""
  rows, columns = (draws.spline_basis(edge, _BIAS_POINTS) for edge in image.shape[1:3])
  shape = [_BIAS_POINTS, _BIAS_POINTS]
  noise = 2 * draws.uniform_numbers(seeds, draws.BIAS_SALT, shape) - 1
  gain = tf.exp(draws.field(rows, noise * strength[:, None, None], columns))
  return to_bytes(_floats(image) * gain[..., None])


def gaussian_smoothed(values: tf.Tensor, sigma: tf.Tensor, largest: float) -> tf.Tensor:
  """Returns float32 [B, H, W, C] smoothed by sigma [B] <= largest; the border is a mirror."""
  reach = max(1, math.ceil(_REACH * largest))
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


def _coarser(fewer_rows: tf.Tensor, fewer_columns: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
  """Picks every factor-th row and column and interpolates between them."""
  values = _floats(image)
  # Rows are fetched whole, so columns are made rows meanwhile.
  values = tf.transpose(_coarser_rows(fewer_rows, values), [0, 2, 1, 3])
  return to_bytes(tf.transpose(_coarser_rows(fewer_columns, values), [0, 2, 1, 3]))


def _coarser_rows(factor: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
  length = values.shape[1]
  factor = factor[:, None]
  place = (tf.range(length, dtype=tf.float32)[None] + 0.5) / factor - 0.5
  lower = tf.floor(place)
  last = tf.math.ceil(length / factor - 0.5) - 1

  def picked(number):
    """The pixel of the full grid that stands for a pixel of the coarse one."""
    index = tf.floor((tf.clip_by_value(number, 0.0, last) + 0.5) * factor)
    return tf.cast(tf.clip_by_value(index, 0.0, length - 1.0), tf.int32)

  share = (place - lower)[:, :, None, None]
  before = tf.gather(values, picked(lower), axis=1, batch_dims=1)
  after = tf.gather(values, picked(lower + 1), axis=1, batch_dims=1)
  return before + (after - before) * share


def _noisy(deviation: tf.Tensor, seeds: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
  shape = [image.shape[1], image.shape[2], 1]
  noise = draws.normal_numbers(seeds, draws.NOISE_SALT, shape)
  return to_bytes(_floats(image) + noise * _each(255 * deviation))
