"""Where a built dataset lies, and how its report, its table and its records read.

A dataset lies in DATA_DIR/NAME/CONFIG/VERSION. Beside the shards stand the metadata of TFDS,
`build_report.json` and `records.csv`; a TFDS dataset built elsewhere has the first alone.
`checksums.json` holds the sha256 of all of them: the report holds those of the shards.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from flexunet.core import files
from flexunet.core.errors import InputError, unknown_name
from flexunet.datasets import subject_splits
from flexunet.datasets.records import shards
from flexunet.imaging.channels import image_features
from flexunet.imaging.label_scheme import LabelScheme

if TYPE_CHECKING:
  import tensorflow_datasets as tfds

REPORT_NAME = "build_report.json"
RECORDS_NAME = "records.csv"
INFO_NAME = "dataset_info.json"
CHECKSUMS_NAME = "checksums.json"
# Of records.csv, which has a column `pixels_<class>` for each class beside them.
RECORD_COLUMNS = (
    "split", "shard", "record", "offset", "length", "key", "subject", "volume", "slice_index",
    "fold", "height", "width",
)  # fmt: skip
BUILD_COMMAND = "flexunet build DATASET --manual_dir=RAW --data_dir=DATA"
_SPLIT_ORDER = ("train", "validation", "test", "unlabeled")


@dataclasses.dataclass(frozen=True)
class BuiltDataset:
  """One version folder, as the build wrote it.

  Attributes:
    path: The folder.
    report: `build_report.json`.
    rows: `records.csv`, a dict per record, all values as text.
  """

  path: pathlib.Path
  report: dict[str, Any]
  rows: list[dict[str, str]]

  @property
  def scheme(self) -> LabelScheme:
    """Names and colours of the classes."""
    return LabelScheme.from_json(self.report["label_scheme"])

  @property
  def name(self) -> str:
    """dataset/config/version, the folders a data_dir is made of."""
    return "/".join(self.path.resolve().parts[-3:])

  @property
  def channel_names(self) -> list[str]:
    """The channels of a scan, each a feature of its own."""
    return list(self.report.get("channel_names", ["image"]))

  def image_feature(self, channel: str | None = None) -> str:
    """Returns the feature of a channel; None: of the first.

    Raises:
      InputError: There is no channel of this name.
    """
    names = self.channel_names
    if channel is None:
      return "image"
    if channel not in names:
      raise unknown_name(f"channel of {self.name}", channel, names)
    return image_features(len(names))[names.index(channel)]

  @property
  def splits(self) -> dict[str, dict[str, Any]]:
    """The report's entry of each split, in the usual order."""
    return {name: self.report["splits"][name] for name in ordered_splits(self.report["splits"])}

  @functools.cached_property
  def rows_of_shard(self) -> dict[str, list[dict[str, str]]]:
    """The rows of each shard, in order; a shard without rows is there too."""
    by_shard: dict[str, list[dict[str, str]]] = {s["file"]: [] for s in self.report["shards"]}
    for row in self.rows:
      by_shard.setdefault(row["shard"], []).append(row)
    return by_shard

  @functools.cached_property
  def info(self) -> tfds.core.DatasetInfo:
    """What TFDS knows of the dataset."""
    return read_info(self.path)

  def decode(self, payload: bytes) -> dict[str, Any]:
    """Returns the features of a record as NumPy arrays, text as str."""
    example = self.info.features.deserialize_example_np(payload)
    return {
        name: value.decode("utf-8") if isinstance(value, bytes) else value
        for name, value in example.items()
    }

  def records(self) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """Yields (row, decoded record) in file order.

    Raises:
      InputError: A record is not where the table says; `verify_records` says more.
    """
    for shard in self.report["shards"]:
      rows = self.rows_of_shard[shard["file"]]
      for row, payload in zip(rows, self._payloads(shard["file"], rows), strict=True):
        yield row, self.decode(payload)

  def payload(self, row: dict[str, str]) -> bytes:
    """Returns the bytes of a record.

    Raises:
      InputError: They are damaged.
    """
    return bytes(self._payload_at(row, shards.open_shard(str(self.path / row["shard"]))))

  def _payloads(self, file: str, rows: list[dict[str, str]]) -> Iterator[bytes]:
    read = shards.open_shard(str(self.path / file))
    for row in rows:
      yield bytes(self._payload_at(row, read))

  def _payload_at(self, row: dict[str, str], read: Callable) -> bytes | memoryview:
    place = int(row["offset"])
    try:
      # In a container without byte offsets a record is found by its number.
      payload = read(place if place >= 0 else int(row["record"]))
    except InputError:
      payload = b""
    if len(payload) != int(row["length"]):
      raise InputError(
          f"{self.path / row['shard']}: record {row['record']} ({row['key']}) is damaged. Run"
          f" flexunet verify {self.path}."
      )
    return payload


