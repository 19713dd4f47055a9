"""A trained network as a function of tensors, made to answer fast.

The answer is that of the network in float32, within rounding, whatever precision it was trained in:
as exported networks answer, and on every device alike. Batch normalization is folded into the
convolutions; bias and activation are one operation with them; what only training needs is left out.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from flexunet.network import layers, model


def as_function(network: Any) -> Callable[[tf.Tensor], tf.Tensor]:
  """Returns [B, h, w, channels] in 0..255 of any number type -> float32 [B, h, w, classes].

  Images of any height and width are answered. Of several outputs the first is given.

  Args:
    network: A `keras.Model` made by `build_model`. Another function of tensors is returned as it
      is.
  """
  if not isinstance(network, keras.Model):
    return network
  if keras.config.backend() == "tensorflow":
    return InferenceNetwork(network)
  return _of_other_backend(network)


class InferenceNetwork:
  """The graph of a `keras.Model` as TensorFlow operations on weights of its own, in float32."""

  def __init__(self, network: keras.Model):
    """Takes the weights as they are now; the network may be trained on or forgotten."""
    graph = network.get_config()
    entries = {entry["name"]: list(_inputs_of(entry)) for entry in graph["layers"]}
    self._image, self._output = (
        _first_name(graph[ends]) for ends in ("input_layers", "output_layers")
    )
    self._steps = _steps(network, entries, self._output)
    padded = any(isinstance(layer, layers.PadToMultiple) for layer in network.layers)
    # Such a network was made for one size that divides; others are padded and cropped around it.
    self._pad = None if padded else layers.PadToMultiple(layers.multiple_of(network))

  def __call__(self, images: tf.Tensor) -> tf.Tensor:
    """[B, h, w, channels] in 0..255 of any number type -> float32 [B, h, w, classes]."""
    known = {self._image: self._pad.call(images) if self._pad else images}
    for step in self._steps:
      known[step.name] = step.compute(*[known[name] for name in step.inputs])
    answer = known[self._output]
    return layers.CropLike().call([answer, images]) if self._pad else answer


@dataclasses.dataclass(frozen=True, eq=False)
class _Step:
  """An operation: the names of its output and inputs, and what it computes of their tensors."""

  name: str
  inputs: list[str]
  compute: Callable[..., tf.Tensor]


def _inputs_of(entry: dict[str, Any]) -> Iterator[str]:
  """Yields the names of the layers whose outputs a layer takes, of its entry in `get_config()`."""
  for node in entry["inbound_nodes"][:1]:
    for value in node["args"]:
      for tensor in value if isinstance(value, list) else [value]:
        yield tensor["config"]["keras_history"][0]


def _first_name(ends: list) -> str:
  """Returns the name of the first of a network's ends; one stands alone, several in a list."""
  return ends[0] if isinstance(ends[0], str) else ends[0][0]


def _steps(network: keras.Model, entries: dict[str, list[str]], output: str) -> list[_Step]:
  """Returns what leads to an output, in order.

  Args:
    network: The network.
    entries: Names of its layers in order -> those of their inputs.
    output: Name of the layer that answers.
  """
  needed = _needed(entries, output)
  users = Counter(name for user in needed for name in entries[user])
  steps: dict[str, _Step] = {}
  for name in entries:
    layer, inputs = network.get_layer(name), entries[name]
    if name not in needed or not inputs:
      continue
    before = network.get_layer(inputs[0])
    if _folds(layer) and _is_plain(before) and users[before.name] == 1:
      # What the normalization makes of the convolution is a convolution, which takes its place.
      convolution = _convolution(before, *_folded(before, layer))
      steps[before.name] = _Step(before.name, entries[before.name], convolution)
      compute: Callable[..., tf.Tensor] = tf.identity
    else:
      compute = _computation(layer)
    steps[name] = _Step(name, inputs, compute)
  return list(steps.values())


def _needed(entries: dict[str, list[str]], output: str) -> set[str]:
  """Returns the names of the layers that an output depends on, itself included."""
  needed, waiting = set(), [output]
  while waiting:
    name = waiting.pop()
    if name not in needed:
      needed.add(name)
      waiting += entries[name]
  return needed


