"""Pictures of labels: what is drawn, what is left as it was."""

import io

import numpy as np
import pytest
from PIL import Image

from flexunet.reporting import overlay

RED = np.array([[0, 0, 0], [255, 0, 0]], np.uint8)


def test_blend_leaves_background_grey_and_tints_the_inside():
  image = np.full((5, 6), 100, np.uint8)
  label = np.zeros((5, 6), np.uint8)
  label[1:4, 1:5] = 1
  blended = overlay.blend(image, label, RED, opacity=0.5)
  assert (blended[0] == 100).all()
  assert tuple(blended[1, 1]) == (255, 0, 0)  # The outline is opaque.
  # Inside: halfway from grey to red; round() goes to the even neighbour.
  assert tuple(blended[2, 2]) == (round(177.5), 50, 50)


def test_blend_refuses_a_label_of_another_shape():
  with pytest.raises(ValueError, match=r"\(4, 5\) and \(5, 4\)"):
    overlay.blend(np.zeros((4, 5), np.uint8), np.zeros((5, 4), np.uint8), RED)


def test_contour_separates_two_touching_classes():
  label = np.repeat(np.array([[1, 1, 1, 2, 2, 2]], np.uint8), 3, axis=0)
  assert overlay.contour(label).tolist() == [[False, False, True, True, False, False]] * 3


def test_grey_class_colours_are_replaced_by_different_hues():
  palette = np.array([[0, 0, 0], [255, 255, 255], [128, 128, 128], [0, 255, 0]], np.uint8)
  shown = overlay.display_palette(palette)
  assert tuple(shown[3]) == (0, 255, 0)
  assert np.ptp(shown[1:].astype(int), axis=1).min() > 80  # Each has a hue.
  assert len({tuple(color) for color in shown[1:]}) == 3


def test_display_palette_does_not_change_its_argument():
  palette = np.array([[0, 0, 0], [128, 128, 128]], np.uint8)
  overlay.display_palette(palette)
  assert tuple(palette[1]) == (128, 128, 128)


def test_crop_box_is_a_square_inside_the_slice_around_all_foreground():
  truth, found = np.zeros((200, 160), np.uint8), np.zeros((200, 160), np.uint8)
  truth[3:20, 5:15] = 1
  found[10:30, 8:12] = 1
  rows, columns = overlay.crop_box([truth, found], margin=0.5, min_size=10)
  # Rows 3..29 are 27 pixels; with half of that on each side 54.
  assert rows.stop - rows.start == columns.stop - columns.start == 54
  assert rows.start == 0 and columns.start == 0  # Moved inside, not cut.


def test_a_frame_is_drawn_on_a_copy_just_inside_its_box():
  image = np.zeros((6, 8), np.uint8)
  line = overlay.frame(image, (slice(1, 5), slice(2, 7))).any(axis=-1)
  assert not image.any()
  # 4 x 5 pixels without their 2 x 3 inner ones.
  assert line.sum() == 4 * 5 - 2 * 3 and line[1:5, 2:7].sum() == line.sum()


def test_a_frame_in_a_large_picture_is_wide_enough_to_be_seen_small():
  line = overlay.frame(np.zeros((640, 480), np.uint8), (slice(100, 300), slice(50, 250)))
  assert line[200].any(axis=-1).sum() == 2 * 4


def test_crop_box_without_foreground_is_the_whole_slice():
  assert overlay.crop_box([np.zeros((7, 9), np.uint8)]) == (slice(0, 7), slice(0, 9))


def test_richest_slices_come_in_order_and_apart():
  label = np.zeros((4, 4, 9), np.uint8)
  for k, area in {2: 3, 3: 4, 4: 3, 7: 1}.items():
    label[0, :area, k] = 1
  assert overlay.richest_slices(label, 2) == [3, 7]
  assert overlay.richest_slices(label, 4) == [2, 3, 4, 7]  # Neighbours, when nothing else is left.


def test_richest_slices_without_foreground_are_spread():
  assert overlay.richest_slices(np.zeros((2, 2, 11), np.uint8), 3) == [2, 5, 8]


def test_contact_sheet_keeps_the_aspect_of_its_tiles():
  wide = np.full((10, 40, 3), 255, np.uint8)
  sheet = overlay.contact_sheet([wide, wide, wide], columns=2, tile_size=40, gap=2)
  assert sheet.shape == (2 * 42 + 2, 2 * 42 + 2, 3)
  white_rows = (sheet[:42, :42] > 250).all(axis=-1).any(axis=1).sum()
  assert 8 <= white_rows <= 12  # 10 of 40 rows are white, the rest of the square is ground.


def test_volume_sheet_stretches_slices_to_square_pixels():
  pixels = np.full((10, 20, 3), 255, np.uint8)
  label = np.zeros_like(pixels)
  sheet = overlay.volume_sheet(pixels, label, RED, aspect=2.0, max_tiles=1)
  # 10 rows of 2 mm are as high as 20 columns of 1 mm are wide.
  assert (sheet > 250).all(axis=-1).sum() == pytest.approx(320 * 320, rel=0.02)


def test_stretch_ignores_an_unknown_aspect():
  tile = np.zeros((4, 6, 3), np.uint8)
  assert overlay.stretch(tile, float("nan")).shape == (4, 6, 3)
  assert overlay.stretch(tile, 0.5).shape == (4, 12, 3)


def test_encode_png_is_lossless():
  picture = np.arange(60, dtype=np.uint8).reshape(5, 12)
  assert np.array_equal(np.asarray(Image.open(io.BytesIO(overlay.encode_png(picture)))), picture)
