"""The peak memory of a process."""

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
