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
    inner, _ = self._inner(tf.shape(image)[-3:-1])
    if self._scales:
      # Cubic keeps more of the edges of a coarse scan; modes stay as networks were trained on them.
      method = "bilinear" if self.inner_hw is None else "bicubic"
      smooth = tf.image.resize(_batched(image), inner, method=method, antialias=True)
      image = tf.cast(tf.clip_by_value(tf.round(smooth), 0.0, 255.0), tf.uint8)
    else:
      image = _batched(image)
    return self._bordered(image, inner)

  def apply_label(self, label: tf.Tensor) -> tf.Tensor:
    """uint8 [N, H, W, 1] -> uint8 [N, h, w, 1]; the border is background."""
    inner, _ = self._inner(tf.shape(label)[-3:-1])
    label = _batched(label)
    if self._scales:
      label = tf.image.resize(label, inner, method="nearest")
    return self._bordered(label, inner)

  def invert(self, probability: tf.Tensor, native_hw: tuple[int, int]) -> tf.Tensor:
    """float32 [N, h, w, C] -> float32 [N, H, W, C]: the border cut off, scaled back bilinearly."""
    inner, (top, left) = self._inner(tf.constant(native_hw, tf.int32))
    inside = probability[:, top : top + inner[0], left : left + inner[1], :]
    if not self._scales:
      return inside
    return tf.image.resize(inside, native_hw, method="bilinear")

  def inner_size(self, native_hw: tuple[int, int]) -> tuple[int, int]:
    """Returns (height, width) of an image inside of `image_size`, without its border."""
    height, width = self._inner(tf.constant(native_hw, tf.int32))[0].numpy()
    return int(height), int(width)

  @property
  def _scales(self) -> bool:
    return self.mode != "pad" or self.inner_hw is not None

  def _inner(self, native_hw: tf.Tensor) -> tuple[tf.Tensor, tuple[tf.Tensor, tf.Tensor]]:
    """Returns (size of the image inside the frame int32 [2], (top, left) of its border)."""
    frame = tf.constant(self.image_size, tf.int32)
    if self.inner_hw is not None:
      inner = tf.constant(self.inner_hw, tf.int32)
    elif self.mode == "pad":
      inner = native_hw
    elif self.mode == "stretch":
      inner = frame
    else:
      scale = tf.reduce_min(tf.cast(frame, tf.float64) / tf.cast(native_hw, tf.float64))
      rounded = tf.cast(tf.round(tf.cast(native_hw, tf.float64) * scale), tf.int32)
      inner = tf.clip_by_value(rounded, 1, frame)
    border = (frame - inner) // 2
    return inner, (border[0], border[1])

  def _bordered(self, pixels: tf.Tensor, inner: tf.Tensor) -> tf.Tensor:
    """[N, h', w', C] -> [N, h, w, C] with a border of 0."""
    frame = tf.constant(self.image_size, tf.int32)
    before = (frame - inner) // 2
    after = frame - inner - before
    paddings = tf.stack([[0, 0], [before[0], after[0]], [before[1], after[1]], [0, 0]])
    out = tf.pad(pixels, paddings)
    out.set_shape([None, *self.image_size, pixels.shape[-1]])
    return out


def _batched(pixels: tf.Tensor) -> tf.Tensor:
  if pixels.shape.rank != 4:
    raise ValueError(f"Expected [N, H, W, C]. Got: {pixels.shape}.")
  return pixels
