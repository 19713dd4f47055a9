"""Building blocks of the FlexUNet: normalization by name, input scaling, padding to any size.

Tensors are [batch, height, width, channels]. The layers run on every Keras backend and are
registered, so a saved model loads wherever `flexunet` is installed.
"""

from __future__ import annotations

import dataclasses
import math
import random

import keras
from keras import ops

from flexunet.network import architecture, replicas
from flexunet.network.architecture import ModelConfig, Stage

PACKAGE = "flexunet"
# Group normalization takes this many groups where the channels divide by it (Wu & He,
# arXiv:1803.08494, use 32 on networks whose first stage has 64 channels; ours has 16).
_MAX_GROUPS = 8


@keras.saving.register_keras_serializable(package=PACKAGE)
class PerImageNormalization(keras.layers.Layer):
  """Subtracts the mean and divides by the standard deviation of each image's non-zero pixels.

  Zero is air or padding: counting it would make the result depend on how wide the border is.
  The output is float32. An image without any non-zero pixel becomes all zeros.
  """

  def __init__(self, epsilon: float = 1e-3, **kwargs):
    # Sums over 512 x 512 pixels of 255 overflow float16: no mixed precision in here.
    kwargs["dtype"] = "float32"
    super().__init__(**kwargs)
    self.epsilon = epsilon

  def call(self, images):
    images = ops.cast(images, "float32")
    inside = ops.cast(ops.not_equal(images, 0.0), "float32")
    axes = (1, 2, 3)
    count = ops.maximum(ops.sum(inside, axis=axes, keepdims=True), 1.0)
    mean = ops.sum(images, axis=axes, keepdims=True) / count
    variance = ops.sum(inside * ops.square(images - mean), axis=axes, keepdims=True) / count
    return (images - mean) / (ops.sqrt(variance) + self.epsilon)

  def compute_output_shape(self, input_shape):
    return input_shape

  def get_config(self):
    return {**super().get_config(), "epsilon": self.epsilon}


@keras.saving.register_keras_serializable(package=PACKAGE)
class PadToMultiple(keras.layers.Layer):
  """Appends zeros below and to the right until height and width divide by `multiple`."""

  def __init__(self, multiple: int, **kwargs):
    super().__init__(**kwargs)
    self.multiple = multiple

  def call(self, images):
    height, width = ops.shape(images)[1:3]
    # Remainders of positive numbers only: ONNX rounds those of negative ones the other way.
    below, right = ((self.multiple - n % self.multiple) % self.multiple for n in (height, width))
    # Known sizes that fit cost nothing.
    if isinstance(below, int) and isinstance(right, int) and below == right == 0:
      return images
    return ops.pad(images, [[0, 0], [0, below], [0, right], [0, 0]])

  def compute_output_shape(self, input_shape):
    batch, height, width, channels = input_shape
    up = [None if n is None else n + -n % self.multiple for n in (height, width)]
    return (batch, *up, channels)

  def get_config(self):
    return {**super().get_config(), "multiple": self.multiple}


@keras.saving.register_keras_serializable(package=PACKAGE)
class SpaceToDepth(keras.layers.Layer):
  """Makes channels of each 2 x 2 pixels: [B, h, w, C] -> [B, h / 2, w / 2, 4 C].

  The pixels stand in the order of reading, each with its channels.
  """

  def call(self, images):
    return ops.space_to_depth(images, 2)

  def compute_output_shape(self, input_shape):
    batch, height, width, channels = input_shape
    down = [None if n is None else n // 2 for n in (height, width)]
    return (batch, *down, None if channels is None else 4 * channels)


@keras.saving.register_keras_serializable(package=PACKAGE)
class CropLike(keras.layers.Layer):
  """Cuts the first tensor to the height and width of the second: the inverse of the padding."""

  def __init__(self, **kwargs):
    # The first tensor holds float32 probabilities: no mixed precision in here.
    kwargs["dtype"] = "float32"
    super().__init__(**kwargs)

  def call(self, inputs):
    images, like = inputs
    height, width = ops.shape(like)[1:3]
    if tuple(images.shape[1:3]) == (height, width):
      return images
    return images[:, :height, :width, :]

  def compute_output_shape(self, input_shape):
    (batch, _, _, channels), (_, height, width, _) = input_shape
    return (batch, height, width, channels)


def multiple_of(network: keras.Model) -> int:
  """Returns what height and width must be a multiple of: see `ModelConfig.multiple`."""
  halving = (keras.layers.MaxPooling2D, SpaceToDepth)
  return 2 ** sum(isinstance(layer, halving) for layer in network.layers)


def _group_normalization(groups: int, name: str) -> keras.layers.Layer:
  return keras.layers.GroupNormalization(groups=groups, epsilon=1e-5, name=name)


def normalization_layer(kind: str, channels: int, name: str) -> keras.layers.Layer | None:
  """Returns a fresh normalization layer for `channels` channels, None for kind "none"."""
  if kind == "none":
    return None
  if kind == "batch":
    # Keras' momentum of 0.99 needs some 500 steps until the running statistics hold; short
    # trainings would be evaluated on stale ones.
    return BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)
  if kind == "group":
    return _group_normalization(math.gcd(channels, _MAX_GROUPS), name)
  if kind == "instance":
    return _group_normalization(channels, name)
  if kind == "layer":
    return keras.layers.LayerNormalization(epsilon=1e-5, name=name)
  raise ValueError(f"normalization must be of {architecture.NORMALIZATIONS}. Got: {kind!r}.")


