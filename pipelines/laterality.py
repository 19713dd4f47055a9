"""Finds classes that are labelled on one side of the body only, from the labels themselves.

Some datasets label one of two organs that look alike, such as the left hippocampus alone. Nothing
in the class names tells, and a mirrored copy would teach that the other one is meant.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from flexunet.pipelines.dataset_source import DatasetSource
from flexunet.pipelines.record_table import RecordTable

# Of fewer subjects a lesion may well be on the same side by chance. Three of three happen once in
# four times; then a run goes without mirror images, which costs little. Mirror images where sides
# matter cost most of the score.
_FEWEST_SUBJECTS = 3
_MOST_SUBJECTS, _SLICES_EACH = 24, 4
# Of the labelled pixels of a subject; the rest may be a label's ragged edge.
_CLEAR_SHARE = 0.95


def one_sided_classes(
    source: DatasetSource,
    table: RecordTable,
    class_names: Sequence[str],
    image_key: str = "image",
    label_key: str = "label",
) -> tuple[str, ...]:
  """Returns the foreground classes that lie on the same side in every subject looked at.

  Sides are those of the picture, left and right of the middle of what is bright in it. Looks at
  up to 4 slices of 24 subjects; a record that cannot be read is passed over. A dataset that does
  not state subjects or pixels per class gives nothing.

  Args:
    source: The dataset that gave the table.
    table: Of native records, boxes or not.
    class_names: By class id, background first.
    image_key, label_key: Features of the dataset.
  """
  rows = _spread_rows(table)
  if not len(rows):
    return ()
  counted = _sides(source, table, image_key, label_key, rows)
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
    source: DatasetSource, table: RecordTable, image_key: str, label_key: str, rows: np.ndarray
) -> list[tuple[int, np.ndarray]]:
  """Returns (row, int64 [256, 2] pixels left and right of the middle by class id)."""
  # `names_sides` is asked by configs, which must not load TensorFlow.
  import tensorflow as tf

  from flexunet.pipelines import readers, tf_data

  read = readers.native_reader(source, table, image_key, label_key)

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


def names_sides(names: Sequence[str]) -> bool:
  """Tells whether class names speak of sides: left, right, or a pair such as part_1, part_2."""
  lowered = [name.lower() for name in names]
  if any(re.search(r"(^|[^a-z])(left|right|l|r|lh|rh)([^a-z]|$)", name) for name in lowered):
    return True
  return any(
      name.endswith("1") and name[:-1][-1:] in ("_", "-", " ") and f"{name[:-1]}2" in lowered
      for name in lowered
  )