def ordered_splits(splits: Any) -> list[str]:
  """Returns the names of our splits in the usual order."""
  return [name for name in _SPLIT_ORDER if name in splits]


def read_info(path: pathlib.Path) -> tfds.core.DatasetInfo:
  """Returns the metadata of TFDS in a version folder.

  Raises:
    InputError: It cannot be read.
  """
  # Finding datasets and reading their reports must not load TFDS.
  import tensorflow_datasets as tfds

  try:
    return tfds.builder_from_directory(path).info
  except Exception as error:  # TFDS raises many kinds for a damaged metadata file.
    raise _bad_metadata(path, error) from error


def read_summary(path: pathlib.Path) -> tuple[str, str, list[str]]:
  """Returns (name, container of the records, splits) of a version folder, without TFDS.

  Raises:
    InputError: The metadata cannot be read.
  """
  try:
    info = files.read_json(path / INFO_NAME)
    parts = [info.get(key) for key in ("name", "configName", "version")]
    splits = [split["name"] for split in info.get("splits", ())]
    return "/".join(part for part in parts if part), info.get("fileFormat", "tfrecord"), splits
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise _bad_metadata(path, error) from error


def no_split(name: str, split: str, found: Sequence[str]) -> InputError:
  """Returns the error for a split without records; says which the dataset has."""
  if split not in subject_splits.SPLITS:
    return unknown_name(f"split of dataset {name}", split, found)
  return InputError(
      f"Split {split!r} of dataset {name} holds no records: no subject falls to it. It has"
      f" {', '.join(found) or 'none'}; name one of them, or build the dataset from more subjects."
  )


def shard_files(path: pathlib.Path, split: str) -> list[str]:
  """Returns the shards of a split of a version folder, in order, without TFDS.

  Raises:
    InputError: The metadata cannot be read, or name no such split.
  """
  try:
    info = files.read_json(path / INFO_NAME)
    [entry] = [one for one in info["splits"] if one["name"] == split]
    count = len(entry["shardLengths"])
    template = entry.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    names = {
        "DATASET": info["name"], "SPLIT": split, "FILEFORMAT": info.get("fileFormat", "tfrecord")
    }  # fmt: skip
    return [
        str(path / template.format(SHARD_X_OF_Y=f"{number:05d}-of-{count:05d}", **names))
        for number in range(count)
    ]
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise _bad_metadata(path, error) from error


def write_checksums(folder: pathlib.Path) -> None:
  """Writes `checksums.json`: the sha256 of each file of a finished dataset but its shards."""
  sums = {
      path.name: files.sha256_of(path)
      for path in sorted(folder.iterdir())
      if path.is_file() and path.name != CHECKSUMS_NAME and not is_shard(path)
  }
  text = json.dumps({"sha256": sums}, indent=1, sort_keys=True, ensure_ascii=False)
  (folder / CHECKSUMS_NAME).write_text(text + "\n", encoding="utf-8")


def is_shard(path: pathlib.Path) -> bool:
  """Returns by its name whether a file holds records."""
  return "tfrecord" in path.name or "array_record" in path.name


