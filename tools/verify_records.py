"""Proves that a built dataset is what its build report says, record by record.

  flexunet verify DIR
  flexunet verify DIR --privacy [--key_file=KEY] [--manual_dir=RAW]

DIR is a version folder or any folder above; every dataset below is read whole. Each problem is
one line with shard and record; exit code 1 when there is one.

With --privacy DIR may be a run folder too. It is looked through for what must not be passed on with
it: home folders, names of this user and machine, e-mail addresses, entries on patients, and the
names of a key file and of a raw folder.

The container keeps two checksums per record: of its length, and of its payload. A record that was
removed or copied whole passes both; then the identities inside the records show it. What the report
and the table say is counted again from the records; what no record shows (intensities, slice plan,
reasons) is held by checksums.json, which the build wrote.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from flexunet.core import command_line, files, flags
from flexunet.core.errors import InputError
from flexunet.core.progress import bar
from flexunet.datasets import built_dataset, dataset_folders, subject_splits
from flexunet.datasets.builder import tfrecord
from flexunet.datasets.built_dataset import (
  CHECKSUMS_NAME,
  INFO_NAME,
  RECORDS_NAME,
  REPORT_NAME,
  BuiltDataset,
)
from flexunet.tools import privacy_scan
from flexunet.tools.shard_check import Row, ShardCheck

_PROGRAM = flags.Program(__doc__, usage="flexunet verify DIR [--privacy]", first=("privacy",))
_PRIVACY = _PROGRAM.boolean(
    "privacy", False, "Look for names and other private things instead of checking records."
)
_KEY_FILE = _PROGRAM.string(
    "key_file", None, "With --privacy: key file of pseudonyms, whose names must not occur."
)
_MANUAL_DIR = _PROGRAM.string(
    "manual_dir", None, "With --privacy: raw folder, whose names must not occur unless codes."
)


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
  folder = pathlib.Path(argv[1]).expanduser()
  if folder.is_file():
    raise InputError(f"{folder}: is a file. Name the folder of a built dataset, or one above it.")
  if _PRIVACY.value:
    check_privacy(folder)
    return
  if given := [name for name in ("key_file", "manual_dir") if _PROGRAM.given(name)]:
    raise InputError(f"--{given[0]} is of --privacy. Pass both, or leave it out.")
  if (folder / "config.json").is_file() and (folder / "manifest.json").is_file():
    raise InputError(
        f"{folder}: is a run folder; verify expects a built dataset, DATA_DIR/NAME/CONFIG/VERSION,"
        " or a folder above. The files of a run are checked by flexunet evaluate, and --privacy"
        " looks through any folder."
    )
  failed = False
  for dataset in dataset_folders.find(folder):
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


def check_privacy(folder: pathlib.Path) -> None:
  """Prints what must not be passed on with a folder, and where it is; exits 1 where there is any.

  Raises:
    InputError: The folder, the key file or the raw folder cannot be read.
  """
  paths = [pathlib.Path(flag.value) if flag.value else None for flag in (_KEY_FILE, _MANUAL_DIR)]
  sought = privacy_scan.Sought(*paths)
  found = privacy_scan.scan(folder, sought)
  looked = f"looked through {found.looked_at()} for {', '.join(sought.kinds)}"
  if not found.findings:
    print(f"{folder}: nothing private found; {looked}.")
    return
  print(f"{folder}: {len(found.findings)} findings; {looked}.", file=sys.stderr)
  for one in found.findings:
    print(f"  {one.where}: {one.what}: {one.text}", file=sys.stderr)
  sys.exit(1)


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()
