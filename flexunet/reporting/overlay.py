"""Labels drawn over grey slices: blended images, frames and contact sheets.

Images are uint8 [H, W]; labels hold class ids, uint8 [H, W], 0 is the background; colours are
uint8 RGB. Everything here is for the eye: no score is ever computed from these images.
"""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

# Shown instead of a class colour without hue (white, grey, black), which would be lost on a grey
# scan. Okabe and Ito's set, which colour-blind readers can distinguish, and two bright ones.
_STAND_INS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 225, 225),
    (255, 60, 220),
)
_MIN_SATURATION = 0.25
_MIN_BRIGHTNESS = 0.35


def display_palette(palette: np.ndarray) -> np.ndarray:
  """Returns `palette` [classes, 3] with every foreground colour visible on a grey scan.

  Colours with a hue are kept. Grey ones are replaced, each by the stand-in farthest from the
  colours already in use, so that no two classes look alike.
  """
  shown = np.array(palette, np.uint8, copy=True)
  dull = []
  for index in range(1, len(shown)):
    _, saturation, brightness = colorsys.rgb_to_hsv(*(shown[index] / 255.0))
    if saturation < _MIN_SATURATION or brightness < _MIN_BRIGHTNESS:
      dull.append(index)
  used = [_lab(shown[index]) for index in range(1, len(shown)) if index not in dull]
  for index in dull:
    distances = [
        min((float(np.linalg.norm(other - _lab(color))) for other in used), default=0.0)
        for color in _STAND_INS
    ]
    shown[index] = _STAND_INS[int(np.argmax(distances))]
    used.append(_lab(shown[index]))
  return shown


def _lab(rgb: Sequence[int] | np.ndarray) -> np.ndarray:
  """Returns a colour as CIELAB (white D65), where distances are those that the eye sees."""
  share = np.asarray(rgb, np.float64) / 255
  linear = np.where(share > 0.04045, ((share + 0.055) / 1.055) ** 2.4, share / 12.92)
  to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
  xyz = np.array(to_xyz) @ linear / (0.9505, 1.0, 1.089)
  x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
  return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


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


def blend(
    image: np.ndarray, label: np.ndarray, palette: np.ndarray, *, opacity: float = 0.35
) -> np.ndarray:
  """Returns uint8 [H, W, 3]: `image`, each class tinted and outlined in its colour.

  Args:
    image: uint8 [H, W].
    label: uint8 [H, W], ids below len(palette).
    palette: uint8 [classes, 3]; entry 0 is never drawn.
    opacity: Share of the colour inside a region; its outline is opaque.

  Raises:
    ValueError: Image and label differ in shape.
  """
  if image.shape != label.shape:
    raise ValueError(f"Image and label must have one shape. Got {image.shape} and {label.shape}.")
  rgb = to_rgb(image).astype(np.float32)
  inside = label > 0
  colors = palette[label].astype(np.float32)
  rgb[inside] += opacity * (colors[inside] - rgb[inside])
  edge = contour(label)
  rgb[edge] = colors[edge]
  return np.round(rgb).astype(np.uint8)


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


def richest_slices(label: np.ndarray, count: int) -> list[int]:
  """Returns up to `count` positions along the last axis of `label` [H, W, N], in ascending order.

  They are the slices with most foreground, no two of them neighbours while others are left, so
  that a sheet shows the length of a structure. Without foreground they are evenly spread.
  """
  slices = label.shape[-1]
  count = min(count, slices)
  areas = np.count_nonzero(label, axis=(0, 1))
  if not areas.any():
    return [int(k) for k in np.linspace(0, slices - 1, count + 2)[1:-1].round()]
  ranked = [int(k) for k in np.argsort(-areas, kind="stable") if areas[k]]
  chosen: list[int] = []
  for min_gap in (2, 1):
    for k in ranked:
      if len(chosen) < count and all(abs(k - other) >= min_gap for other in chosen):
        chosen.append(k)
  return sorted(chosen)


def contact_sheet(
    tiles: Sequence[np.ndarray], *, columns: int, tile_size: int = 320, gap: int = 6
) -> np.ndarray:
  """Returns `tiles` (uint8 [h, w, 3] of any sizes) on one dark sheet, row by row.

  Each tile is scaled to fit a square of `tile_size` pixels, its aspect kept, and centred.
  """
  rows = -(-len(tiles) // columns)
  columns = min(columns, len(tiles))
  step = tile_size + gap
  sheet = Image.new("RGB", (columns * step + gap, rows * step + gap), (16, 16, 16))
  for position, tile in enumerate(tiles):
    image = Image.fromarray(tile)
    scale = tile_size / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.BICUBIC)
    row, column = divmod(position, columns)
    sheet.paste(
        image,
        (
            gap + column * step + (tile_size - size[0]) // 2,
            gap + row * step + (tile_size - size[1]) // 2,
        ),
    )
  return np.asarray(sheet)


def volume_sheet(
    pixels: np.ndarray,
    label: np.ndarray,
    palette: np.ndarray,
    *,
    aspect: float = 1.0,
    max_tiles: int = 12,
    columns: int = 4,
) -> np.ndarray:
  """Returns a contact sheet of the slices of a volume with most foreground, labels drawn in.

  Args:
    pixels: uint8 [H, W, N], upright slices.
    label: uint8 [H, W, N].
    palette: uint8 [classes, 3].
    aspect: Height of a pixel over its width, in mm; tiles are stretched to it.
    max_tiles: Slices shown at most.
    columns: Tiles in a row.
  """
  tiles = [
      stretch(blend(pixels[..., k], label[..., k], palette), aspect)
      for k in richest_slices(label, max_tiles)
  ]
  return contact_sheet(tiles, columns=columns)


def stretch(image: np.ndarray, aspect: float) -> np.ndarray:
  """Returns [H, W] or [H, W, 3] resampled to square pixels, along the axis that this lengthens.

  `aspect` is the height of a pixel over its width; 1, NaN and non-positive values change nothing.
  """
  if not np.isfinite(aspect) or aspect <= 0 or abs(aspect - 1) < 0.01:
    return image
  height, width = image.shape[:2]
  size = (width, round(height * aspect)) if aspect > 1 else (round(width / aspect), height)
  return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def encode_png(image: np.ndarray) -> bytes:
  """Returns a uint8 image, [H, W] or [H, W, 3], as the bytes of a PNG file."""
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, format="PNG")
  return buffer.getvalue()
