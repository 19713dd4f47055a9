"""The next batches wait on the accelerator before the step asks for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
  import tensorflow as tf

_BATCHES_AHEAD = 2


def prefetch_to_device(batches: tf.data.Dataset) -> tf.data.Dataset:
  """Copies batches ahead to the GPU when there is exactly one; elsewhere returns them as they are.

  With several GPUs the distribution strategy of the trainer places each replica's part itself,
  and on a CPU the batches are where they are needed already. tf.data forgets how many batches
  there are when it copies to a device, and Keras then runs one step too many per epoch: the
  number is put back.
  """
  import tensorflow as tf

  gpus = tf.config.list_logical_devices("GPU")
  if len(gpus) != 1:
    return batches
  count = batches.cardinality()
  if count == tf.data.UNKNOWN_CARDINALITY:
    raise ValueError("The number of batches must be known before they are sent to a device.")
  on_device = batches.apply(tf.data.experimental.prefetch_to_device(gpus[0].name, _BATCHES_AHEAD))
  return on_device.apply(tf.data.experimental.assert_cardinality(count))
