"""How many examples are read at a time, and who decides it.

One loop over the pixels instead of one for each operation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from flexunet.core import machine

if TYPE_CHECKING:
  import tensorflow as tf


def default_threads() -> int:
  """Returns how many examples are read at a time: the cores are busy while some wait."""
  return 2 * machine.available_cpus()


def untuned(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """Returns the dataset without tf.data's tuning of threads and buffers.

  Its thread sleeps up to a minute between two looks, and whoever lets go of an iterator waits for
  it: a program that ends, or one that has filled a cache.
  """
  import tensorflow as tf

  options = tf.data.Options()
  options.autotune.enabled = False
  return dataset.with_options(options)


def fused(change: Callable, example: tf.Tensor) -> Callable:
  """Returns `change`, compiled by XLA where that pays: for one example in an input pipeline.

  XLA makes one loop of some dozen passes over the pixels, which costs a half to a fifth. It
  compiles when an example first needs the change, once a process and image size, in a fraction of
  a second.

  Args:
    change: Takes and returns tensors.
    example: [B, ...], what it will be given; only its batch size counts.
  """
  import tensorflow as tf

  if example.shape[0] == 1 and not tf.executing_eagerly() and _can_compile():
    return tf.function(change, autograph=False, jit_compile=True)
  return change


@functools.cache
def _can_compile() -> bool:
  """Tells whether this TensorFlow can compile for the CPU; not every build of it can."""
  import tensorflow as tf

  with tf.init_scope(), tf.device("CPU"):
    try:
      return bool(tf.function(lambda x: x + 1, jit_compile=True)(tf.constant(1.0)) == 2.0)
    except (tf.errors.OpError, ValueError):
      return False
