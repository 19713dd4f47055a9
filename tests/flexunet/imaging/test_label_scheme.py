"""Label schemes: ids, names and colours."""

import numpy as np
import pytest

from flexunet.core.errors import InputError
from flexunet.imaging.label_scheme import LabelClass, LabelScheme

SCHEME = LabelScheme((
    LabelClass("background", (0, 0, 0)),
    LabelClass("grey", (100, 100, 100)),
    LabelClass("lesion", (255, 0, 0)),
))


def test_colours_are_decoded_to_the_ids_they_were_painted_from():
  label = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
  decoded, off_palette = SCHEME.decode(SCHEME.colorize(label))
  np.testing.assert_array_equal(decoded, label)
  assert decoded.dtype == np.uint8
  assert off_palette == 0.0


def test_a_colour_in_between_goes_to_the_nearest_class_and_is_counted():
  # (200, 20, 10) is 55^2 + 20^2 + 10^2 from the lesion, and farther from the others.
  rgb = np.array([[[200, 20, 10], [0, 0, 0], [100, 100, 100], [255, 0, 0]]], np.uint8)
  decoded, off_palette = SCHEME.decode(rgb)
  np.testing.assert_array_equal(decoded, [[2, 0, 1, 2]])
  assert off_palette == 1 / 4


def test_of_two_equally_near_classes_the_lower_id_wins():
  decoded, _ = SCHEME.decode(np.full((1, 1, 3), 50, np.uint8))
  assert decoded[0, 0] == 0


def test_a_scheme_survives_json():
  assert LabelScheme.from_json(SCHEME.to_json()) == SCHEME


def test_names_and_palette_follow_the_ids():
  assert SCHEME.names == ["background", "grey", "lesion"]
  assert SCHEME.num_classes == 3
  np.testing.assert_array_equal(SCHEME.palette[2], [255, 0, 0])


def test_an_id_without_a_class_cannot_be_painted():
  with pytest.raises(ValueError, match=r"0\.\.2"):
    SCHEME.colorize(np.array([[3]]))


@pytest.mark.parametrize(
    "classes", [
        [{"name": "background"}],
        [{"name": "background", "color": [0, 0, 0]}],
        [{"name": "a", "color": [0, 0, 0]}, {"name": "a", "color": [1, 1, 1]}],
        [{"name": "a", "color": [0, 0, 0]}, {"name": "b", "color": [1, 1, 256]}],
        [{"name": "a", "color": [0, 0]}, {"name": "b", "color": [1, 1, 1]}],
    ],
)
def test_a_bad_scheme_is_refused(classes):
  with pytest.raises(InputError):
    LabelScheme.from_json(classes)
