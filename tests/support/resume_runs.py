"""Runs of resume_program.py in processes of their own, which a test may kill."""

import json
import os
import pathlib
import subprocess
import sys

_PROGRAM = pathlib.Path(__file__).with_name("resume_program.py")


def start(data_dir, run_dir, *arguments, **knobs):
  return subprocess.Popen(
      [sys.executable, str(_PROGRAM), str(data_dir), str(run_dir), f"--knobs={json.dumps(knobs)}",
       *arguments],
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
      env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
  )  # fmt: skip


def train(data_dir, run_dir, *arguments, **knobs):
  process = start(data_dir, run_dir, *arguments, **knobs)
  out, stderr = process.communicate(timeout=300)
  return process.returncode, (json.loads(out.splitlines()[-1]) if out.strip() else None), stderr
