"""One volume: its distances, lesions and clean-up, with and without gaps and spacing."""

import math

import numpy as np
import pytest

from flexunet.core.errors import InputError
from flexunet.evaluation import labelled_volumes, split_scores, volume_scores
from flexunet.imaging.clean_up import ClassRule, CleanUp


def volume(truths, slice_index=None, spacing_mm=(1.0, 1.0), slice_spacing_mm=3.0):
  return labelled_volumes.LabelledVolume(
      "A", "A_scan", list(slice_index or range(len(truths))),
      [truth[..., None] for truth in truths], list(truths), spacing_mm, slice_spacing_mm,
  )  # fmt: skip


def square(top: int, left: int, size: int = 3, shape=(12, 10)) -> np.ndarray:
  label = np.zeros(shape, np.uint8)
  label[top : top + size, left : left + size] = 1
  return label


def score(truth: labelled_volumes.LabelledVolume, found) -> dict:
  return volume_scores.score_volume(truth, found, ["background", "x"], [1.0])[0]


def test_a_gapless_volume_is_measured_in_three_dimensions():
  nothing = square(0, 0, 0)
  truth = volume([square(2, 2), nothing, nothing])
  row = score(truth, [nothing, square(2, 2), nothing])
  # The same square one slice on: 3 mm away, and no pixel in common.
  assert row["distances"] == "3d" and row["hd95_mm"] == 3.0 and row["dice"] == 0.0
  assert row["reference_ml"] == pytest.approx(9 * 3.0 / 1000)


@pytest.mark.parametrize(
    "made",
    [
        {"slice_index": [0, 2]},  # A slice is missing in between.
        {"slice_index": [4, 4]},  # Two slices claim one place.
        {"slice_spacing_mm": math.nan},
    ],
)
def test_otherwise_distances_are_within_slices(made):
  truth = volume([square(2, 2), square(5, 5)], **made)
  row = score(truth, [square(2, 4), square(5, 5)])
  assert row["distances"] == "2d"
  # In the first slice the outlines lie 2 pixels of 1 mm apart at most, in the second 0.
  assert row["hd95_2d_mm"] == 2.0 and math.isnan(row["hd95_mm"])
  assert row["dice"] == (2 * (3 + 9)) / (4 * 9)


def test_slices_of_two_sizes_are_scored_together():
  truth = volume([square(2, 2), square(2, 2, shape=(9, 14))])
  row = score(truth, [square(2, 2), square(0, 0, 0, shape=(9, 14))])
  assert row["distances"] == "2d" and row["dice"] == 2 * 9 / (9 + 18)
  # The outlines of the first slice agree, that of the second is alone; all are equally long.
  assert row["surface_dice_2d_1mm"] == pytest.approx(2 / 3)
  assert math.isnan(row["surface_dice_1mm"])


def test_missed_slices_leave_no_distance_within_slices():
  # Nine of ten slices are missed; the one that was found fits to the pixel: no distance of 0.
  nothing = square(0, 0, 0)
  truth = volume([square(2, 2)] * 10, slice_index=range(0, 20, 2))
  row = score(truth, [square(2, 2)] + [nothing] * 9)
  assert math.isnan(row["hd95_2d_mm"]) and math.isnan(row["assd_2d_mm"])
  assert (row["slices_missed"], row["slices_false_alarm"]) == (9, 0)
  # All outlines are equally long; of 10 true and 1 predicted one, 2 agree.
  assert row["surface_dice_2d_1mm"] == pytest.approx(2 / 11)
  back = score(volume([square(2, 2)] + [nothing] * 9, slice_index=range(0, 20, 2)), truth.labels)
  assert math.isnan(back["hd95_2d_mm"])
  assert (back["slices_missed"], back["slices_false_alarm"]) == (0, 9)


def test_slices_in_which_the_class_is_in_neither_take_no_distance_away():
  nothing = square(0, 0, 0)
  row = score(volume([square(2, 2), nothing], slice_index=[0, 2]), [square(2, 3), nothing])
  assert row["hd95_2d_mm"] == 1.0 and row["slices_missed"] == 0


