"""What a run reads: the tables of its splits, the order of its examples, caches and batches."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from flexunet import config
from flexunet.core import files, progress
from flexunet.core.errors import InputError
from flexunet.distributed import hosts
from flexunet.network import cost
from flexunet.pipelines import (
  batches,
  cache,
  data_service,
  foreground_boxes,
  order,
  readers,
  resizing,
  tf_data,
  tile_rows,
)
from flexunet.pipelines.augmentation import augment
from flexunet.pipelines.dataset_source import DatasetSource, open_dataset
from flexunet.pipelines.patches import PatchSampler, content_boxes
from flexunet.pipelines.record_table import RecordTable, volume_numbers
from flexunet.training import device_step, devices

_PATCHES_COUNTED = 256  # Whose pixels say how often each class is.


@dataclasses.dataclass(frozen=True)
class TrainingData:
  """An opened dataset with the tables of what a run trains on and validates on.

  Attributes:
    source: The dataset.
    train, validation: Which records belong to the two, or parts of them where these are larger
      than the network's input.
    whole_validation: The validation split without being divided into such parts; None: it is not.
    free_device_bytes: Free memory of the device, before the dataset was opened; None: unknown.
  """

  source: DatasetSource
  train: RecordTable
  validation: RecordTable
  free_device_bytes: int | None = None
  whole_validation: RecordTable | None = None


def open_data(
    data: config.DataConfig, image_size: tuple[int, int] | None = None
) -> TrainingData:
  """Opens the dataset, chooses the records of both splits, and crops them where asked for.

  Args:
    data: What the user gave.
    image_size: (height, width) of the network's input, where it was given. With
      --resize_mode=pad, slices that are larger are cut into tiles of that size.

  Raises:
    InputError: There is no such dataset, split or fold, or cropping would lose labels.
  """
  # Before anything is read: reading lets TensorFlow take all memory of a GPU.
  free_device_bytes = devices.free_memory()
  source = open_dataset(data.dataset, data.data_dir, data.feature_keys)
  fold = None if data.fold < 0 else data.fold
  train, validation = readers.split_tables(
      source, data.train_split, data.validation_split, fold
  )
  if data.context_slices and not all(_has_neighbours(one) for one in (train, validation)):
    raise InputError(
        f"--context_slices needs volume and place of every slice; {source.name} does not name them."
        " Name the features: --volume_key and --slice_key."
    )
  if data.crop_foreground:
    result = foreground_boxes.crop_tables(
        source, (train, validation), source.keys.image, source.keys.label
    )
    for line in result.messages():
      progress.say(line)
    train, validation = result.tables
  opened = TrainingData(source, train, validation, free_device_bytes)
  return opened if data.resize_mode != "pad" or not image_size else _in_tiles(opened, image_size)


def _in_tiles(opened: TrainingData, image_size: tuple[int, int]) -> TrainingData:
  """Returns the data with slices larger than the network's input cut into tiles, and says so."""
  keys = opened.source.keys
  train, validation = (
      tile_rows.cut_rows(opened.source, table, image_size, keys.image, keys.label)
      for table in (opened.train, opened.validation)
  )
  parts = []
  for what, table, cut in (
      ("training", opened.train, train), ("validation", opened.validation, validation)
  ):
    if cut is not table:
      parts.append(f"{len(table)} {what} slices become {len(cut)} tiles")
  if not parts:
    return opened
  size = "x".join(map(str, image_size))
  progress.say(f"Slices larger than --image_size {size} are trained on in tiles of that size:"
               f" {', '.join(parts)}. --resize_mode=fit would scale them down.")  # fmt: skip
  whole = opened.validation if validation is not opened.validation else None
  return dataclasses.replace(
      opened, train=train, validation=validation, whole_validation=whole
  )


def _has_neighbours(table: RecordTable) -> bool:
  return bool((table.volume != "").all() and (table.slice_index >= 0).all())


