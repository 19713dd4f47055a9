"""Pixels at places between pixels: images are interpolated, labels are picked.

`places` computes which pixels, `sample_linear` and `sample_nearest` fetch them from images that
`with_border` has prepared. The three are compiled apart, on purpose: joined, XLA does the
arithmetic of the former pixel by pixel between the fetches instead of many pixels at once, which
costs more than the fetches.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

_BORDER = 1  # Pixels of 0 around the image: whatever lies outside is clipped to there.


class Places(NamedTuple):
  """Where the pixels of a result come from.

  Attributes:
    index: int32 [B, H, W], pixel above and to the left, in the flattened image with its border.
    down, right: float32 [B, H, W] in [0, 1), how far below and to the right of it.
    nearest: int32 [B, H, W], the nearest pixel, in the same numbers.
  """

  index: tf.Tensor
  down: tf.Tensor
  right: tf.Tensor
  nearest: tf.Tensor


def places(rows: tf.Tensor, columns: tf.Tensor, size_hw: tuple[int, int]) -> Places:
  """Takes float32 [B, H, W] rows and columns in pixel centres of an image of `size_hw`."""
  height, width = size_hw
  stride = width + 2 * _BORDER + 1  # One more, for the neighbour of the last.
  rows = tf.clip_by_value(rows, -1.0, float(height))
  columns = tf.clip_by_value(columns, -1.0, float(width))
  top, left = tf.floor(rows), tf.floor(columns)
  nearest = tf.floor(rows + 0.5), tf.floor(columns + 0.5)
  return Places(
      index=_flat_index(top, left, stride, height),
      down=rows - top,
      right=columns - left,
      nearest=_flat_index(*nearest, stride, height),
  )


def with_border(pixels: tf.Tensor) -> tf.Tensor:
  """uint8 [B, H, W, C] -> what is sampled from, with the zeros that lie outside."""
  around = [_BORDER, _BORDER + 1]
  return tf.pad(pixels, [[0, 0], around, around, [0, 0]])


def sample_linear(bordered: tf.Tensor, where: Places) -> tf.Tensor:
  """Result of `with_border` -> uint8 [B, H, W, C], rounded; outside is 0."""
  stride = bordered.shape[2]
  down, right = where.down[..., None], where.right[..., None]

  def neighbour(offset):
    return tf.cast(gather(bordered, where.index, offset), tf.float32)

  upper_left, upper_right = neighbour(0), neighbour(1)
  lower_left, lower_right = neighbour(stride), neighbour(stride + 1)
  above = upper_left + (upper_right - upper_left) * right
  below = lower_left + (lower_right - lower_left) * right
  return tf.cast(above + (below - above) * down + 0.5, tf.uint8)


def sample_nearest(bordered: tf.Tensor, where: Places) -> tf.Tensor:
  """Result of `with_border` -> uint8 [B, H, W, C]; outside is 0."""
  return gather(bordered, where.nearest)


def _flat_index(rows: tf.Tensor, columns: tf.Tensor, stride: int, height: int) -> tf.Tensor:
  """Whole rows and columns from -1 on -> index into an image padded by one pixel in front.

  Args:
    stride: Width of the padded image.
    height: That of the image itself.
  """
  if (height + 3) * stride >= 1 << 24:  # Above it float32 skips whole numbers.
    rows, columns = tf.cast(rows, tf.float64), tf.cast(columns, tf.float64)
  # Computed in floating point: int32 arithmetic has no kernel on a GPU.
  return tf.cast(rows * stride + (columns + (stride + 1)), tf.int32)


def gather(pixels: tf.Tensor, index: tf.Tensor, offset: int = 0) -> tf.Tensor:
  """[B, h, w, C], int32 [B, H, W] -> the pixels `offset` places behind, [B, H, W, C].

  The index counts the pixels of an image row by row.
  """
  _, height, width, channels = pixels.shape
  if pixels.shape[0] == 1:
    # Half the cost on a CPU: a lookup of single numbers without a batch to keep apart.
    flat = tf.reshape(pixels, [-1] if channels == 1 else [-1, channels])[offset:]
    found = tf.gather(flat, index)
    return found[..., None] if channels == 1 else found
  flat = tf.reshape(pixels, [-1, height * width, channels])[:, offset:]
  return tf.gather(flat, index, batch_dims=1)