def input_normalization_layer(kind: str, name: str) -> keras.layers.Layer:
  """Returns the layer that takes 0..255 to the range the network works in, in float32."""
  if kind == "unit":
    return keras.layers.Rescaling(1.0 / 255.0, dtype="float32", name=name)
  if kind == "per_image":
    return PerImageNormalization(name=name)
  raise ValueError(
      f"input_normalization must be of {architecture.INPUT_NORMALIZATIONS}. Got: {kind!r}."
  )


def encoder_stage(x: keras.KerasTensor, stage: Stage, config: ModelConfig) -> keras.KerasTensor:
  """Applies the blocks of an encoder stage: [batch, h, w, channels] -> [batch, h, w, filters]."""
  name = f"encoder{stage.index}"
  for block in range(stage.encoder_blocks):
    first, last = 2 * block, 2 * block + 1
    before = x
    x = convolution(x, stage, config, name, first)
    x = _dropped(x, stage.dropout_rate, f"{name}_dropout{block or ''}")
    if config.block == "plain":
      x = convolution(x, stage, config, name, last)
      continue
    x = convolution(x, stage, config, name, last, activated=False)
    if before.shape[-1] != stage.filters:
      point = dataclasses.replace(stage, kernel=1, dilation=1)
      before = convolution(before, point, config, f"{name}_shortcut", activated=False)
    x = keras.layers.Add(name=f"{name}_add{last}")([x, before])
    x = keras.layers.Activation(config.activation, name=f"{name}_act{last}")(x)
  return x


def decoder_stage(x: keras.KerasTensor, stage: Stage, config: ModelConfig) -> keras.KerasTensor:
  """Applies a decoder stage to [up, skip]: [batch, h, w, channels] -> [batch, h, w, filters]."""
  name = f"decoder{stage.index}"
  for index in range(config.decoder_convolutions):
    x = convolution(x, stage, config, name, index)
    if index == 0 and config.decoder_convolutions > 1:
      x = _dropped(x, stage.dropout_rate, f"{name}_dropout")
  return x


def convolution(
    x: keras.KerasTensor,
    stage: Stage,
    config: ModelConfig,
    name: str,
    index: int | str = "",
    *,
    activated: bool = True,
) -> keras.KerasTensor:
  """Applies a 'same' convolution, the normalization and the activation of a network.

  Args:
    x: [batch, height, width, channels] of any float type.
    stage: Filters, kernel and dilation.
    config: Normalization, activation and initializer.
    name, index: Begin and end the names of the layers.
    activated: False leaves the activation out.

  Returns:
    [batch, height, width, filters].
  """
  inside = activated and config.normalization == "none"
  x = keras.layers.Conv2D(
      stage.filters,
      stage.kernel,
      padding="same",
      dilation_rate=stage.dilation,
      kernel_initializer=config.kernel_initializer,
      activation=config.activation if inside else None,
      name=f"{name}_conv{index}",
  )(x)
  layer = normalization_layer(config.normalization, stage.filters, f"{name}_norm{index}")
  if layer is not None:
    x = layer(x)
    if activated:
      x = keras.layers.Activation(config.activation, name=f"{name}_act{index}")(x)
  return x


