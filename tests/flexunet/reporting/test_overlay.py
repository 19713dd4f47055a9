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


def test_an_outline_is_as_wide_as_asked_for_and_keeps_the_class():
  label = np.zeros((9, 9), np.uint8)
  label[1:8, 1:8] = 2
  for width in (1, 2):
    ring = overlay.outline(label, width)
    inner = 7 - 2 * width
    assert np.count_nonzero(ring) == 49 - inner**2 and set(ring[ring > 0]) == {2}
  # Two classes that touch keep their edges apart.
  label[1:8, 4:8] = 1
  assert overlay.outline(label, 1)[4, 3:5].tolist() == [2, 1]


def test_errors_are_missed_false_or_of_another_class():
  truth, found = np.array([[0, 1, 1, 1, 0]]), np.array([[0, 0, 1, 2, 2]])
  assert overlay.errors(truth, found).tolist() == [[0, 1, 0, 3, 2]]


def test_a_layer_is_transparent_where_there_is_no_class():
  ids = np.array([[0, 1], [2, 0]], np.uint8)
  palette = np.array([[9, 9, 9], [255, 0, 0], [0, 0, 255]], np.uint8)
  shown = Image.open(io.BytesIO(overlay.encode_layer(ids, palette))).convert("RGBA")
  assert np.asarray(shown)[..., 3].tolist() == [[0, 255], [255, 0]]
  assert np.asarray(shown)[0, 1].tolist() == [255, 0, 0, 255]


def test_contour_separates_two_touching_classes():
  label = np.repeat(np.array([[1, 1, 1, 2, 2, 2]], np.uint8), 3, axis=0)
  assert overlay.contour(label).tolist() == [[False, False, True, True, False, False]] * 3


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


def test_stretch_ignores_an_unknown_aspect():
  tile = np.zeros((4, 6, 3), np.uint8)
  assert overlay.stretch(tile, float("nan")).shape == (4, 6, 3)
  assert overlay.stretch(tile, 0.5).shape == (4, 12, 3)


def test_encode_png_is_lossless():
  picture = np.arange(60, dtype=np.uint8).reshape(5, 12)
  assert np.array_equal(np.asarray(Image.open(io.BytesIO(overlay.encode_png(picture)))), picture)
