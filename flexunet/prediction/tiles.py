"""Overlapping tiles: a frame larger than a network was trained for is predicted part by part.

A frame is what a slice has become for the network (`Resizing`), so its pixels have the size that
the network knows. Tiles begin at multiples of the network's coarsest grid, and the answer at a
pixel is that of the whole frame where each tile in use there reaches the radius of the receptive
field beyond the pixel, or to the border of the frame.

Where tiles overlap, their answers are averaged. The weight of a tile falls off towards its inner
edges like a Gaussian over the overlap; the outermost pixels of an inner edge, at most a quarter of
the overlap, see a border that is not there in the frame, and are not used. At the border of the
frame weights do not fall off. The weights of all tiles sum to 1 at each pixel.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from flexunet.core.config_fields import Checked, knob
from flexunet.core.errors import InputError
from flexunet.network import cost
from flexunet.network.architecture import ModelConfig

DEFAULT_OVERLAP = 64
# A forward pass may take this much, and this share of the memory that is free. The first bound
# makes the choice the same on all machines but small ones.
_MOST_BYTES, _MEMORY_SHARE = 2 * 2**30, 0.25
# The Gaussian falls to 1 % over the overlap that is used: at three standard deviations.
_DEVIATIONS = 3.0
_SIZES_NAMED = 3

# uint8 [B, h, w, channels] -> float32 [B, h, w, classes].
Network = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TileOptions(Checked):
  """What the user asks for: flags of `predict` and `evaluate`, arguments of the library."""

  tile: str = knob(
      "auto",
      "Predicts slices in overlapping tiles of this many pixels, such as 512 or 512,384 (height,"
      " width). 'auto' does so where the whole slice would take more than 2 GB, or a quarter of the"
      " free memory, in the largest tiles that do not, and says so; 'none' never does.",
  )
  overlap: int | None = knob(
      None,
      "Pixels by which neighbouring tiles overlap at least.",
      minimum=0,
      unset=f"{DEFAULT_OVERLAP}, at most half a tile",
  )

  def __post_init__(self):
    super().__post_init__()
    size = self.size_hw
    if self.overlap is None:
      return
    if self.tile == "none":
      raise InputError("--overlap is of tiles, which --tile=none excludes. Leave one of them out.")
    if size is not None and self.overlap >= min(size):
      raise InputError(
          f"--overlap must be smaller than --tile, {_text(size)}. Got: {self.overlap}."
      )

  @functools.cached_property
  def size_hw(self) -> tuple[int, int] | None:
    """(height, width) of a tile as asked for; None with 'auto' and 'none'."""
    if self.tile in ("auto", "none"):
      return None
    words = self.tile.split(",")
    if len(words) > 2 or not all(word.strip().isdecimal() for word in words):
      raise InputError(
          f"--tile must be auto, none, or one or two numbers of pixels, such as 512 or 512,384."
          f" Got: {self.tile}."
      )
    height, width = int(words[0]), int(words[-1])
    if not (0 < height < 2**31 and 0 < width < 2**31):
      raise InputError(f"--tile must be from 1 to {2**31 - 1} pixels. Got: {self.tile}.")
    return height, width

  @classmethod
  def of(cls, tile: str | int | Sequence[int] = "auto", overlap: int | None = None) -> TileOptions:
    """Returns the options as Python has them: "auto", 512 or (512, 384)."""
    if not isinstance(tile, str):
      edges = [tile] if hasattr(tile, "__index__") else list(tile)
      tile = ",".join(map(str, edges))
    return cls(tile=tile, overlap=overlap)


WHERE_NEEDED = TileOptions()


@dataclasses.dataclass(frozen=True, eq=False)
class Axis:
  """Tiles along one axis of a frame.

  Attributes:
    starts: First pixel of each tile.
    size: Pixels of each.
    weights: float32 [tiles, size], of each pixel of each tile; those of a pixel of the frame sum
      to 1.
  """

  starts: list[int]
  size: int
  weights: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Tiling:
  """How a frame is cut into tiles.

  Attributes:
    frame_hw: (height, width) of the frame.
    rows, columns: Tiles along both axes; together they may reach beyond the frame's end.
    overlap: Pixels that neighbours share at least.
    reason: Why there are tiles.
  """

  frame_hw: tuple[int, int]
  rows: Axis
  columns: Axis
  overlap: int
  reason: str

  @property
  def tile_hw(self) -> tuple[int, int]:
    """(height, width) of each tile."""
    return self.rows.size, self.columns.size

  @property
  def num_tiles(self) -> int:
    """Tiles of a frame."""
    return len(self.rows.starts) * len(self.columns.starts)

  def __str__(self) -> str:
    grid = f"{len(self.rows.starts)} x {len(self.columns.starts)}"
    return (
        f"slices of {_text(self.frame_hw)} pixels in {grid} tiles of {_text(self.tile_hw)} that"
        f" overlap by {self.overlap} ({self.reason})"
    )


def axis_of(length: int, size: int, overlap: int, multiple: int, radius: int) -> Axis:
  """Lays tiles along an axis, evenly, from its first pixel to its last.

  Args:
    length: Pixels of the axis, a multiple of `multiple`.
    size: Pixels of a tile, a multiple of it, at most `length`.
    overlap: Pixels that neighbours share at least; less than `size` by at least `multiple`.
    multiple: Tiles begin at multiples of it.
    radius: How far a pixel of the answer sees.
  """
  stride = (size - overlap) // multiple * multiple
  count = 1 + math.ceil((length - size) / stride)
  step = (length - size) / max(1, count - 1)
  starts = [round(index * step) // multiple * multiple for index in range(count)]
  margin = min(radius, overlap // 4)
  flank = _flank(size, margin, overlap - 2 * margin)
  weights = np.ones((count, size))
  weights[1:] *= flank
  weights[:-1] *= flank[::-1]
  total = np.zeros(length)
  for start, weight in zip(starts, weights, strict=True):
    total[start : start + size] += weight
  for start, weight in zip(starts, weights, strict=True):
    weight /= total[start : start + size]
  return Axis(starts, size, weights.astype(np.float32))


def _flank(size: int, margin: int, zone: int) -> np.ndarray:
  """Returns weights float64 [size] from an inner edge on: 0 in the margin, a Gaussian, then 1."""
  depth = np.arange(size) - margin + 0.5
  weights = np.exp(-0.5 * (_DEVIATIONS * np.clip(1 - depth / max(1, zone), 0, None)) ** 2)
  weights[:margin] = 0
  return weights if zone else np.ones(size)


def answer(network: Network, frames: np.ndarray, tiling: Tiling, batch_size: int) -> np.ndarray:
  """Returns float32 [N, H, W, classes] for frames uint8 [N, H, W, channels], put together of tiles.

  Args:
    network: Answers tiles.
    frames: Of the size of the tiling.
    tiling: How they are cut.
    batch_size: Tiles that the network is given at once.
  """
  height, width = tiling.frame_hw
  rows, columns = tiling.rows, tiling.columns
  ends = (rows.starts[-1] + rows.size, columns.starts[-1] + columns.size)
  # The network itself would append these zeros to a frame that its grid does not divide.
  frames = np.pad(frames, ((0, 0), (0, ends[0] - height), (0, ends[1] - width), (0, 0)))
  places = itertools.product(
      range(len(frames)), range(len(rows.starts)), range(len(columns.starts))
  )
  total: np.ndarray | None = None
  while chunk := list(itertools.islice(places, batch_size)):
    cut = [
        (n, slice(rows.starts[i], rows.starts[i] + rows.size),
         slice(columns.starts[j], columns.starts[j] + columns.size))
        for n, i, j in chunk
    ]  # fmt: skip
    answers = network(np.stack([frames[where] for where in cut]))
    if total is None:
      total = np.zeros((*frames.shape[:3], answers.shape[-1]), np.float32)
    for (_, i, j), where, one in zip(chunk, cut, answers, strict=True):
      total[where] += one * (rows.weights[i][:, None] * columns.weights[j])[..., None]
  if total is None:
    raise ValueError("There must be a frame to answer.")
  return total[:, :height, :width]


class Tiler:
  """Decides which frames of a run are cut into tiles, and how."""

  def __init__(self, model: ModelConfig, options: TileOptions, free_bytes: int | None):
    """Takes what the decision depends on.

    Args:
      model: Of the run; complete.
      options: What the user asks for.
      free_bytes: Free memory of the device; None: unknown.

    Raises:
      InputError: The overlap leaves tiles of that size no way to advance.
    """
    if model.image_size is None:
      raise ValueError("The network of a run has an image_size.")
    self._model, self._options = model, options
    self._trained_hw = model.image_size
    self._limit_bytes = _MOST_BYTES
    if free_bytes is not None:
      self._limit_bytes = min(_MOST_BYTES, int(_MEMORY_SHARE * free_bytes))
    # The field is a square on the pooling grid, in which the pixel lies anywhere.
    seen = cost.output_field(model)
    self.radius = (seen + model.multiple) // 2
    self._known: dict[tuple[int, int], Tiling | None] = {}
    if options.size_hw is not None and options.overlap is not None:
      self._check_overlap(options.size_hw, options.overlap)

  @property
  def has_size(self) -> bool:
    """Whether the user named the size of the tiles."""
    return self._options.size_hw is not None

  def tiling(self, frame_hw: tuple[int, int]) -> Tiling | None:
    """Returns how a frame is cut; None: the network takes it whole."""
    if frame_hw not in self._known:
      self._known[frame_hw] = self._decided(frame_hw)
    return self._known[frame_hw]

  def lines(self) -> list[str]:
    """Returns how frames have been cut so far, one line for each of the first sizes."""
    cuts = [str(cut) for cut in self._known.values() if cut is not None]
    if len(cuts) > _SIZES_NAMED:
      cuts[_SIZES_NAMED:] = [f"slices of {len(cuts) - _SIZES_NAMED} more sizes in tiles"]
    return cuts

  def _decided(self, frame_hw: tuple[int, int]) -> Tiling | None:
    asked = self._options.size_hw
    if asked is not None:
      return self._laid(frame_hw, asked, self._overlap_of(asked), "--tile")
    needed = self._bytes(frame_hw)
    if self._options.tile == "none" or needed <= self._limit_bytes:
      return None
    reason = f"whole they would take {needed / 1e9:.1f} GB, by --tile=auto"
    return self._laid(frame_hw, *self._largest(frame_hw), reason)

  def _laid(
      self, frame_hw: tuple[int, int], tile_hw: tuple[int, int], overlap: int, reason: str
  ) -> Tiling | None:
    lengths = [self._up(edge) for edge in frame_hw]
    sizes = [
        min(self._up(edge), length) for edge, length in zip(tile_hw, lengths, strict=True)
    ]
    if sizes == lengths:
      return None
    multiple = self._model.multiple
    rows, columns = (
        axis_of(length, size, min(overlap, size - multiple), multiple, self.radius)
        for length, size in zip(lengths, sizes, strict=True)
    )
    return Tiling(frame_hw, rows, columns, overlap, reason)

  def _largest(self, frame_hw: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """Returns the largest tile that fits the memory, not below the trained size, and its overlap.

    Of equally many tiles the smallest size that does it: less is computed twice.
    """
    multiple = self._model.multiple
    pixels = self._limit_bytes * multiple**2 / self._bytes((multiple, multiple))
    # What a short axis leaves the long one may have.
    edge = max(math.sqrt(pixels), pixels / self._up(min(frame_hw)))
    down = [
        max(self._up(least), min(int(edge) // multiple * multiple, self._up(length)))
        for length, least in zip(frame_hw, self._trained_hw, strict=True)
    ]
    overlap = self._overlap_of((down[0], down[1]))
    sizes = []
    for size, edge, least in zip(down, frame_hw, self._trained_hw, strict=True):
      count = 1 + max(0, math.ceil((edge - size) / (size - overlap)))
      sizes.append(max(least, math.ceil((edge + (count - 1) * overlap) / count)))
    return (sizes[0], sizes[1]), overlap

  def _overlap_of(self, tile_hw: tuple[int, int]) -> int:
    if self._options.overlap is not None:
      return self._options.overlap
    return min(DEFAULT_OVERLAP, min(map(self._up, tile_hw)) // 2)

  def _check_overlap(self, tile_hw: tuple[int, int], overlap: int) -> None:
    most = min(map(self._up, tile_hw)) - self._model.multiple
    if overlap > most:
      raise InputError(
          f"--overlap must be at most {most} with --tile={_text(tile_hw)}: tiles of this network"
          f" advance by multiples of {self._model.multiple} pixels. Got: {overlap}."
      )

  def _bytes(self, frame_hw: tuple[int, int]) -> int:
    return cost.prediction_bytes(self._model, frame_hw)

  def _up(self, edge: int) -> int:
    return edge + -edge % self._model.multiple


def _text(size_hw: Sequence[int]) -> str:
  return "x".join(map(str, size_hw))
