"""Measures a build: several workers against one, and memory with many subjects against few.

  flexunet benchmark_build hippocampus_t1w --manual_dir=RAW

Prints one JSON object. Each build runs in a process of its own, into a temporary folder; memory
is the highest sum of what the process and its workers hold at once (proportional set size, so
that shared pages count once). Linux only.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from flexunet.core import command_line, flags, machine
from flexunet.core.errors import InputError
from flexunet.datasets import catalog

_PROGRAM = flags.Program(__doc__, usage="flexunet benchmark_build DATASET --manual_dir=RAW")
_MANUAL_DIR = _PROGRAM.string("manual_dir", None, "Raw folder: the unpacked download.")
_WORKERS = _PROGRAM.integer("workers", None, "Workers to measure; all CPUs by default.")
_MANY = _PROGRAM.integer("many", 20, "Cases of the large build.", lower_bound=1)
_FEW = _PROGRAM.integer("few", 5, "Cases of the small build.", lower_bound=1)
_REPEATS = _PROGRAM.integer("repeats", 1, "The fastest of so many runs counts.", lower_bound=1)
_SAMPLE_SECONDS = 0.05
_BUILD_ONE = """
import json, sys, time
import tensorflow_datasets as tfds
from flexunet.datasets import catalog
dataset, raw, out, workers, cases = sys.argv[1:]
builder = catalog.builder(dataset, out)
builder.num_workers = int(workers)
look = builder.inspect_source
def inspect_some(root):
  findings = look(root)
  findings.cases = findings.cases[: int(cases)]
  return findings
builder.inspect_source = inspect_some
start = time.perf_counter()
builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=raw))
seconds = time.perf_counter() - start
records = sum(split.num_examples for split in builder.info.splits.values())
print(json.dumps({"seconds": seconds, "records": records}))
"""


def main(argv: Sequence[str]) -> None:
  if len(argv) != 2 or _MANUAL_DIR.value is None:
    raise InputError("Give one dataset and --manual_dir, its raw folder.")
  raw = pathlib.Path(_MANUAL_DIR.value)
  builder = catalog.builder(argv[1], raw / "none")
  cases = len(builder.inspect_source(raw).cases)
  if cases < _MANY.value:
    raise InputError(f"{raw} holds {cases} cases; --many={_MANY.value} asks for more.")
  workers = _WORKERS.value or machine.available_cpus()
  serial = _fastest(argv[1], raw, 1, _MANY.value)
  parallel = _fastest(argv[1], raw, workers, _MANY.value)
  # In runs of their own: looking at a process's memory holds it up.
  many_mb = _measure(argv[1], raw, workers, _MANY.value, look=True)["peak_mb"]
  few_mb = _measure(argv[1], raw, workers, _FEW.value, look=True)["peak_mb"]
  print(json.dumps({
      "dataset": argv[1],
      "cpus": machine.available_cpus(),
      "workers": workers,
      "cases_many": _MANY.value,
      "cases_few": _FEW.value,
      "records_many": parallel["records"],
      "seconds_one_worker": round(serial["seconds"], 3),
      "seconds_workers": round(parallel["seconds"], 3),
      "speedup": round(serial["seconds"] / parallel["seconds"], 3),
      "peak_mb_few": round(few_mb, 1),
      "peak_mb_many": round(many_mb, 1),
      "memory_ratio": round(many_mb / few_mb, 3),
  }, indent=1))


def _fastest(dataset: str, raw: pathlib.Path, workers: int, cases: int) -> dict[str, float]:
  runs = [_measure(dataset, raw, workers, cases, look=False) for _ in range(_REPEATS.value)]
  return min(runs, key=lambda run: run["seconds"])


def _measure(
    dataset: str, raw: pathlib.Path, workers: int, cases: int, look: bool
) -> dict[str, float]:
  """Builds once; with `look` the memory is watched, else only the time counts."""
  with tempfile.TemporaryDirectory(prefix="benchmark_build_") as out:
    process = subprocess.Popen(
        [sys.executable, "-c", _BUILD_ONE, dataset, str(raw), out, str(workers), str(cases)],
        stdout=subprocess.PIPE,
        text=True,
    )
    peak = 0
    while look and process.poll() is None:
      peak = max(peak, sum(_held_bytes(pid) for pid in _family(process.pid)))
      time.sleep(_SAMPLE_SECONDS)
    printed = process.communicate()[0].splitlines()
    if process.returncode:
      raise InputError(f"The build of {dataset} failed; build it with flexunet build first.")
  return {**json.loads(printed[-1]), "peak_mb": peak / 1e6}


def _family(pid: int) -> list[int]:
  """Returns a process and all below it."""
  found = [pid]
  for parent in found:
    try:
      listing = pathlib.Path(f"/proc/{parent}/task").glob("*/children")
      found += [int(child) for path in listing for child in path.read_text().split()]
    except OSError:
      pass  # It ended meanwhile.
  return found


def _held_bytes(pid: int) -> int:
  try:
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
      if line.startswith("Pss:"):
        return int(line.split()[1]) * 1024
  except OSError:
    pass
  return 0


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()
