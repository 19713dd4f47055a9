"""Scores of small drawn masks; every expected number is derived beside it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from flexunet.core.errors import InputError
from flexunet.evaluation import surface_distance
from flexunet.evaluation.scores import (
    checked_tolerances,
    label_scores,
    mask_scores,
    score_names,
)


def drawn(*rows: str) -> np.ndarray:
  return np.array([[mark == "#" for mark in row] for row in rows])


SQUARE = drawn(
    "......",
    ".###..",
    ".###..",
    ".###..",
    "......",
    "......",
)
# The square one row down: 6 of 9 pixels shared.
LOWER = drawn(
    "......",
    "......",
    ".###..",
    ".###..",
    ".###..",
    "......",
)
NOTHING = np.zeros((6, 6), bool)


def test_overlap_scores_of_the_shifted_square():
  scores = mask_scores(SQUARE, LOWER, (1.0, 1.0))
  assert scores["status"] == "both_present"
  assert (scores["reference_pixels"], scores["predicted_pixels"]) == (9, 9)
  assert scores["dice"] == 2 * 6 / (9 + 9)
  assert scores["iou"] == 6 / 12
  assert scores["sensitivity"] == scores["precision"] == 6 / 9
  assert scores["specificity"] == (36 - 12) / (36 - 9)


def test_surface_is_the_ring():
  ring = SQUARE.copy()
  ring[2, 2] = False
  assert np.array_equal(surface_distance.surface(SQUARE), ring)


def test_the_edge_of_the_array_is_surface():
  full = np.ones((3, 4), bool)
  expected = full.copy()
  expected[1, 1:3] = False
  assert np.array_equal(surface_distance.surface(full), expected)


def test_surface_of_a_box_in_three_axes():
  box = np.zeros((5, 6, 7), bool)
  box[1:4, 1:5, 1:6] = True
  inner = np.zeros_like(box)
  inner[2, 2:4, 2:5] = True
  assert np.array_equal(surface_distance.surface(box), box & ~inner)


def test_distances_of_the_shifted_square_with_anisotropic_pixels():
  # Rows are 3 mm apart, columns 1 mm. Of the ring's 8 pixels (rows 1..3):
  #   top row, 3 pixels: the other ring's top row lies one row down: 3 mm each;
  #   middle row, 2 side pixels: they stand on the other ring's top row: 0;
  #   bottom row: 2 corners stand on the other's sides: 0; its middle pixel stands in the other's
  #   hole, 1 mm beside a side: 1.
  distances = surface_distance.surface_distances(SQUARE, LOWER, (3.0, 1.0))
  assert sorted(distances.from_reference) == [0, 0, 0, 0, 1, 3, 3, 3]
  assert sorted(distances.from_prediction) == [0, 0, 0, 0, 1, 3, 3, 3]
  assert distances.average() == pytest.approx((1 + 3 * 3) / 8)
  assert distances.hausdorff(100) == 3
  # Rank 0.95 x 7 = 6.65 lies between the two last, both 3.
  assert distances.hausdorff() == 3
  # With the columns 3 mm apart and the rows 1 mm, the hole's pixel is nearest to a row: 1.
  other = surface_distance.surface_distances(SQUARE, LOWER, (1.0, 3.0))
  assert sorted(other.from_reference) == [0, 0, 0, 0, 1, 1, 1, 1]


def test_the_surface_dice_counts_the_length_of_the_outline():
  # Between the pixels, the outline of 3 x 3 pixels passes 4 x 4 cells: over each corner half a
  # diagonal, and along each side two lines as long as a pixel.
  half, high, wide = math.sqrt(3**2 + 1) / 2, 3.0, 1.0
  outline = 4 * half + 4 * high + 4 * wide
  # One row down, the sides coincide in three cells each: in one of them lies a corner.
  same = 2 * (2 * high + half)
  # The cells between, 1 mm beside a side of the other one: two lines along the width.
  beside = 2 * wide
  scores = mask_scores(SQUARE, LOWER, (3.0, 1.0), [0.5, 1.0, 2.999, 3.0])
  assert scores["surface_dice_0.5mm"] == pytest.approx(same / outline)
  assert scores["surface_dice_1mm"] == pytest.approx((same + beside) / outline)
  assert scores["surface_dice_2.999mm"] == pytest.approx((same + beside) / outline)
  assert scores["surface_dice_3mm"] == pytest.approx(1)


def areas_of(*inside: tuple[int, int, int], spacing=(1.0, 1.0, 1.0)) -> float:
  """Returns the area in a cell whose given corners are inside."""
  cell = np.zeros((2, 2, 2), bool)
  for corner in inside:
    cell[corner] = True
  code = sum(1 << bit for bit in np.flatnonzero(cell.ravel()))
  areas = surface_distance.element_areas(np.array(spacing))
  assert areas[code] == areas[255 - code]
  return float(areas[code])


def test_the_area_in_a_cell_follows_from_its_corners():
  # One corner: an equilateral triangle whose edges are half diagonals of a face.
  assert areas_of((0, 0, 0)) == pytest.approx(math.sqrt(3) / 4 * 0.5)
  # An edge: a rectangle, as long as the cell and as wide as half a diagonal.
  assert areas_of((0, 0, 0), (0, 0, 1), spacing=(3, 4, 7)) == pytest.approx(7 * 5 / 2)
  # A face: a plane through the cell.
  face = [(0, a, b) for a in (0, 1) for b in (0, 1)]
  assert areas_of(*face, spacing=(3, 4, 7)) == pytest.approx(4 * 7)
  # Two corners across a face, or across the cell: each is cut off by itself.
  for other in ((0, 1, 1), (1, 1, 1)):
    assert areas_of((0, 0, 0), other) == pytest.approx(2 * math.sqrt(3) / 8)
  # Three of a face: half a plane, and below the cut a trapezoid: three quarters of an equilateral
  # triangle whose edges are whole diagonals.
  assert areas_of(*face[:3]) == pytest.approx(1 / 2 + 3 / 4 * math.sqrt(3) / 4 * 2)


def test_the_areas_are_those_of_the_package_surface_distance():
  # Sums over the tables of surface-distance 0.1, of the areas and of their squares.
  areas = surface_distance.element_areas(np.array([0.7, 1.1, 3.0]))
  assert areas.shape == (256,)
  assert (areas.sum(), (areas**2).sum()) == pytest.approx((541.0917420157499, 1377.7830477546918))
  lengths = surface_distance.element_areas(np.array([0.7, 1.9]))
  assert lengths.shape == (16,)
  assert (lengths.sum(), (lengths**2).sum()) == pytest.approx((17.349074038790, 24.6))


def wave(shape: tuple[int, ...], phase: float) -> np.ndarray:
  grid = np.indices(shape)
  parts = [np.sin((0.5 + 0.13 * k) * axis + phase * (k + 1)) for k, axis in enumerate(grid)]
  return sum(parts) > 0.4


@pytest.mark.parametrize(
    ("shape", "spacing", "expected"),
    [  # From compute_surface_dice_at_tolerance of surface-distance 0.1.
        ((17, 23), (0.7, 1.9), (0.5289358231644252, 0.7425019871341821, 0.9360888471252353)),
        ((13, 17, 11), (0.7, 1.1, 3), (0.6174024093605729, 0.7351669806535427,
                                       0.8936765136879046)),
        ((12, 12, 12), (1, 1, 1), (0.6448980298180786, 0.8713274205019883, 0.9859294557113262)),
    ],
)  # fmt: skip
def test_the_surface_dice_is_that_of_the_package_surface_distance(shape, spacing, expected):
  masks = wave(shape, 0.3), wave(shape, 0.75)
  found = surface_distance.surface_agreement(*masks, spacing, (0.5, 1, 2)).surface_dice()
  assert found == pytest.approx(expected, abs=1e-9)


def test_tolerances_are_distinct_and_in_order():
  names = score_names(checked_tolerances(["3", "1", "2.5", "1.0"]))
  assert [name for name in names if "surface" in name] == [
      "surface_dice_1mm", "surface_dice_2.5mm", "surface_dice_3mm",
  ]  # fmt: skip


def test_percentile_interpolates_between_ranks():
  row = np.zeros((1, 30), bool)
  row[0, :3] = True
  # Every pixel of a line one pixel wide is surface: distances to pixel 0 are 0, 1, 2 and 0.
  single = np.zeros_like(row)
  single[0, 0] = True
  distances = surface_distance.surface_distances(row, single, (1.0, 0.5))
  assert distances.from_reference.tolist() == [0, 0.5, 1.0]
  assert distances.hausdorff(95) == pytest.approx(0.5 + 0.9 * 0.5)
  assert distances.average() == pytest.approx((0 + 0.5 + 1 + 0) / 4)


def test_two_voxels_lie_apart_by_their_spacing():
  one, two = np.zeros((2, 5, 6, 7), bool)
  one[1, 1, 1], two[3, 4, 2] = True, True
  distances = surface_distance.surface_distances(one, two, (2.0, 1.0, 0.5))
  assert distances.hausdorff() == pytest.approx(math.sqrt((2 * 2) ** 2 + 3**2 + 0.5**2))
  assert distances.average() == distances.hausdorff()


def test_distances_agree_with_a_distance_map():
  from scipy import ndimage

  random = np.random.default_rng(5)
  blobs = [
      ndimage.gaussian_filter(random.normal(size=(20, 17, 13)), 2) > 0.03 for _ in range(2)
  ]
  spacing = (0.7, 1.1, 3.0)
  found = surface_distance.surface_distances(*blobs, spacing)
  rings = [blob & ~ndimage.binary_erosion(blob) for blob in blobs]
  maps = [ndimage.distance_transform_edt(~ring, sampling=spacing) for ring in rings]
  np.testing.assert_allclose(found.from_reference, maps[1][rings[0]], atol=1e-9)
  np.testing.assert_allclose(found.from_prediction, maps[0][rings[1]], atol=1e-9)


def test_equal_masks_are_perfect():
  scores = mask_scores(SQUARE, SQUARE, (1.0, 2.0))
  assert (scores["dice"], scores["iou"], scores["surface_dice_1mm"]) == (1, 1, 1)
  assert (scores["hd95_mm"], scores["assd_mm"]) == (0, 0)


def test_swapping_the_masks_swaps_sensitivity_and_precision_only():
  smaller = SQUARE.copy()
  smaller[1] = False
  there = mask_scores(SQUARE, smaller, (1.0, 2.0))
  back = mask_scores(smaller, SQUARE, (1.0, 2.0))
  for name in ("dice", "iou", "hd95_mm", "assd_mm", "surface_dice_1mm"):
    assert there[name] == back[name]
  assert (there["sensitivity"], there["precision"]) == (6 / 9, 1)
  assert (back["sensitivity"], back["precision"]) == (1, 6 / 9)


@pytest.mark.parametrize(
    ("reference", "prediction", "expected"),
    [
        (SQUARE, NOTHING, dict(status="missed", dice=0, iou=0, sensitivity=0, precision=None,
                               surface_dice_1mm=0, specificity=1)),
        (NOTHING, SQUARE, dict(status="false_alarm", dice=0, iou=0, sensitivity=None, precision=0,
                               surface_dice_1mm=0, specificity=27 / 36)),
        (NOTHING, NOTHING, dict(status="both_empty", dice=None, iou=None, sensitivity=None,
                                precision=None, surface_dice_1mm=None, specificity=1)),
    ],
)  # fmt: skip
def test_empty_masks_follow_the_table(reference, prediction, expected):
  scores = mask_scores(reference, prediction, (1.0, 1.0))
  assert math.isnan(scores["hd95_mm"]) and math.isnan(scores["assd_mm"])
  for name, value in expected.items():
    if value is None:
      assert math.isnan(scores[name]), name
    else:
      assert scores[name] == value, name


def test_volumes_in_ml_need_three_axes():
  mask = np.zeros((4, 5, 6), bool)
  mask[1:3, 1:4, 1:5] = True
  scores = mask_scores(mask, mask[::-1], (1.0, 2.0, 5.0))
  # 2 x 3 x 4 voxels of 10 cubic mm.
  assert scores["reference_ml"] == scores["predicted_ml"] == pytest.approx(24 * 10 / 1000)
  flat = mask_scores(SQUARE, LOWER, (1.0, 1.0))
  assert math.isnan(flat["reference_ml"])


def test_unknown_spacing_leaves_the_overlaps_and_no_mm():
  scores = mask_scores(SQUARE, LOWER, (float("nan"), 1.0))
  assert scores["dice"] == 2 * 6 / 18
  for name in ("hd95_mm", "assd_mm", "surface_dice_1mm", "reference_ml"):
    assert math.isnan(scores[name]), name
  with pytest.raises(InputError, match="known spacing"):
    surface_distance.surface_distances(SQUARE, LOWER, (float("nan"), 1.0))


def test_label_scores_give_a_row_per_foreground_class_present_or_not():
  reference = SQUARE.astype("uint8")
  prediction = 2 * LOWER.astype("uint8")
  prediction[1] = reference[1]
  rows = label_scores(
      reference, prediction, ["background", "left", "right", "lesion"], (1.0, 1.0)
  )
  assert [row["class"] for row in rows] == ["left", "right", "lesion"]
  assert [row["status"] for row in rows] == ["both_present", "false_alarm", "both_empty"]
  assert rows[0]["dice"] == 2 * 3 / (9 + 3)
  assert set(score_names([1.0])) <= rows[0].keys()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: mask_scores(SQUARE, LOWER[:5], (1, 1)), "one shape"),
        (lambda: mask_scores(SQUARE, LOWER, (1, 1, 1)), "2 positive numbers"),
        (lambda: mask_scores(SQUARE, LOWER, (1, 0)), "positive"),
        (lambda: mask_scores(SQUARE, LOWER, (1, 1), [1, 0]), "must be above 0"),
        (lambda: mask_scores(SQUARE, LOWER, (1, 1), ["wide"]), "must be numbers"),
        (lambda: mask_scores(SQUARE, LOWER, (1, 1), [math.inf]), "Got: 'inf'"),
        (lambda: mask_scores(SQUARE, LOWER, (1, 1), []), "must be numbers"),
        (lambda: label_scores(SQUARE * 5, LOWER * 1, ["a", "b"], (1, 1)),
         "Reference ids must lie in 0..1"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(call, said):
  with pytest.raises(InputError, match=said):
    call()


def directed(one, other, spacing):
  """The distance from each surface voxel of one mask to the nearest of the other, by loops."""
  places = [np.argwhere(surface_distance.surface(mask)) * spacing for mask in (one, other)]
  return [min(math.dist(a, b) for b in places[1]) for a in places[0]]


@pytest.mark.parametrize("shape", [(9, 11), (5, 6, 7)])
def test_the_four_distances_are_those_of_loops_over_all_pairs_of_surface_voxels(shape):
  random = np.random.default_rng(len(shape))
  spacing = (3.0, 1.0, 0.5)[: len(shape)]
  for density in (0.1, 0.5):
    one, other = (random.random(shape) < density for _ in range(2))
    there, back = directed(one, other, spacing), directed(other, one, spacing)
    scores = mask_scores(one, other, spacing)
    assert scores["hd100_mm"] == pytest.approx(max(there + back))
    assert scores["hd95_mm"] == pytest.approx(
        max(np.percentile(there, 95), np.percentile(back, 95))
    )
    assert scores["assd_mm"] == pytest.approx(np.mean(there + back))
    assert scores["masd_mm"] == pytest.approx((np.mean(there) + np.mean(back)) / 2)


def test_masd_weighs_both_directions_alike_and_assd_both_surfaces():
  # A pixel against a row of 5: from it 0; back 0, 1, 2, 3, 4.
  one, row = drawn("#....", "....."), drawn("#####", ".....")
  scores = mask_scores(one, row, (1.0, 1.0))
  assert scores["assd_mm"] == pytest.approx((0 + 10) / 6)
  assert scores["masd_mm"] == (0 + 10 / 5) / 2
  assert scores["hd100_mm"] == 4.0


@pytest.mark.parametrize(
    ("truth", "found", "error_ml", "relative"),
    [(4, 6, 0.002 * 2, 0.5), (4, 0, -0.002 * 4, -1.0), (0, 3, 0.006, math.nan),
     (0, 0, math.nan, math.nan)],
)  # fmt: skip
def test_volume_errors_and_their_empty_cases(truth, found, error_ml, relative):
  reference, prediction = (np.arange(8).reshape(2, 2, 2) < n for n in (truth, found))
  scores = mask_scores(reference, prediction, (2.0, 1.0, 1.0))
  assert scores["volume_error_ml"] == pytest.approx(error_ml, nan_ok=True)
  assert scores["volume_error_relative"] == pytest.approx(relative, nan_ok=True)
