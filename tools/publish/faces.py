"""Whether a face can be seen in a scan: skin around the skull, and the front of the lower head.

The rule, in this order:
1. Skin. In the largest slices, as they are and axial, rays run inwards from the edge of the head.
   Where they meet bone (dark between two tissues in MRI, saturated in CT), there is a skull, and so
   skin. A scan in which fewer than 45 % of the rays do so, in the median, is skull-stripped.
2. Field of view. A head whose crown is in the scan, and of which less than 85 mm below the crown
   are, has neither eyes nor nose in it.
3. Front. The forehead is how far tissue reaches forwards from 40 to 80 mm below the top. Where
   tissue reaches as far (2 cm less count as well) at more than a quarter of the levels from 90 to
   160 mm below the top, a face is there; else it was removed.
Where orientation or spacing is unknown, 2 and 3 cannot be asked, and skin alone is reason enough to
look at the scan.
"""

from __future__ import annotations

import nibabel as nib
import numpy as np
from scipy import ndimage

SKULL_STRIPPED = "skull-stripped"
NOT_IN_VIEW = "face not in the field of view"
REMOVED = "face removed"
FACE = "face"
UNKNOWN = "skin; orientation or spacing unknown"
TOO_SMALL = "too small to tell"
# What may be passed on.
ALLOWED = (SKULL_STRIPPED, NOT_IN_VIEW, REMOVED)

_LEAST_PIXELS = 32
_WORKING_PIXELS = 128
_SLICES, _RAYS = 8, 180
_LEAST_SKIN = 0.45
# Of a slice's head at 255: bone in a window of CT; percentiles of MRI leave 0.5 % of the volume.
_LEAST_BONE, _BONE = 0.06, 250
# Depths are looked at to this share of the head's radius; bone is darker than tissue on both sides.
_DEPTH, _DEPTHS = 0.35, 40
_NEIGHBOURS, _DIP = 15, 0.6
_AIR_SHARE = 0.12
_FOREHEAD_MM, _FACE_MM = (40.0, 80.0), (90.0, 160.0)
_LEAST_VIEW_MM = 85.0
_RECEDED_MM, _LEAST_FACE = 20.0, 0.25
_MIDLINE_MM, _WORKING_MM = 30.0, 2.5
_CROWN_SHARE = 0.5


def judge(
    slices: np.ndarray, display_axes: str | None, spacing_mm: tuple[float, float, float]
) -> str:
  """Returns what a scan shows of a face: one of the words above.

  Args:
    slices: uint8 [slice, H, W], those of a volume in order.
    display_axes: Codes towards which row, column and slice run, e.g. "PLS"; None where unknown.
    spacing_mm: Between rows, columns and slices; NaN where unknown.
  """
  if min(slices.shape[1:]) < _LEAST_PIXELS:
    return TOO_SMALL
  shares = [_skin_of(slices)]
  if display_axes is not None:
    # Axes become right, anterior, superior.
    stored = nib.orientations.axcodes2ornt(display_axes)
    turn = nib.orientations.ornt_transform(stored, nib.orientations.axcodes2ornt("RAS"))
    volume = nib.orientations.apply_orientation(np.moveaxis(slices, 0, 2), turn)
    if min(volume.shape[:2]) >= _LEAST_PIXELS:
      # In sagittal slices half of the rays lead through face and neck.
      shares.append(_skin_of(np.moveaxis(volume, 2, 0)))
  if max(shares) < _LEAST_SKIN:
    return SKULL_STRIPPED
  if display_axes is None or not np.isfinite(spacing_mm).all() or min(spacing_mm) <= 0:
    return UNKNOWN
  spacing = np.empty(3)
  spacing[turn[:, 0].astype(int)] = spacing_mm
  return _front(volume, spacing)


def _skin_of(slices: np.ndarray) -> float:
  """Returns the median `skin_share` of the largest of some slices, uint8 [slice, H, W]."""
  areas = (slices > _air(slices)).sum(axis=(1, 2))
  largest = np.argsort(areas, kind="stable")[::-1][:_SLICES]
  return float(np.median([skin_share(slices[k]) for k in largest]))


