"""From a row of a table to its slice: as stored, or at the network's size as a cache keeps it.

Records are read by where they lie, inside the tf.data graph: no Python in the hot path. A whole
volume (config `volumes`) cannot be read a slice at a time, so all volumes of a split are decoded
once, at their own resolution, and kept in memory as uint8, cut as config `slices` cuts them. What
does not fit is refused: config `slices` streams.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from flexunet.core import machine, progress
from flexunet.core.errors import InputError
from flexunet.imaging.slice_recipe import SliceRecipe
from flexunet.pipelines import foreground_crop, record_table, tf_data
from flexunet.pipelines.dataset_source import DatasetSource
from flexunet.pipelines.record_table import DecodedSlice, RecordTable
from flexunet.pipelines.resizing import Resizing, to_channels

_MEMORY_SHARE = 0.5
# row int64 -> {"image": uint8 [H, W, C], "label": uint8 [H, W, 1]} at native resolution
NativeReader = Callable[[tf.Tensor], dict[str, tf.Tensor]]


@contextlib.contextmanager
def named_record(table: RecordTable, row: int | Callable[[], int]) -> Iterator[None]:
  """Turns what TensorFlow raises of a damaged record in the block into an InputError.

  Args:
    table: Holds the record.
    row: Its row, or what returns it when it has been raised.
  """
  try:
    yield
  except (tf.errors.DataLossError, tf.errors.InvalidArgumentError, tf.errors.OutOfRangeError,
          tf.errors.UnknownError) as error:  # fmt: skip
    named = table.describe(row if isinstance(row, int) else row())
    raise InputError(
        f"Every record must be readable, but {named} cannot be. Build or copy the dataset again;"
        " flexunet verify names all such records."
    ) from error


class RecordReader:
  """Maps a record row to its decoded image and label."""

  def __init__(
      self,
      features: tfds.features.FeaturesDict,
      table: RecordTable,
      image_keys: Sequence[str],
      label_key: str | None,
  ):
    """Takes the TFDS features of the dataset and the table of one split.

    Args:
      features: Those of the dataset.
      table: Its records.
      image_keys: Features that become the channels of the image, in this order.
      label_key: Feature of the label; None: it is not read.
    """
    for key in (*image_keys, label_key):
      if key is not None and key not in features:
        raise InputError(f"The dataset has the features {', '.join(features)}. Got: {key!r}.")
    self._features = features
    self._image_keys, self._label_key = list(image_keys), label_key
    self._read = tf_data.record_reader(table.files, table.shard, table.offset)

  @tf_data.plain_graph
  def serialized(self, row: tf.Tensor) -> tf.Tensor:
    """Row int64 -> the record's bytes; damage is an error of TensorFlow (`named_record`)."""
    return self._read(row)

  def image(self, row: tf.Tensor) -> tf.Tensor:
    """Row -> image uint8 [H, W, channels] alone, without decoding its label."""
    return self._joined(self._decoded(self.serialized(row), self._image_keys))

  def _joined(self, example: dict[str, tf.Tensor]) -> tf.Tensor:
    """Returns the channels of an example as one image."""
    if len(self._image_keys) == 1:
      return example[self._image_keys[0]]
    return tf.concat([example[key] for key in self._image_keys], axis=-1)

  def decode(self, serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    """Record -> {"image": uint8 [H, W, channels], "label": uint8 [H, W, 1]}."""
    keys = [*self._image_keys, *([] if self._label_key is None else [self._label_key])]
    example = self._decoded(serialized, keys)
    decoded = {"image": self._joined(example)}
    if self._label_key is not None:
      decoded["label"] = example[self._label_key]
    return decoded

  def _decoded(self, serialized: tf.Tensor, keys: list[str]) -> dict[str, tf.Tensor]:
    partial = tfds.decode.PartialDecoding(dict.fromkeys(keys, True))
    return partial.extract_features(self._features).deserialize_example(serialized)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleSpec:
  """What every example of a run looks like.

  Attributes:
    resizing: To the network's input size.
    image_channels: Channels of the network's input; grey images are repeated.
    context_slices: Neighbours on each side that become channels (2.5-D): the channels are then
      2 * context_slices + 1 grey slices, lowest index first, the ends of a volume repeated.
    image_key, label_key: Features of the dataset.
  """

  resizing: Resizing
  image_channels: int = 1
  context_slices: int = 0
  image_key: str = "image"
  label_key: str = "label"

  def __post_init__(self):
    wanted = 2 * self.context_slices + 1
    if self.context_slices and self.image_channels != wanted:
      raise InputError(
          f"--context_slices={self.context_slices} makes {wanted} channels: --image_channels must"
          f" be {wanted}. Got: {self.image_channels}."
      )


class Loader(Protocol):
  """What reads the rows of a table, whatever the form of the dataset."""

  spec: ExampleSpec
  num_rows: int
  channels: int
  boxes: np.ndarray | None

  def __call__(self, row: tf.Tensor) -> dict[str, tf.Tensor]: ...

  def find_corrupt(self) -> list[int]: ...


class ExampleLoader:
  """Row of a table -> {"image": uint8 [h, w, C], "label": uint8 [h, w]}, inside a tf.data graph."""

  def __init__(self, source: DatasetSource, table: RecordTable, spec: ExampleSpec):
    self.spec, self.num_rows, self.boxes = spec, len(table), table.boxes
    keys = source.image_keys(spec.image_key)
    self._reader = RecordReader(source.info.features, table, keys, spec.label_key)
    check_slices(source, spec.image_key)
    of_one = source.info.features[spec.image_key].shape[-1]
    self.channels = self._channels_of(len(keys) if len(keys) > 1 else of_one)
    self._neighbours = None
    if spec.context_slices:
      self._neighbours = tf.constant(neighbour_rows(table, spec.context_slices))

  def _channels_of(self, stored: int | None) -> int:
    """Returns the channels a loaded example has: colour stays where the network takes it."""
    if self.spec.context_slices:
      return self.spec.image_channels
    return stored if stored == self.spec.image_channels else 1

  @tf_data.plain_graph
  def __call__(self, row: tf.Tensor) -> dict[str, tf.Tensor]:
    return self.example(self.serialized(row), row)

  def serialized(self, row: tf.Tensor) -> tf.Tensor:
    """Row -> the bytes of its record."""
    return self._reader.serialized(row)

  def example(self, serialized: tf.Tensor, row: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
    """The bytes of a record -> the example; the row is needed for neighbours and boxes alone."""
    decoded = self._reader.decode(serialized)
    if self._neighbours is None:
      image = to_channels(decoded["image"], self.channels)
    else:
      rows = tf.unstack(tf.gather(self._neighbours, row))
      middle = len(rows) // 2
      slices = [
          decoded["image"] if place == middle else self._reader.image(other)
          for place, other in enumerate(rows)
      ]
      image = tf.concat([to_channels(slice_, 1) for slice_ in slices], axis=-1)
    label = decoded["label"]
    # A label of another size would be shifted silently by the resizing.
    same = tf.reduce_all(tf.shape(image)[:2] == tf.shape(label)[:2])
    shown = ["image and label differ in size", tf.shape(image), tf.shape(label)]
    with tf.control_dependencies([tf.debugging.Assert(same, shown)]):
      image = tf.identity(image)
    image, label = resized_pair(self.spec, self.boxes, row, image, label)
    return {"image": image, "label": tf.cast(label, tf.uint8)}

  def find_corrupt(self) -> list[int]:
    """Reads and decodes every record; returns the rows that cannot be."""
    readable = tf_data.untuned(
        tf.data.Dataset.range(self.num_rows)
        .map(lambda row: (row, self(row)), num_parallel_calls=tf_data.default_threads())
        .map(lambda row, _: row)
        .ignore_errors()
    )
    return sorted(set(range(self.num_rows)) - {int(row) for row in readable})


def check_slices(source: DatasetSource, image_key: str) -> None:
  """Refuses a feature that is no slice [H, W, C]."""
  shape = source.info.features[image_key].shape
  if len(shape) != 3:
    raise InputError(
        f"Feature {image_key!r} of {source.name} must be slices [H, W, C]. It has the shape"
        f" {shape}. Build the dataset with its config 'slices', or name the feature of the"
        " slices by --image_key."
    )


def resized_pair(
    spec: ExampleSpec, boxes: np.ndarray | None, row: tf.Tensor, image: tf.Tensor, label: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
  """[H, W, C] and [H, W, 1] of a row -> its box of both, [h, w, C] and [h, w]."""
  if boxes is not None:
    box = tf.gather(tf.constant(boxes, tf.int32), row)
    image, label = foreground_crop.crop(image, box), foreground_crop.crop(label, box)
  image = spec.resizing.apply_image(image[None])[0]
  return image, spec.resizing.apply_label(label[None])[0, ..., 0]


def neighbour_rows(table: RecordTable, reach: int) -> np.ndarray:
  """Returns int64 [N, 2 * reach + 1]: rows of the slices around each row in its volume.

  Slices that were left out of the dataset and the ends of a volume are replaced by the nearest
  slice on the way, so that a channel always holds what lies next in that direction. Rows may be
  parts of one slice (tiles); of another slice any row will do.
  """
  out = np.repeat(np.arange(len(table))[:, None], 2 * reach + 1, axis=1)
  by_volume: dict[tuple[str, str], list[int]] = {}
  for row in range(len(table)):
    by_volume.setdefault((table.subject[row], table.volume[row]), []).append(row)
  record = list(zip(table.slice_index, table.shard, table.offset, strict=True))
  for rows in by_volume.values():
    ordered = sorted({record[row]: row for row in reversed(rows)}.items())
    place_of = {key: place for place, (key, _) in enumerate(ordered)}
    one_of = np.array([row for _, row in ordered])
    own = np.array([place_of[record[row]] for row in rows])
    for offset in range(-reach, reach + 1):
      out[rows, offset + reach] = one_of[np.clip(own + offset, 0, len(one_of) - 1)]
  return out.astype(np.int64)


def slice_table(source: DatasetSource, split: str) -> RecordTable:
  """Returns the slices of a split: its records, or those that its whole volumes are cut into."""
  records = source.records(split)
  return _cut_volumes(source, split, records) if source.holds_volumes else records


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
  splits = [slice_table(source, split) for split in (train_split, validation_split)]
  if fold is None:
    return splits[0], splits[1]
  folds = [number for table in splits for number in table.fold.tolist()]
  record_table.check_fold(source.name, folds, fold)
  return record_table.divided_by_fold(splits[0], splits[1], fold)


def _cut_volumes(source: DatasetSource, split: str, records: RecordTable) -> RecordTable:
  """Decodes every volume of a split and cuts it by the dataset's own plan.

  Args:
    records: One row per volume.
  """
  recipe = source.recipe
  if recipe is None:
    raise InputError(
        f"{source.name}: its build_report.json must state slice_plan and intensity. Build the"
        " dataset again."
    )
  reader = RecordReader(source.info.features, records, ("image",), "label")
  limit, used = _MEMORY_SHARE * machine.free_main_memory(), 0
  volume_of: list[int] = []
  index_of: list[int] = []
  decoded: list[DecodedSlice] = []
  for row in progress.bar(
      range(len(records)), desc=f"volumes of {split}", unit="volume", delay=3.0, leave=False
  ):
    with named_record(records, row):
      slices = _slices_of_volume(source, recipe, reader, row)
    used += sum(one.image.size + one.label.size for one in slices)
    if used > limit:
      raise InputError(
          f"Split {split!r} of {source.name} holds over {limit / 2**20:.0f} MiB of slices, half"
          " of the free memory. Build the dataset with its config 'slices', which is streamed."
      )
    volume_of += [row] * len(slices)
    index_of += range(len(slices))
    decoded += slices
  scheme = source.label_scheme()
  pixels = [scheme.count(one.label) for one in decoded]
  cells = np.empty(len(decoded), object)
  cells[:] = decoded
  return dataclasses.replace(
      records.take(np.array(volume_of, np.int64)),
      slice_index=np.array(index_of, np.int32),
      height=np.array([one.image.shape[0] for one in decoded], np.int32),
      width=np.array([one.image.shape[1] for one in decoded], np.int32),
      pixels=np.array(pixels, np.int64),
      decoded=cells,
  )


def _slices_of_volume(
    source: DatasetSource, recipe: SliceRecipe, reader: RecordReader, row: int
) -> list[DecodedSlice]:
  """Returns the slices of one record of config `volumes`, first to last."""
  serialized = reader.serialized(tf.constant(row, tf.int64)).numpy()
  record = source.info.features.deserialize_example_np(serialized)
  cut = recipe.cut_record(record)
  if cut.label is None:
    raise ValueError(f"{source.name}: a record of whole volumes has a label.")
  row_mm, column_mm = cut.slices.spacing_mm
  images = cut.images()
  return [
      DecodedSlice(
          image=np.ascontiguousarray(images[index]),
          label=np.ascontiguousarray(cut.label[..., index]),
          spacing_mm=(float(row_mm), float(column_mm)),
          slice_spacing_mm=float(cut.slices.slice_spacing_mm),
      )
      for index in range(cut.slices.pixels.shape[-1])
  ]


def sampled_spacing_mm(
    source: DatasetSource, table: RecordTable, sample: int = 64
) -> tuple[np.ndarray, np.ndarray]:
  """Returns some rows spread over a table, int64 [N], and their (row, column) spacing [N, 2].

  NaN where unknown. Unreadable records are skipped here; training reports them.
  """
  rows = np.unique(np.linspace(0, len(table) - 1, min(sample, len(table))).astype(np.int64))
  if table.decoded is not None:
    return rows, np.array([table.decoded[row].spacing_mm for row in rows]).reshape(-1, 2)
  if table.spacing_mm is not None:
    return rows, table.spacing_mm[rows, :2]
  if "spacing_mm" not in source.info.features:
    return rows, np.full((len(rows), 2), np.nan)
  reader = RecordReader(source.info.features, table, ("spacing_mm",), None)
  read, found = [], []
  for row in rows:
    with contextlib.suppress(tf.errors.OpError):
      found.append(np.ravel(reader.image(int(row)))[:2])
      read.append(row)
  return np.array(read, np.int64), np.array(found, np.float64).reshape(-1, 2)


class VolumeSliceLoader:
  """Row of a table of cut volumes -> example, as `ExampleLoader` is for records of slices."""

  def __init__(self, table: RecordTable, slices: np.ndarray, spec: ExampleSpec):
    self._slices = slices
    self.spec, self.num_rows, self.boxes = spec, len(table), table.boxes
    of_one = slices[0].image.shape[-1] if len(slices) else 1
    self.channels = of_one * (2 * spec.context_slices + 1)
    reach = spec.context_slices
    self._neighbours = neighbour_rows(table, reach) if reach else None

  def __call__(self, row: tf.Tensor) -> dict[str, tf.Tensor]:
    image, label = tf.numpy_function(self._slice, [row], (tf.uint8, tf.uint8))
    image.set_shape((None, None, self.channels))
    label.set_shape((None, None, 1))
    image, label = resized_pair(self.spec, self.boxes, row, image, label)
    return {"image": image, "label": label}

  def find_corrupt(self) -> list[int]:
    """Everything was decoded already: a damaged volume has been refused."""
    return []

  def _slice(self, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = [row] if self._neighbours is None else self._neighbours[row]
    image = np.concatenate([self._slices[other].image for other in rows], axis=-1)
    return image, self._slices[row].label[..., None]


def _decoded_reader(slices: np.ndarray) -> NativeReader:
  """Returns row -> {"image", "label"}, uint8 [H, W, C] and [H, W, 1], inside a tf.data graph."""
  channels = slices[0].image.shape[-1] if len(slices) else 1

  def stored(row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    one = slices[row]
    return one.image, one.label[..., None]

  def read_row(row: tf.Tensor) -> dict[str, tf.Tensor]:
    image, label = tf.numpy_function(stored, [row], (tf.uint8, tf.uint8))
    image.set_shape((None, None, channels))
    label.set_shape((None, None, 1))
    return {"image": image, "label": label}

  return read_row


def native_reader(
    source: DatasetSource, table: RecordTable, image_key: str, label_key: str
) -> NativeReader:
  """Returns what reads rows of `table`, a table of `source`, inside a tf.data graph.

  Raises:
    InputError: The dataset has no such features, or its images are no slices.
  """
  if table.decoded is not None:
    return _decoded_reader(table.decoded)
  reader = RecordReader(source.info.features, table, source.image_keys(image_key), label_key)
  check_slices(source, image_key)

  @tf_data.plain_graph
  def read_row(row: tf.Tensor) -> dict[str, tf.Tensor]:
    return reader.decode(reader.serialized(row))

  return read_row
