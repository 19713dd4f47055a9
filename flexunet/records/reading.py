"""The records of a split, by number, and the volumes that they make."""

from __future__ import annotations

import dataclasses
import operator
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flexunet.core.errors import InputError
from flexunet.datasets import built_dataset, dataset_folders
from flexunet.datasets.records import shards
from flexunet.datasets.records.features import Feature, RecordDecoder, read_features
from flexunet.datasets.records.shards import Shards
from flexunet.imaging.channels import channel_suffixes, image_features
from flexunet.imaging.label_scheme import LabelScheme
from flexunet.pipelines import record_table
from flexunet.pipelines.record_table import RecordTable

if TYPE_CHECKING:
  import grain

  from flexunet.records.torch_dataset import TorchRecords

_FOLD_SPLITS = ("train", "validation")


@dataclasses.dataclass(frozen=True, eq=False)
class RecordVolume:
  """A scan of a dataset.

  Of a dataset of slices the axes are (slice, row, column); of config `volumes` those of the scan's
  voxels, (i, j, k), and the image is in the scan's intensities.

  Attributes:
    subject, volume: Pseudonyms of the person and of the scan.
    image: uint8 [slice, row, column, channel]; of config `volumes` the stored numbers [i, j, k,
      channel], float32 where they are scaled.
    label: Class ids uint8, like a channel of `image`.
    spacing_mm: float64 [3], along the axes of `label`; NaN where unknown.
    slice_index: int32 [slices], places in the scan; empty for config `volumes`.
    affine: float64 [4, 4], (i, j, k, 1) to RAS+ mm; None for slices.
  """

  subject: str
  volume: str
  image: np.ndarray
  label: np.ndarray
  spacing_mm: np.ndarray
  slice_index: np.ndarray
  affine: np.ndarray | None = None


