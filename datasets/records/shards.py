"""Random access to the serialized records of a shard, TFRecord or array_record, without TensorFlow.

A TFRecord shard is memory-mapped and each record's checksum is compared when it is read; the pages
are shared by all processes. array_record is read by its own package, which checks what it reads.
"""

from __future__ import annotations

import itertools
import mmap
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from flexunet.core.errors import InputError
from flexunet.datasets.builder import tfrecord

TFRECORD, ARRAY_RECORD = "tfrecord", "array_record"
CONTAINERS = (TFRECORD, ARRAY_RECORD)


def container_of(path: str | os.PathLike) -> str:
  """Returns the container of a shard, by its name."""
  return ARRAY_RECORD if f".{ARRAY_RECORD}-" in os.path.basename(os.fspath(path)) else TFRECORD


def missing(files: Sequence[str]) -> InputError | None:
  """Returns the error that names the shards that are not there; None where all are."""
  absent = [file for file in files if not os.path.isfile(file)]
  if not absent:
    return None
  more = f", as are {len(absent) - 1} more" if len(absent) > 1 else ""
  return InputError(f"{absent[0]}: the shard is missing{more}. Build or copy the dataset again.")


class Shards:
  """The shards of a split; threads and forked processes may read one object at a time.

  Files are opened when they are first read; a copy by pickle opens its own.
  """

  def __init__(self, files: Sequence[str]):
    """Takes the paths of the shards, in order."""
    self.files = list(files)
    self._forget()

  def _forget(self) -> None:
    # An array_record reader has threads of its own, which a fork leaves behind; a map is inherited.
    self._process = os.getpid()
    self._open: dict[int, Callable[[int], bytes | memoryview]] = {}
    self._lock = threading.Lock()

  def __getstate__(self) -> dict[str, Any]:
    return {"files": self.files}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__init__(state["files"])  # type: ignore[misc]

  def read(self, shard: int, place: int) -> bytes | memoryview:
    """Returns the payload of one record.

    Args:
      shard: Index into `files`.
      place: Of a TFRecord the byte at which it begins, of an array_record its number.

    Raises:
      InputError: The shard is missing, or the record damaged.
    """
    if self._process != os.getpid():
      self._forget()
    reader = self._open.get(shard)
    if reader is None:
      with self._lock:
        reader = self._open.get(shard)
        if reader is None:
          reader = self._open[shard] = open_shard(self.files[shard])
    return reader(place)


def open_shard(path: str) -> Callable[[int], bytes | memoryview]:
  """Returns what maps the place of a record in a shard to its payload.

  Raises:
    InputError: It is missing or empty, or the package of its container is.
  """
  if error := missing([path]):
    raise error
  return _open_array_record(path) if container_of(path) == ARRAY_RECORD else _open_tfrecord(path)


def damaged(path: str, place: int | str, reason: str) -> InputError:
  """Returns the error for a record that cannot be read.

  Args:
    path: The shard.
    place: What names the record in it.
    reason: What is wrong with it.
  """
  where = f"the record at byte {place}" if container_of(path) == TFRECORD else f"record {place}"
  return InputError(
      f"{path}: {where} must be as it was built, but {reason}. Build or copy the dataset again;"
      " flexunet verify names all such records."
  )


def _open_tfrecord(path: str) -> Callable[[int], memoryview]:
  with open(path, "rb") as stream:
    try:
      data = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    except ValueError as error:  # No map can be made of an empty file.
      raise InputError(f"{path}: the shard is empty. Build or copy the dataset again.") from error

  def read(offset: int) -> memoryview:
    header = data[offset : offset + tfrecord.HEADER_BYTES]
    end = offset + tfrecord.FRAME_BYTES + tfrecord.payload_length(header)
    if offset < 0 or len(header) < tfrecord.HEADER_BYTES or end > len(data):
      raise damaged(path, offset, "the file ends within it, or its length changed")
    payload = data[offset + tfrecord.HEADER_BYTES : end - 4]
    if tfrecord.masked_crc(payload) != int.from_bytes(data[end - 4 : end], "little"):
      raise damaged(path, offset, "its bytes changed (checksum)")
    return payload

  return read


def _array_record_module() -> Any:
  try:
    # Needed for this container alone; readers of TFRecords do without the package.
    from array_record.python import array_record_module
  except ImportError as error:
    raise InputError(
        "array_record shards are read by the package array_record, which is not installed. Install"
        " it (pip install array_record), or build with --file_format=tfrecord."
    ) from error
  return array_record_module


def _array_record_reader(path: str) -> Any:
  module = _array_record_module()
  try:
    # Records are read one at a time: reading ahead would read what nobody asks for.
    return module.ArrayRecordReader(path, "readahead_buffer_size:0")
  except Exception as error:  # The reader raises plain ones of several kinds.
    raise damaged(path, 0, f"the shard cannot be opened ({_first_line(error)})") from error


def _open_array_record(path: str) -> Callable[[int], bytes]:
  reader = _array_record_reader(path)
  lock = threading.Lock()  # A reader keeps its position.

  def read(number: int) -> bytes:
    try:
      with lock:
        [payload] = reader.read([number])
    except Exception as error:  # The reader raises plain ones of several kinds.
      raise damaged(path, number, f"it cannot be read ({_first_line(error)})") from error
    return payload

  return read


def _first_line(error: Exception) -> str:
  return (str(error).splitlines() or [type(error).__name__])[0]


def places(path: str) -> Iterator[int]:
  """Yields the place of each record of a shard in order; payloads are not read.

  Raises:
    InputError: The shard is missing or cannot be read, or a record runs past its end.
  """
  if error := missing([path]):
    raise error
  if container_of(path) == ARRAY_RECORD:
    yield from range(_array_record_reader(path).num_records())
    return
  size = os.path.getsize(path)
  position = 0
  with open(path, "rb") as stream:
    for number in itertools.count():
      if position >= size:
        return
      stream.seek(position)
      header = stream.read(tfrecord.HEADER_BYTES)
      end = position + tfrecord.FRAME_BYTES + tfrecord.payload_length(header)
      if len(header) < tfrecord.HEADER_BYTES or end > size:
        raise InputError(
            f"{path} must be whole TFRecords; record {number} at byte {position} runs past the"
            f" file's end of {size} bytes. Build or copy the dataset again."
        )
      yield position
      position = end


def payloads(path: str) -> Iterator[bytes | memoryview]:
  """Yields the records of a shard in order."""
  read = open_shard(path)
  for place in places(path):
    yield read(place)
