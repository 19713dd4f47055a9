"""Decoded examples in the memory of the device that trains: only row numbers travel to it.

`gather` is called inside the compiled training step. A row is one run of bytes, image then label,
kept as int64: TensorFlow's own gather has no kernel for bytes on a GPU, and keeps int32 in main
memory. On a machine without a GPU the device is the CPU.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from flexunet.datasets.errors import InputError
from flexunet.pipelines import caching

if TYPE_CHECKING:
  import tensorflow as tf

  from flexunet.pipelines.loading import Loader

# Shares of what the network leaves of the device's free memory: its estimate is an estimate.
AUTO_SHARE = 0.25
GIVEN_SHARE = 0.8
_WORD = 8  # Bytes of an int64.


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
  """Decoded examples by row, in the memory of one device.

  Attributes:
    words: int64 [N, n]; the bytes of a row are those of its image, its label, and zeros.
    image_shape: Height, width and channels as they are kept.
  """

  words: tf.Tensor
  image_shape: tuple[int, int, int]

  def gather(self, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Row numbers int64 [B] -> images uint8 [B, h, w, C] and labels uint8 [B, h, w].

    Runs where the cache lies, also in a graph that XLA compiles.
    """
    import tensorflow as tf

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


def num_bytes(loader: Loader) -> int:
  """Returns the device memory that the loader's examples take."""
  return loader.num_rows * _words_of(_shape(loader)) * _WORD


def choose(mode: str, needed: int, room: Room) -> tuple[caching.Choice | None, str]:
  """Decides whether the examples lie on the device.

  Args:
    mode: One of `caching.MODES`.
    needed: Bytes, of `num_bytes`.

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
          f"--cache=device needs {size} to fit into {_told(GIVEN_SHARE, room)}. Use --cache=auto,"
          " which takes what fits, or a smaller --batch_size or --image_size."
      )
    return caching.Choice("device", "given"), ""
  if mode != "auto" or not room.is_gpu:
    return None, ""
  if room.obstacle:
    return None, room.obstacle
  if room.free_bytes is None:
    return None, "its free memory cannot be measured"
  if needed > AUTO_SHARE * room.free_bytes:
    return None, f"{size} do not fit into {_told(AUTO_SHARE, room)}"
  return caching.Choice("device", f"{size} fit into {_told(AUTO_SHARE, room)}"), ""


def fill(loader: Loader, device_name: str) -> DeviceCache:
  """Decodes every example once and copies all to the device.

  They pass through main memory, which must hold them meanwhile.

  Raises:
    InputError: It cannot.
  """
  import tensorflow as tf

  needed, free = num_bytes(loader), caching.free_main_memory()
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
  caching.decode_all(loader, caching.ExampleCache(images, labels))
  with tf.device(device_name):
    return DeviceCache(tf.convert_to_tensor(words), shape)


def device_name() -> str:
  """Returns the first GPU, or the CPU where there is none."""
  import tensorflow as tf

  found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
  return found[0].name


def _shape(loader: Loader) -> tuple[int, int, int]:
  return (*loader.spec.resizing.image_size, loader.channels)


def _words_of(shape: tuple[int, int, int]) -> int:
  height, width, channels = shape
  return math.ceil(height * width * (channels + 1) / _WORD)


def _told(share: float, room: Room) -> str:
  left = f"{(room.free_bytes or 0) / 2**20:.0f} MiB"
  return f"{share:.0%} of the {left} that the network leaves of the device's memory"
