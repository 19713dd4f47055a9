"""Smooth random fields over the image, each a product of small matrices: no pass over the pixels.

A field [B, H, W] is rows [H, n] @ random numbers [B, n, m] @ columns [m, W].
"""

from __future__ import annotations

import functools
import math

import numpy as np
import tensorflow as tf

# Elastic strength and width are stated for images of this edge and scale with the image.
REFERENCE_EDGE = 512


@functools.lru_cache(32)
def spline_basis(length: int, points: int) -> np.ndarray:
  """Returns float32 [length, points]: uniform cubic B-splines whose weights sum to 1."""
  # The outer control points lie one interval outside, so that the basis covers the whole axis.
  position = np.linspace(0, points - 3, length)[:, None] + 1 - np.arange(points)
  distance = np.abs(position)
  inner = 2 / 3 - distance**2 + distance**3 / 2
  outer = np.clip(2 - distance, 0, None) ** 3 / 6
  return np.where(distance < 1, inner, outer).astype(np.float32)


@functools.lru_cache(32)
def gaussian_basis(length: int, sigma: float) -> np.ndarray:
  """Returns float32 [length, n]: Gaussians of width `sigma` pixels on a lattice of half of it.

  Weighted by white noise they give what smoothing a full image of white noise gives: a field of
  the same covariance, and of unit deviation for noise of unit deviation.
  """
  pitch = max(1.0, sigma / 2)
  # Noise from three widths outside still reaches the border.
  reach = math.ceil(3 * sigma / pitch)
  centers = np.arange(-reach, math.ceil((length - 1) / pitch) + reach + 1) * pitch
  weight = np.exp(-((np.arange(length)[:, None] - centers) ** 2) / (2 * sigma**2))
  return (weight / np.sqrt((weight**2).sum(1, keepdims=True))).astype(np.float32)


def smoothed_noise_deviation(sigma: float) -> float:
  """Returns the deviation of uniform noise in -1..1 after a 2-D Gaussian of `sigma` pixels."""
  # Noise variance 1/3; the squared weights of the Gaussian sum to 1 / (4 pi sigma^2).
  return math.sqrt(1 / 3 / (4 * math.pi)) / sigma


def field(rows: np.ndarray, numbers: tf.Tensor, columns: np.ndarray) -> tf.Tensor:
  """[H, n], [..., n, m], [W, m] -> [..., H, W]."""
  return tf.matmul(tf.matmul(rows, numbers), columns, transpose_b=True)
