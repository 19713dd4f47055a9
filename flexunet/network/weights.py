"""First weights drawn by NumPy: the same from a seed on every backend and device."""

from __future__ import annotations

import math

import keras
import numpy as np

# A normal distribution cut at two standard deviations keeps this share of its own.
_CUT_DEVIATION = 0.87962566103423978


def set_from_seed(model: keras.Model, seed: int) -> None:
  """Redraws every kernel by its layer's variance-scaling initializer, in the layers' order.

  Biases and the weights of normalization start from constants and stay as they are.
  """
  for index, layer in enumerate(model.layers):
    initializer = getattr(layer, "kernel_initializer", None)
    if isinstance(initializer, keras.initializers.VarianceScaling):
      generator = np.random.default_rng([seed, index])
      layer.kernel.assign(variance_scaled(tuple(layer.kernel.shape), initializer, generator))


def variance_scaled(
    shape: tuple[int, ...],
    initializer: keras.initializers.VarianceScaling,
    generator: np.random.Generator,
) -> np.ndarray:
  """Returns float32 weights [..., fan-in channels, fan-out channels] as `initializer` means them.

  He (arXiv:1502.01852) and Glorot initializers are cases of it.
  """
  area = math.prod(shape[:-2])
  fan_in, fan_out = area * shape[-2], area * shape[-1]
  fans = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}
  deviation = math.sqrt(initializer.scale / max(1.0, fans[initializer.mode]))
  if initializer.distribution == "uniform":
    limit = math.sqrt(3.0) * deviation
    return generator.uniform(-limit, limit, shape).astype(np.float32)
  if initializer.distribution == "untruncated_normal":
    return generator.normal(0.0, deviation, shape).astype(np.float32)
  drawn = generator.normal(size=shape)
  while (beyond := np.abs(drawn) > 2.0).any():
    drawn[beyond] = generator.normal(size=int(beyond.sum()))
  return (drawn * (deviation / _CUT_DEVIATION)).astype(np.float32)
