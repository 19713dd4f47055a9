"""How a disturbed volume lies to the undisturbed one: values go there, answers come back.

Slices are [H, W, K]. A geometry moves within slices by `there` and `back`, and across slices by
weights; all of it works slice by slice, so that no more than two answers are held at a time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

SliceMap = Callable[[np.ndarray], np.ndarray]
# (first, second, share of the second): a slice between two others.
Between = tuple[int, int, float]


@dataclasses.dataclass(frozen=True, eq=False)
class Geometry:
  """Where the slices of a disturbed volume lie.

  Attributes:
    there: [H, W, K] of an undisturbed slice -> [h, w, K]; None: nothing moves within slices.
    back: [h, w, K] -> [H, W, K].
    slabs: Of each disturbed slice, which undisturbed ones it is the mean of, with their weights;
      None: each slice is itself.
    between: Of each undisturbed slice, between which disturbed ones it lies.
    reversed_order: Whether the disturbed slices stand in reversed order.
    relabel: Class id -> that of the other side of the body, uint8 [classes]; None: ids stay.
  """

  there: SliceMap | None = None
  back: SliceMap | None = None
  slabs: Sequence[tuple[np.ndarray, np.ndarray]] | None = None
  between: Sequence[Between] | None = None
  reversed_order: bool = False
  relabel: np.ndarray | None = None

  @property
  def keeps_grid(self) -> bool:
    """Whether disturbed slices lie where the undisturbed ones do."""
    return not (self.there or self.slabs or self.reversed_order or self.relabel is not None)

  def forward(self, slices: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields undisturbed slices [H, W, K], float32, as the disturbed volume shows them."""
    order = slices[::-1] if self.reversed_order else slices
    for own in _slabs(order, self.slabs):
      yield own if self.there is None else self.there(own)

  def labels(
      self, answers: Iterable[np.ndarray], to_label: Callable[[np.ndarray], np.ndarray]
  ) -> Iterator[np.ndarray]:
    """Yields the uint8 [H, W] labels of the undisturbed slices.

    Args:
      answers: Probabilities [h, w, classes] of the disturbed slices, in their order.
      to_label: Probabilities -> class ids.
    """
    if (back := self.back) is not None:
      answers = (back(one) for one in answers)
    if self.between is not None:
      answers = between(answers, self.between)
    found: Iterable[np.ndarray] = map(to_label, answers)
    if (relabel := self.relabel) is not None:
      found = (relabel[one] for one in found)
    return reversed(list(found)) if self.reversed_order else iter(found)

  def truth(self, labels: Sequence[np.ndarray], num_classes: int) -> Iterator[np.ndarray]:
    """Yields what a perfect network would answer: float32 [h, w, classes] per disturbed slice.

    Args:
      labels: uint8 [H, W] of the undisturbed slices.
      num_classes: Background included.
    """
    own = list(labels) if self.relabel is None else [self.relabel[one] for one in labels]
    return self.forward(_OneHot(own, num_classes))


class _OneHot(Sequence):
  """Labels as float32 [H, W, classes], made when they are asked for."""

  def __init__(self, labels: Sequence[np.ndarray], num_classes: int):
    self._labels, self._classes = labels, np.arange(num_classes)

  def __len__(self) -> int:
    return len(self._labels)

  def __getitem__(self, place):
    if isinstance(place, slice):
      return _OneHot(self._labels[place], len(self._classes))
    return (self._labels[place][..., None] == self._classes).astype(np.float32)


def _slabs(
    slices: Sequence[np.ndarray], slabs: Sequence[tuple[np.ndarray, np.ndarray]] | None
) -> Iterator[np.ndarray]:
  if slabs is None:
    yield from slices
    return
  for places, weights in slabs:
    total = np.zeros(slices[int(places[0])].shape, np.float32)
    for place, weight in zip(places.tolist(), weights.tolist(), strict=True):
      total += np.float32(weight) * slices[place]
    yield total


def between(answers: Iterable[np.ndarray], places: Sequence[Between]) -> Iterator[np.ndarray]:
  """Yields slices interpolated between neighbours; places ascend, two slices are held."""
  source = enumerate(answers)
  held: dict[int, np.ndarray] = {}
  for first, second, share in places:
    while max(first, second) not in held:
      index, answer = next(source)
      held[index] = answer
      held = {place: one for place, one in held.items() if place >= min(first, index)}
    if share == 0 or first == second:
      yield held[first]
    else:
      yield (1 - share) * held[first] + share * held[second]


def coarse(size: int, edge: float, wanted: float) -> int:
  """Returns how many voxels of the wanted edge cover `size` voxels, at most `size`, at least 1."""
  if wanted <= edge * (1 + 1e-6):
    return size
  return min(size, max(1, round(size * edge / wanted)))


