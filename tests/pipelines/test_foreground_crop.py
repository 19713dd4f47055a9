"""The box of a volume follows from its images alone, and what is cut comes back where it was."""

import numpy as np
import pytest
import tensorflow as tf

from flexunet.pipelines import foreground_crop
from flexunet.pipelines.resizing import MODES, Resizing

FRAME = (100, 60)
# Of 100 rows 3 % are 3 pixels; of 60 columns they would be 1.8, and 2 are the least.
MARGINS = (3, 2)


def block(top, left, height, width, frame=FRAME, brightness=200):
  pixels = np.zeros(frame, np.uint8)
  pixels[top : top + height, left : left + width] = brightness
  return pixels


def box_of(*slices):
  boxes = foreground_crop.volume_boxes(slices)
  assert boxes.dtype == np.int32 and boxes.shape == (len(slices), 4)
  assert (boxes == boxes[0]).all()  # One box a volume.
  return boxes[0].tolist()


def test_the_box_is_the_union_over_the_slices_and_a_margin():
  found = box_of(block(20, 30, 40, 10), block(50, 12, 20, 8))
  # Rows 20..69 and columns 12..39 hold tissue in one of the two.
  assert found == [20 - 3, 12 - 2, 50 + 2 * 3, 28 + 2 * 2]


def test_the_margin_ends_at_the_frame():
  assert box_of(block(1, 0, 97, 30)) == [0, 0, 100, 32]


@pytest.mark.parametrize("brightness", [0, 90])
def test_a_volume_without_contrast_keeps_its_frame(brightness):
  flat = np.full(FRAME, brightness, np.uint8)
  assert box_of(flat, flat) == [0, 0, *FRAME]


def test_specks_and_noise_of_the_air_do_not_count():
  generator = np.random.default_rng(1)
  slices = []
  for _ in range(20):
    pixels = np.maximum(block(30, 20, 40, 20), generator.integers(0, 20, FRAME)).astype(np.uint8)
    pixels[:3, :3] = 255  # Three bright pixels in a row of 60 are no tissue, a fourth would be.
    slices.append(pixels)
  assert box_of(*slices) == [30 - 3, 20 - 2, 40 + 2 * 3, 20 + 2 * 2]
  slices[7][0, 3] = 255
  assert box_of(*slices)[0] == 0


@pytest.mark.parametrize("factor", [0.25, 0.5, 1.25])
def test_what_is_tissue_is_relative_to_the_volume(factor):
  pixels = block(30, 20, 40, 20, brightness=200)
  pixels[20:80, 10:50] = np.maximum(pixels[20:80, 10:50], 24)  # Above a tenth of 200.
  pixels[10:90, 5:55] = np.maximum(pixels[10:90, 5:55], 16)  # Below it.
  assert box_of((pixels * factor).astype(np.uint8)) == [17, 8, 66, 44]


def test_a_dim_slice_is_judged_by_its_volume():
  # Alone, the veil of the second slice would be all tissue.
  veil = block(0, 0, *FRAME, brightness=15)
  assert box_of(veil) == [0, 0, *FRAME]
  assert box_of(block(30, 20, 40, 20), veil) == [27, 18, 46, 24]


def test_slices_of_different_sizes_keep_their_frames():
  boxes = foreground_crop.volume_boxes([block(30, 20, 40, 20), block(9, 9, 9, 9, frame=(40, 50))])
  assert boxes.tolist() == [[0, 0, *FRAME], [0, 0, 40, 50]]


def test_of_colours_the_brightest_counts():
  grey = block(30, 20, 40, 20)
  for channel in range(3):
    colour = np.zeros((*FRAME, 3), np.uint8)
    colour[..., channel] = grey
    assert box_of(colour) == box_of(grey)


@pytest.mark.parametrize("shape", [(1, 1), (2, 70), (70, 2)])
def test_a_tiny_slice_has_a_box(shape):
  assert box_of(np.full(shape, 99, np.uint8)) == [0, 0, *shape]


def test_every_row_and_column_with_enough_tissue_is_inside():
  generator = np.random.default_rng(2)
  for _ in range(20):
    slices = [
        generator.integers(0, 256, FRAME) * (generator.random(FRAME) < 0.02) for _ in range(3)
    ]
    slices = [pixels.astype(np.uint8) for pixels in slices]
    top, left, height, width = box_of(*slices)
    bright = np.percentile(np.stack(slices), 99.5, method="inverted_cdf")
    tissue = np.stack(slices).astype(int) * 10 > bright
    rows = np.flatnonzero((tissue.sum(axis=2) > 3).any(axis=0))
    columns = np.flatnonzero((tissue.sum(axis=1) > 3).any(axis=0))
    spans = ((rows, top, height, FRAME[0]), (columns, left, width, FRAME[1]))
    for (lines, start, length, frame), margin in zip(spans, MARGINS, strict=True):
      assert start == max(0, lines[0] - margin)
      assert start + length == min(frame, lines[-1] + 1 + margin)


def test_a_profile_is_the_same_inside_a_pipeline():
  pixels = np.random.default_rng(3).integers(0, 256, (*FRAME, 1)).astype(np.uint8)
  eager = foreground_crop.brightness_profile(tf.constant(pixels))
  profile = lambda x: tuple(foreground_crop.brightness_profile(x))  # noqa: E731
  (piped,) = tf.data.Dataset.from_tensors(pixels).map(profile)
  for one, other in zip(eager, piped, strict=True):
    np.testing.assert_array_equal(one, other)
  assert [part.shape[0] for part in piped] == [*FRAME, 256]


@pytest.mark.parametrize("mode", MODES)
def test_cropped_resized_and_put_back_a_label_lies_where_it_was(mode):
  box = np.array([11, 7, 60, 40], np.int32)
  label = np.zeros(FRAME, np.uint8)
  label[20:40, 12:24], label[45:60, 30:42] = 1, 2
  resize = Resizing((64, 64), mode)
  cut = tf.constant(foreground_crop.crop(label, box)[None, ..., None])
  seen = resize.apply_label(cut)[0, ..., 0]
  answer = resize.invert(tf.one_hot(seen[None], 3), (60, 40)).numpy()[0]
  back = foreground_crop.uncrop(answer, box, FRAME)
  assert back.shape == (*FRAME, 3) and back.dtype == np.float32
  np.testing.assert_allclose(back.sum(axis=-1), 1, rtol=1e-5)
  outside = np.ones(FRAME, bool)
  foreground_crop.crop(outside, box)[:] = False
  assert (back[outside] == (1, 0, 0)).all()
  differs = back.argmax(axis=-1) != label
  if mode == "pad":
    assert not differs.any()
  # A resampled border may move by a pixel, not further.
  borders = np.zeros(FRAME, bool)
  for axis in (0, 1):
    moved = np.roll(label, 1, axis) != label
    borders |= moved | np.roll(moved, -1, axis)
  assert not (differs & ~borders).any() and differs.mean() < 0.02


def test_a_box_of_the_whole_frame_changes_nothing():
  answer = np.random.default_rng(4).random((*FRAME, 2), np.float32)
  assert foreground_crop.uncrop(answer, np.array([0, 0, *FRAME]), FRAME) is answer
