"""How many examples are read at a time, and who decides it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flexunet.datasets import case_pool

if TYPE_CHECKING:
  import tensorflow as tf


def default_threads() -> int:
  """Returns how many examples are read at a time: the cores are busy while some wait."""
  return 2 * case_pool.available_cpus()


def untuned(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """Returns the dataset without tf.data's tuning of threads and buffers.

  Its thread sleeps up to a minute between two looks, and whoever lets go of an iterator waits for
  it: a program that ends, or one that has filled a cache.
  """
  import tensorflow as tf

  options = tf.data.Options()
  options.autotune.enabled = False
  return dataset.with_options(options)
