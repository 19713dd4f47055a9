"""Reads cases in this process and in worker processes beside it, one case each at a time."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import pathlib
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator

import tqdm

from flexunet.datasets import case_records
from flexunet.datasets.case_records import CaseTask
from flexunet.datasets.case_worker import BuilderAddress

# Below this many cases the start of the processes costs more than they save.
_FEW_CASES = 4
_WORKER = "import sys; sys.path[:] = sys.argv[1:]; " + (
    "from flexunet.datasets import case_worker; case_worker.main()"
)


def available_cpus() -> int:
  """Returns how many CPUs this process may use, by affinity and by its control group's quota."""
  count = os.cpu_count() or 1
  if hasattr(os, "sched_getaffinity"):
    count = len(os.sched_getaffinity(0))
  try:
    quota, period = pathlib.Path("/sys/fs/cgroup/cpu.max").read_text().split()
    count = min(count, max(1, round(int(quota) / int(period))))
  except (OSError, ValueError):
    pass  # No such limit ("max"), or another system.
  return count


def read_cases(
    builder, address: BuilderAddress, tasks: list[CaseTask], num_workers: int, done: int = 0
) -> list[str]:
  """Writes the work files of all tasks; returns the messages of the cases that are bad input.

  A bad case does not stop the others, so that all problems of a folder come at once.

  Args:
    builder: Reads in this process when there is one worker, or little to do.
    address: Where worker processes find the same builder.
    tasks: The cases.
    num_workers: Processes to use, this one included.
    done: Cases that an earlier build finished; the progress bar starts there.
  """
  bar = tqdm.tqdm(
      total=done + len(tasks), initial=done, desc="Reading", unit=" case", disable=None,
      leave=False,
  )
  with bar:
    num_workers = min(num_workers, len(tasks))
    if num_workers <= 1 or len(tasks) < _FEW_CASES:
      messages: Iterator[str | None] = (
          case_records.write_case(builder, task) for task in tasks
      )
    else:
      messages = _parallel(builder, address, tasks, num_workers)
    problems = []
    for message in messages:
      bar.update()
      if message:
        problems.append(message)
  return sorted(problems)


def _parallel(
    builder, address: BuilderAddress, tasks: list[CaseTask], num_workers: int
) -> Iterator[str | None]:
  """Yields the answers as they come; this process is one of the workers.

  It starts reading at once, while the others still import what they need.
  """
  waiting = collections.deque(tasks)
  answers: queue.SimpleQueue[str | Exception | None] = queue.SimpleQueue()

  def next_task() -> CaseTask | None:
    try:
      return waiting.popleft()
    except IndexError:
      return None

  def serve(worker: _Worker) -> None:
    try:
      while (task := next_task()) is not None:
        answers.put(worker.ask(task))
    except Exception as error:
      answers.put(error)

  workers = [_Worker(address) for _ in range(num_workers - 1)]
  threads = [threading.Thread(target=serve, args=(worker,), daemon=True) for worker in workers]
  try:
    for thread in threads:
      thread.start()
    answered = 0
    while answered < len(tasks):
      mine = next_task()
      if mine is not None:
        answers.put(case_records.write_case(builder, mine))
      while answered < len(tasks) and (mine is None or not answers.empty()):
        answer = answers.get()
        if isinstance(answer, Exception):
          raise answer
        answered += 1
        yield answer
  except BaseException:
    waiting.clear()
    for worker in workers:
      worker.kill()  # Releases the threads that wait for an answer.
    raise
  finally:
    for worker, thread in zip(workers, threads):
      worker.close()
      if thread.ident is not None:
        thread.join()


class _Worker:
  """One worker process; `ask` blocks until it answers."""

  def __init__(self, address: BuilderAddress):
    self._process = subprocess.Popen(
        [sys.executable, "-c", _WORKER, *sys.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # Ctrl-C reaches a whole group of processes; the parent alone decides what it means.
        start_new_session=True,
    )
    if self._process.stdin is None or self._process.stdout is None:
      raise RuntimeError("A worker process has no pipes.")  # Not with PIPE; types cannot tell.
    self._input, self._output = self._process.stdin, self._process.stdout
    self._address: BuilderAddress | None = address

  def ask(self, task: CaseTask) -> str | None:
    """Returns the message of the case's bad input, if any."""
    if self._address is not None:
      address, self._address = self._address, None
      self._exchange(address)
    return self._exchange(task)

  def _exchange(self, message) -> str | None:
    try:
      pickle.dump(message, self._input)
      self._input.flush()
      line = self._output.readline()
    except BrokenPipeError:
      line = b""
    if not line:
      raise RuntimeError(
          f"A worker process of the build ended with exit code {self._process.wait()} before it"
          " answered. The machine may be short of memory: build with fewer workers."
      )
    answer = json.loads(line)
    if "fault" in answer:
      raise RuntimeError(f"Reading a case failed in a worker process:\n{answer['fault']}")
    return answer["problem"]

  def kill(self) -> None:
    self._process.kill()

  def close(self) -> None:
    """Lets the process end by closing its input."""
    with contextlib.suppress(BrokenPipeError):
      self._input.close()
    self._process.wait()
    self._output.close()
