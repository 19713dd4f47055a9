"""The training step of our network on the Keras backend that KERAS_BACKEND names, JAX or PyTorch.

TensorFlow need not be installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from flexunet.network import model
from flexunet.network.architecture import ModelConfig
from flexunet.objectives import losses


class KerasTraining:
  """Trains a FlexUNet by AdamW, as Keras' trainer does.

  Attributes:
    parameters: How many the network has.
    loss: That of the last step.
  """

  def __init__(self, config: ModelConfig, precision: str, image: np.ndarray, label: np.ndarray):
    """Makes the network.

    Args:
      config: Its shape.
      precision: "float32" or "bfloat16"; weights are float32 in both.
      image, label: uint8 [B, H, W, C] and [B, H, W], the batch of `step`.
    """
    policy = "mixed_bfloat16" if precision == "bfloat16" else precision
    keras.config.set_dtype_policy(policy)
    self._network = model.logits_twin(model.build_model(config))
    self._network.compile(
        keras.optimizers.AdamW(1e-3, weight_decay=1e-4),
        loss=losses.make("dice_cross_entropy", config.num_classes, from_logits=True),
    )
    self.parameters = self._network.count_params()
    self._batch = (image, label)
    self._step: Callable[[int], float] | None = None
    self.loss = float("nan")

  def step(self, times: int) -> None:
    """Trains so many times on the batch that lies on the device, and waits until it is done."""
    if self._step is None:
      self._network.optimizer.build(self._network.trainable_variables)
      make = _jax_step if keras.backend.backend() == "jax" else _torch_step
      self._step = make(self._network, self._batch)
    self.loss = self._step(times)

  def fit(self, batches: Iterator[tuple[np.ndarray, np.ndarray]], steps: int) -> None:
    """Trains on so many batches of the host by `fit` of Keras, which waits for the last."""
    # Keras knows generators, but no other iterator.
    history = self._network.fit(
        (batch for batch in batches), steps_per_epoch=steps, shuffle=False, verbose=0
    )
    self.loss = history.history["loss"][-1]

  def device(self) -> dict[str, Any]:
    """Returns what it runs on, by its kind."""
    software = {"keras": keras.__version__}
    if keras.backend.backend() == "torch":
      torch = _torch()
      software["torch"] = torch.__version__
      seen = torch.cuda.is_available()
      kind = torch.cuda.get_device_name(0) if seen else "cpu"
    else:
      jax = _jax()
      software["jax"] = jax.__version__
      seen = jax.default_backend() in ("gpu", "cuda", "rocm")
      kind = jax.devices()[0].device_kind
    return {"gpu": seen, "device_kind": kind, "software": software}

  def peak_memory_bytes(self) -> int | None:
    """Returns the most memory of the device that was in use; None where it is not counted."""
    if keras.backend.backend() == "torch":
      torch = _torch()
      return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    stats = _jax().local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use")


def _jax_step(network: keras.Model, batch: tuple) -> Callable[[int], float]:
  """Returns what trains by the compiled step of Keras' trainer for JAX."""
  jax = _jax()
  compiled = jax.jit(network.train_step, donate_argnums=0)
  groups = (
      network.trainable_variables, network.non_trainable_variables, network.optimizer.variables,
      network.metrics_variables,
  )  # fmt: skip
  # Copies: the step gives its state's memory away, and `fit` needs the network's own.
  state = jax.tree.map(jax.numpy.copy, tuple([one.value for one in group] for group in groups))
  batch = jax.device_put(batch)

  def train(times: int) -> float:
    nonlocal state
    logs: dict[str, Any] = {}
    for _ in range(times):
      logs, state = compiled(state, batch)
    return float(jax.block_until_ready((logs, state))[0]["loss"])

  return train


def _torch_step(network: keras.Model, batch: tuple) -> Callable[[int], float]:
  """Returns what trains by the step of Keras' trainer for PyTorch."""
  tensors = tuple(keras.ops.convert_to_tensor(one) for one in batch)

  def train(times: int) -> float:
    logs: dict[str, Any] = {}
    for _ in range(times):
      logs = network.train_step(tensors)
    return float(logs["loss"])

  return train


def _jax() -> Any:
  # Of the two that Keras may run on only one need be installed.
  import jax

  return jax


def _torch() -> Any:
  # As for JAX.
  import torch

  return torch
