"""Runs a tf.data service, whose workers read, decode and augment batches for trainings.

  flexunet data_service --port=5050 --workers=2                     on one machine
  flexunet train ... --data_service=grpc://localhost:5050

  flexunet data_service --port=5050 --host=node1                    on several: here on node1,
  flexunet data_service --join=grpc://node1:5050 --host=node2       and on node2, node3, ...
  flexunet train ... --data_service=grpc://node1:5050

Runs until Ctrl-C. A server that dies is started again at its old address. Datasets must lie at the
same path everywhere. Whoever reaches the ports can run TensorFlow graphs here: keep them within a
trusted network.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

from flexunet.core import command_line, files, flags, progress, service_address
from flexunet.core.errors import InputError
from flexunet.tools.data_service import server

_PROGRAM = flags.Program(__doc__)
_PORT = _PROGRAM.integer(
    "port", 5050, "Port of the dispatcher, which trainings are given.", lower_bound=1,
    upper_bound=2**16 - 1,
)  # fmt: skip
_WORKERS = _PROGRAM.integer(
    "workers", 1, "Workers on this machine, each with all of its cores; 0: the dispatcher alone.",
    lower_bound=0,
)  # fmt: skip
_WORKER_PORT = _PROGRAM.integer(
    "worker_port", None, "Port of the first worker, those of the others follow. Default: after"
    " --port.", lower_bound=1, upper_bound=2**16 - 1,
)  # fmt: skip
_HOST = _PROGRAM.string(
    "host", "localhost", "Name or address by which other machines reach this one."
)
_JOIN = _PROGRAM.string(
    "join", None, "Starts workers alone, for the dispatcher at this address, grpc://HOST:PORT."
)
_WORK_DIR = _PROGRAM.string(
    "work_dir", None, "Folder in which the dispatcher keeps a journal, so that trainings continue"
    " without asking again when it is started again. Default: none, and they ask again."
)  # fmt: skip
_LOOK_S = 0.5
_START_S = 180.0  # TensorFlow is loaded meanwhile.
# A server that ends so soon after its start, so many times in a row, will never run.
_SOON_S, _TRIES = 10.0, 3


class Server:
  """A process that serves, started again at its address when it dies.

  Attributes:
    name: How messages call it.
  """

  def __init__(self, name: str, task: server.Task):
    self.name, self._task = name, task
    self._failures = 0
    self._start()

  def _start(self) -> None:
    self._began = time.monotonic()
    self._ready = threading.Event()
    self._said: list[str] = []
    self._process = subprocess.Popen(
        [sys.executable, "-m", server.__name__],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    if self._process.stdin:
      self._process.stdin.write(json.dumps(dataclasses.asdict(self._task)) + "\n")
      self._process.stdin.flush()
    for stream in (self._process.stdout, self._process.stderr):
      threading.Thread(target=self._listen, args=(stream,), daemon=True).start()

  def _listen(self, stream: IO[str] | None) -> None:
    for line in stream or ():
      if line.strip() == server.READY:
        self._ready.set()
      elif line.strip():
        self._said = [*self._said[-4:], line.strip()]

  def wait(self) -> None:
    """Waits until it serves.

    Raises:
      InputError: It does not come to that.
    """
    while not self._ready.wait(_LOOK_S):
      self.look()
      if time.monotonic() - self._began > _START_S:
        raise InputError(f"The {self.name} must serve within {_START_S:.0f} s, but does not.")

  def look(self) -> None:
    """Starts it again if it has died.

    Raises:
      InputError: It dies each time it is started.
    """
    if self._process.poll() is None:
      return
    soon = time.monotonic() - self._began < _SOON_S and not self._ready.is_set()
    self._failures = self._failures + 1 if soon else 0
    if self._failures >= _TRIES:
      said = self._said[-1] if self._said else f"exit code {self._process.returncode}"
      raise InputError(f"The {self.name} must be able to run, but ends at once: {said}")
    progress.say(
        f"The {self.name} has ended (code {self._process.returncode}): started again at"
        f" {self._task.address}."
    )
    self._start()

  def end(self) -> None:
    """Ends it."""
    if self._process.stdin:
      self._process.stdin.close()
    try:
      self._process.wait(timeout=5)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()


def main(argv: Sequence[str]) -> None:
  command_line.no_words(argv)
  named = tasks()
  signal.signal(signal.SIGTERM, _end)
  servers: list[Server] = []
  try:
    for name, task in named:
      servers.append(Server(name, task))
    for one in servers:
      one.wait()
    address = _JOIN.value or f"grpc://{service_address.joined(_HOST.value, _PORT.value)}"
    print(f"Ready: flexunet train ... --data_service={address}", flush=True)
    while True:
      for one in servers:
        one.look()
      time.sleep(_LOOK_S)
  except KeyboardInterrupt:
    sys.exit(128 + signal.SIGINT)
  finally:
    for one in servers:
      one.end()


def _end(number: int, frame: object) -> None:
  del frame
  sys.exit(128 + number)


def tasks() -> list[tuple[str, server.Task]]:
  """Returns the servers that the flags ask for, with their names.

  Raises:
    InputError: Nothing is asked for, a port is taken, or there is no dispatcher to join.
  """
  host, found = _HOST.value, []
  if _JOIN.value:
    if not _WORKERS.value or _WORK_DIR.value:
      raise InputError("--join starts workers alone: --workers must be at least 1, and --work_dir"
                       " is of the dispatcher.")  # fmt: skip
    service_address.check_reachable(
        _JOIN.value, "--join", "Start its dispatcher first: flexunet data_service."
    )
    dispatcher = service_address.joined(*service_address.parse(_JOIN.value, "--join"))
  else:
    if _WORK_DIR.value:
      files.check_writable(pathlib.Path(_WORK_DIR.value).expanduser(), "--work_dir")
    work_dir = str(pathlib.Path(_WORK_DIR.value).expanduser()) if _WORK_DIR.value else None
    dispatcher = service_address.joined(host, _PORT.value)
    found.append(("dispatcher", server.Task(_free(_PORT.value), None, dispatcher, work_dir)))
  first = _WORKER_PORT.value or _PORT.value + 1
  for place in range(_WORKERS.value):
    port = _free(first + place)
    address = service_address.joined(host, port)
    found.append((f"worker {place + 1}", server.Task(port, dispatcher, address)))
  return found


def _free(port: int) -> int:
  try:
    return service_address.free_port(port)
  except (OSError, OverflowError) as error:
    raise InputError(
        f"--port and --worker_port must be free on this machine, but {port} is not: {error}. Name"
        " others."
    ) from error


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()
