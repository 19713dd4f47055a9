"""Phantom heads: where each tissue lies, drawn from formulas and a random generator.

Space is millimetres towards right, anterior and superior of the head's centre, so that a head is
drawn once (`draw_head`) and put on any grid of voxels afterwards (`tissue_map`). Grids may differ
in shape, spacing and order of axes: the scans of one subject then show one anatomy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

# The numbering of the full-head dataset, whose seven classes the phantoms know.
OUTSIDE, AIR, GREY, WHITE, CSF, BONE, SOFT = range(7)
Coordinates = list[np.ndarray]  # Right, anterior, superior in mm; they broadcast to a grid.
_WORLD_AXIS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}


@dataclasses.dataclass(frozen=True)
class Grid:
  """Where the voxels of one scan lie in the head.

  Attributes:
    shape: Voxels along the three stored axes.
    spacing_mm: Edge of a voxel along the three stored axes.
    axes: Where each stored axis points, e.g. "LAS".
    centre_mm: Middle of the grid: right, anterior, superior.
  """

  shape: tuple[int, int, int]
  spacing_mm: tuple[float, float, float]
  axes: str = "LAS"
  centre_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)

  @classmethod
  def covering(
      cls,
      field_mm: Sequence[float],
      shape: Sequence[int],
      axes: str,
      centre_mm: tuple[float, float, float],
  ) -> Grid:
    """Returns the grid that covers a field with voxels of whatever size that takes."""
    i, j, k = (int(count) for count in shape)
    x, y, z = (float(mm) for mm in field_mm)
    return cls((i, j, k), (x / i, y / j, z / k), axes, centre_mm)

  @property
  def affine(self) -> np.ndarray:
    """float64 [4, 4]: voxel index to right, anterior, superior millimetres."""
    affine = np.zeros((4, 4))
    affine[:3, 3], affine[3, 3] = self.centre_mm, 1
    for axis, code in enumerate(self.axes):
      world, sign = _WORLD_AXIS[code]
      affine[world, axis] = sign * self.spacing_mm[axis]
      affine[world, 3] -= affine[world, axis] * (self.shape[axis] - 1) / 2
    return affine

  def coordinates(self) -> Coordinates:
    """Returns right, anterior, superior of each voxel: float32 arrays that broadcast to `shape`."""
    affine = self.affine
    result: list[np.ndarray] = [np.zeros(0)] * 3
    for axis, code in enumerate(self.axes):
      world, _ = _WORLD_AXIS[code]
      line = affine[world, axis] * np.arange(self.shape[axis]) + affine[world, 3]
      broadcast = [1, 1, 1]
      broadcast[axis] = -1
      result[world] = line.astype(np.float32).reshape(broadcast)
    return result


@dataclasses.dataclass(frozen=True)
class TubeShape:
  """One hippocampus-like body: a bent, tapering tube that runs front to back.

  Attributes:
    side: 1 for the right half of the head, -1 for the left.
    centre_mm: Distance from the midline, anterior, superior.
    half_length_mm: Half of its length.
    radii_mm: Half axes of its cross section, across and upright.
    tilt: Rotation of the cross section in radians.
    bend_mm: How far its ends turn inwards and down.
  """

  side: int
  centre_mm: tuple[float, float, float]
  half_length_mm: float
  radii_mm: tuple[float, float]
  tilt: float
  bend_mm: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class HeadShape:
  """Everything in which one phantom subject differs from another.

  Attributes:
    half_axes_mm: Half axes of the skin's ellipsoid.
    wobble: [6] Strength and phase of the skull's departure from an ellipsoid.
    fold_phase: [3] Where the folds of the cortex lie.
    fold_mm: Distance from fold to fold.
    ventricle_scale: Size of the ventricles, 1 on average.
    hippocampi: Left and right.
  """

  half_axes_mm: tuple[float, float, float]
  wobble: np.ndarray
  fold_phase: np.ndarray
  fold_mm: float
  ventricle_scale: float
  hippocampi: tuple[TubeShape, TubeShape]


def draw_head(rng: np.random.Generator) -> HeadShape:
  """Draws the shape of one subject."""
  common = rng.normal(0, 1, 7).clip(-2, 2)

  def hippocampus(side: int) -> TubeShape:
    # Most of the variation is shared by the two sides, as in people.
    own = common + 0.4 * rng.normal(0, 1, 7).clip(-2, 2)
    return TubeShape(
        side=side,
        centre_mm=(30 + 2.0 * own[0], -14 + 3.0 * own[1], -16 + 2.5 * own[2]),
        half_length_mm=21 + 2.0 * own[3],
        radii_mm=(10.5 + 0.9 * own[4], 8.0 + 0.6 * own[5]),
        tilt=0.35 + 0.15 * own[6],
        bend_mm=(4 + own[1], 4 + own[3]),
    )

  return HeadShape(
      half_axes_mm=tuple((np.array([74.0, 92.0, 88.0]) * rng.uniform(0.94, 1.04, 3)).tolist()),
      wobble=np.concatenate([rng.uniform(0, 0.02, 3), rng.uniform(0, 2 * np.pi, 3)]),
      fold_phase=rng.uniform(0, 2 * np.pi, 3),
      fold_mm=float(rng.uniform(23, 29)),
      ventricle_scale=float(rng.uniform(0.75, 1.35)),
      hippocampi=(hippocampus(-1), hippocampus(1)),
  )


def ellipsoid(
    coordinates: Coordinates,
    centre_mm: Sequence[float],
    half_axes_mm: Sequence[float] | np.ndarray,
) -> np.ndarray:
  """Returns the squared normalized distance from the centre: below 1 inside."""
  distance: np.ndarray = np.zeros(1, np.float32)
  for x, c, a in zip(coordinates, centre_mm, half_axes_mm, strict=True):
    distance = distance + ((x - c) / a) ** 2
  return distance


def radius(head: HeadShape, coordinates: Coordinates) -> np.ndarray:
  """Returns the normalized distance from the head's centre: 1 on the skin."""
  right, anterior, superior = coordinates
  strength, phase = head.wobble[:3], head.wobble[3:]
  wobble = (
      strength[0] * np.sin(anterior / 30 + phase[0])
      + strength[1] * np.sin(superior / 35 + phase[1])
      + strength[2] * np.sin(right / 25 + phase[2])
  )
  squared = ellipsoid(coordinates, (0, 0, 0), head.half_axes_mm)
  return (np.sqrt(squared) * (1 + wobble)).astype(np.float32)


