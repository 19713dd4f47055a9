"""Reads and writes NIfTI (.nii, .nii.gz, .hdr + .img) and ANALYZE 7.5 (.hdr + .img) volumes.

Every file is distrusted: sizes are checked before memory is taken, and a compressed stream is
read to its end, where its checksum stands (other readers stop at the last voxel and never see it).
"""

from __future__ import annotations

import pathlib

import numpy as np

from flexunet.datasets import volume_header, volume_writer
from flexunet.datasets.errors import InputError
from flexunet.datasets.volume import Volume, VolumeHeader

_CHUNK_BYTES = 1 << 20
# After the last voxel a file may carry padding; much more than that is no volume.
_MAX_TRAILING_BYTES = 64 << 20

is_volume = volume_header.is_volume
write_like = volume_writer.write_like


def read_header(path) -> VolumeHeader:
  """Returns shape, stored dtype, spacing and axis codes; reads no voxel.

  Raises:
    InputError: When the header cannot be read, lies, or its twin file is missing.
  """
  header = volume_header.open_header(path)
  return VolumeHeader(
      shape=header.shape,
      dtype=header.dtype.newbyteorder("="),
      spacing_mm=(*map(float, header.spacing_mm),),  # type: ignore[arg-type]
      axis_codes=header.axis_codes,
      oriented=header.oriented,
  )


def read(path) -> Volume:
  """Reads a volume with the scale factors of its header applied.

  Without scale factors the voxels keep the dtype of the file (in native byte order); with them
  they are float32, or float64 where the stored numbers have more than 24 bits.

  Raises:
    InputError: When the file is unreadable, truncated, corrupt, larger than the limit or not 3-D.
  """
  return scaled(*read_stored(path))


def scaled(volume: Volume, slope: float, inter: float) -> Volume:
  """Applies scale factors to stored numbers; without any the volume comes back as it is."""
  if (slope, inter) == (1.0, 0.0):
    return volume
  stored = volume.voxels.dtype
  few_bits = stored == np.float32 or stored.itemsize <= 2
  target = np.float32 if few_bits else np.float64
  voxels = (volume.voxels.astype(np.float64) * slope + inter).astype(target)
  return Volume(voxels, volume.affine, volume.oriented)


def read_stored(path) -> tuple[Volume, float, float]:
  """Reads the numbers as they are stored: (volume, slope, inter).

  What they stand for is `stored * slope + inter`. Without scale factors these are 1 and 0.
  """
  header = volume_header.open_header(path)
  expected = header.num_bytes
  data = _read_exactly(header.data_path, header.data_offset, expected)
  flat = np.frombuffer(data, header.dtype)
  voxels = flat.reshape(header.shape, order="F")
  if not header.dtype.isnative:
    voxels = voxels.astype(header.dtype.newbyteorder("="))
  return Volume(voxels, header.affine, header.oriented), header.slope, header.inter


def _read_exactly(path: pathlib.Path, offset: int, num_bytes: int) -> bytearray:
  """Returns `num_bytes` from `offset`; the rest of a compressed stream is read and dropped."""
  compressed = volume_header.is_compressed(path)
  if not compressed:
    found = path.stat().st_size - offset
    if found < num_bytes:
      raise _truncated(path, num_bytes, max(found, 0))
  data = bytearray(num_bytes)
  view = memoryview(data)
  filled = 0
  try:
    with volume_header.open_stream(path) as stream:
      skipped = 0
      while skipped < offset and (block := stream.read(min(_CHUNK_BYTES, offset - skipped))):
        skipped += len(block)
      while filled < num_bytes:
        got = stream.readinto(view[filled : filled + _CHUNK_BYTES])
        if not got:
          raise _truncated(path, num_bytes, filled)
        filled += got
      if compressed:
        trailing = 0
        while block := stream.read(_CHUNK_BYTES):
          trailing += len(block)
          if trailing > _MAX_TRAILING_BYTES:
            raise InputError(
                f"{path}: more than {_MAX_TRAILING_BYTES} bytes follow the last voxel, so the"
                " header does not describe this file. Fetch the file again."
            )
  except EOFError as error:
    raise _truncated(path, num_bytes, filled) from error
  except volume_header.STREAM_ERRORS as error:
    raise volume_header.unreadable(path, error) from error
  return data


def _truncated(path: pathlib.Path, expected: int, found: int) -> InputError:
  return InputError(
      f"{path}: the file is truncated: its header promises {expected} bytes of voxels, it holds"
      f" {found}. Fetch the file again."
  )
