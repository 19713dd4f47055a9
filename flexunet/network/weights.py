"""Weights of a network: the first ones, drawn by NumPy, and those read from a file.

First weights are the same from a seed on every backend and device.
"""

from __future__ import annotations

import math
import pathlib

import keras
import numpy as np

from flexunet.core.errors import InputError
from flexunet.network import cost

# A normal distribution cut at two standard deviations keeps this share of its own.
_CUT_DEVIATION = 0.87962566103423978


def read_model(path: pathlib.Path) -> keras.Model:
  """Returns the network of a `.keras` file, not compiled.

  Raises:
    InputError: The file is damaged, or a weight is NaN or infinite.
  """
  cost.check_keras_file(path)
  try:
    network = keras.saving.load_model(path, compile=False)
  except MemoryError:
    raise
  except Exception as error:  # Zip, JSON, HDF5 and Keras each have kinds of their own.
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise InputError(
        f"{path} must be a model saved as .keras. Keras cannot read it: {first}"
    ) from error
  for variable in network.weights:
    if not np.isfinite(keras.ops.convert_to_numpy(variable)).all():
      raise InputError(
          f"{path} must hold finite weights, but those of {variable.path} are not. Train it again,"
          " or name another file."
      )
  return network


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
