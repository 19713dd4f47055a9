"""The bytes of volume files, distrusted: streams, sizes, and geometry that cannot be.

Sizes are checked before memory is taken, and a compressed stream is read to its end, where its
checksum stands (other readers stop at the last voxel and never see it).
"""

from __future__ import annotations

import gzip
import io
import math
import os
import pathlib
import struct
import zlib
from collections.abc import Sequence

import numpy as np

from flexunet.core.errors import InputError
from flexunet.imaging.volume import spacing_of

STREAM_ERRORS = (OSError, EOFError, zlib.error, struct.error)
# Larger than any clinical scan (512 x 512 x 2000 int16 is 1 GiB), small enough to be held.
MAX_VOLUME_BYTES = 4 << 30
# Deflate cannot shrink data more than 1032-fold (RFC 1951: 258 bytes in 2 bits).
MAX_DEFLATE_RATIO = 1032
CHUNK_BYTES = 1 << 20
# After the last voxel a file may carry padding; much more than that is no volume.
MAX_TRAILING_BYTES = 64 << 20
_SPACINGS_MM = (1e-5, 1e5)  # Beyond these no header is true.


def is_compressed(path: str | os.PathLike) -> bool:
  """Returns by its suffix whether a file is compressed by gzip (.gz, .mgz)."""
  return pathlib.PurePath(path).name.lower().endswith((".gz", ".mgz"))


def open_stream(path: pathlib.Path) -> io.BufferedIOBase:
  """Opens for reading, through gzip where the name says so."""
  return gzip.open(path, "rb") if is_compressed(path) else open(path, "rb")


def unreadable(path: str | os.PathLike, error: Exception) -> InputError:
  """Returns the error for a stream that breaks off or fails its checksum."""
  what = str(error).split("\n")[0] or type(error).__name__
  return InputError(f"{path}: cannot be read ({what}). Fetch the file again.")


def three_axes(path: pathlib.Path, shape: Sequence[int]) -> tuple[int, int, int]:
  """Drops trailing axes of length 1 beyond the third, and no other.

  Raises:
    InputError: An axis is empty, or a fourth one is longer than 1.
  """
  shape = tuple(shape)
  if not shape or min(shape) < 1:
    raise InputError(f"{path}: the header declares the shape {shape}, which holds no voxel.")
  if any(size != 1 for size in shape[3:]):
    raise InputError(
        f"{path}: a volume has three axes, this file has the shape {shape}. Split the series into"
        " one file a volume."
    )
  i, j, k = (*shape, 1, 1)[:3]
  return i, j, k


def num_volumes(shape: Sequence[int]) -> int:
  """Returns how many volumes lie along a fourth axis; 1 where there is none, or a fifth one too."""
  several = len(shape) > 3 and all(size == 1 for size in shape[4:])
  return max(1, shape[3]) if several else 1


def component_name(path: str | os.PathLike, component: int | None) -> str:
  """Returns how messages name one of the volumes along a fourth axis; None: the file is one."""
  return str(path) if component is None else f"{path}, volume {component + 1} of its fourth axis"


def axes_of_component(
    path: pathlib.Path, shape: Sequence[int], component: int
) -> tuple[int, int, int]:
  """Returns the shape of one of the volumes along a fourth axis.

  Raises:
    InputError: An axis is empty, or there is no such volume.
  """
  if not 0 <= component < num_volumes(shape) or num_volumes(shape) == 1:
    raise InputError(
        f"{path}: volume {component + 1} along a fourth axis was asked for, this file has the shape"
        f" {tuple(shape)}."
    )
  return three_axes(path, shape[:3])


def check_size(
    header_path: pathlib.Path,
    data_path: pathlib.Path,
    shape: Sequence[int],
    dtype: np.dtype,
    *,
    compressed: bool | None = None,
) -> None:
  """Refuses sizes that cannot be, before memory is taken for them.

  Args:
    header_path, data_path: The two files of a pair, or one file twice.
    shape, dtype: Of the voxels, as the header declares them.
    compressed: Whether the voxels are deflated; by default as the name says.

  Raises:
    InputError: The voxels are more than can be held, or than the file can hold.
  """
  declared = math.prod(shape) * dtype.itemsize
  if declared > MAX_VOLUME_BYTES:
    raise InputError(
        f"{header_path}: the header declares {declared} bytes of voxels (shape {shape}, {dtype});"
        f" the limit is {MAX_VOLUME_BYTES}. The header is damaged, or the scan must be cut."
    )
  on_disk = data_path.stat().st_size
  deflated = is_compressed(data_path) if compressed is None else compressed
  if declared > on_disk * (MAX_DEFLATE_RATIO if deflated else 1):
    raise InputError(
        f"{data_path}: the file is truncated: its header promises {declared} bytes of voxels"
        f" (shape {shape}, {dtype}), the file has {on_disk} bytes. Fetch the file again."
    )


