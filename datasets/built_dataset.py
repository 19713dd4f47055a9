"""Finds built datasets below a folder and reads their tables and records, for the record tools."""

from __future__ import annotations

import csv
import dataclasses
import functools
import pathlib
from collections.abc import Iterator
from typing import Any

from flexunet.core.errors import InputError
from flexunet.datasets.builder import build_report
from flexunet.imaging.label_scheme import LabelScheme


@dataclasses.dataclass(frozen=True)
class BuiltDataset:
  """One version folder, as the build wrote it.

  Attributes:
    path: The folder.
    report: `build_report.json`.
    rows: `records.csv`, one dict a record, all values as text.
  """

  path: pathlib.Path
  report: dict[str, Any]
  rows: list[dict[str, str]]

  @property
  def scheme(self) -> LabelScheme:
    return LabelScheme.from_json(self.report["label_scheme"])

  @property
  def name(self) -> str:
    """dataset/config/version; the folders a data_dir is made of."""
    return "/".join(self.path.resolve().parts[-3:])

  @property
  def splits(self) -> dict[str, dict[str, Any]]:
    """The report's entry of each split, in the order people expect."""
    order = ("train", "validation", "test", "unlabeled")
    return {name: self.report["splits"][name] for name in order if name in self.report["splits"]}

  @functools.cached_property
  def rows_of_shard(self) -> dict[str, list[dict[str, str]]]:
    """The rows of each shard, in order; a shard without rows is there too."""
    by_shard: dict[str, list[dict[str, str]]] = {s["file"]: [] for s in self.report["shards"]}
    for row in self.rows:
      by_shard.setdefault(row["shard"], []).append(row)
    return by_shard

  @functools.cached_property
  def info(self):
    """The `tfds.core.DatasetInfo`."""
    import tensorflow_datasets as tfds

    try:
      return tfds.builder_from_directory(self.path).info
    except Exception as error:  # TFDS raises many kinds for a damaged metadata file.
      raise InputError(
          f"{self.path}: dataset_info.json and features.json must describe a dataset built by TFDS:"
          f" {str(error).splitlines()[0]}. Build it again with flexunet-build."
      ) from error

  def decode(self, payload: bytes) -> dict[str, Any]:
    """A record's bytes -> its features as NumPy arrays, text as str."""
    example = self.info.features.deserialize_example_np(payload)
    return {
        name: value.decode("utf-8") if isinstance(value, bytes) else value
        for name, value in example.items()
    }

  def records(self) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """Yields (row, decoded record) in file order.

    Raises:
      InputError: When a record is not where the table says; `verify_records` tells more.
    """
    for shard in self.report["shards"]:
      rows = self.rows_of_shard[shard["file"]]
      for row, payload in zip(rows, self._payloads(shard["file"], rows), strict=True):
        yield row, self.decode(payload)

  def _payloads(self, file: str, rows: list[dict[str, str]]) -> Iterator[bytes]:
    from flexunet.datasets.builder import tfrecord

    path = self.path / file
    if not path.is_file():
      raise InputError(f"{path}: the shard is missing. Build or copy the dataset again.")
    if rows and int(rows[0]["offset"]) < 0:
      yield from array_record_payloads(path)
      return
    with open(path, "rb") as stream:
      for row in rows:
        stream.seek(int(row["offset"]) + tfrecord.HEADER_BYTES)
        length = int(row["length"])
        payload = stream.read(length)
        stored = int.from_bytes(stream.read(4), "little")
        if len(payload) < length or tfrecord.masked_crc(payload) != stored:
          raise InputError(
              f"{path}: record {row['record']} ({row['key']}) is damaged. Run python -m"
              f" flexunet.tools.verify_records {self.path}."
          )
        yield payload


def array_record_payloads(path: pathlib.Path) -> Iterator[bytes]:
  """Yields the records of an array_record shard in order."""
  from array_record.python import array_record_module

  reader = array_record_module.ArrayRecordReader(str(path))
  for _ in range(reader.num_records()):
    yield reader.read()


def open_folder(path: pathlib.Path) -> BuiltDataset:
  """Opens a version folder."""
  for name in (build_report.REPORT_NAME, build_report.RECORDS_NAME, "dataset_info.json"):
    if not (path / name).is_file():
      raise InputError(f"{path}: {name} is missing. Build the dataset with flexunet-build.")
  try:
    report = build_report.read(path)
    with open(path / build_report.RECORDS_NAME, newline="", encoding="utf-8") as stream:
      rows = list(csv.DictReader(stream))
    names = LabelScheme.from_json(report["label_scheme"]).names
    [(shard["file"], shard["records"], shard["sha256"]) for shard in report["shards"]]
    [(row["split"], row["shard"], row["key"], int(row["offset"]), int(row["length"]))
     for row in rows]  # fmt: skip
    [int(row[f"pixels_{name}"]) for row in rows for name in names]
  except (ValueError, KeyError, TypeError) as error:
    raise InputError(
        f"{path}: {build_report.REPORT_NAME} and {build_report.RECORDS_NAME} must be as the build"
        f" wrote them; one of them is damaged ({error!r}). Build the dataset again."
    ) from error
  return BuiltDataset(path, report, rows)


def find(folder: pathlib.Path) -> list[BuiltDataset]:
  """Opens `folder` itself, or every built dataset below it."""
  folder = pathlib.Path(folder).expanduser()
  if not folder.is_dir():
    raise InputError(f"{folder}: there is no such folder. Name a built dataset, or a data_dir.")
  reports = sorted(folder.rglob(build_report.REPORT_NAME))
  # A build that was interrupted leaves a folder whose name begins so.
  found = [
      path.parent
      for path in reports
      if not any(p.startswith((".", "incomplete.")) for p in path.relative_to(folder).parts)
  ]
  if not found and (folder / "dataset_info.json").is_file():
    found = [folder]
  if not found:
    raise InputError(
        f"{folder}: no built dataset was found (no {build_report.REPORT_NAME}). Build one: python"
        " -m flexunet.tools.build DATASET --manual_dir=RAW --data_dir=OUT."
    )
  return [open_folder(path) for path in found]


def find_one(folder: pathlib.Path) -> BuiltDataset:
  """Opens the only built dataset at or below `folder`."""
  found = find(folder)
  if len(found) > 1:
    names = ", ".join(dataset.name for dataset in found[:8])
    raise InputError(
        f"{folder}: holds {len(found)} built datasets: {names}. Name the folder of one of them."
    )
  return found[0]
