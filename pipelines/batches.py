"""From a built dataset to batches: the two streams that training and evaluation read.

A batch is a dict: `image` uint8 [B, h, w, channels], `label` uint8 [B, h, w], `record` int64 [B]
(row in the RecordTable), `valid` bool [B] (False for what only fills the last batch).
Casting, scaling and one-hot happen later, on the device: few bytes travel.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from flexunet.datasets.errors import InputError
from flexunet.pipelines.order import EpochOrder
from flexunet.pipelines.reading import RecordReader

if TYPE_CHECKING:
  import tensorflow as tf

  from flexunet.pipelines.record_table import RecordTable
  from flexunet.pipelines.resizing import Resizing
  from flexunet.pipelines.source import DatasetSource


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchSpec:
  """What every batch of a run looks like.

  Attributes:
    resizing: To the network's input size.
    batch_size: Examples per batch.
    image_channels: 1, or more to repeat grey images.
    image_key, label_key: Features of the dataset.
    threads: Parallel reads and decodes; 0 leaves it to tf.data.
  """

  resizing: Resizing
  batch_size: int
  image_channels: int = 1
  image_key: str = "image"
  label_key: str = "label"
  threads: int = 0


def training_batches(
    source: DatasetSource,
    table: RecordTable,
    spec: BatchSpec,
    order: EpochOrder,
    *,
    start_step: int = 0,
    num_steps: int | None = None,
) -> tf.data.Dataset:
  """Returns the batches of the endless training stream from `start_step` on.

  Starting anywhere costs nothing: positions are numbers, and nothing before them is read.

  Args:
    num_steps: Length of the stream; its cardinality is known. Default: one epoch.
  """
  import tensorflow as tf

  if order.num_records != len(table):
    raise ValueError(f"order is of {order.num_records} records, the table of {len(table)}.")
  num_steps = order.steps_per_epoch if num_steps is None else num_steps
  check_sizes(table, spec.resizing)
  load = _loader(source, table, spec)

  def example(position):
    row, _, _ = order.record_at(position)
    return {**load(row), "record": row, "valid": tf.constant(True)}

  first, last = start_step * spec.batch_size, (start_step + num_steps) * spec.batch_size
  return _batched(tf.data.Dataset.range(first, last), example, spec)


def evaluation_batches(
    source: DatasetSource, table: RecordTable, spec: BatchSpec
) -> tf.data.Dataset:
  """Returns every record once, in file order; the last batch is filled up and marked invalid."""
  import tensorflow as tf

  check_sizes(table, spec.resizing)
  load = _loader(source, table, spec)
  count = len(table)

  def example(position):
    row = tf.minimum(position, count - 1)
    return {**load(row), "record": row, "valid": position < count}

  filled = -(-count // spec.batch_size) * spec.batch_size
  return _batched(tf.data.Dataset.range(filled), example, spec)


def check_sizes(table: RecordTable, resizing: Resizing) -> None:
  """Refuses records that do not fit the input size, before anything trains."""
  if len(table) and table.height.max() > 0:
    for row in (int(np.argmax(table.height)), int(np.argmax(table.width))):
      resizing.check(int(table.height[row]), int(table.width[row]), table.describe(row))


def to_channels(image: tf.Tensor, channels: int) -> tf.Tensor:
  """[..., C] -> [..., channels]: equal stays, grey is repeated, colour becomes grey first."""
  import tensorflow as tf

  have = image.shape[-1]
  if have == channels:
    return image
  if have == 3:
    image = tf.image.rgb_to_grayscale(image)
  elif have != 1:
    raise InputError(
        f"Images must have 1 or 3 channels, or --image_channels={have}. Got {have} channels and"
        f" --image_channels={channels}."
    )
  return tf.repeat(image, channels, axis=-1) if channels > 1 else image


def _loader(source: DatasetSource, table: RecordTable, spec: BatchSpec):
  """Returns row -> {"image", "label"} at the network's size."""
  reader = RecordReader(source.info.features, table, spec.image_key, spec.label_key)

  def load(row):
    decoded = reader.decode(reader.serialized(row))
    image = to_channels(decoded["image"], spec.image_channels)
    image = spec.resizing.apply_image(image[None])[0]
    label = spec.resizing.apply_label(decoded["label"][None])[0, ..., 0]
    return {"image": image, "label": label}

  return load


def _batched(positions: tf.data.Dataset, example, spec: BatchSpec) -> tf.data.Dataset:
  import tensorflow as tf

  calls = spec.threads or tf.data.AUTOTUNE
  return (
      positions.map(example, num_parallel_calls=calls, deterministic=True)
      .batch(spec.batch_size, drop_remainder=True)  # The length is a multiple: nothing is dropped.
      .prefetch(tf.data.AUTOTUNE)
  )