def check_affine(path: str | os.PathLike, affine: np.ndarray, *, oriented: bool) -> None:
  """Refuses geometry that cannot be.

  Args:
    path: Names the file in errors.
    affine: [4, 4]; where nothing is `oriented`, edges that are NaN are unknown, and pass.
    oriented: Whether the file states the affine, rather than edges alone.

  Raises:
    InputError: The affine is singular or not finite, or the edges of a voxel are impossible.
  """
  singular = not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12
  if oriented and singular:
    raise InputError(f"{path}: the header's affine is singular or not finite. Repair the header.")
  edges = spacing_of(affine)
  known = edges[np.isfinite(edges)]
  if not all(_SPACINGS_MM[0] <= edge <= _SPACINGS_MM[1] for edge in known):
    raise InputError(
        f"{path}: the edges of a voxel must lie in {_SPACINGS_MM[0]:g}..{_SPACINGS_MM[1]:g}"
        f" mm, found {' x '.join(f'{edge:g}' for edge in edges)}. Repair the header."
    )


def check_label(
    shape: Sequence[int], label: np.ndarray, target_path: pathlib.Path
) -> None:
  """Refuses a label that does not fit its scan.

  Raises:
    InputError: The shapes differ.
    ValueError: Ids are not in 0..255.
  """
  if label.shape != tuple(shape):
    raise InputError(
        f"{target_path}: a label must lie on the grid of its scan. Scan {tuple(shape)}, label"
        f" {label.shape}."
    )
  if label.size and (label.min() < 0 or label.max() > 255):
    raise ValueError(f"Label ids must lie in 0..255, got {label.min()}..{label.max()}.")


def read_exactly(
    path: pathlib.Path, offset: int, num_bytes: int, most_trailing: int = MAX_TRAILING_BYTES
) -> bytearray:
  """Returns `num_bytes` from `offset`; the rest of a compressed stream is read and dropped.

  Args:
    path: The file.
    offset: Bytes before the first voxel.
    num_bytes: Bytes of all voxels.
    most_trailing: Bytes that may follow them: padding, or what the format puts there.

  Raises:
    InputError: The file ends before, goes on for longer, or a checksum does not fit.
  """
  compressed = is_compressed(path)
  if not compressed:
    found = path.stat().st_size - offset
    if found < num_bytes:
      raise truncated(path, num_bytes, max(found, 0))
    if found > num_bytes + most_trailing:
      raise _too_long(path, found - num_bytes)
  data = bytearray(num_bytes)
  view = memoryview(data)
  filled = 0
  try:
    with open_stream(path) as stream:
      skipped = 0
      while skipped < offset and (block := stream.read(min(CHUNK_BYTES, offset - skipped))):
        skipped += len(block)
      while filled < num_bytes:
        got = stream.readinto(view[filled : filled + CHUNK_BYTES])
        if not got:
          raise truncated(path, num_bytes, filled)
        filled += got
      if compressed:
        trailing = 0
        while block := stream.read(CHUNK_BYTES):
          trailing += len(block)
          if trailing > most_trailing:
            raise _too_long(path, trailing)
  except EOFError as error:
    raise truncated(path, num_bytes, filled) from error
  except STREAM_ERRORS as error:
    raise unreadable(path, error) from error
  return data


def _too_long(path: pathlib.Path, trailing: int) -> InputError:
  return InputError(
      f"{path}: at least {trailing} bytes follow the last voxel, so the header does not describe"
      " this file. Fetch the file again."
  )


def truncated(path: pathlib.Path, expected: int, found: int) -> InputError:
  """Returns the error for a file that holds fewer bytes than its header promises."""
  return InputError(
      f"{path}: the file is truncated: its header promises {expected} bytes of voxels, it holds"
      f" {found}. Fetch the file again."
  )
