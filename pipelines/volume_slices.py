"""Slices out of a dataset of whole volumes (config `volumes`), cut as config `slices` cuts them.

A volume cannot be read a slice at a time, so all volumes of a split are decoded once, at their
own resolution, and kept in memory as uint8. What does not fit is refused: config `slices` streams.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from flexunet.datasets import progress
from flexunet.datasets.errors import InputError
from flexunet.datasets.intensity import IntensityWindow
from flexunet.datasets.slicing import SlicePlan
from flexunet.datasets.volume import Volume
from flexunet.pipelines import caching, loading
from flexunet.pipelines.record_table import RecordTable

if TYPE_CHECKING:
  import tensorflow as tf

  from flexunet.pipelines.source import DatasetSource

_MEMORY_SHARE = 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class NativeSlices:
  """All slices of a split at native resolution; row r of `table` is entry r of the lists.

  Attributes:
    table: One row per slice; `offset` is the entry, so that a part of the table finds its slices.
    images, labels: uint8 [H, W] each.
    spacing_mm: (row, column) of each slice, NaN where unknown.
    slice_spacing_mm: Of each slice.
  """

  table: RecordTable
  images: list[np.ndarray]
  labels: list[np.ndarray]
  spacing_mm: list[tuple[float, float]]
  slice_spacing_mm: list[float]


def is_volumes(source: DatasetSource) -> bool:
  return source.report.get("form") == "volumes"


def read(source: DatasetSource, split: str, records: RecordTable) -> NativeSlices:
  """Decodes every volume of a split and cuts it by the dataset's own plan.

  Args:
    records: One row per volume.
  """
  import tensorflow as tf

  from flexunet.pipelines.reading import RecordReader

  if source.slice_plan is None or source.intensity is None:
    raise InputError(f"{source.name}: its build_report.json must tell slice_plan and intensity.")
  plan, window = SlicePlan(**source.slice_plan), IntensityWindow(**source.intensity)
  reader = RecordReader(source.info.features, records, "image", "label")
  features = source.info.features
  images: list[np.ndarray] = []
  labels: list[np.ndarray] = []
  columns: list[tuple] = []
  spacings: list[tuple[float, float]] = []
  gaps: list[float] = []
  num_classes = source.label_scheme().num_classes
  limit, used = _MEMORY_SHARE * caching.free_main_memory(), 0
  bar = progress.bar(range(len(records)), desc=f"volumes of {split}", unit="volume", delay=3.0,
                  leave=False)  # fmt: skip
  for row in bar:
    record = features.deserialize_example_np(reader.serialized(tf.constant(row, tf.int64)).numpy())
    oriented = bool(record["oriented"])
    scaled = record["image"] * record["scale_slope"] + record["scale_inter"]
    cut = plan.extract(Volume(window.to_uint8(scaled), record["affine"], oriented))
    label = plan.extract(Volume(record["label"], record["affine"], oriented)).pixels
    used += 2 * cut.pixels.size
    if used > limit:
      raise InputError(
          f"Split {split!r} of {source.name} holds over {limit / 2**20:.0f} MiB of slices, half"
          " of the free memory. Build the dataset with its config 'slices', which is streamed."
      )
    for index in range(cut.pixels.shape[-1]):
      images.append(np.ascontiguousarray(cut.pixels[..., index]))
      labels.append(np.ascontiguousarray(label[..., index]))
      counts = np.bincount(labels[-1].ravel(), minlength=num_classes)
      columns.append((records.subject[row], records.volume[row], index, records.fold[row], counts))
      # A source without a stated spacing has unit steps in its affine; the record says NaN.
      known = np.isfinite(record["spacing_mm"]).all()
      row_mm, column_mm = cut.spacing_mm if known else (np.nan, np.nan)
      spacings.append((float(row_mm), float(column_mm)))
      gaps.append(float(cut.slice_spacing_mm) if known else float("nan"))
  subject, volume, slice_index, fold, pixels = zip(*columns, strict=True)
  count = len(images)
  table = RecordTable(
      files=records.files,
      shard=np.zeros(count, np.int32),
      offset=np.arange(count, dtype=np.int64),
      subject=np.array(subject, str),
      volume=np.array(volume, str),
      slice_index=np.array(slice_index, np.int32),
      fold=np.array(fold, np.int32),
      height=np.array([image.shape[0] for image in images], np.int32),
      width=np.array([image.shape[1] for image in images], np.int32),
      pixels=np.array(pixels, np.int64),
  )
  return NativeSlices(table, images, labels, spacings, gaps)


class VolumeSliceLoader:
  """What `loading.ExampleLoader` is for slices: row -> example at the network's size."""

  def __init__(self, source: DatasetSource, table: RecordTable, spec: loading.ExampleSpec):
    self._places = _places(source, table)
    self.spec, self.num_rows, self.boxes = spec, len(table), table.boxes
    self.channels = spec.stored_channels
    reach = spec.context_slices
    self._neighbours = loading.neighbour_rows(table, reach) if reach else None

  def __call__(self, row: tf.Tensor) -> dict[str, tf.Tensor]:
    import tensorflow as tf

    image, label = tf.numpy_function(self._slice, [row], (tf.uint8, tf.uint8))
    image.set_shape((None, None, self.channels))
    label.set_shape((None, None, 1))
    image, label = loading.resized_pair(self.spec, self.boxes, row, image, label)
    return {"image": image, "label": label}

  def find_corrupt(self) -> list[int]:
    """Everything was decoded already: a damaged volume has been refused."""
    return []

  def _slice(self, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = [row] if self._neighbours is None else self._neighbours[row]
    places = [self._places[other] for other in rows]
    image = np.stack([native.images[entry] for native, entry in places], axis=-1)
    native, entry = self._places[row]
    return image, native.labels[entry][..., None]


def native_reader(source: DatasetSource, table: RecordTable):
  """Returns row -> {"image", "label"}, uint8 [H, W, 1] each, inside a tf.data graph."""
  import tensorflow as tf

  places = _places(source, table)

  def stored(row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    native, entry = places[row]
    return native.images[entry][..., None], native.labels[entry][..., None]

  def read_row(row: tf.Tensor) -> dict[str, tf.Tensor]:
    image, label = tf.numpy_function(stored, [row], (tf.uint8, tf.uint8))
    image.set_shape((None, None, 1))
    label.set_shape((None, None, 1))
    return {"image": image, "label": label}

  return read_row


def _places(source: DatasetSource, table: RecordTable) -> list[tuple[NativeSlices, int]]:
  """Returns the slices and the entry in them of each row."""
  # A table of folds holds rows of several splits; the first shard's name tells which.
  native_of = {source.filepaths(split)[0]: source.native_slices(split) for split in source.read}
  return [
      (native_of[table.files[shard]], int(entry))
      for shard, entry in zip(table.shard, table.offset, strict=True)
  ]
