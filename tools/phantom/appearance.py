"""How phantom tissues and lesions look to a scanner: MRI contrasts with bias and noise, CT in HU.

Tissue maps are uint8 [i, j, k] in the numbering of `anatomy`, coordinates are those of its grids.
Masks of lesions (bleedings of the five subtypes, infarcts, plaques) are bool of the same shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from scipy import ndimage

from flexunet.tools.phantom import anatomy
from flexunet.tools.phantom.anatomy import Coordinates, HeadShape

# Mean signal of outside, air cavity, grey, white, fluid, bone, soft tissue; then lesion.
MRI_SIGNAL = {
    "t1": (0, 2, 78, 112, 30, 14, 92, 60),
    "t2": (0, 2, 92, 66, 180, 12, 70, 150),
    "flair": (0, 2, 92, 72, 18, 10, 70, 160),
}
# Hounsfield units of the same; then fresh blood, and an infarct.
CT_HU = (-1000, -1000, 37, 28, 8, 900, 45, 72, 16)
LESION = 7  # Index of the lesion (in CT: of blood) in the tables above.
CT_INFARCT = 8
SUBTYPES = ("Intraventricular", "Intraparenchymal", "Subarachnoid", "Epidural", "Subdural")


def _broadcast_lines(shape: tuple[int, ...]) -> list[np.ndarray]:
  lines = []
  for axis, length in enumerate(shape):
    line = np.linspace(-1, 1, length, dtype=np.float32)
    lines.append(line.reshape([-1 if n == axis else 1 for n in range(3)]))
  return lines


def bias_field(
    shape: tuple[int, int, int], strength: float, rng: np.random.Generator
) -> np.ndarray:
  """Returns a smooth field, float32 of `shape`, within about 1 - strength .. 1 + strength."""
  x, y, z = _broadcast_lines(shape)
  a = rng.uniform(-1, 1, 6)
  field = a[0] * x + a[1] * y + a[2] * z + a[3] * x * y + a[4] * y * z + a[5] * x * z
  return (1 + strength * field / 2.5).astype(np.float32)


def mri(
    tissue: np.ndarray,
    contrast: str,
    rng: np.random.Generator,
    *,
    noise: float = 5.0,
    bias: float = 0.25,
) -> np.ndarray:
  """Returns the magnitude image of one scan, float32 [i, j, k], white matter at about 110 (T1).

  Args:
    tissue: Classes 0..6, and `LESION`.
    contrast: A key of `MRI_SIGNAL`.
    rng: Decides bias field and noise.
    noise: Standard deviation of the noise in the real and in the imaginary channel.
    bias: Strength of the bias field.
  """
  signal = np.array(MRI_SIGNAL[contrast], np.float32)[tissue]
  # A voxel mixes the tissues in it: a narrow blur stands for that.
  signal = ndimage.gaussian_filter(signal, 0.6)
  signal *= bias_field(cast(tuple[int, int, int], tissue.shape), bias, rng)
  real = signal + noise * rng.standard_normal(tissue.shape, np.float32)
  imaginary = noise * rng.standard_normal(tissue.shape, np.float32)
  return np.hypot(real, imaginary)


def ct_hu(tissue: np.ndarray, rng: np.random.Generator, *, noise_hu: float = 4.0) -> np.ndarray:
  """Returns Hounsfield units, float32 [i, j, k]; slices lie along the last axis."""
  hu = np.array(CT_HU, np.float32)[tissue]
  sigma = max(0.5, tissue.shape[0] / 400)
  hu = ndimage.gaussian_filter(hu, (sigma, sigma, 0), truncate=2.0)
  return hu + noise_hu * rng.standard_normal(tissue.shape, np.float32)


def window(hu: np.ndarray, level: float, width: float) -> np.ndarray:
  """Maps a window of Hounsfield units to uint8 0..255."""
  low = level - width / 2
  return ((hu - low) * (255 / width)).clip(0, 255).round().astype(np.uint8)


def _blob(
    coordinates: Coordinates,
    centre_mm: Sequence[float],
    half_axes_mm: Sequence[float] | np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
  """Returns an ellipsoid with a lumpy surface."""
  phase = rng.uniform(0, 2 * np.pi, 3)
  lumps = sum(
      np.sin(x / (0.5 * a) + p)
      for x, a, p in zip(coordinates, half_axes_mm, phase, strict=True)
  )
  return anatomy.ellipsoid(coordinates, centre_mm, half_axes_mm) * (1 + 0.12 * lumps) < 1


def _cap(
    head: HeadShape,
    coordinates: Coordinates,
    side: int,
    rng: np.random.Generator,
    inner: float,
    spread: float,
) -> np.ndarray:
  """Returns a shell piece under the skull of one side: from radius `inner` out, `spread` wide."""
  r = anatomy.radius(head, coordinates)
  anterior_mm, superior_mm = rng.uniform(-25, 35), rng.uniform(0, 40)
  towards = np.array([side * 60.0, anterior_mm, superior_mm])
  towards /= np.linalg.norm(towards)
  norm = np.sqrt(sum(x**2 for x in coordinates)) + 1e-3
  cosine = sum(t * x for t, x in zip(towards, coordinates, strict=True)) / norm
  # Thickest in the middle of the piece, tapering to its rim.
  thickness = (0.865 - inner) * np.clip((cosine - spread) / (1 - spread), 0, 1) ** 0.5
  return (r < 0.865) & (r > 0.865 - thickness) & (thickness > 0.02)


def bleeding(
    subtype: str,
    head: HeadShape,
    coordinates: Coordinates,
    tissue: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
  """Returns the mask of one bleeding of a subtype in a head."""
  side = 1 if rng.random() < 0.5 else -1
  brain = np.isin(tissue, (anatomy.GREY, anatomy.WHITE, anatomy.CSF))
  if subtype == "Intraventricular":
    near = anatomy.ellipsoid(coordinates, (side * 10, -6, 18), (13, 34, 16)) < 1
    return (tissue == anatomy.CSF) & near
  if subtype == "Intraparenchymal":
    centre = (side * rng.uniform(22, 40), rng.uniform(-35, 35), rng.uniform(0, 35))
    return brain & _blob(coordinates, centre, rng.uniform(11, 20, 3), rng)
  if subtype == "Subarachnoid":
    # Blood in the fluid of the sulci, in a part of one hemisphere.
    centre = (side * 50, rng.uniform(-30, 30), rng.uniform(5, 35))
    near = anatomy.ellipsoid(coordinates, centre, (34, 34, 30)) < 1
    r = anatomy.radius(head, coordinates)
    return (tissue == anatomy.CSF) & near & (r < 0.865) & (r > 0.6)
  if subtype == "Epidural":
    return brain & _cap(head, coordinates, side, rng, inner=0.58, spread=0.88)
  return brain & _cap(head, coordinates, side, rng, inner=0.73, spread=0.45)


def infarct(
    coordinates: Coordinates, tissue: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
  """Returns a wedge-like territory of one hemisphere, grey and white matter alike."""
  side = 1 if rng.random() < 0.5 else -1
  centre = (side * rng.uniform(34, 48), rng.uniform(-30, 30), rng.uniform(-2, 35))
  brain = np.isin(tissue, (anatomy.GREY, anatomy.WHITE))
  return brain & _blob(coordinates, centre, rng.uniform(16, 26, 3), rng)


def plaques(
    coordinates: Coordinates, tissue: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
  """Returns plaques in the white matter around the ventricles: few large, more small."""
  mask = np.zeros(tissue.shape, bool)
  for half_axis in rng.uniform(4, 9, rng.integers(8, 16)):
    side = 1 if rng.random() < 0.5 else -1
    centre = (side * rng.uniform(15, 38), rng.uniform(-45, 40), rng.uniform(8, 38))
    mask |= _blob(coordinates, centre, half_axis * rng.uniform(0.8, 1.3, 3), rng)
  return mask & (tissue == anatomy.WHITE)
