"""Where each pixel comes from: mirror images, turns, and all other geometry in one resampling.

Images are uint8 [B, H, W, C], labels uint8 [B, H, W]. Coordinates are pixel centres, (row,
column), row 0 on top. Images are interpolated bilinearly, labels are picked from the nearest
pixel, both by one grid; what comes from outside is 0, the background.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from flexunet.pipelines import tf_data
from flexunet.pipelines.augmentation import draws, sampling
from flexunet.pipelines.augmentation.config import AugmentationConfig


def turn_and_flip(
    config: AugmentationConfig, draw: draws.Draw, image: tf.Tensor, label: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
  """Turns counter-clockwise by right angles, then mirrors: pixels move, none is interpolated."""
  pair = (image, label)
  odd, flip_y, flip_x = turns(config, draw, square=image.shape[1] == image.shape[2])
  if odd is not None:
    pair = where_drawn(odd, _transposed, pair)
  if flip_y is not None:
    pair = where_drawn(flip_y, lambda *pair: [_reverse(x, 1) for x in pair], pair)
  if flip_x is not None:
    pair = where_drawn(flip_x, lambda *pair: [_reverse(x, 2) for x in pair], pair)
  return pair


def turns(
    config: AugmentationConfig, draw: draws.Draw, *, square: bool
) -> tuple[tf.Tensor | None, tf.Tensor | None, tf.Tensor | None]:
  """Returns which examples are transposed, then mirrored top to bottom, then left to right.

  Each is bool [B]; None where the config never does it.
  """
  stages = draw.stages()
  odd, flip_y, flip_x = None, stages["flip_vertical"], stages["flip_horizontal"]
  if config.right_angle_probability:
    # One turn is a transposition and a vertical flip, two are both flips, three are a
    # transposition and a horizontal flip.
    quarters = tf.floor(draw["quarter_turns"])
    if square:
      odd = tf.equal(quarters, 1) | tf.equal(quarters, 3)
    flip_y = tf.not_equal(flip_y, tf.equal(quarters, 1) | tf.equal(quarters, 2))
    flip_x = tf.not_equal(flip_x, quarters > 1.5)
    return odd, flip_y, flip_x
  return (
      None,
      flip_y if config.flip_vertical_probability else None,
      flip_x if config.flip_horizontal_probability else None,
  )


def where_drawn(
    drawn: tf.Tensor, change: Callable, pixels: tuple[tf.Tensor, ...]
) -> tuple[tf.Tensor, ...]:
  """Applies `change` to those examples of the batch for which `drawn` [B] is true.

  Costs nothing where no example of the batch is.

  Args:
    drawn: bool [B].
    change: Takes and returns as many tensors [B, ...] as `pixels` has.
    pixels: Tensors [B, ...].
  """
  if drawn.shape[0] == 1:
    return tf.cond(tf.reshape(drawn, []), lambda: tuple(change(*pixels)), lambda: pixels)

  def some():
    masks = [tf.reshape(drawn, [-1] + [1] * (x.shape.rank - 1)) for x in pixels]
    return tuple(tf.where(m, c, x) for m, c, x in zip(masks, change(*pixels), pixels))

  return tf.cond(tf.reduce_any(drawn), some, lambda: pixels)


def _transposed(image: tf.Tensor, label: tf.Tensor) -> list[tf.Tensor]:
  # By way of float32: for bytes oneDNN writes a line on standard error that it has no kernel.
  image, label = tf.cast(image, tf.float32), tf.cast(label, tf.float32)
  image, label = tf.transpose(image, [0, 2, 1, 3]), tf.transpose(label, [0, 2, 1])
  return [tf.cast(image, tf.uint8), tf.cast(label, tf.uint8)]


def _reverse(pixels: tf.Tensor, axis: int) -> tf.Tensor:
  if pixels.shape[-1] == 1 and pixels.shape.rank == 4:
    # Without the last axis TensorFlow takes its fast path.
    return tf.reverse(pixels[..., 0], [axis])[..., None]
  return tf.reverse(pixels, [axis])


def warp(
    config: AugmentationConfig,
    draw: draws.Draw,
    seeds: tf.Tensor,
    image: tf.Tensor,
    label: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
  """Applies all other geometry of the draw in one resampling."""
  if not can_warp(config):
    return image, label

  size_hw = (image.shape[1], image.shape[2])

  def resample(image, label, bends):
    def places():
      return sampling.places(*source_grid(config, draw, seeds, size_hw, bends), size_hw)

    def sample(image, label, where):
      return sampling.sample_linear(image, where), sampling.sample_nearest(label, where)

    def border(image, label):
      return sampling.with_border(image), sampling.with_border(label[..., None])

    where = tf_data.fused(places, image)()
    bordered = tf_data.fused(border, image)(image, label)
    image, label = tf_data.fused(sample, image)(*bordered, where)
    return image, label[..., 0]

  straight = functools.partial(resample, bends=False)
  bent = functools.partial(resample, bends=True)
  stages = draw.stages()

  def change(image, label):
    if not can_bend(config):
      return straight(image, label)
    return tf.cond(
        tf.reduce_any(stages["bend"]), lambda: bent(image, label), lambda: straight(image, label)
    )

  return where_drawn(stages["warp"], change, (image, label))


def can_warp(config: AugmentationConfig) -> bool:
  """Returns whether the config ever moves pixels in the resampling."""
  straight = (
      config.rotation_probability,
      config.scale_probability,
      config.shear_probability,
      config.translation_probability,
  )
  return any(straight) or can_bend(config)


def can_bend(config: AugmentationConfig) -> bool:
  """Returns whether the config ever bends straight lines."""
  return any(_bends(config).values())


class Window(NamedTuple):
  """Which pixels of a changed slice are computed: a rectangle of each example's own.

  Attributes:
    rows: float32 [B, h], whole numbers within the slice.
    columns: float32 [B, w].
    first: float32 [B, 2], (row, column) of the first pixel; a row or column outside of the slice
      stands for the one within that a mirror at the border shows there.
  """

  rows: tf.Tensor
  columns: tf.Tensor
  first: tf.Tensor


def source_grid(
    config: AugmentationConfig,
    draw: draws.Draw,
    seeds: tf.Tensor,
    size_hw: tuple[int, int],
    bends: bool = True,
    window: Window | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns float32 rows and columns [B, H, W]: where each pixel of the result comes from.

  `bends` False leaves out elastic, distortion and lens, for draws that have none. With a window
  [B, h, w]: of its pixels alone, as they are in the whole.
  """
  height, width = size_hw
  y, x = offsets(config, draw, seeds, size_hw, bends, window)
  (yy, yx, y0), (xy, xx, x0) = inverse_affine(draw, size_hw)
  rows = _column(yy) * y + (_column(yx) * x + _column(y0 + (height - 1) / 2))
  columns = _column(xx) * x + (_column(xy) * y + _column(x0 + (width - 1) / 2))
  return rows, columns


