"""Sheets and single images of slices for the eye: outlines, slice numbers, sides, a legend.

Slices are uint8 [row, column, slice], upright; labels hold class ids on the same grid. Nothing that
names a person is drawn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flexunet.imaging.label_scheme import LabelScheme
from flexunet.reporting import colors, overlay

_GROUND, _INK = (16, 16, 16), (236, 239, 242)
_GAP = 6
_LINE = 20  # Height of a line of a legend.
_OPPOSITE = {"L": "R", "R": "L", "A": "P", "P": "A", "S": "I", "I": "S"}
_TEXT_SIZE = 13


@dataclasses.dataclass(frozen=True, eq=False)
class View:
  """How slices are shown.

  Attributes:
    names: Of the classes by id, background first; empty: no legend.
    palette: Colours as drawn, uint8 [classes, 3].
    aspect: Height of a pixel over its width, in mm; NaN where unknown.
    axes: Codes towards which rows, columns and slices run, e.g. "PLS"; "" where the scan states no
      orientation, so that no side is claimed.
  """

  names: Sequence[str]
  palette: np.ndarray
  aspect: float = 1.0
  axes: str = ""

  @classmethod
  def of_scheme(cls, scheme: LabelScheme, aspect: float = 1.0, axes: str = "") -> View:
    """Returns the view of a dataset's classes, in colours that stay apart."""
    return cls(scheme.names, colors.display_palette(scheme.palette), aspect, axes)

  @property
  def sides(self) -> tuple[str, str]:
    """What lies at the left and at the right edge of a slice, e.g. ("R", "L"); "" if unknown."""
    return (_OPPOSITE[self.axes[1]], self.axes[1]) if self.axes else ("", "")

  @property
  def legend(self) -> list[tuple[str, tuple[int, ...] | None]]:
    """Texts with the colours beside them: the classes, and where the slices run if known."""
    entries: list[tuple[str, tuple[int, ...] | None]] = [
        (name.replace("_", " "), tuple(map(int, self.palette[class_id])))
        for class_id, name in enumerate(self.names) if class_id
    ]  # fmt: skip
    if self.axes:
      entries.append((f"slices run from {_OPPOSITE[self.axes[2]]} to {self.axes[2]}", None))
    return entries


@dataclasses.dataclass(frozen=True, eq=False)
class Tile:
  """An image of a sheet, uint8 [h, w, 3], with a text in its corner and letters at its edges."""

  image: np.ndarray
  caption: str = ""
  sides: tuple[str, str] = ("", "")


def slice_tile(
    image: np.ndarray, label: np.ndarray, view: View, *, size: int, caption: str = ""
) -> Tile:
  """Returns a slice with thin outlines, its longer side `size` pixels long.

  Args:
    image: uint8 [H, W].
    label: Class ids, uint8 [H, W].
    view: How it is shown.
    size: In pixels.
    caption: In its corner.
  """
  shape = overlay.square_shape(image.shape, view.aspect, size)
  drawn = overlay.blend(
      overlay.resized(image, shape), overlay.resized(label, shape, picked=True), view.palette
  )
  return Tile(drawn, caption, view.sides)


def volume_sheet(
    pixels: np.ndarray,
    label: np.ndarray,
    view: View,
    *,
    max_tiles: int = 12,
    columns: int = 4,
    tile_size: int = 320,
) -> np.ndarray:
  """Returns a contact sheet of the slices of a volume with most foreground, labels drawn in.

  Args:
    pixels: uint8 [H, W, N], upright slices.
    label: uint8 [H, W, N].
    view: How they are shown.
    max_tiles: Slices shown at most.
    columns: Tiles in a row.
    tile_size: Longer side of a slice, in pixels.
  """
  tiles = [
      slice_tile(pixels[..., k], label[..., k], view, size=tile_size, caption=f"slice {k}")
      for k in richest_slices(label, max_tiles)
  ]
  return contact_sheet(tiles, columns=columns, tile_size=tile_size, legend=view.legend)


def slice_images(
    pixels: np.ndarray, label: np.ndarray, view: View, *, size: int
) -> Iterator[np.ndarray]:
  """Yields each slice of a volume as an image of its own with a legend, all of one size.

  Args:
    pixels: uint8 [H, W, N], upright slices.
    label: uint8 [H, W, N].
    view: How they are shown.
    size: Longer side of a slice, in pixels.
  """
  for k in range(label.shape[-1]):
    tile = slice_tile(pixels[..., k], label[..., k], view, size=size, caption=f"slice {k}")
    yield contact_sheet([tile], columns=1, tile_size=None, legend=view.legend)


