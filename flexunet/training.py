"""Trains a FlexUNet from a complete `RunConfig` into a run folder."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from flexunet import callbacks, config, live_view, losses, manifest, metrics, planning, run_folder
from flexunet import model as model_module
from flexunet.datasets.errors import InputError
from flexunet.pipelines import batches, order, resizing
from flexunet.pipelines.record_table import RecordTable
from flexunet.pipelines.source import DatasetSource, open_dataset


@dataclasses.dataclass(frozen=True)
class TrainingData:
  """An opened dataset with the tables of the two splits a run reads."""

  source: DatasetSource
  train: RecordTable
  validation: RecordTable


def open_data(data: config.DataConfig) -> TrainingData:
  source = open_dataset(data.dataset, data.data_dir)
  source.check_split(data.train_split)
  source.check_split(data.validation_split)
  if data.train_split == data.validation_split:
    raise InputError(
        f"--validation_split must differ from --train_split. Both are {data.train_split!r}: a score"
        " on slices that were trained on tells nothing."
    )
  return TrainingData(
      source=source,
      train=source.table(data.train_split),
      validation=source.table(data.validation_split),
  )


def complete(
    model: config.ModelConfig,
    data: config.DataConfig,
    training: config.TrainingConfig,
    opened: TrainingData,
) -> config.RunConfig:
  """Plans what was left open and checks that everything fits together."""
  scheme = opened.source.label_scheme()
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
  spacing = np.asarray(opened.source.report.get("median_spacing_mm") or [np.nan], float)
  facts = config.DatasetFacts(
      name=opened.source.name,
      fingerprint=opened.source.fingerprint,
      label_scheme=scheme.to_json(),
      slice_plan=opened.source.slice_plan,
      intensity=opened.source.intensity,
      spacing_mm=spacing.tolist() if np.isfinite(spacing).all() else None,
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
    run: run_folder.RunFolder,
    opened: TrainingData,
    argv: Sequence[str] = (),
) -> list[dict[str, Any]]:
  """Trains, writing everything into the run folder.

  Returns:
    The history, one row an epoch.
  """
  settings = run_config.training
  keras.utils.set_random_seed(settings.seed)
  run.write_config(run_config)
  devices = device_names()
  run_folder.write_json(
      run.manifest_json, manifest.collect(argv, run_config.dataset_facts.fingerprint, devices)
  )
  spec = batch_spec(run_config)
  epoch_order = make_order(run_config, opened.train)
  steps = epoch_order.steps_per_epoch
  total_steps = steps * settings.epochs
  train_batches = batches.training_batches(
      opened.source, opened.train, spec, epoch_order, num_steps=total_steps
  )
  validation_batches = batches.evaluation_batches(opened.source, opened.validation, spec)
  network = build(run_config)
  if (shares := drawn_pixel_shares(opened.train, epoch_order)) is not None:
    model_module.set_class_prior(network, shares)
  compile_model(network, run_config)

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
  return history.rows


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
    palette = opened.source.label_scheme().palette
    views.append(live_view.Previews(run, images, labels, palette, settings.validation_epochs))
  with contextlib.suppress(ImportError):
    views.append(keras.callbacks.TensorBoard(os.fspath(run.tensorboard), write_graph=False))
  return views


def build(run_config: config.RunConfig) -> keras.Model:
  knobs = {field.name: getattr(run_config.model, field.name)
           for field in dataclasses.fields(run_config.model)}
  return model_module.build_model(**knobs)


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


def batch_spec(run_config: config.RunConfig) -> batches.BatchSpec:
  return batches.BatchSpec(
      resizing=resizing.Resizing(run_config.model.image_size, run_config.data.resize_mode),
      batch_size=run_config.training.batch_size,
      image_channels=run_config.model.image_channels,
  )


def make_order(run_config: config.RunConfig, table: RecordTable) -> order.EpochOrder:
  size = run_config.training.batch_size
  drawn = min(round(size * run_config.data.foreground_fraction), size - 1)
  pool = table.foreground
  if drawn and not len(pool):
    raise InputError(
        "--foreground_fraction needs slices with foreground in the training split; there are none"
        " or they are not listed (records.csv). Pass --foreground_fraction=0."
    )
  return order.EpochOrder(
      num_records=len(table),
      batch_size=size,
      seed=run_config.training.seed,
      drawn=drawn,
      pools=(pool,) if drawn else (),
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
  spec = dataclasses.replace(batch_spec(run_config), batch_size=len(rows))
  batch = next(iter(batches.evaluation_batches(opened.source, table.take(rows), spec)))
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

    gpus = tf.config.list_physical_devices("GPU")
    return [tf.config.experimental.get_device_details(g).get("device_name", "GPU") for g in gpus] or [
        "CPU"
    ]
  return [str(device) for device in keras.distribution.list_devices()]


def has_gpu() -> bool:
  return device_names() != ["CPU"] and not all("cpu" in name.lower() for name in device_names())

