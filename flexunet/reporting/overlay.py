"""Labels drawn over grey slices: outlines, blended images, frames.

Images are uint8 [H, W]; labels hold class ids, uint8 [H, W], 0 is the background; colours are
uint8 RGB. Everything here is for the eye: no score is ever computed from these images.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

TINT = 0.2  # Share of a class's colour inside a region.


def contour(label: np.ndarray) -> np.ndarray:
  """Returns bool [H, W]: foreground pixels with a 4-neighbour of another class."""
  edge = np.zeros(label.shape, bool)
  down = label[1:] != label[:-1]
  right = label[:, 1:] != label[:, :-1]
  edge[1:] |= down
  edge[:-1] |= down
  edge[:, 1:] |= right
  edge[:, :-1] |= right
  return edge & (label > 0)


def to_rgb(image: np.ndarray) -> np.ndarray:
  """Returns a grey image, uint8 [H, W], as RGB, uint8 [H, W, 3]."""
  return np.repeat(image[..., None], 3, axis=-1)


def grey_of(image: np.ndarray, channel: int | None = None) -> np.ndarray:
  """Returns what is shown of an image uint8 [H, W, C], as uint8 [H, W].

  Args:
    image: Of one or several channels.
    channel: The channel to show; None: the mean of all, as of colour and of neighbouring slices.
  """
  if channel is not None:
    return image[..., channel]
  return np.round(image.mean(axis=-1)).astype(np.uint8)


def outline(label: np.ndarray, width: int) -> np.ndarray:
  """Returns `label`, uint8 [H, W], but for `width` pixels along the edge of each class 0."""
  inside = label > 0
  for _ in range(width):
    rest = np.where(inside, label, 0)
    inside &= ~contour(rest)
  return np.where(inside, 0, label).astype(np.uint8)


def blend(
    image: np.ndarray,
    label: np.ndarray,
    palette: np.ndarray,
    *,
    opacity: float = TINT,
    width: int = 1,
) -> np.ndarray:
  """Returns uint8 [H, W, 3]: `image`, each class tinted and outlined in its colour.

  Args:
    image: uint8 [H, W].
    label: uint8 [H, W], ids below len(palette).
    palette: uint8 [classes, 3]; entry 0 is never drawn.
    opacity: Share of the colour inside a region; its outline is opaque.
    width: Of the outline, in pixels.

  Raises:
    ValueError: Image and label differ in shape.
  """
  if image.shape != label.shape:
    raise ValueError(f"Image and label must have one shape. Got {image.shape} and {label.shape}.")
  rgb = to_rgb(image).astype(np.float32)
  inside = label > 0
  colors = palette[label].astype(np.float32)
  rgb[inside] += opacity * (colors[inside] - rgb[inside])
  edge = outline(label, width) > 0
  rgb[edge] = colors[edge]
  return np.round(rgb).astype(np.uint8)


def errors(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
  """Returns what is wrong in each pixel, uint8 of the shape of the labels.

  0 nothing, 1 missed (background instead of a class), 2 false (a class instead of background),
  3 another class.
  """
  wrong = np.where(truth == 0, 2, np.where(prediction == 0, 1, 3))
  return np.where(truth == prediction, 0, wrong).astype(np.uint8)


def crop_box(
    labels: Sequence[np.ndarray], *, margin: float = 0.3, min_size: int = 48
) -> tuple[slice, slice]:
  """Returns the square window (rows, columns) around the foreground of all `labels` [H, W].

  The margin is a share of the foreground's larger side, on each side. Without any foreground,
  or where the window would show nearly everything anyway, it is the whole slice.
  """
  shape = labels[0].shape
  found = np.zeros(shape, bool)
  for label in labels:
    found |= label > 0
  whole = (slice(0, shape[0]), slice(0, shape[1]))
  if not found.any():
    return whole
  rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
  extent = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
  size = max(min_size, round(extent * (1 + 2 * margin)))
  if size > 0.8 * min(shape):
    return whole
  box = []
  for ends, length in ((rows, shape[0]), (columns, shape[1])):
    start = round((ends[0] + ends[-1] + 1) / 2 - size / 2)
    start = min(max(start, 0), length - size)
    box.append(slice(int(start), int(start + size)))
  return box[0], box[1]


def frame(image: np.ndarray, box: tuple[slice, slice]) -> np.ndarray:
  """Returns a grey image [H, W] as [H, W, 3] with a yellow line just inside the edge of `box`."""
  framed = to_rgb(image)
  # A line of one pixel in 650 would be lost where the image is shown small.
  width = max(1, round(max(image.shape) / 160))
  inner = tuple(slice(side.start + width, max(side.stop - width, side.start)) for side in box)
  line = np.zeros(image.shape, bool)
  line[box] = True
  line[inner] = False
  framed[line] = (255, 221, 51)
  return framed


def square_shape(
    shape: tuple[int, ...], aspect: float, longest: int | None = None
) -> tuple[int, int]:
  """Returns the (height, width) at which an image of `shape` has square pixels.

  Args:
    shape: (height, width, ...) of the image.
    aspect: Height of a pixel over its width; 1, NaN and non-positive values change nothing.
    longest: The longer side; None: the axis along which pixels are longer grows, the other stays.
  """
  height, width = float(shape[0]), float(shape[1])
  if np.isfinite(aspect) and aspect > 0 and abs(aspect - 1) >= 0.01:
    height, width = (height * aspect, width) if aspect > 1 else (height, width / aspect)
  scale = longest / max(height, width) if longest else 1.0
  return max(1, round(height * scale)), max(1, round(width * scale))


def resized(image: np.ndarray, shape: tuple[int, int], *, picked: bool = False) -> np.ndarray:
  """Returns a uint8 image [H, W] or [H, W, 3] at (height, width) `shape`.

  Args:
    image: The image, or class ids.
    shape: The new size.
    picked: Takes the nearest value, as class ids need; else values are interpolated.
  """
  if image.shape[:2] == shape:
    return image
  method = Image.Resampling.NEAREST if picked else Image.Resampling.BICUBIC
  return np.asarray(Image.fromarray(image).resize((shape[1], shape[0]), method))


def stretch(image: np.ndarray, aspect: float) -> np.ndarray:
  """Returns [H, W] or [H, W, 3] resampled to square pixels, along the axis that this lengthens.

  `aspect` is the height of a pixel over its width; 1, NaN and non-positive values change nothing.
  """
  return resized(image, square_shape(image.shape, aspect))


def encode_png(image: np.ndarray) -> bytes:
  """Returns a uint8 image, [H, W] or [H, W, 3], as the bytes of a PNG file."""
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, format="PNG")
  return buffer.getvalue()


def encode_layer(ids: np.ndarray, palette: np.ndarray) -> bytes:
  """Returns ids, uint8 [H, W], as a PNG in the colours of `palette` [classes, 3], 0 transparent."""
  image = Image.fromarray(ids, "P")
  image.putpalette(palette.astype(np.uint8).tobytes())
  buffer = io.BytesIO()
  image.save(buffer, format="PNG", transparency=0, optimize=True)
  return buffer.getvalue()
