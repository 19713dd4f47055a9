"""The FlexUNet: a U-Net whose kernels shrink and whose channels double from stage to stage.

Input [batch, height, width, image_channels] with values 0..255 of any number type, scaled inside.
Output probabilities [batch, height, width, num_classes], float32 whatever the precision policy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from flexunet.core import config_fields
from flexunet.core.errors import InputError
from flexunet.network import architecture, layers
from flexunet.network.architecture import ModelConfig

__all__ = [
    "accept_any_size", "build_model", "deep_supervision_weights",
    "logits_twin", "probability_twin", "set_class_prior",
]

# Whatever that of the other layers: the gradient of a head's bias is a sum over all pixels of a
# step, which TensorFlow adds up in bfloat16 on a processor with AVX2 (1,536 times 1/1,536 came to
# 0.25).
_HEAD_PRECISION = "float32"


def build_model(
    config: ModelConfig = architecture.PUBLISHED, *, name: str = "flexunet", **knobs: Any
) -> keras.Model:
  """Returns a new FlexUNet, e.g. `build_model(image_size=(256, 256), num_classes=3)`.

  With `image_size=None` the model takes images of any height and width. Sizes that are no
  multiple of `ModelConfig.multiple` are padded and cropped back inside.

  With `deep_supervision` the output is a list: the probabilities first, then those of up to three
  of the next stages, repeated to full size so that one label serves all. Weigh their losses by
  `deep_supervision_weights`.

  A probability that float32 rounds to 0 or 1 has no gradient: train the `logits_twin`, with
  `losses.make(..., from_logits=True)`; the weights are those of this model.

  Args:
    config: Where knobs that are not given come from; by default the published network.
    name: Name of the model.
    **knobs: Fields of `architecture.ModelConfig`, which describes them: image_size,
      image_channels, num_classes, base_filters, base_kernels, num_layers, dropout_rate, dilation,
      normalization, activation, kernel_initializer, input_normalization, deep_supervision, stem,
      block, encoder_blocks, decoder_convolutions, upsampling, max_filters.

  Raises:
    InputError: A knob is unknown or out of range; the message says what must hold.
  """
  known = [field.name for field in dataclasses.fields(ModelConfig)]
  config_fields.refuse_unknown(knobs, known, "build_model")
  config = dataclasses.replace(config, **knobs)
  config.require_complete()
  inputs = keras.Input((*(config.image_size or (None, None)), config.image_channels), name="image")
  pads = config.padded_size is None or config.padded_size != config.image_size
  # Zeros are appended before scaling, where zero means air, not after it, where it could be grey.
  x = layers.PadToMultiple(config.multiple, name="pad")(inputs) if pads else inputs
  x = layers.input_normalization_layer(config.input_normalization, "scale")(x)
  first = x if config.stem == "full" else layers.SpaceToDepth(name="stem")(x)
  decoded = _encode_and_decode(first, config)
  outputs = [_probabilities(_main_logits(decoded[0], x, config), 1, config)]
  for stage, features in enumerate(decoded[1 : config.num_auxiliary_outputs + 1], 1):
    scale = config.first_scale * 2**stage
    logits = _head(config.num_classes, f"head_{scale}")(features)
    outputs.append(_probabilities(logits, scale, config))
  if pads:
    outputs = _cropped(outputs, inputs)
  return keras.Model(inputs, outputs if config.deep_supervision else outputs[0], name=name)


def _encode_and_decode(x, config: ModelConfig) -> list:
  """Returns the decoder's feature maps, those of the first stage first."""
  stages = config.stages()
  skips = []
  for stage in stages:
    x = layers.encoder_stage(x, stage, config)
    if stage is not stages[-1]:
      skips.append(x)
      x = keras.layers.MaxPooling2D(2, name=f"pool{stage.index}")(x)
  decoded = [x]
  for stage, skip in zip(stages[-2::-1], skips[::-1], strict=True):
    x = layers.upsampled(x, stage.filters, config, f"up{stage.index}")
    x = keras.layers.Concatenate(name=f"join{stage.index}")([x, skip])
    x = layers.decoder_stage(x, stage, config)
    decoded.append(x)
  return decoded[::-1]


def _main_logits(features, scaled, config: ModelConfig):
  """Returns the logits at full size.

  Args:
    features: Of the first stage.
    scaled: The image as the network sees it.
    config: Shape of the network.
  """
  if config.stem == "half":
    # Each feature pixel answers for its four: a 1x1 convolution whose channels become pixels.
    return keras.layers.Conv2DTranspose(
        config.num_classes, 2, strides=2, dtype=_HEAD_PRECISION, name="head"
    )(features)  # fmt: skip
  if config.stem == "half_refined":
    refining = architecture.Stage(0, config.exit_filters, 3, 1, 0.0)
    x = keras.layers.Conv2DTranspose(
        refining.filters, 2, strides=2, kernel_initializer=config.kernel_initializer,
        name="exit_up",
    )(features)  # fmt: skip
    x = keras.layers.Concatenate(name="exit_join")([x, scaled])
    features = layers.convolution(x, refining, config, "exit")
  return _head(config.num_classes, "head")(features)


def _head(num_classes: int, name: str) -> keras.layers.Layer:
  return keras.layers.Conv2D(num_classes, 1, dtype=_HEAD_PRECISION, name=name)


