"""What a process has held, and what it may take of the machine."""

import json
import subprocess
import sys

import numpy as np

from flexunet.core import machine

_CHILD = "from flexunet.core import machine; print(machine.peak_mib())"


def test_the_peak_is_that_of_the_process_and_not_of_its_parent():
  before = machine.peak_mib()
  held = np.ones(int(before + 300) << 20, np.uint8)  # More than has ever been held.
  assert machine.peak_mib() >= before + 290
  done = subprocess.run([sys.executable, "-c", _CHILD], capture_output=True, text=True, check=True)
  assert 5 < float(done.stdout) < 250 < held.nbytes >> 20


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