def offsets(
    config: AugmentationConfig,
    draw: draws.Draw,
    seeds: tf.Tensor,
    size_hw: tuple[int, int],
    bends: bool = True,
    window: Window | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns how far from the middle pixels lie once all is bent, as rows and columns.

  Float32 [B, H, W] or what broadcasts to it; arguments as of `source_grid`.
  """
  height, width = size_hw
  # Offsets from the middle; broadcast until something bends them.
  if window is None:
    y = tf.range(height, dtype=tf.float32)[None, :, None] - (height - 1) / 2
    x = tf.range(width, dtype=tf.float32)[None, None, :] - (width - 1) / 2
  else:
    y = window.rows[:, :, None] - (height - 1) / 2
    x = window.columns[:, None, :] - (width - 1) / 2
    height, width = window.rows.shape[1], window.columns.shape[1]
  if bends and can_bend(config):
    y = tf.broadcast_to(y, [seeds.shape[0] or tf.shape(seeds)[0], height, width])
    x = tf.broadcast_to(x, tf.shape(y))
    for bend, probability in _bends(config).items():
      if probability:
        y, x = _BENDS[bend](config, draw, seeds, size_hw, y, x, window)
  return y, x


def in_window(
    rows: np.ndarray, columns: np.ndarray, window: Window | None
) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns the bases of a field, [H, n] and [W, m], at the pixels of a window, [B, h or w, n].

  As they are without a window. `draws.field` makes the field of them.
  """
  if window is None:
    return rows, columns
  pixels = (tf.cast(one, tf.int32) for one in (window.rows, window.columns))
  return tuple(tf.gather(basis, one) for basis, one in zip((rows, columns), pixels, strict=True))


def _bends(config: AugmentationConfig) -> dict[str, float]:
  return {
      "elastic": config.elastic_probability,
      "distortion": config.distortion_probability,
      "lens": config.barrel_probability + config.pincushion_probability,
  }


def _column(values: tf.Tensor) -> tf.Tensor:
  return values[:, None, None]


def inverse_affine(
    draw: draws.Draw, size_hw: tuple[int, int]
) -> tuple[tuple[tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
  """Returns the rows ((yy, yx, y0), (xy, xx, x0)) of the map from result to source offsets.

  Forwards a pixel is sheared, rotated counter-clockwise as seen on the screen, scaled, shifted.
  """
  cos, sin = tf.cos(draw["rotation"]), tf.sin(draw["rotation"])
  shear_y, shear_x = draw["shear_y"], draw["shear_x"]
  # Rows grow downwards, so counter-clockwise is y' = cos y - sin x, x' = sin y + cos x; the
  # shear is y' = y + shear_y x, x' = x + shear_x y. Their product, inverted by hand:
  shrink = tf.exp(-draw["scale"]) / (1 - shear_y * shear_x)
  yy, yx = (cos + shear_y * sin) * shrink, (sin - shear_y * cos) * shrink
  xy, xx = (-sin - shear_x * cos) * shrink, (cos - shear_x * sin) * shrink
  down, right = draw["translation_y"] * size_hw[0], draw["translation_x"] * size_hw[1]
  return (yy, yx, -(yy * down + yx * right)), (xy, xx, -(xy * down + xx * right))


def _elastic(config, draw, seeds, size_hw, y, x, window):
  """Adds white noise smoothed by a Gaussian."""
  ratio = min(size_hw) / draws.REFERENCE_EDGE
  sigma = max(1.0, config.elastic_sigma * ratio)
  rows, columns = (draws.gaussian_basis(edge, sigma) for edge in size_hw)
  shape = [2, rows.shape[1], columns.shape[1]]
  # Uniform noise in -1..1 over its deviation, 1 / sqrt(3): the basis expects unit deviation.
  noise = (2 * draws.uniform_numbers(seeds, draws.ELASTIC_SALT, shape) - 1) * 3**0.5
  deviation = draws.smoothed_noise_deviation(config.elastic_sigma) * ratio
  numbers = noise * (draw["elastic"] * deviation)[:, None, None, None]
  return _shifted(y, x, rows, numbers, columns, window)


def _distortion(config, draw, seeds, size_hw, y, x, window):
  """Adds random shifts of a few control points, spread by cubic B-splines."""
  points = config.distortion_points
  rows, columns = (draws.spline_basis(edge, points) for edge in size_hw)
  noise = 2 * draws.uniform_numbers(seeds, draws.DISTORTION_SALT, [2, points, points]) - 1
  amount = draw["distortion"] * min(size_hw)
  return _shifted(y, x, rows, noise * amount[:, None, None, None], columns, window)


def _shifted(y, x, rows, numbers, columns, window):
  """Adds two fields of numbers [B, 2, n, m], one to the rows and one to the columns."""
  rows, columns = in_window(rows, columns, window)
  if window is not None:
    rows, columns = rows[:, None], columns[:, None]  # Both fields by one basis.
  shift = draws.field(rows, numbers, columns)
  return y + shift[:, 0], x + shift[:, 1]


def _lens(config, draw, seeds, size_hw, y, x, window):
  """Pulls the source towards a centre (barrel) or pushes it away (pincushion) within a circle."""
  del seeds, window
  radius = config.lens_radius * min(size_hw) / 2
  center_y, center_x = _column(draw["lens_y"] * size_hw[0]), _column(draw["lens_x"] * size_hw[1])
  from_y, from_x = y - center_y, x - center_x
  # 1 in the centre, 0 at the radius: what lies beyond does not move, and nothing tears.
  inside = tf.nn.relu(1 - (from_y * from_y + from_x * from_x) / radius**2)
  push = inside * _column(draw["pincushion"] - draw["barrel"])
  return y + from_y * push, x + from_x * push


_BENDS = {"elastic": _elastic, "distortion": _distortion, "lens": _lens}
