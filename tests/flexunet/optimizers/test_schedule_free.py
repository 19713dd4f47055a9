"""Schedule-free AdamW against algorithm 1 of the paper written in NumPy."""

import keras
import numpy as np
import pytest

from flexunet.optimizers import run_optimizer, schedule_free

B1, B2 = 0.9, 0.999


class Reference:
  """Algorithm 1 of 2405.15682 on one array: z steps, x is its weighted mean, y is trained."""

  def __init__(self, start, decay):
    self.z = self.x = self.y = start.astype("float64")
    self.square, self.decay, self.step, self.total = 0.0, decay, 0, 0.0

  def apply(self, gradient, rate):
    self.step += 1
    self.square = B2 * self.square + (1 - B2) * gradient**2
    root = np.sqrt(self.square / (1 - B2**self.step)) + 1e-8
    self.z = self.z - rate * (gradient / root + self.decay * self.y)
    self.total += rate**2
    share = rate**2 / self.total
    self.x = (1 - share) * self.x + share * self.z
    self.y = (1 - B1) * self.z + B1 * self.x


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_of_changing_rates_are_those_of_the_reference(decay):
  random = np.random.default_rng(0)
  start = random.normal(size=(3, 4)).astype("float32")
  variable = keras.Variable(start, name="kernel")
  optimizer = schedule_free.ScheduleFreeAdamW(0.1, weight_decay=decay)
  reference = Reference(start, decay)
  for rate in (0.0, 0.02, 0.05, 0.1, 0.1, 0.1):  # A warm-up from 0, as the callback sets it.
    gradient = random.normal(size=start.shape)
    optimizer.build([variable])
    optimizer.learning_rate.assign(rate)
    optimizer.apply([keras.ops.convert_to_tensor(gradient, "float32")], [variable])
    if rate:
      reference.apply(gradient, rate)
    else:  # Nothing moves, but the second moment has seen a gradient.
      reference.square, reference.step = (1 - B2) * gradient**2, 1
  np.testing.assert_allclose(np.array(variable), reference.y, atol=1e-5)
  (average,) = run_optimizer.averages(optimizer)
  np.testing.assert_allclose(np.array(average), reference.x, atol=1e-5)


def test_at_a_constant_rate_the_average_is_the_plain_mean_of_all_steps():
  variable = keras.Variable(np.ones(3, "float32"), name="kernel")
  optimizer = schedule_free.ScheduleFreeAdamW(0.1)
  optimizer.build([variable])
  stepped = []
  for n in range(4):
    optimizer.apply([keras.ops.convert_to_tensor([1.0, -1.0, float(n)])], [variable])
    stepped.append(np.array(optimizer._stepped[0]))
  (average,) = run_optimizer.averages(optimizer)
  np.testing.assert_allclose(np.array(average), np.mean(stepped, axis=0), rtol=1e-5)


def test_decay_leaves_biases_alone():
  start = np.full(3, 5.0, "float32")
  kernel, bias = (keras.Variable(start, name=name) for name in ("kernel", "bias"))
  optimizer = schedule_free.ScheduleFreeAdamW(0.1, weight_decay=0.5)
  optimizer.exclude_from_weight_decay(var_names=["bias"])
  zero = keras.ops.zeros(3)
  optimizer.apply([zero, zero], [kernel, bias])
  np.testing.assert_allclose(np.array(kernel), start - 0.1 * 0.5 * 5)
  np.testing.assert_array_equal(np.array(bias), start)


def test_it_finds_the_minimum_of_a_noisy_parabola_without_a_schedule():
  random = np.random.default_rng(1)
  variable = keras.Variable(np.array([4.0], "float32"), name="kernel")
  optimizer = schedule_free.ScheduleFreeAdamW(0.1)
  optimizer.build([variable])
  for _ in range(400):
    gradient = np.array(variable) - 1.0 + random.normal(size=1)
    optimizer.apply([keras.ops.convert_to_tensor(gradient, "float32")], [variable])
  (average,) = run_optimizer.averages(optimizer)
  assert float(np.array(average)[0]) == pytest.approx(1.0, abs=0.15)


def test_it_is_restored_from_its_config():
  made = schedule_free.ScheduleFreeAdamW(0.5, beta_1=0.8, weight_decay=0.25, clipvalue=2.0)
  again = keras.optimizers.deserialize(keras.optimizers.serialize(made))
  assert type(again) is schedule_free.ScheduleFreeAdamW
  assert again.get_config() == made.get_config()
