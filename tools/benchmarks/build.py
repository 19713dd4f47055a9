"""Measures a build: workers, memory, and its cost beside that of reading the same scans alone.

  flexunet benchmark_build hippocampus_t1w --manual_dir=RAW

Several workers are held against one, many subjects against few, and one worker against a loop that
reads the same scans and labels and cuts them into slices, by nibabel alone, or pydicom where the
scans are DICOM. Prints one JSON object. Each build runs in a process of its own, into a temporary
folder; memory is the highest sum of what the process and its workers hold at once (proportional set
size, so that shared pages count once). Linux only.
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
from flexunet.datasets.builder import raw_folder
from flexunet.imaging import scan_files

_PROGRAM = flags.Program(__doc__, usage="flexunet benchmark_build DATASET --manual_dir=RAW")
_MANUAL_DIR = _PROGRAM.string("manual_dir", None, "Raw folder: the unpacked download.")
_WORKERS = _PROGRAM.integer("workers", None, "Workers to measure; all CPUs by default.")
_MANY = _PROGRAM.integer("many", 20, "Cases of the large build.", lower_bound=1)
_FEW = _PROGRAM.integer("few", 5, "Cases of the small build.", lower_bound=1)
_REPEATS = _PROGRAM.integer("repeats", 1, "The fastest of so many runs counts.", lower_bound=1)
_SAMPLE_SECONDS = 0.05
_BUILD_ONE = """
import json, pathlib, sys, time
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
size = sum(path.stat().st_size for path in pathlib.Path(out).rglob("*") if path.is_file())
print(json.dumps({"seconds": seconds, "records": records, "bytes": size}))
"""
# What anyone would write who needs the slices of some scans: no check, no window, nothing written.
_READ_ONE = """
import json, sys, time
import nibabel
import numpy as np
groups = json.load(open(sys.argv[1]))
if any(len(group) > 1 for group in groups):
  import pydicom
start = time.perf_counter()
slices = 0
for group in groups:
  if len(group) > 1:
    files = sorted((pydicom.dcmread(path) for path in group), key=lambda one: one.InstanceNumber)
    voxels = np.stack([one.pixel_array for one in files], axis=-1)
  else:
    voxels = np.asanyarray(nibabel.load(group[0]).dataobj).squeeze()
  voxels = voxels.reshape(*voxels.shape[:2], -1)
  for k in range(voxels.shape[2]):
    slices += np.ascontiguousarray(voxels[:, :, k]).size > 0
print(json.dumps({"seconds": time.perf_counter() - start, "records": slices}))
"""


def main(argv: Sequence[str]) -> None:
  if len(argv) != 2 or _MANUAL_DIR.value is None:
    raise InputError("Give one dataset and --manual_dir, its raw folder.")
  raw = pathlib.Path(_MANUAL_DIR.value)
  builder = catalog.builder(argv[1], raw / "none")
  cases = builder.inspect_source(raw).cases
  if len(cases) < _MANY.value:
    raise InputError(f"{raw} holds {len(cases)} cases; --many={_MANY.value} asks for more.")
  groups = [group for case in cases[: _MANY.value] for group in _volumes_of(case)]
  workers = _WORKERS.value or machine.available_cpus()
  serial = _fastest(argv[1], raw, 1, _MANY.value)
  parallel = _fastest(argv[1], raw, workers, _MANY.value)
  # In runs of their own: looking at a process's memory holds it up.
  many_mb = measure(argv[1], raw, workers, _MANY.value, look=True)["peak_mb"]
  few_mb = measure(argv[1], raw, workers, _FEW.value, look=True)["peak_mb"]
  reading = min((_read(groups, look=False) for _ in range(_REPEATS.value)),
                key=lambda run: run["seconds"])  # fmt: skip
  reading_mb = _read(groups, look=True)["peak_mb"]
  one_mb = measure(argv[1], raw, 1, _MANY.value, look=True)["peak_mb"]
  volumes = _MANY.value
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
      "volumes_per_second": round(volumes / serial["seconds"], 3),
      "volumes_per_second_read_alone": round(volumes / reading["seconds"], 3),
      "seconds_to_reading_alone": round(serial["seconds"] / reading["seconds"], 3),
      "peak_mb_one_worker": round(one_mb, 1),
      "peak_mb_read_alone": round(reading_mb, 1),
  }, indent=1))


def _volumes_of(case: raw_folder.Case) -> list[list[str]]:
  """Returns the files of each volume of a case: one, or those of a DICOM series."""
  roles = [role for role in case.files if "_voxels" not in role]
  return [
      [
          str(path) for own, path in case.files.items()
          if own == role or (own.startswith(f"{role}_voxels") and path.suffix != ".img")
      ]
      for role in roles if scan_files.is_scan(case.files[role])
  ]  # fmt: skip


def _read(groups: list[list[str]], look: bool) -> dict[str, float]:
  """Reads the volumes alone, in a process of its own."""
  with tempfile.NamedTemporaryFile("w", suffix=".json") as listed:
    json.dump(groups, listed)
    listed.flush()
    return _watched([sys.executable, "-c", _READ_ONE, listed.name], look)


def _fastest(dataset: str, raw: pathlib.Path, workers: int, cases: int) -> dict[str, float]:
  runs = [measure(dataset, raw, workers, cases, look=False) for _ in range(_REPEATS.value)]
  return min(runs, key=lambda run: run["seconds"])


def measure(
    dataset: str, raw: pathlib.Path, workers: int, cases: int, look: bool
) -> dict[str, float]:
  """Builds once in a process of its own, into a temporary folder.

  Args:
    dataset: Its name.
    raw: The raw folder.
    workers: Processes that read.
    cases: The first so many cases are built.
    look: Watches the memory, which holds the build up; else only the time counts.

  Returns:
    seconds, records, bytes on disk, and with `look` peak_mb.
  """
  with tempfile.TemporaryDirectory(prefix="benchmark_build_") as out:
    arguments = [dataset, str(raw), out, str(workers), str(cases)]
    return _watched([sys.executable, "-c", _BUILD_ONE, *arguments], look)


def _watched(command: list[str], look: bool) -> dict[str, float]:
  """Runs a program and returns what its last line states; with `look`, the memory it held too."""
  process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  peak = 0
  while look and process.poll() is None:
    peak = max(peak, sum(_held_bytes(pid) for pid in _family(process.pid)))
    time.sleep(_SAMPLE_SECONDS)
  printed = process.communicate()[0].splitlines()
  if process.returncode:
    raise InputError("The measured program failed; build the dataset with flexunet build first.")
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
