"""Reads single records of a table as they are stored, whatever their dataset looks like."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from flexunet.pipelines import loading, volume_slices
from flexunet.pipelines.reading import RecordReader

if TYPE_CHECKING:
  import tensorflow as tf

  from flexunet.pipelines.record_table import RecordTable
  from flexunet.pipelines.source import DatasetSource

# row int64 -> {"image": uint8 [H, W, C], "label": uint8 [H, W, 1]} at native resolution
NativeReader = Callable[["tf.Tensor"], "dict[str, tf.Tensor]"]


def native_reader(
    source: DatasetSource, table: RecordTable, image_key: str, label_key: str
) -> NativeReader:
  """Returns what reads rows of `table`, a table of `source`, inside a tf.data graph.

  Raises:
    InputError: The dataset has no such features, or its images are no slices.
  """
  if volume_slices.is_volumes(source):
    return volume_slices.native_reader(source, table)
  reader = RecordReader(source.info.features, table, image_key, label_key)
  loading.check_slices(source, image_key)
  return lambda row: reader.decode(reader.serialized(row))