class Records:
  """The records of a split, a sequence: `records[i]` is a dict of the features of record i.

  Arrays may be written to. Threads and forked processes may share an object; a pickled copy, as
  processes get that are spawned, opens the files again.

  Attributes:
    path: The version folder.
    name: dataset/config/version.
    split: That of the records; with a fold, which side of it they are on.
    table: Whose each record is: subject, volume, slice_index, fold, size, as NumPy columns.
    class_names: By class id, the background first; empty where the dataset names none.
    channels: How many images a scan has, each a feature of its own.
    holds_volumes: Whether a record is a whole scan.
  """

  def __init__(
      self,
      path: pathlib.Path,
      name: str,
      split: str,
      table: RecordTable,
      decoder: RecordDecoder,
      report: Mapping[str, Any],
  ):
    """Takes what `open_records` found; it is the way to open a dataset."""
    self.path, self.name, self.split, self.table = path, name, split, table
    self.class_names = _class_names(path, report)
    self.channels = len(report.get("channel_names", ["image"]))
    self.holds_volumes = report.get("form") == "volumes"
    self._decoder, self._shards = decoder, Shards(table.files)
    self._volumes: _VolumeRows | None = None

  @property
  def features(self) -> dict[str, Feature]:
    """Those that are decoded, by name."""
    return self._decoder.features

  def __len__(self) -> int:
    return len(self.table)

  def __repr__(self) -> str:
    return f"Records({self.name}, {self.split}, {len(self)} records of {', '.join(self.features)})"

  def __getitem__(self, index: int) -> dict[str, Any]:
    row = operator.index(index)
    row += len(self) if row < 0 else 0
    if not 0 <= row < len(self):
      raise IndexError(f"record {index} of {len(self)}")
    return self._decoded(row, self._decoder)

  def _decoded(self, row: int, decoder: RecordDecoder) -> dict[str, Any]:
    shard, place = int(self.table.shard[row]), int(self.table.offset[row])
    payload = self._shards.read(shard, place)
    try:
      return decoder(payload)
    except ValueError as error:
      raise shards.damaged(self.table.files[shard], place, str(error)) from error

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, "table": _packed(self.table), "_volumes": None}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state, table=_unpacked(state["table"]))

  @property
  def subjects(self) -> list[str]:
    """The subjects of the records, each once, in the order of their first records."""
    return [name for name in dict.fromkeys(self.table.subject.tolist()) if name]

  def take(self, rows: Sequence[int] | np.ndarray) -> Records:
    """Returns some of the records only, such as `np.flatnonzero(records.table.subject == name)`.

    Args:
      rows: Their numbers, in any order; or bool [N].
    """
    taken = object.__new__(Records)
    taken.__dict__.update(self.__dict__, table=self.table.take(np.asarray(rows)), _volumes=None)
    return taken

  @property
  def num_volumes(self) -> int:
    """How many scans the records make."""
    return len(self._volume_rows.names)

  def volumes(self) -> Iterator[RecordVolume]:
    """Yields the scans, one at a time, in the order of their first records."""
    return (self.volume(number) for number in range(self.num_volumes))

  def volume(self, number: int) -> RecordVolume:
    """Returns a scan: all its records in the order of their slices.

    Args:
      number: 0..num_volumes - 1.

    Raises:
      InputError: Its slices differ in size, or the dataset has no features image and label.
    """
    made = self._volume_rows
    rows, (subject, name) = made.rows[number], made.names[number]
    if self.holds_volumes:
      return _scan(self._decoded(int(rows[0]), made.decoder), self.channels, subject, name)
    records = [self._decoded(int(row), made.decoder) for row in rows]
    sizes = {record["label"].shape[:2] for record in records}
    if len(sizes) > 1:
      raise InputError(
          f"{self.name}: the slices of volume {name} must have one size to be put together. They"
          f" have {sorted(sizes)}. Read them one by one: records[i]."
      )
    keys = image_features(self.channels)
    unknown = np.full(2, np.nan)
    return RecordVolume(
        subject, name,
        image=np.stack([np.concatenate([one[key] for key in keys], axis=-1) for one in records]),
        label=np.stack([record["label"][..., 0] for record in records]),
        spacing_mm=np.array([
            records[0].get("slice_spacing_mm", np.nan), *records[0].get("spacing_mm", unknown)
        ], np.float64),
        slice_index=self.table.slice_index[rows],
    )  # fmt: skip

  @property
  def _volume_rows(self) -> _VolumeRows:
    if self._volumes is None:
      self._volumes = _VolumeRows.of(self)
    return self._volumes

  def as_torch(self, transform: Callable[[dict[str, Any]], Any] | None = None) -> TorchRecords:
    """Returns a `torch.utils.data.Dataset` of the records, arrays as tensors.

    Args:
      transform: Changes the dict of a record, e.g. to (image, label) of one size.
    """
    # Only who trains with PyTorch needs it.
    from flexunet.records.torch_dataset import TorchRecords

    return TorchRecords(self, transform)  # type: ignore[arg-type]

  def as_grain(self) -> grain.MapDataset:
    """Returns a `grain.MapDataset` of the records, to be shuffled, mapped and batched for JAX."""
    # Only who feeds JAX by Grain needs it.
    import grain

    return grain.MapDataset.source(self)


@dataclasses.dataclass(frozen=True)
class _VolumeRows:
  """Which records make which scan, and what decodes what a scan needs of them."""

  rows: list[np.ndarray]
  names: list[tuple[str, str]]
  decoder: RecordDecoder

  @classmethod
  def of(cls, records: Records) -> _VolumeRows:
    known = read_features(records.path)
    needed = [*image_features(records.channels), "label"]
    if absent := [name for name in needed if name not in known]:
      raise InputError(
          f"{records.name} must have the feature {absent[0]!r} for volumes to be put together. It"
          f" has {', '.join(known)}."
      )
    ends = channel_suffixes(records.channels)
    scaling = [f"{part}{end}" for part in ("scale_slope", "scale_inter") for end in ends]
    others = ["spacing_mm", "slice_spacing_mm", "affine", *scaling]
    decoder = RecordDecoder(known, [*needed, *(name for name in others if name in known)])
    rows, names = record_table.volume_order(records.table)
    begins = [place for place, name in enumerate(names) if place == 0 or name != names[place - 1]]
    return cls(np.split(rows, begins[1:]), [names[place] for place in begins], decoder)


