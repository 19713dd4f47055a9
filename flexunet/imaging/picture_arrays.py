"""Reads images and masks saved by NumPy (.npy, .npz), as the published preparations save them.

An archive holds one array, or arrays named `image` and `mask`. A mask is class ids [H, W], colours
[H, W, 3], or one-hot [H, W, classes], which is what the published programs read under `mask`.
Nothing is ever unpickled, sizes are checked before memory is taken, and what can be read in two
ways is refused.
"""

from __future__ import annotations

import dataclasses
import io
import math
import pathlib
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np

from flexunet.core.errors import InputError, missing_file
from flexunet.imaging import volume_bytes

SUFFIXES = (".npy", ".npz")
ENTRIES = ("image", "mask")
MAX_PIXELS = 64 << 20
_MAX_CLASSES = 256
_ERRORS = (
    OSError, ValueError, EOFError, KeyError, SyntaxError, TypeError, OverflowError, RecursionError,
    NotImplementedError, RuntimeError, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ArrayHeader:
  """What a file states before its array is read: shape [H, W] or [H, W, C], and dtype."""

  shape: tuple[int, ...]
  dtype: np.dtype


def is_array(path: pathlib.Path) -> bool:
  """Returns by its suffix whether a file was saved by NumPy."""
  return path.suffix.lower() in SUFFIXES


def read_header(path: pathlib.Path, entry: str = "image") -> ArrayHeader:
  """Returns shape and dtype of an array, without axes of length 1 around it.

  Args:
    path: .npy or .npz.
    entry: "image" or "mask": which array of an archive of several.

  Raises:
    InputError: The file cannot be read, holds no image, or several that could be meant.
  """
  with _opened(path, entry) as (stream, size):
    return _checked_header(path, stream, size)


def read(path: pathlib.Path, entry: str = "image") -> np.ndarray:
  """Reads an image or a mask as uint8 [H, W] or [H, W, 3].

  Args:
    path: .npy or .npz.
    entry: "image", or "mask", of which a one-hot one becomes class ids.

  Raises:
    InputError: As in `read_header`; the numbers are no whole ones of 0..255, or the channels
      neither colours nor one-hot classes.
  """
  with _opened(path, entry) as (stream, size):
    shape = _checked_header(path, stream, size).shape
    try:
      stream.seek(0)
      array = np.lib.format.read_array(stream, allow_pickle=False)
      if isinstance(stream, zipfile.ZipExtFile) and stream.read(1):
        raise ValueError("more follows its last number")
    except _ERRORS as error:
      raise _unreadable(path, error) from error
  pixels = _of_bytes(path, array.reshape(shape))
  if pixels.ndim == 2:
    return pixels
  if entry == "mask" and _is_one_hot(pixels, -1):
    return pixels.argmax(axis=-1).astype(np.uint8)
  if pixels.shape[-1] == 3:
    return pixels
  first = " Their first axis is one-hot; move it to the end." if _is_one_hot(pixels, 0) else ""
  raise InputError(
      f"{path}: an array of three axes must be {'one-hot classes, ' if entry == 'mask' else ''}"
      f"[rows, columns, 3] colours, found {list(shape)}.{first}"
  )


@contextmanager
def _opened(path: pathlib.Path, entry: str) -> Iterator[tuple[BinaryIO, int]]:
  """Opens the .npy that a file is or holds: (stream, the most bytes that it can hold)."""
  if not path.is_file():
    raise missing_file(path)
  try:
    with open(path, "rb") as stream:
      size = path.stat().st_size
      if path.suffix.lower() == ".npy":
        yield stream, size
        return
      with zipfile.ZipFile(stream) as archive:
        name = _entry_of(path, archive, entry)
        stored = archive.getinfo(name)
        limit = stored.compress_size * volume_bytes.MAX_DEFLATE_RATIO
        if stored.file_size > max(limit, size):
          raise ValueError(f"{name} declares {stored.file_size} bytes")
        # In memory: its checksum is verified, and NumPy can go back in it.
        yield io.BytesIO(archive.read(name)), stored.file_size
  except InputError:
    raise
  except _ERRORS as error:
    raise _unreadable(path, error) from error


def _entry_of(path: pathlib.Path, archive: zipfile.ZipFile, entry: str) -> str:
  """Returns the name of the array that is meant."""
  names = {name.removesuffix(".npy"): name for name in archive.namelist()}
  if len(names) == 1:
    return next(iter(names.values()))
  if entry in names:
    return names[entry]
  shown = ", ".join(repr(name) for name in sorted(names)[:5]) or "none"
  raise InputError(
      f"{path}: must hold one array, or one named {entry!r}; it holds {shown}. Save it anew."
  )


def _checked_header(path: pathlib.Path, stream: BinaryIO, size: int) -> ArrayHeader:
  try:
    version = np.lib.format.read_magic(stream)
    read_of = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    stated, _, dtype = read_of[version](stream)
  except _ERRORS as error:
    raise _unreadable(path, error) from error
  if dtype.hasobject or dtype.kind not in "biuf" or dtype.itemsize > 8:
    raise InputError(f"{path}: an array of pixels must hold numbers, got {str(dtype)[:40]}.")
  shape = tuple(stated)
  while len(shape) > 2 and shape[0] == 1:  # A batch of one.
    shape = shape[1:]
  if len(shape) == 3 and shape[2] == 1:
    shape = shape[:2]
  if len(shape) not in (2, 3) or min(shape) < 1 or math.prod(shape[:2]) > MAX_PIXELS or (
      max(shape[2:], default=1) > _MAX_CLASSES and shape[0] > _MAX_CLASSES
  ):
    raise InputError(
        f"{path}: an array of pixels must be [rows, columns], or [rows, columns, channels or"
        f" classes], got {list(stated)}. Save each image in a file of its own."
    )
  if math.prod(shape) * dtype.itemsize > size:
    raise volume_bytes.truncated(path, math.prod(shape) * dtype.itemsize, size)
  return ArrayHeader(shape, dtype)


def _of_bytes(path: pathlib.Path, array: np.ndarray) -> np.ndarray:
  """Returns uint8; refuses numbers that would change."""
  if array.dtype in (np.bool_, np.uint8):
    return array.astype(np.uint8)
  low, high = array.min(), array.max()
  whole = array.dtype.kind != "f" or bool((array == np.round(array)).all())
  if not (whole and low >= 0 and high <= 255):  # NaN is not whole.
    what = f"{low:g} to {high:g}" + ("" if whole else ", not all whole")
    raise InputError(
        f"{path}: pixels must be whole numbers of 0..255, found {what}. Window an image to 8 bits"
        " first; a mask holds class ids."
    )
  return array.astype(np.uint8)


def _is_one_hot(pixels: np.ndarray, axis: int) -> bool:
  return bool(pixels.max() <= 1 and (pixels.sum(axis=axis, dtype=np.int64) == 1).all())


def _unreadable(path: pathlib.Path, error: Exception) -> InputError:
  what = str(error).split("\n")[0][:120] or type(error).__name__
  return InputError(f"{path}: the array is damaged or of another kind ({what}). Fetch it again.")
