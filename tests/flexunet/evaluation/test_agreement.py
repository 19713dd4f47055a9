"""Bias and limits of agreement, by arithmetic and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from flexunet.evaluation import agreement
from flexunet.evaluation.agreement import limits_of_agreement, volume_agreement

NAN = math.nan


def row(subject, true_ml, found_ml, **other):
  status = "both_present" if true_ml or found_ml else "both_empty"
  return {
      "subject": subject, "reference_ml": true_ml, "predicted_ml": found_ml, "status": status,
      "reference_pixels": 100 * true_ml, "predicted_pixels": 100 * found_ml, **other,
  }  # fmt: skip


def test_bias_and_limits_of_known_errors():
  # Errors 1, -1, 3, 1: mean 1; deviations 0, -2, 2, 0, so sd = sqrt(8 / 3).
  found = limits_of_agreement(np.array([1.0, -1.0, 3.0, 1.0]))
  sd = math.sqrt(8 / 3)
  assert (found["n"], found["bias"], found["mean_absolute"]) == (4, 1.0, 1.5)
  assert found["sd"] == pytest.approx(sd)
  assert [found["low"], found["high"]] == pytest.approx([1 - 1.96 * sd, 1 + 1.96 * sd])
  assert found["bias_ci95"] is found["low_ci95"] is found["high_ci95"] is None


@pytest.mark.parametrize("subjects", [5, 12, 85])
def test_intervals_are_those_of_the_textbook(subjects):
  errors = np.random.default_rng(subjects).normal(0.3, 2.0, subjects)
  found, root = limits_of_agreement(errors), math.sqrt(subjects)
  bias, sd = np.mean(errors), np.std(errors, ddof=1)
  t = stats.t.ppf(0.975, subjects - 1)
  assert [found["bias_ci95"][end] for end in ("low", "high")] == pytest.approx(
      [bias - t * sd / root, bias + t * sd / root]
  )
  # Carkeet 2015: the limits by quantiles of the noncentral t distribution.
  near, far = stats.nct.ppf([0.025, 0.975], subjects - 1, 1.96 * root)
  assert [found["high_ci95"][end] for end in ("low", "high")] == pytest.approx(
      [bias + near * sd / root, bias + far * sd / root]
  )
  assert [found["low_ci95"][end] for end in ("low", "high")] == pytest.approx(
      [bias - far * sd / root, bias - near * sd / root]
  )


def test_intervals_cover_the_true_limits_in_95_of_100_draws():
  random = np.random.default_rng(1)
  draws, covered = 4000, np.zeros(3)
  for _ in range(draws):
    found = limits_of_agreement(random.normal(2.0, 3.0, 8))
    for place, (name, true) in enumerate(
        [("bias", 2.0), ("low", 2 - 1.96 * 3), ("high", 2 + 1.96 * 3)]
    ):
      interval = found[f"{name}_ci95"]
      covered[place] += interval["low"] <= true <= interval["high"]
  # The standard error of a share of 0.95 in 4000 draws is 0.0034.
  assert np.abs(covered / draws - 0.95).max() < 4 * 0.0034


def test_the_volumes_of_a_subject_are_averaged_first():
  rows = [row("A", 10.0, 12.0), row("A", 10.0, 14.0), row("B", 20.0, 19.0)]
  found = volume_agreement(rows)
  assert (found["n"], found["volumes"], found["unit"]) == (2, 3, "ml")
  assert found["bias_ml"] == (3.0 - 1.0) / 2
  # Relative: (0.2 + 0.4) / 2 and -0.05.
  assert found["relative_bias"] == pytest.approx((0.3 - 0.05) / 2)


def test_empty_pairs_do_not_count_and_a_false_alarm_has_no_relative_error():
  rows = [row("A", 10.0, 8.0), row("B", 0.0, 0.0), row("C", 0.0, 1.0)]
  found = volume_agreement(rows)
  assert (found["n"], found["relative_n"]) == (2, 1)
  assert found["bias_ml"] == (-2.0 + 1.0) / 2 and found["relative_bias"] == -0.2
  assert found["mean_absolute_ml"] == 1.5


def test_without_volumes_the_unit_is_mm2_or_pixels_and_units_are_not_mixed():
  flat = {"reference_ml": NAN, "predicted_ml": NAN, "reference_mm2": 8.0, "predicted_mm2": 6.0}
  none = {"reference_ml": NAN, "predicted_ml": NAN}
  rows = [row("A", 1.0, 2.0, **flat), row("B", 1.0, 2.0, **flat), row("C", 1.0, 2.0, **none)]
  found = volume_agreement(rows)
  assert found["unit"] == "mm2" and found["bias_mm2"] == -2.0
  assert (found["n"], found["volumes_left_out"]) == (2, 1)
  found = volume_agreement(rows[2:])
  assert found["unit"] == "pixels" and found["bias_pixels"] == 100.0


def test_a_class_that_is_nowhere_has_no_agreement():
  found = volume_agreement([row("A", 0.0, 0.0)])
  assert found["n"] == 0 and math.isnan(found["bias_ml"]) and found["bias_ci95"] is None
  assert agreement.volume_agreement([])["volumes"] == 0
