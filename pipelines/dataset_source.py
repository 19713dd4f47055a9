"""A built dataset as the pipeline sees it: its features, its report, and a table of its records.

Reads what `datasets/` wrote, and any other TFDS dataset in TFRecords with an image and a label.

Which records a run trains on, which it validates on, and which it draws more often.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flexunet.core.errors import InputError, unknown_name
from flexunet.imaging.label_scheme import LabelScheme
from flexunet.pipelines import record_table

if TYPE_CHECKING:
  import tensorflow_datasets as tfds


@dataclasses.dataclass(frozen=True)
class DatasetSource:
  """An opened dataset.

  Attributes:
    path: The version folder.
    name: dataset/config/version, as TFDS names it.
    info: The `tfds.core.DatasetInfo`.
    report: `build_report.json`, or an empty dict for a dataset built elsewhere.
  """

  path: pathlib.Path
  name: str
  info: tfds.core.DatasetInfo
  report: dict[str, Any]

  @property
  def splits(self) -> list[str]:
    return sorted(self.info.splits)

  @property
  def fingerprint(self) -> str | None:
    return self.report.get("fingerprint")

  @property
  def slice_plan(self) -> dict[str, Any] | None:
    return self.report.get("slice_plan")

  @property
  def intensity(self) -> dict[str, Any] | None:
    return self.report.get("intensity")

  def label_scheme(self, label_key: str = "label", num_classes: int | None = None) -> LabelScheme:
    """Returns names and colours; from the features' names where there is no build report.

    Args:
      label_key: Feature of the label.
      num_classes: Of a dataset that names none: they are then called class_1, class_2, ...
    """
    if scheme := self.report.get("label_scheme"):
      return LabelScheme.from_json(scheme)
    names = getattr(self.info.features[label_key], "names", None)
    if not names and num_classes:
      names = ["background", *(f"class_{index}" for index in range(1, max(2, num_classes)))]
    if not names:
      raise InputError(
          f"Dataset {self.name} names no classes for its feature {label_key!r}. Pass"
          " --num_classes, background included; its labels must then be 0 .. num_classes - 1."
      )
    return LabelScheme.from_names(names)

  def filepaths(self, split: str) -> list[str]:
    """Returns the shard files of a split in order."""
    self.check_split(split)
    return [os.fspath(path) for path in self.info.splits[split].filepaths]

  def records(self, split: str) -> record_table.RecordTable:
    """Returns where each record of the split lies and whose it is.

    Records are slices, or whole volumes; `readers.slice_table` gives the slices of both.
    """
    files = self.filepaths(split)
    listing = self.path / "records.csv"
    if listing.is_file():
      return record_table.read(listing, split, files)
    return record_table.scan(files)

  @property
  def holds_volumes(self) -> bool:
    """Whether a record is a whole volume."""
    return self.report.get("form") == "volumes"

  def check_split(self, split: str) -> None:
    if split not in self.info.splits:
      raise unknown_name(f"split of dataset {self.name}", split, self.splits)
    if not self.info.splits[split].num_examples:
      raise InputError(f"Split {split!r} of dataset {self.name} holds no records.")


def open_dataset(dataset: str | None, data_dir: str | os.PathLike) -> DatasetSource:
  """Opens a built dataset by its name below `data_dir`, or `data_dir` itself when it is one."""
  import tensorflow_datasets as tfds

  path = _version_folder(dataset, pathlib.Path(data_dir).expanduser())
  try:
    builder = tfds.builder_from_directory(path)
    info = builder.info
  except Exception as error:  # TFDS raises many kinds for a damaged metadata file.
    raise InputError(
        f"{path} must hold a dataset built by TFDS, but its metadata cannot be read:"
        f" {str(error).splitlines()[0]}. Build it again with flexunet build."
    ) from error
  if info.file_format is not None and info.file_format.value != "tfrecord":
    raise InputError(
        f"{path} holds {info.file_format.value} files; training reads tfrecord. Build the dataset"
        " with --file_format=tfrecord."
    )
  report_file = path / "build_report.json"
  report = json.loads(report_file.read_text(encoding="utf-8")) if report_file.is_file() else {}
  return DatasetSource(path=path, name=info.full_name, info=info, report=report)


def _version_folder(dataset: str | None, data_dir: pathlib.Path) -> pathlib.Path:
  if not data_dir.is_dir():
    raise InputError(
        f"--data_dir {data_dir} must be a folder of built datasets; there is no such folder. Build"
        " one first: flexunet build DATASET --manual_dir=RAW --data_dir=OUT."
    )
  if _is_version(data_dir):
    if dataset and not set(dataset.split("/")) <= set(data_dir.resolve().parts):
      raise InputError(f"--data_dir {data_dir} is a built dataset, but not {dataset}.")
    return data_dir
  if not dataset:
    raise InputError(
        f"--dataset is not given and --data_dir {data_dir} is no dataset itself. It holds:"
        f" {_listing(data_dir)}. Pass one as --dataset."
    )
  path = data_dir
  for part in dataset.split("/"):
    if not (path / part).is_dir():
      names = _folders(path)
      near = difflib.get_close_matches(part, names, n=1)
      hint = f" Did you mean {near[0]!r}?" if near else ""
      raise InputError(
          f"--dataset={dataset}: {path} has no {part!r}. It holds: {_listing(path)}.{hint}"
      )
    path = path / part
  return _descend(path, dataset)


def _descend(path: pathlib.Path, dataset: str) -> pathlib.Path:
  """Goes down to the version: config `slices` where there is a choice, the newest version."""
  for _ in range(3):
    if _is_version(path):
      return path
    names = [name for name in _folders(path) if any((path / name).rglob("dataset_info.json"))]
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
  raise InputError(
      f"--dataset={dataset}: {path} holds no built dataset (no dataset_info.json). Build it:"
      f" flexunet build {dataset} --manual_dir=RAW --data_dir=OUT."
  )


def _version_key(name: str) -> tuple[int, ...] | None:
  parts = name.split(".")
  is_version = len(parts) == 3 and all(part.isdigit() for part in parts)
  return tuple(int(part) for part in parts) if is_version else None


def _is_version(path: pathlib.Path) -> bool:
  return (path / "dataset_info.json").is_file()


def _folders(path: pathlib.Path) -> list[str]:
  return sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _listing(path: pathlib.Path) -> str:
  names = [name for name in _folders(path) if name != "downloads"]
  return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "") if names else "nothing"


def split_counts(source: DatasetSource) -> dict[str, dict[str, int]]:
  """Returns split -> how many subjects, volumes and slices it has; 0 where unknown."""
  counts = {}
  for split in source.splits:
    if not source.info.splits[split].num_examples:
      continue
    table = source.records(split)
    subjects = {str(name) for name in np.unique(table.subject)} - {""}
    slices = 0 if source.holds_volumes else len(table)
    volumes = set(zip(table.subject.tolist(), table.volume.tolist(), strict=True)) - {("", "")}
    counts[split] = {"subjects": len(subjects), "volumes": len(volumes), "slices": slices}
  return counts


def check_folder(
    dataset: str | None,
    data_dir: str | os.PathLike,
    splits: Sequence[str] = (),
    fold: int = -1,
) -> pathlib.Path:
  """Returns the version folder of a built dataset, after what small files alone can refuse.

  It loads no library, so that a program answers at once where a path or a name is wrong.

  Args:
    dataset: name[/config[/version]]; None where `data_dir` is the version folder.
    data_dir: Folder of built datasets, or the version folder.
    splits: Names that must be among its splits.
    fold: Must be among its folds; -1: any.

  Raises:
    InputError: There is no such dataset, split or fold.
  """
  path = _version_folder(dataset, pathlib.Path(data_dir).expanduser())
  try:
    info = json.loads((path / "dataset_info.json").read_text(encoding="utf-8"))
    parts = [info.get(key) for key in ("name", "configName", "version")]
    found = [split["name"] for split in info.get("splits", ())]
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise InputError(
        f"{path / 'dataset_info.json'} must be the metadata of a dataset built by TFDS, but it"
        f" cannot be read: {error!r}. Build the dataset again with flexunet build."
    ) from error
  name = "/".join(part for part in parts if part)
  for split in splits if found else ():
    if split not in found:
      raise unknown_name(f"split of dataset {name}", split, found)
  listing = path / "records.csv"
  if fold >= 0 and listing.is_file():
    with open(listing, newline="", encoding="utf-8") as stream:
      check_fold(name, {int(row["fold"]) for row in csv.DictReader(stream)}, fold)
  return path


def check_fold(name: str, folds: Iterable[int], fold: int) -> None:
  """Raises InputError unless `fold` is among the folds of the dataset `name`; -1 means none."""
  known = sorted({one for one in folds if one >= 0})
  if fold not in known:
    listing = ", ".join(map(str, known)) or "none"
    raise InputError(f"--fold must be a fold of {name}. It has: {listing}. Got: {fold}.")
