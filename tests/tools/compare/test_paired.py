"""Paired statistics against hand-made numbers, all signs by hand, and SciPy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from flexunet.core.errors import InputError
from flexunet.tools.compare import paired

NAN = math.nan


def scores(*values):
  """Returns one volume per subject."""
  return {(f"S{place}", "scan"): value for place, value in enumerate(values)}


def compared(first, second, score="dice", **options):
  return paired.compare(first, second, names=("A", "B"), class_name="lesion", score=score,
                        **options)  # fmt: skip


def test_subjects_are_won_lost_and_tied_and_the_mean_goes_over_volumes():
  first = {("a", "1"): 0.5, ("a", "2"): 0.7, ("b", "1"): 0.8, ("c", "1"): 0.6}
  second = {("a", "1"): 0.7, ("a", "2"): 0.6, ("b", "1"): 0.8, ("c", "1"): 0.3}
  found = compared(first, second)
  # a: (0.2 - 0.1) / 2 = 0.05 better; b equal; c 0.3 worse.
  assert (found.wins, found.losses, found.ties) == (1, 1, 1)
  assert (found.subjects, found.volumes) == (3, 4)
  assert found.mean_first == pytest.approx(0.65) and found.mean_second == pytest.approx(0.6)
  assert found.difference == pytest.approx(-0.05)
  assert found.interval is None  # Fewer than five subjects.


def test_of_distances_less_is_better():
  found = compared(scores(3.0, 5.0), scores(2.0, 9.0), score="hd95_mm")
  assert (found.wins, found.losses) == (1, 1)
  assert compared(scores(3.0), scores(2.0), score="volume_error_ml").wins == 1
  assert compared(scores(0.3), scores(0.2), score="surface_dice_1mm").losses == 1


def test_a_score_that_one_run_lacks_is_left_out_and_counted():
  found = compared(scores(0.5, NAN, NAN, 0.8), scores(0.6, 0.7, NAN, 0.8))
  assert (found.subjects, found.one_sided, found.wins, found.ties) == (2, 1, 1, 1)
  nothing = compared(scores(NAN), scores(0.5))
  assert math.isnan(nothing.difference) and math.isnan(nothing.p) and nothing.subjects == 0


def test_the_interval_of_symmetric_differences_is_that_of_student():
  # Symmetric about 0.1: no skewness, so the interval is Student's.
  differences = np.array([0.05, 0.08, 0.1, 0.12, 0.15])
  found = compared(scores(*np.full(5, 0.5)), scores(*(0.5 + differences))).interval
  expected = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
  assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
  # Differences may be below 0.
  low = compared(scores(*np.full(5, 0.5)), scores(*(0.5 - differences))).interval
  assert (low["low"], low["high"]) == pytest.approx((-expected.high, -expected.low))


def test_no_interval_where_all_subjects_differ_alike():
  assert paired.difference_interval(np.full(8, 0.25), np.ones(8, int)) is None


def test_the_permutation_test_counts_all_signs():
  differences = np.array([0.3, -0.1, 0.25, 0.4, 0.05, -0.2])
  signs = np.array(list(itertools.product((-1, 1), repeat=6)))
  means = (signs * differences).mean(axis=1)
  expected = np.mean(np.abs(means) >= abs(differences.mean()) - 1e-12)
  assert paired.p_value(differences, "permutation") == pytest.approx(expected)
  # All of one sign: only two of 64 combinations are as extreme.
  assert paired.p_value(np.abs(differences), "permutation") == pytest.approx(2 / 64)


def test_signed_ranks_are_those_of_wilcoxon():
  differences = np.array([0.3, -0.1, 0.25, 0.4, 0.05, -0.2])
  # Ranks of the sizes: 0.05 1, 0.1 2, 0.2 3, 0.25 4, 0.3 5, 0.4 6; negative ones: 2 + 3 = 5.
  ranks = np.array([5, 2, 4, 6, 1, 3])
  signs = np.array(list(itertools.product((0, 1), repeat=6)))
  expected = 2 * np.mean((signs * ranks).sum(axis=1) <= 5)
  assert paired.p_value(differences, "wilcoxon") == pytest.approx(expected)


@pytest.mark.parametrize("test", paired.TESTS)
def test_too_few_subjects_have_no_p_value_and_equal_runs_that_of_one(test):
  assert math.isnan(paired.p_value(np.array([0.4]), test))
  assert paired.p_value(np.zeros(7), test) == 1.0


def test_an_unknown_test_is_named():
  with pytest.raises(InputError, match="wilcoxon"):
    paired.p_value(np.ones(3), "wilcoxn")


def test_holm_multiplies_the_smallest_most_and_keeps_the_order():
  # 0.01 * 3, then 0.03 * 2; 0.04 * 1 may not fall below that.
  assert paired.holm([0.04, 0.01, NAN, 0.03]) == pytest.approx(
      [0.06, 0.03, NAN, 0.06], nan_ok=True
  )
  assert paired.holm([0.6, 0.7]) == [1.0, 1.0]


def test_every_pair_and_class_of_a_score_is_corrected_together():
  values = {0: scores(*np.full(7, 0.5)), 1: scores(*(0.5 + np.arange(1, 8) / 100)),
            2: scores(*np.full(7, 0.5))}  # fmt: skip
  found = paired.compare_all(
      ["A", "B", "C"], ["lesion"], ["dice"], lambda number, *_: values[number], "permutation"
  )
  assert [(one.first, one.second) for one in found] == [("A", "B"), ("A", "C"), ("B", "C")]
  assert [one.p for one in found] == pytest.approx([2 / 128, 1.0, 2 / 128])
  assert [one.p_holm for one in found] == pytest.approx([6 / 128, 1.0, 6 / 128])
