"""What the user reads where JAX has ended a process: one line, and nothing of its trace."""

import signal
import subprocess
import sys
import time

import pytest

from flexunet.distributed import launch
from flexunet.distributed.membership import Membership

MEMBER = Membership("n1:500", 0, 2)
# As JAX 0.10 writes it.
FAILURE = [
    b"E1122 04:32:30.393354    1840 coordination_service.cc:1549] [96] unhealthy tasks:\n",
    b"1\n",
    b"F1122 04:32:30.397464    1851 client.h:80] Terminating process because the JAX\n",
    b"*** Check failure stack trace: ***\n",
    b"    @     0x7ff5db140634  absl::lts_20260107::log_internal\n",
]


def test_lines_pass_until_a_failure_begins():
  passed: list[str] = []
  lines = [b"Resuming from step 3.\n", b"[Gloo] Rank 0 is connected to 1 peer ranks.\n", *FAILURE]
  held = launch.relay(lines, passed.append)
  assert passed == ["Resuming from step 3.\n"]
  assert held == [line.decode() for line in FAILURE]


def test_an_abort_by_jax_becomes_a_line_with_the_remedy(capsys):
  held = [line.decode() for line in FAILURE]
  assert launch._explained(MEMBER, -signal.SIGABRT, held) == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("error: All 2 processes of a run must stay") and "--resume" in line


def test_processes_that_have_not_met_are_named_as_such(capsys):
  held = [FAILURE[2].decode(), "RPC: /xla.coordination.CoordinationService/RegisterTask\n"]
  assert launch._explained(MEMBER, -signal.SIGABRT, held) == 1
  assert "reach --coordinator n1:500" in capsys.readouterr().err


@pytest.mark.parametrize(("code", "wanted"), [(0, 0), (1, 1), (143, 143), (-signal.SIGKILL, 137)])
def test_other_ends_keep_their_code_and_lines(capsys, code, wanted):
  held = ["E1122 04:32:30.1 1840 coordination_service.cc:1] late\n"] if code >= 0 else []
  assert launch._explained(MEMBER, code, held) == wanted
  assert capsys.readouterr().err == "".join(held)


_FOLLOWER = """
import time
from flexunet.distributed import launch
launch.follow_the_watcher()
print("ready", flush=True)
while not launch.asked_signal():
  time.sleep(0.01)
print(launch.asked_signal(), flush=True)
time.sleep(60)
"""


def test_a_watched_process_notes_signals_and_ends_with_its_watcher():
  process = subprocess.Popen(
      [sys.executable, "-c", _FOLLOWER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
  )
  assert process.stdout.readline() == b"ready\n"
  process.send_signal(signal.SIGTERM)  # As Slurm sends it to every process of a step.
  process.stdin.write(bytes([signal.SIGTERM]))
  process.stdin.flush()
  assert process.stdout.readline() == b"15\n"
  started = time.monotonic()
  process.stdin.close()  # The watcher has died.
  assert process.wait(timeout=20) == 1
  assert time.monotonic() - started < 20
  process.stdout.close()
