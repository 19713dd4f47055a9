"""Sheets show slices with their numbers, classes, and sides where these are known."""

import numpy as np
import pytest

from flexunet.imaging.label_scheme import LabelClass, LabelScheme
from flexunet.imaging.slicing import SlicePlan
from flexunet.reporting import sheets

RED = np.array([[0, 0, 0], [255, 0, 0]], np.uint8)
GROUND = 16


def test_richest_slices_come_in_order_and_apart():
  label = np.zeros((4, 4, 9), np.uint8)
  for k, area in {2: 3, 3: 4, 4: 3, 7: 1}.items():
    label[0, :area, k] = 1
  assert sheets.richest_slices(label, 2) == [3, 7]
  assert sheets.richest_slices(label, 4) == [2, 3, 4, 7]  # Neighbours, when nothing else is left.


def test_richest_slices_without_foreground_are_spread():
  assert sheets.richest_slices(np.zeros((2, 2, 11), np.uint8), 3) == [2, 5, 8]


def test_contact_sheet_keeps_the_aspect_of_its_tiles():
  wide = np.full((10, 40, 3), 255, np.uint8)
  sheet = sheets.contact_sheet([sheets.Tile(wide)] * 3, columns=2, tile_size=40)
  assert sheet.shape == (2 * 46 + 6, 2 * 46 + 6, 3)
  white_rows = (sheet[:46, :46] > 250).all(axis=-1).any(axis=1).sum()
  assert 8 <= white_rows <= 12  # 10 of 40 rows are white, the rest of the square is ground.


def test_volume_sheet_stretches_slices_to_square_pixels():
  pixels = np.full((10, 20, 3), 255, np.uint8)
  label = np.zeros_like(pixels)
  view = sheets.View([], RED, aspect=2.0)
  sheet = sheets.volume_sheet(pixels, label, view, max_tiles=1)
  # 10 rows of 2 mm are as high as 20 columns of 1 mm are wide. The slice number hides some.
  assert (sheet > 250).all(axis=-1).sum() == pytest.approx(320 * 320, rel=0.02)


@pytest.mark.parametrize(
    ("axes", "plane", "sides", "run"),
    [("LAS", "axial", ("R", "L"), "slices run from I to S"),
     ("RAS", "axial", ("L", "R"), "slices run from I to S"),
     ("RAS", "coronal", ("L", "R"), "slices run from P to A"),
     ("LAS", "sagittal", ("P", "A"), "slices run from R to L")],
)  # fmt: skip
def test_the_sides_are_those_towards_which_the_axes_run(axes, plane, sides, run):
  view = sheets.View(["background"], RED, axes=SlicePlan(axes, plane).display_axes)
  assert view.sides == sides and view.legend == [(run, None)]


def test_a_scan_without_orientation_has_no_sides():
  view = sheets.View(["background", "a_b"], RED)
  assert view.sides == ("", "") and view.legend == [("a b", (255, 0, 0))]


def test_letters_and_number_are_drawn_where_they_are_known():
  image, label = np.full((40, 40), 120, np.uint8), np.zeros((40, 40), np.uint8)
  plain = sheets.slice_tile(image, label, sheets.View([], RED), size=200)
  sided = sheets.slice_tile(
      image, label, sheets.View([], RED, axes="PLS"), size=200, caption="slice 3"
  )

  def marks(tile):
    sheet = sheets.contact_sheet([tile], columns=1, tile_size=None)[6:-6, 6:-6]
    return (sheet != 120).any(axis=-1)

  assert not marks(plain).any()
  drawn = marks(sided)
  middle = slice(85, 115)
  assert drawn[:20, :80].any() and drawn[middle, :20].any() and drawn[middle, -20:].any()
  assert not drawn[120:].any() and not drawn[middle, 25:-25].any()


def test_a_legend_names_each_class_in_its_colour_and_breaks_its_lines():
  names = ["background", *(f"a rather long name of class {k}" for k in range(7))]
  scheme = LabelScheme(tuple(LabelClass(name, (10 * k, 0, 0)) for k, name in enumerate(names)))
  view = sheets.View.of_scheme(scheme)
  tile = sheets.Tile(np.zeros((30, 300, 3), np.uint8))
  sheet = sheets.contact_sheet([tile], columns=1, tile_size=None, legend=view.legend)
  for color in view.palette[1:]:
    assert (sheet == color).all(axis=-1).sum() >= 12 * 12, color
  assert sheet.shape[1] == 300 + 2 * 6
  # Nothing is written beyond the edge.
  assert (sheet[:, -5:] == GROUND).all()


def test_a_name_wider_than_the_sheet_is_shortened():
  legend = [("x" * 400, (255, 0, 0))]
  tile = sheets.Tile(np.zeros((20, 60, 3), np.uint8))
  sheet = sheets.contact_sheet([tile], columns=1, tile_size=None, legend=legend)
  assert (sheet[:, -5:] == GROUND).all()


def test_each_slice_has_an_image_of_one_size():
  pixels = np.zeros((12, 9, 5), np.uint8)
  label = np.zeros_like(pixels)
  label[3:6, 3:6, 2] = 1
  images = list(sheets.slice_images(pixels, label, sheets.View(["b", "a"], RED), size=120))
  assert len(images) == 5 and len({image.shape for image in images}) == 1
  red = [(image == RED[1]).all(axis=-1).sum() for image in images]
  assert red[2] > red[0] == red[1] == red[3] == red[4] > 0  # The legend is on all.