def read_checksums(path: pathlib.Path) -> dict[str, str] | None:
  """Returns {file: sha256} of a version folder; None where the build wrote none.

  Raises:
    InputError: They cannot be read.
  """
  file = path / CHECKSUMS_NAME
  if not file.is_file():
    return None
  try:
    [(kind, sums)] = files.read_json(file).items()
    if kind != "sha256":
      raise ValueError(f"{CHECKSUMS_NAME} must hold sha256, not {kind}")
    return {str(name): str(digest) for name, digest in sums.items()}
  except (InputError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise InputError(
        f"{file}: must be as the build wrote it, but is damaged ({error}). Build the dataset"
        f" again: {BUILD_COMMAND}."
    ) from error


def changed_files(path: pathlib.Path) -> list[str]:
  """Returns the files that are no longer those that the build wrote, in alphabetical order.

  Shards are not looked at. A dataset without `checksums.json`, built elsewhere, has none.

  Raises:
    InputError: `checksums.json` cannot be read.
  """
  sums = read_checksums(path) or {}
  return sorted(
      name
      for name, digest in sums.items()
      if not (path / name).is_file() or files.sha256_of(path / name) != digest
  )


def check_unchanged(path: pathlib.Path) -> None:
  """Raises InputError where a file beside the shards is not the one that the build wrote."""
  if changed := changed_files(path):
    raise InputError(
        f"{path}: must be as it was built, but {', '.join(changed)} changed since (sha256 in"
        f" {CHECKSUMS_NAME}). Build or copy the dataset again; flexunet verify says more."
    )


def check_version(path: pathlib.Path) -> tuple[str, list[str]]:
  """Returns (name, splits) of a version folder whose small files are as they were built.

  Raises:
    InputError: They are not, or its records have a container that nothing here reads.
  """
  name, container, splits = read_summary(path)
  check_unchanged(path)
  if container not in shards.CONTAINERS:
    raise InputError(
        f"{path}: holds {container} files; FlexUNet reads {' and '.join(shards.CONTAINERS)}. Build"
        " it with --file_format=tfrecord, or convert it: tfds convert_format"
        f" --dataset_version_dir={path} --out_file_format=tfrecord --out_dir=OUT."
    )
  return name, splits


def read_report(path: pathlib.Path) -> dict[str, Any]:
  """Returns the build report of a version folder; empty where TFDS alone built the dataset.

  Raises:
    InputError: It cannot be read.
  """
  file = pathlib.Path(path) / REPORT_NAME
  if not file.is_file():
    return {}
  try:
    report = files.read_json(file)
  except InputError as error:
    raise _damaged(path, str(error)) from error
  if not isinstance(report, dict):
    raise _damaged(path, "no mapping")
  return report


def open_folder(path: pathlib.Path) -> BuiltDataset:
  """Opens a version folder.

  Raises:
    InputError: A file of the build is missing or damaged.
  """
  for name in (REPORT_NAME, RECORDS_NAME, INFO_NAME):
    if not (path / name).is_file():
      raise InputError(f"{path}: {name} is missing. Build the dataset: {BUILD_COMMAND}.")
  report = read_report(path)
  try:
    with open(path / RECORDS_NAME, newline="", encoding="utf-8") as stream:
      rows = list(csv.DictReader(stream))
    names = LabelScheme.from_json(report["label_scheme"]).names
    [(pathlib.PurePath(shard["file"]), shard["records"], shard["sha256"])
     for shard in report["shards"]]  # fmt: skip
    [int(row[name]) for row in rows
     for name in ("offset", "length", *(f"pixels_{name}" for name in names))]  # fmt: skip
    if any(row.get(name) is None for row in rows for name in RECORD_COLUMNS):
      raise ValueError(f"a row needs the columns {', '.join(RECORD_COLUMNS)}")
  except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
    raise _damaged(path, error) from error
  return BuiltDataset(path, report, rows)


def _damaged(path: pathlib.Path, reason: object) -> InputError:
  shown = reason if isinstance(reason, str) else repr(reason)
  return InputError(
      f"{path}: {REPORT_NAME} and {RECORDS_NAME} must be as the build wrote them; one of them is"
      f" damaged ({shown}). Build the dataset again: {BUILD_COMMAND}."
  )


def _bad_metadata(path: pathlib.Path, error: Exception) -> InputError:
  first_line = (str(error).splitlines() or [type(error).__name__])[0]
  return InputError(
      f"{path}: {INFO_NAME} and features.json must be the metadata of a dataset built by TFDS, but"
      f" cannot be read: {first_line}. Build it again: {BUILD_COMMAND}."
  )
