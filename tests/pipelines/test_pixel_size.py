"""Which pixel sizes a network knows, and by how much others are scaled."""

import math

import numpy as np
import pytest

from flexunet.core.errors import InputError
from flexunet.pipelines import pixel_size
from flexunet.pipelines.pixel_size import PixelSizes

ONE_TO_TWO = PixelSizes(low_mm=(1.0, 0.5), median_mm=(1.5, 0.5), high_mm=(2.0, 0.5))


def test_a_range_holds_nine_tenths_of_the_slices_and_the_median_occurs_among_them():
  # 48 slices of 0.78 mm, 48 of 0.39, and four with a header of 9 mm, which is one in 25.
  sizes = np.repeat([0.78, 0.39, 9.0], [48, 48, 4])[:, None] * [1.0, 2.0]
  found = PixelSizes.of_slices(sizes)
  assert found.low_mm == (0.39, 0.78) and found.high_mm == (0.78, 1.56)
  assert found.median_mm[0] in (0.39, 0.78)


def test_slices_without_a_size_do_not_count_and_none_at_all_is_unknown():
  sizes = np.array([[np.nan, np.nan], [1.0, 2.0], [0.0, 2.0]])
  assert PixelSizes.of_slices(sizes).median_mm == (1.0, 2.0)
  assert PixelSizes.of_slices(sizes[:1]) is None
  assert PixelSizes.of_slices(np.zeros((0, 2))) is None


@pytest.mark.parametrize(
    ("size_mm", "factors"),
    [
        ((1.0, 0.5), (1.0, 1.0)),  # At the edge of the range.
        ((1.7, 0.5), (1.0, 1.0)),
        ((2.09, 0.48), (1.0, 1.0)),  # Within a twentieth of it.
        ((3.0, 0.5), (2.0, 1.0)),  # 3 / 1.5: twice as many rows.
        ((1.5, 0.25), (1.0, 0.5)),
        ((math.nan, math.nan), (1.0, 1.0)),
        ((0.0, 1.0), (1.0, 2.0)),
    ],
)
def test_an_axis_is_scaled_to_the_median_only_beyond_what_training_saw(size_mm, factors):
  assert ONE_TO_TWO.scaling(size_mm) == pytest.approx(factors)


def test_more_than_a_factor_of_four_is_not_believed():
  assert pixel_size.believed((4.0, 0.25)) and not pixel_size.believed((1.0, 4.1))
  assert not pixel_size.believed((0.2, 1.0))


@pytest.mark.parametrize("low", [0.0, -1.0, 3.0])
def test_sizes_that_cannot_be_are_refused(low):
  with pytest.raises(InputError, match="must be above 0 mm and ascend"):
    PixelSizes(low_mm=(low, 1.0), median_mm=(1.0, 1.0), high_mm=(2.0, 1.0))
