"""Trains a planned run into its folder, from the start or from its last checkpoint."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import keras
from absl import logging

from flexunet import config, run_folder
from flexunet.evaluation import evaluation_run
from flexunet.network import initial_weights
from flexunet.pipelines import order
from flexunet.reporting import report
from flexunet.training import (
  callbacks,
  checkpointing,
  checkpoints,
  devices,
  faults,
  live_view,
  manifest,
  networks,
  resuming,
  run_state,
  streams,
  tensorboard,
  validation,
)


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
  data: streams.TrainingData
  epoch_order: order.EpochOrder
  batches: streams.Streams
  left_out: list[str]
  replicas: int


def fit(
    run_config: config.RunConfig,
    run_dir: str | os.PathLike,
    opened: streams.TrainingData,
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
  run = resuming.existing_run(run_dir) if resume else None
  if run is not None:
    run_config = resuming.merge(run.read_config(), run_config)
  devices.prepare(run_config.training)
  with faults.explained(run_config, opened):
    prepared = prepare(run_config, opened)
  # Only now, when nothing is left that could be refused.
  started = run is None
  run = run or run_folder.RunFolder.create(run_dir)
  run.write_config(run_config)
  _write_manifest(run, run_config, prepared, argv, started)
  return run, _Trainer(run, run_config, prepared).run()


def prepare(run_config: config.RunConfig, opened: streams.TrainingData) -> Prepared:
  """Opens the data, decodes them where a cache keeps them, and builds the network."""
  settings = run_config.training
  strategy = devices.strategy(settings.num_devices, settings.batch_size)
  opened, left_out = faults.leave_out_corrupt(run_config, opened)
  epoch_order = streams.make_order(run_config, opened.train)
  opened_batches = streams.make_streams(run_config, opened)
  with devices.scope(strategy), devices.precision(settings.precision):
    network = networks.build(run_config)
    initial_weights.set_from_seed(network, settings.seed)
    shares = streams.drawn_pixel_shares(opened.train, epoch_order)
    if started_from := networks.set_first_weights(network, run_config, shares):
      live_view.say(started_from)
    networks.compile_model(network, run_config)
    kept = networks.evaluation_network(network, run_config)
  return Prepared(
      network=network,
      kept=kept,
      data=opened,
      epoch_order=epoch_order,
      batches=opened_batches,
      left_out=left_out,
      replicas=strategy.num_replicas_in_sync if strategy else 1,
  )


class _Trainer:
  """One process's part of a run."""

  def __init__(self, run: run_folder.RunFolder, run_config: config.RunConfig, prepared: Prepared):
    settings = run_config.training
    self._run, self._config, self._prepared = run, run_config, prepared
    self._network, self._steps = prepared.network, prepared.epoch_order.steps_per_epoch
    validation_batches = prepared.batches.validation()
    self._clock = callbacks.RunClock(
        self._steps * settings.epochs,
        settings.max_minutes,
        int(validation_batches.cardinality()),
        steps_per_epoch=self._steps,
        steps_per_execution=settings.steps_per_execution,
    )
    self._interruption = checkpointing.Interruption()
    self._history = live_view.History(run, self._clock)
    self._validation = validation.Validation(
        prepared.kept,
        self._clock,
        validation_batches,
        every=settings.validation_epochs,
        epochs=settings.epochs,
        watchers=[checkpointing.WatchInterruption(self._interruption)],
    )
    self._early_stop = callbacks.EarlyStop(settings.early_stopping_patience, settings.monitor)
    self._steering: list[keras.callbacks.Callback] = [
        self._clock,
        faults.StopOnNan(self._clock, prepared.epoch_order, prepared.data.train),
        *([networks.TakeAverages(prepared.kept)] if settings.ema_momentum else []),
        self._validation,
        # From here on the validation figures are known.
        callbacks.LearningRate(
            self._clock,
            initial=settings.learning_rate,
            schedule=settings.schedule,
            warmup_steps=settings.warmup_steps,
            reduce_factor=settings.reduce_lr_factor,
            reduce_patience=settings.reduce_lr_patience,
        ),
        callbacks.BestModel(run, prepared.kept, settings.monitor, settings.save_best),
        self._early_stop,
        self._history,
        *_views(run, run_config, prepared, self._clock),
    ]
    fingerprint = run_config.dataset_facts.fingerprint
    tables = {"train": prepared.data.train, "validation": prepared.data.validation}
    identity = {
        **run_state.data_identity(tables, fingerprint),
        "Keras backend": keras.config.backend(),
        "devices sharing a batch": prepared.replicas,
    }
    self._state = run_state.RunState(self._network, self._steering, identity)
    self._store = checkpoints.CheckpointStore(run.checkpoints, settings.keep_checkpoints)
    self._writer = checkpoints.BackgroundWriter(self._store)
    self._checkpointer = checkpointing.Checkpointer(
        self._state, self._clock, self._writer, self._interruption,
        settings.checkpoint_steps, self._steps,
    )  # fmt: skip
    self._steering.append(self._checkpointer)

  def run(self) -> list[dict[str, Any]]:
    """Trains to the end and writes the report; returns the history."""
    ended = False
    if self._store.names():
      ended = self._resume()
    self._store.remove_partial()
    if not ended:
      self._train()
    elif self._run.report_html.is_file():
      live_view.say("Nothing to do: this run has ended. Its report is report.html.")
      return self._history.rows
    report.write_report(self._run)
    return self._history.rows

  def _train(self) -> None:
    with self._interruption:
      try:
        with faults.explained(self._config, self._prepared.data):
          self._fit_spans()
        self._writer.wait()
      except checkpointing.Interrupted as interrupted:
        self._checkpointer.save_interrupted(self._validation.pending)
        live_view.say(
            f"{interrupted}: saved at step {self._clock.step} of {self._clock.total_steps}. The"
            " same command with --resume goes on from there."
        )
        raise

  def _fit_spans(self) -> None:
    """Calls `fit` once for all whole epochs, and apart for the rest of a resumed one."""
    settings, clock, network = self._config.training, self._clock, self._network
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
          callbacks=self._steering,
          shuffle=False,  # The order is the pipeline's.
          verbose=0,
      )

  def _resume(self) -> bool:
    """Puts the newest whole checkpoint back; returns whether the run had ended with it."""
    checkpoint, name, damaged = self._store.read()
    for what in damaged:
      live_view.say(f"A checkpoint is damaged and was passed over: {what}.")
    saved, network, clock = checkpoint.state, self._network, self._clock
    for callback in self._steering:
      callback.set_model(network)
    if checkpoint.arrays.get("metrics"):
      # Keras makes the variables of the metrics when it sees the first batch.
      network.test_on_batch(*next(iter(self._prepared.batches.validation())))
    self._state.put_back(checkpoint)
    self._checkpointer.resume_from(checkpoint)
    live_view.say(f"Goes on from step {clock.step} of {clock.total_steps} (checkpoint {name}).")
    logging.info("Resumed from %s.", name)
    network.stop_training = bool(saved.get("stopped"))
    if pending := saved.get("pending"):
      logs = dict(pending["logs"])
      with self._interruption:
        for callback in self._steering:
          callback.on_epoch_end(pending["epoch"], logs)
        self._writer.wait()
    if network.stop_training and clock.stopped_limit_s is not None:
      # Ended by time: a longer limit lets it go on, unless it would have stopped anyway.
      longer = not clock.limit_s or clock.limit_s > clock.stopped_limit_s
      network.stop_training = not longer or self._early_stop.stopped_epoch is not None
      if longer:
        clock.stopped_limit_s = None
    return bool(network.stop_training) or clock.step >= clock.total_steps


