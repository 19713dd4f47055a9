"""What a user sees while a run trains: the progress line, history.csv, curves and previews.

In history.csv `foreground_dice` and `dice_<class>` count the pixels of all slices of an epoch
together, and so does `val_pooled_foreground_dice` those of the validation. Scores whose names begin
with `val_` are otherwise means over the held-out volumes, as an evaluation reports them, but at the
network's size; `val_foreground_dice` chooses the best model. TensorBoard shows every figure of
history.csv, the previews, and the graph.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import pathlib
import shutil
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from flexunet import config, run_folder
from flexunet.core import files, progress
from flexunet.core.errors import InputError
from flexunet.imaging.label_scheme import LabelScheme
from flexunet.network import probabilities
from flexunet.reporting import charts, overlay, sheets, training_section
from flexunet.training import callbacks

# Constants above this size lose their values in the graph: weights would make it as large as the
# model. Variables are inputs of the graph and have none.
_LARGEST_CONSTANT = 1024
_COLUMNS = 80
_SHORT = {callbacks.MONITOR: "val_dice", "foreground_dice": "dice"}


class ProgressLine(keras.callbacks.Callback):
  """One live line on standard error, and a lasting one for each epoch that was validated."""

  def __init__(self, clock: callbacks.RunClock):
    super().__init__()
    self._clock = clock
    self._bar: Any = None
    self._figures: dict[str, float] = {}

  def on_train_begin(self, logs=None):
    if self._bar is None:  # A run may call `fit` more than once.
      self._bar = progress.bar(
          bar_format="{desc}", desc="Preparing the first step.", leave=False, miniters=0
      )

  def on_train_batch_end(self, batch, logs=None):
    self._figures |= logs or {}
    if self._bar is not None:
      self._bar.set_description_str(self.text(), refresh=False)
      self._bar.update()

  def on_epoch_end(self, epoch, logs=None):
    self._figures |= logs or {}
    if callbacks.MONITOR in (logs or {}):
      seconds = _clock_text(self._clock.elapsed_s)
      progress.say(f"{self._text_of('val_loss', 'foreground_dice')}  after {seconds}")

  def text(self) -> str:
    """Returns the live line, in at most 80 columns."""
    text, left_s = self._text_of(), self._clock.left_s
    if left_s is not None:
      text += f"  {_clock_text(left_s)} left"
    # A line that fills the last column would be wrapped.
    return text[: min(_COLUMNS, shutil.get_terminal_size().columns - 1)]

  def _text_of(self, *more: str) -> str:
    names = (callbacks.MONITOR, *more[:1], "loss", *more[1:])
    parts = [f"{_SHORT.get(name, name)} {_figure(self._figures.get(name))}" for name in names]
    return "  ".join([*parts, self._clock.epoch_text()])

  def close(self) -> None:
    """Removes the live line."""
    if self._bar is not None:
      self._bar.close()
      self._bar = None


def _figure(value: float | None) -> str:
  return "-" if value is None else f"{value:.3f}"


def _clock_text(seconds: float) -> str:
  """Returns h:mm:ss, or m:ss below an hour."""
  minutes, seconds_left = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds_left:02}" if hours else f"{minutes}:{seconds_left:02}"


class History(callbacks.RunCallback):
  """Writes history.csv and curves.png after each epoch, one row per epoch.

  The row of an epoch that a time limit cut short stands at the part of it that was done, e.g. 1.4,
  once the epoch has been continued.
  """

  _STATE = ("rows",)

  def __init__(self, run: run_folder.RunFolder, clock: callbacks.RunClock):
    super().__init__()
    self._run, self._clock = run, clock
    self.rows: list[dict[str, Any]] = []

  def on_epoch_end(self, epoch, logs=None):
    row = {
        "epoch": epoch + 1,
        "step": self._clock.step,
        "seconds": round(self._clock.elapsed_s, 1),
        "learning_rate": float(
            keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        ),
        **{name: float(value) for name, value in (logs or {}).items()},
    }
    for before in self.rows:
      # A time limit cut the epoch short and a longer one has continued it: scored twice.
      if before["epoch"] == row["epoch"]:
        before["epoch"] = round(self._clock.epochs_at(before["step"]), 3)
    self.rows.append(row)
    self.write()

  def write(self) -> None:
    """Replaces both files."""
    names = list(dict.fromkeys(name for row in self.rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(self.rows)
    files.write_bytes(self._run.history_csv, text.getvalue().encode())
    files.write_bytes(self._run.curves_png, draw_curves(self.rows))


def draw_curves(rows: Sequence[dict[str, Any]]) -> bytes:
  """Returns curves.png: the charts that the report draws of history.csv, side by side."""
  drawn = training_section.history_charts(rows)
  return overlay.encode_png(charts.image(drawn, columns=2 if len(drawn) == 4 else 3))


class Previews(keras.callbacks.Callback):
  """Draws image, truth and prediction of a few slices after the first epoch and each validation."""

  def __init__(
      self,
      run: run_folder.RunFolder,
      images: np.ndarray,
      labels: np.ndarray,
      scheme: LabelScheme,
      network: keras.Model | None = None,
      shown_channel: int | None = None,
      slice_index: Sequence[int] = (),
  ):
    """Takes the slices, which are few.

    Args:
      run: Where the sheets go.
      images: uint8 [N, h, w, channels].
      labels: Class ids, uint8 [N, h, w].
      scheme: Names and colours of the classes.
      network: Predicts; the one in training by default.
      shown_channel: Which channel is drawn; None: the mean of all.
      slice_index: Position of each slice in its volume; empty where unknown.
    """
    super().__init__()
    self._run = run
    self._shown_channel = shown_channel
    self._images, self._labels = images, labels
    self._view = sheets.View.of_scheme(scheme)
    self._slice_index = slice_index
    self._network = network

  def on_epoch_end(self, epoch, logs=None):
    # The first epoch too: a wrong label shows at once.
    if epoch and callbacks.MONITOR not in (logs or {}):
      return
    predicted = predict_labels(self._network or self.model, self._images)
    tiles = []
    for place, slices in enumerate(zip(self._images, self._labels, predicted, strict=True)):
      tiles += self._tiles(*slices, place)
    sheet = sheets.contact_sheet(
        tiles, columns=6 if len(tiles) > 3 else 3, tile_size=256, legend=self._view.legend
    )
    files.write_bytes(self._run.preview_png(epoch), overlay.encode_png(sheet))

  def _tiles(
      self, image: np.ndarray, truth: np.ndarray, guess: np.ndarray, place: int
  ) -> list[sheets.Tile]:
    """Returns a slice alone, and with its true and its predicted label."""
    grey = overlay.grey_of(image, self._shown_channel)
    drawn = [(truth, "truth"), (guess, "prediction")]
    number = f"slice {self._slice_index[place]}" if len(self._slice_index) else "image"
    return [
        sheets.Tile(overlay.to_rgb(grey), number),
        *(sheets.slice_tile(grey, label, self._view, size=256, caption=what)
          for label, what in drawn),
    ]  # fmt: skip


def predict_labels(model: keras.Model, images: np.ndarray) -> np.ndarray:
  """Returns class ids uint8 [N, h, w] of images uint8 [N, h, w, C] at the network's own size."""
  probability = model.predict_on_batch(images)
  if isinstance(probability, (list, tuple)):  # Deep supervision: the full-size output is first.
    probability = probability[0]
  return probabilities.class_ids(np.asarray(probability)).astype(np.uint8)


