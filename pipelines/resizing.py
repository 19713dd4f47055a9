"""Brings images of any size to the network's, and probabilities back to the image's own pixels.

Images are averaged (bilinear, antialiased when they shrink), labels are picked (nearest). Both use
pixel centres, so image and label stay on each other. The same code serves training and prediction.
"""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from flexunet.core.errors import InputError

MODES = ("pad", "fit", "stretch")


@dataclasses.dataclass(frozen=True)
class Resizing:
  """How an image comes to `image_size`, and back.

  Attributes:
    image_size: (height, width) of the network's input, in pixels.
    mode: "pad" keeps the resolution and adds a border (an image larger than `image_size` is
      an error), "fit" scales with the aspect kept and adds a border, "stretch" scales each axis.
    inner_hw: (height, width) to which the image is scaled inside of `image_size`, whatever the
      mode; None: as the mode says.
  """

  image_size: tuple[int, int]
  mode: str = "fit"
  inner_hw: tuple[int, int] | None = None

  def __post_init__(self):
    if self.mode not in MODES:
      raise ValueError(f"mode must be one of {MODES}. Got: {self.mode!r}.")

  def check(self, height: int, width: int, what: str) -> None:
    """Raises InputError for an image, named `what`, that 'pad' cannot hold."""
    if self.mode == "pad" and (height > self.image_size[0] or width > self.image_size[1]):
      raise InputError(
          f"{what}: {height}x{width} pixels do not fit into --image_size"
          f" {self.image_size[0]}x{self.image_size[1]} with --resize_mode=pad. Use"
          " --resize_mode=fit, or name --image_size: training takes larger slices in tiles of it."
      )

  def apply_image(self, image: tf.Tensor) -> tf.Tensor:
    """uint8 [N, H, W, C] -> uint8 [N, h, w, C]."""
    inner = self._inner(tf.shape(image)[-3:-1])
    out = frame_image(image, inner, tf.constant(self.image_size, tf.int32), self.method)
    out.set_shape([None, *self.image_size, image.shape[-1]])
    return out

  def apply_label(self, label: tf.Tensor) -> tf.Tensor:
    """uint8 [N, H, W, 1] -> uint8 [N, h, w, 1]; the border is background."""
    inner = self._inner(tf.shape(label)[-3:-1])
    label = _batched(label)
    if self.method is not None:
      label = tf.image.resize(label, inner, method="nearest")
    out = _bordered(label, inner, tf.constant(self.image_size, tf.int32))
    out.set_shape([None, *self.image_size, label.shape[-1]])
    return out

  def invert(self, probability: tf.Tensor, native_hw: tuple[int, int]) -> tf.Tensor:
    """float32 [N, h, w, C] -> float32 [N, H, W, C]: the border cut off, scaled back bilinearly."""
    native = tf.constant(native_hw, tf.int32)
    inner = self._inner(native)
    frame = tf.constant(self.image_size, tf.int32)
    return unframe_probability(probability, inner, frame, native, self.method)

  def inner_size(self, native_hw: tuple[int, int]) -> tuple[int, int]:
    """Returns (height, width) of an image inside of `image_size`, without its border."""
    height, width = self._inner(tf.constant(native_hw, tf.int32)).numpy()
    return int(height), int(width)

  @property
  def method(self) -> str | None:
    """How images are interpolated; None where their pixels stay as they are."""
    if self.inner_hw is not None:
      # Cubic keeps more of the edges of a coarse scan; modes stay as networks were trained on them.
      return "bicubic"
    return None if self.mode == "pad" else "bilinear"

  def _inner(self, native_hw: tf.Tensor) -> tf.Tensor:
    """Returns the size of the image inside the frame, int32 [2]."""
    if self.inner_hw is not None:
      return tf.constant(self.inner_hw, tf.int32)
    if self.mode == "pad":
      return native_hw
    frame = tf.constant(self.image_size, tf.int32)
    if self.mode == "stretch":
      return frame
    scale = tf.reduce_min(tf.cast(frame, tf.float64) / tf.cast(native_hw, tf.float64))
    rounded = tf.cast(tf.round(tf.cast(native_hw, tf.float64) * scale), tf.int32)
    return tf.clip_by_value(rounded, 1, frame)


def to_channels(image: tf.Tensor, channels: int) -> tf.Tensor:
  """[..., C] -> [..., channels]: equal stays, grey is repeated, colour becomes grey first."""
  have = image.shape[-1]
  if have == channels:
    return image
  if have == 3:
    image = tf.image.rgb_to_grayscale(image)
  elif have != 1:
    raise InputError(
        f"--image_channels must be the channels of the dataset's images, {have}. Got: {channels}."
    )
  return tf.repeat(image, channels, axis=-1) if channels > 1 else image


def frame_image(
    image: tf.Tensor, inner_hw: tf.Tensor, frame_hw: tf.Tensor, method: str | None
) -> tf.Tensor:
  """uint8 [N, H, W, C] -> uint8 [N, h, w, C]: scaled, and a border of 0 around it.

  All sizes may change from call to call of one graph.

  Args:
    image: Images of one size.
    inner_hw: int32 [2], the size of the image inside the frame.
    frame_hw: int32 [2], that of the frame.
    method: As `Resizing.method`.
  """
  image = _batched(image)
  if method is not None:
    smooth = tf.image.resize(image, inner_hw, method=method, antialias=True)
    image = tf.cast(tf.clip_by_value(tf.round(smooth), 0.0, 255.0), tf.uint8)
  return _bordered(image, inner_hw, frame_hw)


def unframe_probability(
    probability: tf.Tensor,
    inner_hw: tf.Tensor,
    frame_hw: tf.Tensor,
    native_hw: tf.Tensor,
    method: str | None,
) -> tf.Tensor:
  """float32 [N, h, w, C] -> float32 [N, H, W, C]: the inverse of `frame_image`, bilinear."""
  top, left = tf.unstack((frame_hw - inner_hw) // 2)
  inside = probability[:, top : top + inner_hw[0], left : left + inner_hw[1], :]
  return inside if method is None else tf.image.resize(inside, native_hw, method="bilinear")


def _bordered(pixels: tf.Tensor, inner_hw: tf.Tensor, frame_hw: tf.Tensor) -> tf.Tensor:
  """[N, h', w', C] -> [N, h, w, C] with a border of 0."""
  before = (frame_hw - inner_hw) // 2
  after = frame_hw - inner_hw - before
  paddings = tf.stack([[0, 0], [before[0], after[0]], [before[1], after[1]], [0, 0]])
  return tf.pad(pixels, paddings)


def _batched(pixels: tf.Tensor) -> tf.Tensor:
  if pixels.shape.rank != 4:
    raise ValueError(f"Expected [N, H, W, C]. Got: {pixels.shape}.")
  return pixels
