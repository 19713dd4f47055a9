"""Compares a shard with its rows of `records.csv`, record by record."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from flexunet.datasets.builder import tfrecord
from flexunet.datasets.built_dataset import RECORDS_NAME, BuiltDataset
from flexunet.datasets.records import shards
from flexunet.imaging.label_scheme import LabelScheme

# (subject, volume, slice index or ""): unique in a dataset.
Identity = tuple[str, str, str]
Row = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Frame:
  """One record as the file holds it.

  Attributes:
    position: Number in the shard, from 0.
    offset: Byte at which it begins.
    payload: Its bytes; None when they are not there whole, or changed.
    problem: What is wrong with the frame, or "".
  """

  position: int
  offset: int
  payload: bytes | None
  problem: str = ""


def frames(path: pathlib.Path, expected_offsets: list[int]) -> Iterator[Frame]:
  """Yields the records of a shard; a damaged length is skipped up to the next expected offset."""
  size = path.stat().st_size
  offset, position = 0, 0
  with open(path, "rb") as stream:
    while offset < size:
      stream.seek(offset)
      header = stream.read(tfrecord.HEADER_BYTES)
      if len(header) < tfrecord.HEADER_BYTES:
        yield Frame(position, offset, None, "the file ends within the record")
        return
      length = tfrecord.payload_length(header)
      if tfrecord.masked_crc(header[:8]) != int.from_bytes(header[8:], "little"):
        yield Frame(position, offset, None, "its length or the checksum of it changed")
        later = [expected for expected in expected_offsets if expected > offset]
        if not later:
          return
        offset, position = later[0], position + 1
        continue
      end = offset + tfrecord.FRAME_BYTES + length
      if end > size:
        yield Frame(position, offset, None, "the file ends within the record")
        return
      payload = stream.read(length)
      stored = int.from_bytes(stream.read(4), "little")
      if tfrecord.masked_crc(payload) != stored:
        yield Frame(position, offset, None, "its bytes changed (checksum)")
      else:
        yield Frame(position, offset, payload)
      offset, position = end, position + 1


class ShardCheck:
  """Compares one shard with its rows of `records.csv`, record by record.

  Attributes:
    problems: One line each, naming shard and record.
    subjects: The subject that each readable record names.
  """

  def __init__(self, dataset: BuiltDataset, path: pathlib.Path, rows: list[Row]):
    """Reads the shard.

    Args:
      dataset: Decodes the records and bounds the label ids.
      path: The shard.
      rows: Its records in order.
    """
    self.problems: list[str] = []
    self.subjects: list[str] = []
    self._dataset, self._name = dataset, path.name
    self._rows = {_identity_of_row(row): row for row in rows}
    self._found: collections.Counter[Identity] = collections.Counter()
    self._first_seen: dict[Identity, int] = {}
    self._misplaced: list[str] = []
    if rows and int(rows[0]["offset"]) < 0:
      self._read_array_record(path, rows)
    else:
      self._read_tfrecord(path, rows)

  def _read_tfrecord(self, path: pathlib.Path, rows: list[Row]) -> None:
    by_offset = {int(row["offset"]): row for row in rows}
    in_order = []
    for frame in frames(path, sorted(by_offset)):
      row = by_offset.get(frame.offset)
      where = f"{self._name}: record {frame.position}"
      named = f"{where} ({row['key']})" if row else where
      if frame.payload is None:
        self.problems.append(f"{named} at byte {frame.offset}: {frame.problem}.")
        if row:
          self._found[_identity_of_row(row)] += 1
        continue
      try:
        example = self._dataset.decode(frame.payload)
        identity = _identity_of(example)
        self._check(example, where, frame)
      except Exception as error:  # Decoders of images, and edited features, raise many kinds.
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        self.problems.append(f"{named}: cannot be decoded: {first_line}.")
        continue
      in_order.append(identity)
    for number, row in enumerate(rows):
      if not self._found[_identity_of_row(row)]:
        self.problems.append(f"{self._name}: record {number} ({row['key']}) is missing.")
    expected = [_identity_of_row(row) for row in rows]
    if not self.problems and in_order != expected:
      pairs = itertools.zip_longest(in_order, expected)
      first = next(number for number, (found, row) in enumerate(pairs) if found != row)
      self.problems.append(
          f"{self._name}: record {first} onwards stand in another order than built."
      )
    if not self.problems:  # One record too many or too few moves all that follow.
      self.problems += self._misplaced

  def _check(self, example: dict[str, Any], where: str, frame: Frame) -> None:
    """Compares a decoded record with the row of what it says to be."""
    identity = _identity_of(example)
    self._found[identity] += 1
    self.subjects.append(identity[0])
    row = self._rows.get(identity)
    if row is None:
      self.problems.append(
          f"{where}: belongs to no row of {RECORDS_NAME}: volume {identity[1]}, slice"
          f" {identity[2] or '-'}."
      )
    elif identity in self._first_seen:
      self.problems.append(
          f"{where}: is a second copy of record {self._first_seen[identity]} ({row['key']})."
      )
    else:
      named = f"{where} ({row['key']})"
      texts = content_problems(example, row, self._dataset.scheme)
      self.problems += [f"{named}: {text}" for text in texts]
      self._misplaced += [f"{named}: {text}" for text in frame_problems(frame, row)]
    self._first_seen.setdefault(identity, frame.position)

  def _read_array_record(self, path: pathlib.Path, rows: list[Row]) -> None:
    """This container has its own checksums and no byte offsets: its reader fails as a whole."""
    try:
      for row, payload in zip(rows, shards.payloads(str(path)), strict=True):
        example = self._dataset.decode(bytes(payload))
        self.subjects.append(str(example["subject"]))
        texts = content_problems(example, row, self._dataset.scheme)
        self.problems += [
            f"{path.name}: record {row['record']} ({row['key']}): {text}" for text in texts
        ]
    except Exception as error:  # The reader and the decoders raise many kinds.
      self.problems.append(
          f"{path.name}: cannot be read after record {len(self.subjects) - 1}: {error}"
      )


def _identity_of_row(row: Row) -> Identity:
  return row["subject"], row["volume"], row["slice_index"]


def _identity_of(example: dict[str, Any]) -> Identity:
  index = str(int(example["slice_index"])) if "slice_index" in example else ""
  return str(example["subject"]), str(example["volume"]), index


def frame_problems(frame: Frame, row: Row) -> Iterator[str]:
  """Yields a line for each difference between where a record lies and what its row says."""
  found = {
      "record": frame.position,
      "offset": frame.offset,
      "length": len(frame.payload or b""),
  }
  for name, value in found.items():
    if row[name] != str(value):
      yield f"has the {name} {value} where {RECORDS_NAME} says {row[name]}."


def content_problems(
    example: dict[str, Any], row: Row, scheme: LabelScheme
) -> Iterator[str]:
  """Yields a line for each difference between a decoded record and its row."""
  image, label = example["image"], np.asarray(example["label"])
  if image.shape[:2] != label.shape[:2]:
    yield f"image {image.shape} and label {label.shape} differ in size."
  size = ("", "")  # A whole volume has none.
  if "slice_index" in example:
    size = str(label.shape[0]), str(label.shape[1])
  if size != (row["height"], row["width"]):
    yield (f"is {label.shape[:2]} pixels where {RECORDS_NAME} says {row['height']} x"
           f" {row['width']}.")  # fmt: skip
  if str(int(example["fold"])) != row["fold"]:
    yield f"is of fold {int(example['fold'])} where {RECORDS_NAME} says {row['fold']}."
  counted = scheme.without_ignored(label)
  if label.size and int(counted.max()) >= scheme.num_classes:
    yield (f"label values must be 0..{scheme.num_classes - 1}, the largest is"
           f" {int(counted.max())}.")  # fmt: skip
    return
  counts = scheme.count(label)
  for name, count in zip(scheme.names, counts, strict=True):
    if int(row[f"pixels_{name}"]) != int(count):
      yield (f"has {int(count)} pixels of {name} where records.csv says"
             f" {row[f'pixels_{name}']}.")  # fmt: skip
      return
