"""How often the interval of a mean holds the true mean, simulated; the rule states the figures.

The distributions stand for the Dice of subjects: skewed towards 0, and the same with a share of
subjects in whom the structure is missed altogether. With -s the whole table is printed.
"""

import math
import re

import numpy as np
import pytest

from flexunet.evaluation import summary

CASES = 4000


def skewed(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
  return random.beta(6, 1.2, shape)


def with_misses(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
  return np.where(random.random(shape) < 0.05, 0.0, skewed(random, shape))


MEAN = 6 / (6 + 1.2)


def coverage(draw, subjects: int, mean: float) -> float:
  """Returns the share of simulated evaluations whose interval holds the true mean."""
  random = np.random.default_rng(subjects)
  ones = np.ones(subjects, int)
  held = 0
  for values in draw(random, (CASES, subjects)):
    low, high = summary.mean_interval(values, ones)
    held += low <= mean <= high
  return held / CASES


def stated(part: int) -> dict[int, float]:
  """Returns subjects -> coverage as the rule states it: of the skewed, with misses, of too few."""
  parts = re.split("Where besides|No interval", summary.INTERVAL_RULE)
  found = re.findall(r"(\d+) % with (\d+)", parts[part])
  return {int(subjects): int(percent) / 100 for percent, subjects in found}


@pytest.mark.slow
def test_the_coverage_of_skewed_scores_is_the_stated_one():
  found = {subjects: coverage(skewed, subjects, MEAN) for subjects in range(3, 21)}
  print(*(f"{subjects} subjects: {share:.3f}" for subjects, share in found.items()), sep="\n")
  assert all(0.93 <= share <= 0.965 for n, share in found.items() if n >= summary.MIN_SUBJECTS)
  said = {**stated(0), **stated(2)}
  assert sorted(said) == [3, 5, 10, 20]
  assert {n: found[n] for n in said} == pytest.approx(said, abs=0.01)


@pytest.mark.slow
def test_the_coverage_where_some_are_missed_is_lower_and_stated():
  found = {n: coverage(with_misses, n, 0.95 * MEAN) for n in range(summary.MIN_SUBJECTS, 21)}
  print(*(f"{subjects} subjects: {share:.3f}" for subjects, share in found.items()), sep="\n")
  said = stated(1)
  assert sorted(said) == [5, 10, 20]
  assert {n: found[n] for n in said} == pytest.approx(said, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("subjects", "said"), [(5, 0.92), (10, 0.92), (20, 0.94)])
def test_subjects_with_several_like_volumes_count_once(subjects, said):
  # One to four volumes each that are alike: volumes alone would claim too much.
  random = np.random.default_rng(1)
  held = 0
  for values in skewed(random, (CASES, subjects)):
    counts = random.integers(1, 5, subjects)
    low, high = summary.mean_interval(values * counts, counts)
    held += low <= MEAN <= high
  print(f"{subjects} subjects of 1 to 4 volumes: {held / CASES:.3f}")
  assert held / CASES == pytest.approx(said, abs=0.01)


def test_without_skewness_the_interval_is_that_of_student():
  # Mean 0.5, sd sqrt(2 x 0.01 / 2) = 0.1; the 97.5 % point of t with two degrees of freedom: 4.303.
  ends = summary.mean_interval(np.array([0.4, 0.5, 0.6]), np.ones(3, int))
  half = 4.302653 * 0.1 / math.sqrt(3)
  assert ends == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)
