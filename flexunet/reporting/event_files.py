"""Event files of TensorBoard that name neither the machine nor a path, and that can be continued.

TensorFlow's own writers put the name of the host into that of the file. What a killed process had
written past its last checkpoint is removed when the run is resumed: a curve never goes back.
"""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from tensorboard.plugins.hparams import summary_v2

_PATTERN = "events.out.tfevents.*"
_HPARAMS = "_hparams_/"  # How the tags of TensorBoard's plug-in begin.
_FLUSH_S = 10.0
_Summary = tf.compat.v1.Summary
_Scalar = tf.compat.v1.SummaryMetadata(
    plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
)
_Image = tf.compat.v1.SummaryMetadata(
    plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="images")
)
_FLOAT = tf.float32.as_datatype_enum
_TensorProto = type(tf.make_tensor_proto(0.0))


class EventFile:
  """Adds to the events of a folder, which TensorBoard shows as one run."""

  def __init__(self, folder: pathlib.Path, step: int = 0):
    """Opens a new file; events of earlier ones that lie after a step are removed.

    Args:
      folder: Made where it does not exist.
      step: The step at which writing continues.
    """
    folder.mkdir(parents=True, exist_ok=True)
    continued = remove_later(folder, step)
    # The name that TensorFlow gives has the host in it.
    name = f"events.out.tfevents.{time.time():.0f}.{os.getpid()}.{continued}.v2"
    self._writer = tf.io.TFRecordWriter(os.fspath(folder / name))
    self._flushed = time.monotonic()
    self._add(file_version="brain.Event:2")
    if continued:  # A TensorBoard that is running forgets what was removed.
      start = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
      self._add(session_log=start, step=step + 1)

  def scalars(self, values: Mapping[str, float], step: int) -> None:
    """Adds figures by their tags, as one event."""
    self._add(step=step, summary=_Summary(value=[
        _Summary.Value(
            tag=tag, metadata=_Scalar, tensor=_TensorProto(dtype=_FLOAT, float_val=[value])
        )
        for tag, value in values.items()
    ]))  # fmt: skip

  def image(self, tag: str, png: bytes, step: int) -> None:
    """Adds an image that is encoded already."""
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    tensor = tf.make_tensor_proto([str(width).encode(), str(height).encode(), png])
    value = _Summary.Value(tag=tag, metadata=_Image, tensor=tensor)
    self._add(step=step, summary=_Summary(value=[value]))

  def hyperparameters(self, values: Mapping[str, bool | float | str]) -> None:
    """Adds what the tab HPARAMS lists for this run."""
    made = summary_v2.hparams_pb(dict(values))
    # The same message, of TensorBoard's own copy of the definitions.
    self._add(summary=_Summary.FromString(made.SerializeToString()))

  def graph(self, definition: tf.compat.v1.GraphDef) -> None:
    """Adds a graph."""
    self._add(graph_def=definition.SerializeToString())

  def flush(self, at_least_s: float = 0.0) -> None:
    """Puts all on the disk that was added, unless that was done less than some seconds ago."""
    now = time.monotonic()
    if now - self._flushed >= at_least_s:
      self._writer.flush()
      self._flushed = now

  def flush_now_and_then(self) -> None:
    """Puts all on the disk every ten seconds."""
    self.flush(_FLUSH_S)

  def _add(self, **fields: Any) -> None:
    event = tf.compat.v1.Event(wall_time=time.time(), **fields)
    self._writer.write(event.SerializeToString())


def remove_later(folder: pathlib.Path, step: int) -> int:
  """Removes the events after a step, and hyperparameters, which a resumed run writes again.

  A record that a killed process was still writing goes too.

  Returns:
    How many files there were.
  """
  paths = sorted(folder.glob(_PATTERN))
  for path in paths:
    partial = path.with_name(f".{path.name}")
    kept = left_out = 0
    with tf.io.TFRecordWriter(os.fspath(partial)) as writer:
      try:
        for record in tf.data.TFRecordDataset(os.fspath(path)).as_numpy_iterator():
          if _is_kept(tf.compat.v1.Event.FromString(record), step):
            writer.write(record)
            kept += 1
          else:
            left_out += 1
      except tf.errors.OpError:
        left_out += 1
    if left_out and kept > 1:  # The first one says which version the file has.
      os.replace(partial, path)
    else:
      partial.unlink()
    if kept <= 1:
      path.unlink()
  return len(paths)


def _is_kept(event: tf.compat.v1.Event, step: int) -> bool:
  if event.step > step or event.HasField("session_log"):
    return False
  return not any(value.tag.startswith(_HPARAMS) for value in event.summary.value)
