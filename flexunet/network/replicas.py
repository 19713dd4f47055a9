"""Sums over the devices that share a batch, so that they train as one device would."""

from __future__ import annotations

from typing import Any

import keras


def several() -> bool:
  """Returns whether this is the part of a step of one among several devices."""
  return _context() is not None


def total(values: list[Any]) -> list[Any]:
  """Returns each tensor summed over all devices that share a batch; on one device as it is.

  The gradient of such a sum is the sum of the devices' gradients.

  Args:
    values: Of the same shapes on every device.
  """
  context = _context()
  return values if context is None else context.all_reduce("SUM", values)


def _context() -> Any:
  """Returns TensorFlow's context of a device that shares a batch, else None."""
  if keras.backend.backend() != "tensorflow":
    return None
  # Other backends do without TensorFlow.
  import tensorflow as tf

  context = tf.distribute.get_replica_context()
  return context if context is not None and context.num_replicas_in_sync > 1 else None
