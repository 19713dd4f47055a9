"""Patches of slices to train on, drawn around foreground or anywhere: a function of the position.

A slice is taken as caches keep it, at the network's frame. The order says for each position of a
batch what its patch is centred around (`EpochOrder.targets_at`), its seed everything else: which
pixel of that class, where in the patch the pixel lies, and how the slice is augmented. The slice
itself is never resampled: a patch is computed at its own pixels (`augmentation/patch.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from flexunet.imaging.label_scheme import IGNORED
from flexunet.pipelines import tf_data
from flexunet.pipelines.augmentation import draws, patch
from flexunet.pipelines.augmentation.config import AugmentationConfig
from flexunet.pipelines.order import ANYWHERE
from flexunet.pipelines.record_table import RecordTable
from flexunet.pipelines.resizing import Resizing

# Its random numbers are those of no augmentation.
_PATCH_SALT = 0x7A3D90E1
# Of a patch that may lie anywhere, the middle keeps this share of its edge from the border of the
# slice: with a half, pixels at the border would hardly ever be seen.
_MIDDLE_FROM_BORDER = 0.25


@dataclasses.dataclass(frozen=True, eq=False)
class PatchSampler:
  """Draws one patch of each slice of a batch.

  Attributes:
    size_hw: (height, width) of the patches; along an axis where the slice is smaller, zeros
      surround it.
    content: int32 [N, 4], (top, left, height, width) of each row's slice in its frame: patches that
      may lie anywhere are not drawn in the border around it.
    augmentation: Resolved; None: slices are not augmented.
    separate_channels: As of `augment.augment_batch`.
  """

  size_hw: tuple[int, int]
  content: np.ndarray
  augmentation: AugmentationConfig | None = None
  separate_channels: bool = False

  def plain(self) -> PatchSampler:
    """Returns the same without augmentation."""
    return dataclasses.replace(self, augmentation=None)

  def __call__(
      self, images: tf.Tensor, labels: tf.Tensor, entries: Mapping[str, tf.Tensor]
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the patches of a batch.

    Args:
      images: uint8 [B, H, W, C]; H, W and C static.
      labels: uint8 [B, H, W]; may hold `IGNORED`.
      entries: {"seed": int32 [B, 2], "target": int32 [B], "content": int32 [B, 4]}, as
        `batches.step_entries` gives them.

    Returns:
      (images uint8 [B, h, w, C], labels uint8 [B, h, w]).
    """
    return tf_data.plain_graph(self._drawn)(images, labels, entries)

  def example(
      self, image: tf.Tensor, label: tf.Tensor, entry: Mapping[str, tf.Tensor]
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the patch of one example, [h, w, C] and [h, w]."""
    one = {name: entry[name][None] for name in ("seed", "target", "content")}
    images, labels = self(image[None], label[None], one)
    return images[0], labels[0]

  def _drawn(self, images, labels, entries):
    images, labels = tf.convert_to_tensor(images), tf.convert_to_tensor(labels)
    whole_hw = images.shape[1], images.shape[2]
    inner_hw = min(self.size_hw[0], whole_hw[0]), min(self.size_hw[1], whole_hw[1])
    seeds = entries["seed"]
    draw = None
    points, distance = self._points(labels, entries)
    if self.augmentation is not None:
      draw = draws.draw(self.augmentation, whole_hw, seeds)
      points = patch.landing(self.augmentation, draw, seeds, points, whole_hw)
    last = tf.constant([whole - inner for whole, inner in zip(whole_hw, inner_hw)], tf.float32)
    corners = tf.clip_by_value(tf.round(points - distance), 0.0, last)
    if self.augmentation is None:
      window = patch.window_at(corners, inner_hw, whole_hw)
      images = patch.cut_out(images, window)
      labels = patch.cut_out(labels[..., None], window)[..., 0]
    else:
      images, labels = patch.change(
          self.augmentation, draw, images, labels, seeds, corners, inner_hw,
          self.separate_channels,
      )  # fmt: skip
    return self._surrounded(images), self._surrounded(labels)

  def _points(self, labels, entries):
    """Returns (points float32 [B, 2] of the stored slices, their distance from the first pixel).

    A point is (row, column), and its distance how far below and to the right of the first pixel
    of the patch it is to lie, float32 [B, 2].
    """
    numbers = draws.uniform_numbers(entries["seed"], _PATCH_SALT, [5])
    edges = tf.constant(self.size_hw, tf.float32)
    content = tf.cast(entries["content"], tf.float32)
    first, extent = content[:, :2], content[:, 2:]
    inset = tf.minimum(_MIDDLE_FROM_BORDER * edges, extent / 2)
    anywhere = first - 0.5 + inset + numbers[:, 1:3] * (extent - 2 * inset)
    middle = tf.broadcast_to((edges - 1) / 2, tf.shape(anywhere))
    targets = entries["target"]

    def around_foreground():
      found, points = pixel_of(labels, targets, numbers[:, 0])
      found = (found & (targets != ANYWHERE))[:, None]
      # Wherever in the patch: the network must not learn that structures lie in the middle.
      place = tf.floor(numbers[:, 3:5] * edges)
      return tf.where(found, points, anywhere), tf.where(found, place, middle)

    return tf.cond(
        tf.reduce_any(targets != ANYWHERE), around_foreground, lambda: (anywhere, middle)
    )

  def _surrounded(self, pixels):
    """Adds the zeros of patches larger than the slice."""
    missing = [edge - have for edge, have in zip(self.size_hw, pixels.shape[1:3], strict=True)]
    if not any(missing):
      return pixels
    around = [[space // 2, space - space // 2] for space in missing]
    return tf.pad(pixels, [[0, 0], *around, *[[0, 0]] * (pixels.shape.rank - 3)])


def pixel_of(
    labels: tf.Tensor, targets: tf.Tensor, numbers: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
  """Draws a pixel of a class of each slice, each with the same chance.

  Args:
    labels: uint8 [B, H, W].
    targets: int32 [B], the class; `order.ANY_CLASS`, or one that the slice lacks: any foreground.
    numbers: float32 [B], uniform in [0, 1).

  Returns:
    (whether there is one, bool [B]; its (row, column), float32 [B, 2]).
  """
  foreground = (labels > 0) & (labels != IGNORED)
  # A target that is no class has the id of no label that counts.
  of_class = tf.equal(labels, tf.cast(tf.maximum(targets, 0), tf.uint8)[:, None, None]) & foreground
  there = tf.reduce_any(of_class, axis=[1, 2])
  mask = tf.where(there[:, None, None], of_class, foreground)
  # Counts are whole numbers that float32 holds; int32 arithmetic has no kernel on a GPU.
  in_row = tf.reduce_sum(tf.cast(mask, tf.float32), axis=2)
  up_to_row = tf.cumsum(in_row, axis=1)
  total = up_to_row[:, -1]
  number = tf.minimum(tf.floor(numbers * total), total - 1)[:, None]
  passed = up_to_row <= number
  row = tf.reduce_sum(tf.cast(passed, tf.float32), axis=1)
  before = tf.reduce_sum(tf.where(passed, in_row, tf.zeros_like(in_row)), axis=1)[:, None]
  index = tf.cast(tf.minimum(row, labels.shape[1] - 1.0), tf.int32)
  up_to_column = tf.cumsum(
      tf.cast(tf.gather(mask, index, axis=1, batch_dims=1), tf.float32), axis=1
  )
  column = tf.reduce_sum(tf.cast(up_to_column <= number - before, tf.float32), axis=1)
  return total > 0, tf.stack([row, column], axis=1)


def content_boxes(table: RecordTable, resizing: Resizing) -> np.ndarray:
  """Returns where each row's slice lies in its frame, int32 [N, 4] (top, left, height, width).

  The whole frame where the size of a slice is unknown.
  """
  frame = np.array(resizing.image_size)
  native, number = np.unique(
      np.stack([table.height, table.width], axis=1), axis=0, return_inverse=True
  )
  inner = np.array([
      resizing.inner_size((height, width)) if min(height, width) > 0 else resizing.image_size
      for height, width in native.tolist()
  ]).reshape(-1, 2)
  boxes = np.concatenate([(frame - inner) // 2, inner], axis=1)
  return boxes[number.reshape(-1)].astype(np.int32)
