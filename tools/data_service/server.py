"""One server of a tf.data service, a dispatcher or a worker, in a process of its own.

What to be comes as one line of JSON on standard input, which then stays open: where it ends, the
program that started this one has died, and this one ends too. A line on standard output says that
the server runs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys

from flexunet.core import command_line

READY = "ready"
_HEARTBEAT_MS = 5_000
_MISSING_AFTER_MS = 60_000  # Of a worker: the dispatcher then asks it no more.


@dataclasses.dataclass(frozen=True)
class Task:
  """What a server is.

  Attributes:
    port: Where it listens.
    dispatcher: HOST:PORT of the dispatcher of a worker; None: it is the dispatcher itself.
    address: HOST:PORT by which others reach it.
    work_dir: Where a dispatcher keeps its journal; None: it forgets all when it ends.
  """

  port: int
  dispatcher: str | None
  address: str
  work_dir: str | None = None


def main() -> None:
  task = Task(**json.loads(sys.stdin.readline()))
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # A Ctrl-C is for the program that started this one.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  # It computes on the CPU; a GPU of this machine is the trainer's.
  os.environ["CUDA_VISIBLE_DEVICES"] = ""
  command_line.load_tensorflow()
  # Heavy, and slow to come: only where the process is to serve.
  import tensorflow as tf

  service = tf.data.experimental.service
  server = (
      service.WorkerServer(
          service.WorkerConfig(
              dispatcher_address=task.dispatcher, worker_address=task.address, port=task.port,
              heartbeat_interval_ms=_HEARTBEAT_MS,
          )
      )
      if task.dispatcher
      else service.DispatchServer(
          service.DispatcherConfig(
              port=task.port, work_dir=task.work_dir, fault_tolerant_mode=bool(task.work_dir),
              worker_timeout_ms=_MISSING_AFTER_MS,
          )
      )
  )  # fmt: skip
  print(READY, flush=True)
  sys.stdin.read()
  del server  # Kept until here: it serves as long as it exists.
  os._exit(0)  # Its end would wait for whoever is still connected.


if __name__ == "__main__":
  main()
