"""Margins and volume intervals: by hand, and against brute force."""

import itertools
import json
import math

import numpy as np
import pytest

from flexunet.core.errors import InputError
from flexunet.evaluation import conformal
from flexunet.evaluation.conformal import Margins, Scores, VolumeRatios


def scores(values, folds=None) -> Scores:
  names = tuple(f"s{n}" for n in range(len(values)))
  return Scores(names, np.array(values, float), folds)


@pytest.mark.parametrize(
    ("level", "needed"), [(0.5, 1), (0.75, 3), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99)]
)
def test_a_level_needs_so_many_subjects(level, needed):
  # ceil((n + 1) level) <= n, by trying.
  assert conformal.required(level) == needed
  assert conformal.rank(needed, level) <= needed < conformal.rank(needed - 1, level) + 1
  assert math.isfinite(conformal.bound(list(range(needed)), level))
  assert math.isinf(conformal.bound(list(range(needed - 1)), level))


def test_the_bound_is_the_score_of_its_rank():
  # 0.8 * 11 = 8.8: the ninth of ten.
  assert conformal.bound([3, 1, 2, 10, 9, 8, 7, 6, 5, 4], 0.8) == 9
  assert conformal.bound([1, 2, 3, 4], 0.8) == 4  # 0.8 * 5 is 4, not a little more.


@pytest.mark.parametrize("level", [0, 1, -0.1, 1.5, math.nan])
def test_a_level_lies_between_0_and_1(level):
  with pytest.raises(InputError, match="--margin must be a share"):
    conformal.check_level(level, "--margin")


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("contained", [1.0, 0.9])
def test_the_margin_is_the_smallest_that_contains_the_truth(axes, contained):
  random = np.random.default_rng(axes)
  spacing = (2.5, 0.7, 1.1)[:axes]
  for _ in range(25):
    truth = random.random((7, 9, 8)[:axes]) < 0.1
    found = random.random(truth.shape) < 0.05
    margin = conformal.containing_margin(truth, found, spacing, contained)
    places = [np.argwhere(mask) * spacing for mask in (truth, found)]
    if not truth.any() or not found.any():
      assert margin == (math.inf if truth.any() else 0.0)
      continue
    nearest = sorted(min(np.linalg.norm(one - other) for other in places[1]) for one in places[0])
    wanted = math.ceil(contained * len(nearest) - 1e-9)
    assert margin == pytest.approx(nearest[wanted - 1])
    inside = np.count_nonzero(truth & conformal.dilated(found, margin, spacing))
    assert inside >= contained * np.count_nonzero(truth)
    if margin:
      less = conformal.dilated(found, margin - 1e-3, spacing)
      assert np.count_nonzero(truth & less) < contained * np.count_nonzero(truth)


def test_a_dilation_reaches_every_voxel_within_the_margin_and_no_other():
  mask = np.zeros((9, 11, 7), bool)
  mask[0, 5, 3] = mask[8, 1, 6] = True
  spacing, margin = np.array([1.0, 2.0, 1.5]), 3.0
  found = conformal.dilated(mask, margin, spacing)
  for place in itertools.product(*map(range, mask.shape)):
    near = min(np.linalg.norm((np.array(place) - one) * spacing) for one in np.argwhere(mask))
    assert found[place] == (near <= margin)
  assert not conformal.dilated(mask & False, margin, spacing).any()


def test_within_slices_a_missed_slice_has_no_margin():
  blank, dot = np.zeros((5, 5), bool), np.zeros((5, 5), bool)
  dot[2, 2] = True
  moved = np.roll(dot, 2, axis=1)
  assert conformal.margin_of_slices([dot, blank], [moved, dot], (1.0, 0.5)) == 1.0
  assert conformal.margin_of_slices([dot, dot], [moved, blank], (1.0, 0.5)) == math.inf
  assert conformal.margin_of_slices([dot, dot], [moved, blank], (1.0, 0.5), contained=0.5) == 1.0


