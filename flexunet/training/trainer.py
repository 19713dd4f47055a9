"""Trains a planned run into its folder, from the start or from its last checkpoint.

A run in training: its callbacks, its calls of `fit`, its end and its resumption.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Sequence
from typing import Any

import keras
from absl import logging

from flexunet import config, run_folder
from flexunet.core import progress
from flexunet.network import weights
from flexunet.pipelines import dataset_source, order
from flexunet.reporting import report
from flexunet.training import (
  callbacks,
  checkpointing,
  checkpoints,
  device_step,
  devices,
  diagnostics,
  input_pipeline,
  manifest,
  monitoring,
  networks,
  resuming,
  time_budget,
  validation,
)


def fit(
    run_config: config.RunConfig,
    run_dir: str | os.PathLike,
    opened: input_pipeline.TrainingData,
    argv: Sequence[str] = (),
    *,
    resume: bool = False,
) -> tuple[run_folder.RunFolder, list[dict[str, Any]]]:
  """Trains, writing everything into the run folder.

  Args:
    resume: Goes on with the run in `run_dir`, bit for bit as if it had never stopped; starts one
      where there is none yet.

  Returns:
    (the run folder, its history with one row an epoch).

  Raises:
    checkpointing.Interrupted: SIGTERM or SIGINT came; everything is saved.
  """
  existing = resuming.existing_run(run_dir) if resume else None
  if existing is not None:
    run_config = resuming.merge(existing.read_config(), run_config)
  run = existing or run_folder.RunFolder(run_folder.check_new(run_dir))
  devices.prepare(run_config.training)
  with diagnostics.explained(run_config, opened):
    prepared = prepare(run_config, opened)
  trainer_of_run = Trainer(run, run_config, prepared)
  ended = trainer_of_run.resume()
  if not ended:
    # Only now, when nothing is left that could be refused.
    run.path.mkdir(parents=True, exist_ok=True)
    run.write_config(run_config)
    _write_manifest(run, run_config, prepared, argv, started=existing is None)
    trainer_of_run.train()
  return run, trainer_of_run.report()


def prepare(run_config: config.RunConfig, opened: input_pipeline.TrainingData) -> Prepared:
  """Opens the data, decodes them where a cache keeps them, and builds the network."""
  settings = run_config.training
  strategy = devices.strategy(settings.num_devices, settings.batch_size)
  opened, left_out = diagnostics.leave_out_corrupt(run_config, opened)
  epoch_order = input_pipeline.make_order(run_config, opened.train)
  opened_batches = input_pipeline.make_streams(
      run_config, opened, replicas=strategy.num_replicas_in_sync if strategy else 1
  )
  with devices.scope(strategy), devices.precision(settings.precision):
    network = networks.build(run_config, opened_batches.device_input)
    weights.set_from_seed(network, settings.seed)
    shares = input_pipeline.drawn_pixel_shares(opened.train, epoch_order)
    if started_from := networks.set_first_weights(network, run_config, shares):
      progress.say(started_from)
    networks.compile_model(network, run_config)
    network.optimizer.build(network.trainable_variables)  # A checkpoint may be put back into it.
    kept = networks.evaluation_network(network, run_config)
    if strategy and opened_batches.device_input:
      device_step.build_metrics(network, run_config.model, settings.batch_size)
  return Prepared(
      network=network,
      kept=kept,
      data=opened,
      epoch_order=epoch_order,
      batches=opened_batches,
      left_out=left_out,
      replicas=strategy.num_replicas_in_sync if strategy else 1,
  )


def _write_manifest(
    run: run_folder.RunFolder,
    run_config: config.RunConfig,
    prepared: Prepared,
    argv: Sequence[str],
    started: bool,
) -> None:
  told = manifest.collect(argv, run_config.dataset_facts.fingerprint, devices.device_names())
  told["splits"] = dataset_source.split_counts(prepared.data.source)
  told["left_out"] = prepared.left_out
  told["cache"] = dataclasses.asdict(prepared.batches.cache_choice)
  told["steps_per_epoch"] = prepared.epoch_order.steps_per_epoch
  told["devices_sharing_a_batch"] = prepared.replicas
  manifest.write(run.manifest_json, told, started)
  for record in prepared.left_out:
    progress.say(f"Left out, because it cannot be read: {record}.")


@dataclasses.dataclass(frozen=True)
class Prepared:
  """What trains and what it trains on, before anything is written.

  Attributes:
    network: In training.
    kept: What is validated, drawn and saved; often the same.
    data: Without what was left out as unreadable.
    epoch_order, batches: What is read when.
    left_out: Records left out, described.
    replicas: Devices that share a batch.
  """

  network: keras.Model
  kept: keras.Model
  data: input_pipeline.TrainingData
  epoch_order: order.EpochOrder
  batches: input_pipeline.Streams
  left_out: list[str]
  replicas: int


class Trainer:
  """One process's part of a run.

  Attributes:
    clock: Knows how far the run is.
    steering: The callbacks, in the order in which they depend on each other.
    writer: Of the checkpoints.
  """

  def __init__(self, run: run_folder.RunFolder, run_config: config.RunConfig, prepared: Prepared):
    settings = run_config.training
    self._run, self._config, self._prepared = run, run_config, prepared
    self._ended_before = False
    self._network, self._steps = prepared.network, prepared.epoch_order.steps_per_epoch
    held_out = validation.HeldOut(
        prepared.batches.validation,
        validation.spread_rows(prepared.data.validation),
        settings.batch_size,
    )
    self.clock = callbacks.RunClock(
        self._steps * settings.epochs,
        settings.max_minutes,
        _workload(prepared, held_out, settings),
        steps_per_epoch=self._steps,
        steps_per_execution=settings.steps_per_execution,
    )
    self._interruption = checkpointing.Interruption()
    self._history = monitoring.History(run, self.clock)
    self._validation = validation.Validation(
        prepared.kept,
        self.clock,
        held_out,
        every=settings.validation_epochs,
        epochs=settings.epochs,
        watchers=[checkpointing.WatchInterruption(self._interruption)],
        note=functools.partial(manifest.note, run.manifest_json, "validation"),
    )
    self._early_stop = callbacks.EarlyStop(settings.early_stopping_patience, settings.monitor)
    self.steering: list[keras.callbacks.Callback] = [
        self.clock,
        diagnostics.StopOnNan(self.clock, prepared.epoch_order, prepared.data.train),
        *([networks.TakeAverages(prepared.kept)] if settings.ema_momentum else []),
        self._validation,
        # From here on the validation figures are known.
        callbacks.LearningRate(
            self.clock,
            initial=settings.learning_rate,
            schedule=settings.schedule,
            warmup_steps=settings.warmup_steps,
            reduce_factor=settings.reduce_lr_factor,
            reduce_patience=settings.reduce_lr_patience,
        ),
        callbacks.BestModel(run, prepared.kept, settings.monitor, settings.save_best),
        self._early_stop,
        self._history,
        *_views(run, run_config, prepared, self.clock),
    ]
    fingerprint = run_config.dataset_facts.fingerprint
    tables = {"train": prepared.data.train, "validation": prepared.data.validation}
    identity = {
        **checkpointing.data_identity(tables, fingerprint),
        "Keras backend": keras.config.backend(),
        "devices sharing a batch": prepared.replicas,
    }
    self._state = checkpointing.RunState(self._network, self.steering, identity)
    self._store = checkpoints.CheckpointStore(run.checkpoints, settings.keep_checkpoints)
    self.writer = checkpoints.BackgroundWriter(self._store)
    self._checkpointer = checkpointing.Checkpointer(
        self._state, self.clock, self.writer, self._interruption,
        settings.checkpoint_steps, self._steps,
    )  # fmt: skip
    self.steering.append(self._checkpointer)

  def train(self) -> None:
    """Trains to the end.

    Raises:
      checkpointing.Interrupted: A signal came; the run is saved where it was.
      InputError: The loss is no number, memory ran out, a record cannot be read.
    """
    with self._interruption:
      try:
        with diagnostics.explained(self._config, self._prepared.data):
          self._fit_spans()
        self.writer.wait()
      except checkpointing.Interrupted as interrupted:
        self._checkpointer.save_interrupted(self._validation.pending)
        progress.say(
            f"{interrupted}: saved at {self.clock.position()}. The same command"
            " with --resume goes on from there."
        )
        raise

  def _fit_spans(self) -> None:
    """Calls `fit` once for all whole epochs, and apart for the rest of a resumed one."""
    settings, clock, network = self._config.training, self.clock, self._network
    while clock.step < clock.total_steps and not network.stop_training:
      epoch, done = divmod(clock.step, self._steps)
      # Keras cannot shorten the last execution of an epoch, except at the end of the data.
      alone = bool(done or self._steps % settings.steps_per_execution)
      num_steps = self._steps - done if alone else clock.total_steps - clock.step
      network.fit(
          self._prepared.batches.training(self._prepared.epoch_order, clock.step, num_steps),
          initial_epoch=epoch,
          epochs=epoch + 1 if alone else settings.epochs,
          steps_per_epoch=None if alone else self._steps,
          callbacks=self.steering,
          shuffle=False,  # The order is the pipeline's.
          verbose=0,
      )

  def report(self) -> list[dict[str, Any]]:
    """Writes the report unless it is there; returns the history."""
    if not (self._ended_before and self._run.report_html.is_file()):
      report.write_report(self._run)
    else:
      progress.say("Nothing to do: this run has ended. Its report is report.html.")
    return self._history.rows

  def resume(self) -> bool:
    """Puts the newest whole checkpoint back, if any; returns whether the run had ended with it."""
    self._run.remove_partial()
    self._store.remove_partial()
    if not self._store.names():
      return False
    checkpoint, name, damaged = self._store.read()
    for what in damaged:
      progress.say(f"A checkpoint is damaged and was passed over: {what}.")
    saved, network, clock = checkpoint.state, self._network, self.clock
    for callback in self.steering:
      callback.set_model(network)
    if checkpoint.arrays.get("metrics"):
      # Keras makes the variables of the metrics when it sees the first batch.
      batch = next(iter(self._prepared.batches.validation()))
      network.test_on_batch(*(part.numpy() for part in batch))
    self._state.put_back(checkpoint)
    self._checkpointer.resume_from(checkpoint)
    progress.say(f"Goes on from {clock.position()} (checkpoint {name}).")
    logging.info("Resumed from %s.", name)
    network.stop_training = bool(saved.get("stopped"))
    if pending := saved.get("pending"):
      logs = dict(pending["logs"])
      with self._interruption:
        for callback in self.steering:
          callback.on_epoch_end(pending["epoch"], logs)
        self.writer.wait()
    if network.stop_training and clock.stopped_limit_s is not None:
      # Ended by time: a longer limit lets it go on, unless it would have stopped anyway.
      longer = not clock.limit_s or clock.limit_s > clock.stopped_limit_s
      network.stop_training = not longer or self._early_stop.stopped_epoch is not None
      if longer:
        clock.stopped_limit_s = None
    self._ended_before = bool(network.stop_training) or clock.step >= clock.total_steps
    return self._ended_before


def _workload(
    prepared: Prepared, held_out: validation.HeldOut, settings: config.TrainingConfig
) -> time_budget.Workload:
  variables = [*prepared.network.variables, *prepared.network.optimizer.variables]
  numbers = sum(math.prod(variable.shape) for variable in variables)
  return time_budget.Workload(
      validation_batches=held_out.num_batches,
      preview_batches=settings.previews / settings.batch_size,
      written_bytes=2 * 4 * numbers,  # Both hold the state of the optimizer too.
  )


def _views(
    run: run_folder.RunFolder,
    run_config: config.RunConfig,
    prepared: Prepared,
    clock: callbacks.RunClock,
) -> list[keras.callbacks.Callback]:
  settings = run_config.training
  views: list[keras.callbacks.Callback] = [
      monitoring.ProgressBar(clock, prepared.epoch_order.steps_per_epoch, settings.batch_size)
  ]
  if settings.previews:
    images, labels = input_pipeline.preview_slices(run_config, prepared.data, settings.previews)
    palette = run_config.dataset_facts.label_scheme.palette
    views.append(monitoring.Previews(run, images, labels, palette, prepared.kept))
  views.append(monitoring.TensorBoardLog(run, graph=settings.tensorboard_graph))
  return views
