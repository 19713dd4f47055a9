"""Trains a planned run into its folder, from the start or from its last checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
from absl import logging

from flexunet import config, run_folder
from flexunet.core import files, progress
from flexunet.core.errors import InputError
from flexunet.distributed import agreement, hosts
from flexunet.network import weights
from flexunet.pipelines import order
from flexunet.pipelines.augmentation.config import AugmentationConfig
from flexunet.reporting import report
from flexunet.training import (
  callbacks,
  checkpointing,
  checkpoints,
  device_step,
  devices,
  diagnostics,
  forecast,
  input_pipeline,
  manifest,
  monitoring,
  networks,
  plan_lines,
  resuming,
  run_setup,
  time_budget,
  validation,
)
from flexunet.training.history import History

# Keras calls callbacks in the order of their list, and here that order is the logic. Until the
# figures of an epoch are known:
_BEFORE_FIGURES = (
    callbacks.RunClock,  # Counts the step that the others look at.
    diagnostics.NanGuard,  # Before a loss that is no number reaches the others.
    networks.WeightAverages,  # Before the network that holds them is validated.
    validation.Validation,  # Adds its figures to the logs.
)
# Those that use the figures:
_AFTER_FIGURES = (
    callbacks.LearningRate,
    callbacks.BestModel,
    callbacks.EarlyStop,
    History,
    monitoring.ProgressLine,
    monitoring.Previews,
    monitoring.TensorBoardLog,  # Shows the sheet of the previews.
    monitoring.MlflowLog,
    checkpointing.Checkpointer,  # Last: it saves what all others have done.
)
# Of several processes the first one alone writes; these compute nothing with the others.
_OF_FIRST = (
    callbacks.BestModel, History, monitoring.ProgressLine, monitoring.TensorBoardLog,
    monitoring.MlflowLog,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TrainingSetup:
  """What trains and what it trains on, before anything is written.

  Attributes:
    network: In training.
    kept: What is validated, drawn and saved; it gives probabilities.
    data: Without the records left out as unreadable.
    epoch_order, batches: Which examples are read when, and how.
    left_out: Records left out, described for the user.
    replicas: Devices that share a batch.
  """

  network: keras.Model
  kept: keras.Model
  data: input_pipeline.TrainingData
  epoch_order: order.EpochOrder
  batches: input_pipeline.Streams
  left_out: list[str]
  replicas: int

  def described(self) -> dict[str, Any]:
    """Returns what the manifest says of it."""
    return {
        "left_out": self.left_out,
        "cache": dataclasses.asdict(self.batches.cache_choice),
        "steps_per_epoch": self.epoch_order.steps_per_epoch,
        "devices_sharing_a_batch": self.replicas,
        **({"processes": hosts.count()} if hosts.count() > 1 else {}),
    }


@dataclasses.dataclass(frozen=True)
class Settings:
  """What a user gave: the configs with open fields."""

  model: config.ModelConfig
  data: config.DataConfig
  training: config.TrainingConfig
  augmentation: AugmentationConfig


def complete(given: Settings, opened: input_pipeline.TrainingData) -> config.RunConfig:
  """Plans what was left open."""
  return run_setup.complete(given.model, given.data, given.training, opened, given.augmentation)


def train(
    given: Settings,
    run_dir: str | os.PathLike,
    *,
    resume: bool = False,
    command: Sequence[str] = (),
) -> tuple[run_folder.RunFolder, list[dict[str, Any]]]:
  """Trains, saying what is done on standard error.

  Returns:
    (the run folder, its history with one row per epoch).

  Raises:
    checkpointing.Interrupted: SIGTERM or SIGINT came; everything is saved.
  """
  agreement.check_flags(vars(given), resume)
  started = hosts.on_all(
      lambda: resuming.check_paths(
          given.data, given.training, run_dir, resume=resume, writes=hosts.is_first()
      )
  )
  devices.divide_cpu(given.training.num_devices)
  progress.say("Opening the dataset ...")
  opened = hosts.on_all(lambda: input_pipeline.open_data(given.data, given.model.image_size))
  run_config = agreement.config_of_first(lambda: complete(given, opened), given.data)
  expected = None
  if hosts.is_first():
    shown = resuming.merge(started.read_config(), run_config) if started else run_config
    expected = run_setup.expected(shown, opened)
    progress.say("\n".join(plan_lines.lines(shown, opened, devices.device_names(), expected)))
  return fit(run_config, run_dir, opened, command, resume=resume, expected=expected)


def fit(
    run_config: config.RunConfig,
    run_dir: str | os.PathLike,
    opened: input_pipeline.TrainingData,
    argv: Sequence[str] = (),
    *,
    resume: bool = False,
    expected: forecast.Forecast | None = None,
) -> tuple[run_folder.RunFolder, list[dict[str, Any]]]:
  """Trains, writing everything into the run folder.

  Args:
    run_config: Complete.
    run_dir: A new folder, or that of the run to resume.
    opened: The data of `run_config`.
    argv: The command, for the manifest.
    resume: Continues the run in `run_dir`, bit for bit as if it had never stopped; starts one if
      there is none yet.
    expected: What the run will take, for the manifest.

  Returns:
    (the run folder, its history with one row per epoch).

  Raises:
    checkpointing.Interrupted: SIGTERM or SIGINT came; everything is saved.
    InputError: Data, devices or memory do not allow the run, its loss is no number, or another
      program trains in the folder.
  """
  folder = pathlib.Path(run_dir).expanduser()
  with contextlib.ExitStack() as locks:
    hosts.on_first(lambda: locks.enter_context(files.locked(folder, "--run_dir")))
    return _fit_locked(run_config, folder, opened, argv, resume, expected)


def _fit_locked(
    run_config: config.RunConfig,
    run_dir: pathlib.Path,
    opened: input_pipeline.TrainingData,
    argv: Sequence[str],
    resume: bool,
    expected: forecast.Forecast | None,
) -> tuple[run_folder.RunFolder, list[dict[str, Any]]]:
  """Trains in a folder that no other program writes into."""
  run, given = run_folder.RunFolder(run_dir), run_config
  exists = hosts.on_first(lambda: resuming.is_there(run_dir, resume=resume))
  if exists:
    run_config = agreement.config_of_first(
        lambda: resuming.merge(run.read_config(), given), given.data
    )
  devices.prepare(run_config.training)
  with diagnostics.explained(run_config, opened):
    setup = prepare(run_config, opened)
  with diagnostics.disk_explained(run):
    trainer_of_run = Trainer(run, run_config, setup)
    if not trainer_of_run.resume():
      if hosts.is_first():  # Only now, when nothing is left that could be refused.
        # The folder of checkpoints first: where there is a config without one, it was removed.
        run.checkpoints.mkdir(exist_ok=True)
        run.write_config(run_config)
        entry = manifest.collect(
            argv, run_config.dataset_facts.fingerprint, devices.device_names()
        )
        entry |= setup.described()
        manifest.write_start(run, run_config, setup.data, entry, started=not exists)
        if expected and not exists:
          manifest.note(run.manifest_json, "expected", expected.to_json())
      trainer_of_run.train()
    return run, trainer_of_run.report()


def prepare(run_config: config.RunConfig, opened: input_pipeline.TrainingData) -> TrainingSetup:
  """Opens the data, decodes them where a cache keeps them, and builds the network.

  Raises:
    InputError: Records, cache, devices or the network to start from do not fit.
  """
  settings = run_config.training
  strategy = devices.strategy(settings.num_devices, settings.batch_size)
  replicas = strategy.num_replicas_in_sync if strategy else hosts.num_devices()
  opened, left_out = hosts.on_all(lambda: diagnostics.leave_out_corrupt(run_config, opened))
  hosts.check_same("the same data", _data_identity(run_config, opened))
  epoch_order = input_pipeline.make_order(run_config, opened.train)
  batches = hosts.on_all(lambda: input_pipeline.make_streams(run_config, opened, replicas=replicas))
  with devices.scope(strategy), devices.precision(settings.precision):
    network = networks.build(run_config, batches.device_input)
    weights.set_from_seed(network, settings.seed)
    shares = input_pipeline.pixel_shares(run_config, opened.train, epoch_order, batches)
    if started_from := networks.set_first_weights(network, run_config, shares):
      progress.say(started_from)
    networks.compile_model(network, run_config)
    network.optimizer.build(network.trainable_variables)  # A checkpoint may be put back into it.
    num_volumes = int(batches.held_out_volumes.max()) + 1
    kept = networks.evaluation_network(network, run_config, num_volumes)
    if strategy and batches.device_input:
      device_step.build_metrics(network, settings.batch_size)
  return TrainingSetup(network, kept, opened, epoch_order, batches, left_out, replicas)


class Trainer:
  """One process's part of a run.

  Attributes:
    clock: Counts the steps and the time of the run.
    steering: All callbacks, in the order in which they depend on each other.
    writer: Writes the checkpoints.
  """

  def __init__(
      self, run: run_folder.RunFolder, run_config: config.RunConfig, setup: TrainingSetup
  ):
    settings = run_config.training
    self._run, self._config, self._setup = run, run_config, setup
    self._ended_before = False
    self._network, self._steps = setup.network, setup.epoch_order.steps_per_epoch
    self._interruption = checkpointing.Interruption()
    if setup.batches.service:
      setup.batches.service.on_loss = self._interruption.stop
    held_out = validation.HeldOut(
        setup.batches.validation,
        validation.spread_rows(setup.data.validation),
        setup.batches.held_out_batch_size,
    )
    self.clock = callbacks.RunClock(
        self._steps * settings.epochs,
        settings.max_minutes,
        _workload(setup, held_out, settings),
        steps_per_epoch=self._steps,
        steps_per_execution=settings.steps_per_execution,
    )
    self._validation = _validation(run, setup, settings, self.clock, held_out, self._interruption)
    self._early_stop = callbacks.EarlyStop(settings.early_stopping_patience, settings.monitor)
    self._history = History(run, self.clock)
    self._progress_line = monitoring.ProgressLine(self.clock)
    learning_rate = _learning_rate(settings, self.clock)
    self._mlflow = monitoring.mlflow_logs(run, run_config, self._history)
    self.steering: list[keras.callbacks.Callback] = [
        self.clock,
        diagnostics.NanGuard(self.clock, setup.epoch_order, setup.data.train),
        *networks.weight_averages(setup.kept, settings, self.clock),
        self._validation,
        learning_rate,
        callbacks.BestModel(run, setup.kept, settings.monitor, settings.save_best),
        self._early_stop,
        self._history,
        self._progress_line,
        *monitoring.previews(run, run_config, setup.data, setup.kept),
        monitoring.TensorBoardLog(run, run_config, self._history, learning_rate, self._steps),
        *self._mlflow,
    ]
    if not hosts.is_first():
      self.steering = [one for one in self.steering if not isinstance(one, _OF_FIRST)]
    self._state = checkpointing.RunState(self._network, self.steering, _identity(run_config, setup))
    self._store = checkpoints.CheckpointStore(run.checkpoints, settings.keep_checkpoints)
    self.writer = checkpoints.BackgroundWriter(self._store)
    self._checkpointer = checkpointing.Checkpointer(
        self._state, self.clock, self.writer, self._interruption,
        settings.checkpoint_steps, self._steps,
    )  # fmt: skip
    self.steering.append(self._checkpointer)
    check_order(self.steering)

  def train(self) -> None:
    """Trains to the end.

    Raises:
      checkpointing.Interrupted: A signal came; the run is saved where it was.
      InputError: The loss is no number, memory ran out, or a record cannot be read.
    """
    with self._interruption:
      try:
        with (
            diagnostics.explained(self._config, self._setup.data),
            diagnostics.disk_explained(self._run),  # Inside: a full disk is no full memory.
        ):
          self._fit_spans()
        self.writer.wait()
        if hosts.is_first():
          manifest.note(self._run.manifest_json, "took", self.clock.taken())
      except checkpointing.Interrupted as interrupted:
        self._checkpointer.save_interrupted(self._validation.pending)
        progress.say(
            f"{interrupted}: saved at {self.clock.position()}. The same command"
            " with --resume continues from there."
        )
        if interrupted.error:
          raise interrupted.error from None
        raise
      except Exception:
        with contextlib.suppress(InputError):  # One that is being written may still be whole.
          self.writer.wait()
        raise
      finally:
        self._progress_line.close()

  def _fit_spans(self) -> None:
    """Calls `fit` once for all whole epochs, and apart for the rest of a resumed one."""
    settings, clock, network = self._config.training, self.clock, self._network
    while clock.step < clock.total_steps and not network.stop_training:
      epoch, done = divmod(clock.step, self._steps)
      # Keras cannot shorten the last execution of an epoch, except at the end of the data.
      alone = bool(done or self._steps % settings.steps_per_execution)
      num_steps = self._steps - done if alone else clock.total_steps - clock.step
      network.fit(
          self._setup.batches.training(self._setup.epoch_order, clock.step, num_steps),
          initial_epoch=epoch,
          epochs=epoch + 1 if alone else settings.epochs,
          steps_per_epoch=None if alone else self._steps,
          callbacks=self.steering,
          shuffle=False,  # The order is the pipeline's.
          verbose=0,
      )

  def report(self) -> list[dict[str, Any]]:
    """Writes the report unless it is there; returns the history."""
    if not hosts.is_first():
      return []
    rows = self._history.finish()
    if not (self._ended_before and self._run.report_html.is_file()):
      with hosts.alone():
        report.write_report(self._run)
    else:
      progress.say("Nothing to do: this run has ended. Its report is report.html.")
    for log in self._mlflow:
      log.finish()
    return rows

  def resume(self) -> bool:
    """Restores the newest whole checkpoint, if any; returns whether the run had ended with it.

    Raises:
      InputError: There are checkpoints, but none is whole, or none of this run.
    """
    found = checkpointing.newest_of_first(self._run, self._store)
    if found is None:
      return False
    checkpoint, name = found
    self._restore(checkpoint)
    progress.say(f"Resuming from {self.clock.position()} (checkpoint {name}).")
    logging.info("Resumed from %s.", name)
    self._network.stop_training = bool(checkpoint.state.get("stopped"))
    if pending := checkpoint.state.get("pending"):
      self._end_epoch(pending)
    self._look_at_limit()
    self._ended_before = (
        bool(self._network.stop_training) or self.clock.step >= self.clock.total_steps
    )
    return self._ended_before

  def _restore(self, checkpoint: checkpoints.Checkpoint) -> None:
    for callback in self.steering:
      callback.set_model(self._network)
    if checkpoint.arrays.get("metrics"):
      # Keras creates the variables of the metrics when it sees the first batch.
      own_part = self._config.training.batch_size // hosts.count()
      device_step.build_metrics(self._network, own_part)
    self._state.put_back(checkpoint)
    self._checkpointer.resume_from(checkpoint)

  def _end_epoch(self, pending: dict[str, Any]) -> None:
    """Ends the epoch whose validation was interrupted."""
    logs = dict(pending["logs"])
    with self._interruption:
      for callback in self.steering:
        callback.on_epoch_end(pending["epoch"], logs)
      self.writer.wait()

  def _look_at_limit(self) -> None:
    """Continues a run that was ended by time if its limit is longer now.

    Unless it would have stopped anyway.
    """
    clock, network = self.clock, self._network
    if not network.stop_training or clock.stopped_limit_s is None:
      return
    longer = not clock.limit_s or clock.limit_s > clock.stopped_limit_s
    network.stop_training = not longer or self._early_stop.stopped_epoch is not None
    if longer:
      clock.stopped_limit_s = None


def check_order(steering: Sequence[keras.callbacks.Callback]) -> None:
  """Raises ValueError unless callbacks stand in the order in which they depend on each other."""
  names = [kind.__name__ for kind in (*_BEFORE_FIGURES, *_AFTER_FIGURES)]
  found = [type(callback).__name__ for callback in steering]
  if found != [name for name in names if name in found]:
    raise ValueError(f"Callbacks must stand in the order {names}, each once. Got: {found}.")


def _workload(
    setup: TrainingSetup, held_out: validation.HeldOut, settings: config.TrainingConfig
) -> time_budget.Workload:
  variables = [*setup.network.variables, *setup.network.optimizer.variables]
  numbers = sum(math.prod(variable.shape) for variable in variables)
  return time_budget.Workload(
      validation_batches=held_out.num_batches,
      preview_batches=settings.previews / held_out.batch_size,
      written_bytes=2 * 4 * numbers,  # Both hold the state of the optimizer too.
  )


def _validation(
    run: run_folder.RunFolder,
    setup: TrainingSetup,
    settings: config.TrainingConfig,
    clock: callbacks.RunClock,
    held_out: validation.HeldOut,
    interruption: checkpointing.Interruption,
) -> validation.Validation:
  def note(entry: dict[str, Any]) -> None:
    if hosts.is_first():
      manifest.note(run.manifest_json, "validation", entry)

  return validation.Validation(
      setup.kept,
      clock,
      held_out,
      every=settings.validation_epochs,
      epochs=settings.epochs,
      watchers=[checkpointing.InterruptionWatcher(interruption)],
      note=note,
  )


def _learning_rate(
    settings: config.TrainingConfig, clock: callbacks.RunClock
) -> callbacks.LearningRate:
  return callbacks.LearningRate(
      clock,
      initial=settings.learning_rate,
      schedule=settings.schedule,
      warmup_steps=settings.warmup_steps,
      reduce_factor=settings.reduce_lr_factor,
      reduce_patience=settings.reduce_lr_patience,
  )


def _identity(run_config: config.RunConfig, setup: TrainingSetup) -> dict[str, Any]:
  """Returns what must be the same when the run is resumed."""
  return {
      **_data_identity(run_config, setup.data),
      "Keras backend": keras.config.backend(),
      "devices sharing a batch": setup.replicas,
  }


def _data_identity(
    run_config: config.RunConfig, opened: input_pipeline.TrainingData
) -> dict[str, Any]:
  tables = {"train": opened.train, "validation": opened.validation}
  return checkpointing.data_identity(tables, run_config.dataset_facts.fingerprint)
