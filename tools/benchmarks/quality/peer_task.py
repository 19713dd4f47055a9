"""What a system beside ours is given and gives back; stands alone, for it runs without flexunet.

A peer is a program that is called with one word, the path of `task.json`:

  data        folder of `set.json` and of a file per case
  work        folder for whatever it writes
  shared      folder that is the same for all trainings on this set, for what can be used again
  predictions folder for its answers
  answer      the JSON file to be written at the end
  minutes     how long it may train, without set-up; the schedule must end there
  seed, processors, options (words of its command line)

`set.json`: `classes` (names by id, background first; those of the training split), `class_ids` (the
ids that the dataset has for them), `channels`, `dimensions` (3: cases are
volumes; 2: cases are images, volumes of one slice), `mirroring` (whether left and right may be
exchanged), and `cases`: `file`, `split` (train, validation or test), `subject`, `spacing_mm`
(slice, row, column; null where unknown). A case is an NPZ file with `image` uint8 [channels,
slices, H, W] and, but for the split test, `label` uint8 [slices, H, W].

It writes for each test case `predictions/FILE`, an NPZ file with `label` uint8 [slices, H, W] and,
where `mirroring` allows it and the system can, `mirrored`: the same, of what it answers to mirrored
views too. It writes the answer: `training_s`, `steps`, `inference_s`, `cached_setup_s` (set-up that
an earlier training has done), `details` (choices, as JSON), `versions`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Task:
  """The content of `task.json`, with that of `set.json` in `data_set`."""

  data: pathlib.Path
  work: pathlib.Path
  shared: pathlib.Path
  predictions: pathlib.Path
  answer: pathlib.Path
  minutes: float
  seed: int
  processors: int
  options: Sequence[str]
  data_set: dict[str, Any]

  def cases(self, *splits: str) -> list[dict[str, Any]]:
    """Returns the cases of some splits."""
    return [case for case in self.data_set["cases"] if case["split"] in splits]

  def arrays(self, case: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns `image` and, but for tests, `label` of a case."""
    with np.load(self.data / case["file"]) as stored:
      return {name: stored[name] for name in stored.files}

  def keep(
      self, case: dict[str, Any], label: np.ndarray, mirrored: np.ndarray | None = None
  ) -> None:
    """Writes the predicted labels of a case, [slices, H, W].

    Args:
      case: Of the split test.
      label: Without mirrored views.
      mirrored: With them; None: the set allows none.
    """
    self.predictions.mkdir(parents=True, exist_ok=True)
    labels = {"label": label} if mirrored is None else {"label": label, "mirrored": mirrored}
    integers: dict[str, Any] = {name: np.asarray(value, np.uint8) for name, value in labels.items()}
    np.savez(self.predictions / case["file"], **integers)

  def finish(self, **answer: Any) -> None:
    """Writes the answer."""
    written = self.answer.with_suffix(".part")
    written.write_text(json.dumps(answer, indent=2), encoding="utf-8")
    os.replace(written, self.answer)


def read(path: str) -> Task:
  """Returns the task of a `task.json`."""
  values = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
  places = ("data", "work", "shared", "predictions", "answer")
  values.update({name: pathlib.Path(values[name]) for name in places})
  listed = (values["data"] / "set.json").read_text(encoding="utf-8")
  return Task(**values, data_set=json.loads(listed))


def options(task: Task, defaults: dict[str, Any]) -> dict[str, Any]:
  """Returns the options of a peer; those it does not know end the program.

  Args:
    task: Holds the words.
    defaults: Name -> default; its type is that of the option, and str where it is None.
  """
  parser = argparse.ArgumentParser(prog=pathlib.Path(sys.argv[0]).name, allow_abbrev=False)
  for name, value in defaults.items():
    kind = str if value is None else type(value)
    parser.add_argument(f"--{name}", default=value, type=kind)
  return vars(parser.parse_args(list(task.options)))


class Budget:
  """The time for training, and what of it has passed.

  The clock starts with the first training step. Schedules follow the clock, so that they end when
  the time does, whatever a step takes.
  """

  def __init__(self, minutes: float):
    self._limit_s = 60 * minutes
    self._started = time.monotonic()
    self.steps = 0

  @property
  def elapsed_s(self) -> float:
    """Seconds since the first step began."""
    return time.monotonic() - self._started

  @property
  def progress(self) -> float:
    """Share of the time that has passed, 0..1."""
    return min(1.0, self.elapsed_s / self._limit_s)

  @property
  def over(self) -> bool:
    """Whether the next step would end further from the limit than the last one did."""
    mean_s = self.elapsed_s / self.steps if self.steps else 0.0
    return self.steps > 0 and self.elapsed_s + mean_s / 2 >= self._limit_s

  def run(self, step: Callable[[float], float]) -> float:
    """Takes steps until the time is over, at least one, and returns the seconds they took.

    Args:
      step: Takes the share of the time that has passed, and returns its loss.
    """
    self._started = said = time.monotonic()
    while not self.over:
      loss = step(self.progress)
      self.steps += 1
      if time.monotonic() - said > 5:
        said = time.monotonic()
        print(f"step {self.steps}, {self.elapsed_s:.0f} s, loss {loss:.3f}", flush=True)
    return self.elapsed_s
