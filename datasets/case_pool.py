"""Reads cases in this process and in worker processes beside it, one case each at a time."""

from __future__ import annotations

import collections
import os
import pathlib
import queue
import threading
from collections.abc import Iterator

from flexunet.datasets import case_records, progress
from flexunet.datasets.case_records import CaseTask
from flexunet.datasets.case_worker import BuilderAddress
from flexunet.datasets.worker_process import WorkerProcess

# Below this many cases the start of the processes costs more than they save.
_FEW_CASES = 4


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
  num_workers = min(num_workers, len(tasks))
  if num_workers <= 1 or len(tasks) < _FEW_CASES:
    workers = []
  else:
    # Before the progress bar, whose own thread would forbid to fork.
    workers = [WorkerProcess(builder, address) for _ in range(num_workers - 1)]
  bar = progress.bar(
      total=done + len(tasks), initial=done, desc="Reading", unit=" case", disable=None,
      leave=False,
  )
  problems = []
  with bar:
    for message in _answers(builder, workers, tasks):
      bar.update()
      if message:
        problems.append(message)
  return sorted(problems)


def _answers(
    builder, workers: list[WorkerProcess], tasks: list[CaseTask]
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

  def serve(worker: WorkerProcess) -> None:
    try:
      while (task := next_task()) is not None:
        answers.put(worker.ask(task))
    except Exception as error:
      answers.put(error)

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
