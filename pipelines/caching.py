"""Keeps decoded examples, so that epochs after the first never decode again.

The cache is one array of images and one of labels, in main memory or in a memory-mapped file.
TensorFlow reads them in place (no copy), row by row, so the random order costs nothing extra.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from typing import TYPE_CHECKING

import numpy as np
from absl import logging

from flexunet.datasets import progress
from flexunet.datasets.errors import InputError
from flexunet.pipelines import parallel

if TYPE_CHECKING:
  import tensorflow as tf

  from flexunet.pipelines.loading import Loader

MODES = ("auto", "device", "ram", "disk", "none")
# Share of what is free that a cache may take: the rest is the network's and other programs'.
_MEMORY_SHARE = 0.4
_DISK_SHARE = 0.5
_ALIGNMENT = 64  # What TensorFlow asks of memory that it takes over.
_FILL_BATCH = 16


@dataclasses.dataclass(frozen=True)
class ExampleCache:
  """Decoded examples by row.

  Attributes:
    images: uint8 [N, h, w, C].
    labels: uint8 [N, h, w].
  """

  images: np.ndarray
  labels: np.ndarray

  def tensors(self) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns both as tensors over the same memory; the cache must outlive them."""
    import tensorflow as tf

    share = tf.experimental.dlpack.from_dlpack
    return share(self.images.__dlpack__()), share(self.labels.__dlpack__())


@dataclasses.dataclass(frozen=True)
class Choice:
  """Which cache is used and why."""

  mode: str
  reason: str


def num_bytes(loader: Loader) -> int:
  height, width = loader.spec.resizing.image_size
  return loader.num_rows * height * width * (loader.channels + 1)


def choose(
    mode: str,
    needed: int,
    cache_dir: pathlib.Path,
    *,
    free_memory: int | None = None,
    free_disk: int | None = None,
) -> Choice:
  """Decides where decoded examples are kept.

  Args:
    mode: One of MODES but "device" (`device_cache.choose`); "auto" decides, the others are
      checked.
    needed: Bytes of all decoded examples.
    cache_dir: Where a disk cache would lie.
    free_memory, free_disk: In bytes; measured when None.
  """
  if mode == "none":
    return Choice("none", "given")
  free_memory = free_main_memory() if free_memory is None else free_memory
  free_disk = _free_disk(cache_dir) if free_disk is None else free_disk
  size = f"{needed / 2**20:.0f} MiB of decoded slices"
  if mode != "auto":
    limit, what = (free_disk, "disk") if mode == "disk" else (free_memory, "memory")
    if needed > limit:
      raise InputError(
          f"--cache={mode} needs {size}, but {limit / 2**20:.0f} MiB of {what} are free. Use"
          " --cache=auto, which takes what fits."
      )
    return Choice(mode, "given")
  if needed <= _MEMORY_SHARE * free_memory:
    free = f"{free_memory / 2**20:.0f} MiB free"
    return Choice("ram", f"{size} fit into {_MEMORY_SHARE:.0%} of {free}")
  if needed <= _DISK_SHARE * free_disk:
    return Choice("disk", f"{size} exceed {_MEMORY_SHARE:.0%} of free memory, but fit on the disk")
  return Choice("none", f"{size} fit neither into memory nor on the disk: decoded again each epoch")


def fill(loader: Loader, choice: Choice, cache_dir: pathlib.Path, key: str) -> ExampleCache:
  """Decodes every example once, or takes the finished disk cache of the same `key`."""
  height, width = loader.spec.resizing.image_size
  shapes = {
      "images": (loader.num_rows, height, width, loader.channels),
      "labels": (loader.num_rows, height, width),
  }
  if choice.mode != "disk":
    cache = ExampleCache(**{name: _aligned(shape) for name, shape in shapes.items()})
    decode_all(loader, cache)
    return cache
  folder = cache_dir / key
  if not (folder / "complete.json").is_file():
    _fill_disk(loader, shapes, folder)
  else:
    logging.info("Using the disk cache %s.", key)
  return ExampleCache(
      **{name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in shapes}
  )


def key_of(fingerprint: str, loader: Loader, rows: np.ndarray) -> str:
  """Names a cache by all that its content depends on."""
  spec = loader.spec
  parts = [
      fingerprint,
      repr((spec.resizing, spec.context_slices, spec.image_key, spec.label_key, loader.channels)),
      hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest(),
  ]
  if loader.boxes is not None:
    parts.append(hashlib.sha256(np.ascontiguousarray(loader.boxes).tobytes()).hexdigest())
  return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def default_folder() -> pathlib.Path:
  base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return pathlib.Path(base).expanduser() / "flexunet"


def _fill_disk(loader: Loader, shapes: dict, folder: pathlib.Path) -> None:
  """Fills a folder beside the final one and renames it: a kill leaves no cache that looks whole."""
  folder.parent.mkdir(parents=True, exist_ok=True)
  partial = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
  try:
    arrays = {
        name: np.lib.format.open_memmap(partial / f"{name}.npy", "w+", np.uint8, shape)
        for name, shape in shapes.items()
    }
    decode_all(loader, ExampleCache(**arrays))
    for array in arrays.values():
      array.flush()
    del arrays
    (partial / "complete.json").write_text(json.dumps({"rows": loader.num_rows}))
    if folder.exists():  # Another run was faster, or an older one was damaged.
      shutil.rmtree(folder)
    os.replace(partial, folder)
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise


def decode_all(loader: Loader, cache: ExampleCache) -> None:
  """Writes every example of the loader into the arrays of the cache."""
  import tensorflow as tf

  examples = parallel.untuned(
      tf.data.Dataset.range(loader.num_rows)
      .map(loader, num_parallel_calls=parallel.default_threads(), deterministic=True)
      .batch(_FILL_BATCH)
      .prefetch(2)
  )
  start = 0
  with progress.bar(
      total=loader.num_rows, desc="decoding", unit="slice", delay=3.0, leave=False
  ) as bar:
    for batch in examples.as_numpy_iterator():
      stop = start + len(batch["label"])
      cache.images[start:stop] = batch["image"]
      cache.labels[start:stop] = batch["label"]
      bar.update(stop - start)
      start = stop


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
  size = int(np.prod(shape))
  raw = np.empty(size + _ALIGNMENT, np.uint8)
  skip = -raw.ctypes.data % _ALIGNMENT
  return raw[skip : skip + size].reshape(shape)


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


def _free_disk(folder: pathlib.Path) -> int:
  while not folder.exists():
    folder = folder.parent
  return shutil.disk_usage(folder).free