def test_without_a_spacing_there_are_no_millimetres_but_pixels():
  # The second slice is one pixel off; slices of a gapless volume are one pixel apart.
  unknown = {"spacing_mm": (math.nan, math.nan)}
  truth, found = [square(2, 2)] * 2, [square(2, 2), square(3, 2)]
  row = score(volume(truth, **unknown), found)
  assert row["distances"] == "none" and row["distances_px"] == "3d"
  assert row["dice"] == 2 * (9 + 6) / 36
  names = ("hd95_mm", "assd_mm", "surface_dice_1mm", "reference_ml")
  assert all(math.isnan(row[name]) for name in names)
  assert row["hd100_px"] == 1.0 and 0 < row["assd_px"] < 1
  assert math.isnan(row["hd100_2d_px"])
  gap = score(volume(truth, slice_index=[0, 2], **unknown), found)
  assert gap["distances_px"] == "2d" and gap["hd100_2d_px"] == 1.0
  assert math.isnan(gap["hd100_px"])
  missed = score(volume(truth, slice_index=[0, 2], **unknown), [found[0], found[0] * 0])
  assert math.isnan(missed["hd100_2d_px"])


def test_with_a_spacing_nothing_is_measured_in_pixels():
  row = score(volume([square(2, 2)] * 2), [square(2, 2)] * 2)
  assert row["distances_px"] == "none" and not [name for name in row if name.endswith("_px")][1:]


def lesion_row(truth, found, **options):
  return volume_scores.score_volume(volume(truth, **options), found, ["b", "x"], [1.0], 0.0)[0]


def test_lesions_are_counted_in_3d_unless_slices_are_missing():
  # One bar through three slices, of which the middle one is found; and a false one.
  truth = [square(2, 2)] * 3
  found = [square(0, 0, 0), square(2, 2), square(6, 6)]
  row = lesion_row(truth, found)
  assert (row["lesions_reference"], row["lesions_predicted"]) == (1, 2)
  assert (row["lesion_sensitivity"], row["lesion_precision"]) == (1.0, 0.5)
  apart = lesion_row(truth, found, slice_index=[0, 2, 4])
  assert (apart["lesions_reference"], apart["lesions_missed"]) == (3, 2)
  unknown = lesion_row(truth, found, spacing_mm=(math.nan, math.nan))
  assert unknown["lesions_reference"] == 1
  assert "lesion_f1" not in score(volume(truth), found)


def test_labels_are_cleaned_up_before_they_are_scored():
  truth = [square(2, 2)] * 3
  found = [square(2, 2) | square(6, 6, 1), square(2, 2), square(2, 2)]
  ignored = [square(2, 2) * 0 > 0] * 3
  chosen = CleanUp(("b", "x"), {1: ClassRule(min_size=2)})
  case = volume(truth)
  case.ignored[:] = ignored
  cleaned, changed = split_scores._cleaned_up(case, found, chosen)
  assert changed and all(np.array_equal(one, square(2, 2)) for one in cleaned)
  # Slices that are no volume stay as they are.
  apart = volume(truth, slice_index=[0, 2, 4])
  assert split_scores._cleaned_up(apart, found, chosen) == (found, False)


def test_a_filled_hole_does_not_reach_into_ignored_pixels():
  ring = square(1, 1, 5)
  ring[3, 3] = 0
  case = volume([ring])
  case.ignored[:] = [ring * 0 > 0]
  case.ignored[0][3, 3] = True
  chosen = CleanUp(("b", "x"), {1: ClassRule(fill_holes=True)}, in_slices=True)
  cleaned, _ = split_scores._cleaned_up(case, [ring], chosen)
  assert cleaned[0][3, 3] == 0


def test_the_voxel_size_is_that_of_the_axes_in_which_surfaces_are_compared():
  assert volume([square(2, 2)] * 2).axes_mm == (3.0, 1.0, 1.0)
  assert volume([square(2, 2)] * 2, slice_index=[0, 2]).axes_mm == (1.0, 1.0)
  assert volume([square(2, 2)], spacing_mm=(math.nan, math.nan)).axes_mm == ()


def test_a_label_beyond_the_classes_of_the_run_is_refused():
  with pytest.raises(InputError, match="A_scan"):
    split_scores._check_ids(volume([square(1, 1)]), square(1, 1) * 3, num_classes=3)
