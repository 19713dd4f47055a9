"""Proves that a built dataset is what its build report says, record by record.

    python -m flexunet.tools.verify_records DIR

DIR is a version folder or any folder above; every dataset below is read whole. Each problem is
one line with shard and record; exit code 1 when there is one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import sys
from collections.abc import Iterator, Sequence

import tqdm
from absl import app

from flexunet import command_line
from flexunet.datasets import build_report, shard_writer, subject_splits
from flexunet.tools import built_datasets, shard_check
from flexunet.tools.built_datasets import BuiltDataset


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
  for shard in tqdm.tqdm(shards, unit=" shard", disable=not progress, leave=False):
    rows = dataset.rows_of_shard[shard["file"]]
    path = dataset.path / shard["file"]
    if not path.is_file():
      problems.append(f"{shard['file']}: the shard is missing, with its {len(rows)} records.")
      continue
    total += path.stat().st_size
    found, subjects = _check_shard(dataset, path, rows)
    if not found and shard_writer.sha256_of(path) != shard["sha256"]:
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
  return shard_check.check(path, rows, dataset.decode, dataset.scheme)


def _check_array_record(dataset: BuiltDataset, path: pathlib.Path, rows):
  """This container has its own checksums and no byte offsets: its reader fails as a whole."""
  subjects, problems = [], []
  try:
    for row, payload in zip(rows, built_datasets.array_record_payloads(path), strict=True):
      example = dataset.decode(payload)
      subjects.append(str(example["subject"]))
      texts = shard_check.content_problems(example, row, dataset.scheme)
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
    raise app.UsageError("Usage: python -m flexunet.tools.verify_records DIR")
  failed = False
  for dataset in built_datasets.find(pathlib.Path(argv[1])):
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
  command_line.run(main)


if __name__ == "__main__":
  run()
