"""Measures how training scales over devices that share a batch, and whether it stays the same.

  flexunet benchmark_devices --data_dir=DATA --dataset=hippocampus_t1w --counts=1,2,4

Takes the flags of `flexunet train`; --num_devices, --previews and --checkpoint_steps have no
effect. Each number of devices has a process of its own, and the processes take turns: only one
trains at a time. The batch is the same for all, unless --per_device gives each device one of that
size. Without a GPU the devices are parts of the CPU (as with `flexunet train --num_devices`): then
the figures say what sharing a batch costs, for there is no more hardware.

Prints one JSON object: steps and images a second (best of the rounds), the ratios to the first
number of devices, and the loss after the first turn, which with --dropout_rate=0 differs by
rounding alone.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from flexunet.core import command_line, flags, machine, progress
from flexunet.core.errors import InputError
from flexunet.pipelines import dataset_source
from flexunet.presets import preset_files
from flexunet.tools.benchmarks import trainer
from flexunet.train import TrainerFlags

_PROGRAM = flags.Program(__doc__)
_COUNTS = _PROGRAM.list("counts", "1,2,4", "Numbers of devices.")
_STEPS = _PROGRAM.integer("steps", 20, "Measured steps in a turn.", lower_bound=2)
_ROUNDS = _PROGRAM.integer("rounds", 3, "Turns of each number; the best counts.", lower_bound=1)
_PER_DEVICE = _PROGRAM.boolean("per_device", False, "Multiplies --batch_size by the devices.")
_SERVE = _PROGRAM.integer("serve", 0, "Used by this program to start its processes.")
_MODULE = "flexunet.tools.benchmarks.devices"
_SKIP = 2  # Steps left out at the start of a turn.
_TRAINER = TrainerFlags(_PROGRAM)


def main(argv: Sequence[str]) -> None:
  command_line.no_words(argv)
  given = _TRAINER.read()
  data = given["data"]
  splits = (data.train_split, data.validation_split)
  dataset_source.check_folder(data.dataset, data.data_dir, splits, data.fold)
  if _SERVE.value:
    command_line.load_tensorflow()
    serve(_SERVE.value, given)
    return
  if not all(word.isdecimal() and int(word) > 0 for word in _COUNTS.value):
    raise InputError(f"--counts must be whole numbers above 0. Got: {','.join(_COUNTS.value)}.")
  print(json.dumps(measure([int(word) for word in _COUNTS.value]), indent=2))


def measure(counts: Sequence[int]) -> dict[str, Any]:
  """Returns the figures of each number of devices, whose processes take turns."""
  runs = {}
  for count in dict.fromkeys(counts):
    progress.say(f"Preparing {count} device{'s' if count > 1 else ''} ...")
    runs[count] = Run(count)
  rates: dict[int, list[float]] = {count: [] for count in runs}
  for turn in range(_ROUNDS.value + 1):
    for count, one in runs.items():
      rate = one.turn()
      progress.say(f"turn {turn}, {count} devices: {rate:.2f} steps/s")
      if turn:  # The first turn compiles.
        rates[count].append(rate)
  for one in runs.values():
    one.end()
  best = {count: max(found) for count, found in rates.items()}
  images = {count: best[count] * run.about["batch_size"] for count, run in runs.items()}
  first = next(iter(runs))
  return {
      "devices": {count: one.about["devices"] for count, one in runs.items()},
      "gpu_seen": runs[first].about["gpu_seen"],
      "processors": machine.available_cpus(),
      "batch_size": {count: one.about["batch_size"] for count, one in runs.items()},
      "threads_of_an_operation": {count: one.about["threads"] for count, one in runs.items()},
      "steps_per_second": {count: round(rate, 3) for count, rate in best.items()},
      "images_per_second": {count: round(rate, 2) for count, rate in images.items()},
      f"images_per_second / that of {first}": {
          count: round(rate / images[first], 3) for count, rate in images.items()
      },
      "loss_after_the_first_turn": {count: one.losses[0] for count, one in runs.items()},
  }


class Run:
  """A process that has prepared a run on some devices.

  Attributes:
    about: What it says of itself.
    losses: After each turn.
  """

  def __init__(self, count: int):
    self._process = subprocess.Popen(
        [sys.executable, "-m", _MODULE, *sys.argv[1:], f"--serve={count}"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )
    self.losses: list[float] = []
    self.about = self._answer()

  def _answer(self) -> dict[str, Any]:
    line = self._process.stdout.readline() if self._process.stdout else ""
    if not line:
      raise InputError("Each number of devices must be possible; the lines above say why not.")
    return json.loads(line)

  def turn(self) -> float:
    """Trains some steps; returns steps a second."""
    if self._process.stdin:
      self._process.stdin.write("turn\n")
      self._process.stdin.flush()
    found = self._answer()
    self.losses.append(found["loss"])
    return found["steps_per_second"]

  def end(self) -> None:
    """Ends the process."""
    self._process.communicate()


def serve(count: int, given: dict[str, Any]) -> None:
  """Prepares a run on `count` devices and trains some steps for each line of standard input."""
  lib = trainer.libraries()
  settings = dataclasses.replace(
      given["training"], previews=0, checkpoint_steps=0, num_devices=count
  )
  if _PER_DEVICE.value and settings.batch_size:
    settings = dataclasses.replace(settings, batch_size=settings.batch_size * count)
  gpu = lib.devices.has_gpu()
  if not gpu and count > 1:
    lib.devices.divide_cpu(count, more_than_processors=True)
  model, data = given["model"], given["data"]
  opened = lib.input_pipeline.open_data(data, model.image_size)
  run_config = lib.run_setup.complete(model, data, settings, opened, given["augmentation"])
  lib.devices.prepare(run_config.training)
  prepared = lib.trainer.prepare(run_config, opened)
  about = {
      "devices": prepared.replicas, "gpu_seen": gpu,
      "batch_size": run_config.training.batch_size,
      "threads": lib.tf.config.threading.get_intra_op_parallelism_threads() or "all",
  }  # fmt: skip
  print(json.dumps(about), flush=True)
  step = 0
  for _ in sys.stdin:
    steps = _SKIP + _STEPS.value
    timer, mean_s = trainer.make_timer(_SKIP)
    history = prepared.network.fit(
        prepared.batches.training(prepared.epoch_order, step, steps), epochs=1, verbose=0,
        callbacks=[timer], shuffle=False,
    )  # fmt: skip
    step += steps
    loss = float(history.history["loss"][-1])
    print(json.dumps({"steps_per_second": 1 / mean_s(), "loss": loss}), flush=True)


def run() -> None:
  command_line.run(main, _PROGRAM, expand=preset_files.expand)


if __name__ == "__main__":
  run()
