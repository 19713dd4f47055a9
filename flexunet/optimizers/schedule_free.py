"""Schedule-free AdamW: an average of all steps takes the place of a falling learning rate.

Defazio et al., "The Road Less Scheduled" (2405.15682), algorithm 1. Keras' optimizer of that name
does not weight the average by the learning rate, and decays neither of its two sequences as the
paper does.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="flexunet")
class ScheduleFreeAdamW(keras.optimizers.Optimizer):
  """AdamW on z; the network trains at y = (1 - beta_1) z + beta_1 x, where x is the mean of z.

  x is what the network learns: it is kept as the averaged weights of the run (`..._average`), as
  those of a moving average are. A step counts in the mean by the square of its learning rate, so
  that the warm-up counts little.

  Attributes:
    beta_1: Share of the mean in the weights that training sees.
    beta_2, epsilon: Those of Adam's second moment.
  """

  def __init__(
      self,
      learning_rate: float = 2.5e-3,
      beta_1: float = 0.9,
      beta_2: float = 0.999,
      epsilon: float = 1e-8,
      name: str = "schedule_free_adamw",
      **kwargs: Any,
  ):
    super().__init__(learning_rate=learning_rate, name=name, **kwargs)
    self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon

  def build(self, variables: list) -> None:
    """Starts both sequences at the weights that the network has now."""
    if self.built:
      return
    super().build(variables)
    self._velocities = self.add_optimizer_variables(variables, "velocity")
    self._stepped = [self._copy_of(one, "stepped") for one in variables]
    self._averages = [self._copy_of(one, "average") for one in variables]
    self._weight_sum = self.add_variable(
        shape=(), initializer="zeros", dtype="float32", aggregation="only_first_replica",
        name="weight_sum",
    )  # fmt: skip

  def _copy_of(self, variable: Any, name: str) -> Any:
    def initializer(shape, dtype=None):
      del shape
      return ops.cast(ops.copy(ops.convert_to_tensor(variable)), dtype)

    return self.add_variable_from_reference(variable, name=name, initializer=initializer)

  def _apply_weight_decay(self, variables: list) -> None:
    """Does nothing: the decay of y is a part of the step of z."""

  def _backend_update_step(self, grads: list, variables: list, learning_rate: Any) -> None:
    rate = ops.cast(learning_rate, "float32")
    self._weight_sum.assign_add(rate * rate)
    super()._backend_update_step(grads, variables, learning_rate)

  def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
    """Changes one variable and its two sequences."""
    place = self._get_variable_index(variable)
    velocity, stepped = self._velocities[place], self._stepped[place]
    average, dtype = self._averages[place], variable.dtype
    gradient, rate = ops.cast(gradient, dtype), ops.cast(learning_rate, dtype)
    step = ops.cast(self.iterations + 1, dtype)
    self.assign_add(velocity, (1.0 - self.beta_2) * (ops.square(gradient) - velocity))
    second = velocity / (1.0 - ops.power(ops.cast(self.beta_2, dtype), step))
    change = gradient / (ops.sqrt(second) + self.epsilon)
    if self.weight_decay and self._use_weight_decay(variable):
      change = change + self.weight_decay * ops.convert_to_tensor(variable)
    self.assign_sub(stepped, rate * change)
    total = ops.cast(ops.convert_to_tensor(self._weight_sum), dtype)
    share = rate * rate / ops.where(total > 0, total, 1.0)
    self.assign_add(average, share * (stepped - average))
    self.assign(variable, (1.0 - self.beta_1) * stepped + self.beta_1 * average)

  def get_config(self):
    own = {name: getattr(self, name) for name in ("beta_1", "beta_2", "epsilon")}
    return {**super().get_config(), **own}
