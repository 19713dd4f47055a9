"""Folds in processes of their own: several at once, each with its share of the machine.

A thread per place at the machine runs one fold after the other, each as a process per stage. What a
process says goes into the log of its fold; the last line of each stands in one progress view.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flexunet.core import files, machine, progress
from flexunet.core.errors import InputError

_PROGRAM = (
    "import sys; sys.path[:] = sys.argv[1:]; "
    "from flexunet.cross_validation import fold_program; fold_program.run()"
)
_LOOK_S = 0.5
_BETWEEN = "  |  "
# How long the processes of a command that was killed may need to save and end.
_PATIENCE_S = 60.0
_GPU_LINE = re.compile(r"^GPU (\d+): ")
_MIG_LINE = re.compile(r"^\s+MIG .*\(UUID: (MIG-[^)]+)\)")


class Stopped(Exception):
  """A signal came; the folds that were under way are saved.

  Attributes:
    signal_number: A program ends with 128 plus this number, as a shell would say.
  """

  def __init__(self, signal_number: int):
    super().__init__(signal.Signals(signal_number).name)
    self.signal_number = signal_number


@dataclasses.dataclass(frozen=True)
class FoldTask:
  """What is to be done for one fold.

  Attributes:
    fold: Its number; -1: the ensemble of all.
    folder: Its run folder, which need not exist.
    log: Where its processes' lines go.
    stages: The tasks of its processes as JSON (`fold_program.Task`, without the place), in order.
  """

  fold: int
  folder: pathlib.Path
  log: pathlib.Path
  stages: tuple[Mapping[str, Any], ...]

  @property
  def name(self) -> str:
    """How messages call it."""
    return name_of(self.fold)


def name_of(fold: int) -> str:
  """Returns how messages call a fold, or the ensemble of all (-1)."""
  return f"fold {fold}" if fold >= 0 else "ensemble"


def visible_gpus() -> list[str]:
  """Returns what CUDA_VISIBLE_DEVICES calls the GPUs that there are for this process."""
  given = os.environ.get("CUDA_VISIBLE_DEVICES")
  if given is not None:
    names = [name.strip() for name in given.split(",")]
    return [name for name in names if name and name != "-1"]
  try:
    text = subprocess.run(
        ["nvidia-smi", "-L"], check=True, capture_output=True, text=True, timeout=20
    ).stdout
  except (OSError, subprocess.SubprocessError):
    return []
  lines = text.splitlines()
  parts = [found[1] for line in lines if (found := _MIG_LINE.match(line))]
  return parts or [found[1] for line in lines if (found := _GPU_LINE.match(line))]


def environments(parallel: int, num_folds: int, gpus: Sequence[str]) -> list[dict[str, str]]:
  """Returns the environment of each place at the machine: one per fold that runs at a time.

  Args:
    parallel: Folds at a time; 0: one per GPU, or one on a machine without.
    num_folds: Of the cross-validation.
    gpus: From `visible_gpus`.

  Raises:
    InputError: There are fewer GPUs, or processors, than folds at a time.
  """
  places = min(parallel or len(gpus) or 1, num_folds)
  most = len(gpus) or machine.available_cpus()
  if places > most:
    what = "GPU" if gpus else "processor"
    raise InputError(
        f"--parallel must be at most {most}: each fold that runs at a time needs a {what} of its"
        f" own. Got: {parallel}."
    )
  if not gpus or places == 1:
    return [{} for _ in range(places)]
  # The order of nvidia-smi, from which the numbers are.
  order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
  size = len(gpus) // places
  return [
      {**order, "CUDA_VISIBLE_DEVICES": ",".join(gpus[place * size : (place + 1) * size])}
      for place in range(places)
  ]


class FoldRunner:
  """Runs the tasks of folds, and shows how far they are."""

  def __init__(
      self, places: Sequence[Mapping[str, str]], ended: Callable[[FoldTask, str], None]
  ):
    """Takes where folds run and what is done when a stage of one has succeeded.

    Args:
      places: From `environments`.
      ended: Called with a task and the name of its stage, one call at a time.
    """
    self._places, self._ended = places, ended
    self._queue: queue.SimpleQueue[FoldTask] = queue.SimpleQueue()
    self._lock = threading.Lock()
    self._processes: dict[int, subprocess.Popen] = {}
    self._status: dict[int, str] = {}
    self._problems: dict[int, str] = {}
    self._faults: list[BaseException] = []
    self._done = 0
    self._stopping = False
    self._signal: int | None = None
    self._handlers: dict[int, Any] = {}

  def run(self, tasks: Sequence[FoldTask]) -> dict[int, str]:
    """Returns fold -> what went wrong, of those that failed; the others run to their end.

    Raises:
      Stopped: A signal came.
    """
    for task in tasks:
      self._queue.put(task)
    threads = [
        threading.Thread(target=self._work, args=(place,)) for place in range(len(self._places))
    ]
    self._listen()
    try:
      with progress.bar(total=len(tasks), bar_format="{desc}", leave=False, miniters=0) as view:
        for thread in threads:
          thread.start()
        while any(thread.is_alive() for thread in threads):
          self._show(view, len(tasks))
          time.sleep(_LOOK_S)
    finally:
      self._stop()  # A second Ctrl-C ends the wait above: then nothing may stay behind either.
      for thread in threads:
        thread.join()
      self._listen_no_more()
    if self._signal is not None:
      raise Stopped(self._signal)
    if self._faults:
      raise self._faults[0]
    return dict(sorted(self._problems.items()))

  def _show(self, view: Any, total: int) -> None:
    with self._lock:
      status = sorted(self._status.items())
    texts = [f"{self._done}/{total} folds", *(f"{name_of(fold)}: {line}" for fold, line in status)]
    if sys.stderr.isatty():  # Each has an equal part of the line, which must not be wrapped.
      room = (shutil.get_terminal_size().columns - len(texts[0]) - 1) // max(1, len(status))
      texts[1:] = [text[: max(0, room - len(_BETWEEN))] for text in texts[1:]]
    view.set_description_str(_BETWEEN.join(texts), refresh=False)
    view.update()

  def _work(self, place: int) -> None:
    try:
      while not self._stopping:
        self._run_task(self._queue.get_nowait(), place)
    except queue.Empty:
      pass
    except BaseException as fault:  # Of this program, not of a fold: shown by the main thread.
      self._faults.append(fault)

  def _run_task(self, task: FoldTask, place: int) -> None:
    """Runs the stages of a fold until one fails."""
    problem = ""
    try:
      _wait_until_free(task.folder)
      for stage in task.stages:
        problem = self._run_stage(task, stage, place)
        if self._stopping:
          return
        if problem:
          break
        with self._lock:
          self._ended(task, stage["stage"])
    except InputError as error:
      problem = str(error)
    finally:
      with self._lock:
        self._status.pop(task.fold, None)
    with self._lock:
      self._done += 1
      if problem:
        self._problems[task.fold] = problem
        progress.say(f"{task.name} has failed: {problem} Its log: {task.log}")

  def _run_stage(self, task: FoldTask, stage: Mapping[str, Any], place: int) -> str:
    """Returns what went wrong in one process; "" where nothing did."""
    message = {**stage, "sharing": len(self._places), "place": place}
    task.log.parent.mkdir(parents=True, exist_ok=True)
    last = ""
    with open(task.log, "a", encoding="utf-8") as log, self._start(place) as process:
      with self._lock:
        self._processes[task.fold] = process
        self._status[task.fold] = "starting"
        if self._stopping:
          process.terminate()
      stdin, stdout = process.stdin, process.stdout
      if stdin is None or stdout is None:
        raise RuntimeError("A process of a fold has no pipes.")
      with contextlib.suppress(BrokenPipeError):  # It has died at once, and says why.
        stdin.write(json.dumps(message) + "\n")
        stdin.flush()
      for line in stdout:
        log.write(line)
        log.flush()
        if shown := line.strip():
          last = shown
          with self._lock:
            self._status[task.fold] = shown
      code = process.wait()
    with self._lock:
      del self._processes[task.fold]
    if code == 0:
      return ""
    return last.removeprefix("error: ") if code == 1 else f"it ended with code {code}: {last}."

  def _start(self, place: int) -> subprocess.Popen:
    """Starts a new interpreter with this one's search path."""
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *sys.path],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, encoding="utf-8", errors="replace",
        env={**os.environ, **self._places[place]},
        # Ctrl-C reaches a whole group of processes; this one alone decides what it means.
        start_new_session=True,
    )  # fmt: skip

  def _listen(self) -> None:
    # Python lets only the main thread listen to signals.
    if threading.current_thread() is threading.main_thread():
      self._handlers = {
          number: signal.signal(number, self._note)
          for number in (signal.SIGTERM, signal.SIGINT)
          if signal.getsignal(number) is not signal.SIG_IGN
      }

  def _listen_no_more(self) -> None:
    for number, handler in self._handlers.items():
      signal.signal(number, handler)
    self._handlers = {}

  def _note(self, number: int, frame: Any) -> None:
    """Lets the processes save and end; a second signal acts as usual."""
    del frame
    self._signal = number
    self._listen_no_more()
    self._stop()

  def _stop(self) -> None:
    """Starts no more processes and asks those there are to end; may run within any line."""
    self._stopping = True
    for process in list(self._processes.values()):
      process.terminate()


def _wait_until_free(folder: pathlib.Path) -> None:
  """Waits for a process that a killed command has left behind; it saves its run and ends."""
  until = time.monotonic() + _PATIENCE_S
  while True:
    try:
      return files.check_unlocked(folder, "--run_dir")
    except InputError:
      if time.monotonic() > until:
        raise
      time.sleep(_LOOK_S)