@dataclasses.dataclass(frozen=True)
class Streams:
  """The examples of a run, decoded where they are kept, as training and validation batches.

  Attributes:
    train, held_out: Read the examples of the two splits.
    train_cache, held_out_cache: Keep them decoded, in main memory or on the disk; None: not there.
    held_out_batch_size: Slices per batch of a validation.
    cache_choice: Where the training split is kept, and why.
    augment: Changes single examples in the input pipeline; None: not there.
    device_input: What the training step does with a batch first; None: batches come finished.
    held_out_volumes: Number of the volume of each held-out row, int32 [N], from 0 on.
    patches: Draws patches in the input pipeline; None: whole slices, or the training step does.
    ignores: Whether labels hold pixels that are not to be counted.
    service: Computes the training batches elsewhere; None: this process does.
    host: Which part of each batch this process reads.
  """

  train: readers.Loader
  train_cache: cache.ExampleCache | None
  held_out: readers.Loader
  held_out_volumes: np.ndarray
  held_out_cache: cache.ExampleCache | None
  held_out_batch_size: int
  cache_choice: cache.Choice
  augment: batches.Augment | None = None
  patches: PatchSampler | None = None
  device_input: device_step.DeviceInput | None = None
  ignores: bool = False
  service: data_service.DataService | None = None
  host: batches.Host = dataclasses.field(default_factory=batches.Host)

  def training(
      self, epoch_order: order.EpochOrder, start_step: int, num_steps: int
  ) -> tf.data.Dataset:
    """Returns the batches of some steps as `fit` takes them, on their way to the device.

    (image uint8 [B, h, w, C], label uint8 [B, h, w], weight float32 [B], of labels with ignored
    pixels [B, h, w]), or what `device_input` takes.
    """
    if self.device_input is not None:
      return batches.prefetch_to_device(self._unfinished(epoch_order, start_step, num_steps))
    return self._for_keras(
        self._batches(epoch_order, start_step, num_steps, self.augment, self.patches)
    )

  def plain(self) -> Streams:
    """Returns the same streams not augmented, whole batches of them computed by this process."""
    return dataclasses.replace(
        self, augment=None, patches=self.patches and self.patches.plain(), service=None,
        device_input=self.device_input and self.device_input.plain(), host=batches.Host(),
    )  # fmt: skip

  def _batches(
      self,
      epoch_order: order.EpochOrder,
      start_step: int,
      num_steps: int,
      augment_one: batches.Augment | None = None,
      patches: PatchSampler | None = None,
  ) -> tf.data.Dataset:
    """Returns training batches as dicts, from the data service where there is one."""
    if self.service is None:
      return batches.training_batches(
          self.train, epoch_order, start_step=start_step, num_steps=num_steps,
          cache=self.train_cache, augment=augment_one, patches=patches, host=self.host,
      )  # fmt: skip
    return self.service.stream(
        functools.partial(
            batches.batches_of_steps, self.train, epoch_order, augment=augment_one, patches=patches
        ),
        start_step,
        num_steps,
    )

  def finished(self, batch: Any) -> tuple:
    """Returns (image, label, weight) of a batch of `training`, as the network is given them."""
    return batch if self.device_input is None else self.device_input(batch)

  def _for_keras(
      self, dataset: tf.data.Dataset, volume_of_record: np.ndarray | None = None
  ) -> tf.data.Dataset:
    """Batch dicts -> (image, label, weight) on the device; what only fills up weighs 0.

    With the volumes int32 [N] of the records the label is {"label", "volume"}.
    """

    @tf_data.plain_graph
    def finish(batch):
      label, weight = batch["label"], tf.cast(batch["valid"], tf.float32)
      if self.ignores:
        label, weight = device_step.without_ignored(label, weight)
      if volume_of_record is not None:
        label = {"label": label, "volume": tf.gather(volume_of_record, batch["record"])}
      return batch["image"], label, weight

    # Last: whatever follows would bring the batches back.
    return batches.prefetch_to_device(
        dataset.map(finish, num_parallel_calls=1, deterministic=True)
    )

  def _unfinished(
      self, epoch_order: order.EpochOrder, start_step: int, num_steps: int
  ) -> tf.data.Dataset:
    """Returns the batches as `DeviceInput` takes them: seeds with row numbers or with images."""
    finish = self.device_input
    sampler = None if finish is None else finish.patches
    entries = batches.step_entries(epoch_order, batches.Host(), start_step, num_steps, sampler)
    if finish is not None and finish.cache is not None:
      return tf_data.untuned(entries.prefetch(2))
    images = self._batches(epoch_order, start_step, num_steps)
    channels = self.train.channels  # Repeated grey is repeated on the device.

    @tf_data.plain_graph
    def together(batch, entry):
      drawn = {name: value for name, value in entry.items() if name != "row"}
      return {"image": batch["image"][..., :channels], "label": batch["label"], **drawn}

    pairs = tf.data.Dataset.zip((images, entries))
    return pairs.map(together, num_parallel_calls=1, deterministic=True)

  def validation(self, rows: np.ndarray | None = None) -> tf.data.Dataset:
    """Returns all held-out batches, or those of some rows int64 [N], as `evaluate` takes them.

    (image, {"label": uint8 [B, h, w], "volume": int32 [B]}, weight): scores are of volumes.
    """
    return self._for_keras(
        batches.evaluation_batches(
            self.held_out, self.held_out_batch_size, cache=self.held_out_cache, rows=rows,
            host=self.host,
        ),
        volume_of_record=self.held_out_volumes,
    )


