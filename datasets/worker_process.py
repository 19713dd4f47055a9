"""The building process's handle on one worker process: start, ask, kill, close.

A worker is either a new interpreter, or a fork of this process. A fork starts at once, since all
is imported; it is safe only while this process has a single thread, and never with TensorFlow,
whose threads a fork would lose. `tfds build` and notebooks therefore get new interpreters.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from typing import IO

from flexunet.datasets import case_worker
from flexunet.datasets.case_records import CaseTask
from flexunet.datasets.case_worker import BuilderAddress

_PROGRAM = (
    "import sys; sys.path[:] = sys.argv[1:]; "
    "from flexunet.datasets import case_worker; case_worker.main()"
)


class WorkerProcess:
  """One worker process; `ask` blocks until it answers."""

  def __init__(self, builder, address: BuilderAddress):
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


def _fork(builder) -> tuple[int, IO[bytes], IO[bytes]]:
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
    case_worker.serve(os.fdopen(task_source, "rb"), os.fdopen(answer_sink, "w"), builder)
    status = 0
  finally:
    os._exit(status)  # No clean-up of the parent's things in the child.


def _close_all_but(*kept: int) -> None:
  """Closes what was inherited: pipes of other workers, and the lock on the work folder."""
  for name in os.listdir("/proc/self/fd"):
    if int(name) > 2 and int(name) not in kept:
      with contextlib.suppress(OSError):  # The listing's own descriptor is gone already.
        os.close(int(name))
