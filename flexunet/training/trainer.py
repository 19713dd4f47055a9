"""A run in training: its callbacks, its calls of `fit`, its end and its resumption."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import keras
from absl import logging

from flexunet import config, run_folder
from flexunet.datasets.label_scheme import LabelScheme
from flexunet.pipelines import order
from flexunet.reporting import report
from flexunet.training import (
  callbacks,
  checkpointing,
  checkpoints,
  faults,
  live_view,
  manifest,
  networks,
  run_state,
  streams,
  tensorboard,
  time_budget,
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
    self._history = live_view.History(run, self.clock)
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
        faults.StopOnNan(self.clock, prepared.epoch_order, prepared.data.train),
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
        **run_state.data_identity(tables, fingerprint),
        "Keras backend": keras.config.backend(),
        "devices sharing a batch": prepared.replicas,
    }
    self._state = run_state.RunState(self._network, self.steering, identity)
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
        with faults.explained(self._config, self._prepared.data):
          self._fit_spans()
        self.writer.wait()
      except checkpointing.Interrupted as interrupted:
        self._checkpointer.save_interrupted(self._validation.pending)
        live_view.say(
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
      live_view.say("Nothing to do: this run has ended. Its report is report.html.")
    return self._history.rows

  def resume(self) -> bool:
    """Puts the newest whole checkpoint back, if any; returns whether the run had ended with it."""
    self._run.remove_partial()
    self._store.remove_partial()
    if not self._store.names():
      return False
    checkpoint, name, damaged = self._store.read()
    for what in damaged:
      live_view.say(f"A checkpoint is damaged and was passed over: {what}.")
    saved, network, clock = checkpoint.state, self._network, self.clock
    for callback in self.steering:
      callback.set_model(network)
    if checkpoint.arrays.get("metrics"):
      # Keras makes the variables of the metrics when it sees the first batch.
      batch = next(iter(self._prepared.batches.validation()))
      network.test_on_batch(*(part.numpy() for part in batch))
    self._state.put_back(checkpoint)
    self._checkpointer.resume_from(checkpoint)
    live_view.say(f"Goes on from {clock.position()} (checkpoint {name}).")
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
      live_view.ProgressBar(clock, prepared.epoch_order.steps_per_epoch, settings.batch_size)
  ]
  if settings.previews:
    images, labels = streams.preview_slices(run_config, prepared.data, settings.previews)
    scheme = run_config.dataset_facts.label_scheme
    palette = LabelScheme.from_json(scheme).palette
    views.append(live_view.Previews(run, images, labels, palette, prepared.kept))
  views.append(tensorboard.TensorBoardLog(run, graph=settings.tensorboard_graph))
  return views
