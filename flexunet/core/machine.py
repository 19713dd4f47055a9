"""Memory and CPUs: what this process holds and may use."""

from __future__ import annotations

import os
import pathlib
import resource


def peak_mib() -> float:
  """Returns MiB, of this program alone.

  On Linux the figure of `getrusage` is never below what the process that started this one held, so
  that a small child of a large program would look large.
  """
  return _status_mib("VmHWM")


def resident_mib() -> float:
  """Returns the MiB that this program holds now; where that is unknown, the most it has held."""
  return _status_mib("VmRSS")


def _status_mib(field: str) -> float:
  status = pathlib.Path("/proc/self/status")
  if status.is_file():
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def available_cpus() -> int:
  """Returns how many CPUs this process may use, by affinity and by its control group's quota."""
  count = os.cpu_count() or 1
  if hasattr(os, "sched_getaffinity"):
    count = len(os.sched_getaffinity(0))
  try:
    quota, period = pathlib.Path("/sys/fs/cgroup/cpu.max").read_text().split()
    count = min(count, max(1, round(int(quota) / int(period))))
  except (OSError, ValueError):
    pass  # No such limit ("max"), or another system.
  return count


def free_main_memory() -> int:
  """Returns the bytes a program can still take, as the kernel and a container's limit allow."""
  free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  try:
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
      if line.startswith("MemAvailable:"):
        free = int(line.split()[1]) * 1024
    limit = pathlib.Path("/sys/fs/cgroup/memory.max").read_text().strip()
    used = int(pathlib.Path("/sys/fs/cgroup/memory.current").read_text())
    if limit != "max":
      free = min(free, int(limit) - used)
  except (OSError, ValueError):
    pass  # Not Linux, or no container: the first figure stands.
  return max(0, free)
