"""How fast one process reads records; a program of its own that needs no more than the readers.

  python -m flexunet.tools.benchmarks.reader_rates records|monai FOLDER SPLIT SHARE OF COUNT

Reads share SHARE of OF of COUNT records (a smaller split is repeated) once for each line on
standard input, and answers with a line of JSON: images, CPU seconds and seconds of each way.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from flexunet.records import Records, open_records
from flexunet.tools.benchmarks import processes


def main(kind: str, folder: str, split: str, share: str, of: str, count: str) -> None:
  answer = processes.answers()
  records = open_records(folder, split, features=("image", "label"))
  rows = np.resize(np.arange(len(records)), int(count))
  rows = np.random.default_rng(0).permutation(rows)[int(share) :: int(of)].tolist()
  with tempfile.TemporaryDirectory() as scratch:
    ways = monai_ways(records, rows, scratch) if kind == "monai" else {}
    if kind == "records":
      ways["records"] = lambda: map(records.__getitem__, rows)
    expected = pixel_sum(records[row] for row in rows)
    for name, way in ways.items():
      pixel_sum(way())  # Files are opened, caches filled.
      if (found := pixel_sum(way())) != expected:
        raise RuntimeError(f"{name} gives other pixels: their sum is {found}, not {expected}")
    answer({"ways": list(ways)})
    for _ in sys.stdin:
      answer({name: timed(way) for name, way in ways.items()})


def timed(way: Callable[[], Iterator[Any]]) -> dict[str, float]:
  """Returns how many examples come one way, and what they take."""
  cpu, began = time.process_time(), time.perf_counter()
  images = sum(1 for _ in way())
  return {
      "images": images,
      "cpu_s": time.process_time() - cpu,
      "seconds": time.perf_counter() - began,
  }


def pixel_sum(examples: Iterable[Any]) -> int:
  """Returns the sum of all pixels of images and labels, arrays or tensors."""
  arrays = (np.asarray(one[key]) for one in examples for key in ("image", "label"))
  return sum(int(array.sum(dtype=np.int64)) for array in arrays)


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
  import monai.transforms

  class Decode(monai.transforms.Transform):
    """Reads a record by its number; MONAI keeps no result of what is not a `Transform` of its."""

    def __call__(self, data: int) -> dict[str, Any]:
      return records[data]

  once = list(range(len(records)))
  kept = monai.data.PersistentDataset(once, Decode(), cache_dir=scratch)
  in_memory = monai.data.CacheDataset(once, Decode(), progress=False, num_workers=1)
  return {
      "monai_persistent": lambda: map(kept.__getitem__, rows),
      "monai_cache": lambda: map(in_memory.__getitem__, rows),
  }


if __name__ == "__main__":
  main(*sys.argv[1:])
