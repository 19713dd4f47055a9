"""Disturbed slices lie where they should, and answers come back to where they belong."""

import numpy as np
import pytest

from flexunet.evaluation import stress_geometry as geometry
from flexunet.evaluation.stress_geometry import Geometry


def argmax(probability):
  return probability.argmax(axis=-1).astype(np.uint8)


def test_a_larger_voxel_is_the_mean_of_what_it_covers():
  # Five voxels in two: each covers two and a half.
  expected = np.array([[1, 1, 0.5, 0, 0], [0, 0, 0.5, 1, 1]]) / 2.5
  assert np.allclose(geometry.averaging(5, 2), expected)
  assert np.array_equal(geometry.averaging(4, 4), np.eye(4))


def test_voxels_are_interpolated_between_the_middles_of_larger_ones():
  # Middles of two voxels over four: at 1 and 3; of the four: 0.5, 1.5, 2.5 and 3.5.
  assert geometry.interpolation(4, 2) == [(0, 1, 0.0), (0, 1, 0.25), (0, 1, 0.75), (0, 1, 1.0)]
  assert geometry.interpolation(3, 1) == [(0, 0, 0.0)] * 3


@pytest.mark.parametrize(
    ("edge", "wanted", "count"), [(1, 1, 12), (1, 0.5, 12), (1, 3, 4), (3, 5, 7)]
)
def test_the_number_of_larger_voxels_follows_from_the_edges(edge, wanted, count):
  assert geometry.coarse(12, edge, wanted) == count


def test_larger_pixels_are_means_of_blocks_and_a_ramp_comes_back():
  made = geometry.resampling((4, 6), (1.0, 1.0), 2.0)
  values = np.arange(24.0).reshape(4, 6, 1)
  there = made.there(values)
  assert np.allclose(there[..., 0], values[..., 0].reshape(2, 2, 3, 2).mean(axis=(1, 3)))
  back = made.back(there)[..., 0]
  # Between the middles of the outermost pixels a straight line stays one.
  assert np.allclose(back[1:3, 1:5], values[1:3, 1:5, 0])


def test_only_the_axis_that_is_finer_than_wanted_gets_larger_pixels():
  assert geometry.coarse_size((10, 10), (1.0, 3.0), 2.0) == (5, 10)


def test_a_quarter_turn_of_a_square_moves_pixels_exactly_and_comes_back():
  values = np.random.default_rng(0).random((5, 5, 2)).astype(np.float32)
  made = geometry.turning((5, 5), (1.0, 1.0), 90)
  turned = made.there(values)
  assert np.allclose(turned, np.rot90(values, 1)) or np.allclose(turned, np.rot90(values, -1))
  assert np.allclose(made.back(turned), values, atol=1e-6)


def test_a_turn_is_one_of_lengths_not_of_pixels():
  # Rows of 2 mm: a point 4 columns to the side comes to lie 2 rows up or down.
  values = np.zeros((9, 9, 1), np.float32)
  values[4, 8] = 1
  turned = geometry.turning((9, 9), (2.0, 1.0), 90).there(values)[..., 0]
  assert turned[2, 4] + turned[6, 4] == pytest.approx(1)


def test_what_an_answer_lacks_after_turning_back_is_background():
  made = geometry.turning((8, 8), (1.0, 1.0), 45)
  back = made.back(np.stack([np.zeros((8, 8)), np.ones((8, 8))], axis=-1))
  assert np.allclose(back.sum(axis=-1), 1, atol=1e-5)
  assert argmax(back)[0, 0] == 0 and argmax(back)[4, 4] == 1


def test_thick_slices_are_means_and_answers_lie_between_them():
  slices = [np.full((2, 2, 1), float(place), np.float32) for place in range(4)]
  slabs = [(np.array([0, 1]), np.array([0.5, 0.5])), (np.array([2, 3]), np.array([0.5, 0.5]))]
  made = Geometry(slabs=slabs, between=geometry.interpolation(4, 2))
  assert [float(one[0, 0, 0]) for one in made.forward(slices)] == [0.5, 2.5]
  answers = [np.full((1, 1, 1), value) for value in (0.0, 1.0)]
  found = [float(one[0, 0, 0]) for one in geometry.between(answers, made.between)]
  assert found == [0.0, 0.25, 0.75, 1.0]


def test_answers_are_asked_for_no_earlier_than_they_are_needed():
  asked = []

  def answers():
    for place in range(3):
      asked.append(place)
      yield np.full((1, 1, 1), float(place))

  stream = geometry.between(answers(), [(0, 1, 0.0), (0, 1, 0.5), (1, 2, 0.0), (1, 2, 1.0)])
  next(stream)
  assert asked == [0, 1]
  assert [float(one[0, 0, 0]) for one in stream] == [0.5, 1.0, 2.0]


def test_reversed_slices_and_exchanged_sides_come_back():
  labels = [np.full((2, 2), value, np.uint8) for value in (0, 1, 2)]
  made = Geometry(reversed_order=True, relabel=np.array([0, 2, 1], np.uint8))
  truth = list(made.truth(labels, 3))
  # The last slice comes first, and its class 2 bears the name of the other side.
  assert [int(argmax(one)[0, 0]) for one in truth] == [1, 2, 0]
  assert all(np.array_equal(a, b) for a, b in zip(made.labels(truth, argmax), labels, strict=True))


def test_grids_that_are_kept_are_known():
  assert Geometry().keeps_grid
  assert not geometry.resampling((4, 4), (1.0, 1.0), 2.0).keeps_grid
  assert not Geometry(reversed_order=True).keeps_grid
