"""The optimizer of a run, and the averaged weights that it keeps beside the trained ones.

Where a run keeps an average, its network in training is never touched by it: the average lives in
variables of the optimizer, whose names end with `_average`, so checkpoints hold it, and is copied
into the network that is validated, drawn and saved. Three things make one: a moving average
(`ema_momentum`), the mean over the last share of the run (`weight_average`), and schedule-free
AdamW, of which it is a part.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from flexunet import config
from flexunet.network import replicas
from flexunet.optimizers import muon, schedule_free

# What decay would only harm: biases, and scale and offset of normalization.
_NOT_DECAYED = ["bias", "gamma", "beta"]


def make(settings: config.TrainingConfig) -> keras.optimizers.Optimizer:
  """Returns the optimizer of complete settings."""
  options: dict[str, Any] = {"learning_rate": settings.learning_rate}
  if settings.clipvalue:
    options["clipvalue"] = settings.clipvalue
  if settings.clipnorm:
    options["clipnorm"] = settings.clipnorm
  if settings.gradient_accumulation > 1:
    options["gradient_accumulation_steps"] = settings.gradient_accumulation
  if settings.ema_momentum:
    options |= {"use_ema": True, "ema_momentum": settings.ema_momentum}
  if settings.weight_average:
    options["use_ema"] = True
  kinds = {
      "adam": keras.optimizers.Adam,
      "adamw": keras.optimizers.AdamW,
      "sgd": keras.optimizers.SGD,
      "muon": muon.Muon,
      "schedule_free": schedule_free.ScheduleFreeAdamW,
  }
  if settings.optimizer in ("adamw", "muon", "schedule_free"):
    options["weight_decay"] = settings.weight_decay
  if settings.optimizer in ("sgd", "muon"):
    options["momentum"] = settings.momentum
  if settings.optimizer == "sgd":
    options["nesterov"] = settings.momentum > 0
  kind = kinds[settings.optimizer]
  parts: list[type] = [_TailAverage if settings.weight_average else _MovingAverage, _ForRuns]
  if settings.optimizer in ("adam", "adamw") and keras.config.backend() == "tensorflow":
    # It imports TensorFlow, whose operations it is made of; other backends run without.
    from flexunet.optimizers.fused_adam import FusedAdam

    parts.append(FusedAdam)
  optimizer = type(kind.__name__, (*parts, kind), {})(**options)
  if options.get("weight_decay") is not None:
    optimizer.exclude_from_weight_decay(var_names=_NOT_DECAYED)
  return optimizer


def keeps_average(settings: config.TrainingConfig) -> bool:
  """Returns whether an average of the weights is what a run validates and saves."""
  return bool(
      settings.ema_momentum or settings.weight_average or settings.optimizer == "schedule_free"
  )


def averages(optimizer: keras.optimizers.Optimizer) -> list:
  """Returns the averaged weights, one for each trainable variable in their order."""
  return [one for one in inner(optimizer).variables if one.name.endswith("_average")]


def inner(optimizer: keras.optimizers.Optimizer) -> Any:
  """Returns the optimizer itself where Keras has wrapped it to scale the loss in float16."""
  return getattr(optimizer, "inner_optimizer", optimizer)


class _ForRuns:
  """Two of Keras' steps changed.

  Keras' last step puts the averages into the trained weights; but a run may call `fit` more than
  once, and its averages live in a network of their own. And where several devices share a batch,
  Keras clips and accumulates the gradients of each before it sums them; here they are summed
  first, so that the step is that of one device.
  """

  def finalize_variable_values(self, var_list):
    del self, var_list

  def apply(self, grads, trainable_variables=None):
    super().apply(replicas.total(list(grads)), trainable_variables)  # type: ignore[misc]

  def _all_reduce_sum_gradients(self, grads_and_vars):
    del self
    return grads_and_vars  # They are sums already.


class _MovingAverage:
  """Keras' moving average, its momentum computed once and not for each variable."""

  def _share_of_newest(self):
    """Returns how much of an average the weights after this step are, float32 []."""
    begun = ops.cast(self.iterations > 0, "float32")  # type: ignore[attr-defined]
    return 1.0 - begun * self.ema_momentum  # type: ignore[attr-defined]

  def _update_model_variables_moving_average(self, trainable_variables):
    share = self._share_of_newest()
    pairs = zip(trainable_variables, self._model_variables_moving_average, strict=True)
    for variable, average in pairs:
      old, new = average.value, variable.value  # Of the backend: less to trace than Keras'.
      average.assign(old + ops.cast(share, average.dtype) * (new - old))


class _TailAverage(_MovingAverage):
  """Makes Keras' moving average the plain mean of all steps since `averaging` became 1.

  As long as it is 0 the average is the weights themselves. Stochastic weight averaging (Izmailov et
  al., 1803.05407) at every step.

  Attributes:
    averaging: Scalar variable, set between steps.
    averaged_steps: Scalar variable: steps in the mean.
  """

  def build(self, variables):
    if self.built:  # type: ignore[has-type]
      return
    super().build(variables)  # type: ignore[misc]
    self.averaging, self.averaged_steps = (
        self.add_variable(  # type: ignore[attr-defined]
            shape=(), initializer="zeros", dtype="float32", aggregation="only_first_replica",
            name=name,
        )
        for name in ("averaging", "averaged_steps")
    )  # fmt: skip

  def _share_of_newest(self):
    count = self.averaging * (self.averaged_steps + 1.0)
    self.averaged_steps.assign(count)
    return 1.0 / ops.maximum(count, 1.0)