def final_line(rows: Sequence[dict[str, Any]]) -> str:
  """Returns one line of JSON with what a run of these history rows came to."""
  last = rows[-1] if rows else {}
  scores = [score for row in rows if math.isfinite(score := row.get(callbacks.MONITOR, math.nan))]
  names = {"epochs": "epoch", "steps": "step", "seconds": "seconds"}
  shown = {name: last.get(column) for name, column in names.items()}
  if "val_slices" in last:
    shown["val_slices"] = int(last["val_slices"])
  if scores:
    shown["best_val_foreground_dice"] = round(max(scores), 4)
  return json.dumps(shown)


def check(settings: config.TrainingConfig) -> None:
  """Raises InputError if a graph is asked for and the backend is not TensorFlow."""
  if settings.tensorboard_graph and keras.config.backend() != "tensorflow":
    raise InputError(
        "--tensorboard_graph needs KERAS_BACKEND=tensorflow, whose graphs TensorBoard draws. Got:"
        f" {keras.config.backend()}. Leave the flag out."
    )


def graph_of(network: keras.Model) -> tf.compat.v1.GraphDef:
  """Returns the operations of the network for one image, by layer, without any weights."""
  image = tf.TensorSpec((1, *network.input_shape[1:]), tf.float32, name="image")
  traced = tf.function(lambda image: network(image, training=False)).get_concrete_function(image)
  graph = traced.graph.as_graph_def()
  functions = [node for function in graph.library.function for node in function.node_def]
  for node in [*graph.node, *functions]:
    if node.op == "Const" and node.attr["value"].ByteSize() > _LARGEST_CONSTANT:
      tensor = node.attr["value"].tensor
      kept = {"dtype": tensor.dtype, "tensor_shape": tensor.tensor_shape}
      tensor.CopyFrom(type(tensor)(**kept))
  names = {network.name, *(layer.name for layer in network.layers)}
  for node in graph.node:
    node.name = _as_in_the_network(node.name, names)
    node.input[:] = [_as_in_the_network(name, names) for name in node.input]
  return graph


