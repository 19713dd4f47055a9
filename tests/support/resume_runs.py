"""Runs of resume_program.py in processes of their own, which a test may kill."""

import json
import os
import pathlib
import subprocess
import sys

from forked import PATIENCE_S, Forked

_PROGRAM = pathlib.Path(__file__).with_name("resume_program.py")


def _words(data_dir, run_dir, arguments, knobs) -> list[str]:
  return [str(data_dir), str(run_dir), f"--knobs={json.dumps(knobs)}", *arguments]


def start(data_dir, run_dir, *arguments, **knobs) -> Forked:
  return Forked("resume_program", _words(data_dir, run_dir, arguments, knobs))


def train(data_dir, run_dir, *arguments, **knobs):
  """Returns (exit code, what the program tells in JSON, standard error)."""
  return _ended(start(data_dir, run_dir, *arguments, **knobs))


def train_apart(variables, data_dir, run_dir, *arguments, **knobs):
  """As `train`, in a new process with further variables, e.g. another backend of Keras."""
  return _ended(
      subprocess.Popen(
          [sys.executable, str(_PROGRAM), *_words(data_dir, run_dir, arguments, knobs)],
          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
          env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **variables},
      )
  )  # fmt: skip


def _ended(process):
  out, stderr = process.communicate(timeout=PATIENCE_S)
  return process.returncode, (json.loads(out.splitlines()[-1]) if out.strip() else None), stderr
