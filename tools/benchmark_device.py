"""What `benchmark_input` measures on the device: batches finished as the training step does it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


def runs(loader, order, ram, augmentation) -> dict[str, Callable[[], Iterator[Any]]]:
  """Returns name -> what goes through one epoch, every batch finished on the device.

  Args:
    loader: Of the examples.
    order: Their `EpochOrder`.
    ram: Their `ExampleCache` in main memory.
    augmentation: A resolved config.
  """
  from flexunet.pipelines import device_cache

  kept = device_cache.fill(loader, device_cache.device_name())
  return {
      "device_cache": _epoch(loader, order, None, kept, None),
      "device_cache_augmented": _epoch(loader, order, None, kept, augmentation),
      "device_augmented_ram": _epoch(loader, order, ram, None, augmentation),
  }


def _epoch(loader, order, ram, kept, augmentation) -> Callable[[], Iterator[Any]]:
  import tensorflow as tf

  from flexunet.pipelines import caching
  from flexunet.training import device_step, devices, streams

  finish = device_step.DeviceInput(
      loader.spec.image_channels, augmentation, kept, compiled=devices.has_gpu()
  )
  batches = streams.Streams(
      train=loader, train_cache=ram, held_out=loader, held_out_cache=None,
      batch_size=order.batch_size, cache_choice=caching.Choice("", ""), device_input=finish,
  ).training(order, 0, order.steps_per_epoch)  # fmt: skip
  step = tf.function(finish, autograph=False)

  def epoch() -> Iterator[Any]:
    image = None
    for batch in batches:
      image, _, _ = step(batch)
      yield image
    if image is not None:
      image.numpy()  # A device works on while Python goes ahead: the last one ends all.

  return epoch
