"""The random part of the augmentation: from a seed to the numbers that say what happens.

Smooth random fields over the image are drawn here too, each a product of small matrices: no pass
over the pixels.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.special
import tensorflow as tf

from flexunet.pipelines.augmentation.config import AugmentationConfig


@dataclasses.dataclass(frozen=True)
class Parameter:
  """One number of a draw.

  Attributes:
    coin: Parameters with one coin are decided by the same toss.
    probability: That the parameter is not 0.
    low, high: Range of the uniform draw.
    tails: The other end of the coin, so that it excludes those of the first end.
  """

  coin: str
  probability: float
  low: float
  high: float
  tails: bool = False


def parameters(config: AugmentationConfig, square: bool = True) -> dict[str, Parameter]:
  """Returns every parameter of a resolved config, in a fixed order.

  Angles are radians, shifts are shares of height or width, scale, gamma and low_resolution are
  logarithms; `quarter_turns` is 1, 2 or 3 in its whole part. `low_resolution_skew` above 0 spares
  the columns, below 0 the rows. What is drawn "always" only says how, not whether.
  """
  angle = math.radians(config.rotation_degrees)
  shear = math.tan(math.radians(config.shear_degrees))
  shift, gamma = config.translation_fraction, math.log(config.gamma_max)
  center = config.lens_center_range
  lens = config.barrel_probability + config.pincushion_probability
  # Just short of the next whole number, which rounding could reach.
  turns = (1.0, 3.999) if square else (2.0, 2.999)
  low_resolution = math.log(config.low_resolution_factor)
  p = config
  synthetic = float(p.synthetic_share > 0)
  return {
      "flip_horizontal": Parameter("flip_x", p.flip_horizontal_probability, 1, 1),
      "flip_vertical": Parameter("flip_y", p.flip_vertical_probability, 1, 1),
      "quarter_turns": Parameter("turn", p.right_angle_probability, *turns),
      "rotation": Parameter("warp", p.rotation_probability, -angle, angle),
      "scale": Parameter("warp", p.scale_probability, math.log(p.scale_min), math.log(p.scale_max)),
      "shear_y": Parameter("warp", p.shear_probability, -shear, shear),
      "shear_x": Parameter("warp", p.shear_probability, -shear, shear),
      "translation_y": Parameter("warp", p.translation_probability, -shift, shift),
      "translation_x": Parameter("warp", p.translation_probability, -shift, shift),
      "elastic": Parameter("warp", p.elastic_probability, 0, p.elastic_alpha),
      "distortion": Parameter("warp", p.distortion_probability, 0, p.distortion_amount),
      "barrel": Parameter("lens", p.barrel_probability, 0, p.barrel_amount),
      "pincushion": Parameter("lens", p.pincushion_probability, 0, p.pincushion_amount, True),
      "lens_y": Parameter("always", min(lens, 1.0), -center, center),
      "lens_x": Parameter("always", min(lens, 1.0), -center, center),
      "bias_field": Parameter("bias", p.bias_field_probability, 0, p.bias_field_strength),
      "brightness": Parameter(
          "tone", p.brightness_probability, -p.brightness_change, p.brightness_change
      ),
      "contrast": Parameter("tone", p.contrast_probability, -p.contrast_change, p.contrast_change),
      "gamma": Parameter("tone", p.gamma_probability, -gamma, gamma),
      "blur": Parameter("focus", p.blur_probability, 0, p.blur_sigma),
      "sharpening": Parameter("focus", p.sharpening_probability, 0, p.sharpening_amount, True),
      "low_resolution": Parameter("resolution", p.low_resolution_probability, 0, low_resolution),
      "noise": Parameter("noise", p.noise_probability, 0, p.noise_std),
      "brightness_shift": Parameter(
          "tone", p.brightness_probability, -p.brightness_shift, p.brightness_shift
      ),
      "low_resolution_skew": Parameter(
          "always", float(p.low_resolution_probability > 0),
          -p.low_resolution_anisotropy, p.low_resolution_anisotropy,
      ),
      "synthetic": Parameter("synthetic", p.synthetic_share, 1, 1),
      "synthetic_by_class": Parameter("always", synthetic, 0, p.synthetic_by_class),
      "synthetic_texture": Parameter("always", synthetic, 0, p.synthetic_texture),
      "synthetic_blur": Parameter("always", synthetic, 0, p.synthetic_blur_sigma),
  }  # fmt: skip


# Their numbers stand before those of the parameters; a coin of later days stands behind.
_COINS = ("flip_x", "flip_y", "turn", "warp", "lens", "always", "bias", "tone", "focus",
          "resolution", "noise")  # fmt: skip
_LATER_COINS = ("synthetic",)


# What is computed together: a stage runs where any of its parameters is not 0.
STAGES: dict[str, tuple[str, ...]] = {
    "flip_horizontal": ("flip_horizontal",),
    "flip_vertical": ("flip_vertical",),
    "quarter_turns": ("quarter_turns",),
    "warp": ("rotation", "scale", "shear_y", "shear_x", "translation_y", "translation_x",
             "elastic", "distortion", "barrel", "pincushion"),
    # A part of "warp" that costs more than straight lines do.
    "bend": ("elastic", "distortion", "barrel", "pincushion"),
    "bias_field": ("bias_field",),
    "tone": ("brightness", "brightness_shift", "contrast", "gamma"),
    "blur": ("blur",),
    "sharpening": ("sharpening",),
    "low_resolution": ("low_resolution",),
    "noise": ("noise",),
    "synthetic": ("synthetic",),
}  # fmt: skip


class Draw:
  """The drawn numbers: one tensor, named parameter by parameter.

  One tensor, because each small operation costs microseconds per example: parameters are cut out
  only where they are used, inside the branch that is taken.
  """

  def __init__(self, names: Sequence[str], values: tf.Tensor):
    """Takes float32 [B, len(names)]."""
    self.names = tuple(names)
    self.values = values

  def __getitem__(self, name: str) -> tf.Tensor:
    """Returns float32 [B]."""
    return self.values[:, self.names.index(name)]

  def with_values(self, name: str, values: tf.Tensor) -> Draw:
    """Returns the draw with other values [B] of one parameter."""
    columns = [values if one == name else self[one] for one in self.names]
    return Draw(self.names, tf.stack(columns, axis=1))

  def stages(self) -> dict[str, tf.Tensor]:
    """Returns {stage: bool [B], whether anything of it was drawn}."""
    belongs = np.array([[n in stage for stage in STAGES.values()] for n in self.names], np.float32)
    drawn = tf.matmul(tf.cast(tf.not_equal(self.values, 0), tf.float32), belongs) > 0
    return dict(zip(STAGES, tf.unstack(drawn, axis=1), strict=True))


def draw(config: AugmentationConfig, size_hw: tuple[int, int], seeds: tf.Tensor) -> Draw:
  """Draws the parameters of each example.

  Args:
    config: A resolved config.
    size_hw: (height, width) in pixels; a turn by 90 degrees keeps the shape of squares only.
    seeds: int32 [B, 2].

  Returns:
    The numbers of B examples.
  """
  table = parameters(config, square=size_hw[0] == size_hw[1])
  values = table.values()
  low = np.array([v.low for v in values], np.float32)
  span = np.array([v.high for v in values], np.float32) - low
  # One vector of uniform numbers per example. The coins come first and the order is fixed, so
  # that switching one transformation on or off does not change what the others do.
  uniform = uniform_numbers(seeds, _DRAW_SALT, [len(_COINS) + len(low)])
  tosses, amounts = uniform[:, : len(_COINS)], uniform[:, len(_COINS) :]
  # A stream of their own, so that the numbers of all others stay where they were.
  later = uniform_numbers(seeds, _LATER_COINS_SALT, [len(_LATER_COINS)])
  tosses, names = tf.concat([tosses, later], axis=1), [*_COINS, *_LATER_COINS]
  # A coin's other end is 1 - u; as a sign and an offset it needs no branch.
  sign = np.array([-1 if v.tails else 1 for v in values], np.float32)
  coins = tf.gather(tosses, [names.index(v.coin) for v in values], axis=1) * sign + (sign < 0)
  tossed = coins < np.array([v.probability for v in values], np.float32)
  amounts = low + amounts * span
  return Draw(list(table), tf.where(tossed, amounts, tf.zeros_like(amounts)))


def by_hand(**amounts: float) -> Draw:
  """Returns the draw of one example with the given parameters; the others are left."""
  names = list(parameters(AugmentationConfig(augmentation="none").resolve()))
  if unknown := sorted(amounts.keys() - set(names)):
    raise ValueError(f"A draw has the parameters {names}. Got: {unknown}.")
  return Draw(names, tf.constant([[float(amounts.get(name, 0)) for name in names]]))


# Independent random streams of one example: the draw itself, and each random field.
_DRAW_SALT = 0x2545F491
ELASTIC_SALT = 0x1B873593
DISTORTION_SALT = 0x6C8E9CF5
BIAS_SALT = 0x38B34AE5
NOISE_SALT = 0x4F1BBCDC
_LATER_COINS_SALT = 0x5851F42D
LEVELS_SALT = 0x2C1B3C6D
TEXTURE_SALT = 0x297A2D39


def uniform_numbers(seeds: tf.Tensor, salt: int, shape: Sequence[int]) -> tf.Tensor:
  """Returns float32 [B, *shape], uniform in [0, 1), of each seed alone."""
  # 24 bits: as many as float32 holds.
  bits = tf.bitwise.right_shift(_random_bits(seeds, salt, shape), tf.constant(8, tf.uint32))
  return tf.cast(bits, tf.float32) * 2.0**-24


def normal_numbers(seeds: tf.Tensor, salt: int, shape: Sequence[int]) -> tf.Tensor:
  """Returns float32 [B, *shape], standard normal, of each seed alone.

  Looked up in a table of 65,536 quantiles, two for each random whole number: a fraction of the
  cost of logarithms and cosines, and to the last bit the same on every device. The largest is 4.3.
  """
  count = math.prod(shape)
  bits = _random_bits(seeds, salt, [-(-count // 2)])
  low = tf.bitwise.bitwise_and(bits, tf.constant(0xFFFF, tf.uint32))
  high = tf.bitwise.right_shift(bits, tf.constant(16, tf.uint32))
  quantiles = tf.constant(_normal_quantiles())
  both = tf.concat([tf.gather(quantiles, tf.cast(x, tf.int32)) for x in (low, high)], axis=1)
  return tf.reshape(both[:, :count], [-1, *shape])


@functools.cache
def _normal_quantiles() -> np.ndarray:
  return scipy.special.ndtri((np.arange(1 << 16) + 0.5) / (1 << 16)).astype(np.float32)


def _random_bits(seeds: tf.Tensor, salt: int, shape: Sequence[int]) -> tf.Tensor:
  """Returns uint32 [B, *shape] of each seed alone."""
  salted = tf.bitwise.bitwise_xor(tf.cast(seeds, tf.int32), tf.constant([0, salt], tf.int32))

  def bits(seed):
    # Whole numbers of a named generator: what TensorFlow makes of them in float32 differs between
    # its own kernels and XLA, and "auto" may pick another generator on another device.
    return tf.random.stateless_uniform(
        shape, seed, minval=None, maxval=None, dtype=tf.uint32, alg="philox"
    )

  if seeds.shape[0] is None:
    return tf.map_fn(bits, salted, fn_output_signature=tf.TensorSpec(shape, tf.uint32))
  if seeds.shape[0] == 1:
    return bits(salted[0])[None]
  return tf.stack([bits(seed) for seed in tf.unstack(salted)])


def describe(amounts: Mapping[str, float]) -> str:
  """Returns the parts of a draw that are not 0, in the order in which they are applied.

  Args:
    amounts: {parameter: number} of one example, as `parameters` names them.

  Returns:
    Letters, digits and `+-._` alone; "same" for a draw that changes nothing. Turns, rotation and
    shear are in degrees, counter-clockwise; shifts (down, right), brightness, its
    offset and contrast in percent.
  """

  def of(name: str) -> float:
    return float(amounts.get(name, 0.0))

  def percent(name: str) -> str:
    return f"{round(100 * of(name)):+03d}"

  def degrees(radians: float) -> str:
    return f"{round(math.degrees(radians)):+03d}"

  texts = {
      "synthetic": "synthetic",
      "quarter_turns": f"turn{90 * math.floor(of('quarter_turns'))}",
      "flip_vertical": "flipy",
      "flip_horizontal": "flipx",
      "rotation": "rot" + degrees(of("rotation")),
      "scale": f"scale{math.exp(of('scale')):.2f}",
      "shear_y": "sheary" + degrees(math.atan(of("shear_y"))),
      "shear_x": "shearx" + degrees(math.atan(of("shear_x"))),
      "translation_y": "down" + percent("translation_y"),
      "translation_x": "right" + percent("translation_x"),
      "elastic": f"elastic{of('elastic'):.0f}",
      "distortion": f"distort{of('distortion'):.3f}",
      "barrel": f"barrel{of('barrel'):.2f}",
      "pincushion": f"pincushion{of('pincushion'):.2f}",
      "bias_field": f"bias{of('bias_field'):.2f}",
      "brightness": "bright" + percent("brightness"),
      "brightness_shift": "offset" + percent("brightness_shift"),
      "contrast": "contrast" + percent("contrast"),
      "gamma": f"gamma{math.exp(of('gamma')):.2f}",
      "blur": f"blur{of('blur'):.2f}",
      "sharpening": f"sharp{of('sharpening'):.2f}",
      "low_resolution": f"lowres{math.exp(of('low_resolution')):.1f}",
      "noise": f"noise{of('noise'):.3f}",
  }
  return "_".join(text for name, text in texts.items() if of(name)) or "same"


def is_same(amounts: Mapping[str, float]) -> bool:
  """Returns whether the draw changes nothing; what only says how is no change by itself."""
  return describe(amounts) == "same"


# Elastic strength and width are stated for images of this edge and scale with the image.
REFERENCE_EDGE = 512


@functools.lru_cache(32)
def spline_basis(length: int, points: int) -> np.ndarray:
  """Returns float32 [length, points]: uniform cubic B-splines whose weights sum to 1."""
  # The outer control points lie one interval outside, so that the basis covers the whole axis.
  position = np.linspace(0, points - 3, length)[:, None] + 1 - np.arange(points)
  distance = np.abs(position)
  inner = 2 / 3 - distance**2 + distance**3 / 2
  outer = np.clip(2 - distance, 0, None) ** 3 / 6
  return np.where(distance < 1, inner, outer).astype(np.float32)


@functools.lru_cache(32)
def gaussian_basis(length: int, sigma: float) -> np.ndarray:
  """Returns float32 [length, n]: Gaussians of width `sigma` pixels on a lattice of half of it.

  Weighted by white noise they give what smoothing a full image of white noise gives: a field of
  the same covariance, and of unit deviation for noise of unit deviation.
  """
  pitch = max(1.0, sigma / 2)
  # Noise from three widths outside still reaches the border.
  reach = math.ceil(3 * sigma / pitch)
  centers = np.arange(-reach, math.ceil((length - 1) / pitch) + reach + 1) * pitch
  weight = np.exp(-((np.arange(length)[:, None] - centers) ** 2) / (2 * sigma**2))
  return (weight / np.sqrt((weight**2).sum(1, keepdims=True))).astype(np.float32)


def smoothed_noise_deviation(sigma: float) -> float:
  """Returns the deviation of uniform noise in -1..1 after a 2-D Gaussian of `sigma` pixels."""
  # Noise variance 1/3; the squared weights of the Gaussian sum to 1 / (4 pi sigma^2).
  return math.sqrt(1 / 3 / (4 * math.pi)) / sigma


def field(rows: np.ndarray, numbers: tf.Tensor, columns: np.ndarray) -> tf.Tensor:
  """[H, n], [..., n, m], [W, m] -> [..., H, W]."""
  return tf.matmul(tf.matmul(rows, numbers), columns, transpose_b=True)
