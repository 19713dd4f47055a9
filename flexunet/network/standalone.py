"""A network with all that stands around it, as one graph: native slices in, class ids out.

What prediction does to a slice in Python and TensorFlow is written here once more, in operations
that every export format has: the intensity window, resizing by weights (of `tf.image.resize`:
pixel centres, antialiased where an image shrinks), the border, the temperature, the way back and
the class ids. Exports compare it with `Predictor`, which stays the definition.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from flexunet import config
from flexunet.core.errors import InputError
from flexunet.imaging.intensity import IntensityWindow
from flexunet.network import export, model, probabilities
from flexunet.pipelines.pixel_size import MOST_SCALING, PixelSizes
from flexunet.pipelines.resizing import Resizing


@dataclasses.dataclass(frozen=True)
class Surroundings:
  """What stands around a network on the way from native slices to an answer.

  Attributes:
    image_size: (height, width) of the network's input.
    resize_mode: One of `resizing.MODES`.
    pixel_sizes: Those of the training, to which slices of other sizes are brought; None: slices
      are taken whatever their pixel size is.
    windows: What becomes 0 and 255 in each channel, one for all neighbours of a slice; (): slices
      are 8-bit already, as records hold them.
    channels: Of a scan; 1 where a slice is seen with its neighbours.
    context_slices: Neighbours on either side of a slice, which go in as further channels of it.
    temperature: Divides the logarithms of the probabilities, last of all; class ids stay.
    probabilities: Whether these come out, instead of class ids.
    native_size: (height, width) of the slices, where it is fixed; None: any.
  """

  image_size: tuple[int, int]
  resize_mode: str
  pixel_sizes: PixelSizes | None
  windows: tuple[IntensityWindow, ...]
  channels: int = 1
  context_slices: int = 0
  temperature: float = 1.0
  probabilities: bool = False
  native_size: tuple[int, int] | None = None

  @classmethod
  def of_run(cls, run_config: config.RunConfig, **others: Any) -> Surroundings:
    """Returns what a run puts around its network; `others` are fields that it does not decide.

    Raises:
      InputError: The run crops volumes to their foreground, which takes all slices at once.
    """
    if run_config.data.crop_foreground:
      raise InputError(
          "A run with --crop_foreground cuts a whole volume to its tissue before the network, which"
          " no graph of slices can do. Pass --output=network, and crop as export.json says."
      )
    if run_config.model.image_size is None:
      raise InputError("config.json must hold model.image_size. Got: null.")
    facts = run_config.dataset_facts
    recipe = facts.recipe
    # Where a build resamples, it windows first: its slices are 8-bit when they reach their grid.
    # A bias field is found in a whole volume, before the window.
    windows: tuple[IntensityWindow, ...] = ()
    if recipe is not None and not recipe.resamples and recipe.bias_correction == "none":
      windows = (recipe.intensity, *recipe.other_intensities)
    return cls(
        run_config.model.image_size, run_config.data.resize_mode, facts.pixel_sizes, windows,
        max(1, len(facts.channel_names)), run_config.data.context_slices, **others,
    )  # fmt: skip

  @property
  def image_channels(self) -> int:
    """Channels of a slice as it goes in, its neighbours counted."""
    return self.channels + 2 * self.context_slices

  @property
  def takes_window(self) -> bool:
    """Whether the limits of the window differ from volume to volume, and are an input."""
    return any(window.kind == "percentile" for window in self.windows)

  @property
  def any_frame(self) -> bool:
    """Whether the network's input may have to grow for a slice."""
    return self.resize_mode == "pad" or self.pixel_sizes is not None

  def at_fixed_size(self) -> Surroundings:
    """Returns the same for slices of one size that have the pixel size of the training.

    Raises:
      InputError: No size is given.
    """
    if self.native_size is None:
      raise InputError(
          "Format litert needs the size of the slices. Pass --image_size=HEIGHT,WIDTH."
      )
    return dataclasses.replace(self, pixel_sizes=None)


