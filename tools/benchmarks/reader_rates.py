"""How fast one process reads records; a program of its own that needs no more than the readers.

  python -m flexunet.tools.benchmarks.reader_rates records|monai FOLDER SPLIT SHARE OF COUNT

Reads share SHARE of OF of COUNT records (a smaller split is repeated) once for each line on
standard input, and answers with a line of JSON: images, CPU seconds and seconds of each way.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from flexunet.records import Records, open_records


def main(kind: str, folder: str, split: str, share: str, of: str, count: str) -> None:
  records = open_records(folder, split, features=("image", "label"))
  rows = np.resize(np.arange(len(records)), int(count))
  rows = np.random.default_rng(0).permutation(rows)[int(share) :: int(of)].tolist()
  with tempfile.TemporaryDirectory() as scratch:
    ways = monai_ways(records, rows, scratch) if kind == "monai" else {}
    if kind == "records":
      ways["records"] = lambda: map(records.__getitem__, rows)
    for way in ways.values():
      timed(way)  # Files are opened, caches filled.
    print("ready", flush=True)
    for _ in sys.stdin:
      print(json.dumps({name: timed(way) for name, way in ways.items()}), flush=True)


def timed(way: Callable[[], Iterator[Any]]) -> dict[str, float]:
  """Returns how many examples come one way, and what they take."""
  cpu, began = time.process_time(), time.perf_counter()
  images = sum(1 for _ in way())
  return {
      "images": images,
      "cpu_s": time.process_time() - cpu,
      "seconds": time.perf_counter() - began,
  }


def monai_ways(
    records: Records, rows: list[int], scratch: str
) -> dict[str, Callable[[], Iterator[Any]]]:
  """Returns MONAI's datasets over the same records, which decode each of them once.

  Args:
    records: What is read.
    rows: Their numbers in the order of reading.
    scratch: Folder of the cache on disk.
  """
  # Only where it is compared with; the readers do without it.
  import monai.data

  once = list(range(len(records)))
  kept = monai.data.PersistentDataset(once, records.__getitem__, cache_dir=scratch)
  in_memory = monai.data.CacheDataset(once, records.__getitem__, progress=False, num_workers=1)
  return {
      "monai_persistent": lambda: map(kept.__getitem__, rows),
      "monai_cache": lambda: map(in_memory.__getitem__, rows),
  }


if __name__ == "__main__":
  main(*sys.argv[1:])
