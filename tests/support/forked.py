"""Programs in processes of their own, forked from one that has imported TensorFlow and the trainer.

A third of a short run would be that import. The process that is forked has used nothing of it, so
a program may still divide the CPU into devices; only variables that an import reads come too late.
"""

import importlib
import multiprocessing
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from unittest import mock

PATIENCE_S = 300.0


class Forked:
  """What a test needs of a program that runs: as of `subprocess.Popen`, with its output as text.

  Args:
    module: Name of an importable module whose `main()` is the program.
    words: What follows the program's name on the command line.
    cwd: Where it works; where the test does without it.
  """

  def __init__(self, module: str, words: Sequence[str], cwd: os.PathLike | None = None):
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["flexunet.training.trainer"])
    self._folder = tempfile.TemporaryDirectory()
    self._outputs = [os.path.join(self._folder.name, name) for name in ("out", "err")]
    self._process = server.Process(target=_run, args=(module, list(words), self._outputs, cwd))
    self._module = module
    with mock.patch.dict(os.environ, TF_CPP_MIN_LOG_LEVEL="3"):
      self._process.start()

  @property
  def returncode(self) -> int | None:
    return self._process.exitcode

  def poll(self) -> int | None:
    return self._process.exitcode

  def kill(self) -> None:
    self._process.kill()

  def communicate(self, timeout: float = PATIENCE_S) -> tuple[str, str]:
    self._process.join(timeout)
    if self._process.exitcode is None:
      self.kill()
      raise subprocess.TimeoutExpired(self._module, timeout)
    out, err = (pathlib.Path(path).read_text() for path in self._outputs)
    return out, err


def run(
    module: str, words: Sequence[str], cwd: os.PathLike | None = None
) -> tuple[int, str, str]:
  """Returns (exit code, standard output, standard error) of a program that has ended."""
  process = Forked(module, words, cwd)
  out, err = process.communicate()
  return process.returncode, out, err


def command(*words: object, cwd: os.PathLike | None = None) -> subprocess.CompletedProcess:
  """Runs `flexunet WORDS`, a program of the package as its users start it."""
  return subprocess.CompletedProcess(words, *run("command_program", list(map(str, words)), cwd))


def _run(module: str, words: list[str], outputs: list[str], cwd: os.PathLike | None) -> None:
  for number, path in enumerate(outputs, 1):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
  if cwd is not None:
    os.chdir(cwd)
  sys.argv = [module, *words]
  importlib.import_module(module).main()