def _scan(record: dict[str, Any], channels: int, subject: str, name: str) -> RecordVolume:
  """Returns a record of config `volumes` as a volume."""
  images = []
  for end in channel_suffixes(channels):
    slope, inter = record[f"scale_slope{end}"], record[f"scale_inter{end}"]
    stored = record[f"image{end}"]
    plain = (slope, inter) == (1, 0)
    images.append(stored if plain else (stored * slope + inter).astype(np.float32))
  return RecordVolume(
      subject, name,
      image=np.stack(images, axis=-1),
      label=record["label"],
      spacing_mm=record["spacing_mm"],
      slice_index=np.zeros(0, np.int32),
      affine=record["affine"],
  )  # fmt: skip


def open_records(
    folder: str | os.PathLike,
    split: str = "train",
    *,
    dataset: str | None = None,
    features: Sequence[str] | None = None,
    fold: int | None = None,
) -> Records:
  """Opens the records of a split of a built dataset, of ours or of any other TFDS dataset.

  Args:
    folder: Version folder of the dataset, or a folder of built datasets with `dataset` in it.
    split: Name of the split.
    dataset: name[/config[/version]] below `folder`.
    features: Those to be decoded; by default all. Fewer are faster.
    fold: Divides train and validation again, as the trainer's --fold does: "train" is then all
      other folds, "validation" this fold.

  Raises:
    InputError: There is no such dataset, split, fold or feature, a shard is missing or not of its
      size, or a file beside the shards changed since the build.
  """
  path = dataset_folders.locate(dataset, pathlib.Path(folder))
  name, splits = built_dataset.check_version(path)
  known = read_features(path)
  decoder = RecordDecoder(known, features)
  wanted = [split] if fold is None else list(_FOLD_SPLITS)
  if split not in wanted:
    raise InputError(
        f"fold={fold} divides the splits {' and '.join(_FOLD_SPLITS)}. Got: split={split!r}; open"
        " it without a fold."
    )
  tables = [_table(path, name, one, splits) for one in wanted]
  if fold is not None:
    folds = [number for table in tables for number in table.fold.tolist()]
    record_table.check_fold(name, folds, fold)
    tables = list(record_table.divided_by_fold(tables[0], tables[1], fold))
  table = tables[wanted.index(split)]
  return Records(path, name, split, table, decoder, built_dataset.read_report(path))


def _table(path: pathlib.Path, name: str, split: str, splits: Sequence[str]) -> RecordTable:
  """Returns where the records of a split lie; found by their headers where no table names them."""
  if split not in splits:
    raise built_dataset.no_split(name, split, splits)
  files = built_dataset.shard_files(path, split)
  if error := shards.missing(files):
    raise error
  listing = path / built_dataset.RECORDS_NAME
  listed = listing.is_file()
  table = record_table.read(listing, split, files) if listed else record_table.scan(files)
  if not len(table):
    raise built_dataset.no_split(name, split, [one for one in splits if one != split])
  return table


def _class_names(path: pathlib.Path, report: Mapping[str, Any]) -> list[str]:
  if scheme := report.get("label_scheme"):
    return LabelScheme.from_json(scheme).names
  listed = path / "label.labels.txt"  # TFDS writes the names of the classes of a feature there.
  return listed.read_text(encoding="utf-8").split("\n")[:-1] if listed.is_file() else []


def _packed(table: RecordTable) -> dict[str, Any]:
  """Returns the columns of a table; names, which many records share, once each."""
  columns = {field.name: getattr(table, field.name) for field in dataclasses.fields(table)}
  for name in ("subject", "volume"):
    unique, number = np.unique(columns[name], return_inverse=True)
    columns[name] = unique, number.astype(np.int32)
  return columns


def _unpacked(columns: dict[str, Any]) -> RecordTable:
  names = {name: unique[number] for name in ("subject", "volume")
           for unique, number in [columns[name]]}  # fmt: skip
  return RecordTable(**{**columns, **names})
