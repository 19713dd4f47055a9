"""Where a built dataset lies, and how its report, its table and its records read.

A dataset lies in DATA_DIR/NAME/CONFIG/VERSION. Beside the shards stand the metadata of TFDS,
`build_report.json` and `records.csv`; a TFDS dataset built elsewhere has the first alone.
`checksums.json` holds the sha256 of all of them: the report holds those of the shards.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import functools
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from flexunet.core import files, remote_folder
from flexunet.core.errors import InputError, unknown_name
from flexunet.core.remote_folder import RemoteFolder
from flexunet.datasets.builder import tfrecord
from flexunet.imaging import slice_recipe
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
_BUILD = "flexunet build DATASET --manual_dir=RAW --data_dir=DATA"
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
    return f"image{slice_recipe.channel_suffixes(len(names))[names.index(channel)]}"

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
    """Returns the bytes of a record of a TFRecord shard.

    Raises:
      InputError: They are damaged.
    """
    with open(self.path / row["shard"], "rb") as stream:
      return self._payload_at(row, stream)

  def _payloads(self, file: str, rows: list[dict[str, str]]) -> Iterator[bytes]:
    path = self.path / file
    if not path.is_file():
      raise InputError(f"{path}: the shard is missing. Build or copy the dataset again.")
    if rows and int(rows[0]["offset"]) < 0:
      yield from array_record_payloads(path)
      return
    with open(path, "rb") as stream:
      for row in rows:
        yield self._payload_at(row, stream)

  def _payload_at(self, row: dict[str, str], stream: Any) -> bytes:
    stream.seek(int(row["offset"]) + tfrecord.HEADER_BYTES)
    length = int(row["length"])
    payload = stream.read(length)
    stored = int.from_bytes(stream.read(4), "little")
    if len(payload) < length or tfrecord.masked_crc(payload) != stored:
      raise InputError(
          f"{self.path / row['shard']}: record {row['record']} ({row['key']}) is damaged. Run"
          f" flexunet verify {self.path}."
      )
    return payload


def ordered_splits(splits: Any) -> list[str]:
  """Returns the names of our splits in the usual order."""
  return [name for name in _SPLIT_ORDER if name in splits]


def array_record_payloads(path: pathlib.Path) -> Iterator[bytes]:
  """Yields the records of an array_record shard in order."""
  reader = array_record_reader(path)
  for _ in range(reader.num_records()):
    yield reader.read()


def array_record_reader(path: pathlib.Path) -> Any:
  """Opens an array_record shard; `read([index])` returns the payloads of records."""
  # Needed for this container alone; the reader of a TFRecord dataset must not load it.
  from array_record.python import array_record_module

  return array_record_module.ArrayRecordReader(str(path))


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
        f" again: {_BUILD}."
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
      raise InputError(f"{path}: {name} is missing. Build the dataset: {_BUILD}.")
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


def find(folder: pathlib.Path) -> list[BuiltDataset]:
  """Opens `folder` itself, or every dataset of this project below it.

  Raises:
    InputError: There is none.
  """
  if address := remote_folder.address_of(folder):
    folder = _fetched(RemoteFolder(address), lambda name: True)
  folder = existing_folder(folder)
  reports = sorted(folder.rglob(REPORT_NAME))
  found = [path.parent for path in reports if not _is_unfinished(path.relative_to(folder))]
  if not found and is_version(folder):
    found = [folder]
  if not found:
    raise _nothing_in(folder)
  return [open_folder(path) for path in found]


def find_one(folder: pathlib.Path) -> BuiltDataset:
  """Opens the only dataset of this project at or below `folder`.

  Raises:
    InputError: There is none, or more than one.
  """
  found = find(folder)
  if len(found) > 1:
    names = ", ".join(dataset.name for dataset in found[:8])
    raise InputError(
        f"{folder}: holds {len(found)} built datasets: {names}. Name the folder of one of them."
    )
  return found[0]


def locate(dataset: str | None, data_dir: pathlib.Path) -> pathlib.Path:
  """Returns the version folder of a dataset of any origin.

  Args:
    dataset: NAME, NAME/CONFIG or NAME/CONFIG/VERSION; None where `data_dir` is a version folder.
    data_dir: Folder of built datasets, or a version folder.

  Raises:
    InputError: There is no such dataset; says what is there.
  """
  if address := remote_folder.address_of(data_dir):
    return _locate_remote(dataset, RemoteFolder(address))
  data_dir = existing_folder(data_dir)
  if is_version(data_dir):
    if dataset and not set(dataset.split("/")) <= set(data_dir.resolve().parts):
      raise InputError(f"{data_dir}: is a built dataset, but not {dataset}.")
    return data_dir
  if not dataset:
    raise InputError(
        f"{data_dir}: is no dataset itself. It holds: {_listing(data_dir)}. Pass one as --dataset."
    )
  path = data_dir
  for part in dataset.split("/"):
    if not (path / part).is_dir():
      near = difflib.get_close_matches(part, _built_in(path), n=1)
      hint = f" Did you mean {near[0]!r}?" if near else ""
      raise InputError(
          f"--dataset={dataset}: {path} has no {part!r}. It holds: {_listing(path)}.{hint}"
      )
    path = path / part
  return _descend(path, dataset)


def _locate_remote(dataset: str | None, remote: RemoteFolder) -> pathlib.Path:
  """Returns the copy of a dataset behind an address, as `locate`; others there are not copied."""
  remote.fetch(lambda name: pathlib.PurePosixPath(name).name == INFO_NAME)
  path = locate(dataset, remote.path)
  below = path.relative_to(remote.path).as_posix()
  prefix = "" if below == "." else f"{below}/"
  return _fetched(remote, lambda name: name.startswith(prefix)) / below


def _fetched(remote: RemoteFolder, wanted: Callable[[str], bool]) -> pathlib.Path:
  """Copies datasets behind an address, and returns where; new shards have the hashes of reports."""
  before = {path: path.stat().st_mtime_ns for path in remote.path.rglob("*") if is_shard(path)}

  def check() -> None:
    for report in remote.path.rglob(REPORT_NAME):
      for shard in read_report(report.parent).get("shards", ()):
        path = report.parent / shard["file"]
        if not path.is_file() or before.get(path) == path.stat().st_mtime_ns:
          continue
        if files.sha256_of(path) != shard["sha256"]:
          path.unlink()
          raise InputError(
              f"{remote.address}: {path.name} arrived damaged (sha256 in {REPORT_NAME}). Try again;"
              " where that does not help, the file in the bucket is damaged."
          )

  remote.fetch(wanted, check)
  return remote.path


def existing_folder(folder: pathlib.Path) -> pathlib.Path:
  """Returns a folder of built datasets with ~ expanded.

  Raises:
    InputError: There is no such folder.
  """
  folder = pathlib.Path(folder).expanduser()
  if not folder.is_dir():
    raise InputError(
        f"{folder}: there is no such folder. Name a built dataset or a folder of them; build one:"
        f" {_BUILD}."
    )
  return folder


def is_version(path: pathlib.Path) -> bool:
  """Returns whether a folder is a built dataset: TFDS moves it into place at the end."""
  return (path / INFO_NAME).is_file()


def set_aside(version_folder: pathlib.Path) -> pathlib.Path:
  """Returns where a build keeps the dataset that it replaces, until it has succeeded."""
  return version_folder.with_name(f".replaced-{version_folder.name}")


def _descend(path: pathlib.Path, dataset: str) -> pathlib.Path:
  """Goes down to the version: config `slices` where there is a choice, the newest version."""
  for _ in range(3):
    if is_version(path):
      return path
    names = _built_in(path)
    versions = [name for name in names if _version_key(name)]
    if versions:
      path = path / max(versions, key=lambda name: _version_key(name) or ())
    elif "slices" in names:
      path = path / "slices"
    elif len(names) == 1:
      path = path / names[0]
    elif names:
      raise InputError(
          f"--dataset={dataset} has several configs: {', '.join(names)}. Name one:"
          f" --dataset={dataset}/{names[0]}."
      )
    else:
      break
  raise _nothing_in(path)


def _version_key(name: str) -> tuple[int, ...] | None:
  parts = name.split(".")
  is_number = len(parts) == 3 and all(part.isdigit() for part in parts)
  return tuple(int(part) for part in parts) if is_number else None


def _built_in(path: pathlib.Path) -> list[str]:
  """Returns the folders that hold a built dataset, sorted."""
  folders = [p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")]
  return sorted(folder.name for folder in folders if _holds_dataset(folder))


def _holds_dataset(path: pathlib.Path) -> bool:
  """Returns whether a dataset, or a config or version of it, has been built in a folder."""
  # A build that was killed leaves folders in which none has come to its end.
  found = [info for below in ("", "*/", "*/*/") for info in path.glob(f"{below}{INFO_NAME}")]
  return any(not _is_unfinished(info.relative_to(path)) for info in found)


def _is_unfinished(below: pathlib.Path) -> bool:
  """Returns whether a path leads through a folder of a build that was interrupted."""
  return any(part.startswith((".", "incomplete.")) for part in below.parts)


def _listing(path: pathlib.Path) -> str:
  names = _built_in(path)
  return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "") if names else "nothing"


def _nothing_in(folder: pathlib.Path) -> InputError:
  return InputError(f"{folder}: holds no built dataset. Build one: {_BUILD}.")


def _damaged(path: pathlib.Path, reason: object) -> InputError:
  shown = reason if isinstance(reason, str) else repr(reason)
  return InputError(
      f"{path}: {REPORT_NAME} and {RECORDS_NAME} must be as the build wrote them; one of them is"
      f" damaged ({shown}). Build the dataset again: {_BUILD}."
  )


def _bad_metadata(path: pathlib.Path, error: Exception) -> InputError:
  first_line = (str(error).splitlines() or [type(error).__name__])[0]
  return InputError(
      f"{path}: {INFO_NAME} and features.json must be the metadata of a dataset built by TFDS, but"
      f" cannot be read: {first_line}. Build it again: {_BUILD}."
  )
