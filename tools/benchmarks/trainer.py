"""Measures what the trainer adds to a bare Keras `fit` of the same network.

  flexunet benchmark_trainer --data_dir=DATA --dataset=hippocampus_t1w \
      --preset=published/hippocampus_t1w

Takes the flags of `flexunet train`; --previews and --checkpoint_steps have no effect. Three ways
take turns in one process, on the same layers:

  bare         Keras fit on one constant batch: optimizer and loss of the run, nothing else
  trainer      the run's own batches, scores and callbacks
  checkpoints  the same, with a checkpoint every --every steps

Prints one JSON object: milliseconds per step (median over the rounds of each round's mean, the
first steps of a round left out) and the ratios. Nothing is kept.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import statistics
import tempfile
import time
import types
from collections.abc import Callable, Sequence
from typing import Any

from flexunet import config, run_folder
from flexunet.core import command_line, flags
from flexunet.pipelines import dataset_source
from flexunet.presets import preset_files
from flexunet.train import TrainerFlags

_PROGRAM = flags.Program(__doc__)
_EVERY = _PROGRAM.integer("every", 20, "Steps between two checkpoints.", lower_bound=2)
_ROUNDS = _PROGRAM.integer("rounds", 3, "Turns of each way.", lower_bound=1)
_SKIP = _PROGRAM.integer("skip", 2, "Steps left out at the start of a turn.", lower_bound=0)
_STEPS = _PROGRAM.integer(
    "steps", 40, "Measured steps in a turn; a multiple of --every counts checkpoints fairly.",
    lower_bound=1,
)  # fmt: skip
_TRAINER = TrainerFlags(_PROGRAM)


def main(argv: Sequence[str]) -> None:
  command_line.no_words(argv)
  given = _TRAINER.read()
  model, data = given["model"], given["data"]
  settings = dataclasses.replace(given["training"], previews=0, checkpoint_steps=0)
  splits = (data.train_split, data.validation_split)
  dataset_source.check_folder(data.dataset, data.data_dir, splits, data.fold)
  command_line.load_tensorflow()
  lib = libraries()
  opened = lib.input_pipeline.open_data(data, model.image_size)
  run_config = lib.run_setup.complete(model, data, settings, opened, given["augmentation"])
  with tempfile.TemporaryDirectory() as scratch:
    print(json.dumps(measure(run_config, opened, pathlib.Path(scratch)), indent=2))


@functools.cache
def libraries() -> types.SimpleNamespace:
  """Returns what loads TensorFlow, imported when the flags are known to be right."""
  # Heavy: --help and a wrong flag are answered without them.
  import keras
  import tensorflow as tf

  # So are these.
  from flexunet.objectives import loss_settings, losses
  from flexunet.optimizers import run_optimizer
  from flexunet.training import (
    checkpointing,
    devices,
    input_pipeline,
    networks,
    run_setup,
    trainer,
  )

  return types.SimpleNamespace(
      keras=keras, tf=tf, loss_settings=loss_settings, losses=losses, checkpointing=checkpointing,
      devices=devices, input_pipeline=input_pipeline, networks=networks, run_setup=run_setup,
      run_optimizer=run_optimizer, trainer=trainer,
  )  # fmt: skip


def measure(run_config: config.RunConfig, opened: Any, scratch: pathlib.Path) -> dict[str, Any]:
  """Returns the figures of the three ways.

  Args:
    run_config: Complete.
    opened: The `input_pipeline.TrainingData` it trains on.
    scratch: A folder for the run.
  """
  lib = libraries()
  lib.devices.prepare(run_config.training)
  contest = Contest(run_config, lib.trainer.prepare(run_config, opened), scratch)
  seconds = contest.take_turns()
  typical = {name: statistics.median(values) for name, values in seconds.items()}
  settings = run_config.training
  return {
      "parameters": contest.network.count_params(),
      "image_size": list(run_config.model.image_size),
      "batch_size": settings.batch_size,
      "precision": settings.precision,
      "deterministic": settings.deterministic,
      "devices": lib.devices.device_names(),
      "steps_a_turn": _STEPS.value,
      "ms_per_step": {name: round(1e3 * value, 2) for name, value in typical.items()},
      "ms_per_step_of_each_turn": {
          name: [round(1e3 * value, 2) for value in values] for name, values in seconds.items()
      },
      "checkpoints_every": _EVERY.value,
      "checkpoints_in_a_turn": max(contest.checkpoints_written),
      "trainer_to_bare": round(typical["trainer"] / typical["bare"], 4),
      "checkpoints_to_bare": round(typical["checkpoints"] / typical["bare"], 4),
  }


class Contest:
  """The three ways to train one network, which take turns.

  Attributes:
    network: The one in training.
    checkpoints_written: Within the measured steps of each turn of the trainer.
  """

  def __init__(self, run_config: config.RunConfig, prepared: Any, scratch: pathlib.Path):
    lib = libraries()
    run = run_folder.RunFolder.create(scratch / "run")
    self.network = prepared.network
    self.checkpoints_written: list[int] = []
    self._prepared = prepared
    self._steps = _SKIP.value + _STEPS.value
    self._trainer = lib.trainer.Trainer(run, run_config, prepared)
    steering = self._trainer.steering
    self._saver = next(c for c in steering if isinstance(c, lib.checkpointing.Checkpointer))
    self._acting = [callback for callback in steering if acts_on_steps(callback)]
    first = next(iter(prepared.batches.training(prepared.epoch_order, 0, 1)))
    constant = lib.tf.data.Dataset.from_tensors(prepared.batches.finished(first))
    self._constant = constant.repeat(self._steps)
    self._bare = bare_network(prepared.network, run_config)

  def take_turns(self) -> dict[str, list[float]]:
    """Returns way -> seconds per step of each of its turns."""
    ways: dict[str, Callable[[Any], None]] = {
        "bare": self._fit_bare,
        "trainer": lambda timer: self._fit_trainer(timer, 0),
        "checkpoints": lambda timer: self._fit_trainer(timer, _EVERY.value),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(_ROUNDS.value + 1):
      # The order is reversed each time, so that no way always follows the same other one.
      for name in list(ways)[:: 1 if turn % 2 else -1]:
        timer, mean_s = make_timer(_SKIP.value)
        ways[name](timer)
        if turn:  # The first turn compiles.
          seconds[name].append(mean_s())
    return seconds

  def _fit_bare(self, timer: Any) -> None:
    self._bare.fit(self._constant, epochs=1, verbose=0, callbacks=[timer], shuffle=False)

  def _fit_trainer(self, timer: Any, every: int) -> None:
    clock, writer = self._trainer.clock, self._trainer.writer
    self._saver.every_steps = every
    # Half a distance before the first checkpoint, so that its writing lies within the measurement.
    clock.step += -(clock.step + _SKIP.value - _EVERY.value // 2) % _EVERY.value
    data = self._prepared.batches.training(self._prepared.epoch_order, clock.step, self._steps)
    before = writer.num_submitted
    self.network.fit(data, epochs=1, verbose=0, callbacks=[timer, *self._acting], shuffle=False)
    # Less that of the epoch's end.
    self.checkpoints_written.append(writer.num_submitted - before - 1)
    writer.wait()  # What is still being written must not slow the next way down.


def bare_network(network: Any, run_config: config.RunConfig) -> Any:
  """Returns a model on the same layers, compiled with no more than it takes to train."""
  lib, settings = libraries(), run_config.training
  bare = lib.keras.Model(network.input, network.outputs[0])
  bare.compile(
      optimizer=lib.run_optimizer.make(settings),
      loss=lib.losses.make(
          settings.loss, run_config.model.num_classes, from_logits=True,
          **lib.loss_settings.options(settings),
      ),
      jit_compile=settings.jit_compile == "on",
      steps_per_execution=settings.steps_per_execution,
  )
  return bare


def acts_on_steps(callback: Any) -> bool:
  """Returns whether a Keras callback does anything at a step."""
  kind, base = type(callback), libraries().keras.callbacks.Callback
  hooks = ("on_train_batch_begin", "on_train_batch_end")
  return any(getattr(kind, hook) is not getattr(base, hook) for hook in hooks)


def make_timer(skip: int) -> tuple[Any, Callable[[], float]]:
  """Returns a callback that times whole steps, and what gives their mean in seconds.

  It must be the first callback: those after it belong to the step that follows.

  Args:
    skip: Steps left out at the start.
  """
  ends: list[tuple[int, float]] = []
  timer = libraries().keras.callbacks.LambdaCallback(
      on_train_batch_end=lambda batch, logs: ends.append((batch + 1, time.perf_counter()))
  )

  def mean_s() -> float:
    counted = [end for end in ends if end[0] >= max(1, skip)]
    (first, start), (last, stop) = counted[0], counted[-1]
    return (stop - start) / (last - first)

  return timer, mean_s


def run() -> None:
  command_line.run(main, _PROGRAM, expand=preset_files.expand)


if __name__ == "__main__":
  run()
