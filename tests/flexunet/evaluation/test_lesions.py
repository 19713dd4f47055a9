"""Lesions are counted as a flood fill counts them, and matched by the rule that is stated."""

from __future__ import annotations

import math

import brute_force
import numpy as np
import pytest

from flexunet.core.errors import InputError
from flexunet.evaluation import lesions
from flexunet.evaluation.lesions import LesionCounts, count_lesions


def counted(truth, claim, overlap=0.0):
  return count_lesions(
      brute_force.drawn(*truth) > 0, brute_force.drawn(*claim) > 0, overlap
  )


def test_found_missed_and_false_lesions_are_counted():
  truth = ["11...1",
           "11....",
           "......"]  # fmt: skip
  claim = [".1....",
           ".1....",
           "....11"]  # fmt: skip
  # The square is found by two of its pixels; the single pixel is missed; one claim is false.
  assert counted(truth, claim) == LesionCounts(2, 2, missed=1, false_positive=1)
  scores = counted(truth, claim).scores()
  assert scores["lesion_sensitivity"] == scores["lesion_precision"] == 1 / 2
  assert scores["lesion_f1"] == 1 / 2


def test_pixels_that_touch_at_a_corner_are_one_lesion():
  assert counted(["1..", ".1.", "..1"], ["...", "...", "..."]).reference == 1


def test_voxels_that_touch_at_a_corner_are_one_lesion():
  mask = np.zeros((2, 2, 2), bool)
  mask[0, 0, 0] = mask[1, 1, 1] = True
  assert count_lesions(mask, mask) == LesionCounts(1, 1, 0, 0)


def test_neighbours_do_not_overlap():
  assert counted(["1."], [".1"]) == LesionCounts(1, 1, missed=1, false_positive=1)


def test_a_lesion_that_two_predicted_ones_cover_together_is_found():
  truth, claim = ["1111111111"], ["111....111"]
  assert counted(truth, claim, 0.6) == LesionCounts(1, 2, 0, 0)
  assert counted(truth, claim, 0.61) == LesionCounts(1, 2, missed=1, false_positive=0)


def test_a_predicted_lesion_that_covers_two_finds_both_and_counts_once():
  truth, claim = ["11..11"], ["111111"]
  assert counted(truth, claim) == LesionCounts(2, 1, 0, 0)
  # 4 of its 6 pixels are true.
  assert counted(truth, claim, 0.66) == LesionCounts(2, 1, 0, 0)
  assert counted(truth, claim, 0.67) == LesionCounts(2, 1, 0, false_positive=1)


def test_a_share_that_is_just_reached_counts_in_spite_of_rounding():
  # 3 of 10 pixels are 0.3, but 0.3 * 10 is 3.0000000000000004 in other orders of arithmetic.
  for size in range(1, 50):
    for part in range(1, size + 1):
      truth = np.ones((1, size), bool)
      claim = np.arange(size)[None] < part
      assert count_lesions(truth, claim, part / size).missed == 0


@pytest.mark.parametrize(
    ("counts", "sensitivity", "precision", "harmonic"),
    [
        (LesionCounts(4, 3, 1, 1), 3 / 4, 2 / 3, 2 * (3 / 4) * (2 / 3) / (3 / 4 + 2 / 3)),
        (LesionCounts(2, 2, 2, 2), 0.0, 0.0, 0.0),
        (LesionCounts(2, 0, 2, 0), 0.0, math.nan, 0.0),
        (LesionCounts(0, 3, 0, 3), math.nan, 0.0, 0.0),
        (LesionCounts(), math.nan, math.nan, math.nan),
    ],
)
def test_scores_of_counts_and_their_empty_cases(counts, sensitivity, precision, harmonic):
  scores = counts.scores()
  assert [scores[name] for name in lesions.RATIO_NAMES] == pytest.approx(
      [sensitivity, precision, harmonic], nan_ok=True
  )
  assert scores["lesions_false_positive"] == counts.false_positive


def test_counts_of_slices_add_up():
  assert LesionCounts(1, 2, 0, 1) + LesionCounts(3, 1, 2, 0) == LesionCounts(4, 3, 2, 1)


@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(9, 11), (6, 7, 8)])
def test_random_masks_are_counted_as_by_flood_fill(shape, overlap):
  random = np.random.default_rng(len(shape))
  for density in (0.05, 0.15, 0.3, 0.6):
    for _ in range(15):
      truth, claim = (random.random(shape) < density for _ in range(2))
      true, claimed = brute_force.flood_fill(truth), brute_force.flood_fill(claim)

      def found(component, other):
        shared = sum(bool(other[place]) for place in component)
        return shared > 0 and shared / len(component) >= overlap

      expected = LesionCounts(
          len(true), len(claimed),
          missed=sum(not found(one, claim) for one in true),
          false_positive=sum(not found(one, truth) for one in claimed),
      )  # fmt: skip
      assert count_lesions(truth, claim, overlap) == expected


@pytest.mark.parametrize("overlap", [-0.1, 1.01, math.nan])
def test_an_overlap_beyond_a_share_is_refused(overlap):
  with pytest.raises(InputError, match="--lesion_overlap must be a share"):
    lesions.checked_overlap(overlap)