class Standalone(tf.Module):
  """The graph; its inputs by name are those of `signature`."""

  def __init__(self, network: keras.Model, around: Surroundings, real: tf.DType = tf.float64):
    """Prepares the graph.

    Args:
      network: A FlexUNet in float32, with one output; see `export.float32_twin`.
      around: What stands around it.
      real: Of the limits of the window and of the spacing: float64, by which prediction computes,
        or float32 for runtimes that have no other.
    """
    super().__init__(name="standalone")
    self._around, self._real = around, real
    self._network = model.accept_any_size(network) if around.any_frame else network
    resizing = Resizing(around.image_size, around.resize_mode)
    self._fixed_inner = resizing.inner_size(around.native_size) if around.native_size else None
    self.weights = [variable.value for variable in network.variables]

  @property
  def output_name(self) -> str:
    """What the output is called."""
    return "probability" if self._around.probabilities else "label"

  def signature(self, batch_size: int | None = None) -> list[tf.TensorSpec]:
    """Returns the inputs in order: image, and where they decide, window and spacing_mm."""
    around = self._around
    height, width = around.native_size or (None, None)
    kind = tf.float32 if around.windows else tf.uint8
    specs = [tf.TensorSpec((batch_size, height, width, around.image_channels), kind, "image")]
    if around.takes_window:
      specs.append(tf.TensorSpec((len(around.windows), 2), self._real, "window"))
    if around.pixel_sizes is not None:
      specs.append(tf.TensorSpec((2,), self._real, "spacing_mm"))
    return specs

  def function(self, batch_size: int | None = None) -> Any:
    """Returns the `tf.function` that takes the inputs of `signature` and gives {name: output}."""
    around = self._around

    def answer(*given: tf.Tensor) -> dict[str, tf.Tensor]:
      image, *others = given
      window = others.pop(0) if around.takes_window else None
      spacing_mm = others.pop(0) if around.pixel_sizes is not None else None
      return {self.output_name: self._answer(image, window, spacing_mm)}

    return tf.function(answer, input_signature=self.signature(batch_size), autograph=False)

  def _answer(
      self, image: tf.Tensor, window: tf.Tensor | None, spacing_mm: tf.Tensor | None
  ) -> tf.Tensor:
    pixels = self._eight_bits(image, window)
    size = self._around.native_size
    native_hw = tf.constant(size) if size else tf.shape(pixels)[1:3]
    inner, cubic = self._inner(native_hw, spacing_mm)
    frame = tf.maximum(tf.constant(self._around.image_size), inner)
    before = (frame - inner) // 2
    if self._scales:
      pixels = _scaled(pixels, native_hw, inner, cubic)
    after = frame - inner - before
    pixels = tf.pad(pixels, [[0, 0], [before[0], after[0]], [before[1], after[1]], [0, 0]])
    if not self._around.any_frame:
      pixels = tf.ensure_shape(pixels, [None, *self._around.image_size, pixels.shape[-1]])
    answers = self._network(pixels, training=False)
    if answers.shape[-1] == 1:  # Sigmoid: the share of the only foreground class.
      answers = tf.concat([1 - answers, answers], axis=-1)
    (top, left), (height, width) = tf.unstack(before), tf.unstack(inner)
    inside = answers[:, top : top + height, left : left + width, :]
    if self._scales:
      inside = _enlarged(_enlarged(inside, 2, native_hw[1]), 1, native_hw[0])
    if self._around.probabilities:
      return probabilities.tempered(inside, self._around.temperature, tf.experimental.numpy)
    return tf.cast(_class_ids(inside), tf.uint8)

  @property
  def _scales(self) -> bool:
    return self._around.resize_mode != "pad" or self._around.pixel_sizes is not None

  def _eight_bits(self, image: tf.Tensor, window: tf.Tensor | None) -> tf.Tensor:
    """Returns float32 [slices, H, W, channels of the network], whole numbers 0..255."""
    values = tf.cast(image, tf.float32)
    if windows := self._around.windows:
      limits = [[one.low, one.high] if one.kind == "window" else [0.0, 255.0] for one in windows]
      low, high = tf.unstack(
          tf.constant(limits, self._real) if window is None else window, axis=1
      )
      flat = high <= low
      steps = tf.cast(255.0 / tf.where(flat, tf.ones_like(low), high - low), tf.float32)
      above = values - tf.cast(low, tf.float32)
      scaled = tf.where(flat, tf.where(above > 0, 255.0, 0.0), above * steps)
      scaled = tf.where(tf.math.is_nan(scaled), 0.0, scaled)
      values = tf.floor(tf.clip_by_value(scaled, 0.0, 255.0) + 0.5)
    wanted = self._network.input_shape[-1]
    return tf.tile(values, [1, 1, 1, wanted]) if wanted != values.shape[-1] else values

  def _inner(
      self, native_hw: tf.Tensor, spacing_mm: tf.Tensor | None
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the size int32 [2] of the slice in the frame, and whether its pixel size decides it.

    The rule of `Resizing` and of `PixelSizes`.
    """
    around, real = self._around, self._real
    native, frame = tf.cast(native_hw, real), tf.constant(around.image_size)
    inner = native_hw
    if around.resize_mode == "stretch":
      inner = frame
    elif around.resize_mode == "fit" and around.native_size:
      inner = tf.constant(self._fixed_inner)
    elif around.resize_mode == "fit":
      scale = tf.reduce_min(tf.cast(frame, real) / native)
      inner = tf.clip_by_value(tf.cast(tf.round(native * scale), tf.int32), 1, frame)
    sizes = around.pixel_sizes
    if sizes is None or spacing_mm is None:
      return inner, tf.constant(False)
    edges = tf.cast(inner, real)
    seen = spacing_mm * native / edges
    low, high = (tf.constant(limit, real) for limit in sizes.unchanged_mm)
    # A comparison with NaN, an unknown spacing, is false.
    other = (seen > 0) & (seen < float("inf")) & ((seen < low) | (seen > high))
    factor = tf.where(other, seen / tf.constant(sizes.median_mm, real), tf.ones_like(seen))
    believed = tf.reduce_all((factor >= 1 / MOST_SCALING) & (factor <= MOST_SCALING))
    wanted = tf.maximum(tf.cast(tf.round(edges * factor), tf.int32), 1)
    scaled = tf.where(believed, wanted, inner)
    return scaled, tf.reduce_any(scaled != inner)


def of_network(
    network: keras.Model, around: Surroundings, real: tf.DType = tf.float64
) -> Standalone:
  """Returns the graph of a trained network, in float32.

  Raises:
    InputError: Keras runs on another backend than TensorFlow.
  """
  if keras.backend.backend() != "tensorflow":
    raise InputError(
        "An export that stands alone needs Keras on TensorFlow. Got:"
        f" {keras.backend.backend()}. Set KERAS_BACKEND=tensorflow, or pass --output=network."
    )
  return Standalone(export.float32_twin(network), around, real)


def _class_ids(probability: tf.Tensor) -> tf.Tensor:
  """Returns class ids int32 [...] of probabilities [..., classes], two classes or more."""
  return tf.argmax(probability, axis=-1, output_type=tf.int32)


def _scaled(
    pixels: tf.Tensor, native_hw: tf.Tensor, inner_hw: tf.Tensor, cubic: tf.Tensor
) -> tf.Tensor:
  """Returns pixels resized to `inner_hw` and rounded, as `Resizing.apply_image` does."""
  rows, columns = (
      _weights(native_hw[axis], inner_hw[axis], cubic) for axis in range(2)
  )
  # [N, H, W, C] -> [N, C, H, W], so that both axes are products of matrices.
  planes = tf.transpose(pixels, [0, 3, 1, 2])
  scaled = tf.matmul(rows, planes)
  # In two dimensions: TensorFlow 2.21 with oneDNN crashes where the second of two factors is
  # transposed and repeated over a batch.
  flat = tf.matmul(tf.reshape(scaled, [-1, native_hw[1]]), columns, transpose_b=True)
  shape = tf.concat([tf.shape(planes)[:2], inner_hw], axis=0)
  rounded = tf.clip_by_value(tf.round(tf.reshape(flat, shape)), 0.0, 255.0)
  return tf.transpose(rounded, [0, 2, 3, 1])


def _weights(native: tf.Tensor, inner: tf.Tensor, cubic: tf.Tensor) -> tf.Tensor:
  """Returns float32 [inner, native]: how much of each pixel is in each of the scaled image.

  A triangle, or the cubic of Keys (1981) with a = -0.5, around pixel centres; as wide as a pixel of
  the coarser of the two images.
  """
  inverse = 1.0 / (tf.cast(inner, tf.float32) / tf.cast(native, tf.float32))
  centres = (tf.cast(tf.range(inner), tf.float32) + 0.5) * inverse
  sources = tf.cast(tf.range(native), tf.float32) + 0.5
  far = tf.abs(sources[None, :] - centres[:, None]) * (1.0 / tf.maximum(inverse, 1.0))
  triangle = tf.maximum(1.0 - far, 0.0)
  near, outer = ((1.5 * far - 2.5) * far) * far + 1.0, ((-0.5 * far + 2.5) * far - 4.0) * far + 2.0
  keys = tf.where(far < 1.0, near, tf.where(far < 2.0, outer, 0.0))
  weights = tf.where(cubic, keys, triangle)
  return weights * (1.0 / tf.reduce_sum(weights, axis=1, keepdims=True))


def _enlarged(values: tf.Tensor, axis: int, wanted: tf.Tensor) -> tf.Tensor:
  """Returns [N, h, w, C] with an axis linearly interpolated to another length, edges repeated."""
  have = tf.shape(values)[axis]
  step = tf.cast(have, tf.float32) / tf.cast(wanted, tf.float32)
  place = (tf.cast(tf.range(wanted), tf.float32) + 0.5) * step - 0.5
  floor = tf.floor(place)
  first = tf.maximum(tf.cast(floor, tf.int32), 0)
  second = tf.minimum(tf.cast(tf.math.ceil(place), tf.int32), have - 1)
  share = tf.reshape(place - floor, [-1] + [1] * (3 - axis))
  before, after = tf.gather(values, first, axis=axis), tf.gather(values, second, axis=axis)
  return before + (after - before) * share
