"""Measures training on a GPU without TensorFlow, by Keras on JAX and by a plain PyTorch U-Net.

  flexunet benchmark_gpu --dataset=hippocampus_t1w --data_dir=DATA

Each combination of --image_sizes, --precisions and --batch_sizes is trained by each of --systems,
in a process of its own; the systems of a combination take turns. Of each system:

  step       the compiled step (forward, loss, backward, AdamW) on a batch that lies on the device
  memory     the loop of the trainer, fed with one batch of the host
  records    the same loop, fed by `flexunet.records` through threads (with --data_dir)

The idle share is the part of `records` that `memory` does not take. Figures are medians over the
turns; `first_step_s`, with compilation and the choice of algorithms, stands apart.

Needs no TensorFlow: pip install numpy pillow absl-py tqdm wrapt keras "jax[cuda12]" torch, and this
package with --no-deps. Where no GPU is seen it runs on the processor and says so in `note`; ratios
are then by CPU time. On a GPU both frameworks may compute float32 convolutions in TF32.

Prints one JSON object.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from flexunet.core import command_line, config_fields, flags, machine, progress
from flexunet.core.errors import InputError
from flexunet.network import cost
from flexunet.network.architecture import ModelConfig
from flexunet.records import open_records
from flexunet.tools.benchmarks import processes
from flexunet.tools.benchmarks.gpu_rates import SYSTEMS, Task

_PROGRAM = flags.Program(__doc__)
_SYSTEMS = _PROGRAM.list("systems", "keras_jax,torch", "What trains; the first is the reference"
                         " of ratios.", choices=tuple(SYSTEMS))  # fmt: skip
_SIZES = _PROGRAM.list("image_sizes", "256,512", "Edges of the square images, in pixels.")
_PRECISIONS = _PROGRAM.list(
    "precisions", "float32,bfloat16", "Precisions; of bfloat16 weights are float32.",
    choices=("float32", "bfloat16"),
)  # fmt: skip
_BATCHES = _PROGRAM.list("batch_sizes", "4,16", "Images a step.")
_ROUNDS = _PROGRAM.integer("rounds", 3, "Turns of each system.", lower_bound=1)
_STEPS = _PROGRAM.integer("steps", 20, "Steps in a turn.", lower_bound=2)
_DATASET = _PROGRAM.string("dataset", None, "Built dataset, name/config, below --data_dir.")
_DATA_DIR = _PROGRAM.string("data_dir", None, "Folder of built datasets; without it no records.")
_SPLIT = _PROGRAM.string("split", "train", "Split to read.")
_THREADS = _PROGRAM.integer(
    "reader_threads", None, "Threads that read records; by default as many as cores, at most 8.",
    lower_bound=1,
)  # fmt: skip
_PEER_PYTHON = _PROGRAM.string(
    "peer_python", None, "Python of the systems `torch`; by default this one."
)
# What planning chooses on a GPU.
_SHAPE = _PROGRAM.fields(
    ModelConfig, group="Network", skip=("image_size", "num_classes", "deep_supervision"),
    defaults={
        "base_filters": 32, "base_kernels": 3, "num_layers": 5, "dropout_rate": 0.02,
        "normalization": "batch", "stem": "full", "decoder_convolutions": 2,
    },
)  # fmt: skip
_CLASSES = _PROGRAM.integer(
    "num_classes", None, "Classes; by default those of the dataset, else 4.", lower_bound=2,
    group="Network",
)  # fmt: skip

_MOST_THREADS = 8
# What `gpu_torch.PlainUNet` knows.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "stem": ("full",), "block": ("plain",), "encoder_blocks": (1,), "decoder_convolutions": (2,),
    "upsampling": ("transpose",), "activation": ("relu",), "kernel_initializer": ("he_normal",),
    "input_normalization": ("unit",), "normalization": ("none", "batch", "group", "instance"),
}  # fmt: skip
_BACKWARD = 3  # Forward, and the gradients of inputs and of weights, cost about the same each.
_PROCESS = "flexunet.tools.benchmarks.gpu_rates"


def main(argv: Sequence[str]) -> None:
  command_line.no_words(argv)
  systems = _chosen("systems", _SYSTEMS.value, SYSTEMS)
  precisions = _chosen("precisions", _PRECISIONS.value, ("float32", "bfloat16"))
  sizes = _counts("image_sizes", _SIZES.value)
  batch_sizes = _counts("batch_sizes", _BATCHES.value)
  folder, about, classes = _records()
  shape = flags.read(ModelConfig, _SHAPE, num_classes=_CLASSES.value or classes or 4)
  for system in systems:
    check_system(system, shape, _PEER_PYTHON.value)
  for edge in sizes:
    if edge % shape.multiple:
      raise InputError(
          f"--image_sizes must be multiples of {shape.multiple}, the coarsest pixel of the network,"
          f" since a plain U-Net does not fill up. Got: {edge}."
      )
  tasks = [
      Task(
          system="", knobs=dataclasses.asdict(dataclasses.replace(shape, image_size=(edge, edge))),
          precision=precision, batch_size=batch_size, steps=_STEPS.value, folder=folder,
          split=_SPLIT.value,
          threads=_THREADS.value or min(_MOST_THREADS, machine.available_cpus()),
      )
      for edge in sizes for precision in precisions for batch_size in batch_sizes
  ]  # fmt: skip
  print(json.dumps({**measure(tasks, systems), "records": about}, indent=2))


def _chosen(name: str, words: Sequence[str], known: Sequence[str] | dict) -> list[str]:
  for word in words:
    config_fields.check_choice(f"--{name}", word, tuple(known))
  return list(dict.fromkeys(words))


def _counts(name: str, words: Sequence[str]) -> tuple[int, ...]:
  found = flags.numbers(name, words, int)
  if not found or min(found) < 1:
    raise InputError(f"--{name} must be numbers from 1 on. Got: {','.join(words)}.")
  return found


def _records() -> tuple[str | None, dict[str, Any] | None, int | None]:
  """Returns the version folder of the records, what is said of them, and their classes."""
  if _DATA_DIR.value is None:
    if _DATASET.value:
      raise InputError("--dataset needs --data_dir, the folder in which it was built.")
    return None, None, None
  records = open_records(
      _DATA_DIR.value, _SPLIT.value, dataset=_DATASET.value, features=("image", "label")
  )
  if records.holds_volumes:
    raise InputError(f"{records.name} must hold slices to feed a network of slices: it holds"
                     " whole scans. Name a dataset of config `slices`.")  # fmt: skip
  channels = records[0]["image"].shape[-1]
  if channels != _SHAPE["image_channels"].value:
    raise InputError(f"--image_channels must be those of {records.name}, {channels}. Got:"
                     f" {_SHAPE['image_channels'].value}.")  # fmt: skip
  about = {"dataset": records.name, "split": records.split, "records": len(records),
           "size_hw_of_the_first": list(records[0]["label"].shape[:2])}  # fmt: skip
  return str(records.path), about, len(records.class_names) or None


def check_system(system: str, shape: ModelConfig, peer_python: str | None) -> None:
  """Raises an InputError where a system lacks a package, or does not know such a network."""
  packages, backend = SYSTEMS[system]
  if backend or not peer_python:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
      raise InputError(
          f"{system} needs {' and '.join(missing)}, not installed beside {sys.executable}. Install"
          " it, or leave the system out of --systems."
      )
  for name, known in _PLAIN.items() if not backend else ():
    if (value := getattr(shape, name)) not in known:
      raise InputError(
          f"The plain PyTorch U-Net has {name}={' or '.join(map(str, known))} only. Got: {value}."
          f" Leave {system} out of --systems to measure ours alone."
      )


def measure(tasks: Sequence[Task], systems: Sequence[str]) -> dict[str, Any]:
  """Returns the figures of all combinations.

  Args:
    tasks: The combinations; their `system` is left open.
    systems: What trains each of them.
  """
  devices: dict[str, Any] = {}
  cells = []
  for task in tasks:
    cell, seen = _cell(task, systems)
    devices |= seen
    cells.append(cell)
    progress.say(json.dumps(cell))  # What there is, should the rest not be waited for.
  gpu = any(device["gpu"] for device in devices.values())
  _add_precision_ratios(cells, _clock(devices))
  shape = {name: value for name, value in tasks[0].knobs.items() if name != "image_size"}
  note = "" if gpu else "no GPU was seen: these are figures of the processor"
  return {
      "gpu_seen": gpu, "note": note, "devices": devices, "cpus": machine.available_cpus(),
      "ratios_by": "the clock" if gpu else "CPU time", "rounds": _ROUNDS.value,
      "steps_a_turn": _STEPS.value, "reader_threads": tasks[0].threads, "network": shape,
      "parameters": cost.count_parameters(tasks[0].model), "cells": cells,
  }  # fmt: skip


def _cell(task: Task, systems: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns the figures of a combination, and the devices it ran on."""
  edge = task.model.image_size[0]
  cell: dict[str, Any] = {
      "image_size": edge, "precision": task.precision, "batch_size": task.batch_size, "systems": {},
  }  # fmt: skip
  found: dict[str, dict[str, Any]] = cell["systems"]
  devices: dict[str, Any] = {}
  with contextlib.ExitStack() as stack:
    workers: dict[str, processes.Worker] = {}
    # One after another: the choice of algorithms is a measurement of its own.
    for system in systems:
      progress.say(f"{edge} px, {task.precision}, batch {task.batch_size}: {system} starts ...")
      with _failure(found, system):
        worker = stack.enter_context(_started(dataclasses.replace(task, system=system)))
        devices[system] = {
            name: worker.first[name]
            for name in ("gpu", "device_kind", "software", "tensorflow_loaded")
        }  # fmt: skip
        workers[system] = worker
    turns: dict[str, list[tuple[str, dict[str, Any]]]] = {system: [] for system in workers}
    for _ in range(_ROUNDS.value):
      for system, worker in workers.items():
        for way in worker.first["ways"] if system not in found else ():
          with _failure(found, system):
            turns[system].append((way, _checked(worker.ask(way))))
    for system, worker in workers.items():
      if system not in found:
        found[system] = _figures(worker.first, turns[system], task)
  first, *others = systems
  cell[f"{first}_images_per_s_to"] = {
      other: _speed(found[first], found[other], _clock(devices)) for other in others
      if "step" in found[first] and "step" in found[other]
  }  # fmt: skip
  return cell, devices


