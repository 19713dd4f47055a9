"""Two processes on loopback train one run: the curve of one process, resume, and lost partners."""

import csv
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import flagged
import keras
import numpy as np
import pytest

from flexunet.distributed import launch
from flexunet.training import checkpoints

pytestmark = [pytest.mark.slow, pytest.mark.needs_extra("jax")]
# Twelve slices: a batch of all of them is an epoch, so the table of epochs is one of steps.
STEPS = 20
FLAGS = (
    "--num_layers=2", "--base_filters=4", "--normalization=batch", "--dropout_rate=0",
    "--batch_size=12", "--foreground_fraction=0", f"--epochs={STEPS}", "--validation_epochs=10",
    "--early_stopping_patience=0", "--previews=0", "--augmentation=none",
    # Drawn for each example, and compiled in half the time of all transformations.
    "--flip_horizontal_probability=0.5", "--patch_size=16", "--ema_momentum=0.9",
    "--precision=float32", "--keep_checkpoints=2", "--image_size=20,28",
)  # fmt: skip
PATIENCE_S = 400


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return flagged.write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def compiled(jax_cache):
  """The environment in which all processes of these tests compile each program once."""
  return {**os.environ, **jax_cache}


def start(environment, data_dir, run_dir, *flags):
  """Starts one process of a run as its user would."""
  return subprocess.Popen(
      [sys.executable, "-m", "flexunet.train", f"--data_dir={data_dir}", f"--run_dir={run_dir}",
       *FLAGS, *flags],
      env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip


def start_two(environment, data_dir, run_dir, *flags):
  with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    port = found.getsockname()[1]
  place = (f"--coordinator=127.0.0.1:{port}", "--num_processes=2")
  return [
      start(environment, data_dir, run_dir, *flags, *place, f"--process_id={number}")
      for number in (0, 1)
  ]


def ended(processes):
  """Returns (exit code, standard output, standard error) of each, once they have ended."""
  found = []
  for process in processes:
    out, err = process.communicate(timeout=PATIENCE_S)
    found.append((process.returncode, out, err))
  return found


@pytest.fixture(scope="module")
def one(compiled, data_dir, tmp_path_factory):
  run = tmp_path_factory.mktemp("runs") / "one"
  ((code, _, err),) = ended([start(compiled, data_dir, run, "--backend=jax")])
  assert code == 0, err
  return run


@pytest.fixture(scope="module")
def two(compiled, data_dir, tmp_path_factory):
  run = tmp_path_factory.mktemp("runs") / "two"
  (code, out, err), other = ended(start_two(compiled, data_dir, run, "--previews=1"))
  assert code == 0, err
  assert other == (0, "", "")  # The first speaks for both.
  assert "Validation scores of model.keras" in out and "Gloo" not in out
  return run


def table(run):
  with open(run / "history.csv", newline="") as stream:
    return list(csv.DictReader(stream))


def numbers(run, column):
  return [float(row[column]) for row in table(run) if row[column]]


def arrays(run):
  checkpoint, _, _ = checkpoints.CheckpointStore(run / "checkpoints").read()
  return [array for group in checkpoint.arrays.values() for array in group]


def wait_for_checkpoint(processes, run, number):
  """Waits until so many checkpoints have been written."""
  until = time.monotonic() + PATIENCE_S
  while time.monotonic() < until:
    if any(path.name >= f"{number:06d}" for path in (run / "checkpoints").glob("0*")):
      return
    assert processes[0].poll() is None, processes[0].communicate()
    time.sleep(0.02)
  raise AssertionError("no checkpoint")


def test_two_processes_have_the_curve_of_one(one, two):
  assert numbers(two, "step") == list(range(1, STEPS + 1))
  assert numbers(two, "loss") == pytest.approx(numbers(one, "loss"), rel=1e-5, abs=1e-5)
  # Every held-out slice counts, and batch normalization sees the whole batch in both.
  for column in ("val_loss", "val_foreground_dice"):
    assert numbers(two, column) == pytest.approx(numbers(one, column), rel=1e-4, abs=1e-5)
  assert len(numbers(two, "val_loss")) == 2


def test_the_run_folder_is_that_of_any_run(two):
  manifest = json.loads((two / "manifest.json").read_text())
  assert (manifest["processes"], manifest["devices_sharing_a_batch"]) == (2, 2)
  assert list((two / "previews").glob("*.png")) and (two / "report.html").is_file()
  assert not (two / ".lock").exists()
  # TensorFlow, in which this test runs, reads what JAX has written.
  kept = keras.saving.load_model(two / "model.keras", compile=False)
  answer = kept.predict(np.zeros((1, *kept.input_shape[1:]), np.uint8), verbose=0)
  assert answer.sum(axis=-1) == pytest.approx(1, abs=1e-4)


def test_signalled_and_killed_all_end_and_the_run_resumes_exactly(
    compiled, data_dir, two, tmp_path
):
  """One run: asked to end, then without its second host, then without its first."""
  run = tmp_path / "run"
  processes = start_two(compiled, data_dir, run)
  wait_for_checkpoint(processes, run, 3)
  processes[1].send_signal(signal.SIGTERM)
  (code, _, err), other = ended(processes)
  assert code == other[0] == 128 + signal.SIGTERM, err
  assert "with --resume continues from there" in err
  for victim in (1, 0):
    processes = start_two(compiled, data_dir, run, "--resume")
    wait_for_checkpoint(processes, run, len(table(run)) + 2)
    processes[victim].kill()
    killed = time.monotonic()
    left = processes[1 - victim]
    _, err = left.communicate(timeout=PATIENCE_S)
    assert time.monotonic() - killed < launch.LATEST_END_S
    assert left.returncode == 1
    problems = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(problems) == 1 and "--resume on every host" in problems[0], err
    assert "Traceback" not in err and "stack trace" not in err
    processes[victim].communicate()
    assert len(table(run)) < STEPS
  for code, _, text in ended(start_two(compiled, data_dir, run, "--resume")):
    assert code == 0, text
  assert numbers(run, "loss") == numbers(two, "loss")
  for found, wanted in zip(arrays(run), arrays(two), strict=True):
    np.testing.assert_array_equal(found, wanted)


def test_another_number_of_processes_is_refused(compiled, data_dir, two, tmp_path):
  copied = tmp_path / "run"
  pathlib.Path(copied).mkdir()
  subprocess.run(["cp", "-r", f"{two}/.", str(copied)], check=True)
  ((code, _, err),) = ended(
      [start(compiled, data_dir, copied, "--resume", "--backend=jax", "--epochs=30")]
  )
  assert code == 1
  assert "devices sharing a batch was 2, now it is 1" in err


def test_processes_of_other_flags_are_refused(compiled, data_dir, tmp_path):
  flags = [("--seed=1",), ("--seed=2",)]
  with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    port = found.getsockname()[1]
  place = (f"--coordinator=127.0.0.1:{port}", "--num_processes=2")
  processes = [
      start(compiled, data_dir, tmp_path / "run", *place, f"--process_id={number}", *flags[number])
      for number in (0, 1)
  ]
  for code, _, err in ended(processes):
    assert code == 1
    assert "process 1 has --seed 2, process 0 1" in err or "another one than" in err, err


def test_a_batch_that_cannot_be_shared_is_refused(compiled, data_dir, tmp_path):
  for code, _, err in ended(start_two(compiled, data_dir, tmp_path / "run", "--batch_size=3")):
    assert code == 1
    assert "--batch_size=3 must be a multiple of the 2 devices" in err or "another" in err, err
  assert not (tmp_path / "run").exists()
