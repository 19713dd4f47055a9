"""Where the decoded slices of a run lie: chosen, filled, and told why."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import keras
from absl import logging

from flexunet import config
from flexunet.network import inspection, knobs
from flexunet.pipelines import caching, device_cache, loading
from flexunet.training import devices


@dataclasses.dataclass(frozen=True)
class RunCaches:
  """The decoded slices of both splits.

  Attributes:
    choice: Of the training split, and why; told in the manifest.
    train: In main memory or on the disk; None: decoded again each epoch, or on the device.
    held_out: Never on the device: a validation reads it in order and seldom.
    on_device: The training split in the device's memory.
  """

  choice: caching.Choice
  train: caching.ExampleCache | None = None
  held_out: caching.ExampleCache | None = None
  on_device: device_cache.DeviceCache | None = None


def make(
    run_config: config.RunConfig,
    loaders: tuple[loading.Loader, loading.Loader],
    keys: Sequence[str],
    replicas: int,
) -> RunCaches:
  """Chooses and fills the caches of the training and the validation split.

  Args:
    keys: Of `caching.key_of`, one a loader.
    replicas: Devices that share a batch.

  Raises:
    InputError: The cache that was asked for does not fit.
  """
  data, (train, held_out) = run_config.data, loaders
  folder = pathlib.Path(data.cache_dir).expanduser() if data.cache_dir else caching.default_folder()

  def fill(loader, choice, key):
    return None if choice.mode == "none" else caching.fill(loader, choice, folder, key)

  room = device_room(run_config, replicas)
  choice, missed = device_cache.choose(data.cache, device_cache.num_bytes(train), room)
  if choice is not None:
    on_device = device_cache.fill(train, device_cache.device_name())
    rest = caching.choose("auto", caching.num_bytes(held_out), folder)
    choice = dataclasses.replace(choice, reason=f"{choice.reason}; validation: {rest.mode}")
    made = RunCaches(choice, None, fill(held_out, rest, keys[1]), on_device)
  else:
    needed = sum(caching.num_bytes(loader) for loader in loaders)
    choice = caching.choose(data.cache, needed, folder)
    if missed:
      choice = dataclasses.replace(choice, reason=f"{choice.reason}; not on the device: {missed}")
    made = RunCaches(choice, *(fill(*each) for each in zip(loaders, (choice,) * 2, keys)))
  logging.info("Cache: %s (%s).", choice.mode, choice.reason)
  return made


def device_room(run_config: config.RunConfig, replicas: int) -> device_cache.Room:
  """Returns what the network leaves of the device, and what speaks against a cache there."""
  settings = run_config.training
  obstacle = ""
  if keras.config.backend() != "tensorflow":
    obstacle = f"it needs KERAS_BACKEND=tensorflow, not {keras.config.backend()}"
  elif replicas > 1:
    obstacle = f"it lies on one device, and {replicas} share a batch (--num_devices=1 uses one)"
  elif run_config.augmentation.enabled and settings.augment_on != "device":
    obstacle = "the run augments on the host (--augment_on=host)"
  free = devices.free_memory()
  if free is not None:
    shape = knobs.Knobs(**dataclasses.asdict(run_config.model))
    number = 4 if settings.precision == "float32" else 2
    network = inspection.training_bytes(shape, settings.batch_size, bytes_per_number=number)
    free = max(0, free - network)
  return device_cache.Room(free, obstacle, is_gpu=devices.has_gpu())
