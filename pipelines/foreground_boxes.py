"""Finds the boxes of all volumes of a dataset, and which labels lie outside them."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from flexunet.core import progress
from flexunet.core.errors import InputError
from flexunet.imaging.label_scheme import IGNORED
from flexunet.pipelines import foreground_crop, tf_data
from flexunet.pipelines.dataset_source import DatasetSource
from flexunet.pipelines.readers import NativeReader, native_reader
from flexunet.pipelines.record_table import RecordTable, volume_numbers

# A share of all labelled pixels; beyond it the rule does not suit the images.
MAX_LOST_SHARE = 0.001
_NAMED_VOLUMES = 10


@dataclasses.dataclass(frozen=True, eq=False)
class CropResult:
  """Tables whose records are cut to their boxes, and what that costs.

  Attributes:
    tables: As given, with boxes; sizes and pixel counts are those inside them.
    frame_pixels, kept_pixels: Pixels of all images, before and after.
    labelled_pixels: Labelled pixels of all images, before.
    lost: Volume -> labelled pixels outside its box, where there are any.
    slices_missing: Slices of these volumes that were left out when the dataset was built.
  """

  tables: list[RecordTable]
  frame_pixels: int = 0
  kept_pixels: int = 0
  labelled_pixels: int = 0
  lost: dict[str, int] = dataclasses.field(default_factory=dict)
  slices_missing: int = 0

  def messages(self) -> list[str]:
    """Returns what the user should know, one line each.

    Raises:
      InputError: More labelled pixels would be lost than `MAX_LOST_SHARE`.
    """
    kept = 100 * self.kept_pixels / max(1, self.frame_pixels)
    lines = [f"--crop_foreground keeps {kept:.0f} % of the pixels."]
    if self.slices_missing:
      lines.append(
          f"Warning: {self.slices_missing} slices were left out by their labels in the dataset's"
          " build. Boxes follow from those that are there; in prediction they follow from the whole"
          " scan and may be larger. Build the dataset with --empty_slices=keep to have them equal."
      )
    if not self.lost:
      return lines
    ranked = sorted(self.lost.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{name} ({count} pixels)" for name, count in ranked[:_NAMED_VOLUMES])
    if len(ranked) > _NAMED_VOLUMES:
      named += f" and {len(ranked) - _NAMED_VOLUMES} volumes more"
    total = sum(self.lost.values())
    percent = 100 * total / self.labelled_pixels
    share = f"{total} of {self.labelled_pixels} labelled pixels ({percent:.2g} %)"
    if total > MAX_LOST_SHARE * self.labelled_pixels:
      raise InputError(
          f"--crop_foreground must keep all but {100 * MAX_LOST_SHARE:g} % of the labelled pixels,"
          f" but {share} lie in what it takes for air: {named}. Leave it out for these images."
      )
    lines.append(
        f"Warning: --crop_foreground cuts off {share}: {named}. They are not trained on, and are"
        " predicted as background."
    )
    return lines


def crop_tables(
    source: DatasetSource,
    tables: Sequence[RecordTable],
    image_key: str = "image",
    label_key: str = "label",
) -> CropResult:
  """Finds the boxes of all volumes in one pass over the records, and which labels lie outside.

  Unreadable records are skipped here; training reports them.

  Args:
    source: The dataset that gave the tables.
    tables: Of native records, volumes whole. A record that states no volume is one alone.
    image_key, label_key: Features of the dataset.
  """
  parts = [_crop_table(source, table, image_key, label_key) for table in tables]
  lost: collections.Counter[str] = collections.Counter()
  for part in parts:
    lost.update(part.lost)
  return CropResult(
      tables=[part.tables[0] for part in parts],
      frame_pixels=sum(part.frame_pixels for part in parts),
      kept_pixels=sum(part.kept_pixels for part in parts),
      labelled_pixels=sum(part.labelled_pixels for part in parts),
      lost=dict(lost),
      slices_missing=sum(
          sum(reasons.values())
          for volume, reasons in source.report.get("slices_left_out", {}).items()
          if any(volume in table.volume for table in tables)
      ),
  )


def _crop_table(
    source: DatasetSource, table: RecordTable, image_key: str, label_key: str
) -> CropResult:
  native = native_reader(source, table, image_key, label_key)
  volume = volume_numbers(table)
  left = np.bincount(volume)
  making: dict[int, foreground_crop.VolumeBox] = {}
  found: dict[int, np.ndarray | None] = {}
  frames = np.stack([table.height, table.width], axis=-1).astype(np.int64)
  spans = np.zeros((len(table), 4), np.int32)
  labelled = np.zeros(len(table), np.int64)
  for row, profile, span, count in _measured(native, len(table), source.ignores):
    frames[row] = len(profile.rows), len(profile.columns)
    spans[row], labelled[row] = span, count
    own = int(volume[row])
    making.setdefault(own, foreground_crop.VolumeBox()).add(profile)
    left[own] -= 1
    if not left[own]:  # Images that are volumes of their own must not pile up.
      found[own] = making.pop(own).box()
  found.update({own: unfinished.box() for own, unfinished in making.items()})
  boxes = np.concatenate([np.zeros_like(frames), frames], axis=-1).astype(np.int32)
  for row, own in enumerate(volume):
    if (box := found.get(int(own))) is not None:
      boxes[row] = box
  areas, kept = frames.prod(axis=1), boxes[:, 2:].astype(np.int64).prod(axis=1)
  pixels = table.pixels
  if pixels is not None:  # What is cut away is background; rows with a label there follow below.
    pixels = pixels.copy()
    pixels[:, 0] = np.maximum(pixels[:, 0] - (areas - kept), 0)
  lost: collections.Counter[str] = collections.Counter()
  outside = np.flatnonzero((labelled > 0) & _reaches_out(spans, boxes))
  for row, inside in pixels_inside(native, outside, boxes):
    counted = inside[1:IGNORED] if source.ignores else inside[1:]
    if missing := int(labelled[row] - counted.sum()):
      lost[_name(table, row)] += missing
    if pixels is not None:
      pixels[row] = inside[: pixels.shape[1]]
  cropped = dataclasses.replace(
      table, boxes=boxes, height=boxes[:, 2], width=boxes[:, 3], pixels=pixels
  )
  return CropResult([cropped], int(areas.sum()), int(kept.sum()), int(labelled.sum()), dict(lost))


def _name(table: RecordTable, row: int) -> str:
  subject, volume = str(table.subject[row]), str(table.volume[row])
  if not volume:
    return table.describe(row)
  return volume if subject in ("", volume) else f"{subject}/{volume}"


def _measured(
    native: NativeReader, count: int, ignores: bool
) -> Iterator[tuple[int, foreground_crop.Profile, np.ndarray, int]]:
  """Yields (row, profile, span of its label, labelled pixels) of each record that can be read."""
  limit = tf.constant(IGNORED, tf.uint8)

  @tf_data.plain_graph
  def measure(row):
    decoded = native(row)
    label = decoded["label"][..., 0]
    there = (label > 0) & (label < limit) if ignores else label > 0
    profile = tuple(foreground_crop.brightness_profile(decoded["image"]))
    return row, profile, _span(there), tf.math.count_nonzero(there)

  measured = tf_data.untuned(
      tf.data.Dataset.range(count)
      .map(measure, num_parallel_calls=tf_data.default_threads())
      .ignore_errors()
      .prefetch(16)
  )
  bar = progress.bar(
      measured.as_numpy_iterator(), total=count, desc="finding the foreground", unit="slice",
      delay=3.0, leave=False,
  )  # fmt: skip
  for row, parts, span, labelled in bar:
    yield int(row), foreground_crop.Profile(*parts), span, int(labelled)


def _span(there: tf.Tensor) -> tf.Tensor:
  """bool [H, W] -> int32 (top, left, bottom, right) around what is True."""
  firsts, ends = [], []
  for axis in (1, 0):
    line = tf.cast(tf.reduce_any(there, axis=axis), tf.int32)
    firsts.append(tf.argmax(line, output_type=tf.int32))
    ends.append(tf.size(line) - tf.argmax(line[::-1], output_type=tf.int32))
  return tf.stack(firsts + ends)


def _reaches_out(spans: np.ndarray, boxes: np.ndarray) -> np.ndarray:
  """Returns which spans (top, left, bottom, right) leave their boxes, bool [N]."""
  before = (spans[:, :2] < boxes[:, :2]).any(axis=1)
  return before | (spans[:, 2:] > boxes[:, :2] + boxes[:, 2:]).any(axis=1)


def pixels_inside(
    native: NativeReader, rows: np.ndarray, boxes: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
  """Yields (row, pixels inside its box by class id, int32 [256]) of some rows.

  Args:
    native: Reads rows of a table.
    rows: int64 [N].
    boxes: int32 [rows of the table, 4] (top, left, height, width).
  """

  @tf_data.plain_graph
  def count(row):
    label = native(row)["label"][..., 0]
    inside = tf.cast(foreground_crop.crop(label, tf.gather(boxes, row)), tf.int32)
    return row, tf.math.bincount(tf.reshape(inside, [-1]), minlength=256, maxlength=256)

  counted = tf.data.Dataset.from_tensor_slices(rows.astype(np.int64)).map(
      count, num_parallel_calls=tf_data.default_threads()
  )
  for row, counts in tf_data.untuned(counted).as_numpy_iterator():
    yield int(row), counts
