"""Resizing: image and label stay on each other, and back is the inverse of forth."""

import numpy as np
import pytest
import tensorflow as tf

from flexunet.core.errors import InputError
from flexunet.pipelines.resizing import MODES, Resizing


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("native", [(20, 12), (13, 24), (24, 24), (1, 7)])
def test_forth_gives_the_size_and_back_gives_the_native_one(mode, native):
  resize = Resizing((24, 32), mode)
  image = tf.ones((1, *native, 1), tf.uint8)
  out = resize.apply_image(image)
  assert out.shape == (1, 24, 32, 1) and out.dtype == tf.uint8
  assert resize.invert(tf.cast(out, tf.float32), native).shape == (1, *native, 1)


@pytest.mark.parametrize("mode", MODES)
def test_label_ids_are_picked_never_averaged(mode):
  label = tf.constant(np.random.default_rng(0).choice([0, 3, 7], (1, 20, 14, 1)), tf.uint8)
  out = Resizing((32, 32), mode).apply_label(label)
  assert set(np.unique(out)) <= {0, 3, 7}


@pytest.mark.parametrize("mode", MODES)
def test_a_block_in_image_and_label_stays_on_one_place(mode):
  mask = np.zeros((1, 40, 30, 1), np.uint8)
  mask[:, 10:30, 5:20] = 1
  resize = Resizing((48, 48), mode)
  image = resize.apply_image(tf.constant(mask * 200)).numpy() > 100
  label = resize.apply_label(tf.constant(mask)).numpy() > 0
  union = (image | label).sum()
  assert (image & label).sum() / union > 0.95


def test_pad_and_back_is_the_identity():
  pixels = np.random.default_rng(1).integers(0, 256, (2, 9, 14, 1)).astype(np.uint8)
  resize = Resizing((16, 16), "pad")
  back = resize.invert(tf.cast(resize.apply_image(tf.constant(pixels)), tf.float32), (9, 14))
  np.testing.assert_array_equal(back, pixels)


def test_fit_keeps_the_aspect():
  image = tf.fill((1, 10, 20, 1), tf.constant(9, tf.uint8))
  out = Resizing((32, 32), "fit").apply_image(image).numpy()[0, ..., 0]
  # 20 columns become 32, so 10 rows become 16, with 8 rows of border on both sides.
  assert (out[8:24] == 9).all() and not out[:8].any() and not out[24:].any()


def test_an_image_too_large_to_pad_is_refused_by_name():
  with pytest.raises(InputError, match="record 7.*40x10.*16x16"):
    Resizing((16, 16), "pad").check(40, 10, "record 7")


@pytest.mark.parametrize("mode", MODES)
def test_a_stated_inner_size_overrules_the_mode_there_and_back(mode):
  resize = Resizing((16, 16), mode, inner_hw=(8, 12))
  image = tf.fill((1, 4, 24, 1), tf.constant(9, tf.uint8))
  out = resize.apply_image(image).numpy()[0, ..., 0]
  # 4 rows become 8, 24 columns 12, with a border of 4 and of 2 pixels.
  assert (out[4:12, 2:14] == 9).all() and out.sum() == 8 * 12 * 9
  back = resize.invert(tf.cast(out, tf.float32)[None, ..., None], (4, 24))
  assert back.shape == (1, 4, 24, 1) and np.allclose(back, 9)


@pytest.mark.parametrize(
    ("mode", "inner"), [("pad", (10, 20)), ("fit", (16, 32)), ("stretch", (32, 32))]
)
def test_the_inner_size_of_a_mode_is_known_beforehand(mode, inner):
  assert Resizing((32, 32), mode).inner_size((10, 20)) == inner
