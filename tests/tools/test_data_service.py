"""The command that runs a tf.data service: it serves, restarts what dies, and ends as a whole."""

import os
import signal
import subprocess
import sys
import time

import pytest

from flexunet.core import service_address
from flexunet.core.errors import InputError
from flexunet.tools.data_service import __main__ as program


def tasks(*given):
  program._PROGRAM.parse(["data_service", *given])
  return [
      (name, task.port, task.dispatcher, task.address, task.work_dir)
      for name, task in program.tasks()
  ]


def test_ports_follow_each_other_and_workers_know_their_dispatcher(monkeypatch, tmp_path):
  monkeypatch.setattr(service_address, "free_port", lambda port: port)
  assert tasks("--workers=2", "--host=node1", f"--work_dir={tmp_path}") == [
      ("dispatcher", 5050, None, "node1:5050", str(tmp_path)),
      ("worker 1", 5051, "node1:5050", "node1:5051", None),
      ("worker 2", 5052, "node1:5050", "node1:5052", None),
  ]


def test_what_cannot_be_is_one_line(monkeypatch):
  for given, said in (
      (("--join=node1",), "--join must be grpc://HOST:PORT"),
      (("--join=grpc://localhost:1",), "nothing answers at grpc://localhost:1"),
      (("--join=grpc://localhost:1", "--workers=0"), "--workers must be at least 1"),
      (("--join=", "--workers=1", f"--work_dir={__file__}/x"), "--work_dir .* is a file"),
  ):
    with pytest.raises(InputError, match=said):
      tasks(*given)
  def taken(port):
    raise OSError("in use")
  monkeypatch.setattr(service_address, "free_port", taken)
  with pytest.raises(InputError, match="must be free on this machine, but 5050 is not: in use"):
    tasks("--join=", "--workers=1", "--work_dir=")


@pytest.mark.slow
def test_a_worker_that_dies_is_started_again_and_all_end_with_the_command(tmp_path):
  port = service_address.free_port()
  log = tmp_path / "log"
  with log.open("w") as out:
    started = subprocess.Popen(
        [sys.executable, "-m", "flexunet.tools.data_service", f"--port={port}",
         f"--worker_port={service_address.free_port()}"],
        stdout=out, stderr=out,
    )  # fmt: skip

  def children():
    pids = [int(one) for one in os.listdir("/proc") if one.isdecimal()]
    return [pid for pid in pids if parent_of(pid) == started.pid]

  def wait_until(condition):
    ends = time.monotonic() + 120
    while not condition():
      assert time.monotonic() < ends, log.read_text()
      time.sleep(0.2)

  try:
    wait_until(lambda: "Ready" in log.read_text())
    before = children()
    assert len(before) == 2
    os.kill(max(before), signal.SIGKILL)
    wait_until(lambda: "The worker 1 has ended" in log.read_text())
    wait_until(lambda: len(set(children()) - set(before)) == 1)
    ends = children()
    started.terminate()
    assert started.wait(timeout=60) == 128 + signal.SIGTERM
    assert not [pid for pid in ends if os.path.exists(f"/proc/{pid}")]
  finally:
    started.kill()


def parent_of(pid):
  try:
    with open(f"/proc/{pid}/stat") as file:
      return int(file.read().rpartition(")")[2].split()[1])
  except OSError:
    return None
