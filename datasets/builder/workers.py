"""Reads cases in this process and in worker processes beside it, one case each at a time.

A worker reads tasks from a pipe until that is closed. It is not a `multiprocessing` worker on
purpose: those import the main program again, which costs many seconds below `tfds build` and makes
a script without a main guard start itself over and over. When the parent is killed its end of the
pipe closes, so no worker stays behind.

A worker is either a new interpreter, or a fork of this process. A fork starts at once, since all
is imported; it is safe only while this process has a single thread, and never with TensorFlow,
whose threads a fork would lose. `tfds build` and notebooks therefore get new interpreters.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import IO, Any, cast

from flexunet.core import progress
from flexunet.datasets.builder import case_records
from flexunet.datasets.builder.case_records import CaseReader, CaseTask

# Below this many cases the start of the processes costs more than they save.
_FEW_CASES = 4
_PROGRAM = (
    "import sys; sys.path[:] = sys.argv[1:]; "
    "from flexunet.datasets.builder import workers; workers.main()"
)


def read_cases(
    builder: CaseReader,
    address: BuilderAddress,
    tasks: list[CaseTask],
    num_workers: int,
    done: int = 0,
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
    builder: CaseReader, workers: list[WorkerProcess], tasks: list[CaseTask]
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


@dataclasses.dataclass(frozen=True)
class BuilderAddress:
  """How a worker gets the same builder: builders themselves cannot be sent.

  Attributes:
    module, class_name: Where its class is.
    module_root: Folder that must be on the path for it (a builder may be loaded by its file).
    config: Name of a config of the class, or name and options of one the user composed.
    release, voxel_dtype, decided: What the raw folder decided, as in
      `SegmentationBuilder.set_source`.
  """

  module: str
  class_name: str
  module_root: str
  config: str | dict[str, Any]
  release: str
  voxel_dtype: str
  decided: dict[str, Any]

  def load(self) -> CaseReader:
    """Returns the builder, imported in this process."""
    try:
      module = importlib.import_module(self.module)
    except ModuleNotFoundError:
      sys.path.append(self.module_root)
      module = importlib.import_module(self.module)
    builder_class = getattr(module, self.class_name)
    reader = builder_class.for_reading(
        self.config, self.release, self.voxel_dtype, self.decided
    )
    return cast(CaseReader, reader)


def main() -> None:
  """Runs a new interpreter as a worker; the first message it gets is a `BuilderAddress`."""
  # Whatever a library prints goes to standard error; standard output carries the answers.
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  serve(sys.stdin.buffer, answers, None)


def serve(messages: IO[bytes], answers: IO[str], builder: CaseReader | None) -> None:
  """Answers each line of JSON, a task or the address of the builder, with one line of JSON.

  The answer is {"problem": message of bad input, or None} or {"fault": trace}.
  """
  for line in messages:
    answer: dict[str, str | None] = {"problem": None}
    try:
      message = json.loads(line)
      if "address" in message:
        builder = BuilderAddress(**message["address"]).load()
      elif builder is not None:
        task = case_records.CaseTask.from_json(message["task"])
        answer = {"problem": case_records.write_case(builder, task)}
    except Exception:
      answer = {"fault": traceback.format_exc()}
    print(json.dumps(answer), file=answers, flush=True)


class WorkerProcess:
  """One worker process; `ask` blocks until it answers."""

  def __init__(self, builder: CaseReader, address: BuilderAddress):
    self._process: subprocess.Popen | None = None
    self._address: BuilderAddress | None = None
    if _may_fork():
      self._pid, self._input, self._output = _fork(builder)
    else:
      self._process, self._input, self._output = _start()
      self._pid = self._process.pid
      self._address = address

  def ask(self, task: CaseTask) -> str | None:
    """Returns the message of the case's bad input, if any.

    Raises:
      RuntimeError: When reading fails otherwise, or the process dies.
    """
    if self._address is not None:
      address, self._address = self._address, None
      self._exchange({"address": dataclasses.asdict(address)})
    return self._exchange({"task": task.to_json()})

  def _exchange(self, message: dict) -> str | None:
    try:
      self._input.write(json.dumps(message).encode() + b"\n")
      self._input.flush()
      line = self._output.readline()
    except BrokenPipeError:
      line = b""
    if not line:
      raise RuntimeError(
          "A worker process of the build ended before it answered. The machine may be short of"
          " memory: build with fewer workers."
      )
    answer = json.loads(line)
    if "fault" in answer:
      raise RuntimeError(f"Reading a case failed in a worker process:\n{answer['fault']}")
    return answer["problem"]

  def kill(self) -> None:
    """Ends the process at once."""
    with contextlib.suppress(ProcessLookupError):
      os.kill(self._pid, signal.SIGKILL)

  def close(self) -> None:
    """Lets the process end by closing its input."""
    with contextlib.suppress(BrokenPipeError):
      self._input.close()
    if self._process is not None:
      self._process.wait()
    else:
      os.waitpid(self._pid, 0)
    self._output.close()


def _may_fork() -> bool:
  return (
      sys.platform == "linux"
      and threading.active_count() == 1
      and "tensorflow" not in sys.modules
  )


def _start() -> tuple[subprocess.Popen, IO[bytes], IO[bytes]]:
  """Starts a new interpreter with this one's search path."""
  process = subprocess.Popen(
      [sys.executable, "-c", _PROGRAM, *sys.path],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      # Ctrl-C reaches a whole group of processes; this one alone decides what it means.
      start_new_session=True,
  )
  if process.stdin is None or process.stdout is None:
    raise RuntimeError("A worker process has no pipes.")
  return process, process.stdin, process.stdout


def _fork(builder: CaseReader) -> tuple[int, IO[bytes], IO[bytes]]:
  task_source, task_sink = os.pipe()
  answer_source, answer_sink = os.pipe()
  sys.stdout.flush()
  sys.stderr.flush()
  pid = os.fork()
  if pid:
    os.close(task_source)
    os.close(answer_sink)
    return pid, os.fdopen(task_sink, "wb"), os.fdopen(answer_source, "rb")
  status = 1
  try:
    os.setsid()
    _close_all_but(task_source, answer_sink)
    serve(os.fdopen(task_source, "rb"), os.fdopen(answer_sink, "w"), builder)
    status = 0
  finally:
    os._exit(status)  # No clean-up of the parent's things in the child.


def _close_all_but(*kept: int) -> None:
  """Closes what was inherited: pipes of other workers, and the lock on the work folder."""
  for name in os.listdir("/proc/self/fd"):
    if int(name) > 2 and int(name) not in kept:
      with contextlib.suppress(OSError):  # The listing's own descriptor is gone already.
        os.close(int(name))