def _views(
    run: run_folder.RunFolder,
    run_config: config.RunConfig,
    prepared: Prepared,
    clock: callbacks.RunClock,
) -> list[keras.callbacks.Callback]:
  settings = run_config.training
  views: list[keras.callbacks.Callback] = [
      live_view.ProgressBar(clock, prepared.epoch_order.steps_per_epoch, settings.batch_size)
  ]
  if settings.previews:
    images, labels = streams.preview_slices(run_config, prepared.data, settings.previews)
    palette = prepared.data.source.label_scheme(run_config.data.label_key).palette
    views.append(
        live_view.Previews(
            run, images, labels, palette, settings.validation_epochs, prepared.kept
        )
    )
  views.append(tensorboard.TensorBoardLog(run))
  return views


def _write_manifest(
    run: run_folder.RunFolder,
    run_config: config.RunConfig,
    prepared: Prepared,
    argv: Sequence[str],
    started: bool,
) -> None:
  told = manifest.collect(argv, run_config.dataset_facts.fingerprint, devices.device_names())
  told["splits"] = evaluation_run.split_counts(prepared.data.source)
  told["left_out"] = prepared.left_out
  told["cache"] = dataclasses.asdict(prepared.batches.cache_choice)
  told["steps_per_epoch"] = prepared.epoch_order.steps_per_epoch
  told["devices_sharing_a_batch"] = prepared.replicas
  manifest.write(run.manifest_json, told, started)
  for record in prepared.left_out:
    live_view.say(f"Left out, because it cannot be read: {record}.")
