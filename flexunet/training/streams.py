"""What a run reads: the tables of its splits, the order of its examples, its batches."""

from __future__ import annotations

import dataclasses
import functools
import pathlib

import numpy as np
from absl import logging

from flexunet import config
from flexunet.pipelines import (
  batches,
  caching,
  cropped_tables,
  device,
  loading,
  order,
  resizing,
  selection,
)
from flexunet.pipelines.augmentation import augment
from flexunet.pipelines.record_table import RecordTable
from flexunet.pipelines.source import DatasetSource, open_dataset
from flexunet.training import live_view


@dataclasses.dataclass(frozen=True)
class TrainingData:
  """An opened dataset with the tables of what a run trains on and validates on."""

  source: DatasetSource
  train: RecordTable
  validation: RecordTable


def open_data(data: config.DataConfig) -> TrainingData:
  source = open_dataset(data.dataset, data.data_dir)
  fold = None if data.fold < 0 else data.fold
  train, validation = selection.split_tables(
      source, data.train_split, data.validation_split, fold
  )
  if data.crop_foreground:
    cropped = cropped_tables.crop_tables(
        source, (train, validation), data.image_key, data.label_key
    )
    for line in cropped.told():
      live_view.say(line)
    train, validation = cropped.tables
  return TrainingData(source=source, train=train, validation=validation)


@dataclasses.dataclass(frozen=True)
class Streams:
  """The examples of a run, decoded where they are kept, as training and validation batches."""

  train: loading.Loader
  train_cache: caching.ExampleCache | None
  held_out: loading.Loader
  held_out_cache: caching.ExampleCache | None
  batch_size: int
  cache_choice: caching.Choice
  augment: batches.Augment | None = None

  def training(self, epoch_order: order.EpochOrder, start_step: int, num_steps: int):
    """Returns the batches of some steps as `fit` takes them, on their way to the device."""
    return _for_keras(
        batches.training_batches(
            self.train,
            epoch_order,
            start_step=start_step,
            num_steps=num_steps,
            cache=self.train_cache,
            augment=self.augment,
        )
    )

  def validation(self, rows: np.ndarray | None = None):
    """Returns all held-out batches, or those of some rows, as `evaluate` takes them."""
    return _for_keras(
        batches.evaluation_batches(
            self.held_out, self.batch_size, cache=self.held_out_cache, rows=rows
        )
    )


def make_streams(run_config: config.RunConfig, opened: TrainingData) -> Streams:
  """Opens the examples; with a cache this decodes all of them once."""
  data = run_config.data
  spec = example_spec(run_config)
  tables = (opened.train, opened.validation)
  for table in tables:
    batches.check_sizes(table, spec.resizing)
  loaders = [batches.open_loader(opened.source, table, spec) for table in tables]
  folder = pathlib.Path(data.cache_dir).expanduser() if data.cache_dir else caching.default_folder()
  needed = sum(caching.num_bytes(loader) for loader in loaders)
  choice = caching.choose(data.cache, needed, folder)
  logging.info("Cache: %s (%s).", choice.mode, choice.reason)
  caches: list[caching.ExampleCache | None] = [None, None]
  if choice.mode != "none":
    identity = opened.source.fingerprint or opened.source.name
    caches = [
        caching.fill(loader, choice, folder, caching.key_of(identity, loader, table.offset))
        for loader, table in zip(loaders, tables, strict=True)
    ]
  return Streams(
      train=loaders[0],
      train_cache=caches[0],
      held_out=loaders[1],
      held_out_cache=caches[1],
      batch_size=run_config.training.batch_size,
      cache_choice=choice,
      augment=(
          functools.partial(augment.augment_example, run_config.augmentation)
          if run_config.augmentation.enabled
          else None
      ),
  )


def example_spec(run_config: config.RunConfig) -> loading.ExampleSpec:
  data = run_config.data
  return loading.ExampleSpec(
      resizing=resizing.Resizing(run_config.model.image_size, data.resize_mode),
      image_channels=run_config.model.image_channels,
      context_slices=data.context_slices,
      image_key=data.image_key,
      label_key=data.label_key,
  )


def make_order(run_config: config.RunConfig, table: RecordTable) -> order.EpochOrder:
  size, data = run_config.training.batch_size, run_config.data
  drawn = min(round(size * data.foreground_fraction), size - 1)
  return order.EpochOrder(
      num_records=len(table),
      batch_size=size,
      seed=run_config.training.seed,
      drawn=drawn,
      pools=selection.pools(table, by_class=data.class_balance) if drawn else (),
  )


def drawn_pixel_shares(table: RecordTable, epoch_order: order.EpochOrder) -> np.ndarray | None:
  """Returns the share of each class among the pixels that the order draws; None where unknown."""
  if table.pixels is None:
    return None
  uniform = table.pixels.mean(axis=0)
  drawn = epoch_order.drawn / epoch_order.batch_size
  pooled = [table.pixels[pool].mean(axis=0) for pool in epoch_order.pools] or [uniform]
  mixed = (1 - drawn) * uniform + drawn * np.mean(pooled, axis=0)
  return mixed / mixed.sum()


def _for_keras(dataset):
  """Batch dicts -> (image, label, weight) on the device; what only fills up weighs 0."""
  import tensorflow as tf

  return device.prefetch_to_device(  # Last: whatever follows would bring the batches back.
      dataset.map(
          lambda batch: (batch["image"], batch["label"], tf.cast(batch["valid"], tf.float32)),
          num_parallel_calls=1,
          deterministic=True,
      )
  )


def preview_slices(
    run_config: config.RunConfig, opened: TrainingData, count: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns validation slices of different subjects, those with most foreground first."""
  table = opened.validation
  amount = table.pixels[:, 1:].sum(axis=1) if table.pixels is not None else np.zeros(len(table))
  ranked = np.argsort(-amount, kind="stable")
  # One slice a subject, then second ones, so that few subjects cannot fill the sheet.
  seen: dict[str, int] = {}
  turns = []
  for row in ranked:
    turns.append(seen.get(table.subject[row], 0))
    seen[table.subject[row]] = turns[-1] + 1
  rows = ranked[np.argsort(np.array(turns), kind="stable")][: min(count, len(table))]
  loader = batches.open_loader(opened.source, table.take(rows), example_spec(run_config))
  batch = next(iter(batches.evaluation_batches(loader, len(rows))))
  return batch["image"].numpy(), batch["label"].numpy()
