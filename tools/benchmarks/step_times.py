"""Measures training steps of several widths: the table by which planning predicts times.

  flexunet benchmark_step_times > flexunet/network/step_times.json

For each network the operations a second of its training step, as a share of those of a
convolution alone that is timed beside it, on random images. Prints one JSON object. --busy takes
the time of the processor, divided by the cores, in place of the time on the clock: for a machine
on which other programs run.
"""

from __future__ import annotations

import itertools
import json
import platform
import statistics
import time
import types
from collections.abc import Callable, Sequence
from typing import Any

from flexunet import config
from flexunet.core import command_line, flags, machine, progress
from flexunet.network import step_time
from flexunet.network.architecture import ModelConfig

_PROGRAM = flags.Program(__doc__)
_FILTERS = _PROGRAM.list("base_filters", "8,16,32", "Widths to measure.")
_STEMS = _PROGRAM.list("stems", "full,half_refined", "First stages to measure.")
_SIZES = _PROGRAM.list("edges", "64,176", "Edges of the square images.")
_PRECISIONS = _PROGRAM.list(
    "precisions", "float32,mixed_bfloat16", "Precisions to measure; the first is also taken for"
    " others that were not.",
)  # fmt: skip
_STEPS = _PROGRAM.integer("steps", 10, "Steps measured of each network.", lower_bound=3)
_PIXELS = _PROGRAM.integer(
    "pixels", 32 * 64 * 64, "Pixels of a step, as many as planning takes in patches; the batches"
    " follow.", lower_bound=1,
)  # fmt: skip
_BUSY = _PROGRAM.boolean("busy", False, "Counts the time of the processor.")


def main(argv: Sequence[str]) -> None:
  command_line.no_words(argv)
  filters = flags.numbers("base_filters", _FILTERS.value, int)
  edges = flags.numbers("edges", _SIZES.value, int)
  command_line.load_tensorflow()
  cores = machine.available_cpus()
  measured = []
  for precision in _PRECISIONS.value:
    speeds: list[float] = []
    rows = []
    for stem, width, edge in itertools.product(_STEMS.value, filters, edges):
      progress.say(f"{precision}, {stem}, {width} filters, {edge} x {edge} pixels ...")
      before = convolution_speed(precision, cores)
      row = measured_row(stem, width, edge, precision, cores)
      # Before and after, so that a machine that slows down meanwhile does so for both.
      convolution = (before * convolution_speed(precision, cores)) ** 0.5
      speeds.append(convolution)
      rows.append({**row, "share": round(row["speed"] / convolution, 4)})
      progress.say(json.dumps(rows[-1]))  # What there is, should the rest not be waited for.
    measured.append({
        "precision": precision, "cores": cores, "processor": platform.machine(),
        "convolution_speed": round(statistics.median(speeds)), "rows": rows,
    })  # fmt: skip
  command = "flexunet benchmark_step_times" + (" --busy" if _BUSY.value else "")
  print(json.dumps({
      "command": command, "timed_by": "processor" if _BUSY.value else "clock",
      "measured": measured,
  }, indent=1))  # fmt: skip


def measured_row(
    stem: str, width: int, edge: int, precision: str, cores: int
) -> dict[str, Any]:
  """Returns what was measured of a network: its shape, seconds a step, operations a second."""
  model = ModelConfig(
      image_size=(edge, edge), num_classes=2, base_filters=width, base_kernels=3, num_layers=5,
      dropout_rate=0.02, normalization="batch", stem=stem, decoder_convolutions=2,
  )  # fmt: skip
  batch_size = max(1, _PIXELS.value // edge**2)
  seconds = step_seconds(model, batch_size, precision, cores)
  return {
      "stem": stem,
      "base_filters": width,
      "image_size": [edge, edge],
      "batch_size": batch_size,
      "seconds": round(seconds, 4),
      "speed": round(step_time.operations(model, batch_size) / seconds),
  }


def step_seconds(model: ModelConfig, batch_size: int, precision: str, cores: int) -> float:
  """Returns the median duration of a training step on random images."""
  lib = libraries()
  settings = config.TrainingConfig(
      optimizer="adamw", learning_rate=1e-3, weight_decay=1e-4, clipvalue=0.5, ema_momentum=0.98
  )
  with lib.devices.precision(precision):
    twin = lib.model.logits_twin(lib.model.build_model(model))
    network = lib.networks.TrainingNetwork(twin.input, twin.outputs[0])
    network.compile(
        lib.run_optimizer.make(settings),
        loss=lib.losses.make("dice_cross_entropy", 2, from_logits=True),
        weighted_metrics=lib.metrics.training_metrics(["dice"], 2),
    )
  random = lib.np.random.default_rng(0)
  image = random.integers(0, 256, (batch_size, *model.image_size, 1)).astype("uint8")
  label = (image[..., 0] > 200).astype("uint8")

  def step() -> None:
    network.train_on_batch(image, label)

  return median_seconds(step, _STEPS.value, cores)


def convolution_speed(precision: str, cores: int) -> float:
  """Returns the operations a second of `devices.convolution`, timed as the steps are."""
  lib = libraries()
  convolve, operations = lib.devices.convolution(precision)
  return operations / median_seconds(convolve, 30, cores)


def median_seconds(call: Callable[[], None], times: int, cores: int) -> float:
  """Returns the median duration of a call; two calls before it prepare."""
  clock = time.process_time if _BUSY.value else time.perf_counter
  taken = []
  for _ in range(times + 2):
    started = clock()
    call()
    taken.append(clock() - started)
  return statistics.median(taken[2:]) / (cores if _BUSY.value else 1)


def libraries() -> types.SimpleNamespace:
  """Returns what loads TensorFlow, imported when the flags are known to be right."""
  # Heavy: --help is answered without them.
  import numpy as np

  # So are these.
  from flexunet.network import model
  from flexunet.objectives import losses, metrics
  from flexunet.optimizers import run_optimizer
  from flexunet.training import devices, networks

  return types.SimpleNamespace(
      np=np, model=model, losses=losses, metrics=metrics, run_optimizer=run_optimizer,
      devices=devices, networks=networks,
  )  # fmt: skip


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()
