"""Measures the readers without TensorFlow beside tf.data on the same records; prints JSON.

  flexunet benchmark_readers --dataset=hippocampus_t1w --data_dir=DATA

Everything is measured in turns within one run: read the ratios. Records are read in random order
and decoded, image and label, at the size they are stored in. A rate per core is images by CPU
seconds of all threads and processes, so that other programs on the machine count little; the best
of --rounds.

  tf_data            the stream of the trainer, as NumPy arrays
  records_N          `flexunet.records` in N processes
  monai_persistent   MONAI's PersistentDataset over the same records: decoded ones from the disk
  monai_cache        MONAI's CacheDataset over the same records: decoded ones from the memory,
                     handed out as they are: nothing is left to be done

tf.data and MONAI are measured where they are installed; --peer_python names another Python that has
MONAI, PyTorch, NumPy and Pillow.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from flexunet.core import command_line, flags, machine, progress
from flexunet.core.errors import InputError
from flexunet.pipelines import dataset_source
from flexunet.tools.benchmarks import processes

_PROGRAM = flags.Program(__doc__)
_DATASET = _PROGRAM.string("dataset", None, "Built dataset, name/config, below --data_dir.")
_DATA_DIR = _PROGRAM.string("data_dir", None, "Folder of built datasets.", required=True)
_SPLIT = _PROGRAM.string("split", "train", "Split to read.")
_RECORDS = _PROGRAM.integer(
    "records", 1000, "Records of a turn; a smaller split is repeated.", lower_bound=4
)
_ROUNDS = _PROGRAM.integer("rounds", 3, "Turns; the best of each counts.", lower_bound=1)
_PROCESSES = _PROGRAM.string("processes", "1,2,4", "Numbers of processes of the readers.")
_PEER_PYTHON = _PROGRAM.string("peer_python", None, "Python in which MONAI is installed.")

_PROCESS = "flexunet.tools.benchmarks.reader_rates"
# Returns {way: {"images", "cpu_s", "seconds"}} of one turn.
Turn = Callable[[], dict[str, dict[str, float]]]


def main(argv: Sequence[str]) -> None:
  command_line.no_words(argv)
  path = dataset_source.check_folder(_DATASET.value, _DATA_DIR.value, [_SPLIT.value])
  words = _PROCESSES.value.split(",")
  counts = [int(word) for word in words if word.isdecimal() and int(word)]
  if len(counts) != len(words):
    raise InputError(f"--processes must be numbers from 1 on. Got: {_PROCESSES.value}.")
  with contextlib.ExitStack() as stack:
    turns: list[Turn] = [tf_data_turn(path)] if _installed("tensorflow") else []
    for count in counts:
      group = stack.enter_context(workers(sys.executable, "records", path, count))
      turns.append(functools.partial(_numbered, group, count))
    if _PEER_PYTHON.value or _installed("monai"):
      python = _PEER_PYTHON.value or sys.executable
      turns.append(stack.enter_context(workers(python, "monai", path, 1)))
    print(json.dumps(measure(turns), indent=2))


def _numbered(group: Turn, count: int) -> dict[str, dict[str, float]]:
  return {f"records_{count}": group()["records"]}


def _installed(name: str) -> bool:
  return importlib.util.find_spec(name) is not None


def measure(turns: Sequence[Turn]) -> dict[str, Any]:
  """Returns the best rates of all turns, and their ratios to tf.data."""
  per_core: dict[str, float] = {}
  per_second: dict[str, float] = {}
  for turn in range(_ROUNDS.value):
    for run_turn in turns:
      for name, found in run_turn().items():
        per_core[name] = max(per_core.get(name, 0.0), found["images"] / found["cpu_s"])
        per_second[name] = max(per_second.get(name, 0.0), found["images"] / found["seconds"])
        progress.say(f"turn {turn} {name}: {found['images'] / found['cpu_s']:.0f} images/s a core")
  beside = per_core.get("tf_data")
  return {
      "dataset": dataset_source.check_folder(_DATASET.value, _DATA_DIR.value).parts[-3:],
      "records": _RECORDS.value,
      "cpus": machine.available_cpus(),
      "images_per_second_per_core": {name: round(rate, 1) for name, rate in per_core.items()},
      "images_per_second": {name: round(rate, 1) for name, rate in per_second.items()},
      "per core, by tf_data": {
          name: round(rate / beside, 3) for name, rate in per_core.items() if beside
      },
  }


def tf_data_turn(path: pathlib.Path) -> Turn:
  """Returns what reads the records once by the trainer's own stream."""
  command_line.load_tensorflow()
  # Heavy: --help and a wrong flag are answered without it.
  import tensorflow as tf

  # So are these.
  from flexunet.pipelines import readers, tf_data

  source = dataset_source.open_dataset(None, path)
  table = readers.slice_table(source, _SPLIT.value)
  reader = readers.native_reader(source, table, source.keys.image, source.keys.label)
  rows = np.resize(np.arange(len(table)), _RECORDS.value)
  rows = np.random.default_rng(0).permutation(rows).astype(np.int64)
  stream = tf_data.untuned(
      tf.data.Dataset.from_tensor_slices(rows)
      .map(reader, num_parallel_calls=tf_data.default_threads(), deterministic=True)
      .prefetch(16)
  )

  def turn() -> dict[str, dict[str, float]]:
    cpu, began = time.process_time(), time.perf_counter()
    images = sum(1 for _ in stream.as_numpy_iterator())
    spent = {"cpu_s": time.process_time() - cpu, "seconds": time.perf_counter() - began}
    return {"tf_data": {"images": images, **spent}}

  turn()  # The first turn traces and warms up.
  return turn


@contextlib.contextmanager
def workers(python: str, kind: str, path: pathlib.Path, count: int) -> Iterator[Turn]:
  """Starts processes that share the records; yields what lets them read their shares at once.

  Args:
    python: Runs them.
    kind: "records" or "monai", as `reader_rates` takes it.
    path: The version folder.
    count: How many processes.

  Raises:
    InputError: One ends before it answers.
  """
  tasks = [
      [kind, str(path), _SPLIT.value, str(share), str(count), str(_RECORDS.value)]
      for share in range(count)
  ]
  # One thread each: what a process takes is what a core does.
  one_thread = {"OMP_NUM_THREADS": "1"}
  try:
    with processes.started(python, _PROCESS, tasks, one_thread) as group:
      yield lambda: _turn(group)
  except processes.EndedError as error:
    raise InputError(
        "A process must read the records, but it ended: its error stands above. It needs NumPy and"
        " Pillow, and for MONAI's datasets torch and monai."
    ) from error


def _turn(group: Sequence[processes.Worker]) -> dict[str, dict[str, float]]:
  """Lets all processes read once; sums images and CPU seconds, the slowest counts for the time."""
  for worker in group:
    worker.send()
  answers = [worker.receive() for worker in group]
  return {
      name: {
          "images": sum(answer[name]["images"] for answer in answers),
          "cpu_s": sum(answer[name]["cpu_s"] for answer in answers),
          "seconds": max(answer[name]["seconds"] for answer in answers),
      }
      for name in answers[0]
  }


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()
