"""A built dataset as the pipeline sees it: its features, its report, and a table of its records.

Reads what `datasets/` wrote, and any other TFDS dataset in TFRecords with an image and a label
(`foreign_dataset`).
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flexunet.core import progress
from flexunet.core.errors import InputError
from flexunet.core.files import read_table
from flexunet.datasets import built_dataset, dataset_folders
from flexunet.datasets.records import shards
from flexunet.imaging.channels import image_features
from flexunet.imaging.label_scheme import LabelScheme
from flexunet.imaging.slice_recipe import SliceRecipe
from flexunet.pipelines import record_table
from flexunet.pipelines.feature_keys import FeatureKeys

if TYPE_CHECKING:
  import tensorflow_datasets as tfds

  from flexunet.pipelines.foreign_dataset import ForeignDataset


@dataclasses.dataclass(frozen=True)
class SourceInfo:
  """Metadata of TFDS, as far as the pipeline needs them.

  Attributes:
    features: Those of the records; image and label in our form where others built the dataset.
    splits: By name.
  """

  features: tfds.features.FeaturesDict
  splits: Mapping[str, tfds.core.SplitInfo]


# Splits whose records carry an empty label because the source has none.
WITHOUT_TRUTH = ("unlabeled", "unlabelled")


@dataclasses.dataclass(frozen=True)
class DatasetSource:
  """An opened dataset.

  Attributes:
    path: The version folder.
    name: dataset/config/version, as TFDS names it.
    info: The metadata of TFDS.
    report: `build_report.json`, or an empty dict for a dataset built elsewhere.
    keys: Which features hold what; image and label are always named.
    foreign: What reads a dataset built elsewhere; None for ours.
  """

  path: pathlib.Path
  name: str
  info: SourceInfo
  report: dict[str, Any]
  keys: FeatureKeys
  foreign: ForeignDataset | None = None

  @property
  def splits(self) -> list[str]:
    """Names of the splits in alphabetical order."""
    return sorted(self.info.splits)

  @property
  def warnings(self) -> tuple[str, ...]:
    """What a reader of scores must know of the dataset, one sentence each."""
    return self.foreign.warnings if self.foreign else ()

  @property
  def counted_by(self) -> str:
    """What counts as independent in scores: "subject", or "volume", "slice" without subjects."""
    return self.foreign.counted_by if self.foreign else "subject"

  @property
  def fingerprint(self) -> str | None:
    """Digest of all records; None for a dataset built elsewhere."""
    return self.report.get("fingerprint")

  @property
  def identity(self) -> str:
    """Digest of the records and of how they are read, for caches on this machine."""
    return self.fingerprint or (self.foreign.fingerprint if self.foreign else self.name)

  @property
  def slice_plan(self) -> dict[str, Any] | None:
    """How its volumes are cut, as JSON; None for images."""
    return self.report.get("slice_plan")

  @property
  def intensity(self) -> dict[str, Any] | None:
    """How its intensities became 8 bits, as JSON; None where unknown."""
    return self.report.get("intensity")

  @property
  def ignores(self) -> bool:
    """Whether its labels hold pixels that are not to be counted, as `label_scheme.IGNORED`."""
    scheme = self.report.get("label_scheme")
    return scheme is not None and LabelScheme.from_json(scheme).ignores

  @property
  def has_lesions(self) -> bool:
    """Whether its classes are lesions, as its builder declares."""
    return bool(self.report.get("has_lesions", False))

  @property
  def channel_names(self) -> tuple[str, ...]:
    """Channels of a scan, one feature each; a dataset built elsewhere has one image."""
    return tuple(self.report.get("channel_names", ("image",)))

  def image_keys(self, image_key: str) -> tuple[str, ...]:
    """Returns the features of all channels, where `image_key` names the first of them."""
    if image_key != "image":
      return (image_key,)
    return tuple(image_features(len(self.channel_names)))

  @property
  def recipe(self) -> SliceRecipe | None:
    """How its volumes become slices; None for images and for datasets built elsewhere."""
    return SliceRecipe.of_report(self.report)

  def label_scheme(self, label_key: str = "label", num_classes: int | None = None) -> LabelScheme:
    """Returns names and colours; from the features' names where there is no build report.

    Args:
      label_key: Feature of the label.
      num_classes: For a dataset that names none, what the user says: it must be what its labels
        hold. They are then called class_1, class_2, ... and `LabelScheme.named` is False.

    Raises:
      InputError: The dataset has other classes.
    """
    if scheme := self.report.get("label_scheme"):
      return LabelScheme.from_json(scheme)
    if self.foreign is not None:
      return self.foreign.label_scheme(num_classes)
    names = getattr(self.info.features[label_key], "names", None)
    if not names:
      raise InputError(
          f"{self.name}: its build_report.json must name the classes. Build the dataset again."
      )
    return LabelScheme.from_names(names)

  def filepaths(self, split: str) -> list[str]:
    """Returns the shard files of a split in order."""
    self.check_split(split)
    return [os.fspath(path) for path in self.info.splits[split].filepaths]

  def records(self, split: str) -> record_table.RecordTable:
    """Returns where each record of the split lies and whose it is.

    Records are slices, or whole volumes; `readers.slice_table` gives the slices of both.

    Raises:
      InputError: There is no such split, or a shard is missing or not of its size.
    """
    files = self.filepaths(split)
    if error := shards.missing(files):
      raise error
    if self.foreign is not None:
      return self.foreign.records(split, files)
    return record_table.read(self.path / built_dataset.RECORDS_NAME, split, files)

  @property
  def holds_volumes(self) -> bool:
    """Whether a record is a whole volume."""
    return self.report.get("form") == "volumes"

  def check_split(self, split: str) -> None:
    """Raises InputError where the dataset has no such split, or no record in it."""
    found = [name for name in self.splits if self.info.splits[name].num_examples]
    if split not in found:
      raise built_dataset.no_split(self.name, split, found)


def open_dataset(
    dataset: str | None, data_dir: str | os.PathLike, keys: FeatureKeys | None = None
) -> DatasetSource:
  """Opens a built dataset by its name below `data_dir`, or `data_dir` itself when it is one.

  Says which features are read of a dataset built elsewhere.

  Args:
    dataset, data_dir: As of `check_folder`.
    keys: Features that the user names; the others have our names, or are found.

  Raises:
    InputError: There is none, it is damaged, its files are no TFRecords, or it has no such
      features.
  """
  keys = keys or FeatureKeys()
  path = check_folder(dataset, data_dir)
  info = built_dataset.read_info(path)
  report = built_dataset.read_report(path)
  source = functools.partial(DatasetSource, path=path, name=info.full_name, report=report)
  if (path / built_dataset.RECORDS_NAME).is_file():
    _refuse_foreign_keys(info.full_name, keys)
    known = FeatureKeys(image=keys.image or "image", label=keys.label or "label")
    return source(info=SourceInfo(info.features, info.splits), keys=known)
  # It loads TensorFlow, which checking folders and names must not wait for.
  from flexunet.pipelines.foreign_dataset import ForeignDataset

  foreign = ForeignDataset(path, info, keys)
  for line in foreign.describe():
    progress.say(line)
  return source(
      info=SourceInfo(foreign.features, info.splits), keys=foreign.keys, foreign=foreign
  )


def _refuse_foreign_keys(name: str, keys: FeatureKeys) -> None:
  roles = [role for role in ("subject", "volume", "slice", "spacing") if getattr(keys, role)]
  named = [f"--{role}_key" for role in roles] + ["--label_values"] * bool(keys.label_values)
  if named:
    raise InputError(
        f"{named[0]} is for datasets built elsewhere: {name} has a table of its records, which says"
        " whose slices they are."
    )


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
    InputError: There is no such dataset, split or fold, its records have another container, or a
      file beside them is not the one that was built.
  """
  path = dataset_folders.locate(dataset, pathlib.Path(data_dir))
  name, found = built_dataset.check_version(path)
  for split in splits if found else ():
    if split not in found:
      raise built_dataset.no_split(name, split, found)
  if fold >= 0 and (path / built_dataset.RECORDS_NAME).is_file():
    record_table.check_fold(name, _listed_folds(path, splits), fold)
  return path


