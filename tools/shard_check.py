"""Walks one TFRecord shard and says, record by record, what is wrong with it.

The container keeps two checksums a record: of its length, and of its payload. A record that was
removed or copied whole passes both; then the identities inside the records tell.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from flexunet.datasets import tfrecord
from flexunet.datasets.label_scheme import LabelScheme

# (subject, volume, slice index or None): unique in a dataset.
Identity = tuple[str, str, str]


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
  """Yields the records of a shard; after a damaged length goes on at the next expected offset."""
  size = path.stat().st_size
  offset, position = 0, 0
  with open(path, "rb") as stream:
    while offset < size:
      stream.seek(offset)
      header = stream.read(tfrecord.HEADER_BYTES)
      if len(header) < tfrecord.HEADER_BYTES:
        yield Frame(position, offset, None, "the file ends within the record")
        return
      length = int.from_bytes(header[:8], "little")
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


def identity_of(row: dict[str, str]) -> Identity:
  return row["subject"], row["volume"], row["slice_index"]


def check(
    path: pathlib.Path,
    rows: list[dict[str, str]],
    decode: Callable[[bytes], dict[str, Any]],
    scheme: LabelScheme,
) -> tuple[list[str], list[str]]:
  """Compares a shard with its rows of `records.csv`.

  Args:
    path: The shard.
    rows: Its records in order.
    decode: Record bytes -> features.
    scheme: Bounds the label ids.

  Returns:
    problems: One line each, naming shard and record.
    subjects: The subject that each readable record names.
  """
  by_offset = {int(row["offset"]): row for row in rows}
  by_identity = {identity_of(row): row for row in rows}
  found: collections.Counter[Identity] = collections.Counter()
  problems, subjects = [], []
  first_seen: dict[Identity, int] = {}
  in_order = []
  for frame in frames(path, sorted(by_offset)):
    row = by_offset.get(frame.offset)
    where = f"{path.name}: record {frame.position}"
    named = f"{where} ({row['key']})" if row else where
    if frame.payload is None:
      problems.append(f"{named} at byte {frame.offset}: {frame.problem}.")
      if row:
        found[identity_of(row)] += 1
      continue
    try:
      example = decode(frame.payload)
    except Exception as error:  # Decoders of pictures raise whatever they like.
      first_line = (str(error).splitlines() or [type(error).__name__])[0]
      problems.append(f"{named}: cannot be decoded: {first_line}.")
      continue
    identity = (
        str(example["subject"]), str(example["volume"]),
        str(int(example["slice_index"])) if "slice_index" in example else "",
    )  # fmt: skip
    found[identity] += 1
    subjects.append(identity[0])
    in_order.append(identity)
    true_row = by_identity.get(identity)
    if true_row is None:
      problems.append(f"{where}: belongs to no row of records.csv: volume {identity[1]}, slice"
                      f" {identity[2] or '-'}.")  # fmt: skip
    elif identity in first_seen:
      problems.append(f"{where}: is a second copy of record {first_seen[identity]}"
                      f" ({true_row['key']}).")  # fmt: skip
    else:
      problems += [f"{where} ({true_row['key']}): {text}"
                   for text in content_problems(example, true_row, scheme)]  # fmt: skip
    first_seen.setdefault(identity, frame.position)
  for number, row in enumerate(rows):
    if not found[identity_of(row)]:
      problems.append(f"{path.name}: record {number} ({row['key']}) is missing.")
  expected_order = [identity_of(row) for row in rows]
  if not problems and in_order != expected_order:
    first = next(n for n, pair in enumerate(zip(in_order, expected_order)) if pair[0] != pair[1])
    problems.append(f"{path.name}: record {first} onwards stand in another order than built.")
  return problems, subjects


def content_problems(
    example: dict[str, Any], row: dict[str, str], scheme: LabelScheme
) -> Iterator[str]:
  """Yields what a decoded record and its row say differently."""
  image, label = example["image"], np.asarray(example["label"])
  if image.shape[:2] != label.shape[:2]:
    yield f"image {image.shape} and label {label.shape} differ in size."
  if row["height"] and (str(label.shape[0]), str(label.shape[1])) != (row["height"], row["width"]):
    yield f"is {label.shape[:2]} pixels where records.csv says {row['height']} x {row['width']}."
  if label.size and int(label.max()) >= scheme.num_classes:
    yield (f"label values must be 0..{scheme.num_classes - 1}, the largest is"
           f" {int(label.max())}.")  # fmt: skip
    return
  counts = np.bincount(label.ravel(), minlength=scheme.num_classes)
  for name, count in zip(scheme.names, counts, strict=True):
    if int(row[f"pixels_{name}"]) != int(count):
      yield (f"has {int(count)} pixels of {name} where records.csv says"
             f" {row[f'pixels_{name}']}.")  # fmt: skip
      return
