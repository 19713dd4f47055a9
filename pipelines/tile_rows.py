"""Slices larger than the network's input, trained on and validated in tiles of its size.

With --resize_mode=pad and a given --image_size a slice keeps its resolution; one that is larger
becomes several rows of its table, each with a box of that size. Tiles lie evenly from one end of
the slice to the other and overlap as little as that takes. Pixels in which they overlap are seen,
and counted in the validation during training, once in each; an evaluation blends them instead.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from flexunet.pipelines.dataset_source import DatasetSource
from flexunet.pipelines.foreground_boxes import pixels_inside
from flexunet.pipelines.readers import native_reader
from flexunet.pipelines.record_table import RecordTable


def cut_rows(
    source: DatasetSource,
    table: RecordTable,
    size_hw: tuple[int, int],
    image_key: str = "image",
    label_key: str = "label",
) -> RecordTable:
  """Returns a table in which each row fits into `size_hw`; the same one where all do already.

  Sizes, boxes and pixels per class are those of the tiles; the labels of slices with foreground
  that are cut are read for it.

  Args:
    source: The dataset that gave the table.
    table: Its slices, with or without boxes.
    size_hw: (height, width) of the network's input.
    image_key, label_key: Features of the dataset.
  """
  large = (table.height > size_hw[0]) | (table.width > size_hw[1])
  if not large.any():
    return table
  boxes = table.boxes
  if boxes is None:
    edges = np.stack([table.height, table.width], axis=-1)
    boxes = np.concatenate([np.zeros_like(edges), edges], axis=-1)
  rows: list[int] = []
  parts: list[list[int]] = []
  for row, box in enumerate(boxes.tolist()):
    tiles = _tiles_of(box, size_hw) if large[row] else [box]
    rows += [row] * len(tiles)
    parts += tiles
  taken, cut = np.array(rows, np.int64), np.array(parts, np.int32)
  divided = dataclasses.replace(
      table.take(taken), boxes=cut, height=cut[:, 2], width=cut[:, 3]
  )
  if divided.pixels is None:
    return divided
  pixels = divided.pixels.copy()
  empty = pixels[:, 1:].sum(axis=1) == 0
  pixels[empty & large[taken], 0] = cut[empty & large[taken], 2:].prod(axis=1)
  native = native_reader(source, divided, image_key, label_key)
  for row, inside in pixels_inside(native, np.flatnonzero(large[taken] & ~empty), cut):
    pixels[row] = inside[: pixels.shape[1]]
  return dataclasses.replace(divided, pixels=pixels)


def _tiles_of(box: list[int], size_hw: tuple[int, int]) -> list[list[int]]:
  """Returns (top, left, height, width) of the tiles of a box, row by row."""
  (top, left), edges = box[:2], box[2:]
  spans = []
  for edge, size in zip(edges, size_hw, strict=True):
    count = math.ceil(edge / size)
    last = max(0, edge - size)
    starts = [round(index * last / max(1, count - 1)) for index in range(count)]
    spans.append([(start, min(edge, size)) for start in starts])
  return [
      [top + row, left + column, height, width]
      for row, height in spans[0]
      for column, width in spans[1]
  ]
