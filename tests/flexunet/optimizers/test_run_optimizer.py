"""The optimizer of a run: which one, what it decays, and the averages that it keeps."""

import keras
import numpy as np
import pytest

from flexunet import config
from flexunet.optimizers import run_optimizer

OPTIMIZERS = ("adam", "adamw", "sgd", "muon", "schedule_free")


def settings(**given):
  plain = {"optimizer": "sgd", "learning_rate": 0.5, "momentum": 0.0, "weight_decay": 0.0,
           "clipvalue": 0.0, "ema_momentum": 0.0, "weight_average": 0.0}  # fmt: skip
  return config.TrainingConfig(**{**plain, **given})


def step(optimizer, variable, gradient):
  optimizer.apply([keras.ops.convert_to_tensor(gradient, "float32")], [variable])


def test_the_tail_average_is_the_mean_of_the_weights_since_it_began():
  variable = keras.Variable(np.zeros(2, "float32"), name="kernel")
  optimizer = run_optimizer.make(settings(weight_average=0.5))
  optimizer.build([variable])
  seen, found = [], []
  for n, averaging in enumerate((0, 0, 1, 1, 1, 0)):
    optimizer.averaging.assign(float(averaging))
    step(optimizer, variable, [-2.0, 2.0 * n])
    seen.append(np.array(variable))
    found.append(np.array(run_optimizer.averages(optimizer)[0]))
  # Until then, and where a longer run takes the beginning back, it is the weights themselves.
  for n in (0, 1, 2, 5):
    np.testing.assert_array_equal(found[n], seen[n])
  np.testing.assert_allclose(found[3], (seen[2] + seen[3]) / 2)
  np.testing.assert_allclose(found[4], (seen[2] + seen[3] + seen[4]) / 3, rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "kept"),
    [({}, False), ({"ema_momentum": 0.9}, True), ({"weight_average": 0.1}, True),
     ({"optimizer": "schedule_free"}, True), ({"optimizer": "muon"}, False)],
)  # fmt: skip
def test_averages_are_there_where_a_run_keeps_one(given, kept):
  chosen = settings(**given)
  variables = [keras.Variable(np.ones((2, 3)), name=name) for name in ("kernel", "other")]
  optimizer = run_optimizer.make(chosen)
  optimizer.build(variables)
  assert run_optimizer.keeps_average(chosen) == kept
  assert len(run_optimizer.averages(optimizer)) == (2 if kept else 0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradients_are_clipped_before_they_are_used(name):
  weights = []
  for gradient in (1.0, 1e6):
    variable = keras.Variable(np.ones((2, 3), "float32"), name="kernel")
    optimizer = run_optimizer.make(settings(optimizer=name, clipvalue=1.0))
    step(optimizer, variable, np.full((2, 3), gradient))
    weights.append(np.array(variable))
  np.testing.assert_array_equal(*weights)
  assert not np.array_equal(weights[0], np.ones((2, 3)))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_accumulated_gradients_make_the_step_of_their_mean(name):
  first, second = np.random.default_rng(0).normal(size=(2, 3, 4))
  whole = keras.Variable(np.ones((3, 4), "float32"), name="kernel")
  parts = keras.Variable(np.ones((3, 4), "float32"), name="kernel")
  step(run_optimizer.make(settings(optimizer=name)), whole, (first + second) / 2)
  accumulating = run_optimizer.make(settings(optimizer=name, gradient_accumulation=2))
  accumulating.build([parts])
  step(accumulating, parts, first)
  np.testing.assert_array_equal(np.array(parts), np.ones((3, 4)))
  step(accumulating, parts, second)
  np.testing.assert_allclose(np.array(parts), np.array(whole), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "muon", "schedule_free"])
def test_decay_shrinks_kernels_alone(name):
  start = np.full((2, 3), 2.0, "float32")
  made = [keras.Variable(start, name=one) for one in ("kernel", "bias", "gamma", "beta")]
  optimizer = run_optimizer.make(settings(optimizer=name, weight_decay=0.1))
  optimizer.apply([keras.ops.zeros((2, 3))] * 4, made)
  np.testing.assert_allclose(np.array(made[0]), start * (1 - 0.5 * 0.1), rtol=1e-6)
  for one in made[1:]:
    np.testing.assert_array_equal(np.array(one), start)
