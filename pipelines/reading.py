"""Reads single records by where they lie, inside the tf.data graph: no Python in the hot path."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from flexunet.datasets.errors import InputError

if TYPE_CHECKING:
  import tensorflow as tf

  from flexunet.pipelines.record_table import RecordTable

# One read call for most slices; a longer record costs further calls, a shorter one wasted bytes.
_READ_BYTES = 1 << 16


class RecordReader:
  """Maps a record row to its decoded image and label."""

  def __init__(self, features, table: RecordTable, image_key: str, label_key: str | None):
    """Takes the TFDS features of the dataset and the table of one split."""
    import tensorflow as tf

    for key in (image_key, label_key):
      if key is not None and key not in features:
        raise InputError(f"The dataset has the features {', '.join(features)}. Got: {key!r}.")
    self._features = features
    self._image_key, self._label_key = image_key, label_key
    self._files = tf.constant(np.asarray(table.files, str))
    self._shard = tf.constant(table.shard, tf.int32)
    self._offset = tf.constant(table.offset, tf.int64)

  def serialized(self, row: tf.Tensor) -> tf.Tensor:
    """Row int64 -> the record's bytes; a wrong checksum is a DataLossError."""
    import tensorflow as tf

    file = tf.gather(self._files, tf.gather(self._shard, row))
    variant = tf.raw_ops.TFRecordDatasetV2(
        filenames=[file],
        compression_type="",
        buffer_size=tf.constant(_READ_BYTES, tf.int64),
        byte_offsets=[tf.gather(self._offset, row)],
    )
    records = tf.data.experimental.from_variant(variant, tf.TensorSpec((), tf.string))
    return records.take(1).get_single_element()

  def image(self, row: tf.Tensor) -> tf.Tensor:
    """Row -> image uint8 [H, W, channels] alone, without decoding its label."""
    return self._decoded(self.serialized(row), [self._image_key])[self._image_key]

  def decode(self, serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    """Record -> {"image": uint8 [H, W, channels], "label": uint8 [H, W, 1]}."""
    keys = [key for key in (self._image_key, self._label_key) if key is not None]
    example = self._decoded(serialized, keys)
    decoded = {"image": example[self._image_key]}
    if self._label_key is not None:
      decoded["label"] = example[self._label_key]
    return decoded

  def _decoded(self, serialized: tf.Tensor, keys: list[str]) -> dict[str, tf.Tensor]:
    import tensorflow_datasets as tfds

    partial = tfds.decode.PartialDecoding(dict.fromkeys(keys, True))
    return partial.extract_features(self._features).deserialize_example(serialized)
