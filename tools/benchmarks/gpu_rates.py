"""How fast one process trains a network; a program of its own, run by `flexunet benchmark_gpu`.

  python -m flexunet.tools.benchmarks.gpu_rates TASK

TASK is the JSON of a `Task`. The first answer says what it runs on. Then "step", "memory" or
"records" on standard input trains for some steps, and is answered by their seconds, as JSON.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import importlib.abc
import importlib.machinery
import itertools
import json
import math
import sys
import time
import types
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from flexunet.network.architecture import ModelConfig
from flexunet.records import Records, open_records
from flexunet.tools.benchmarks import processes

# System -> the packages that it needs beside NumPy and Pillow, and the backend of Keras.
SYSTEMS: dict[str, tuple[tuple[str, ...], str]] = {
    "keras_jax": (("keras", "jax"), "jax"),
    "keras_torch": (("keras", "torch"), "torch"),
    "torch": (("torch",), ""),
    "torch_compiled": (("torch",), ""),
}
_ERROR_LETTERS = 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """What a process trains.

  Attributes:
    system: A key of `SYSTEMS`.
    knobs: Fields of `ModelConfig`, complete.
    precision: "float32" or "bfloat16".
    batch_size: Images a step.
    steps: Those of an answer.
    folder: Version folder of the records; None: there are none.
    split: That of the records.
    threads: How many read them.
  """

  system: str
  knobs: dict[str, Any]
  precision: str
  batch_size: int
  steps: int
  folder: str | None
  split: str
  threads: int

  @property
  def model(self) -> ModelConfig:
    """The shape of the network."""
    return ModelConfig(**{**self.knobs, "image_size": tuple(self.knobs["image_size"])})


class Training(Protocol):
  """What `gpu_keras.KerasTraining` and `gpu_torch.TorchTraining` have in common."""

  parameters: int

  @property
  def loss(self) -> float:
    """That of the last step."""

  def step(self, times: int) -> None:
    """Trains on a batch that lies on the device."""

  def fit(self, batches: Iterator[tuple[np.ndarray, np.ndarray]], steps: int) -> None:
    """Trains on so many batches of the host."""

  def device(self) -> dict[str, Any]:
    """Returns what it runs on."""

  def peak_memory_bytes(self) -> int | None:
    """Returns the most memory of the device that was in use."""


class WithoutTensorFlow(importlib.abc.MetaPathFinder, importlib.abc.Loader):
  """Lets an import of TensorFlow fail as if it were not installed.

  Keras asks for its tensors wherever it is, and on a GPU it takes all of the memory. What only asks
  whether it is there, as PyTorch does, is not disturbed.
  """

  def find_spec(
      self, fullname: str, path: Any, target: Any = None
  ) -> importlib.machinery.ModuleSpec | None:
    """Takes TensorFlow upon itself, and leaves all else to the finders of Python."""
    ours = fullname.partition(".")[0] == "tensorflow"
    return importlib.machinery.ModuleSpec(fullname, self) if ours else None

  def exec_module(self, module: types.ModuleType) -> None:
    """Refuses the import."""
    raise ModuleNotFoundError("TensorFlow is left out here", name=module.__name__)


def main(text: str) -> None:
  sys.meta_path.insert(0, WithoutTensorFlow())
  answer = processes.answers()
  task = Task(**json.loads(text))
  try:
    _serve(task, answer)
  except (MemoryError, RuntimeError) as error:  # Such as no memory left on the device.
    lines = str(error).strip().splitlines() or [type(error).__name__]
    answer({"error": lines[0][:_ERROR_LETTERS]})


def _serve(task: Task, answer: Callable[[dict[str, Any]], None]) -> None:
  batch = random_batch(task.model, task.batch_size)
  training = make_training(task, *batch)
  began = time.perf_counter()
  training.step(1)
  first_step_s = time.perf_counter() - began
  ways: dict[str, Callable[[], float | None]] = {
      "step": lambda: training.step(task.steps),
      "memory": lambda: training.fit(itertools.repeat(batch), task.steps),
  }
  if task.folder:
    records = open_records(task.folder, task.split, features=("image", "label"))
    ways["records"] = lambda: _fit_records(training, task, records)
  training.step(2)
  ways["memory"]()  # Compiles the loop of Keras.
  answer({
      **training.device(), "first_step_s": first_step_s, "parameters": training.parameters,
      "ways": list(ways), "tensorflow_loaded": "tensorflow" in sys.modules,
  })  # fmt: skip
  for line in sys.stdin:
    taken = _timed(ways[line.strip()], task.steps)
    if not math.isfinite(training.loss):
      raise RuntimeError("the loss is no number")
    answer({**taken, "loss": training.loss, "peak_memory_bytes": training.peak_memory_bytes()})


def _timed(way: Callable[[], Any], steps: int) -> dict[str, float]:
  cpu, began = time.process_time(), time.perf_counter()
  waited = way()
  began += waited or 0.0
  return {
      "wall_s": (time.perf_counter() - began) / steps,
      "cpu_s": (time.process_time() - cpu) / steps,
  }


def _fit_records(training: Training, task: Task, records: Records) -> float:
  """Trains on records; returns the seconds until the first batch was there, when nothing waits."""
  began = time.perf_counter()
  with RecordBatches(records, task.model, task.batch_size, task.threads) as batches:
    first = next(batches)
    waited = time.perf_counter() - began
    training.fit(itertools.chain([first], batches), task.steps)
  return waited


def make_training(task: Task, image: np.ndarray, label: np.ndarray) -> Training:
  """Returns the network of a task, ready to train."""
  if task.system.startswith("keras"):
    # Of Keras and PyTorch only what the system needs has to be installed.
    from flexunet.tools.benchmarks.gpu_keras import KerasTraining

    return KerasTraining(task.model, task.precision, image, label)
  # As above.
  from flexunet.tools.benchmarks.gpu_torch import TorchTraining

  compiled = task.system == "torch_compiled"
  return TorchTraining(task.model, task.precision, image, label, compiled)


def random_batch(config: ModelConfig, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns noise: uint8 [B, H, W, C] and class ids uint8 [B, H, W]."""
  draw = np.random.default_rng(0)
  area = (batch_size, *config.image_size)
  image = draw.integers(0, 256, (*area, config.image_channels), np.uint8)
  return image, draw.integers(0, config.num_classes, area, np.uint8)


