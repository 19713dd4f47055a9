"""Keeps decoded examples, so that epochs after the first never decode again.

`ExampleCache` is one array of images and one of labels, in main memory or in a memory-mapped file.
TensorFlow reads them in place (no copy), row by row, so the random order costs nothing extra.
`DeviceCache` lies in the memory of the device that trains: only row numbers travel to it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import shutil
import tempfile

import numpy as np
import tensorflow as tf
from absl import logging

from flexunet.core import machine, progress
from flexunet.core.errors import InputError
from flexunet.pipelines import tf_data
from flexunet.pipelines.readers import Loader

MODES = ("auto", "device", "ram", "disk", "none")
# Share of what is free that a cache may take: the rest is the network's and other programs'.
_MEMORY_SHARE = 0.4
_DISK_SHARE = 0.5
_ALIGNMENT = 64  # What TensorFlow asks of memory that it takes over.
_FILL_BATCH = 16
# Shares of what the network leaves of the device's free memory: its estimate is an estimate.
AUTO_SHARE = 0.25
GIVEN_SHARE = 0.8
_WORD = 8  # Bytes of an int64.


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
    share = tf.experimental.dlpack.from_dlpack
    return share(self.images.__dlpack__()), share(self.labels.__dlpack__())


@dataclasses.dataclass(frozen=True)
class Choice:
  """Which cache is used and why."""

  mode: str
  reason: str


def num_bytes(loader: Loader) -> int:
  """Returns the main memory or disk that the loader's examples take."""
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
    mode: One of MODES but "device" (`choose_on_device`); "auto" decides, the others are checked.
    needed: Bytes of all decoded examples.
    cache_dir: Where a disk cache would lie.
    free_memory, free_disk: In bytes; measured when None.

  Raises:
    InputError: The mode that was asked for does not fit.
  """
  if mode == "none":
    return Choice("none", "given")
  free_memory = machine.free_main_memory() if free_memory is None else free_memory
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
  """Decodes every example once, or takes the finished disk cache of the same `key`.

  Args:
    loader: Reads the examples.
    choice: "ram" or "disk", from `choose`.
    cache_dir: Holds the disk caches.
    key: Of `key_of`.
  """
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
  """Returns the name of a disk cache: a hash of all that its content depends on.

  Args:
    fingerprint: That of the dataset.
    loader: Reads the examples.
    rows: Offsets of the records, int64 [N].
  """
  spec = loader.spec
  parts = [
      fingerprint,
      repr((spec.resizing, spec.context_slices, spec.image_key, spec.label_key, loader.channels)),
      hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest(),
  ]
  if loader.boxes is not None:
    parts.append(hashlib.sha256(np.ascontiguousarray(loader.boxes).tobytes()).hexdigest())
  return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


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
  examples = tf_data.untuned(
      tf.data.Dataset.range(loader.num_rows)
      .map(
          tf_data.plain_graph(loader),
          num_parallel_calls=tf_data.default_threads(),
          deterministic=True,
      )
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


def _free_disk(folder: pathlib.Path) -> int:
  while not folder.exists():
    folder = folder.parent
  return shutil.disk_usage(folder).free


@dataclasses.dataclass(frozen=True)
class Room:
  """What is known of the device when a cache is chosen.

  Attributes:
    free_bytes: Of its memory, less what the network is going to take; None where unknown.
    obstacle: Why the cache cannot lie there, whatever the memory; "" where it can.
    is_gpu: Whether it is one; without a GPU `auto` never picks the device.
  """

  free_bytes: int | None
  obstacle: str = ""
  is_gpu: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class DeviceCache:
  """Decoded examples by row, in the memory of one device; the CPU's where there is no GPU.

  A row is one run of bytes, image then label, kept as int64: TensorFlow's own gather has no kernel
  for bytes on a GPU, and keeps int32 in main memory.

  Attributes:
    words: int64 [N, n]; the bytes of a row are those of its image, its label, and zeros.
    image_shape: Height, width and channels as they are kept.
  """

  words: tf.Tensor
  image_shape: tuple[int, int, int]

  def gather(self, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Row numbers int64 [B] -> images uint8 [B, h, w, C] and labels uint8 [B, h, w].

    Runs where the cache lies, inside the compiled training step, also in one compiled by XLA.
    """
    height, width, channels = self.image_shape
    found = tf.bitcast(tf.gather(self.words, rows), tf.uint8)
    found = tf.reshape(found, [-1, self.words.shape[1] * _WORD])
    pixels = height * width
    images = found[:, : pixels * channels]
    labels = found[:, pixels * channels : pixels * (channels + 1)]
    return (
        tf.reshape(images, [-1, height, width, channels]),
        tf.reshape(labels, [-1, height, width]),
    )


