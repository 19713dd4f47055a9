"""From scanner units to 8 bits."""

import numpy as np
import pytest

from flexunet.core.errors import InputError
from flexunet.imaging.intensity import IntensityWindow


def test_a_ct_window_is_linear_between_its_limits_and_clips_beyond():
  window = IntensityWindow("window", -20, 100)  # 120 HU over 255 steps.
  values = np.array([-1000, -20, 40, 100, 3000], np.int16)
  np.testing.assert_array_equal(window.to_uint8(values), [0, 0, 128, 255, 255])


def test_percentiles_count_nonzero_voxels_of_the_whole_volume_only():
  voxels = np.zeros((10, 10, 10), np.int16)
  voxels[5] = np.arange(1, 101).reshape(10, 10)
  window = IntensityWindow("percentile", 0, 100)
  assert window.limits(voxels) == (1.0, 100.0)
  result = window.to_uint8(voxels)
  assert result[0].max() == 0 and result.max() == 255
  # The same intensity has the same grey in every slice, whatever else is in the slice.
  voxels[7, 0, 0] = voxels[5, 5, 5]
  assert window.to_uint8(voxels)[7, 0, 0] == window.to_uint8(voxels)[5, 5, 5]


def test_a_few_extreme_voxels_do_not_darken_the_rest():
  voxels = np.random.default_rng(0).normal(100, 10, (20, 20, 20)).astype(np.float32)
  voxels[0, 0, :3] = 1e6
  assert np.median(IntensityWindow("percentile", 0.5, 99.5).to_uint8(voxels)) > 100


@pytest.mark.parametrize("value", [0, 7])
def test_a_constant_volume_does_not_divide_by_zero(value):
  result = IntensityWindow("percentile", 0.5, 99.5).to_uint8(np.full((2, 3, 4), value, np.int16))
  assert result.dtype == np.uint8 and (result == 0).all()


def test_nan_becomes_black_and_does_not_spread():
  voxels = np.array([[[np.nan, 10.0, 20.0, 30.0, np.inf]]])
  result = IntensityWindow("percentile", 0, 100).to_uint8(voxels)
  np.testing.assert_array_equal(result, [[[0, 0, 128, 255, 255]]])


def test_pictures_in_8_bits_stay_as_they_are():
  picture = np.arange(256, dtype=np.uint8).reshape(16, 16)
  np.testing.assert_array_equal(IntensityWindow("none").to_uint8(picture), picture)


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [("percentile", -1, 99), ("percentile", 1, 101), ("window", 5, 5), ("window", 0, np.nan),
     ("windw", 0, 1)],
)
def test_limits_that_make_no_window_are_refused(kind, low, high):
  with pytest.raises(InputError):
    IntensityWindow(kind, low, high)
