"""A process that trains with others, watched by one that says in a line why it had to end.

JAX ends a process whose partners no longer answer from within, by abort and with the trace of its
own C++ code. The program that the user starts therefore trains in a process of its own, passes its
lines and signals on, and turns such an end into one line and exit code 1.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from flexunet.distributed.membership import VARIABLE, Membership

# How long a host may be silent before it counts as dead, and how long all wait for the last one.
HEARTBEAT_S, START_S = 30, 300
# What the watching process lets pass beside: heartbeats are sent and looked at now and then.
LATEST_END_S = 2 * HEARTBEAT_S
_RESUME = (
    "What its last checkpoint holds is kept: start the same command with --resume on every host."
)
# First lines of a failure in the C++ code of JAX; all that follows belongs to it.
_FAILURE = re.compile(r"[EF]\d{4} [\d:.]+ +\d+ (coordination_|client\.h|distributed_runtime)")
_AT_THE_START = ("RegisterTask", "Connect()")
_CHATTER = ("[Gloo] Rank ",)
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Of an exception in a step, where the partner's connection was closed.
_LOST = (
    "Gloo", "Connection reset", "Connection closed", "NCCL", "heartbeat", "CoordinationService",
    "coordination service",
)  # fmt: skip
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); from flexunet import train;"
    " train.run()"
)
# The signal that this process was asked to end by, as the one that watches it has passed it on.
_asked: list[int] = []


def lost_sentence(member: Membership, cause: BaseException | None = None) -> str:
  """Returns what the user reads where another process of the run is gone.

  Args:
    member: The place of this process.
    cause: By which it has noticed; its first words are shown.
  """
  said = f" (JAX: {str(cause).splitlines()[0]:.120})" if cause and str(cause) else ""
  return (
      f"All {member.count} processes of a run must stay, but another one than process"
      f" {member.index} has ended or no longer answers{said}; its own lines say why. {_RESUME}"
  )


def start_sentence(member: Membership) -> str:
  """Returns what the user reads where the processes have not found each other."""
  return (
      f"All {member.count} processes of a run must be started within {START_S} s and reach"
      f" --coordinator {member.coordinator}, where process 0 listens; process {member.index} has"
      " waited in vain. Start the command on every host, and let the port through."
  )


def means_lost(error: BaseException) -> bool:
  """Returns whether an exception of a step says that another process is gone."""
  return any(word in str(error) for word in _LOST)


def end_at_once(error: str | None) -> None:
  """Ends this process without waiting for the others, who are not to wait for it either.

  Args:
    error: Said as programs say errors; None: it has been said.
  """
  if error is not None:
    print(f"error: {error}", file=sys.stderr)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(1)


def follow_the_watcher() -> None:
  """Listens to the process that watches this one: to its signals, and ends when it is gone.

  Signals of the system itself are ignored: launchers send them to both, and one that is passed on
  would be the second, which kills.
  """
  for number in _SIGNALS:
    signal.signal(number, signal.SIG_IGN)

  def wait() -> None:
    while number := os.read(0, 1):
      _asked.append(number[0])
    os._exit(1)

  threading.Thread(target=wait, name="watcher", daemon=True).start()


def asked_signal() -> int:
  """Returns the signal that asked this process to end; 0: none, or it is not watched."""
  return _asked[0] if _asked else 0


def watched(member: Membership, words: Sequence[str]) -> int:
  """Runs the trainer for one place of a run in a process of its own; returns its exit code.

  Args:
    member: The place.
    words: The command line after the program's name.
  """
  process = subprocess.Popen(
      [sys.executable, "-c", _PROGRAM, json.dumps(sys.path), *words],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      env={**os.environ, VARIABLE: member.to_json()},
  )
  asked: list[int] = []

  def pass_on(number: int, _: Any) -> None:
    if asked or process.stdin is None:
      process.kill()  # Who asks twice does not want to wait.
    else:
      with contextlib.suppress(BrokenPipeError):
        process.stdin.write(bytes([number]))
        process.stdin.flush()
    asked.append(number)

  before = {
      number: signal.signal(number, pass_on)
      for number in _SIGNALS
      if signal.getsignal(number) is not signal.SIG_IGN
  }
  answers = threading.Thread(target=relay, args=(process.stdout or (), sys.stdout.write))
  answers.start()
  try:
    held = relay(process.stderr or (), _write)
    code = process.wait()
    answers.join()
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
  return _explained(member, code, held)


def _explained(member: Membership, code: int, held: list[str]) -> int:
  """Returns the exit code for the user, after a line on an end that JAX has brought about."""
  if code >= 0 or not held:
    _write("".join(held))
    return code if code >= 0 else 128 - code
  at_start = any(word in line for word in _AT_THE_START for line in held)
  sentence = start_sentence(member) if at_start else lost_sentence(member)
  _write(f"error: {sentence}\n")
  return 1


def relay(lines: Iterable[bytes], write: Callable[[str], Any]) -> list[str]:
  """Passes lines on as they come, until those of a failure of JAX begin; returns these.

  What its exchange of arrays says of itself, on standard output, is left out.
  """
  held: list[str] = []
  for raw in lines:
    line = raw.decode(errors="replace")
    if held or _FAILURE.search(line):
      held.append(line)
    elif not line.startswith(_CHATTER):
      write(line)
  return held


def _write(text: str) -> None:
  sys.stderr.write(text)
  sys.stderr.flush()
