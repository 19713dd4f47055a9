"""Muon: momentum whose matrix is made orthogonal before it changes the kernels.

K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), with the scale
of Liu et al. (2502.16982), by which learning rate and weight decay are those of AdamW. Keras'
optimizer of that name leaves kernels of convolutions to Adam; here they are what it is for.
"""

from __future__ import annotations

import math
import re
from typing import Any

import keras
from keras import ops

# Coefficients of the quintic Newton-Schulz iteration: the steepest at 0 that still keeps all
# singular values within about 0.3 of 1.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_STEPS = 5
# Root mean square of an update, as that of AdamW (2502.16982).
_RMS = 0.2
_HEAD = re.compile(r"(^|/)head")


@keras.saving.register_keras_serializable(package="flexunet")
class Muon(keras.optimizers.Optimizer):
  """Muon for the kernels within a network, Adam for its head, biases and normalization.

  A kernel of a convolution is the matrix [height * width * channels in, channels out], that of a
  transposed one [height * width * channels out, channels in].

  Attributes:
    momentum: Share of the momentum that is kept at each step.
    beta_1, beta_2, epsilon: Those of Adam.
  """

  def __init__(
      self,
      learning_rate: float = 1e-3,
      momentum: float = 0.95,
      beta_1: float = 0.9,
      beta_2: float = 0.999,
      epsilon: float = 1e-7,
      name: str = "muon",
      **kwargs: Any,
  ):
    super().__init__(learning_rate=learning_rate, name=name, **kwargs)
    self.momentum = momentum
    self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon

  def build(self, variables: list) -> None:
    """Creates a momentum for each variable, and a second moment for those of Adam."""
    if self.built:
      return
    super().build(variables)
    self._momentums = self.add_optimizer_variables(variables, "momentum")
    self._velocities = [
        None if is_hidden_kernel(one) else self.add_variable_from_reference(one, name="velocity")
        for one in variables
    ]

  def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
    """Changes one variable."""
    place = self._get_variable_index(variable)
    moment, velocity = self._momentums[place], self._velocities[place]
    gradient = ops.cast(gradient, variable.dtype)
    rate = ops.cast(learning_rate, variable.dtype)
    if velocity is None:
      change = self._orthogonal_change(gradient, moment)
    else:
      change = self._adam_change(gradient, moment, velocity)
    self.assign_sub(variable, rate * change)

  def _orthogonal_change(self, gradient: Any, moment: Any) -> Any:
    self.assign(moment, self.momentum * moment + gradient)
    ahead = gradient + self.momentum * moment  # Nesterov's.
    matrix = ops.reshape(ahead, (-1, ahead.shape[-1]))
    scale = _RMS * math.sqrt(max(matrix.shape))
    return ops.reshape(scale * orthogonalized(matrix), ahead.shape)

  def _adam_change(self, gradient: Any, moment: Any, velocity: Any) -> Any:
    step = ops.cast(self.iterations + 1, gradient.dtype)
    self.assign_add(moment, (1.0 - self.beta_1) * (gradient - moment))
    self.assign_add(velocity, (1.0 - self.beta_2) * (ops.square(gradient) - velocity))
    first = moment / (1.0 - ops.power(ops.cast(self.beta_1, gradient.dtype), step))
    second = velocity / (1.0 - ops.power(ops.cast(self.beta_2, gradient.dtype), step))
    return first / (ops.sqrt(second) + self.epsilon)

  def get_config(self):
    own = {name: getattr(self, name) for name in ("momentum", "beta_1", "beta_2", "epsilon")}
    return {**super().get_config(), **own}


def is_hidden_kernel(variable: Any) -> bool:
  """Returns whether a variable of a network is a matrix that Muon changes.

  Not the head's, whose rows are classes, and not one with a single column, such as the kernel of a
  depthwise convolution: to make it orthogonal would only set its length.
  """
  shape = tuple(variable.shape)
  is_matrix = len(shape) > 1 and min(math.prod(shape[:-1]), shape[-1]) > 1
  return is_matrix and not _HEAD.search(variable.path)


def orthogonalized(matrix: Any, steps: int = _STEPS) -> Any:
  """Returns U V' of the singular value decomposition U S V' of a float32 matrix, nearly.

  Singular values become 0.7 to 1.2. Each step of the iteration multiplies by a polynomial of
  X X', and these commute: so all steps are taken on that matrix of the shorter edge, and X itself
  is multiplied once, for less than half of the operations.
  """
  tall = matrix.shape[0] > matrix.shape[1]
  wide = ops.transpose(matrix) if tall else matrix
  wide = wide / (ops.norm(wide) + 1e-7)
  gram = ops.matmul(wide, ops.transpose(wide))
  identity = ops.eye(gram.shape[0], dtype=gram.dtype)
  product = identity
  for step in range(steps):
    factor = _A * identity + _B * gram + _C * ops.matmul(gram, gram)
    product = ops.matmul(factor, product)
    if step + 1 < steps:
      gram = ops.matmul(factor, ops.matmul(gram, factor))
  found = ops.matmul(product, wide)
  return ops.transpose(found) if tall else found
