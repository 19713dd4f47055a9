"""Surfaces of two masks: the distances between them, and the area on which they agree.

Masks are boolean arrays of two or three axes; `spacing_mm` has one entry per axis, in the same
order. Beyond the array is outside.

Distances (`surface_distances`) run between voxel centres, and each surface voxel counts once: the
convention of MONAI and MedPy. The surface is the set of the mask's voxels with a neighbour outside
along some axis (4 neighbours in 2-D, 6 in 3-D).

Agreement (`surface_agreement`) counts area (in 2-D length), as in Nikolov et al. 2018,
https://arxiv.org/abs/1809.04430. The surface runs between voxels: each cell of 2 x 2 (x 2)
neighbouring voxel centres that holds some inside and some outside has a surface element, whose
place is the middle of the cell and whose area is that of a surface through the middles of the
cell's edges, see `element_areas`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import spatial

from flexunet.core.errors import InputError
from flexunet.imaging.components import bounding_box


@dataclasses.dataclass(frozen=True)
class SurfaceDistances:
  """For each surface voxel of one mask the distance to the nearest of the other.

  Attributes:
    from_reference: float64 [voxels of the reference's surface]; empty where either mask is empty.
    from_prediction: float64 [voxels of the prediction's surface]; likewise.
  """

  from_reference: np.ndarray
  from_prediction: np.ndarray

  @property
  def defined(self) -> bool:
    """Whether both masks have a surface."""
    return bool(self.from_reference.size and self.from_prediction.size)

  def hausdorff(self, percentile: float = 95.0) -> float:
    """Returns the larger of the two directed percentiles; NaN where a mask is empty."""
    if not self.defined:
      return float("nan")
    return float(max(np.percentile(d, percentile) for d in self._both()))

  def average(self) -> float:
    """Returns the mean over the voxels of both surfaces (ASSD); NaN where a mask is empty."""
    if not self.defined:
      return float("nan")
    return float(np.concatenate(self._both()).mean())

  def mean_of_directions(self) -> float:
    """Returns the mean of the two directed means (MASD); NaN where a mask is empty."""
    if not self.defined:
      return float("nan")
    return float(np.mean([each.mean() for each in self._both()]))

  def _both(self) -> tuple[np.ndarray, np.ndarray]:
    return self.from_reference, self.from_prediction


def surface_distances(
    reference: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float] | np.ndarray
) -> SurfaceDistances:
  """Returns the distances between the surfaces of two masks of one shape.

  Raises:
    InputError: The shapes differ, or `spacing_mm` does not fit them.
  """
  reference, prediction = np.asarray(reference, bool), np.asarray(prediction, bool)
  spacing = checked_spacing(spacing_mm, reference, prediction)
  nothing = SurfaceDistances(np.zeros(0), np.zeros(0))
  if not reference.any() or not prediction.any():
    return nothing
  _check_known(spacing)
  # Surfaces are thin: a tree over their points visits less than a distance map of the volume.
  points = [_surface_points(mask) * spacing for mask in (reference, prediction)]
  trees = [spatial.cKDTree(each) for each in points]
  return SurfaceDistances(trees[1].query(points[0])[0], trees[0].query(points[1])[0])


@dataclasses.dataclass(frozen=True)
class SurfaceAgreement:
  """How much of two surfaces lies near the other one; agreements of several slices can be added.

  Attributes:
    near: float64 [tolerances], area of both surfaces within each tolerance of the other one.
    total: Area of both surfaces, in mm^2; in mm for masks of two axes.
  """

  near: np.ndarray
  total: float

  def __add__(self, other: SurfaceAgreement) -> SurfaceAgreement:
    return SurfaceAgreement(self.near + other.near, self.total + other.total)

  def surface_dice(self) -> np.ndarray:
    """Returns float64 [tolerances], the share of both surfaces that agrees; NaN without any."""
    return self.near / self.total if self.total else np.full(self.near.shape, np.nan)


def surface_agreement(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: Sequence[float] | np.ndarray,
    tolerances_mm: Sequence[float],
) -> SurfaceAgreement:
  """Returns the area on which the surfaces of two masks of one shape agree.

  A surface whose counterpart is empty agrees nowhere.

  Raises:
    InputError: The shapes differ, or `spacing_mm` does not fit them or is not known.
  """
  reference, prediction = np.asarray(reference, bool), np.asarray(prediction, bool)
  spacing = checked_spacing(spacing_mm, reference, prediction)
  _check_known(spacing)
  # A margin of 1e-6 mm: sums of spacings such as 3 x 0.1 must not be excluded by rounding.
  limits = np.asarray(tolerances_mm, np.float64) + 1e-6
  box = bounding_box(reference | prediction)
  sides = [_elements(mask[box], spacing) for mask in (reference, prediction)]
  near = np.zeros(limits.shape)
  if all(points.size for points, _ in sides):
    for (points, areas), (others, _) in (sides, sides[::-1]):
      # Beyond the largest tolerance the distance is infinite, and not searched for.
      reach = float(limits.max()) + 1e-6
      distance = spatial.cKDTree(others).query(points, distance_upper_bound=reach)[0]
      near += [areas[distance <= limit].sum() for limit in limits]
  return SurfaceAgreement(near, float(sum(areas.sum() for _, areas in sides)))


def _elements(mask: np.ndarray, spacing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns places in mm, float64 [elements, axes], and areas, float64 [elements]."""
  padded = np.pad(mask, 1)
  codes = np.zeros([size + 1 for size in mask.shape], np.uint8)
  for bit, corner in enumerate(_corners(mask.ndim)):
    part = tuple(slice(at, at + size) for at, size in zip(corner, codes.shape, strict=True))
    codes |= padded[part].astype(np.uint8) << bit
  crossed = (codes != 0) & (codes != (1 << 2**mask.ndim) - 1)
  return np.argwhere(crossed) * spacing, element_areas(spacing)[codes[crossed]]


def element_areas(spacing_mm: np.ndarray) -> np.ndarray:
  """Returns the area of the surface inside a cell, by the code of its corners.

  Bit n of a code says whether corner n is inside; corners are in the order of
  `itertools.product((0, 1), repeat=axes)`. The surface crosses each edge of the cell between an
  inside and an outside corner, in its middle, and each face of the cell in lines between those:
  - on a face with two crossed edges, in the line that joins them;
  - on a face with four, in two lines, each of which cuts off a corner: inside corners where the
    cell has at most as many of them as outside corners, outside corners otherwise.
  In 2-D the cell is such a face, and its lines are the surface. In 3-D the lines form loops. A loop
  spans a surface of triangles: of all ways to cut it into triangles between its points, that with
  the greatest area in a cell of edge 1, which keeps to the planes of the grid.

  Args:
    spacing_mm: float64 [axes].

  Returns:
    float64 [16] in mm for two axes, [256] in mm^2 for three.
  """
  spacing = np.asarray(spacing_mm, np.float64)
  # A line stretches with the axes; the normal of a triangle with the products of the other two.
  stretch = spacing if spacing.size == 2 else np.prod(spacing) / spacing
  return np.array([
      np.linalg.norm(pieces * stretch, axis=1).sum() for pieces in _unit_pieces(spacing.size)
  ])


def _corners(axes: int) -> list[tuple[int, ...]]:
  return list(itertools.product((0, 1), repeat=axes))


@functools.cache
def _unit_pieces(axes: int) -> list[np.ndarray]:
  """Returns for each code the surface in a cell of edge 1, float64 [pieces, axes].

  A piece is the vector of a line in 2-D; in 3-D the normal of a triangle, as long as its area.
  """
  corners = _corners(axes)
  pieces = []
  for code in range(1 << len(corners)):
    inside = {corner for bit, corner in enumerate(corners) if code >> bit & 1}
    few = inside if 2 * len(inside) <= len(corners) else set(corners) - inside
    lines = [line for face in _faces(axes) for line in _face_lines(face, few)]
    if axes == 2:
      vectors = [end - start for start, end in np.array(lines).reshape(-1, 2, 2)]
    else:
      vectors = [normal for loop in _loops(lines) for normal in _widest(np.array(loop))]
    pieces.append(np.array(vectors).reshape(-1, axes))
  return pieces


def _faces(axes: int) -> Iterator[list[tuple[int, ...]]]:
  """Yields the corners of each face in their order around it."""
  around = ((0, 0), (0, 1), (1, 1), (1, 0))
  if axes == 2:
    yield list(around)
    return
  for axis, side in itertools.product(range(3), (0, 1)):
    yield [(*corner[:axis], side, *corner[axis:]) for corner in around]


def _face_lines(face: list[tuple[int, ...]], few: set) -> list[tuple[tuple, tuple]]:
  """Returns the lines of the surface on a face: pairs of middles of its edges.

  Args:
    face: Four corners, in their order around the face.
    few: The corners inside or those outside, whichever are fewer.
  """
  edges = [(face[k], face[(k + 1) % 4]) for k in range(4)]
  middles = [tuple((a + b) / 2 for a, b in zip(*edge, strict=True)) for edge in edges]
  crossed = [k for k, (start, end) in enumerate(edges) if (start in few) != (end in few)]
  if len(crossed) == 4:
    return [(middles[k - 1], middles[k]) for k in range(4) if face[k] in few]
  return [(middles[crossed[0]], middles[crossed[1]])] if crossed else []


def _loops(lines: Sequence[tuple[tuple, tuple]]) -> Iterator[list[tuple]]:
  """Yields the closed loops that lines form, each as its points in order."""
  left = list(lines)
  while left:
    loop = list(left.pop())
    while loop[0] != loop[-1]:
      following = next(line for line in left if loop[-1] in line)
      left.remove(following)
      loop.append(following[following[0] == loop[-1]])
    yield loop[:-1]


def _widest(loop: np.ndarray) -> list[np.ndarray]:
  """Returns the normals of the triangles, of greatest area in total, that fill a loop."""
  if len(loop) < 3:
    return []
  # The triangle on the side from the last point to the first has its third corner at k.
  ways = [
      [*_widest(loop[: k + 1]), *_widest(loop[k:]),
       np.cross(loop[k] - loop[0], loop[-1] - loop[0]) / 2]
      for k in range(1, len(loop) - 1)
  ]  # fmt: skip
  return max(ways, key=lambda normals: sum(np.linalg.norm(normal) for normal in normals))


def checked_spacing(
    spacing_mm: Sequence[float] | np.ndarray, reference: np.ndarray, prediction: np.ndarray
) -> np.ndarray:
  """Returns the spacing as float64 [axes].

  Raises:
    InputError: The arrays differ in shape, or the spacing does not fit them.
  """
  if reference.shape != prediction.shape or reference.ndim not in (2, 3):
    raise InputError(
        "Reference and prediction must have one shape of 2 or 3 axes."
        f" Got {reference.shape} and {prediction.shape}."
    )
  spacing = np.asarray(spacing_mm, np.float64)
  if spacing.shape != (reference.ndim,) or not np.all((spacing > 0) | np.isnan(spacing)):
    raise InputError(
        f"spacing_mm must hold {reference.ndim} positive numbers, one per axis of"
        f" {reference.shape}, NaN for an unknown one. Got: {spacing.tolist()}."
    )
  return spacing


def _check_known(spacing: np.ndarray) -> None:
  if not np.isfinite(spacing).all():
    raise InputError(
        f"Distances need a known spacing along each axis. Got spacing_mm {spacing.tolist()}."
    )


def surface(mask: np.ndarray) -> np.ndarray:
  """Returns bool, of the mask's shape: its voxels with a neighbour outside."""
  inner = mask.copy()
  for axis in range(mask.ndim):
    # Views with the axis in front: writing to them writes to `inner`.
    along, whole = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
    along[1:] &= whole[:-1]
    along[:-1] &= whole[1:]
    along[:1] = along[-1:] = False
  return mask & ~inner


def _surface_points(mask: np.ndarray) -> np.ndarray:
  """Returns the indices of the surface voxels, float64 [voxels, axes]."""
  box = bounding_box(mask)
  corner = np.array([side.start for side in box], np.float64)
  return np.argwhere(surface(mask[box])) + corner
