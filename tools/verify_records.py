"""Proves that a built dataset is what its build report says, record by record.

  flexunet verify DIR

DIR is a version folder or any folder above; every dataset below is read whole. Each problem is
one line with shard and record; exit code 1 when there is one.

Walks one TFRecord shard and says, record by record, what is wrong with it.

The container keeps two checksums a record: of its length, and of its payload. A record that was
removed or copied whole passes both; then the identities inside the records tell.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from flexunet.core import command_line, files, flags
from flexunet.core.errors import InputError
from flexunet.core.progress import bar
from flexunet.datasets import built_dataset, subject_splits
from flexunet.datasets.builder import build_report, tfrecord
from flexunet.datasets.built_dataset import BuiltDataset
from flexunet.imaging.label_scheme import LabelScheme

# (subject, volume, slice index or None): unique in a dataset.
Identity = tuple[str, str, str]

_PROGRAM = flags.Program(__doc__, usage="flexunet verify DIR")


@dataclasses.dataclass(frozen=True)
class Verification:
  """What reading a dataset whole brought up.

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


def verify(dataset: BuiltDataset, progress: bool = False) -> Verification:
  """Reads every shard of a dataset and compares it with the report and the table of records."""
  problems = list(_table_problems(dataset)) + list(_folder_problems(dataset))
  sides: list[tuple[str, str]] = []
  total = 0
  shards = dataset.report["shards"]
  for shard in bar(shards, unit=" shard", disable=not progress, leave=False):
    rows = dataset.rows_of_shard[shard["file"]]
    path = dataset.path / shard["file"]
    if not path.is_file():
      problems.append(f"{shard['file']}: the shard is missing, with its {len(rows)} records.")
      continue
    total += path.stat().st_size
    found, subjects = _check_shard(dataset, path, rows)
    if not found and files.sha256_of(path) != shard["sha256"]:
      found = [f"{shard['file']}: every record reads well, but the file is not the one that was"
               " built (sha256)."]  # fmt: skip
    problems += found
    sides += [(subject, shard["split"]) for subject in subjects]
  notes = []
  for subject, splits in subject_splits.subjects_on_two_sides(sides).items():
    line = f"subject {subject} stands on two sides: {', '.join(splits)}."
    if _published_so(dataset, subject):
      notes.append(f"{line} The source published it so.")
    else:
      problems.append(line)
  return Verification(dataset.name, len(dataset.rows), len(shards), total, problems, notes)


def _published_so(dataset: BuiltDataset, subject: str) -> bool:
  """Tells whether the build kept, and said so, a published split that divides the subject."""
  facts = dataset.report["volume_facts"]
  volumes = {row["volume"] for row in dataset.rows if row["subject"] == subject}
  return all("published_side" in facts.get(volume, {}) for volume in volumes)


def _check_shard(dataset: BuiltDataset, path: pathlib.Path, rows):
  if rows and int(rows[0]["offset"]) < 0:
    return _check_array_record(dataset, path, rows)
  return check(path, rows, dataset.decode, dataset.scheme)


def _check_array_record(dataset: BuiltDataset, path: pathlib.Path, rows):
  """This container has its own checksums and no byte offsets: its reader fails as a whole."""
  subjects, problems = [], []
  try:
    for row, payload in zip(rows, built_dataset.array_record_payloads(path), strict=True):
      example = dataset.decode(payload)
      subjects.append(str(example["subject"]))
      texts = content_problems(example, row, dataset.scheme)
      problems += [f"{path.name}: record {row['record']} ({row['key']}): {text}" for text in texts]
  except Exception as error:  # The reader and the decoders raise whatever they like.
    problems.append(f"{path.name}: cannot be read after record {len(subjects) - 1}: {error}")
  return problems, subjects


def _table_problems(dataset: BuiltDataset) -> Iterator[str]:
  """Compares the report, records.csv and the metadata of TFDS with each other."""
  report = dataset.report
  for shard in report["shards"]:
    listed = len(dataset.rows_of_shard[shard["file"]])
    if listed != shard["records"]:
      yield (f"{build_report.RECORDS_NAME}: lists {listed} records of {shard['file']}, the build"
             f" report {shard['records']}.")  # fmt: skip
  yield from _split_problems(dataset)
  if _fingerprint(dataset) != report["fingerprint"]:
    yield f"{build_report.REPORT_NAME}: its fingerprint does not fit the keys and shards it lists."
  for name, split in dataset.info.splits.items():
    wanted = [shard["records"] for shard in report["shards"] if shard["split"] == name]
    if list(split.shard_lengths) != wanted:
      yield (f"dataset_info.json: split {name} has shards of {list(split.shard_lengths)} records,"
             f" the build report says {wanted}.")  # fmt: skip


def _split_problems(dataset: BuiltDataset) -> Iterator[str]:
  """Counts subjects, records and pixels of each split anew from records.csv."""
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
        yield (f"{build_report.REPORT_NAME}: {what} of split {name} is {entry[what]}, by"
               f" {build_report.RECORDS_NAME} it is {value}.")  # fmt: skip


def _fingerprint(dataset: BuiltDataset) -> str:
  """Computes anew what `build_report` wrote: a digest of all keys and shard sums, in order."""
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
    result = verify(dataset, progress=sys.stderr.isatty())
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


if __name__ == "__main__":
  run()
