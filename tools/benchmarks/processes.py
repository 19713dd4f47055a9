"""Processes of a benchmark that do their work in turns: each answers a line by a line of JSON."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flexunet


class EndedError(Exception):
  """A process has ended before it answered; what it said stands on standard error."""


class Worker:
  """A process that runs a module, asked through its standard input.

  Attributes:
    first: The answer by which it said that it is ready.
  """

  def __init__(self, process: subprocess.Popen):
    """Waits until the process is ready.

    Raises:
      EndedError: It ends instead.
    """
    self._process = process
    self.first = self._answer()

  def send(self, question: str = "") -> None:
    """Lets the process begin; `receive` gets its answer."""
    with contextlib.suppress(BrokenPipeError):  # Said by `receive`.
      print(question, file=self._process.stdin, flush=True)

  def receive(self) -> dict[str, Any]:
    """Returns the answer to the last question; raises EndedError where the process has ended."""
    return self._answer()

  def ask(self, question: str = "") -> dict[str, Any]:
    """Returns the answer to a question of one line; raises EndedError where there is none."""
    self.send(question)
    return self.receive()

  def _answer(self) -> dict[str, Any]:
    line = self._process.stdout.readline() if self._process.stdout else ""
    if not line:
      raise EndedError(f"exit code {self._process.wait()}")
    return json.loads(line)


@contextlib.contextmanager
def started(
    python: str, module: str, tasks: Sequence[Sequence[str]], environment: Mapping[str, str]
) -> Iterator[list[Worker]]:
  """Starts one process for each task, all at once; yields them when all are ready, ends them after.

  Args:
    python: Runs them; it need not have what this program has.
    module: In full, e.g. "flexunet.tools.benchmarks.reader_rates".
    tasks: The words of each on its command line.
    environment: Variables that differ from those of this process.

  Raises:
    EndedError: One does not start.
  """
  # The same package, whatever is installed beside that Python.
  root = pathlib.Path(flexunet.__file__).parent.parent
  variables = {**os.environ, **environment, "PYTHONPATH": str(root)}
  running = [
      subprocess.Popen(
          [python, "-m", module, *words], text=True, env=variables,
          stdin=subprocess.PIPE, stdout=subprocess.PIPE,
      )
      for words in tasks
  ]  # fmt: skip
  try:
    yield [Worker(process) for process in running]
  finally:
    for process in running:
      process.kill()
      process.communicate()


def answers() -> Callable[[Mapping[str, Any]], None]:
  """Returns what writes an answer, in a process that was started so.

  What libraries print goes to standard error from then on, so that it does not stand between.
  """
  kept = os.fdopen(os.dup(1), "w", encoding="utf-8")
  os.dup2(2, 1)
  sys.stdout = sys.stderr
  return lambda answer: print(json.dumps(answer), file=kept, flush=True)
