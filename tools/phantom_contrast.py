"""How phantom tissues look to a scanner: MRI contrasts with bias field and noise, CT in HU.

Tissue maps are uint8 [i, j, k] in the numbering of `phantom_anatomy`.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from scipy import ndimage

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


def _broadcast_lines(shape: tuple[int, ...]) -> list[np.ndarray]:
  lines = []
  for axis, length in enumerate(shape):
    line = np.linspace(-1, 1, length, dtype=np.float32)
    lines.append(line.reshape([-1 if n == axis else 1 for n in range(3)]))
  return lines


def bias_field(shape: tuple[int, int, int], strength: float, rng) -> np.ndarray:
  """A smooth field around 1, float32 of `shape`, within about 1 - strength .. 1 + strength."""
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
