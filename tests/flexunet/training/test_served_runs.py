"""A run fed by a tf.data service is the run without it, and ends with a line when it is lost."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import resume_runs

from flexunet.core import service_address
from flexunet.tools.data_service import server


@contextlib.contextmanager
def servers(workers, work_dir=None):
  """Starts a dispatcher and workers as processes; yields (address, processes, dispatcher first)."""
  ports = [service_address.free_port() for _ in range(workers + 1)]
  dispatcher = f"localhost:{ports[0]}"
  started = [process(server.Task(ports[0], None, dispatcher, work_dir))]
  started += [process(server.Task(p, dispatcher, f"localhost:{p}")) for p in ports[1:]]
  try:
    for one in started:
      assert one.stdout.readline().strip() == server.READY
    yield f"grpc://{dispatcher}", started
  finally:
    for one in started:
      one.kill()
      one.communicate()


def process(task):
  one = subprocess.Popen(
      [sys.executable, "-m", server.__name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL, text=True,
  )  # fmt: skip
  one.stdin.write(json.dumps(dataclasses.asdict(task)) + "\n")
  one.stdin.flush()
  return one


def wait_for(condition, seconds=200):
  ends = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < ends
    time.sleep(0.02)


def checkpoints(run_dir):
  return list(run_dir.glob("checkpoints/*_step_*"))


LONG = {"epochs": 16}


@pytest.fixture(scope="module")
def alone(blob_data, tmp_path_factory):
  """What the run without a service ends with."""
  code, found, stderr = resume_runs.train(blob_data, tmp_path_factory.mktemp("a") / "run", **LONG)
  assert code == 0, stderr
  return found


@pytest.mark.slow
def test_the_run_is_the_same_through_a_service_and_killed_and_without_its_worker(
    blob_data, alone, tmp_path
):
  run = tmp_path / "run"
  with servers(2) as (address, started):
    through = ("--cache=none", f"--data_service={address}")
    # The trainer is killed, and resumes through the service.
    trainer = resume_runs.start(blob_data, run, *through, "--kill=within_step:20", **LONG)
    _, stderr = trainer.communicate(timeout=300)
    assert trainer.returncode == -signal.SIGKILL, stderr
    # A worker is killed for good: its batches are asked for again, of the other one.
    trainer = resume_runs.start(
        blob_data, run, *through, "--resume", "--data_service_timeout_s=20", **LONG
    )
    seen = set(checkpoints(run))
    wait_for(lambda: set(checkpoints(run)) - seen or trainer.poll() is not None)
    os.kill(started[1].pid, signal.SIGKILL)
    out, stderr = trainer.communicate(timeout=300)
  assert trainer.returncode == 0, stderr
  assert json.loads(out.splitlines()[-1]) == alone
  # An address names a machine; a run folder does not.
  assert json.loads((run / "config.json").read_text())["data"]["data_service"] is None
  manifest = json.loads((run / "manifest.json").read_text())
  assert manifest["cache"]["mode"] == "none" and "--data_service" in manifest["cache"]["reason"]


@pytest.mark.slow
def test_a_lost_service_ends_the_run_in_time_and_it_resumes_alone(blob_data, alone, tmp_path):
  run = tmp_path / "run"
  for lost in ("worker", "dispatcher"):
    with servers(1) as (address, started):
      trainer = resume_runs.start(
          blob_data, run, "--cache=none", f"--data_service={address}",
          "--data_service_timeout_s=20", "--resume", **LONG,
      )  # fmt: skip
      seen = set(checkpoints(run))
      wait_for(lambda: set(checkpoints(run)) - seen or trainer.poll() is not None)  # noqa: B023
      for one in started if lost == "dispatcher" else started[1:]:
        os.kill(one.pid, signal.SIGKILL)
      began = time.monotonic()
      _, stderr = trainer.communicate(timeout=300)
      assert trainer.returncode == 1 and time.monotonic() - began < 90, stderr
    (line,) = (line for line in stderr.splitlines() if line.startswith("error:"))
    assert "within 20 s" in line and f"The {lost}" in line and "--resume" in line
    assert "saved at" in stderr
  code, found, stderr = resume_runs.train(blob_data, run, "--resume", **LONG)
  assert (code, found) == (0, alone), stderr


@pytest.mark.slow
def test_a_dispatcher_that_keeps_its_state_may_die_and_come_back(blob_data, alone, tmp_path):
  run, state = tmp_path / "run", tmp_path / "state"
  state.mkdir()
  with servers(1, str(state)) as (address, started):
    trainer = resume_runs.start(
        blob_data, run, "--cache=none", f"--data_service={address}", **LONG
    )
    wait_for(lambda: checkpoints(run) or trainer.poll() is not None)
    started[0].kill()
    started[0].communicate()
    port = int(address.rpartition(":")[2])
    started[0] = process(server.Task(port, None, f"localhost:{port}", str(state)))
    assert started[0].stdout.readline().strip() == server.READY
    out, stderr = trainer.communicate(timeout=300)
  assert trainer.returncode == 0, stderr
  assert json.loads(out.splitlines()[-1]) == alone


@pytest.mark.slow
def test_two_devices_fed_by_a_service_train_as_without_it(blob_data, tmp_path):
  knobs = {"epochs": 1, "num_devices": 2}
  both = ("--logical_devices=2", "--cache=none")
  code, expected, stderr = resume_runs.train(blob_data, tmp_path / "without", *both, **knobs)
  assert code == 0, stderr
  with servers(1) as (address, _):
    found = resume_runs.train(
        blob_data, tmp_path / "run", *both, f"--data_service={address}", **knobs
    )
  assert found[:2] == (0, expected), found[2]


def test_a_wrong_address_is_one_line_before_tensorflow_is_loaded(blob_data, tmp_path):
  port = service_address.free_port()
  done = subprocess.run(
      [sys.executable, "-m", "flexunet.train", f"--data_dir={blob_data}",
       f"--run_dir={tmp_path / 'run'}", f"--data_service=grpc://localhost:{port}"],
      capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 1 and done.stdout == ""
  (line,) = done.stderr.splitlines()
  assert line.startswith("error: --data_service") and "flexunet data_service" in line
  assert not (tmp_path / "run").exists()