def _as_in_the_network(path: str, names: set[str]) -> str:
  """Returns the path of an operation without the "_1" that Keras' second trace adds to layers."""
  parts = path.split("/")
  for place, part in enumerate(parts[:-1]):
    plain = part.removesuffix("_1")
    # The first part of a control input begins with ^.
    if part.lstrip("^") not in names and plain.lstrip("^") in names:
      parts[place] = plain
  return "/".join(parts)


class _EventFile:
  """Writes a file of TensorBoard events whose name does not hold that of the machine."""

  def __init__(self, folder: pathlib.Path):
    folder.mkdir(parents=True, exist_ok=True)
    # The name that TensorFlow gives has the host in it.
    path = folder / f"events.out.tfevents.{time.time():.0f}.{os.getpid()}.v2"
    self._writer = tf.io.TFRecordWriter(os.fspath(path))
    self._add(file_version="brain.Event:2")

  def scalar(self, tag: str, value: float, step: int) -> None:
    """Adds a figure."""
    self._summary(tag, "scalars", tf.make_tensor_proto(value, tf.float32), step)

  def image(self, tag: str, png: bytes, step: int) -> None:
    """Adds an image that is encoded already."""
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    texts = [str(width).encode(), str(height).encode(), png]
    self._summary(tag, "images", tf.make_tensor_proto(texts), step)

  def graph(self, definition: tf.compat.v1.GraphDef) -> None:
    """Adds a graph."""
    self._add(graph_def=definition.SerializeToString())

  def flush(self) -> None:
    """Puts all on the disk that was added."""
    self._writer.flush()

  def _summary(self, tag: str, plugin: str, tensor: tf.compat.v1.TensorProto, step: int) -> None:
    data = tf.compat.v1.SummaryMetadata.PluginData(plugin_name=plugin)
    value = tf.compat.v1.Summary.Value(
        tag=tag, tensor=tensor, metadata=tf.compat.v1.SummaryMetadata(plugin_data=data)
    )
    self._add(summary=tf.compat.v1.Summary(value=[value]), step=step)

  def _add(self, **fields: Any) -> None:
    event = tf.compat.v1.Event(wall_time=time.time(), **fields)
    self._writer.write(event.SerializeToString())


class TensorBoardLog(keras.callbacks.Callback):
  """Writes the figures of each epoch and its preview sheet; after the callbacks that make them."""

  def __init__(self, run: run_folder.RunFolder, *, graph: bool = False):
    super().__init__()
    self._run, self._graph = run, graph
    self._file: _EventFile | None = None

  def _open(self) -> _EventFile:
    if self._file is None:
      self._file = _EventFile(self._run.tensorboard)
    return self._file

  def on_train_begin(self, logs=None):
    if not self._graph:
      return
    self._graph = False  # A run may call `fit` more than once.
    events = self._open()
    events.graph(graph_of(self.model))
    events.flush()

  def on_epoch_end(self, epoch, logs=None):
    events, step = self._open(), epoch + 1
    for name, value in (logs or {}).items():
      if math.isfinite(value):
        group = "validation" if name.startswith("val_") else "training"
        events.scalar(f"{group}/{name.removeprefix('val_')}", value, step)
    rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
    events.scalar("training/learning_rate", rate, step)
    sheet = self._run.preview_png(epoch)
    if sheet.is_file():
      events.image("previews", sheet.read_bytes(), step)
    events.flush()
