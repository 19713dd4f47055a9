"""Trains a FlexUNet from a complete `RunConfig` into a run folder."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from absl import logging

from flexunet import config, run_folder
from flexunet.datasets.errors import InputError, unknown_name
from flexunet.evaluation import evaluation_run
from flexunet.network import model as model_module
from flexunet.objectives import losses, metrics
from flexunet.pipelines import batches, caching, device, loading, order, resizing, selection
from flexunet.pipelines.record_table import RecordTable
from flexunet.pipelines.source import DatasetSource, open_dataset
from flexunet.reporting import report
from flexunet.training import callbacks, live_view, manifest, planning


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
  return TrainingData(source=source, train=train, validation=validation)


def complete(
    model: config.ModelConfig,
    data: config.DataConfig,
    training: config.TrainingConfig,
    opened: TrainingData,
) -> config.RunConfig:
  """Plans what was left open and checks that everything fits together."""
  for key in (data.image_key, data.label_key):
    if key not in opened.source.info.features:
      raise unknown_name(f"feature of {opened.source.name}", key, opened.source.info.features)
  scheme = opened.source.label_scheme(data.label_key)
  planned = planning.plan(
      model,
      data,
      training,
      num_classes=scheme.num_classes,
      train=opened.train,
      validation=opened.validation,
      device="gpu" if has_gpu() else "cpu",
  )
  _check_classes(planned.model.num_classes, scheme.num_classes, opened.source.name)
  losses.check(planned.training.loss, planned.model.num_classes)
  spacing = np.asarray(opened.source.median_spacing_mm(data.train_split), float)
  facts = config.DatasetFacts(
      name=opened.source.name,
      fingerprint=opened.source.fingerprint,
      label_scheme=scheme.to_json(),
      slice_plan=opened.source.slice_plan,
      intensity=opened.source.intensity,
      spacing_mm=spacing.tolist() if np.isfinite(spacing).all() else None,
      isotropic_mm=(opened.source.report.get("options") or {}).get("isotropic_mm"),
  )
  return config.RunConfig(
      model=planned.model,
      data=planned.data,
      training=planned.training,
      dataset_facts=facts,
      reasons=planned.reasons,
  )


def fit(
    run_config: config.RunConfig,
    run_dir: str | os.PathLike,
    opened: TrainingData,
    argv: Sequence[str] = (),
) -> tuple[run_folder.RunFolder, list[dict[str, Any]]]:
  """Trains, writing everything into a new run folder.

  Returns:
    (the run folder, its history with one row an epoch).
  """
  settings = run_config.training
  keras.utils.set_random_seed(settings.seed)
  told = manifest.collect(argv, run_config.dataset_facts.fingerprint, device_names())
  told["splits"] = evaluation_run.split_counts(opened.source)
  epoch_order = make_order(run_config, opened.train)
  steps = epoch_order.steps_per_epoch
  total_steps = steps * settings.epochs
  streams = make_streams(run_config, opened)
  told["cache"] = dataclasses.asdict(streams.cache_choice)
  train_batches = streams.training(epoch_order, 0, total_steps)
  validation_batches = streams.validation()
  network = build(run_config)
  if (shares := drawn_pixel_shares(opened.train, epoch_order)) is not None:
    model_module.set_class_prior(network, shares)
  compile_model(network, run_config)

  # Only now, when nothing is left that could be refused.
  run = run_folder.RunFolder.create(run_dir)
  run.write_config(run_config)
  run_folder.write_json(run.manifest_json, told)
  clock = callbacks.RunClock(
      total_steps, settings.max_minutes, int(validation_batches.cardinality())
  )
  history = live_view.History(run, clock)
  steering = [
      clock,
      callbacks.LearningRate(
          clock,
          initial=settings.learning_rate,
          schedule=settings.schedule,
          warmup_steps=settings.warmup_steps,
          reduce_factor=settings.reduce_lr_factor,
          reduce_patience=settings.reduce_lr_patience,
      ),
      Validation(clock, validation_batches, settings.validation_epochs, settings.epochs),
      callbacks.BestModel(run, network),
      callbacks.EarlyStop(settings.early_stopping_patience),
      history,
      *_views(run_config, run, opened, steps),
  ]
  network.fit(
      keras_batches(train_batches),
      epochs=settings.epochs,
      steps_per_epoch=steps,
      callbacks=steering,
      shuffle=False,  # The order is the pipeline's.
      verbose=0,
  )
  report.write_report(run)
  return run, history.rows


class Validation(keras.callbacks.Callback):
  """Adds the validation figures to the logs of every n-th epoch and of the last one.

  Keras' own `validation_freq` cannot know that a time limit has made an epoch the last.
  """

  def __init__(self, clock: callbacks.RunClock, data, every: int, epochs: int):
    super().__init__()
    self._clock, self._data, self._every, self._epochs = clock, data, every, epochs

  def on_epoch_end(self, epoch, logs=None):
    last = epoch + 1 == self._epochs or self.model.stop_training
    if logs is None or not (last or (epoch + 1) % self._every == 0):
      return
    self._clock.on_test_begin()
    stop = self.model.stop_training
    figures = self.model.evaluate(keras_batches(self._data), verbose=0, return_dict=True)
    self.model.stop_training = stop
    self._clock.on_test_end()
    logs.update({f"val_{name}": value for name, value in figures.items()})


def _views(run_config, run: run_folder.RunFolder, opened: TrainingData, steps: int) -> list:
  settings = run_config.training
  views: list[keras.callbacks.Callback] = [live_view.ProgressBar(steps, settings.batch_size)]
  if settings.previews:
    images, labels = preview_slices(run_config, opened, settings.previews)
    palette = opened.source.label_scheme(run_config.data.label_key).palette
    views.append(live_view.Previews(run, images, labels, palette, settings.validation_epochs))
  with contextlib.suppress(ImportError):
    views.append(keras.callbacks.TensorBoard(os.fspath(run.tensorboard), write_graph=False))
  return views


def build(run_config: config.RunConfig) -> keras.Model:
  return model_module.build_model(**dataclasses.asdict(run_config.model))


def compile_model(network: keras.Model, run_config: config.RunConfig) -> None:
  settings = run_config.training
  network.compile(
      optimizer=make_optimizer(settings),
      loss=losses.make(settings.loss, run_config.model.num_classes),
      weighted_metrics=metrics.training_metrics(
          ("dice_coef_multiclass", "dice"),
          run_config.model.num_classes,
          [label["name"] for label in run_config.dataset_facts.label_scheme],
      ),
  )


def make_optimizer(settings: config.TrainingConfig) -> keras.optimizers.Optimizer:
  options: dict[str, Any] = {"learning_rate": settings.learning_rate}
  if settings.clipvalue:
    options["clipvalue"] = settings.clipvalue
  if settings.optimizer == "adamw":
    optimizer = keras.optimizers.AdamW(weight_decay=settings.weight_decay, **options)
    # Decay shrinks kernels; on biases and normalization it only harms.
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer
  if settings.optimizer == "sgd":
    return keras.optimizers.SGD(momentum=0.99, nesterov=True, **options)
  return keras.optimizers.Adam(**options)


@dataclasses.dataclass(frozen=True)
class Streams:
  """The examples of a run, decoded where they are kept, as training and validation batches."""

  train: loading.ExampleLoader
  train_cache: caching.ExampleCache | None
  held_out: loading.ExampleLoader
  held_out_cache: caching.ExampleCache | None
  batch_size: int
  cache_choice: caching.Choice

  def training(self, epoch_order: order.EpochOrder, start_step: int, num_steps: int):
    return device.prefetch_to_device(
        batches.training_batches(
            self.train,
            epoch_order,
            start_step=start_step,
            num_steps=num_steps,
            cache=self.train_cache,
        )
    )

  def validation(self):
    return device.prefetch_to_device(
        batches.evaluation_batches(self.held_out, self.batch_size, cache=self.held_out_cache)
    )


def make_streams(run_config: config.RunConfig, opened: TrainingData) -> Streams:
  """Opens the examples; with a cache this decodes all of them once."""
  data = run_config.data
  spec = example_spec(run_config)
  tables = (opened.train, opened.validation)
  for table in tables:
    batches.check_sizes(table, spec.resizing)
  loaders = [loading.ExampleLoader(opened.source, table, spec) for table in tables]
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


def keras_batches(dataset):
  """Batch dicts -> (image, label, weight) as `fit` takes them; what only fills up weighs 0."""
  import tensorflow as tf

  return dataset.map(
      lambda batch: (batch["image"], batch["label"], tf.cast(batch["valid"], tf.float32)),
      num_parallel_calls=1,
      deterministic=True,
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
  loader = loading.ExampleLoader(opened.source, table.take(rows), example_spec(run_config))
  batch = next(iter(batches.evaluation_batches(loader, len(rows))))
  return batch["image"].numpy(), batch["label"].numpy()


def _check_classes(num_classes: int, in_dataset: int, name: str) -> None:
  if num_classes not in (in_dataset, 1 if in_dataset == 2 else in_dataset):
    raise InputError(
        f"--num_classes must be {in_dataset}, the classes of {name} with background"
        f"{' (or 1 for a sigmoid)' if in_dataset == 2 else ''}. Got: {num_classes}."
    )


def device_names() -> list[str]:
  backend = keras.config.backend()
  if backend == "tensorflow":
    import tensorflow as tf

    details = tf.config.experimental.get_device_details
    gpus = tf.config.list_physical_devices("GPU")
    return [details(gpu).get("device_name", "GPU") for gpu in gpus] or ["CPU"]
  return [str(device) for device in keras.distribution.list_devices()]


def has_gpu() -> bool:
  return device_names() != ["CPU"] and not all("cpu" in name.lower() for name in device_names())

