"""Where each record lies and whose it is, as NumPy columns for order, balance and folds.

The number of a row names a slice of one split everywhere in the pipeline.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from flexunet.core.errors import InputError
from flexunet.core.files import read_table
from flexunet.datasets.builder import tfrecord
from flexunet.datasets.records import shards


@dataclasses.dataclass(frozen=True, eq=False)
class DecodedSlice:
  """A slice of a whole volume, cut when its table was made.

  Attributes:
    image: uint8 [H, W, C].
    label: uint8 [H, W].
    spacing_mm: (row, column), NaN where unknown.
    slice_spacing_mm: NaN where unknown.
  """

  image: np.ndarray
  label: np.ndarray
  spacing_mm: tuple[float, float]
  slice_spacing_mm: float


@dataclasses.dataclass(frozen=True)
class RecordTable:
  """The slices of one split: one row per record, or per slice of a record that holds a volume.

  Attributes:
    files: Shard files.
    shard: int32 [N], index into `files`.
    offset: int64 [N], where the record's frame begins in its shard; of array_record, which has no
      byte offsets, the number of the record.
    subject, volume: str [N]; empty strings for datasets built elsewhere.
    slice_index, fold: int32 [N]; -1 where unknown.
    height, width: int32 [N]; 0 where unknown.
    pixels: int64 [N, classes], labelled pixels per class; None where unknown.
    boxes: int32 [N, 4] (top, left, height, width), the part of each record that is used; sizes
      and pixels are then those of the part. None: all of it.
    decoded: `DecodedSlice` [N], of a dataset of whole volumes; None where records are slices.
    spacing_mm: (row, column, slice) float64 [N, 3], NaN where unknown, of a dataset built
      elsewhere that names its spacing; None: the records have it under our name, or not at all.
  """

  files: list[str]
  shard: np.ndarray
  offset: np.ndarray
  subject: np.ndarray
  volume: np.ndarray
  slice_index: np.ndarray
  fold: np.ndarray
  height: np.ndarray
  width: np.ndarray
  pixels: np.ndarray | None
  boxes: np.ndarray | None = None
  decoded: np.ndarray | None = None
  spacing_mm: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.offset)

  @property
  def foreground(self) -> np.ndarray:
    """Rows that hold a labelled pixel of any class but the background, int64 [M]."""
    if self.pixels is None:
      return np.zeros(0, np.int64)
    return np.flatnonzero(self.pixels[:, 1:].sum(axis=1) > 0)

  def take(self, rows: np.ndarray) -> RecordTable:
    """Returns the table of some rows only, e.g. of a fold."""
    columns = {
        field.name: value[rows]
        for field in dataclasses.fields(self)
        if field.name != "files" and (value := getattr(self, field.name)) is not None
    }
    return dataclasses.replace(self, **columns)

  def describe(self, row: int) -> str:
    """Returns which record a row is, for messages: shard name, record number, subject, slice."""
    before = (self.shard == self.shard[row]) & (self.offset < self.offset[row])
    in_shard = len(np.unique(self.offset[before]))
    text = f"record {in_shard} of {os.path.basename(self.files[self.shard[row]])}"
    if self.subject[row]:
      text += f" (subject {self.subject[row]}, slice {self.slice_index[row]})"
    return text


def volume_names(table: RecordTable) -> list[tuple[str, str]]:
  """Returns the (subject, volume) of each row; a record without a volume's name is a volume."""
  names = []
  for row, (subject, volume) in enumerate(
      zip(table.subject.tolist(), table.volume.tolist(), strict=True)
  ):
    volume = volume or f"record_{row:06d}"  # Named by its place, for want of another mark.
    names.append((subject or volume, volume))
  return names


def volume_numbers(table: RecordTable) -> np.ndarray:
  """Returns the number of each row's volume, int32 [N], from 0 in the order of their first rows."""
  names = volume_names(table)
  number = {name: position for position, name in enumerate(dict.fromkeys(names))}
  return np.array([number[name] for name in names], np.int32)


def volume_order(table: RecordTable) -> tuple[np.ndarray, list[tuple[str, str]]]:
  """Returns the rows of a table volume by volume, and the (subject, volume) of each.

  Volumes are in the order of their first record.
  """
  names = volume_names(table)
  rows = np.lexsort((table.slice_index, volume_numbers(table)))
  return rows.astype(np.int64), [names[row] for row in rows]


def concatenate(tables: Sequence[RecordTable]) -> RecordTable:
  """Returns one table of the rows of several, in order."""
  starts = np.cumsum([0, *(len(table.files) for table in tables[:-1])])
  columns: dict[str, Any] = {}
  for field in dataclasses.fields(RecordTable):
    values = [getattr(table, field.name) for table in tables]
    if field.name == "files":
      columns[field.name] = [file for files in values for file in files]
    elif field.name == "shard":
      columns[field.name] = np.concatenate([v + s for v, s in zip(values, starts, strict=True)])
    elif any(value is None for value in values):
      columns[field.name] = None
    else:
      columns[field.name] = np.concatenate(values)
  return RecordTable(**columns)


