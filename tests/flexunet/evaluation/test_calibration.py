"""Figures of calibration, and the temperature, against brute force."""

import itertools

import numpy as np
import pytest

from flexunet.core.errors import InputError
from flexunet.evaluation import calibration
from flexunet.network.probabilities import tempered

NAMES = ["background", "a", "b"]


def drawn(count=4000, sharpness=1.0, seed=0):
  """Returns (label, probability): truths drawn from probabilities, which then are sharpened."""
  random = np.random.default_rng(seed)
  honest = random.dirichlet([0.8, 0.6, 0.4], count).astype(np.float32)
  label = (honest.cumsum(axis=1) < random.random((count, 1))).sum(axis=1).clip(max=2)
  return label.astype(np.uint8), tempered(honest, 1 / sharpness)


def brute_ece(confidence, right):
  """Voxel by voxel, into bins by comparison with their edges."""
  total, edges = 0.0, np.arange(16) / 15
  for low, high in itertools.pairwise(edges):
    inside = [n for n, c in enumerate(confidence) if low <= c < high or (high == 1 and c == 1)]
    if inside:
      gap = np.mean([confidence[n] for n in inside]) - np.mean([right[n] for n in inside])
      total += len(inside) / len(confidence) * abs(gap)
  return total


def test_figures_agree_with_brute_force():
  label, probability = drawn(700, sharpness=2.0)
  sums = calibration.Reliability(NAMES)
  for part in (slice(0, 300), slice(300, 700)):
    sums.add(label[part], probability[part])
  found = sums.figures()
  one_hot = np.eye(3)[label]
  right = probability.argmax(axis=1) == label
  assert found["pixels"] == 700
  assert found["ece"] == pytest.approx(brute_ece(probability.max(axis=1), right), abs=1e-6)
  brier = np.mean([np.sum((p - y) ** 2) for p, y in zip(probability, one_hot, strict=True)])
  assert found["brier"] == pytest.approx(brier, abs=1e-6)
  nll = -np.mean([np.log(p[y]) for p, y in zip(probability, label, strict=True)])
  assert found["nll"] == pytest.approx(nll, abs=1e-5)
  for number, name in enumerate(NAMES):
    own = found["per_class"][name]
    expected = brute_ece(probability[:, number], label == number)
    assert own["ece"] == pytest.approx(expected, abs=1e-6)
    squares = (probability[:, number] - one_hot[:, number]) ** 2
    assert own["brier"] == pytest.approx(np.mean(squares))
  assert sum(one["brier"] for one in found["per_class"].values()) == pytest.approx(found["brier"])
  assert sum(one["pixels"] for one in found["bins"]) == 700
  assert (found["bins"][0]["low"], found["bins"][-1]["high"]) == (0.0, 1.0)


def test_certain_and_right_is_calibrated_and_certain_and_wrong_is_the_worst():
  sums = calibration.Reliability(["background", "a"])
  sums.add(np.array([0, 1]), np.array([[1, 0], [0, 1]], np.float32))
  assert (sums.figures()["ece"], sums.figures()["brier"]) == (0.0, 0.0)
  worst = calibration.Reliability(["background", "a"])
  worst.add(np.array([1, 0]), np.array([[1, 0], [0, 1]], np.float32))
  assert (worst.figures()["ece"], worst.figures()["brier"]) == (1.0, 2.0)


def test_only_voxels_near_true_or_predicted_foreground_count():
  label, answer = np.zeros((30, 40), np.uint8), np.zeros((30, 40), np.uint8)
  label[10, 10] = 1
  answer[20, 30] = 2
  expected = np.zeros((30, 40), bool)
  for row, column in ((10, 10), (20, 30)):
    expected[row - 5 : row + 6, column - 5 : column + 6] = True
  assert np.array_equal(calibration.near_foreground(label, answer), expected)
  counted = np.ones((30, 40), bool)
  counted[:12] = False
  ids, probability = calibration.voxels_near_foreground(
      label, np.eye(3, dtype=np.float32)[answer], counted
  )
  assert len(ids) == len(probability) == np.count_nonzero(expected & counted)
  figures = calibration.CalibrationFigures(NAMES)
  figures.add(label * 0, np.eye(3, dtype=np.float32)[answer * 0])
  assert figures.figures()["pixels"] == 0 and np.isnan(figures.figures()["ece"])


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0])
def test_the_temperature_has_the_least_negative_log_likelihood(sharpness):
  label, probability = drawn(6000, sharpness, seed=3)
  found = calibration.fit_temperature(label, probability)

  def nll(temperature):
    logits = np.log(np.maximum(probability.astype(np.float64), 1e-30)) / temperature
    logits -= logits.max(axis=1, keepdims=True)
    own = logits[np.arange(label.size), label] - np.log(np.exp(logits).sum(axis=1))
    return -own.mean()

  # It has one minimum: its place to 3 %, and then to 0.1 %.
  best = 1.0
  for tried in (np.geomspace(0.05, 20, 201), np.geomspace(0.96, 1.04, 81)):
    best *= tried[np.argmin([nll(best * one) for one in tried])]
  assert found == pytest.approx(best, rel=0.002)
  # What was sharpened by a factor is brought back by it, as far as 6,000 voxels show.
  assert found == pytest.approx(sharpness, rel=0.06)


def test_where_more_certainty_is_always_better_the_temperature_ends_at_its_bound():
  probability = np.array([[0.6, 0.4], [0.3, 0.7]], np.float32)
  assert calibration.fit_temperature(np.array([0, 1]), probability) == calibration.LOWEST
  assert calibration.fit_temperature(np.array([1, 0]), probability) == calibration.HIGHEST
  with pytest.raises(InputError, match="There are none"):
    calibration.fit_temperature(np.zeros(0, int), np.zeros((0, 2), np.float32))


def test_a_fit_states_the_figures_before_and_after():
  label, probability = drawn(5000, sharpness=3.0)
  sample = calibration.VoxelSample()
  sample.add(label, probability)
  fit = calibration.TemperatureFit.of(sample)
  assert fit.voxels == fit.voxels_seen == 5000
  assert not fit.to_json()["at_bound"]
  assert fit.after["nll"] < fit.before["nll"] and fit.after["ece"] < fit.before["ece"] / 3


def test_a_sample_is_bounded_drawn_evenly_and_always_the_same():
  def made():
    sample = calibration.VoxelSample(most=1000)
    for part in range(20):
      label = np.full(500, part, np.uint8)
      sample.add(label, np.full((500, 2), part, np.float32))
    return sample

  label, probability = made().voxels()
  assert made().seen == 10_000 and 400 < label.size <= 1000
  assert np.array_equal(label, made().voxels()[0]) and np.array_equal(label, probability[:, 0])
  # About as many of each part: 25 to 50 are expected.
  assert np.bincount(label, minlength=20).min() > 10