def framed(array: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
  """Returns [H, W, ...] cut or filled up with zeros to [h, w, ...], centre on centre."""
  out = np.zeros((*size_hw, *array.shape[2:]), array.dtype)
  there, here = [], []
  for have, want in zip(array.shape, size_hw, strict=False):
    length = min(have, want)
    there.append(slice((have - length) // 2, (have + length) // 2))
    here.append(slice((want - length) // 2, (want + length) // 2))
  out[tuple(here)] = array[tuple(there)]
  return out


class RecordBatches:
  """Batches of records in random order, without end, put together by threads ahead of training.

  Each batch is (image uint8 [B, H, W, C], label uint8 [B, H, W]); pixels that no class names are
  background. A block `with` ends the threads.
  """

  def __init__(self, records: Records, config: ModelConfig, batch_size: int, threads: int):
    """Begins to read.

    Args:
      records: Slices with features image and label.
      config: Frame, channels and classes of the network.
      batch_size: Images a batch.
      threads: How many read; twice as many batches wait at most.
    """
    self._records, self._config = records, config
    self._pool = concurrent.futures.ThreadPoolExecutor(threads)
    self._orders = _batch_rows(len(records), batch_size)
    self._waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    for _ in range(2 * threads):
      self._begin()

  def __enter__(self) -> RecordBatches:
    return self

  def __exit__(self, *error: Any) -> None:
    self._pool.shutdown(cancel_futures=True)

  def __iter__(self) -> RecordBatches:
    return self

  def __next__(self) -> tuple[np.ndarray, np.ndarray]:
    batch = self._waiting.popleft().result()
    self._begin()
    return batch

  def _begin(self) -> None:
    self._waiting.append(self._pool.submit(self._batch, next(self._orders)))

  def _batch(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    size_hw = self._config.image_size
    image = np.empty((len(rows), *size_hw, self._config.image_channels), np.uint8)
    label = np.empty((len(rows), *size_hw), np.uint8)
    for place, row in enumerate(rows):
      record = self._records[int(row)]
      image[place] = framed(record["image"], size_hw)
      label[place] = framed(record["label"][..., 0], size_hw)
    label[label >= self._config.num_classes] = 0
    return image, label


def _batch_rows(count: int, batch_size: int) -> Iterator[np.ndarray]:
  """Yields the rows of each batch; a split smaller than a batch is repeated."""
  draw = np.random.default_rng(0)
  left = np.empty(0, np.int64)
  while True:
    while len(left) < batch_size:
      left = np.concatenate([left, draw.permutation(count)])
    yield left[:batch_size]
    left = left[batch_size:]


if __name__ == "__main__":
  main(*sys.argv[1:])
