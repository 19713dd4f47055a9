"""One loop over the pixels instead of one for each operation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  import tensorflow as tf


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
