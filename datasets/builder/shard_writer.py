"""Assembles the final shards of a split from the work files of the cases, record by record."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO

from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.datasets.builder import tfrecord
from flexunet.datasets.builder.case_records import RecordRow
from flexunet.datasets.builder.raw_folder import Case

# Small enough that a reader has several files to read at once, large enough that opening one
# costs nothing.
_SHARD_BYTES = 16 << 20
_FEWEST_SHARDS = 4
_OPEN_FILES = 64


@dataclasses.dataclass(frozen=True, slots=True)
class PlacedRecord:
  """A record before and after it got its place.

  Attributes:
    case, row: What the record is.
    fold: That of its subject; the payload gets it where it says otherwise.
    work_file: Where its payload lies now.
    shard: File name of its shard; "" before it is written.
    record: Position in the shard.
    offset: Byte at which its frame begins; -1 in containers without byte offsets.
  """

  case: Case
  fold: int
  row: RecordRow
  work_file: pathlib.Path
  shard: str = ""
  record: int = -1
  offset: int = -1


@dataclasses.dataclass(frozen=True)
class Shard:
  """A written shard: file name, records, bytes and sha256 of the file."""

  file: str
  records: int
  bytes: int
  sha256: str


def num_shards(total_bytes: int, count: int, wanted: int | None, most_bytes: int | None) -> int:
  """Returns into how many shards `count` records of `total_bytes` go."""
  if wanted:
    return min(wanted, count)
  by_size = math.ceil(total_bytes / min(_SHARD_BYTES, most_bytes or _SHARD_BYTES))
  return min(count, max(_FEWEST_SHARDS, by_size))


def write_split(
    records: Sequence[PlacedRecord],
    paths: Sequence[pathlib.Path],
    file_format: str,
) -> tuple[list[PlacedRecord], list[Shard]]:
  """Writes the records, in the order given, into equal shards.

  Args:
    records: All records of the split.
    paths: One path per shard.
    file_format: "tfrecord" or "array_record".

  Returns:
    The records with their places, and the shards.
  """
  write = writer_of(file_format)
  read = functools.lru_cache(_OPEN_FILES)(lambda path: open(path, "rb"))  # noqa: SIM115
  placed, shards = [], []
  try:
    for index, path in enumerate(paths):
      chunk = records[
          index * len(records) // len(paths) : (index + 1) * len(records) // len(paths)
      ]
      written: list[RecordRow] = []
      offsets = write(path, _payloads(chunk, read, written))
      for position, (record, row, offset) in enumerate(zip(chunk, written, offsets, strict=True)):
        placed.append(
            dataclasses.replace(record, row=row, shard=path.name, record=position, offset=offset)
        )
      shards.append(Shard(path.name, len(chunk), path.stat().st_size, files.sha256_of(path)))
  finally:
    read.cache_clear()  # Drops, and so closes, the files.
  return placed, shards


def _payloads(
    records: Sequence[PlacedRecord],
    read: Callable[[pathlib.Path], IO[bytes]],
    written: list[RecordRow],
) -> Iterator[tuple[bytes, int]]:
  """Yields (payload, its checksum) of the records; adds their rows, as written, to `written`."""
  for record in records:
    stream, row = read(record.work_file), record.row
    stream.seek(row.start)
    payload = stream.read(row.length)
    if len(payload) != row.length:
      raise OSError(f"{record.work_file}: the work file was cut while the build ran.")
    if row.fold != record.fold:
      payload = _with_fold(payload, record.fold)
      row = dataclasses.replace(
          row, fold=record.fold, length=len(payload), crc=tfrecord.masked_crc(payload)
      )
    written.append(row)
    yield payload, row.crc


def _with_fold(payload: bytes, fold: int) -> bytes:
  """Returns a serialized record with another fold."""
  # Needed for builds alone whose folds changed after reading; what lists shards must not load TFDS.
  from tensorflow_datasets.proto import tf_example_pb2

  example = tf_example_pb2.Example.FromString(payload)
  example.features.feature["fold"].int64_list.value[:] = [fold]
  return example.SerializeToString(deterministic=True)


def writer_of(file_format: str) -> Callable:
  """Returns the function that writes one shard and gives the offsets of its records."""
  if file_format not in _WRITERS:
    raise InputError(
        f"file_format must be one of {', '.join(sorted(_WRITERS))}, got {file_format!r}."
    )
  return _WRITERS[file_format]


def _write_tfrecord(path: pathlib.Path, payloads: Iterator[tuple[bytes, int]]) -> list[int]:
  offsets, offset = [], 0
  with open(path, "wb") as stream:
    for payload, crc in payloads:
      offsets.append(offset)
      offset += stream.write(tfrecord.frame(payload, crc))
  return offsets


def _write_array_record(path: pathlib.Path, payloads: Iterator[tuple[bytes, int]]) -> list[int]:
  # Needed for this container alone, which few builds write.
  from array_record.python import array_record_module

  # One record per group: random access reads nothing but the record (TFDS writes the same).
  writer = array_record_module.ArrayRecordWriter(os.fspath(path), "group_size:1")
  count = 0
  for payload, _ in payloads:
    writer.write(payload)
    count += 1
  writer.close()
  return [-1] * count


_WRITERS = {"tfrecord": _write_tfrecord, "array_record": _write_array_record}