def folds_of(
    dataset: str | None, data_dir: str | os.PathLike, splits: Sequence[str]
) -> tuple[int, ...]:
  """Returns the folds that a cross-validation over splits of a dataset has; loads no library.

  Args:
    dataset, data_dir, splits: As of `check_folder`.

  Raises:
    InputError: There is no such dataset or split, or its subjects have fewer than two folds.
  """
  path = check_folder(dataset, data_dir, splits)
  name = built_dataset.read_summary(path)[0]
  listed = (path / built_dataset.RECORDS_NAME).is_file()
  folds = sorted(_listed_folds(path, splits) - {-1}) if listed else []
  if len(folds) < 2:
    found = "only one" if folds else "none"
    raise InputError(
        f"A cross-validation needs subjects of two folds or more in {' and '.join(splits)} of"
        f" {name}. It has {found}. Build the dataset by flexunet build, from more subjects."
    )
  return tuple(folds)


def _listed_folds(path: pathlib.Path, splits: Sequence[str]) -> set[int]:
  """Returns the folds in the table of a dataset, of some splits or of all; -1: of none."""
  rows = read_table(path / built_dataset.RECORDS_NAME, ["split", "fold"])
  numbers = {row["fold"] for row in rows if not splits or row["split"] in splits}
  return {int(one) for one in numbers if one.lstrip("-").isdecimal()}


def split_counts(
    source: DatasetSource,
    train_split: str = "train",
    validation_split: str = "validation",
    fold: int = -1,
) -> dict[str, dict[str, int]]:
  """Returns split -> how many subjects, volumes and slices it has; 0 where unknown.

  Args:
    source: The dataset.
    train_split, validation_split: Those that a run on a fold divides again.
    fold: Its fold: the second of them is then that fold, the first the other folds; -1: none.
  """
  tables = {
      split: source.records(split)
      for split in source.splits if source.info.splits[split].num_examples
  }  # fmt: skip
  if fold >= 0:
    tables[train_split], tables[validation_split] = record_table.divided_by_fold(
        tables[train_split], tables[validation_split], fold
    )
  counts = {}
  for split, table in tables.items():
    subjects = {str(name) for name in np.unique(table.subject)} - {""}
    slices = 0 if source.holds_volumes else len(table)
    volumes = set(zip(table.subject.tolist(), table.volume.tolist(), strict=True)) - {("", "")}
    counts[split] = {"subjects": len(subjects), "volumes": len(volumes), "slices": slices}
  return counts
