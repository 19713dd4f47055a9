"""Weights have the least Brier score there is, found from a few sums."""

import itertools

import numpy as np
import pytest

from flexunet.evaluation.ensemble_weights import BrierSums


def sums_of(label, probabilities, foreground=1):
  own, total = BrierSums(len(probabilities)), BrierSums(len(probabilities))
  own.add_slice(label, probabilities)
  total.add_volume(own, foreground)
  return total


def random_case(seed, networks=3, classes=3, voxels=400):
  generator = np.random.default_rng(seed)
  label = generator.integers(0, classes, voxels)
  sharpness = generator.uniform(0.2, 3.0, networks)
  made = []
  for sharp in sharpness:
    logits = generator.normal(size=(voxels, classes)) + sharp * np.eye(classes)[label]
    made.append(np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True))
  return label, made


@pytest.mark.parametrize("seed", range(4))
def test_the_score_and_its_least_are_those_of_brute_force(seed):
  label, given = random_case(seed)
  sums = sums_of(label, given, foreground=10)

  def brute(weights):
    mean = sum(weight * one for weight, one in zip(weights, given, strict=True))
    return ((mean - np.eye(3)[label]) ** 2).sum() / 10

  assert sums.brier([0.2, 0.3, 0.5]) == pytest.approx(brute([0.2, 0.3, 0.5]), rel=1e-5)
  grid = [
      (a / 50, b / 50, 1 - (a + b) / 50)
      for a, b in itertools.product(range(51), repeat=2) if a + b <= 50
  ]  # fmt: skip
  best = sums.best_weights()
  assert best.min() >= 0 and best.sum() == pytest.approx(1)
  assert brute(best) <= min(map(brute, grid)) + 1e-6
  assert np.abs(best - min(grid, key=brute)).max() <= 0.03


def test_a_perfect_network_gets_all_and_equal_ones_share():
  label, given = random_case(1, networks=2)
  perfect = np.eye(3)[label]
  np.testing.assert_allclose(sums_of(label, [*given, perfect]).best_weights(), [0, 0, 1])
  np.testing.assert_allclose(
      sums_of(label, [given[0], given[0]]).best_weights(), [0.5, 0.5], atol=1e-6
  )
  # All are perfect: nothing tells them apart.
  np.testing.assert_allclose(sums_of(label, [perfect, perfect]).best_weights(), [0.5, 0.5])


def test_volumes_count_alike_whatever_their_size():
  # In the first only network 0 is right, in the second, ten times as large, only network 1.
  right, wrong = np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]])
  total = BrierSums(2)
  for voxels, answers in ((10, (right, wrong)), (100, (wrong, right))):
    own = BrierSums(2)
    own.add_slice(np.ones(voxels, int), [np.repeat(one, voxels, axis=0) for one in answers])
    total.add_volume(own, voxels)
  np.testing.assert_allclose(total.best_weights(), [0.5, 0.5], atol=1e-6)
  # (1 - 0.5)^2 in each of the two classes.
  assert total.brier([0.5, 0.5]) == pytest.approx(0.5)