def contact_sheet(
    tiles: Sequence[Tile],
    *,
    columns: int,
    tile_size: int | None = 320,
    legend: Sequence[tuple[str, tuple[int, ...] | None]] = (),
) -> np.ndarray:
  """Returns `tiles` of any sizes on one dark sheet, row by row, uint8 [H, W, 3].

  Args:
    tiles: Each is scaled to fit a square, its aspect kept, and centred.
    columns: Tiles in a row, at most.
    tile_size: Edge of the square, in pixels; None: the tiles, all of one size, stay as they are.
    legend: Texts below them, each with the colour of the square beside it, or None.
  """
  rows = -(-len(tiles) // columns)
  columns = min(columns, len(tiles))
  height, width = tiles[0].image.shape[:2] if tile_size is None else (tile_size, tile_size)
  across = columns * (width + _GAP) + _GAP
  down = rows * (height + _GAP) + _GAP
  lines = _lines(legend, across - 2 * _GAP)
  sheet = Image.new("RGB", (across, down + len(lines) * _LINE + (_GAP if lines else 0)), _GROUND)
  for position, tile in enumerate(tiles):
    row, column = divmod(position, columns)
    _paste(sheet, tile, (_GAP + column * (width + _GAP), _GAP + row * (height + _GAP)),
           (width, height))  # fmt: skip
  for number, line in enumerate(lines):
    _draw_line(sheet, line, down + number * _LINE)
  return np.asarray(sheet)


def _paste(
    sheet: Image.Image, tile: Tile, corner: tuple[int, int], room: tuple[int, int]
) -> None:
  """Puts a tile, with its texts, into the room (width, height) at a corner (x, y)."""
  image = Image.fromarray(tile.image)
  scale = min(room[0] / image.width, room[1] / image.height)
  size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
  if size != image.size:
    image = image.resize(size, Image.Resampling.BICUBIC)
  x, y = (
      start + (space - edge) // 2
      for start, space, edge in zip(corner, room, size, strict=True)
  )
  sheet.paste(image, (x, y))
  draw, (left, right) = ImageDraw.Draw(sheet), tile.sides
  # Texts stand in the tile's room, which may be larger than its image.
  _write(draw, (corner[0] + 4, corner[1] + 2), tile.caption, "la")
  _write(draw, (corner[0] + 4, corner[1] + room[1] // 2), left, "lm")
  _write(draw, (corner[0] + room[0] - 4, corner[1] + room[1] // 2), right, "rm")


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, anchor: str) -> None:
  """Writes a text that can be read on light and dark ground."""
  if text:
    draw.text(
        place, text, fill=_INK, font=_font(), anchor=anchor, stroke_width=2, stroke_fill=_GROUND
    )


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
  return ImageFont.load_default(size=_TEXT_SIZE)


def _lines(
    legend: Sequence[tuple[str, tuple[int, ...] | None]], width: int
) -> list[list[tuple[int, str, tuple[int, ...] | None]]]:
  """Returns the lines of a legend, each of (x, text, colour); no line is wider than `width`."""
  lines: list[list[tuple[int, str, tuple[int, ...] | None]]] = []
  x = width
  for text, color in legend:
    square = 18 if color else 0
    text = _shortened(text, width - square)
    needed = square + round(_font().getlength(text)) + 16
    if x + needed - 16 > width:
      lines.append([])
      x = 0
    lines[-1].append((_GAP + x, text, color))
    x += needed
  return lines


def _shortened(text: str, width: int) -> str:
  """Returns a text cut to a width in pixels."""
  while text and _font().getlength(text) > width:
    text = text[:-2].rstrip("…") + "…" if len(text) > 2 else ""
  return text


def _draw_line(
    sheet: Image.Image, line: Sequence[tuple[int, str, tuple[int, ...] | None]], y: int
) -> None:
  draw = ImageDraw.Draw(sheet)
  for x, text, color in line:
    if color:
      draw.rectangle((x, y + 4, x + 11, y + 15), fill=color)
    draw.text((x + (18 if color else 0), y + 10), text, fill=_INK, font=_font(), anchor="lm")


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
