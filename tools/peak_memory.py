"""The most memory that this process has held."""

from __future__ import annotations

import pathlib
import resource


def peak_mib() -> float:
  """Returns MiB, of this program alone.

  On Linux the figure of `getrusage` is never below what the process that started this one held, so
  that a small child of a large program would look large.
  """
  status = pathlib.Path("/proc/self/status")
  if status.is_file():
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