def make_streams(
    run_config: config.RunConfig, opened: TrainingData, *, replicas: int = 1
) -> Streams:
  """Opens the examples; with a cache this decodes all of them once.

  Args:
    run_config: Complete.
    opened: From `open_data`.
    replicas: Devices that share a batch.

  Raises:
    InputError: The cache that was asked for does not fit, or records do not fit the input size.
  """
  spec = example_spec(run_config)
  tables = (opened.train, opened.validation)
  for table in tables:
    batches.check_sizes(table, spec.resizing)
  train, held_out = (batches.open_loader(opened.source, table, spec) for table in tables)
  keys = [
      cache.key_of(opened.source.identity, loader, table.offset)
      for loader, table in zip((train, held_out), tables, strict=True)
  ]
  room = device_room(run_config, opened.free_device_bytes, replicas)
  caches = make_caches(run_config.data, (train, held_out), keys, room)
  augmentation = run_config.augmentation if run_config.augmentation.enabled else None
  device_input = None
  separate = len(run_config.dataset_facts.channel_names) > 1
  sampler = _patch_sampler(run_config, opened.train, spec.resizing)
  # What is gathered on the device is augmented there, whatever else was chosen.
  on_device = run_config.training.augment_on == "device" or caches.on_device is not None
  if caches.on_device is not None or (augmentation and on_device):
    devices.check_backend(augmentation is not None, caches.on_device is not None)
    device_input = device_step.DeviceInput(
        run_config.model.image_channels,
        None if sampler else augmentation,
        caches.on_device,
        compiled=devices.has_gpu(),
        separate_channels=separate,
        ignores=opened.source.ignores,
        patches=sampler,
    )
  return Streams(
      train=train,
      train_cache=caches.train,
      held_out=held_out,
      held_out_volumes=volume_numbers(opened.validation),
      held_out_cache=caches.held_out,
      held_out_batch_size=-(-run_config.held_out_batch_size // replicas) * replicas,
      cache_choice=caches.choice,
      augment=(
          functools.partial(augment.augment_example, augmentation, separate_channels=separate)
          if augmentation and not on_device and sampler is None
          else None
      ),
      patches=sampler if device_input is None else None,
      device_input=device_input,
      ignores=opened.source.ignores,
      service=_service(run_config.data, opened.train),
      host=batches.Host(hosts.index(), hosts.count()),
  )


def _service(
    data: config.DataConfig, table: RecordTable
) -> data_service.DataService | None:
  """Returns the service that computes the training batches; None: this process does.

  Raises:
    InputError: The records can be read by this process alone.
  """
  if not data.data_service:
    return None
  data_service.check_readable(table)
  return data_service.DataService(data.data_service, data.data_service_timeout_s)


def _patch_sampler(
    run_config: config.RunConfig, table: RecordTable, frame: resizing.Resizing
) -> PatchSampler | None:
  """Returns what draws patches of the training slices; None: whole slices are trained on."""
  if run_config.data.patch_hw is None:
    return None
  return PatchSampler(
      size_hw=run_config.data.patch_hw,
      content=content_boxes(table, frame),
      augmentation=run_config.augmentation if run_config.augmentation.enabled else None,
      separate_channels=len(run_config.dataset_facts.channel_names) > 1,
  )


def example_spec(run_config: config.RunConfig) -> readers.ExampleSpec:
  """Returns what every example of a run looks like."""
  data = run_config.data
  return readers.ExampleSpec(
      resizing=resizing.Resizing(run_config.model.image_size, data.resize_mode),
      image_channels=run_config.model.image_channels,
      context_slices=data.context_slices,
      image_key=data.image_key,
      label_key=data.label_key,
  )


def make_order(run_config: config.RunConfig, table: RecordTable) -> order.EpochOrder:
  """Returns the order in which a run visits the records of its training split."""
  size, data = run_config.training.batch_size, run_config.data
  drawn = min(round(size * data.foreground_fraction), size - 1)
  centered = round(size * data.patch_foreground_share) if data.patch_hw else 0
  return order.EpochOrder(
      num_records=len(table),
      batch_size=size,
      seed=run_config.training.seed,
      drawn=drawn,
      passes=data.epoch_passes or 1,
      pools=order.pools(table, by_class=data.class_balance) if drawn else (),
      centered=centered,
      pool_classes=order.pool_classes(table, by_class=data.class_balance) if drawn else (),
  )


def pixel_shares(
    run_config: config.RunConfig,
    table: RecordTable,
    epoch_order: order.EpochOrder,
    streams: Streams,
) -> np.ndarray | None:
  """Returns the share of each class among the pixels a run trains on, float64 [classes].

  By the table of the slices; of patches, whose place decides what they hold, over the first steps,
  not augmented: that would be compiled for this alone. None: unknown, or not asked for.
  """
  if run_config.data.patch_hw is None or not run_config.training.class_prior:
    return drawn_pixel_shares(table, epoch_order)
  counts = np.zeros(max(2, run_config.model.num_classes), np.float64)
  steps = max(1, math.ceil(_PATCHES_COUNTED / epoch_order.batch_size))
  plain = streams.plain()
  for batch in plain.training(epoch_order, 0, steps):
    _, label, weight = plain.finished(batch)
    ids, weights = label.numpy(), weight.numpy()
    weights = np.broadcast_to(weights if weights.ndim == 3 else weights[:, None, None], ids.shape)
    counts += np.bincount(ids.ravel(), weights.ravel(), minlength=len(counts))
  return counts / counts.sum()


def drawn_pixel_shares(table: RecordTable, epoch_order: order.EpochOrder) -> np.ndarray | None:
  """Returns the share of each class among the pixels drawn, float64 [classes]; None: unknown."""
  if table.pixels is None:
    return None
  uniform = table.pixels.mean(axis=0)
  drawn = epoch_order.drawn / epoch_order.batch_size
  pooled = [table.pixels[pool].mean(axis=0) for pool in epoch_order.pools] or [uniform]
  mixed = (1 - drawn) * uniform + drawn * np.mean(pooled, axis=0)
  return mixed / mixed.sum()


@dataclasses.dataclass(frozen=True)
class RunCaches:
  """The decoded slices of both splits.

  Attributes:
    choice: Where the training split lies, and why; kept in the manifest.
    train: In main memory or on the disk; None: decoded again each epoch, or on the device.
    held_out: Never on the device: a validation reads it in order and seldom.
    on_device: The training split in the device's memory.
  """

  choice: cache.Choice
  train: cache.ExampleCache | None = None
  held_out: cache.ExampleCache | None = None
  on_device: cache.DeviceCache | None = None


def make_caches(
    data: config.DataConfig,
    loaders: tuple[readers.Loader, readers.Loader],
    keys: Sequence[str],
    room: cache.Room,
) -> RunCaches:
  """Chooses and fills the caches of the training and the validation split.

  Args:
    data: Which cache, and where.
    loaders: Those of the training and the validation split.
    keys: From `cache.key_of`, one per loader.
    room: What is known of the device.

  Raises:
    InputError: The cache that was asked for does not fit.
  """
  train, held_out = loaders
  given = data.cache_dir
  folder = pathlib.Path(given).expanduser() if given else files.user_cache_folder()

  def fill(loader, choice, key):
    return None if choice.mode == "none" else cache.fill(loader, choice, folder, key)

  if data.data_service:
    rest = cache.choose(data.cache, cache.num_bytes(held_out), folder)
    none = cache.Choice("none", f"--data_service decodes elsewhere; validation: {rest.mode}")
    return RunCaches(none, None, fill(held_out, rest, keys[1]))
  choice, missed = cache.choose_on_device(data.cache, cache.num_bytes_on_device(train), room)
  if choice is not None:
    on_device = cache.fill_on_device(train, cache.device_name())
    rest = cache.choose("auto", cache.num_bytes(held_out), folder)
    choice = dataclasses.replace(choice, reason=f"{choice.reason}; validation: {rest.mode}")
    caches = RunCaches(choice, None, fill(held_out, rest, keys[1]), on_device)
  else:
    needed = sum(cache.num_bytes(loader) for loader in loaders)
    choice = cache.choose(data.cache, needed, folder)
    if missed:
      choice = dataclasses.replace(choice, reason=f"{choice.reason}; not on the device: {missed}")
    caches = RunCaches(choice, *(fill(*each) for each in zip(loaders, (choice,) * 2, keys)))
  logging.info("Cache: %s (%s).", choice.mode, choice.reason)
  return caches


def device_room(
    run_config: config.RunConfig, free_bytes: int | None, replicas: int
) -> cache.Room:
  """Returns what the network leaves of the device, and what speaks against a cache there.

  Args:
    run_config: Complete.
    free_bytes: Free memory of the device; None: unknown.
    replicas: Devices that share a batch.
  """
  settings = run_config.training
  obstacle = ""
  if keras.config.backend() != "tensorflow":
    obstacle = f"it needs KERAS_BACKEND=tensorflow, not {keras.config.backend()}"
  elif replicas > 1:
    obstacle = f"it lies on one device, and {replicas} share a batch (--num_devices=1 uses one)"
  elif run_config.augmentation.enabled and settings.augment_on != "device":
    obstacle = "the run augments on the host (--augment_on=host)"
  if free_bytes is not None:
    shape = run_config.model
    number = 4 if settings.precision == "float32" else 2
    network = cost.training_bytes(shape, settings.batch_size, bytes_per_number=number)
    free_bytes = max(0, free_bytes - network)
  return cache.Room(free_bytes, obstacle, is_gpu=devices.has_gpu())
