"""Muon against its steps written in NumPy: the orthogonal change of kernels, Adam for the rest."""

import keras
import numpy as np
import pytest

from flexunet.optimizers import muon

SHAPES = {"hidden/kernel": (3, 3, 2, 5), "up/kernel": (2, 2, 3, 4), "head/kernel": (1, 1, 4, 3),
          "hidden/bias": (5,)}  # fmt: skip


def newton_schulz(matrix, steps=5):
  """Returns the iteration as it is published, on the matrix itself."""
  x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
  x = x / (np.linalg.norm(x) + 1e-7)
  for _ in range(steps):
    gram = x @ x.T
    x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
  return x.T if matrix.shape[0] > matrix.shape[1] else x


@pytest.mark.parametrize("shape", [(4, 4), (3, 17), (40, 6), (2, 1), (288, 32)])
def test_the_iteration_on_the_smaller_matrix_is_the_published_one(shape):
  matrix = np.random.default_rng(0).normal(size=shape).astype("float32")
  found = keras.ops.convert_to_numpy(muon.orthogonalized(keras.ops.convert_to_tensor(matrix)))
  np.testing.assert_allclose(found, newton_schulz(matrix.astype("float64")), atol=2e-4)


def test_singular_values_become_nearly_one_and_directions_stay():
  random = np.random.default_rng(1)
  left = np.linalg.qr(random.normal(size=(6, 6)))[0]
  right = np.linalg.qr(random.normal(size=(6, 6)))[0]
  matrix = (left @ np.diag([9.0, 7, 5, 3, 2, 1]) @ right).astype("float32")
  found = keras.ops.convert_to_numpy(muon.orthogonalized(keras.ops.convert_to_tensor(matrix)))
  sizes = np.diag(left.T @ found @ right.T)
  assert (sizes > 0.65).all() and (sizes < 1.25).all()
  np.testing.assert_allclose(left.T @ found @ right.T, np.diag(sizes), atol=1e-4)


@pytest.mark.parametrize("gradient", [0.0, 1e-20])
def test_a_kernel_without_a_gradient_stays_as_it_is(gradient):
  matrix = keras.ops.full((3, 4), gradient)
  found = keras.ops.convert_to_numpy(muon.orthogonalized(matrix))
  assert np.isfinite(found).all() and np.abs(found).max() < 1e-9


def variables():
  random = np.random.default_rng(2)
  made = []
  for path, shape in SHAPES.items():
    layer, name = path.split("/")
    with keras.name_scope(layer):
      made.append(keras.Variable(random.normal(size=shape).astype("float32"), name=name))
  return made


def test_kernels_but_the_heads_are_muons():
  assert [one.path for one in variables()] == list(SHAPES)
  assert [muon.is_hidden_kernel(one) for one in variables()] == [True, True, False, False]


def test_the_kernel_of_a_depthwise_convolution_is_adams():
  assert not muon.is_hidden_kernel(keras.Variable(np.zeros((3, 3, 8, 1)), name="kernel"))


def test_five_steps_are_those_of_the_reference():
  mine = variables()
  optimizer = muon.Muon(0.02, momentum=0.9, weight_decay=0.1)
  optimizer.exclude_from_weight_decay(var_names=["bias"])
  random = np.random.default_rng(3)
  wanted = [np.array(one, "float64") for one in mine]
  moments = [np.zeros(one.shape) for one in wanted]
  squares = [np.zeros(one.shape) for one in wanted]
  for step in range(1, 6):
    gradients = [random.normal(size=one.shape) for one in wanted]
    for n, (value, gradient) in enumerate(zip(wanted, gradients)):
      if n < 3:  # Decay leaves biases alone.
        value -= 0.02 * 0.1 * value
      if n < 2:
        moments[n] = 0.9 * moments[n] + gradient
        ahead = (gradient + 0.9 * moments[n]).reshape(-1, value.shape[-1])
        change = 0.2 * max(ahead.shape) ** 0.5 * newton_schulz(ahead).reshape(value.shape)
      else:
        moments[n] = 0.9 * moments[n] + 0.1 * gradient
        squares[n] = 0.999 * squares[n] + 0.001 * gradient**2
        corrected = squares[n] / (1 - 0.999**step)
        change = moments[n] / (1 - 0.9**step) / (corrected**0.5 + 1e-7)
      value -= 0.02 * change
    optimizer.apply([keras.ops.convert_to_tensor(g, "float32") for g in gradients], mine)
  for found, value in zip(mine, wanted):
    np.testing.assert_allclose(np.array(found), value, atol=2e-4)


def test_it_is_restored_from_its_config():
  made = muon.Muon(0.5, momentum=0.8, beta_1=0.7, weight_decay=0.25, clipnorm=2.0)
  again = keras.optimizers.deserialize(keras.optimizers.serialize(made))
  assert type(again) is muon.Muon and again.get_config() == made.get_config()
