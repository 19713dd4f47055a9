"""Runs of resume_program.py in processes of their own, which a test may kill.

They are forked from a process that has imported the trainer and used nothing of it: a third of so
short a run would be that import.
"""

import json
import multiprocessing
import os
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock

_PROGRAM = pathlib.Path(__file__).with_name("resume_program.py")
_PATIENCE_S = 300.0


class Forked:
  """What a test needs of a program that runs: as of `subprocess.Popen`, with its output as text."""

  def __init__(self, argv: list[str]):
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["flexunet.training.trainer"])
    self._folder = tempfile.TemporaryDirectory()
    self._outputs = [os.path.join(self._folder.name, name) for name in ("out", "err")]
    self._process = server.Process(target=_run, args=(argv, self._outputs))
    with mock.patch.dict(os.environ, TF_CPP_MIN_LOG_LEVEL="3"):
      self._process.start()

  @property
  def returncode(self) -> int | None:
    return self._process.exitcode

  def poll(self) -> int | None:
    return self._process.exitcode

  def kill(self) -> None:
    self._process.kill()

  def communicate(self, timeout: float = _PATIENCE_S) -> tuple[str, str]:
    self._process.join(timeout)
    if self._process.exitcode is None:
      self.kill()
      raise subprocess.TimeoutExpired("resume_program.py", timeout)
    out, err = (pathlib.Path(path).read_text() for path in self._outputs)
    return out, err


def _run(argv: list[str], outputs: list[str]) -> None:
  for number, path in enumerate(outputs, 1):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
  import resume_program

  sys.argv = argv
  resume_program.main()


def _words(data_dir, run_dir, arguments, knobs) -> list[str]:
  return [str(_PROGRAM), str(data_dir), str(run_dir), f"--knobs={json.dumps(knobs)}", *arguments]


def start(data_dir, run_dir, *arguments, **knobs) -> Forked:
  return Forked(_words(data_dir, run_dir, arguments, knobs))


def train(data_dir, run_dir, *arguments, **knobs):
  """Returns (exit code, what the program tells in JSON, standard error)."""
  return _ended(start(data_dir, run_dir, *arguments, **knobs))


def train_apart(variables, data_dir, run_dir, *arguments, **knobs):
  """As `train`, in a new process with further variables, e.g. another backend of Keras."""
  return _ended(
      subprocess.Popen(
          [sys.executable, *_words(data_dir, run_dir, arguments, knobs)],
          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
          env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **variables},
      )
  )  # fmt: skip


def _ended(process):
  out, stderr = process.communicate(timeout=_PATIENCE_S)
  return process.returncode, (json.loads(out.splitlines()[-1]) if out.strip() else None), stderr
