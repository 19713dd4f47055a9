"""How input pipelines run on the CPU: their threads, and changes of an example fused by XLA."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from flexunet.core import machine
from flexunet.datasets.records import shards

# One read call for most slices; a longer record costs further calls, a shorter one wasted bytes.
_READ_BYTES = 1 << 16


# Marks what stands in a `map` as it is: AutoGraph, which a `map` runs over all that it calls, has
# nothing to do where no `if` or `for` depends on a tensor, and takes a second or two before the
# first batch.
plain_graph = tf.autograph.experimental.do_not_convert


def default_threads() -> int:
  """Returns how many examples are read at a time: the cores are busy while some wait."""
  return 2 * machine.available_cpus()


def untuned(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """Returns the dataset without tf.data's tuning of threads and buffers.

  Its thread sleeps for up to a minute at a time, and releasing an iterator waits for it: a program
  would hang at its end, or after filling a cache.
  """
  options = tf.data.Options()
  options.autotune.enabled = False
  return dataset.with_options(options)


def fused(change: Callable, example: tf.Tensor) -> Callable:
  """Returns `change`, compiled by XLA where that pays: for one example in an input pipeline.

  XLA turns a dozen or so passes over the pixels into one loop, at a half to a fifth of the cost. It
  compiles when an example first needs the change, once per process and image size, in a fraction
  of a second.

  Args:
    change: Takes and returns tensors.
    example: [B, ...], what it will be given; only its batch size counts.
  """
  if example.shape[0] == 1 and not tf.executing_eagerly() and _can_compile():
    return tf.function(change, autograph=False, jit_compile=True)
  return change


@functools.cache
def _can_compile() -> bool:
  """Returns whether this TensorFlow can compile for the CPU; not every build of it can."""
  with tf.init_scope(), tf.device("CPU"):
    try:
      return bool(tf.function(lambda x: x + 1, jit_compile=True)(tf.constant(1.0)) == 2.0)
    except (tf.errors.OpError, ValueError):
      return False


def _record_at(file: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
  """Returns the bytes of the TFRecord that begins at a byte of a file, inside a tf.data graph.

  A wrong checksum is a DataLossError of that record alone.

  Args:
    file: Path, text [].
    offset: int64 [].
  """
  variant = tf.raw_ops.TFRecordDatasetV2(
      filenames=[file],
      compression_type="",
      buffer_size=tf.constant(_READ_BYTES, tf.int64),
      byte_offsets=[offset],
  )
  records = tf.data.experimental.from_variant(variant, tf.TensorSpec((), tf.string))
  return records.take(1).get_single_element()


def record_reader(
    files: Sequence[str], shard: np.ndarray, place: np.ndarray
) -> Callable[[tf.Tensor], tf.Tensor]:
  """Returns what maps a row, int64 [], to the bytes of its record, inside a tf.data graph.

  A damaged record is an error of TensorFlow, of that record alone.

  Args:
    files: Shards, all of one container.
    shard: int32 [N], index into `files`.
    place: int64 [N], of each row, as `datasets.records.shards` counts it.
  """
  shards_of, places = tf.constant(shard, tf.int32), tf.constant(place, tf.int64)
  if any(shards.container_of(file) == shards.ARRAY_RECORD for file in files):
    opened = shards.Shards(files)

    def payload(number: np.ndarray, position: np.ndarray) -> bytes:
      return bytes(opened.read(int(number), int(position)))

    def read(row: tf.Tensor) -> tf.Tensor:
      # TensorFlow has no operation for this container. A function of its arguments alone: calls
      # may run side by side where operations must be deterministic.
      found = tf.numpy_function(
          payload, [tf.gather(shards_of, row), tf.gather(places, row)], tf.string, stateful=False
      )
      return tf.ensure_shape(found, ())

    return read
  paths = tf.constant(np.asarray(files, str))
  return lambda row: _record_at(tf.gather(paths, tf.gather(shards_of, row)), tf.gather(places, row))