def averaging(size: int, count: int) -> np.ndarray:
  """Returns float32 [count, size]: `count` equal voxels, each the mean of what it covers."""
  starts = np.arange(count)[:, None] * size / count
  ends = starts + size / count
  places = np.arange(size)[None]
  covered = np.clip(np.minimum(ends, places + 1) - np.maximum(starts, places), 0, None)
  return (covered * count / size).astype(np.float32)


def interpolation(size: int, count: int) -> list[Between]:
  """Returns where the centres of `size` voxels lie between those of `count` over one length."""
  where = np.clip((np.arange(size) + 0.5) * count / size - 0.5, 0, count - 1)
  first = np.minimum(where.astype(int), max(0, count - 2))
  return [
      (int(one), min(int(one) + 1, count - 1), float(place - one))
      for one, place in zip(first, where, strict=True)
  ]


def _interpolating(size: int, count: int) -> np.ndarray:
  """Returns `interpolation` as a matrix float32 [size, count]."""
  matrix = np.zeros((size, count), np.float32)
  for row, (first, second, share) in enumerate(interpolation(size, count)):
    matrix[row, first] += 1 - share
    matrix[row, second] += share
  return matrix


def coarse_size(
    native_hw: Sequence[int], edges: Sequence[float], wanted: float
) -> tuple[int, int]:
  """Returns (height, width) of a slice whose pixels have at least the wanted edge."""
  height, width = (coarse(*pair, wanted) for pair in zip(native_hw, edges, strict=True))
  return height, width


def resampling(
    native_hw: tuple[int, int], edges: Sequence[float], wanted: float
) -> Geometry:
  """Returns the geometry of larger pixels, each the mean of what it covers.

  Answers are interpolated linearly between the middles of these pixels.

  Args:
    native_hw: (height, width) of all slices.
    edges: (row, column) edge of a pixel.
    wanted: Edge of the larger pixels, in the same unit; an axis that is coarser already stays.
  """
  pairs = list(zip(native_hw, coarse_size(native_hw, edges, wanted), strict=True))
  down, up = ([make(*pair) for pair in pairs] for make in (averaging, _interpolating))
  return Geometry(there=lambda one: _product(down, one), back=lambda one: _product(up, one))


def _product(matrices: Sequence[np.ndarray], values: np.ndarray) -> np.ndarray:
  """Returns rows and columns of [H, W, K] multiplied by a matrix each, float32 [h, w, K]."""
  rows = np.tensordot(matrices[0], values.astype(np.float32, copy=False), (1, 0))
  return np.moveaxis(np.tensordot(matrices[1], rows, (1, 1)), 0, 1)


def turning(native_hw: tuple[int, int], edges: Sequence[float], degrees: float) -> Geometry:
  """Returns the geometry of slices turned about their middle, bilinear.

  What comes from outside of the slice is 0; answers from outside are background.

  Args:
    native_hw: (height, width) of all slices.
    edges: (row, column) edge of a pixel: the turn is one of lengths, not of pixels.
    degrees: The angle.
  """
  forth, return_way = (_places(native_hw, edges, angle) for angle in (degrees, -degrees))
  outside = 1 - _picked(np.ones((*native_hw, 1), np.float32), *return_way)[..., 0]

  def back(probability: np.ndarray) -> np.ndarray:
    found = _picked(probability, *return_way)
    found[..., 0] += outside
    return found

  return Geometry(there=lambda one: _picked(one, *forth), back=back)


def _places(
    size_hw: tuple[int, int], edges: Sequence[float], degrees: float
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the four pixels that each turned pixel lies between, int [4, H*W], and weights."""
  height, width = size_hw
  middle = (height - 1) / 2, (width - 1) / 2
  rows, columns = np.mgrid[:height, :width]
  y, x = (rows - middle[0]) * edges[0], (columns - middle[1]) * edges[1]
  turn = math.radians(degrees)
  row = (math.cos(turn) * y + math.sin(turn) * x) / edges[0] + middle[0]
  column = (-math.sin(turn) * y + math.cos(turn) * x) / edges[1] + middle[1]
  # Rounding must not push a pixel that lies on another one out of the slice.
  row, column = np.round(row, 9), np.round(column, 9)
  top, left = np.floor(row).astype(int), np.floor(column).astype(int)
  places, weights = [], []
  for down in (0, 1):
    for right in (0, 1):
      i, j = top + down, left + right
      weight = np.abs(1 - down - (row - top)) * np.abs(1 - right - (column - left))
      inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
      places.append(np.where(inside, i * width + j, 0).ravel())
      weights.append(np.where(inside, weight, 0).ravel())
  return np.array(places), np.array(weights, np.float32)


def _picked(values: np.ndarray, places: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """Returns the weighted means of four pixels each, float32 [H, W, K]."""
  flat = values.reshape(-1, values.shape[-1]).astype(np.float32, copy=False)
  total = np.zeros_like(flat)
  for place, weight in zip(places, weights, strict=True):
    total += weight[:, None] * flat[place]
  return total.reshape(values.shape)
