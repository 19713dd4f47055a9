"""From a record row to one example at the network's size: what a cache would keep."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Protocol

import numpy as np

from flexunet.datasets.errors import InputError
from flexunet.pipelines import cropping, parallel
from flexunet.pipelines.reading import RecordReader

if TYPE_CHECKING:
  import tensorflow as tf

  from flexunet.pipelines.record_table import RecordTable
  from flexunet.pipelines.resizing import Resizing
  from flexunet.pipelines.source import DatasetSource


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

  @property
  def stored_channels(self) -> int:
    """Channels a cache keeps: repeated grey is repeated after the cache."""
    return self.image_channels if self.context_slices else 1


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
    import tensorflow as tf

    self.spec, self.num_rows, self.boxes = spec, len(table), table.boxes
    self._reader = RecordReader(source.info.features, table, spec.image_key, spec.label_key)
    check_slices(source, spec.image_key)
    self.channels = self._channels_of(source.info.features[spec.image_key].shape[-1])
    self._neighbours = None
    if spec.context_slices:
      self._neighbours = tf.constant(neighbour_rows(table, spec.context_slices))

  def _channels_of(self, stored: int | None) -> int:
    """Returns the channels a loaded example has: colour stays where the network takes it."""
    if self.spec.context_slices:
      return self.spec.image_channels
    return stored if stored == self.spec.image_channels else 1

  def __call__(self, row: tf.Tensor) -> dict[str, tf.Tensor]:
    return self.example(self.serialized(row), row)

  def serialized(self, row: tf.Tensor) -> tf.Tensor:
    """Row -> the bytes of its record."""
    return self._reader.serialized(row)

  def example(self, serialized: tf.Tensor, row: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
    """The bytes of a record -> the example; the row is needed for neighbours and boxes alone."""
    import tensorflow as tf

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
    told = ["image and label differ in size", tf.shape(image), tf.shape(label)]
    with tf.control_dependencies([tf.debugging.Assert(same, told)]):
      image = tf.identity(image)
    image, label = resized_pair(self.spec, self.boxes, row, image, label)
    return {"image": image, "label": tf.cast(label, tf.uint8)}

  def find_corrupt(self) -> list[int]:
    """Reads and decodes every record; returns the rows that cannot be."""
    import tensorflow as tf

    readable = parallel.untuned(
        tf.data.Dataset.range(self.num_rows)
        .map(lambda row: (row, self(row)), num_parallel_calls=parallel.default_threads())
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
  import tensorflow as tf

  if boxes is not None:
    box = tf.gather(tf.constant(boxes, tf.int32), row)
    image, label = cropping.crop(image, box), cropping.crop(label, box)
  image = spec.resizing.apply_image(image[None])[0]
  return image, spec.resizing.apply_label(label[None])[0, ..., 0]


def neighbour_rows(table: RecordTable, reach: int) -> np.ndarray:
  """Returns int64 [N, 2 * reach + 1]: rows of the slices around each row in its volume.

  Slices that were left out of the dataset and the ends of a volume are replaced by the nearest
  slice on the way, so that a channel always holds what lies next in that direction.
  """
  out = np.repeat(np.arange(len(table))[:, None], 2 * reach + 1, axis=1)
  by_volume: dict[tuple[str, str], list[int]] = {}
  for row in range(len(table)):
    by_volume.setdefault((table.subject[row], table.volume[row]), []).append(row)
  for rows in by_volume.values():
    ordered = np.array(sorted(rows, key=lambda row: table.slice_index[row]))
    for offset in range(-reach, reach + 1):
      places = np.clip(np.arange(len(ordered)) + offset, 0, len(ordered) - 1)
      out[ordered, offset + reach] = ordered[places]
  return out.astype(np.int64)


def to_channels(image: tf.Tensor, channels: int) -> tf.Tensor:
  """[..., C] -> [..., channels]: equal stays, grey is repeated, colour becomes grey first."""
  import tensorflow as tf

  have = image.shape[-1]
  if have == channels:
    return image
  if have == 3:
    image = tf.image.rgb_to_grayscale(image)
  elif have != 1:
    raise InputError(
        f"Images must have 1 or 3 channels, or --image_channels={have}. Got {have} channels and"
        f" --image_channels={channels}."
    )
  return tf.repeat(image, channels, axis=-1) if channels > 1 else image