def test_a_level_is_refused_with_the_number_of_subjects_it_takes():
  margins = Margins("mm", "3d", 1.0, {"a": scores([1.0, 2.0, 3.0]), "b": scores([])})
  found, refused = margins.at(0.75)
  assert found == {"a": 3.0}
  assert refused == ["b: it takes 3 subjects, and calibration had 0."]
  with pytest.raises(InputError, match="a: it takes 9 subjects, and calibration had 3"):
    margins.at(0.9)
  missed = Margins("mm", "3d", 1.0, {"a": scores([1.0, 2.0, math.inf])})
  assert missed.at(0.5)[0] == {"a": 2.0}
  with pytest.raises(InputError, match="missed in 1 of 3"):
    missed.at(0.75)


def test_few_subjects_bound_both_sides_alike_and_many_each_side():
  logs = np.log(np.array([0.9, 1.0, 1.1, 1.3, 1.2]))
  few = conformal.ratio_bounds(np.stack([logs, logs], axis=1), 0.8)
  # The fifth of five deviations.
  assert not few.two_sided and few.high == pytest.approx(1.3) and few.low == pytest.approx(1 / 1.3)
  many = np.log(np.linspace(1.0, 1.38, 39))
  both = conformal.ratio_bounds(np.stack([many, many], axis=1), 0.9)
  # 0.95 * 40 is the 38th of 39 from either side.
  assert both.two_sided
  assert (both.low, both.high) == pytest.approx((1.01, 1.37))


def test_a_truth_of_nothing_leaves_no_lower_bound():
  logs = np.array([[-math.inf, -math.inf], [0.0, 0.1], [0.2, 0.2]])
  found = conformal.ratio_bounds(logs, 0.75)
  assert (found.low, found.high) == (0.0, math.inf)


def test_scores_survive_json_with_what_is_infinite():
  margins = Margins("px", "2d", 0.95, {"a": scores([0.5, math.inf], folds=(0, 1))})
  stored = json.loads(json.dumps(margins.to_json(), allow_nan=False))
  assert stored["classes"]["a"]["margins"] == [0.5, None]
  read = Margins.from_json(stored)
  assert read.classes["a"].values.tolist() == [0.5, math.inf]
  assert read.classes["a"].folds == (0, 1) and read.contained == 0.95
  ratios = VolumeRatios({"a": scores([[-math.inf, 0.5]])})
  stored = json.loads(json.dumps(ratios.to_json(), allow_nan=False))
  assert VolumeRatios.from_json(stored).classes["a"].values.tolist() == [[-math.inf, 0.5]]


def test_the_subjects_of_each_fold_are_judged_by_the_other_folds():
  # Without fold 0: margins 3, 4, 5 and the bound at 0.75 is 5; without fold 1: 1, 2, 9 and 9.
  own = scores([1, 2, 9, 3, 4, 5], folds=(0, 0, 0, 1, 1, 1))
  assert conformal.coverage_by_fold(own, 0.75) == (5, 6)
  assert conformal.coverage_by_fold(own, 0.9) == (0, 0)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
def test_new_subjects_are_covered_as_often_as_the_level_says(level):
  # k = ceil((n + 1) level) of n exchangeable scores cover a new one with the chance k / (n + 1).
  random, count, draws = np.random.default_rng(7), 19, 4000
  margins = random.exponential(size=(draws, count + 1))
  inside = [
      bool(conformal.covers(row[:count], row[count:], level)[0]) for row in margins
  ]
  expected = conformal.rank(count, level) / (count + 1)
  error = math.sqrt(expected * (1 - expected) / draws)
  assert np.mean(inside) == pytest.approx(expected, abs=4 * error)
  logs = random.normal(0.1, 0.2, (draws, 39 + 1))
  both = [
      bool(conformal.covers(np.stack([row[:39]] * 2, 1), np.stack([row[39:]] * 2, 1), level)[0])
      for row in logs
  ]
  assert level - 4 * error < np.mean(both) < level + 0.05 + 4 * error
