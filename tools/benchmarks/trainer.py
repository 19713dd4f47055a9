"""Measures what the trainer adds to a bare Keras `fit` of the same network.

    python -m flexunet.tools.benchmarks.trainer --data_dir=DATA --dataset=hippocampus_t1w \
        --preset=published/hippocampus_t1w

Takes the flags of `flexunet.train`; --previews and --checkpoint_steps have no effect. Three
ways take turns in one process, on the same layers:
  bare         Keras fit on one constant batch: optimizer and loss of the run, nothing else
  trainer      the run's own batches, scores and callbacks
  checkpoints  the same, with a checkpoint every --every steps
Prints one JSON object: milliseconds per step (median over the rounds of each round's mean, the
first steps of a round left out) and the ratios. Nothing is kept.
"""

from __future__ import annotations

import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from flexunet import config
from flexunet.core import command_line, flags
from flexunet.pipelines.augmentation.config import AugmentationConfig
from flexunet.presets import preset_files

_PROGRAM = flags.Program(__doc__)
_EVERY = _PROGRAM.integer("every", 20, "Steps between two checkpoints.", lower_bound=2)
_ROUNDS = _PROGRAM.integer("rounds", 3, "Turns of each way.", lower_bound=1)
_SKIP = _PROGRAM.integer("skip", 2, "Steps left out at the start of a turn.", lower_bound=0)
_STEPS = _PROGRAM.integer(
    "steps", 40, "Measured steps in a turn; a multiple of --every counts checkpoints fairly.",
    lower_bound=1,
)  # fmt: skip
_MODEL = _PROGRAM.fields(config.ModelConfig)
_DATA = _PROGRAM.fields(config.DataConfig)
_TRAINING = _PROGRAM.fields(config.TrainingConfig)
_AUGMENTATION = _PROGRAM.fields(AugmentationConfig)
_PROGRAM.string("preset", None, f"One of {', '.join(preset_files.names())}.")


def main(argv: Sequence[str]) -> None:
  command_line.no_words(argv)
  parts = [
      flags.read(config.ModelConfig, _MODEL),
      flags.read(config.DataConfig, _DATA),
      flags.read(config.TrainingConfig, _TRAINING, previews=0, checkpoint_steps=0),
  ]
  augmentation = flags.read(AugmentationConfig, _AUGMENTATION)
  command_line.load_tensorflow()
  from flexunet.training import input_pipeline, run_setup

  opened = input_pipeline.open_data(parts[1])
  run_config = run_setup.complete(parts[0], parts[1], parts[2], opened, augmentation)
  with tempfile.TemporaryDirectory() as scratch:
    print(json.dumps(measure(run_config, opened, pathlib.Path(scratch)), indent=2))


def measure(run_config: config.RunConfig, opened: Any, scratch: pathlib.Path) -> dict[str, Any]:
  """Returns the figures of the three ways."""
  from flexunet import run_folder
  from flexunet.training import checkpointing, devices, trainer

  settings = run_config.training
  devices.prepare(settings)
  prepared = trainer.prepare(run_config, opened)
  run = run_folder.RunFolder.create(scratch / "run")
  runner = trainer.Trainer(run, run_config, prepared)
  steps = _SKIP.value + _STEPS.value
  first = next(iter(prepared.batches.training(prepared.epoch_order, 0, 1)))
  constant = prepared.batches.finished(first)
  bare = bare_network(prepared.network, run_config)
  saver = next(c for c in runner.steering if isinstance(c, checkpointing.Checkpointer))
  acting = [c for c in runner.steering if acts_on_steps(c)]
  written = []

  def fit_bare(timer) -> None:
    bare.fit(repeated(constant, steps), epochs=1, verbose=0, callbacks=[timer], shuffle=False)

  def fit_ours(timer, every: int) -> None:
    saver.every_steps = every
    # Half a distance before the first checkpoint, so that its writing lies within the measurement.
    runner.clock.step += -(runner.clock.step + _SKIP.value - _EVERY.value // 2) % _EVERY.value
    data = prepared.batches.training(prepared.epoch_order, runner.clock.step, steps)
    before = runner.writer.num_submitted
    prepared.network.fit(data, epochs=1, verbose=0, callbacks=[timer, *acting], shuffle=False)
    written.append(runner.writer.num_submitted - before - 1)  # Less that of the epoch's end.
    runner.writer.wait()  # What is still being written must not slow the next way down.

  ways = {
      "bare": fit_bare,
      "trainer": lambda timer: fit_ours(timer, 0),
      "checkpoints": lambda timer: fit_ours(timer, _EVERY.value),
  }
  seconds: dict[str, list[float]] = {name: [] for name in ways}
  for turn in range(_ROUNDS.value + 1):
    # Turned round each time, so that no way always follows the same other one.
    for name in list(ways)[:: 1 if turn % 2 else -1]:
      timer = make_timer(_SKIP.value)
      ways[name](timer)
      if turn:  # The first turn compiles.
        seconds[name].append(timer.mean_s())
  typical = {name: statistics.median(values) for name, values in seconds.items()}
  model = run_config.model
  return {
      "parameters": prepared.network.count_params(),
      "image_size": list(model.image_size),
      "batch_size": settings.batch_size,
      "precision": settings.precision,
      "deterministic": settings.deterministic,
      "devices": devices.device_names(),
      "steps_a_turn": _STEPS.value,
      "ms_per_step": {name: round(1e3 * value, 2) for name, value in typical.items()},
      "ms_per_step_of_each_turn": {
          name: [round(1e3 * value, 2) for value in values] for name, values in seconds.items()
      },
      "checkpoints_every": _EVERY.value,
      "checkpoints_in_a_turn": max(written),
      "trainer_to_bare": round(typical["trainer"] / typical["bare"], 4),
      "checkpoints_to_bare": round(typical["checkpoints"] / typical["bare"], 4),
  }


def bare_network(network, run_config: config.RunConfig):
  """Returns a model on the same layers, compiled with no more than it takes to train."""
  import keras

  from flexunet.objectives import loss_settings, losses
  from flexunet.training import networks

  settings = run_config.training
  bare = keras.Model(network.input, network.outputs[0])
  bare.compile(
      optimizer=networks.make_optimizer(settings),
      loss=losses.make(
          settings.loss, run_config.model.num_classes, **loss_settings.options(settings)
      ),
      jit_compile=settings.jit_compile == "on",
      steps_per_execution=settings.steps_per_execution,
  )
  return bare


def repeated(batch, times: int):
  import tensorflow as tf

  return tf.data.Dataset.from_tensors(batch).repeat(times)


def acts_on_steps(callback) -> bool:
  import keras

  kind, base = type(callback), keras.callbacks.Callback
  hooks = ("on_train_batch_begin", "on_train_batch_end")
  return any(getattr(kind, hook) is not getattr(base, hook) for hook in hooks)


def make_timer(skip: int):
  """Returns a callback that times whole steps, from the end of one to the end of the next."""
  import keras

  class Timer(keras.callbacks.Callback):
    """First in the list: the callbacks after it belong to the step that follows."""

    def __init__(self):
      super().__init__()
      self._ends: list[tuple[int, float]] = []

    def on_train_batch_end(self, batch, logs=None):
      self._ends.append((batch + 1, time.perf_counter()))

    def mean_s(self) -> float:
      counted = [end for end in self._ends if end[0] >= max(1, skip)]
      (first, start), (last, stop) = counted[0], counted[-1]
      return (stop - start) / (last - first)

  return Timer()


def run() -> None:
  command_line.run(main, _PROGRAM, expand=preset_files.expand)


if __name__ == "__main__":
  run()