def _probabilities(logits, scale: int, config: ModelConfig):
  """Returns the probabilities of logits at 1 / scale of the size, at full size, in float32."""
  # float16 has no room for the exponentials of a confident head, nor for their small results.
  x = _probability_layer(config.num_classes, _suffixed("probability", scale))(logits)
  if scale > 1:
    # Repeated, not interpolated: exact, cheap, and exportable at any size.
    x = keras.layers.UpSampling2D(scale, dtype="float32", name=_suffixed("repeat", scale))(x)
  return x


def _cropped(outputs: list, images) -> list:
  """Returns outputs cut to the height and width of the images."""
  return [
      layers.CropLike(name=f"crop_{place}" if place else "crop")([output, images])
      for place, output in enumerate(outputs)
  ]


def _probability_layer(num_classes: int, name: str) -> keras.layers.Layer:
  kind = "sigmoid" if num_classes == 1 else "softmax"
  return keras.layers.Activation(kind, dtype="float32", name=name)


def _suffixed(name: str, scale: int) -> str:
  return f"{name}_{scale}" if scale > 1 else name


def deep_supervision_weights(model: keras.Model) -> list[float]:
  """Returns one loss weight per output, halved from each to the next and summing to 1."""
  weights = np.exp2(-np.arange(len(model.outputs), dtype=np.float64))
  return [float(weight) for weight in weights / weights.sum()]


def logits_twin(model: keras.Model) -> keras.Model:
  """Returns the same network, weights shared, whose outputs are float32 logits: to train by."""

  def logits(layer):
    name = layer.name.replace("probability", "logits")
    return keras.layers.Activation("linear", dtype="float32", name=name)

  return _with_last_layers(model, "probability", logits)


def probability_twin(twin: keras.Model) -> keras.Model:
  """Returns the network of a `logits_twin`, weights shared, with its main output alone."""
  num_classes = twin.get_layer("head").filters

  def probability(layer):
    return _probability_layer(num_classes, layer.name.replace("logits", "probability"))

  main = keras.Model(twin.input, twin.outputs[0], name=twin.name)
  return _with_last_layers(main, "logits", probability)


def _with_last_layers(
    model: keras.Model, prefix: str, other: Callable[[keras.layers.Layer], keras.layers.Layer]
) -> keras.Model:
  """Returns the model with `other(layer)` in the place of each layer of that prefix."""

  def call(layer, *args, **kwargs):
    if layer.name.startswith(prefix):
      return other(layer)(*args, **kwargs)
    return layer(*args, **kwargs)

  inputs = keras.Input(model.input_shape[1:], name="image")
  return keras.models.clone_model(
      model, input_tensors=inputs, clone_function=lambda layer: layer, call_function=call
  )


def set_class_prior(model: keras.Model, pixel_shares: Sequence[float]) -> None:
  """Sets the heads' biases so that an untrained network expects each class as often as it is.

  Without it the first hundred steps go into unlearning that a lesion is as likely as air, and
  overlap losses can settle there: on hippocampus slices with 2 % foreground, the validation Dice
  after 75 steps rose from 0.57 to 0.77.

  Args:
    model: A new FlexUNet, not yet trained.
    pixel_shares: Share (or number) of the training pixels of each label value, background first;
      two for a network of one class.

  Raises:
    InputError: Another number of shares than label values, or a negative one.
  """
  heads = [layer for layer in model.layers if layer.name.startswith("head")]
  num_classes = model.get_layer("head").filters
  shares = np.asarray(pixel_shares, np.float64)
  labels = max(num_classes, 2)
  if shares.shape != (labels,) or not (shares >= 0).all() or not shares.sum() > 0:
    raise InputError(
        f"pixel_shares must hold {labels} numbers of at least 0, one per label value."
        f" Got: {list(pixel_shares)}."
    )
  # A class never seen in training must stay possible: no share below 1 in 100,000.
  logits = np.log(np.maximum(shares / shares.sum(), 1e-5))
  bias = logits[1:] - logits[:1] if num_classes == 1 else logits
  for head in heads:
    head.bias.assign(bias.astype("float32"))


def accept_any_size(model: keras.Model) -> keras.Model:
  """Returns the same network, weights shared, for images of any height and width.

  Training on a fixed size gives the compiler static shapes; what is saved need not keep them.
  """
  if model.input_shape[1:3] == (None, None):
    return model
  padding = [layer for layer in model.layers if isinstance(layer, layers.PadToMultiple)]
  pad = padding[0] if padding else layers.PadToMultiple(layers.multiple_of(model), name="pad")

  def call(layer, *args, **kwargs):
    if layer.name == "scale" and not padding:
      return layer(pad(*args), **kwargs)
    return layer(*args, **kwargs)

  inputs = keras.Input((None, None, model.input_shape[-1]), name="image")
  # Without what a model in training is compiled with, which Keras would copy.
  bare = keras.Model(model.input, model.output, name=model.name)
  free = keras.models.clone_model(
      bare, input_tensors=inputs, clone_function=lambda layer: layer, call_function=call
  )
  if padding:  # The model has its own padding and cropping, which take any size.
    return free
  outputs = _cropped(free.outputs, inputs)
  return keras.Model(inputs, outputs if len(outputs) > 1 else outputs[0], name=model.name)
