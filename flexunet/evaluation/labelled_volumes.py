"""Volumes of a built dataset, reassembled from the records of their slices.

Where a build has resampled the scans, their slices lie on its grid; `on_native_grid` returns to
that of the scan, whose labels are kept in the records.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from flexunet.datasets.builder import native_labels
from flexunet.datasets.builder.native_labels import NativeSlices
from flexunet.imaging import slice_recipe
from flexunet.imaging.label_scheme import IGNORED
from flexunet.pipelines import tf_data
from flexunet.pipelines.dataset_source import DatasetSource
from flexunet.pipelines.readers import RecordReader, named_record
from flexunet.pipelines.record_table import RecordTable, volume_order

_OTHERS = (
    "spacing_mm", "slice_spacing_mm", native_labels.LABEL, native_labels.SLICE_INDEX,
    native_labels.SPACING_MM,
)  # fmt: skip


@dataclasses.dataclass(eq=False)
class LabelledVolume:
  """The slices of one volume, in order.

  Attributes:
    subject: Pseudonym of the person; that of the volume where the dataset names no subjects.
    volume: Pseudonym of the scan; named after the record where the dataset names no volumes.
    slice_index: Position of each slice in the volume.
    images: uint8 [H, W, channels] each.
    labels: uint8 [H, W] each.
    spacing_mm: (row, column), NaN where unknown.
    slice_spacing_mm: NaN where unknown.
    native: What each slice holds of the scan's own grid; empty where nothing is kept of it.
    ignored: bool [H, W] each, pixels that are not counted and background in `labels`; empty where
      the dataset ignores none.
  """

  subject: str
  volume: str
  slice_index: list[int]
  images: list[np.ndarray]
  labels: list[np.ndarray]
  spacing_mm: tuple[float, float]
  slice_spacing_mm: float
  native: list[NativeSlices] = dataclasses.field(default_factory=list)
  ignored: list[np.ndarray] = dataclasses.field(default_factory=list)

  def add_label(self, label: np.ndarray, ignores: bool) -> None:
    """Takes the label of the next slice, uint8 [H, W], which may hold `IGNORED`."""
    if ignores:
      self.ignored.append(label == IGNORED)
      label = np.where(self.ignored[-1], 0, label).astype(np.uint8)
    self.labels.append(label)

  @property
  def keeps_native_labels(self) -> bool:
    """Whether the labels of the scan's own grid are known."""
    return any(own.labels for own in self.native)

  def on_native_grid(self) -> LabelledVolume:
    """Returns the volume on the scan's own grid; itself where nothing is kept of that.

    Labels are those of the scan, images are picked from the resampled ones.
    """
    if not self.keeps_native_labels:
      return self
    row_mm, column_mm, slice_mm = self.native[0].spacing_mm
    volume = LabelledVolume(
        self.subject,
        self.volume,
        slice_index=[own.slice_index + n for own in self.native for n in range(len(own.labels))],
        images=[
            picked for place, image in enumerate(self.images)
            for picked in self.to_native_grid(place, image)
        ],
        labels=[],
        spacing_mm=(row_mm, column_mm),
        slice_spacing_mm=slice_mm,
    )  # fmt: skip
    for own in self.native:
      for label in own.labels:
        volume.add_label(label, ignores=bool(self.ignored))
    return volume

  def to_native_grid(self, place: int, values: np.ndarray) -> Iterator[np.ndarray]:
    """Yields values on a slice as they stand on the slices of the scan to which it is the nearest.

    As prediction brings labels back to a scan (`SliceRecipe.restore`). The values themselves,
    once, where nothing is kept of the scan's own grid.

    Args:
      place: Of the slice in `images`.
      values: [H, W, ...] on that slice.
    """
    if not self.keeps_native_labels:
      yield values
      return
    for label in self.native[place].labels:
      pairs = zip(values.shape[:2], label.shape, strict=True)
      yield values[np.ix_(*(slice_recipe.nearest(*pair) for pair in pairs))]

  @property
  def has_gaps(self) -> bool:
    """Whether slices are missing between the first and the last one, or stand twice."""
    return bool(set(np.diff(self.slice_index)) - {1})

  @property
  def is_solid(self) -> bool:
    """Whether the slices form a volume: more than one, of one size, none missing."""
    one_size = len({label.shape for label in self.labels}) == 1
    return len(self.labels) > 1 and one_size and not self.has_gaps

  @property
  def distances(self) -> str:
    """How surface distances are measured: "3d", "2d" or "none"."""
    if not np.isfinite(self.spacing_mm).all():
      return "none"
    return "3d" if self.is_solid and np.isfinite(self.slice_spacing_mm) else "2d"

  @property
  def axes_mm(self) -> tuple[float, ...]:
    """The spacing along each axis in which surfaces are compared; () where they are not."""
    across = {"3d": (self.slice_spacing_mm,), "2d": ()}
    kind = self.distances
    return (*across[kind], *self.spacing_mm) if kind in across else ()


