"""Cuts the empty air around a head or body away before an image comes to the network's size.

The box of a volume follows from its images alone, so it is the same in training, evaluation and
the prediction of an unlabelled scan. There is one box a volume: slices stay on their neighbours.

The rule, on stored uint8 (of several channels the brightest): a pixel is tissue when it is brighter
than a tenth of the volume's bright pixels (percentile 99.5). A row of a slice counts when more
than 1 % of its pixels, and more than 3, are tissue: specks of noise do not. The box is the union
over all slices of the rows and columns that count, and a margin of 3 % of the frame, at least 2
pixels. Where nothing counts, or slices differ in size, each slice keeps its full frame.

In one pass a slice leaves behind only, for each row and column, how bright the last pixel is that
would have to be tissue: what is tissue can be decided when the whole volume has been seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

_BRIGHT_PERMILLE = 995
_DARKER_BY = 10  # Air of MRI is noise of a few percent of the tissue; air of CT is 0.
_SPECK_PIXELS = 3
_MARGIN, _MARGIN_PIXELS = 0.03, 2


class Profile(NamedTuple):
  """What of a slice decides the box of its volume.

  Attributes:
    rows, columns: uint8 [H], [W]; a row holds tissue where this is brighter than the threshold.
    counts: int32 [256], pixels of each brightness.
  """

  rows: np.ndarray
  columns: np.ndarray
  counts: np.ndarray


def brightness_profile(image: tf.Tensor) -> Profile:
  """uint8 [H, W, C] -> its profile, as tensors; inside a tf.data graph or eagerly."""
  brightest = tf.reduce_max(tf.saturate_cast(image, tf.uint8), axis=-1)

  def faintest_needed(lines):
    length = tf.shape(lines)[1]
    needed = tf.minimum(tf.maximum(_SPECK_PIXELS, length // 100) + 1, length)
    return tf.math.top_k(lines, needed).values[:, -1]

  flat = tf.reshape(tf.cast(brightest, tf.int32), [-1])
  return Profile(
      rows=faintest_needed(brightest),
      columns=faintest_needed(tf.transpose(brightest)),
      counts=tf.math.bincount(flat, minlength=256, maxlength=256),
  )


class VolumeBox:
  """The box of one volume in the making, of constant size however many slices are added."""

  def __init__(self) -> None:
    self._rows: np.ndarray | None = None
    self._columns: np.ndarray | None = None
    self._counts = np.zeros(256, np.int64)
    self._one_size = True

  def add(self, one: Profile) -> None:
    """Adds the profile of a slice."""
    rows, columns, counts = (np.asarray(part) for part in one)
    if self._rows is None or self._columns is None:
      self._rows, self._columns = rows.copy(), columns.copy()
    elif (rows.shape, columns.shape) != (self._rows.shape, self._columns.shape):
      self._one_size = False
    else:
      np.maximum(self._rows, rows, out=self._rows)
      np.maximum(self._columns, columns, out=self._columns)
    self._counts += counts

  def box(self) -> np.ndarray | None:
    """Returns int32 (top, left, height, width); None: each slice keeps its frame."""
    if self._rows is None or self._columns is None or not self._one_size:
      return None
    cumulative = np.cumsum(self._counts) * 1000
    bright = int(np.searchsorted(cumulative, _BRIGHT_PERMILLE * self._counts.sum()))
    spans = []
    for line in (self._rows, self._columns):
      tissue = np.flatnonzero(line.astype(int) * _DARKER_BY > bright)
      if not tissue.size:
        return None
      margin = max(_MARGIN_PIXELS, round(_MARGIN * len(line)))
      spans.append((max(0, tissue[0] - margin), min(len(line), tissue[-1] + 1 + margin)))
    (top, bottom), (left, right) = spans
    return np.array([top, left, bottom - top, right - left], np.int32)


def volume_boxes(slices: Sequence[np.ndarray]) -> np.ndarray:
  """Returns int32 [N, 4] (top, left, height, width) for all slices [H, W(, C)] of one volume."""
  making = VolumeBox()
  frames = []
  for pixels in map(np.asarray, slices):
    frames.append((0, 0, *pixels.shape[:2]))
    making.add(brightness_profile(pixels if pixels.ndim == 3 else pixels[..., None]))
  boxes = np.array(frames, np.int32).reshape(-1, 4)
  if (box := making.box()) is not None:
    boxes[:] = box
  return boxes


def crop(pixels: Any, box: Any) -> Any:
  """[H, W, ...] -> [height, width, ...] of the box; arrays and tensors alike."""
  top, left, height, width = (box[place] for place in range(4))
  return pixels[top : top + height, left : left + width]


def uncrop(probability: np.ndarray, box: np.ndarray, frame: tuple[int, int]) -> np.ndarray:
  """float32 [height, width, classes] -> [H, W, classes]: outside the box all is background."""
  top, left, height, width = (int(edge) for edge in box)
  if (height, width) == tuple(frame):
    return probability
  whole = np.zeros((*frame, probability.shape[-1]), probability.dtype)
  whole[..., 0] = 1
  whole[top : top + height, left : left + width] = probability
  return whole
