"""Proves that a built dataset is what its build report says, record by record.

  flexunet verify DIR

DIR is a version folder or any folder above; every dataset below is read whole. Each problem is
one line with shard and record; exit code 1 when there is one.

The container keeps two checksums per record: of its length, and of its payload. A record that was
removed or copied whole passes both; then the identities inside the records show it. What the report
and the table say is counted again from the records; what no record shows (intensities, slice plan,
reasons) is held by checksums.json, which the build wrote.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from flexunet.core import command_line, files, flags
from flexunet.core.errors import InputError
from flexunet.core.progress import bar
from flexunet.datasets import built_dataset, subject_splits
from flexunet.datasets.builder import tfrecord
from flexunet.datasets.built_dataset import (
  CHECKSUMS_NAME,
  INFO_NAME,
  RECORDS_NAME,
  REPORT_NAME,
  BuiltDataset,
)
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
      except Exception as error:  # Decoders of images raise many kinds.
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        self.problems.append(f"{named}: cannot be decoded: {first_line}.")
        continue
      in_order.append(_identity_of(example))
      self._check(example, where, frame)
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
  problems = _lines_of(_checksum_problems, dataset) + list(_folder_problems(dataset))
  for compare in (_shard_list_problems, _split_problems, _metadata_problems):
    problems += _lines_of(compare, dataset)
  if not _has_metadata(dataset):  # Nothing can be decoded without them.
    return Verification(dataset.name, len(dataset.rows), 0, 0, sorted(set(problems)), [])
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
    splits_of += [(subject, str(shard.get("split"))) for subject in check.subjects]
  notes = []
  for subject, splits in subject_splits.subjects_in_two_splits(splits_of).items():
    line = f"subject {subject} stands in two splits: {', '.join(splits)}."
    if _published_so(dataset, subject):
      notes.append(f"{line} The source published it so.")
    else:
      problems.append(line)
  return Verification(dataset.name, len(dataset.rows), len(shards), total, problems, notes)


def _lines_of(
    compare: Callable[[BuiltDataset], Iterator[str]], dataset: BuiltDataset
) -> list[str]:
  """Returns the problems that a comparison finds; what was edited may be of any form."""
  lines: list[str] = []
  try:
    lines.extend(compare(dataset))
  except InputError as error:
    lines.append(str(error))
  except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
    lines.append(f"{REPORT_NAME} or {RECORDS_NAME}: not of the form of a build ({error!r}).")
  return lines


def _published_so(dataset: BuiltDataset, subject: str) -> bool:
  """Returns whether the build kept, and said so, a published split that divides the subject."""
  facts = dataset.report["volume_facts"]
  volumes = {row["volume"] for row in dataset.rows if row["subject"] == subject}
  facts = dataset.report.get("volume_facts")
  return isinstance(facts, dict) and all(
      "published_side" in (facts.get(volume) or {}) for volume in volumes
  )


def _has_metadata(dataset: BuiltDataset) -> bool:
  try:
    return dataset.info is not None
  except InputError:
    return False


def _checksum_problems(dataset: BuiltDataset) -> Iterator[str]:
  """Compares the files beside the shards with their sha256 in checksums.json."""
  folder = dataset.path
  sums = built_dataset.read_checksums(folder)
  if sums is None:
    yield (f"{CHECKSUMS_NAME}: is missing, so that nothing shows whether intensities, slice plan"
           " and reasons are those of the build. Build the dataset again.")  # fmt: skip
    return
  for name in built_dataset.changed_files(folder):
    what = "is not the file that was built" if (folder / name).is_file() else "is missing"
    yield f"{name}: {what} (sha256 in {CHECKSUMS_NAME})."
  for path in sorted(folder.iterdir()):
    read = path.name in (REPORT_NAME, RECORDS_NAME, INFO_NAME) or path.suffix in (".json", ".txt")
    if read and path.name not in (*sums, CHECKSUMS_NAME):
      yield f"{path.name}: {CHECKSUMS_NAME} knows no such file."


def _shard_list_problems(dataset: BuiltDataset) -> Iterator[str]:
  """Compares the shards that the report lists with records.csv and the metadata of TFDS."""
  report = dataset.report
  split_of = {}
  for shard in report["shards"]:
    name, split = shard["file"], shard["split"]
    split_of[name] = split
    rows = dataset.rows_of_shard[name]
    if len(rows) != shard["records"]:
      yield (f"{RECORDS_NAME}: lists {len(rows)} records of {name}, the build"
             f" report {shard['records']}.")  # fmt: skip
    if others := {row["split"] for row in rows} - {split}:
      yield (f"{RECORDS_NAME}: puts records of {name} into {', '.join(sorted(others))}, the build"
             f" report into {split}.")  # fmt: skip
    wanted_bytes = _bytes_of(dataset.path / name, rows)
    if shard["bytes"] != wanted_bytes:
      yield f"{REPORT_NAME}: bytes of {name} is {shard['bytes']}, it must be {wanted_bytes}."
  for name in dataset.rows_of_shard.keys() - split_of.keys():
    yield f"{RECORDS_NAME}: lists records of {name}, which the build report does not know."
  if _fingerprint(dataset) != report["fingerprint"]:
    yield f"{REPORT_NAME}: its fingerprint does not fit the keys and shards it lists."
  for name in sorted({*dataset.info.splits, *split_of.values()}):
    wanted = [(shard["file"], shard["records"]) for shard in report["shards"]
              if shard["split"] == name]  # fmt: skip
    split = dataset.info.splits.get(name)
    found = []
    if split is not None:
      lengths = split.shard_lengths
      found = list(zip((path.name for path in split.filepaths), lengths, strict=True))
    if found != wanted:
      yield f"{INFO_NAME}: split {name} has the shards {found}, by {REPORT_NAME} {wanted}."


def _bytes_of(path: pathlib.Path, rows: Sequence[Row]) -> int:
  """Returns the size of a shard by its rows; its own in a container without offsets."""
  if any(int(row["offset"]) < 0 for row in rows):
    return path.stat().st_size if path.is_file() else 0
  return sum(int(row["length"]) + tfrecord.FRAME_BYTES for row in rows)


def _split_problems(dataset: BuiltDataset) -> Iterator[str]:
  """Counts subjects, records and pixels of each split again, from records.csv."""
  entries = dataset.report["splits"]
  labelled: dict[str, int] = {}
  for name in sorted({*entries, *(row["split"] for row in dataset.rows)}):
    rows = [row for row in dataset.rows if row["split"] == name]
    counted = _counts_of(rows, dataset.scheme.names)
    if name != subject_splits.UNLABELED:
      labelled[name] = counted["num_subjects"]
    entry = entries.get(name, {})
    for what, value in counted.items():
      if entry.get(what) != value:
        yield (f"{REPORT_NAME}: {what} of split {name} is {entry.get(what)}, by"
               f" {RECORDS_NAME} it is {value}.")  # fmt: skip
  total = sum(labelled.values())
  shares = {name: round(count / total, 4) for name, count in labelled.items() if count}
  if dataset.report["split_realised"] != shares:
    yield (f"{REPORT_NAME}: split_realised is {dataset.report['split_realised']}, by"
           f" {RECORDS_NAME} it is {shares}.")  # fmt: skip


def _counts_of(rows: Sequence[Row], names: Sequence[str]) -> dict[str, Any]:
  """Returns what the report says of a split, from its rows."""
  subjects = sorted({row["subject"] for row in rows})
  pixels = [[int(row[f"pixels_{name}"]) for name in names] for row in rows]
  return {
      "subjects": subjects,
      "num_subjects": len(subjects),
      "num_volumes": len({row["volume"] for row in rows}),
      "num_records": len(rows),
      "num_foreground_records": sum(any(counts[1:]) for counts in pixels),
      "pixels": dict(zip(names, map(sum, zip(*pixels)))),
  }


def _metadata_problems(dataset: BuiltDataset) -> Iterator[str]:
  """Compares what the report says of the dataset as a whole with the metadata of TFDS."""
  report, info = dataset.report, dataset.info
  features = info.features
  found = {
      "dataset": info.name,
      "config": info.full_name.split("/")[1],
      "version": str(info.version),
      "file_format": info.file_format.value,
      "form": "slices" if "slice_index" in features else "volumes",
  }
  for what, value in found.items():
    if report[what] != value:
      yield f"{REPORT_NAME}: {what} is {report[what]!r}, by the metadata of TFDS {value!r}."
  names = getattr(features["label"], "names", None)
  if names is not None and list(names) != dataset.scheme.names:
    yield (f"{REPORT_NAME}: the classes are {dataset.scheme.names}, by the metadata of TFDS"
           f" {list(names)}.")  # fmt: skip
  columns = [name for name in (dataset.rows or [{}])[0] if (name or "").startswith("pixels_")]
  if columns != [f"pixels_{name}" for name in dataset.scheme.names]:
    yield f"{RECORDS_NAME}: its columns {columns} are not those of {dataset.scheme.names}."


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
    if built_dataset.is_shard(path) and path.name not in known:
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
