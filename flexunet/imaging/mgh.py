"""Reads and writes FreeSurfer volumes (.mgz, .mgh), distrusted as NIfTI files are.

The header is a block of 284 big-endian bytes before the voxels; what follows the voxels (protocol
values, and a history of commands that may name people and folders) is neither read nor written.
Source: https://surfer.nmr.mgh.harvard.edu/fswiki/FsTutorial/MghFormat.
"""

from __future__ import annotations

import dataclasses
import gzip
import os
import pathlib

import nibabel as nib
import numpy as np

from flexunet.core import files
from flexunet.core.errors import InputError, missing_file
from flexunet.imaging import volume_bytes
from flexunet.imaging.volume import Volume, VolumeHeader

_DATA_OFFSET = 284
# The part of the header that is used: six numbers of layout, type, and the geometry.
_USED_BYTES = 90
_UINT8_TYPE = 0


@dataclasses.dataclass(frozen=True, eq=False)
class _OpenedMgh:
  """A parsed header: the 284 bytes, and what they say."""

  path: pathlib.Path
  block: bytes
  shape: tuple[int, int, int]
  dtype: np.dtype
  affine: np.ndarray
  oriented: bool


def _open(path: str | os.PathLike) -> _OpenedMgh:
  path = pathlib.Path(path)
  if not path.is_file():
    raise missing_file(path)
  try:
    with volume_bytes.open_stream(path) as stream:
      block = stream.read(_DATA_OFFSET)
  except volume_bytes.STREAM_ERRORS as error:
    raise volume_bytes.unreadable(path, error) from error
  if len(block) < _DATA_OFFSET:
    raise InputError(
        f"{path}: the header is truncated: expected {_DATA_OFFSET} bytes, found {len(block)}."
        " Fetch the file again."
    )
  header = nib.MGHImage.header_class(block, check=False)
  if int(header["version"]) != 1:
    raise InputError(
        f"{path}: this is no MGH file (its version must be 1, got {int(header['version'])})."
    )
  try:
    dtype = np.dtype(header.get_data_dtype()).newbyteorder(">")
  except KeyError as error:
    raise InputError(
        f"{path}: voxels must be of a type of MGH (0, 1, 3 or 4), got {int(header['type'])}."
    ) from error
  shape = volume_bytes.three_axes(path, tuple(int(size) for size in header["dims"]))
  volume_bytes.check_size(path, path, shape, dtype)
  # nibabel replaces the geometry of a header that states none by one of its own.
  oriented = int.from_bytes(block[28:30], "big", signed=True) > 0
  affine = np.diag([np.nan, np.nan, np.nan, 1.0])
  if oriented:
    affine = np.asarray(header.get_affine(), np.float64)
  volume_bytes.check_affine(path, affine, oriented=oriented)
  return _OpenedMgh(path, block, shape, dtype, affine, oriented)


def read_header(path: str | os.PathLike) -> VolumeHeader:
  """Returns what the header states; reads no voxel.

  Raises:
    InputError: The header cannot be read, or lies.
  """
  opened = _open(path)
  return VolumeHeader.of(opened.shape, opened.dtype, opened.affine, opened.oriented)


def read_voxels(path: str | os.PathLike) -> tuple[Volume, float, float]:
  """Reads a volume: (volume, 1, 0); the format has no scale factors.

  Raises:
    InputError: The file is unreadable, truncated, corrupt, larger than the limit or not 3-D.
  """
  opened = _open(path)
  num_bytes = int(np.prod(opened.shape)) * opened.dtype.itemsize
  data = volume_bytes.read_exactly(opened.path, _DATA_OFFSET, num_bytes)
  voxels = np.frombuffer(data, opened.dtype).reshape(opened.shape, order="F")
  voxels = voxels.astype(opened.dtype.newbyteorder("="), copy=False)
  return Volume(voxels, opened.affine, opened.oriented), 1.0, 0.0


def files_of(path: str | os.PathLike) -> tuple[pathlib.Path, ...]:
  """Returns the file itself."""
  return (pathlib.Path(path),)


def write_label(
    source_path: str | os.PathLike, label: np.ndarray, target_path: str | os.PathLike
) -> None:
  """Writes `label` uint8 [i, j, k] with the geometry of the source; the file appears whole.

  Args:
    source_path: The .mgz or .mgh scan the label belongs to.
    label: Class ids on its grid.
    target_path: Ends in .mgz, .mgh.gz or .mgh.
  """
  source, target_path = _open(source_path), pathlib.Path(target_path)
  block = bytearray(_DATA_OFFSET)
  block[:_USED_BYTES] = source.block[:_USED_BYTES]
  block[16:28] = np.array([1, _UINT8_TYPE, 0], ">i4").tobytes()  # Frames, type, freedom.
  blob = bytes(block) + label.astype(np.uint8).tobytes(order="F")
  if volume_bytes.is_compressed(target_path):
    blob = gzip.compress(blob, mtime=0)  # No time stamp: equal labels give equal files.
  files.write_bytes(target_path, blob)
