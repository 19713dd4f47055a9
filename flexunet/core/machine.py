"""Memory and processors: what this process holds, and may use, all of them or a share."""

from __future__ import annotations

import os
import pathlib
import resource

_sharing = 1  # Processes among which the machine is divided.


def share(processes: int, place: int) -> None:
  """Leaves this process one of several equal shares of the machine, for as long as it lives.

  Where the system can bind a process to processors, it is bound to its own. Call it before
  libraries start their threads.

  Args:
    processes: How many share the machine; at most `available_cpus`.
    place: Which of them this one is, from 0 on.
  """
  global _sharing
  cores = max(1, available_cpus() // processes)
  if hasattr(os, "sched_setaffinity"):
    # Every n-th: Linux numbers the two threads of a core far apart, so both are often of one share.
    own = sorted(os.sched_getaffinity(0))[place::processes][:cores]
    os.sched_setaffinity(0, own)
  else:
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
      os.environ.setdefault(name, str(cores))
  _sharing = processes


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
  if hasattr(os, "sched_getaffinity"):
    count = len(os.sched_getaffinity(0))
  else:
    count = max(1, (os.cpu_count() or 1) // _sharing)
  try:
    quota, period = pathlib.Path("/sys/fs/cgroup/cpu.max").read_text().split()
    count = min(count, max(1, round(int(quota) / int(period))))
  except (OSError, ValueError):
    pass  # No such limit ("max"), or another system.
  return count


def free_main_memory() -> int:
  """Returns the bytes this process can still take, as kernel, container and `share` allow."""
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
  return max(0, free) // _sharing
