"""What TensorBoard shows of a run: every figure of history.csv, the previews, and the graph."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

import keras
import numpy as np

from flexunet import config, run_folder
from flexunet.datasets.errors import InputError

if TYPE_CHECKING:
  import tensorflow as tf

# Constants above this size lose their values in the graph: weights would make it as large as the
# model. Variables are inputs of the graph and have none.
_LARGEST_CONSTANT = 1024


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
  import tensorflow as tf

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
    import tensorflow as tf

    if self._writer is None:
      self._writer = tf.summary.create_file_writer(os.fspath(self._run.tensorboard))
    return self._writer

  def on_train_begin(self, logs=None):
    if not self._graph:
      return
    import tensorflow as tf

    self._graph = False  # A run may call `fit` more than once.
    with self._open().as_default(step=0):
      tf.summary.graph(graph_of(self.model))
    self._writer.flush()

  def on_epoch_end(self, epoch, logs=None):
    import tensorflow as tf

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
