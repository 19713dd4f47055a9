"""Adam by one kernel: the numbers and the variables are Keras' own, the graph is smaller."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from flexunet import config
from flexunet.optimizers import run_optimizer

SHAPES = {"kernel": (3, 4), "bias": (4,), "gamma": (4,)}


def ours(name, **given):
  plain = {"learning_rate": 0.1, "clipvalue": 1.0, "ema_momentum": 0.9, "weight_decay": 0.05}
  return run_optimizer.make(config.TrainingConfig(optimizer=name, **{**plain, **given}))


def of_keras(name, **given):
  options = {"learning_rate": 0.1, "clipvalue": 1.0, "use_ema": True, "ema_momentum": 0.9, **given}
  if name == "adam":
    return keras.optimizers.Adam(**options)
  optimizer = keras.optimizers.AdamW(weight_decay=0.05, **options)
  optimizer.exclude_from_weight_decay(var_names=["bias", "gamma"])
  return optimizer


def stepped(optimizer, compiled=False, count=7):
  """Returns the compiled step on gradients of the variables, which have taken `count` of them."""
  random = np.random.default_rng(0)
  variables = [
      keras.Variable(random.normal(size=shape).astype("float32"), name=name)
      for name, shape in SHAPES.items()
  ]
  optimizer.build(variables)
  step = tf.function(
      lambda *gradients: optimizer.apply(gradients, variables), autograph=False,
      jit_compile=compiled,
  )  # fmt: skip
  gradients = [
      [tf.constant(random.normal(size=shape), tf.float32) for shape in SHAPES.values()]
      for _ in range(count)
  ]
  for some in gradients:
    step(*some)
  return step.get_concrete_function(*gradients[0]), [*variables, *optimizer.variables]


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_weights_moments_and_average_are_those_of_keras_in_fewer_operations(name):
  (graph, found), (reference, expected) = stepped(ours(name)), stepped(of_keras(name))
  assert_same(found, expected)
  count, of_reference = (len(one.graph.get_operations()) for one in (graph, reference))
  assert count < 0.5 * of_reference


def test_they_are_when_gradients_are_accumulated():
  (_, found), (_, expected) = (
      stepped(ours("adamw", gradient_accumulation=2)),
      stepped(of_keras("adamw", gradient_accumulation_steps=2)),
  )
  assert_same(found, expected)


def test_they_are_when_xla_compiles_the_step():
  (_, found), (_, expected) = stepped(ours("adamw"), compiled=True), stepped(of_keras("adamw"))
  assert_same(found, expected)


def assert_same(found, expected):
  assert [one.name for one in found] == [one.name for one in expected]
  for one, other in zip(found, expected, strict=True):
    np.testing.assert_allclose(np.array(one), np.array(other), rtol=2e-5, atol=1e-6)
