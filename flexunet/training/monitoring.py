"""What a user sees while a run trains: a progress bar, history.csv, curves and previews.

What TensorBoard shows of a run: every figure of history.csv, the previews, and the graph.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from flexunet import config, run_folder
from flexunet.core import files, progress
from flexunet.core.errors import InputError
from flexunet.reporting import charts, overlay, training_section
from flexunet.training import callbacks

# Constants above this size lose their values in the graph: weights would make it as large as the
# model. Variables are inputs of the graph and have none.
_LARGEST_CONSTANT = 1024


class ProgressBar(keras.callbacks.Callback):
  """One bar an epoch on standard error: loss, foreground Dice, images a second."""

  def __init__(self, clock: callbacks.RunClock, steps_per_epoch: int, batch_size: int):
    super().__init__()
    self._clock, self._steps, self._batch_size = clock, steps_per_epoch, batch_size
    self._bar: Any = None
    self._executions = 0

  def on_epoch_begin(self, epoch, logs=None):
    self._bar = progress.bar(
        total=self._steps,
        initial=self._clock.step % self._steps,  # Of a resumed epoch.
        desc=f"epoch {epoch + 1}",
        unit="step",
    )

  def on_train_batch_end(self, batch, logs=None):
    self._bar.update(self._clock.step - self._clock.previous_step)
    self._executions += 1
    if logs and self._executions % 10 == 0:
      self._bar.set_postfix(self._figures(logs), refresh=False)

  def on_epoch_end(self, epoch, logs=None):
    if self._bar is None:  # Resumed within a validation.
      return
    self._bar.set_postfix(self._figures(logs or {}))
    self._bar.close()

  def _figures(self, logs) -> dict[str, str]:
    shown = {
        "loss": logs.get("loss"),
        "dice": logs.get("foreground_dice"),
        "val_loss": logs.get("val_loss"),
        "val_dice": logs.get(callbacks.MONITOR),
    }
    figures = {name: f"{value:.3f}" for name, value in shown.items() if value is not None}
    rate = self._bar.format_dict.get("rate")
    if rate:
      figures["images/s"] = f"{rate * self._batch_size:.0f}"
    return figures


class History(callbacks.RunCallback):
  """Writes history.csv and curves.png after each epoch, one row an epoch."""

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
    # An epoch that a time limit cut short and a longer limit let go on has two rows.
    self.rows.append(row)
    self.write()

  def write(self) -> None:
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
      palette: np.ndarray,
      network: keras.Model | None = None,
  ):
    """Takes the slices once: uint8 [N, h, w, channels] and [N, h, w]; they are few.

    Args:
      run, images, labels, palette: Where to draw, and what.
      network: Which network predicts; the one in training by default.
    """
    super().__init__()
    self._run = run
    self._images, self._labels = images, labels
    self._palette = overlay.display_palette(palette)
    self._network = network

  def on_epoch_end(self, epoch, logs=None):
    # The first epoch too: a wrong label shows at once.
    if epoch and callbacks.MONITOR not in (logs or {}):
      return
    predicted = predict_labels(self._network or self.model, self._images)
    tiles = []
    for image, truth, guess in zip(self._images, self._labels, predicted):
      grey = image.mean(axis=-1).astype(np.uint8)
      drawn = [overlay.blend(grey, label, self._palette) for label in (truth, guess)]
      tiles += [overlay.to_rgb(grey), *drawn]
    sheet = overlay.contact_sheet(tiles, columns=6 if len(tiles) > 3 else 3, tile_size=256)
    files.write_bytes(self._run.preview_png(epoch), overlay.encode_png(sheet))


def predict_labels(model: keras.Model, images: np.ndarray) -> np.ndarray:
  """Returns class ids uint8 [N, h, w] of images at the network's own size."""
  probability = model.predict_on_batch(images)
  if isinstance(probability, (list, tuple)):  # Deep supervision: the full-size output is first.
    probability = probability[0]
  probability = np.asarray(probability)
  if probability.shape[-1] == 1:
    return (probability[..., 0] > 0.5).astype(np.uint8)
  return probability.argmax(axis=-1).astype(np.uint8)


def final_line(rows: Sequence[dict[str, Any]]) -> str:
  """Returns one line of JSON that tells how the run ended."""
  last = rows[-1] if rows else {}
  scores = [score for row in rows if math.isfinite(score := row.get(callbacks.MONITOR, math.nan))]
  shown = {"epochs": len(rows), "steps": last.get("step"), "seconds": last.get("seconds")}
  if "val_slices" in last:
    shown["val_slices"] = int(last["val_slices"])
  if scores:
    shown["best_val_foreground_dice"] = round(max(scores), 4)
  return json.dumps(shown)


def check(settings: config.TrainingConfig) -> None:
  """Refuses a graph where there is none.

  Raises:
    InputError: The backend is not TensorFlow.
  """
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


class TensorBoardLog(keras.callbacks.Callback):
  """Writes the figures of each epoch and its preview sheet; after the callbacks that make them."""

  def __init__(self, run: run_folder.RunFolder, *, graph: bool = False):
    super().__init__()
    self._run, self._graph = run, graph
    self._writer = None

  def _open(self) -> tf.summary.SummaryWriter:
    if self._writer is None:
      self._writer = tf.summary.create_file_writer(os.fspath(self._run.tensorboard))
    return self._writer

  def on_train_begin(self, logs=None):
    if not self._graph:
      return
    self._graph = False  # A run may call `fit` more than once.
    with self._open().as_default(step=0):
      tf.summary.graph(graph_of(self.model))
    self._writer.flush()

  def on_epoch_end(self, epoch, logs=None):
    with self._open().as_default(step=epoch + 1):
      for name, value in (logs or {}).items():
        if math.isfinite(value):
          group = "validation" if name.startswith("val_") else "training"
          tf.summary.scalar(f"{group}/{name.removeprefix('val_')}", value)
      rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
      tf.summary.scalar("training/learning_rate", rate)
      sheet = self._run.preview_png(epoch)
      if sheet.is_file():
        pixels = tf.io.decode_png(sheet.read_bytes(), channels=3).numpy()
        tf.summary.image("previews", pixels[np.newaxis])
    self._writer.flush()
