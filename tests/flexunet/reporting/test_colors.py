"""Classes keep apart for readers with and without colour vision deficiency."""

import numpy as np
import pytest

from flexunet.datasets import published_palettes
from flexunet.imaging.label_scheme import LabelScheme
from flexunet.reporting import colors

GREYS = np.array([[0, 0, 0], *[[32 * k] * 3 for k in range(1, 8)]], np.uint8)
# The simulation of Vienot, Brettel and Mollon 1999, another one than that of the module.
VIENOT = {
    "deuteranopia": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
    "protanopia": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
}


def least_distance(palette: np.ndarray) -> float:
  """Returns the smallest distance of two foreground colours, for the reader to whom it is least."""
  shown = palette[1:]
  return min(
      colors.distances(one, shown[place + 1 :]).min() for place, one in enumerate(shown[:-1])
  )


def lab(linear: np.ndarray) -> np.ndarray:
  """Returns linear RGB [n, 3] as CIELAB."""
  to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
  xyz = np.clip(linear, 0, 1) @ to_xyz.T / (0.9505, 1.0, 1.089)
  root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
  x, y, z = root.T
  return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def seen_by_vienot(palette: np.ndarray) -> dict[str, float]:
  """Returns the smallest distance of two foreground colours by the other simulation."""
  share = palette[1:] / 255
  linear = np.where(share > 0.04045, ((share + 0.055) / 1.055) ** 2.4, share / 12.92)
  found = {}
  for name, view in VIENOT.items():
    own = lab(linear @ np.array(view).T)
    apart = np.linalg.norm(own[:, None] - own[None], axis=-1)
    found[name] = apart[np.triu_indices(len(own), 1)].min()
  return found


def test_white_black_and_red_lie_where_cielab_puts_them():
  white, black, red = colors.seen(np.array([[255] * 3, [0] * 3, [255, 0, 0]]))[0]
  assert white == pytest.approx([100, 0, 0], abs=0.1) and black == pytest.approx([0, 0, 0])
  assert red == pytest.approx([53.2, 80.1, 67.2], abs=0.2)


@pytest.mark.parametrize("view", [1, 2])
def test_greys_look_the_same_to_all_readers(view):
  seen = colors.seen(GREYS)
  assert np.abs(seen[view] - seen[0]).max() < 0.2


def test_red_and_green_of_equal_lightness_are_near_for_colour_blind_readers_alone():
  usual, deuteranopia, _ = colors.seen(np.array([[200, 60, 40], [110, 110, 20]]))
  usual, blind = (np.linalg.norm(one[0] - one[1]) for one in (usual, deuteranopia))
  assert blind < 0.5 * usual


@pytest.mark.parametrize(
    "palette",
    [GREYS, published_palettes.FULL_HEAD.palette, published_palettes.BRAIN_STROKE.palette,
     LabelScheme.numbered(8).palette],
    ids=["seven greys", "full head", "stroke", "seven made-up"],
)  # fmt: skip
def test_seven_classes_stay_apart_for_all_readers(palette):
  shown = colors.display_palette(palette)
  assert least_distance(shown) >= colors.CLEAR_DISTANCE
  assert min(seen_by_vienot(shown).values()) >= 12


def test_colours_that_are_apart_are_kept_and_grey_ones_get_a_hue():
  shown = colors.display_palette(published_palettes.FULL_HEAD.palette)
  names = published_palettes.FULL_HEAD.names
  for name in ("air_cavity", "csf", "bone", "soft_tissue"):
    index = names.index(name)
    assert (shown[index] == published_palettes.FULL_HEAD.palette[index]).all()
  assert np.ptp(shown[1:].astype(int), axis=1).min() > 60


def test_of_two_colours_that_look_alike_the_first_is_kept():
  # The same to a reader without the pigment for green.
  palette = np.array([[0, 0, 0], [200, 60, 40], [128, 110, 20]], np.uint8)
  assert least_distance(palette) < colors.CLEAR_DISTANCE
  shown = colors.display_palette(palette)
  assert (shown[1] == palette[1]).all() and (shown[2] != palette[2]).any()


def test_many_classes_all_differ():
  shown = colors.display_palette(np.full((21, 3), 128, np.uint8))
  assert len({tuple(color) for color in shown[1:]}) == 20


def test_the_colours_of_errors_stay_apart():
  errors = np.array([(0, 0, 0), colors.MISSED, colors.FALSE, colors.WRONG_CLASS], np.uint8)
  assert least_distance(errors) > 30 and min(seen_by_vienot(errors).values()) > 30


def test_a_palette_is_not_changed_in_place():
  palette = np.array([[0, 0, 0], [128, 128, 128]], np.uint8)
  colors.display_palette(palette)
  assert tuple(palette[1]) == (128, 128, 128)