@contextlib.contextmanager
def _failure(found: dict[str, dict[str, Any]], system: str) -> Iterator[None]:
  """Keeps why a system failed at a combination, such as for want of memory, and lets others run."""
  try:
    yield
  except (processes.EndedError, _FailedError) as error:
    found[system] = {"error": str(error)}
    progress.say(f"{system} failed: {error}")


class _FailedError(Exception):
  """A process has said why it cannot train."""


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
  if "error" in answer:
    raise _FailedError(answer["error"])
  return answer


@contextlib.contextmanager
def _started(task: Task) -> Iterator[processes.Worker]:
  _, backend = SYSTEMS[task.system]
  python = sys.executable if backend else _PEER_PYTHON.value or sys.executable
  environment = {
      "KERAS_BACKEND": backend or "torch",
      # The systems share the device: JAX would take three quarters of its memory at once.
      "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
      "TF_CPP_MIN_LOG_LEVEL": "2",
  }
  words = [json.dumps(dataclasses.asdict(task))]
  with processes.started(python, _PROCESS, [words], environment) as [worker]:
    _checked(worker.first)
    yield worker


def _figures(
    first: dict[str, Any], turns: Sequence[tuple[str, dict[str, Any]]], task: Task
) -> dict[str, Any]:
  """Returns the medians of a system's turns."""
  figures: dict[str, Any] = {
      "parameters": first["parameters"], "first_step_s": round(first["first_step_s"], 3),
  }  # fmt: skip
  for way in first["ways"]:
    answers = [answer for name, answer in turns if name == way]
    wall, cpu = (statistics.median(one[name] for one in answers) for name in ("wall_s", "cpu_s"))
    figures[way] = {
        "wall_ms": round(1e3 * wall, 3), "cpu_ms": round(1e3 * cpu, 3),
        "images_per_s": round(task.batch_size / wall, 2),
        "wall_ms_of_each_turn": [round(1e3 * one["wall_s"], 3) for one in answers],
    }  # fmt: skip
  flops = 2 * task.batch_size * sum(row.multiply_adds for row in cost.rows(task.model))
  figures["step"]["tflop_per_s"] = round(
      _BACKWARD * flops / figures["step"]["wall_ms"] / 1e9, 4
  )
  if "records" in figures:
    fed, free = figures["records"]["wall_ms"], figures["memory"]["wall_ms"]
    figures["idle_share_fed_by_records"] = round(max(0.0, 1 - free / fed), 4)
  figures["peak_memory_bytes"] = turns[-1][1]["peak_memory_bytes"]
  figures["loss"] = round(turns[-1][1]["loss"], 5)
  return figures


def _clock(devices: dict[str, Any]) -> str:
  """Returns by which figure ratios are taken: other programs take the clock of a processor."""
  return "wall_ms" if any(device["gpu"] for device in devices.values()) else "cpu_ms"


def _speed(ours: dict[str, Any], other: dict[str, Any], clock: str) -> float:
  """Returns the images a second of a step, by those of another with as many images a step."""
  return round(other["step"][clock] / ours["step"][clock], 4)


def _add_precision_ratios(cells: Sequence[dict[str, Any]], clock: str) -> None:
  """Says in each cell of bfloat16 how many times as fast a step is as in float32."""
  wide = {(one["image_size"], one["batch_size"]): one["systems"] for one in cells
          if one["precision"] == "float32"}  # fmt: skip
  for cell in cells:
    beside = wide.get((cell["image_size"], cell["batch_size"]))
    if cell["precision"] == "float32" or not beside:
      continue
    for system, figures in cell["systems"].items():
      if "step" in figures and "step" in beside[system]:
        figures["images_per_s_to_float32"] = _speed(figures, beside[system], clock)


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()