def num_bytes_on_device(loader: Loader) -> int:
  """Returns the device memory that the loader's examples take."""
  return loader.num_rows * _words_of(_shape(loader)) * _WORD


def choose_on_device(mode: str, needed: int, room: Room) -> tuple[Choice | None, str]:
  """Decides whether the examples lie on the device.

  Args:
    mode: One of MODES.
    needed: Bytes, of `num_bytes_on_device`.
    room: What is known of the device.

  Returns:
    (the choice, or None where another cache is to be chosen; why `auto` did not take a GPU's
    memory, "" otherwise).

  Raises:
    InputError: Mode "device", and there is an obstacle or too little memory.
  """
  size = f"{needed / 2**20:.0f} MiB of decoded training slices"
  if mode == "device":
    if room.obstacle:
      raise InputError(f"--cache=device cannot be: {room.obstacle}. Use --cache=auto.")
    if room.free_bytes is not None and needed > GIVEN_SHARE * room.free_bytes:
      raise InputError(
          f"--cache=device needs {size} to fit into {_share_of(room, GIVEN_SHARE)}. Use"
          " --cache=auto, which takes what fits, or a smaller --batch_size or --image_size."
      )
    return Choice("device", "given"), ""
  if mode != "auto" or not room.is_gpu:
    return None, ""
  if room.obstacle:
    return None, room.obstacle
  if room.free_bytes is None:
    return None, "its free memory cannot be measured"
  if needed > AUTO_SHARE * room.free_bytes:
    return None, f"{size} do not fit into {_share_of(room, AUTO_SHARE)}"
  return Choice("device", f"{size} fit into {_share_of(room, AUTO_SHARE)}"), ""


def fill_on_device(loader: Loader, device_name: str) -> DeviceCache:
  """Decodes every example once and copies all to the device.

  They pass through main memory, which must hold them meanwhile.

  Args:
    loader: Reads the examples.
    device_name: As TensorFlow names it, e.g. from `device_name()`.

  Raises:
    InputError: Main memory cannot hold them.
  """
  needed, free = num_bytes_on_device(loader), machine.free_main_memory()
  if needed > free:
    raise InputError(
        f"--cache=device decodes in main memory first, which must have {needed / 2**20:.0f} MiB"
        f" free. Got: {free / 2**20:.0f} MiB. Use --cache=disk."
    )
  height, width, channels = shape = _shape(loader)
  count, pixels = loader.num_rows, height * width
  words = np.zeros((count, _words_of(shape)), np.int64)
  raw = words.view(np.uint8)
  # Views of the rows: what is written there is not copied again.
  images = raw[:, : pixels * channels].reshape(count, height, width, channels)
  labels = raw[:, pixels * channels : pixels * (channels + 1)].reshape(count, height, width)
  decode_all(loader, ExampleCache(images, labels))
  with tf.device(device_name):
    return DeviceCache(tf.convert_to_tensor(words), shape)


def device_name() -> str:
  """Returns the first GPU, or the CPU where there is none."""
  found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
  return found[0].name


def _shape(loader: Loader) -> tuple[int, int, int]:
  return (*loader.spec.resizing.image_size, loader.channels)


def _words_of(shape: tuple[int, int, int]) -> int:
  height, width, channels = shape
  return math.ceil(height * width * (channels + 1) / _WORD)


def _share_of(room: Room, share: float) -> str:
  left = f"{(room.free_bytes or 0) / 2**20:.0f} MiB"
  return f"{share:.0%} of the {left} that the network leaves of the device's memory"
