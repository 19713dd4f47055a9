"""Pixels at places between pixels: images are interpolated, labels are picked.

Places are float32 rows and columns [B, H, W] in pixel centres; what lies outside is 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
  import tensorflow as tf


def sample_linear(image: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
  """uint8 [B, H, W, C], float32 [B, H, W] twice -> uint8 [B, H, W, C], rounded; outside is 0."""
  import tensorflow as tf

  height, width = image.shape[1], image.shape[2]
  # Beyond a border of one pixel everything is 0, so that far is far enough.
  rows = tf.clip_by_value(rows, -1.0, float(height))
  columns = tf.clip_by_value(columns, -1.0, float(width))
  top, left = tf.floor(rows), tf.floor(columns)
  down, right = (rows - top)[..., None], (columns - left)[..., None]
  padded = tf.pad(image, [[0, 0], [1, 2], [1, 2], [0, 0]])
  stride = width + 3
  index = _flat_index(top, left, stride, height)

  def neighbour(offset):
    return tf.cast(_gather(padded, index, offset), tf.float32)

  upper_left, upper_right = neighbour(0), neighbour(1)
  lower_left, lower_right = neighbour(stride), neighbour(stride + 1)
  above = upper_left + (upper_right - upper_left) * right
  below = lower_left + (lower_right - lower_left) * right
  return tf.cast(above + (below - above) * down + 0.5, tf.uint8)


def sample_nearest(label: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
  """uint8 [B, H, W], float32 [B, H, W] twice -> uint8 [B, H, W]; outside is 0."""
  import tensorflow as tf

  height, width = label.shape[1], label.shape[2]
  rows = tf.clip_by_value(tf.floor(rows + 0.5), -1.0, float(height))
  columns = tf.clip_by_value(tf.floor(columns + 0.5), -1.0, float(width))
  padded = tf.pad(label, [[0, 0], [1, 1], [1, 1]])[..., None]
  return _gather(padded, _flat_index(rows, columns, width + 2, height))[..., 0]


def _flat_index(rows: tf.Tensor, columns: tf.Tensor, stride: int, height: int) -> tf.Tensor:
  """Whole rows and columns from -1 on -> index into an image padded by one pixel in front.

  Args:
    stride: Width of the padded image.
    height: Of the image itself.
  """
  import tensorflow as tf

  if (height + 3) * stride >= 1 << 24:  # Above it float32 skips whole numbers.
    rows, columns = tf.cast(rows, tf.float64), tf.cast(columns, tf.float64)
  # Reckoned in floating point: int32 arithmetic has no kernel on a GPU.
  return tf.cast(rows * stride + (columns + (stride + 1)), tf.int32)


def _gather(pixels: tf.Tensor, index: tf.Tensor, offset: int = 0) -> tf.Tensor:
  """[B, h, w, C], int32 [B, H, W] -> the pixels `offset` places behind, [B, H, W, C]."""
  import tensorflow as tf

  _, height, width, channels = pixels.shape
  if pixels.shape[0] == 1:
    # Half the cost on a CPU: a lookup of single numbers without a batch to keep apart.
    flat = tf.reshape(pixels, [-1] if channels == 1 else [-1, channels])[offset:]
    found = tf.gather(flat, index)
    return found[..., None] if channels == 1 else found
  flat = tf.reshape(pixels, [-1, height * width, channels])[:, offset:]
  return tf.gather(flat, index, batch_dims=1)
