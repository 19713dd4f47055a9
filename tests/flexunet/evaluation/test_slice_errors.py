"""Errors are counted at the position of their slice, by class."""

import numpy as np

from flexunet.evaluation.labelled_volumes import LabelledVolume
from flexunet.evaluation.slice_errors import NUM_BINS, SliceErrors


def volume_of(labels: list, slice_index: list[int]) -> LabelledVolume:
  labels = [np.array(label, np.uint8) for label in labels]
  images = [np.zeros((*label.shape, 1), np.uint8) for label in labels]
  return LabelledVolume("S", "V", slice_index, images, labels, (1.0, 1.0), 1.0)


def test_pixels_are_counted_by_relative_position_and_class():
  errors = SliceErrors(["background", "a", "b"])
  # Slices 3, 13 and 23 lie at 0, one half and 1.
  truth = [[[1, 1, 0]], [[2, 2, 1]], [[0, 0, 0]]]
  found = [np.array(one, np.uint8) for one in ([[1, 0, 0]], [[2, 1, 1]], [[0, 2, 0]])]
  errors.add(volume_of(truth, [3, 13, 23]), found)
  figures = errors.figures()
  assert figures["slices"] == [1, 0, 0, 0, 0, 1, 0, 0, 0, 1]
  a, b, both = (figures["per_class"]["a"], figures["per_class"]["b"], figures["all_classes"])
  at = [0, 5, 9]
  assert [a["true"][k] for k in at] == [2, 1, 0]
  assert [a["predicted"][k] for k in at] == [1, 2, 0]
  assert [a["false_negative"][k] for k in at] == [1, 0, 0]
  assert [a["false_positive"][k] for k in at] == [0, 1, 0]
  assert [b["false_negative"][k] for k in at] == [0, 1, 0]
  assert [b["false_positive"][k] for k in at] == [0, 0, 1]
  assert [both["false_negative"][k] for k in at] == [1, 1, 0]
  assert [both["true"][k] for k in at] == [2, 3, 0]


def test_bins_share_the_length_of_a_volume_and_volumes_add_up():
  errors = SliceErrors(["background", "a"])
  for slices in (NUM_BINS * 2, NUM_BINS * 3):
    label = np.ones((1, 1), np.uint8)
    errors.add(volume_of([label] * slices, list(range(slices))), [label] * slices)
  figures = errors.figures()
  assert figures["per_class"]["a"]["true"] == figures["slices"]
  assert sum(figures["slices"]) == NUM_BINS * 5
  assert max(figures["slices"]) - min(figures["slices"]) <= 2
  assert (figures["low"][0], figures["high"][-1]) == (0, 1)
  assert figures["low"][1:] == figures["high"][:-1]


def test_a_volume_of_one_slice_has_no_position():
  errors = SliceErrors(["background", "a"])
  label = np.ones((2, 2), np.uint8)
  errors.add(volume_of([label], [7]), [label])
  figures = errors.figures()
  assert figures["volumes_without_position"] == 1 and sum(figures["slices"]) == 0
