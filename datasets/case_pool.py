"""Reads cases with a pool of processes, a few at a time, or in this process."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
from collections.abc import Iterable, Iterator

import tqdm

from flexunet.datasets import case_records
from flexunet.datasets.case_records import BuilderAddress, CaseTask

# Below this many cases the start of the processes costs more than they save.
_FEW_CASES = 4


def read_cases(
    builder, address: BuilderAddress, tasks: list[CaseTask], num_workers: int
) -> list[str]:
  """Writes the work files of all tasks; returns the messages of the cases that are bad input.

  A bad case does not stop the others, so that all problems of a folder come at once.

  Args:
    builder: Reads in this process when there is one worker, or little to do.
    address: Where worker processes find the same builder.
    tasks: The cases.
    num_workers: Processes to use.
  """
  bar = tqdm.tqdm(total=len(tasks), desc="Reading", unit=" case", disable=None, leave=False)
  with bar:
    num_workers = min(num_workers, len(tasks))
    if num_workers <= 1 or len(tasks) < _FEW_CASES:
      messages = _serial(builder, tasks)
    else:
      messages = _parallel(address, tasks, num_workers)
    problems = []
    for message in messages:
      bar.update()
      if message:
        problems.append(message)
  return sorted(problems)


def _serial(builder, tasks: Iterable[CaseTask]) -> Iterator[str | None]:
  for task in tasks:
    yield case_records.write_case(builder, task)


def _parallel(
    address: BuilderAddress, tasks: list[CaseTask], num_workers: int
) -> Iterator[str | None]:
  # Spawned, not forked: the parent may hold TensorFlow, whose threads do not survive a fork.
  context = multiprocessing.get_context("spawn")
  pool = concurrent.futures.ProcessPoolExecutor(
      num_workers, context, case_records.start_worker, (address,)
  )
  try:
    waiting = iter(tasks)
    running = set()
    while True:
      # One task more than workers keeps them busy, and no more volumes in memory than workers.
      for task in waiting:
        running.add(pool.submit(case_records.run_in_worker, task))
        if len(running) > num_workers:
          break
      if not running:
        return
      done, running = concurrent.futures.wait(
          running, return_when=concurrent.futures.FIRST_COMPLETED
      )
      for future in done:
        yield future.result()
  except concurrent.futures.process.BrokenProcessPool as error:
    raise RuntimeError(
        "A worker process of the build ended at once. In a script, call the build below"
        ' `if __name__ == "__main__":`, because workers import the script again. Otherwise the'
        " machine may be short of memory: build with fewer workers (num_workers=1)."
    ) from error
  finally:
    pool.shutdown(wait=True, cancel_futures=True)
