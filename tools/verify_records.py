"""Proves that a built dataset is what its build report says, record by record.

  flexunet verify DIR

DIR is a version folder or any folder above; every dataset below is read whole. Each problem is
one line with shard and record; exit code 1 when there is one.

The container keeps two checksums per record: of its length, and of its payload. A record that was
removed or copied whole passes both; then the identities inside the records show it.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from flexunet.core import command_line, files, flags
from flexunet.core.errors import InputError
from flexunet.core.progress import bar
from flexunet.datasets import built_dataset, subject_splits
from flexunet.datasets.builder import tfrecord
from flexunet.datasets.built_dataset import RECORDS_NAME, REPORT_NAME, BuiltDataset
from flexunet.imaging.label_scheme import LabelScheme

# (subject, volume, slice index or ""): unique in a dataset.
Identity = tuple[str, str, str]
Row = dict[str, str]

_PROGRAM = flags.Program(__doc__, usage="flexunet verify DIR")


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
      except Exception as error:  # Decoders of images raise many kinds.
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        self.problems.append(f"{named}: cannot be decoded: {first_line}.")
        continue
      in_order.append(_identity_of(example))
      self._check(example, where, frame.position)
    for number, row in enumerate(rows):
      if not self._found[_identity_of_row(row)]:
        self.problems.append(f"{self._name}: record {number} ({row['key']}) is missing.")
    expected = [_identity_of_row(row) for row in rows]
    if not self.problems and in_order != expected:
      first = next(n for n, pair in enumerate(zip(in_order, expected)) if pair[0] != pair[1])
      self.problems.append(
          f"{self._name}: record {first} onwards stand in another order than built."
      )

  def _check(self, example: dict[str, Any], where: str, position: int) -> None:
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
      texts = content_problems(example, row, self._dataset.scheme)
      self.problems += [f"{where} ({row['key']}): {text}" for text in texts]
    self._first_seen.setdefault(identity, position)

  def _read_array_record(self, path: pathlib.Path, rows: list[Row]) -> None:
    """This container has its own checksums and no byte offsets: its reader fails as a whole."""
    try:
      for row, payload in zip(rows, built_dataset.array_record_payloads(path), strict=True):
        example = self._dataset.decode(payload)
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


def content_problems(
    example: dict[str, Any], row: Row, scheme: LabelScheme
) -> Iterator[str]:
  """Yields a line for each difference between a decoded record and its row."""
  image, label = example["image"], np.asarray(example["label"])
  if image.shape[:2] != label.shape[:2]:
    yield f"image {image.shape} and label {label.shape} differ in size."
  if row["height"] and (str(label.shape[0]), str(label.shape[1])) != (row["height"], row["width"]):
    yield f"is {label.shape[:2]} pixels where records.csv says {row['height']} x {row['width']}."
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


@dataclasses.dataclass(frozen=True)
class Verification:
  """What reading a dataset whole found.

  Attributes:
    name: dataset/config/version.
    records, shards, bytes: What was read.
    problems: One line each; none when all is well.
    notes: What is as built, but worth knowing.
  """

  name: str
  records: int
  shards: int
  bytes: int
  problems: list[str]
  notes: list[str]


def verify(dataset: BuiltDataset, show_progress: bool = False) -> Verification:
  """Reads every shard of a dataset and compares it with the report and the table of records."""
  problems = list(_table_problems(dataset)) + list(_folder_problems(dataset))
  splits_of: list[tuple[str, str]] = []
  total = 0
  shards = dataset.report["shards"]
  for shard in bar(shards, unit=" shard", disable=not show_progress, leave=False):
    rows = dataset.rows_of_shard[shard["file"]]
    path = dataset.path / shard["file"]
    if not path.is_file():
      problems.append(f"{shard['file']}: the shard is missing, with its {len(rows)} records.")
      continue
    total += path.stat().st_size
    check = ShardCheck(dataset, path, rows)
    found = check.problems
    if not found and files.sha256_of(path) != shard["sha256"]:
      found = [f"{shard['file']}: every record reads well, but the file is not the one that was"
               " built (sha256)."]  # fmt: skip
    problems += found
    splits_of += [(subject, shard["split"]) for subject in check.subjects]
  notes = []
  for subject, splits in subject_splits.subjects_in_two_splits(splits_of).items():
    line = f"subject {subject} stands in two splits: {', '.join(splits)}."
    if _published_so(dataset, subject):
      notes.append(f"{line} The source published it so.")
    else:
      problems.append(line)
  return Verification(dataset.name, len(dataset.rows), len(shards), total, problems, notes)


def _published_so(dataset: BuiltDataset, subject: str) -> bool:
  """Returns whether the build kept, and said so, a published split that divides the subject."""
  facts = dataset.report["volume_facts"]
  volumes = {row["volume"] for row in dataset.rows if row["subject"] == subject}
  return all("published_side" in facts.get(volume, {}) for volume in volumes)


def _table_problems(dataset: BuiltDataset) -> Iterator[str]:
  """Compares the report, records.csv and the metadata of TFDS with each other."""
  report = dataset.report
  for shard in report["shards"]:
    listed = len(dataset.rows_of_shard[shard["file"]])
    if listed != shard["records"]:
      yield (f"{RECORDS_NAME}: lists {listed} records of {shard['file']}, the build"
             f" report {shard['records']}.")  # fmt: skip
  yield from _split_problems(dataset)
  if _fingerprint(dataset) != report["fingerprint"]:
    yield f"{REPORT_NAME}: its fingerprint does not fit the keys and shards it lists."
  for name, split in dataset.info.splits.items():
    wanted = [shard["records"] for shard in report["shards"] if shard["split"] == name]
    if list(split.shard_lengths) != wanted:
      yield (f"dataset_info.json: split {name} has shards of {list(split.shard_lengths)} records,"
             f" the build report says {wanted}.")  # fmt: skip


def _split_problems(dataset: BuiltDataset) -> Iterator[str]:
  """Counts subjects, records and pixels of each split again, from records.csv."""
  for name, entry in dataset.splits.items():
    rows = [row for row in dataset.rows if row["split"] == name]
    counted = {
        "num_subjects": len({row["subject"] for row in rows}),
        "num_volumes": len({row["volume"] for row in rows}),
        "num_records": len(rows),
        "pixels": {c: sum(int(row[f"pixels_{c}"]) for row in rows) for c in dataset.scheme.names},
    }
    for what, value in counted.items():
      if entry[what] != value:
        yield (f"{REPORT_NAME}: {what} of split {name} is {entry[what]}, by"
               f" {RECORDS_NAME} it is {value}.")  # fmt: skip


def _fingerprint(dataset: BuiltDataset) -> str:
  """Computes again what `build_report` wrote: a digest of all keys and shard sums, in order."""
  digest = hashlib.sha256()
  for split in sorted(dataset.splits):
    keys = [row["key"] for row in dataset.rows if row["split"] == split]
    sums = [shard["sha256"] for shard in dataset.report["shards"] if shard["split"] == split]
    for text in keys + sums:
      digest.update(f"{split}\t{text}\n".encode())
  return digest.hexdigest()


def _folder_problems(dataset: BuiltDataset) -> Iterator[str]:
  known = {shard["file"] for shard in dataset.report["shards"]}
  for path in sorted(dataset.path.iterdir()):
    if ("tfrecord" in path.name or "array_record" in path.name) and path.name not in known:
      yield f"{path.name}: the build report knows no such shard."


def main(argv: Sequence[str]) -> None:
  if len(argv) != 2:
    raise InputError(f"Usage: {_PROGRAM.usage}. Got: {' '.join(argv[1:]) or 'nothing'}.")
  failed = False
  for dataset in built_dataset.find(pathlib.Path(argv[1])):
    result = verify(dataset, show_progress=sys.stderr.isatty())
    size = f"{result.records} records in {result.shards} shards, {result.bytes / 1e6:.1f} MB"
    if not result.problems:
      print("\n  ".join([f"{result.name}: ok, {size}", *result.notes]))
      continue
    failed = True
    print(f"{result.name}: {len(result.problems)} problems, {size}", file=sys.stderr)
    for problem in result.problems:
      print(f"  {problem}", file=sys.stderr)
  if failed:
    sys.exit(1)


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()