def read_volumes(
    source: DatasetSource, table: RecordTable, keys: tuple[str, str] = ("image", "label")
) -> Iterator[LabelledVolume]:
  """Yields the volumes of a table at native resolution, slices in order of their index.

  Args:
    source: The opened dataset.
    table: Its records to be read.
    keys: Features of the image and of the label.
  """
  if table.decoded is not None:
    yield from _decoded_volumes(table, table.decoded, source.ignores)
    return
  rows, names = volume_order(table)
  ignores = source.ignores
  image_key, label_key = keys
  image_keys = source.image_keys(image_key)
  reader = RecordReader(source.info.features, table, image_keys, label_key)
  read = (*image_keys, label_key, *_OTHERS)
  wanted = {key: True for key in read if key in source.info.features}
  features = tfds.decode.PartialDecoding(wanted).extract_features(source.info.features)
  records = tf_data.untuned(
      tf.data.Dataset.from_tensor_slices(rows)
      .map(
          tf_data.plain_graph(lambda row: features.deserialize_example(reader.serialized(row))),
          num_parallel_calls=tf_data.default_threads(),
          deterministic=True,
      )
      .prefetch(16)
  )
  volume: LabelledVolume | None = None
  for row, (subject, name), record in zip(
      rows, names, _named(records, table, rows), strict=True
  ):
    if volume is None or (subject, name) != (volume.subject, volume.volume):
      if volume is not None:
        yield volume
      spacing = np.asarray(record.get("spacing_mm", (np.nan, np.nan)), float)
      between = float(record.get("slice_spacing_mm", np.nan))
      if table.spacing_mm is not None:
        *spacing, measured = table.spacing_mm[row].tolist()
        between = measured if np.isnan(between) else between
      volume = LabelledVolume(
          subject, name, [], [], [],
          spacing_mm=(spacing[0], spacing[1]),
          slice_spacing_mm=between,
      )  # fmt: skip
    volume.slice_index.append(int(table.slice_index[row]))
    volume.images.append(np.concatenate([record[key] for key in image_keys], axis=-1))
    volume.add_label(record[label_key][..., 0], ignores)
    if (native := native_labels.decode(record)) is not None:
      volume.native.append(native)
  if volume is not None:
    yield volume


def _named(
    records: tf.data.Dataset, table: RecordTable, rows: np.ndarray
) -> Iterator[dict[str, Any]]:
  """Yields the decoded records of some rows; one that cannot be read is named."""
  done = itertools.count()
  with named_record(table, lambda: int(rows[next(done)])):
    for record in records.as_numpy_iterator():
      yield record
      next(done)


def _decoded_volumes(
    table: RecordTable, decoded: np.ndarray, ignores: bool
) -> Iterator[LabelledVolume]:
  """Yields the volumes of a table of config `volumes`, whose slices are in memory already."""
  rows, names = volume_order(table)
  for name in dict.fromkeys(names):
    own = [row for row, other in zip(rows, names, strict=True) if other == name]
    slices = [decoded[row] for row in own]
    volume = LabelledVolume(
        *name,
        slice_index=[int(table.slice_index[row]) for row in own],
        images=[one.image for one in slices],
        labels=[],
        spacing_mm=slices[0].spacing_mm,
        slice_spacing_mm=slices[0].slice_spacing_mm,
    )
    for one in slices:
      volume.add_label(one.label, ignores)
    yield volume
