"""Beam's own job server and worker pool as processes of this machine; the former is this program.

Its job server has one worker, whatever is asked for: `python beam_servers.py PORT_FILE WORKERS` is
the same server with more.
"""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECONDS = 60


@contextlib.contextmanager
def job_server(folder: pathlib.Path, workers: int = 1):
  """Yields (process, "localhost:PORT") of a job server."""
  port_file = folder / "port"
  with _process([sys.executable, __file__, str(port_file), str(workers)], folder) as process:
    _await(port_file.is_file, process)
    yield process, f"localhost:{port_file.read_text()}"


@contextlib.contextmanager
def worker_pool(folder: pathlib.Path, path: str | None = None):
  """Yields (process, "localhost:PORT") of a pool that starts the first `python` of `path`."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  words = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main"]
  # That of this environment, as the README says it.
  path = path or f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"
  with _process([*words, f"--service_port={port}"], folder, PATH=path) as process:
    _await(lambda: socket.socket().connect_ex(("localhost", port)) == 0, process)
    yield process, f"localhost:{port}"


@contextlib.contextmanager
def _process(words: list[str], folder: pathlib.Path, **variables: str):
  variables = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
  with open(folder / "log", "ab") as log:
    process = subprocess.Popen(
        words, env=variables, stdout=log, stderr=log, start_new_session=True
    )  # fmt: skip
  try:
    yield process
  finally:
    with contextlib.suppress(ProcessLookupError):  # Workers of a pool belong to its group.
      os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _await(condition, process=None):
  end = time.monotonic() + SECONDS
  while not condition():
    assert time.monotonic() < end, "waited too long"
    assert process is None or process.poll() is None, "ended before it served"
    time.sleep(0.1)


def children(pid: int) -> list[int]:
  """Returns the living processes that a process has started."""
  found = []
  for path in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
    found += [int(child) for child in path.read_text().split()]
  return [child for child in found if "Z" not in pathlib.Path(f"/proc/{child}/stat").read_text()]


def workers(pid: int) -> list[int]:
  """Returns the last of those that a process has started, not the shells between."""
  return [below for child in children(pid) for below in workers(child) or [child]]


@contextlib.contextmanager
def when_a_case_is_done(data_dir: pathlib.Path, do):
  """Calls `do` as soon as the first case of the build within lies in its work folder."""
  def watch():
    _await(lambda: any(data_dir.rglob(".work-*/*.json")))
    do()

  thread = threading.Thread(target=watch)
  thread.start()
  yield
  thread.join()


@contextlib.contextmanager
def out_of_memory_after(cases: int):
  """Within, Beam's work fails in this process once it has read so many cases."""
  # The job server, which this file is too, needs neither.
  import pytest

  from flexunet.datasets.builder import beam_cases

  served, begun = beam_cases.ReadCase.process, []

  def fails(self, element):
    begun.append(element)
    if len(begun) > cases:
      raise RuntimeError("out of memory")
    yield from served(self, element)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(beam_cases.ReadCase, "process", fails)
    yield


def serve(port_file: str, workers: str) -> None:
  """Runs the job server with so many workers."""
  from apache_beam.runners.portability import local_job_service_main
  from apache_beam.runners.portability.fn_api_runner import FnApiRunner

  init = FnApiRunner.__init__

  def with_workers(self, *given, **named):
    init(self, *given, **named)
    self._num_workers = int(workers)

  FnApiRunner.__init__ = with_workers
  local_job_service_main.run([f"--port_file={port_file}"])


if __name__ == "__main__":
  serve(*sys.argv[1:])
