"""Laterality: whether images may be mirrored left to right, decided once for each run.

A mirrored image teaches wrong labels where class names tell left from right, where only one of two
organs that look alike is labelled (the left hippocampus alone: nothing in the names says so), and
where no body has that mirror image, across sagittal slices. The run's config keeps the decision:
training and prediction read it from there.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
  from flexunet.pipelines.dataset_source import DatasetSource
  from flexunet.pipelines.readers import NativeReader
  from flexunet.pipelines.record_table import RecordTable

# Of fewer subjects a lesion may well be on the same side by chance. Three of three happen once in
# four times; then a run goes without mirror images, which costs little. Mirror images where sides
# matter cost most of the score.
_FEWEST_SUBJECTS = 3
_MOST_SUBJECTS, _SLICES_EACH = 24, 4
# Of the labelled pixels of a subject; the rest may be a label's ragged edge.
_CLEAR_SHARE = 0.95
# Numbers that a dataset, or this project for want of names, gives its classes: they say no side.
_NUMBERED = ("class", "label", "id")


@dataclasses.dataclass(frozen=True)
class Laterality:
  """Whether images may be mirrored left to right.

  Attributes:
    mirroring: Whether training may mirror images, and prediction may average over mirrored ones.
    reason: What speaks against it; with `mirroring`, what the user has overruled. Empty: nothing.
  """

  mirroring: bool = True
  reason: str = ""


def decide(
    class_names: Sequence[str],
    *,
    plane: str | None = None,
    requested: float | None = None,
    find_one_sided: Callable[[], Sequence[str]] = tuple,
) -> Laterality:
  """Returns the one decision on mirror images.

  Args:
    class_names: By class id, background first.
    plane: Plane of the slices; None where it is not known.
    requested: --flip_horizontal_probability, None where it was not given. Above 0 it overrules.
    find_one_sided: Returns the classes that are labelled on one side in every subject; called
      only where names and plane leave the question open.
  """
  reason = ""
  if names_sides(class_names):
    reason = "the class names tell left from right"
  elif plane == "sagittal":
    reason = "slices are sagittal, and no body has front and back exchanged"
  elif found := find_one_sided():
    reason = f"{' and '.join(found)} lies on one side of the image in every subject examined"
  return Laterality(mirroring=not reason or bool(requested), reason=reason)


def against_rotation(decided: Laterality, plane: str | None) -> str:
  """Returns what speaks against predicting slices that are turned by 90 degrees; "": nothing.

  A half turn of an axial or coronal slice is no mirror image, but it puts the left of the body
  where its right was: a network that knows sides by their place in the image names them wrongly,
  and the label comes back on the wrong side. A quarter turn leaves it no side to go by. In sagittal
  slices left and right lie along the normal, which such a turn leaves alone.

  Args:
    decided: The run's decision on mirror images.
    plane: Plane of its slices; None where it is not known.
  """
  return "" if decided.mirroring or plane == "sagittal" else decided.reason


def decide_for(
    source: DatasetSource,
    table: RecordTable,
    class_names: Sequence[str],
    *,
    requested: float | None = None,
    image_key: str = "image",
    label_key: str = "label",
) -> Laterality:
  """Returns the decision on a dataset, whose labels are examined where its names leave it open.

  Args:
    source: The dataset that gave the table.
    table: The slices to examine.
    class_names: By class id, background first.
    requested: As in `decide`.
    image_key, label_key: Features of the dataset.
  """
  return decide(
      class_names,
      plane=source.slice_plan["plane"] if source.slice_plan else None,
      requested=requested,
      find_one_sided=lambda: one_sided_classes(source, table, class_names, image_key, label_key),
  )


def names_sides(names: Sequence[str]) -> bool:
  """Returns whether class names speak of sides: left, right, lh, or a pair such as part_1, part_2.

  A pair of bare numbers, class_1 and class_2, speaks of none.
  """
  lowered = [name.lower() for name in names]
  if any(re.search(r"(^|[^a-z])(left|right|l|r|lh|rh)([^a-z]|$)", name) for name in lowered):
    return True
  stems = [match[1] for name in lowered if (match := re.fullmatch(r"(.*?)[\W_]+\d+", name))]
  return any(stems.count(stem) > 1 for stem in stems if stem not in _NUMBERED)


def one_sided_classes(
    source: DatasetSource,
    table: RecordTable,
    class_names: Sequence[str],
    image_key: str = "image",
    label_key: str = "label",
) -> tuple[str, ...]:
  """Returns the foreground classes that lie on the same side in every subject examined.

  Sides are those of the image, left and right of the middle of what is bright in it. Examines up
  to 4 slices of 24 subjects; unreadable records are skipped. A dataset that does not state
  subjects or pixels per class gives nothing.

  Args:
    source: The dataset that gave the table.
    table: Its slices, with or without boxes.
    class_names: By class id, background first.
    image_key, label_key: Features of the dataset.
  """
  rows = _spread_rows(table)
  if not len(rows):
    return ()
  counted = _sides(source, table, (image_key, label_key), rows)
  subjects = np.array([str(table.subject[row]) for row, _ in counted])
  counts = np.array([sides for _, sides in counted]).reshape(len(counted), 256, 2)
  found = []
  for label, name in enumerate(class_names):
    by_subject = [counts[subjects == one, label].sum(axis=0) for one in np.unique(subjects)]
    seen = [pair for pair in by_subject if pair.sum()]
    shares = np.array([pair[0] / pair.sum() for pair in seen])
    one_side = (shares >= _CLEAR_SHARE).all() or (shares <= 1 - _CLEAR_SHARE).all()
    if label and len(seen) >= _FEWEST_SUBJECTS and one_side:
      found.append(name)
  return tuple(found)


def _spread_rows(table: RecordTable) -> np.ndarray:
  """Returns rows with foreground, int64, spread over subjects and over their slices."""
  foreground = table.foreground
  subjects = table.subject[foreground]
  names = [name for name in np.unique(subjects).tolist() if name]
  if len(names) < _FEWEST_SUBJECTS:
    return np.zeros(0, np.int64)
  chosen = []
  for name in _spread(names, _MOST_SUBJECTS):
    chosen.extend(_spread(foreground[subjects == name].tolist(), _SLICES_EACH))
  return np.array(chosen, np.int64)


def _spread(items: list, most: int) -> list:
  """Returns at most so many items, evenly from first to last."""
  where = np.linspace(0, len(items) - 1, min(most, len(items)))
  return [items[index] for index in np.unique(where.round().astype(int))]


def _sides(
    source: DatasetSource, table: RecordTable, keys: tuple[str, str], rows: np.ndarray
) -> list[tuple[int, np.ndarray]]:
  """Returns (row, int64 [256, 2] pixels left and right of the middle by class id)."""
  # Here alone: a run's config holds the decision, and reading a config must not load TensorFlow.
  import tensorflow as tf

  from flexunet.pipelines import readers, tf_data

  read: NativeReader = readers.native_reader(source, table, *keys)

  @tf_data.plain_graph
  def count(row):
    decoded = read(row)
    label = tf.cast(decoded["label"][..., 0], tf.int32)
    mass = tf.reduce_sum(tf.cast(decoded["image"], tf.float32), axis=(0, 2))
    columns = tf.range(tf.size(mass), dtype=tf.float32)
    empty = tf.reduce_max(mass) <= 0
    mass = tf.where(empty, tf.ones_like(mass), mass)
    right = columns > tf.reduce_sum(mass * columns) / tf.reduce_sum(mass)
    halves = [tf.boolean_mask(label, side, axis=1) for side in (~right, right)]
    counts = [
        tf.math.bincount(tf.reshape(half, [-1]), minlength=256, maxlength=256) for half in halves
    ]
    return row, tf.stack(counts, axis=-1)

  counted = tf_data.untuned(
      tf.data.Dataset.from_tensor_slices(rows)
      .map(count, num_parallel_calls=tf_data.default_threads())
      .ignore_errors()
  )
  return [(int(row), np.asarray(sides)) for row, sides in counted.as_numpy_iterator()]