def _computation(layer: keras.layers.Layer) -> Callable[..., tf.Tensor]:
  """Returns what a layer computes outside of training, in float32."""
  if isinstance(layer, keras.layers.Dropout):
    return tf.identity
  if _is_plain(layer):
    return _convolution(layer, layer.kernel, layer.bias)
  if isinstance(layer, keras.layers.Conv2DTranspose):
    return _transposed_convolution(layer)
  if isinstance(layer, keras.layers.Activation) and layer.get_config()["activation"] == "softmax":
    return _softmax
  if layer.weights:
    layer = _in_float32(layer)
  # `call` does without the conversion to the layer's own precision.
  return (lambda *x: layer.call(list(x))) if _joins(layer) else layer.call


def _joins(layer: keras.layers.Layer) -> bool:
  joining = (keras.layers.Add, keras.layers.Concatenate, layers.CropLike)
  return isinstance(layer, joining)


def _is_plain(layer: keras.layers.Layer) -> bool:
  """Returns whether a layer is a convolution as the blocks of a FlexUNet have it."""
  return (
      type(layer) is keras.layers.Conv2D
      and tuple(layer.strides) == (1, 1)
      and (layer.padding == "same" or tuple(layer.kernel_size) == (1, 1))
      and layer.groups == 1
      and layer.use_bias
  )


def _folds(layer: keras.layers.Layer) -> bool:
  return isinstance(layer, keras.layers.BatchNormalization) and layer.scale and layer.center


def _folded(
    convolution: keras.layers.Conv2D, normalization: keras.layers.BatchNormalization
) -> tuple[np.ndarray, np.ndarray]:
  """Returns kernel and bias of the convolution that normalizes what it gives."""
  gamma, beta, mean, variance, kernel, bias = (
      np.asarray(keras.ops.convert_to_numpy(weight), np.float64)
      for weight in (
          normalization.gamma, normalization.beta, normalization.moving_mean,
          normalization.moving_variance, convolution.kernel, convolution.bias,
      )
  )  # fmt: skip
  scale = gamma / np.sqrt(variance + normalization.epsilon)
  return (kernel * scale).astype(np.float32), ((bias - mean) * scale + beta).astype(np.float32)


def _convolution(
    layer: keras.layers.Conv2D, kernel: Any, bias: Any
) -> Callable[[tf.Tensor], tf.Tensor]:
  """Returns a convolution with its bias and activation, which TensorFlow joins on a CPU."""
  kernel, bias = tf.convert_to_tensor(kernel), tf.convert_to_tensor(bias)

  def compute(maps: tf.Tensor) -> tf.Tensor:
    found = tf.nn.conv2d(maps, kernel, 1, "SAME", dilations=layer.dilation_rate)
    return layer.activation(tf.nn.bias_add(found, bias))

  return compute


def _transposed_convolution(
    layer: keras.layers.Conv2DTranspose,
) -> Callable[[tf.Tensor], tf.Tensor]:
  kernel, bias = tf.convert_to_tensor(layer.kernel), tf.convert_to_tensor(layer.bias)
  rows, columns = layer.strides

  def compute(maps: tf.Tensor) -> tf.Tensor:
    batch, height, width = tf.unstack(tf.shape(maps)[:3])
    shape = [batch, height * rows, width * columns, layer.filters]
    found = tf.nn.conv2d_transpose(maps, kernel, shape, layer.strides, "SAME")
    return tf.nn.bias_add(found, bias)

  return compute


def _softmax(logits: tf.Tensor) -> tf.Tensor:
  """Returns the softmax over the last axis; TensorFlow's own is slow where that is short."""
  powers = tf.exp(logits - tf.reduce_max(logits, axis=-1, keepdims=True))
  return powers / tf.reduce_sum(powers, axis=-1, keepdims=True)


def _in_float32(layer: keras.layers.Layer) -> keras.layers.Layer:
  """Returns a copy of a layer with weights over the last axis that computes in float32."""
  copy = type(layer).from_config({**layer.get_config(), "dtype": "float32"})
  copy.build((None, None, None, layer.weights[0].shape[-1]))
  copy.set_weights(layer.get_weights())
  return copy


def _of_other_backend(network: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
  """Returns the network as TensorFlow calls it where Keras computes with another backend."""
  free = model.accept_any_size(network)

  def predict(images: np.ndarray) -> np.ndarray:
    answers = free.predict_on_batch(images)
    return np.asarray(answers[0] if isinstance(answers, list) else answers, np.float32)

  def answer(images: tf.Tensor) -> tf.Tensor:
    found = tf.numpy_function(predict, [images], tf.float32)
    found.set_shape([*images.shape[:3], network.get_layer("head").filters])
    return found

  return answer