def check_fold(name: str, folds: Iterable[int], fold: int) -> None:
  """Raises InputError where a fold of a dataset leaves nothing to train on or to validate on.

  Args:
    name: That of the dataset.
    folds: Those of the records that training and validation share; -1: never validated.
    fold: That which is asked for.
  """
  known = set(folds)
  listing = ", ".join(map(str, sorted(known - {-1}))) or "none"
  if fold not in known - {-1}:
    raise InputError(f"--fold must be a fold of {name}. It has: {listing}. Got: {fold}.")
  if known == {fold}:
    raise InputError(
        f"--fold={fold} of {name} leaves nothing to train on: all subjects for training and"
        " validation are of this fold. Build the dataset from more subjects, or leave out --fold."
    )


def divided_by_fold(
    train: RecordTable, validation: RecordTable, fold: int
) -> tuple[RecordTable, RecordTable]:
  """Returns what a run on a fold trains on and validates on: two splits, divided again."""
  both = concatenate([train, validation])
  inside = both.fold == fold
  return both.take(np.flatnonzero(~inside)), both.take(np.flatnonzero(inside))


def read(listing: pathlib.Path, split: str, files: Sequence[str]) -> RecordTable:
  """Reads the rows of one split of `records.csv`.

  Args:
    listing: The file.
    split: Name of the split.
    files: Its shards.

  Raises:
    InputError: It is damaged, or names other shards.
  """
  listed = read_table(listing, ["split"])
  pixel_columns = [name for name in (listed[0] if listed else ()) if name.startswith("pixels_")]
  rows = [row for row in listed if row["split"] == split]
  shard_of = {os.path.basename(file): index for index, file in enumerate(files)}

  def integers(name: str, dtype: type = np.int32) -> np.ndarray:
    return np.array([int(row[name] or -1) for row in rows], dtype)

  try:
    shard = np.array([shard_of[row["shard"]] for row in rows], np.int32)
    offset = integers("offset", np.int64)
    if (offset < 0).any():  # A container without byte offsets: a record is found by its number.
      offset = integers("record", np.int64)
      _check_counts(files, shard)
    else:
      _check_sizes(files, shard, offset + integers("length", np.int64) + tfrecord.FRAME_BYTES)
    return RecordTable(
        files=list(files),
        shard=shard,
        offset=offset,
        subject=np.array([row["subject"] for row in rows], str),
        volume=np.array([row["volume"] for row in rows], str),
        slice_index=integers("slice_index"),
        fold=integers("fold"),
        height=integers("height"),
        width=integers("width"),
        pixels=np.array([[int(row[name]) for name in pixel_columns] for row in rows], np.int64)
        if pixel_columns
        else None,
    )
  except InputError:
    raise
  except (KeyError, TypeError, ValueError, OverflowError) as error:
    raise InputError(
        f"{listing} must list the records of this dataset, but it cannot be read: {error}. Build"
        " the dataset again."
    ) from error


def _check_sizes(files: Sequence[str], shard: np.ndarray, record_end: np.ndarray) -> None:
  """Refuses shards that are longer or shorter than the end of their last record."""
  expected = np.zeros(len(files), np.int64)
  np.maximum.at(expected, shard, record_end)
  for file, size in zip(files, expected.tolist(), strict=True):
    if (found := os.path.getsize(file)) != size:
      raise InputError(
          f"{file} must have {size} bytes, as the table of its records says. It has {found}. Build"
          " or copy the dataset again."
      )


def _check_counts(files: Sequence[str], shard: np.ndarray) -> None:
  """Refuses array_record shards that hold more or fewer records than the table says."""
  listed = np.bincount(shard, minlength=len(files))
  for file, wanted in zip(files, listed.tolist(), strict=True):
    if (found := sum(1 for _ in shards.places(file))) != wanted:
      raise InputError(
          f"{file} must have {wanted} records, as the table of its records says. It has {found}."
          " Build or copy the dataset again."
      )


def scan(files: Sequence[str]) -> RecordTable:
  """Finds the records of shards by their headers alone; payloads are not read."""
  found = [list(shards.places(file)) for file in files]
  shard = [index for index, places in enumerate(found) for _ in places]
  offset = [place for places in found for place in places]
  count = len(offset)
  unknown = np.full(count, -1, np.int32)
  empty = np.full(count, "", str)
  zero = np.zeros(count, np.int32)
  return RecordTable(
      files=list(files),
      shard=np.array(shard, np.int32),
      offset=np.array(offset, np.int64),
      subject=empty,
      volume=empty,
      slice_index=unknown,
      fold=unknown,
      height=zero,
      width=zero,
      pixels=None,
  )
