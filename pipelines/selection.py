"""Which records a run trains on, which it validates on, and which it draws more often."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flexunet.core.errors import InputError
from flexunet.pipelines import dataset_source, readers, record_table
from flexunet.pipelines.dataset_source import DatasetSource
from flexunet.pipelines.record_table import RecordTable


def split_tables(
    source: DatasetSource, train_split: str, validation_split: str, fold: int | None
) -> tuple[RecordTable, RecordTable]:
  """Returns the tables to train on and to validate on.

  Without a fold they are the two splits. With one, both splits are put together and divided again
  by the fold of the subject; the test split stays out of it.

  Raises:
    InputError: Both splits are the same, a split is unknown, or the dataset has no such fold.
  """
  if train_split == validation_split:
    raise InputError(
        f"--validation_split must differ from --train_split. Both are {train_split!r}: a score on"
        " slices that were trained on means nothing."
    )
  splits = [readers.slice_table(source, split) for split in (train_split, validation_split)]
  if fold is None:
    return splits[0], splits[1]
  both = record_table.concatenate(splits)
  dataset_source.check_fold(source.name, both.fold.tolist(), fold)
  inside = both.fold == fold
  return both.take(np.flatnonzero(~inside)), both.take(np.flatnonzero(inside))


def pools(table: RecordTable, *, by_class: bool) -> tuple[np.ndarray, ...]:
  """Returns the row sets, int64 [n] each, that balanced places of a batch are drawn from.

  One pool of all rows with foreground, or one per foreground class, which then take turns, so
  that a rare class is seen as often as a common one. None is empty.

  Raises:
    InputError: No row has foreground, or it is unknown which have.
  """
  if table.pixels is None or not len(table.foreground):
    raise InputError(
        "--foreground_fraction needs slices with foreground in the training split; there are none"
        " or they are not listed (records.csv). Pass --foreground_fraction=0."
    )
  if not by_class:
    return (table.foreground,)
  per_class: Sequence[np.ndarray] = [
      np.flatnonzero(table.pixels[:, class_id] > 0) for class_id in range(1, table.pixels.shape[1])
  ]
  return tuple(rows for rows in per_class if len(rows))