def folds(head: HeadShape, coordinates: Coordinates) -> np.ndarray:
  """Returns a gyroid, -1.5..1.5: its level sets wind through space as the cortex does."""
  angles = [
      2 * np.pi * x / head.fold_mm + phase
      for x, phase in zip(coordinates, head.fold_phase, strict=True)
  ]
  (sx, cx), (sy, cy), (sz, cz) = [(np.sin(a), np.cos(a)) for a in angles]
  return (sx * cy + sy * cz + sz * cx).astype(np.float32)


def _tube_section(
    tube: TubeShape, coordinates: Coordinates
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the squared distance from the axis, 1 on the surface, and two directions across."""
  right, anterior, superior = coordinates
  distance, middle, height = tube.centre_mm
  along = (anterior - middle) / tube.half_length_mm
  across = right * tube.side - (distance - tube.bend_mm[0] * along**2)
  upright = superior - (height - tube.bend_mm[1] * along)
  u = np.cos(tube.tilt) * across + np.sin(tube.tilt) * upright
  v = np.cos(tube.tilt) * upright - np.sin(tube.tilt) * across
  # The front is thicker, both ends are blunt: no slice shows a sliver of it.
  taper = np.sqrt(np.clip(1 - along**6, 1e-6, None)) * (1 + 0.2 * along.clip(-1, 1))
  section = (u / tube.radii_mm[0]) ** 2 + (v / tube.radii_mm[1]) ** 2
  return section / taper**2, u, v


def tissue_map(head: HeadShape, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
  """Puts a head on a grid.

  Returns:
    tissue: uint8 of the grid's shape, one of the seven classes of this module.
    hippocampus: uint8 of the grid's shape; 0 elsewhere, 1 left, 2 right.
  """
  coordinates = grid.coordinates()
  right, _, superior = coordinates
  r = radius(head, coordinates)
  fold = folds(head, coordinates)
  tissue = np.zeros(grid.shape, np.uint8)
  tissue[np.broadcast_to(ellipsoid(coordinates, (0, 22, -66), (50, 58, 62)) < 1, r.shape)] = SOFT
  tissue[r < 1] = SOFT
  tissue[np.broadcast_to(ellipsoid(coordinates, (0, 48, -66), (10, 26, 22)) < 1, r.shape)] = AIR
  tissue[r < 0.935] = BONE
  tissue[r < 0.865] = CSF
  _paint_cortex(head, tissue, r, fold)
  tissue[(abs(right) < 1.6) & (superior > 12) & (r < 0.865) & (r > 0.42)] = CSF
  _paint_deep_grey(tissue, coordinates)
  _paint_ventricles(head, tissue, coordinates)
  # Frontal sinuses lie within bone, behind the forehead.
  for side in (-9, 9):
    inside = ellipsoid(coordinates, (side, 0.9 * head.half_axes_mm[1], -14), (7, 3.2, 9)) < 1
    tissue[np.broadcast_to(inside, r.shape)] = AIR
  return tissue, _paint_hippocampi(head, tissue, coordinates)


def _paint_cortex(
    head: HeadShape, tissue: np.ndarray, r: np.ndarray, fold: np.ndarray
) -> None:
  mean_radius_mm = float(np.mean(head.half_axes_mm))
  depth_mm = (0.84 - r) * mean_radius_mm
  # Sulci are the valleys of the fold field, filled with fluid; the grey ribbon follows both.
  sulcus = (fold < -0.85) & (depth_mm < 11)
  brain = (depth_mm > 0) & ~sulcus
  tissue[brain] = GREY
  tissue[brain & (depth_mm > np.maximum(3.5, 9 - 7 * fold))] = WHITE


def _paint_deep_grey(tissue: np.ndarray, coordinates: Coordinates) -> None:
  for side in (-1, 1):
    for centre, half_axes in (
        ((side * 12, -14, 6), (8, 14, 8)),
        ((side * 25, 6, 2), (6, 14, 10)),
        ((side * 24, 18, -22), (8, 7, 7)),
    ):
      inside = ellipsoid(coordinates, centre, half_axes) < 1
      tissue[np.broadcast_to(inside, tissue.shape)] = GREY


def _paint_ventricles(
    head: HeadShape, tissue: np.ndarray, coordinates: Coordinates
) -> None:
  right, anterior, superior = coordinates
  scale = head.ventricle_scale
  # The arch of the lateral ventricles: their height falls off towards both ends.
  bent = [right, anterior, superior + anterior**2 / 120]
  for side in (-1, 1):
    inside = ellipsoid(bent, (side * 10, -2, 22), (6.5 * scale, 36, 8 * scale)) < 1
    tissue[np.broadcast_to(inside, tissue.shape)] = CSF
  third = ellipsoid(coordinates, (0, -8, 4), (2.6 * scale, 13, 10)) < 1
  tissue[np.broadcast_to(third, tissue.shape)] = CSF


def _paint_hippocampi(
    head: HeadShape, tissue: np.ndarray, coordinates: Coordinates
) -> np.ndarray:
  hippocampus = np.zeros(tissue.shape, np.uint8)
  for label, tube in enumerate(head.hippocampi, start=1):
    section, across, upright = _tube_section(tube, coordinates)
    section = np.broadcast_to(section, tissue.shape)
    # White matter wraps the body, and the temporal horn lies on its upper outer side.
    tissue[section < 2.6] = WHITE
    horn = (section < 1.7) & np.broadcast_to((upright > 0) & (across > 0), tissue.shape)
    tissue[horn] = CSF
    tissue[section < 1] = GREY
    hippocampus[section < 1] = label
  return hippocampus