def _front(volume: np.ndarray, spacing_mm: np.ndarray) -> str:
  """Judges the front of a head with skin, uint8 [right, anterior, superior]."""
  steps = np.maximum(1, np.floor(_WORKING_MM / spacing_mm).astype(int))
  head = _head(volume[:: steps[0], :: steps[1], :: steps[2]])
  spacing_mm = spacing_mm * steps
  areas = head.sum(axis=(0, 1))
  levels = np.flatnonzero(areas)
  if not levels.size:
    return UNKNOWN
  top = levels[-1]
  below_mm = (top - np.arange(head.shape[2])) * spacing_mm[2]
  crown_seen = areas[top] < _CROWN_SHARE * areas.max()
  in_view = below_mm[levels].max()
  if in_view < _LEAST_VIEW_MM:
    return NOT_IN_VIEW if crown_seen else UNKNOWN
  # How far forwards tissue reaches at each level, near the midline of the head.
  middle = np.average(np.arange(head.shape[0]), weights=head.sum(axis=(1, 2)))
  near = np.abs(np.arange(head.shape[0]) - middle) * spacing_mm[0] <= _MIDLINE_MM
  profile = head[near].any(axis=0)
  reach = np.where(profile.any(axis=0), profile.shape[0] - 1 - profile[::-1].argmax(axis=0), -1)
  reach_mm = reach * spacing_mm[1]
  forehead = reach_mm[_between(below_mm, _FOREHEAD_MM)]
  face = reach_mm[_between(below_mm, _FACE_MM)]
  if not forehead.size or not face.size:
    return UNKNOWN
  present = (face > forehead.max() - _RECEDED_MM).mean()
  return FACE if present > _LEAST_FACE else REMOVED


def _between(values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
  return (values >= limits[0]) & (values <= limits[1])


def skin_share(image: np.ndarray) -> float:
  """Returns in which share of directions a skull, or skin around it, can be seen.

  Args:
    image: uint8 [H, W], of any plane; air is dark.
  """
  image = _reduced(image)
  head = _head(image)
  if head.sum() < _LEAST_PIXELS:
    return 0.0
  is_bright = float((image[head] >= _BONE).mean()) > _LEAST_BONE
  profiles = _profiles(image, head)
  if is_bright:
    return float((profiles.max(axis=1) >= _BONE).mean())
  # Neighbouring rays see the same bone, but not the same sulcus.
  profiles = ndimage.median_filter(profiles, (_NEIGHBOURS, 1), mode="wrap")
  outer = np.maximum.accumulate(profiles, axis=1)
  inner = np.maximum.accumulate(profiles[:, ::-1], axis=1)[:, ::-1]
  dip = profiles / np.maximum(np.minimum(outer, inner), 1)
  return float((dip.min(axis=1) < _DIP).mean())


def _profiles(image: np.ndarray, head: np.ndarray) -> np.ndarray:
  """Returns intensities from the outside inwards, float32 [ray, depth], to 0.35 of the radius."""
  row, column = ndimage.center_of_mass(head)
  radius = np.sqrt(head.sum() / np.pi)
  angles = np.linspace(0, 2 * np.pi, _RAYS, endpoint=False)[:, None]
  steps = np.arange(np.hypot(*head.shape), 0, -0.5)[None]
  met = ndimage.map_coordinates(
      head.astype(np.float32), [row + steps * np.sin(angles), column + steps * np.cos(angles)],
      order=0,
  )  # fmt: skip
  # The outermost step that is in the head; the centre where there is none.
  edge = np.where(met.any(axis=1), steps[0, met.argmax(axis=1)], 0)[:, None]
  inwards = np.linspace(0, _DEPTH * radius, _DEPTHS)[None]
  at = np.maximum(edge - inwards, 0)
  return ndimage.map_coordinates(
      image.astype(np.float32), [row + at * np.sin(angles), column + at * np.cos(angles)], order=1,
      mode="nearest",
  )  # fmt: skip


def _reduced(image: np.ndarray) -> np.ndarray:
  """Returns an image of at most 128 pixels a side, by means of blocks."""
  block = -(-max(image.shape) // _WORKING_PIXELS)
  if block == 1:
    return image
  height, width = (size // block * block for size in image.shape)
  blocks = image[:height, :width].reshape(height // block, block, width // block, block)
  return blocks.mean(axis=(1, 3)).astype(np.uint8)


def _air(image: np.ndarray) -> float:
  return float(_AIR_SHARE * np.percentile(image[image > 0], 98)) if image.any() else 0.0


def _head(image: np.ndarray) -> np.ndarray:
  """Returns the largest body in an image, or in a volume [i, j, level]; bool, of its shape.

  Holes are filled first: where bone is as dark as air, it parts the skin from the brain.
  """
  in_levels = ndimage.generate_binary_structure(2, 1).reshape(3, 3, *[1] * (image.ndim - 2))
  filled = ndimage.binary_fill_holes(image > _air(image), in_levels)
  parts, count = ndimage.label(ndimage.binary_opening(filled))
  if not count:
    return np.zeros(image.shape, bool)
  sizes = np.bincount(parts.ravel())
  sizes[0] = 0
  return parts == sizes.argmax()