def upsampled(
    x: keras.KerasTensor, filters: int, config: ModelConfig, name: str
) -> keras.KerasTensor:
  """Doubles height and width: [batch, h, w, channels] -> [batch, 2 h, 2 w, filters]."""
  start = config.kernel_initializer
  if config.upsampling == "transpose":
    return keras.layers.Conv2DTranspose(
        filters, 2, strides=2, padding="same", kernel_initializer=start, name=name
    )(x)
  # At the coarse size, where it costs a quarter.
  x = keras.layers.Conv2D(filters, 1, kernel_initializer=start, name=f"{name}_conv")(x)
  return keras.layers.UpSampling2D(2, interpolation="nearest", name=name)(x)


def _dropped(x: keras.KerasTensor, rate: float, name: str) -> keras.KerasTensor:
  return keras.layers.Dropout(rate, seed=_dropout_seed(), name=name)(x) if rate > 0 else x


def _dropout_seed() -> int | None:
  """Returns None, for which Keras draws a seed itself; on PyTorch a seed drawn as Keras would.

  Without one, Keras lets PyTorch draw from a generator of the process, whose state no checkpoint
  holds.
  """
  return random.randint(1, 10**9) if keras.config.backend() == "torch" else None


@keras.saving.register_keras_serializable(package="flexunet")
class BatchNormalization(keras.layers.BatchNormalization):
  """`keras.layers.BatchNormalization` over the last axis of [batch, height, width, channels].

  Same weights, same arguments, same result up to rounding, at a fraction of the cost on TensorFlow;
  on other backends it is Keras' own. Keras puts it together from a dozen operations, each a pass
  over the feature maps in float32. TensorFlow has one operation for it, forward and backward, that
  also takes 16-bit numbers. On two CPU cores a training step of the default network (224 x 176
  pixels, batch 8, bfloat16) takes 0.33 s instead of 0.46 s with it.

  Where several devices share a batch, its statistics go over all of them.
  """

  def call(self, inputs, training=None, mask=None):
    if keras.backend.backend() != "tensorflow" or mask is not None or not self._fits(inputs):
      return super().call(inputs, training=training, mask=mask)
    # Other backends do without TensorFlow.
    import tensorflow as tf

    learns = bool(training) and self.trainable
    if learns and replicas.several():
      return self._over_all_devices(inputs)
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=tf.convert_to_tensor(self.gamma),
        offset=tf.convert_to_tensor(self.beta),
        # While it learns these come from the batch.
        mean=tf.zeros([0]) if learns else tf.convert_to_tensor(self.moving_mean),
        variance=tf.zeros([0]) if learns else tf.convert_to_tensor(self.moving_variance),
        epsilon=self.epsilon,
        is_training=learns,
    )
    if learns:
      # The operation gives the estimate for the population, n / (n - 1) times the variance that
      # it divides by; Keras keeps the latter on every backend.
      count = tf.cast(tf.size(inputs) // self.gamma.shape[0], tf.float32)
      variance *= (count - 1.0) / count
      for kept, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
        kept.assign(kept * self.momentum + new * (1.0 - self.momentum))
    return outputs

  def _over_all_devices(self, inputs):
    """Returns the outputs of a training step whose batch is shared by several devices.

    The statistics are those of the whole batch, as on one device.
    """
    maps = ops.cast(inputs, "float32")
    ones = ops.sum(ops.ones_like(maps[..., :1]))
    sums, count = replicas.total([ops.sum(maps, axis=(0, 1, 2)), ones])
    mean = sums / count
    # From the mean, not from a sum of squares, which loses the digits of a small variance.
    squares = replicas.total([ops.sum(ops.square(maps - mean), axis=(0, 1, 2))])[0]
    variance = squares / count
    for kept, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
      kept.assign(kept * self.momentum + new * (1.0 - self.momentum))
    outputs = ops.batch_normalization(
        maps, mean, variance, axis=-1, offset=self.beta, scale=self.gamma, epsilon=self.epsilon
    )
    return ops.cast(outputs, self.compute_dtype)

  def _fits(self, inputs) -> bool:
    """Returns whether TensorFlow's operation covers what was asked for."""
    plain = self.scale and self.center and not (self.renorm or self.synchronized)
    last = self.axis in (-1, len(inputs.shape) - 1)
    narrow = keras.backend.standardize_dtype(inputs.dtype) in ("float32", "float16", "bfloat16")
    return plain and last and narrow and len(inputs.shape) == 4
