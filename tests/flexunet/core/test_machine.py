"""What a process has held, and what it may take of the machine."""

import json
import subprocess
import sys

from flexunet.core import machine

_CHILD = "from flexunet.core import machine; print(machine.peak_mib())"
# A process of its own: more than this one has ever held may be gigabytes.
_PARENT = f"""
import subprocess, sys
from flexunet.core import machine
before = machine.peak_mib()
held = b"1" * (300 << 20)
print(before, machine.peak_mib(), flush=True)
subprocess.run([sys.executable, "-c", {_CHILD!r}], check=True)
"""


def test_the_peak_is_that_of_the_process_and_not_of_its_parent():
  done = subprocess.run([sys.executable, "-c", _PARENT], capture_output=True, text=True, check=True)
  before, parent, child = map(float, done.stdout.split())
  assert 5 < before < 250 and parent >= before + 290
  assert 5 < child < 250


def test_processes_that_share_the_machine_have_disjoint_processors_and_a_part_of_the_memory():
  cpus, free = machine.available_cpus(), machine.free_main_memory()
  child = (
      "import os, sys; from flexunet.core import machine as m; m.share(2, int(sys.argv[1]));"
      " print(sorted(os.sched_getaffinity(0)), m.available_cpus(), m.free_main_memory(), sep=';')"
  )
  seen = []
  for place in ("0", "1"):
    done = subprocess.run([sys.executable, "-c", child, place], capture_output=True, text=True,
                          check=True)  # fmt: skip
    bound, count, memory = done.stdout.split(";")
    assert int(count) == max(1, cpus // 2) and int(memory) < 0.75 * free
    seen.append(set(json.loads(bound)))
  assert cpus < 2 or not seen[0] & seen[1]
