"""What each change of grey values does, in numbers that can be derived by hand."""

import math

import numpy as np
import pytest
import tensorflow as tf

from flexunet.pipelines.augmentation import augment, draws, intensity
from flexunet.pipelines.augmentation.config import PROBABILITIES, AugmentationConfig

ALL = AugmentationConfig(
    augmentation="none", **dict.fromkeys(PROBABILITIES, 0.5), blur_sigma=2.0
).resolve()


def changed(image, seed=(1, 2), **amounts):
  """Applies a draw to a grey image [H, W]."""
  image = np.asarray(image, np.uint8)
  label = np.zeros(image.shape, np.uint8)
  images, _ = augment.apply(
      ALL, draws.by_hand(**amounts), image[None, ..., None], label[None], tf.constant([seed])
  )
  return images[0, ..., 0].numpy().astype(int)


def test_brightness_multiplies_and_saturates():
  np.testing.assert_array_equal(
      changed([[0, 100], [200, 240]], brightness=0.25), [[0, 125], [250, 255]]
  )


def test_brightness_has_an_offset_that_contrast_leaves_as_it_is():
  # 0.2 of 255 is 51.
  np.testing.assert_array_equal(
      changed([[0, 100], [200, 240]], brightness_shift=0.2), [[51, 151], [251, 255]]
  )
  # The mean is 100 and becomes 1.5 * 100 - 51 = 99; 20 beside it is 1.5 * 20 * 2 = 60 then.
  np.testing.assert_array_equal(
      changed([[80, 120], [100, 100]], brightness=0.5, brightness_shift=-0.2, contrast=1),
      [[39, 159], [99, 99]],
  )


def test_contrast_spreads_about_the_mean():
  # The mean is 100.
  np.testing.assert_array_equal(
      changed([[80, 120], [0, 200]], contrast=0.5), [[70, 130], [0, 250]]
  )
  np.testing.assert_array_equal(
      changed([[80, 120], [0, 200]], contrast=-1), [[100, 100], [100, 100]]
  )


def test_gamma_bends_between_black_and_white():
  # 255 * (51 / 255) ** 2 = 10.2
  np.testing.assert_array_equal(
      changed([[0, 51], [102, 255]], gamma=math.log(2)), [[0, 10], [41, 255]]
  )


def test_a_blur_spreads_a_point_like_a_gaussian():
  image = np.zeros((31, 31))
  image[15, 15] = 255
  image[14:17, 14:17] = 255  # A point alone would be lost in rounding.
  blurred = changed(image, blur=2.0)
  offsets = np.arange(31) - 15
  spread = (blurred.sum(axis=0) * offsets**2).sum() / blurred.sum()
  # Variances add: 4 of the blur, 2 / 3 of three pixels in a row.
  assert spread == pytest.approx(4 + 2 / 3, rel=0.15)
  assert blurred.sum() == pytest.approx(image.sum(), rel=0.05)


def test_a_blur_keeps_a_plain_image_up_to_its_border():
  np.testing.assert_array_equal(changed(np.full((9, 12), 77), blur=1.5), 77)


def test_sharpening_deepens_both_sides_of_an_edge():
  image = np.repeat([[100] * 8 + [150] * 8], 6, axis=0)
  sharp = changed(image, sharpening=1.0)
  assert (sharp[:, 7] < 100).all()
  assert (sharp[:, 8] > 150).all()
  np.testing.assert_array_equal(sharp[:, [0, 15]], image[:, [0, 15]])


def test_a_lower_resolution_interpolates_between_every_nth_pixel():
  ramp = np.repeat([np.arange(0, 160, 10)], 16, axis=0)
  coarse = changed(ramp, low_resolution=math.log(2))
  # Pixels 1, 3, 5 ... are picked and stand for pairs; between their middles it is linear.
  np.testing.assert_array_equal(coarse[:, 1:4], np.repeat([[15, 25, 35]], 16, axis=0))
  checkers = np.indices((16, 16)).sum(axis=0) % 2 * 255
  assert changed(checkers, low_resolution=math.log(2)).std() < 1


def test_noise_has_its_deviation_and_no_bias():
  noise = changed(np.full((200, 200), 128), noise=0.05) - 128.0
  assert noise.std() == pytest.approx(0.05 * 255, rel=0.03)
  # The deviation of the mean of 40,000 pixels is 0.06.
  assert noise.mean() == pytest.approx(0, abs=0.25)
  # A normal distribution has 4.6 % beyond two deviations.
  assert np.mean(np.abs(noise) > 2 * 0.05 * 255) == pytest.approx(0.0455, abs=0.006)


def test_a_bias_field_is_smooth_and_within_its_strength():
  strength = 0.5
  for seed in range(5):
    field = changed(np.full((64, 48), 100), seed=(seed, 1), bias_field=strength)
    assert field.max() <= math.ceil(100 * math.exp(strength))
    assert field.min() >= math.floor(100 * math.exp(-strength))
    assert np.ptp(field) > 5
    assert np.abs(np.diff(field, axis=0)).max() <= 6


def test_grey_repeated_over_channels_stays_grey():
  image = np.random.default_rng(0).integers(0, 256, (1, 24, 20, 1), np.uint8).repeat(3, axis=-1)
  draw = draws.by_hand(
      bias_field=0.3, contrast=0.2, sharpening=1.0, low_resolution=0.5, noise=0.1, rotation=0.2
  )
  images, _ = augment.apply(ALL, draw, image, image[..., 0], tf.constant([[1, 2]]))
  out = images[0].numpy()
  np.testing.assert_array_equal(out[..., 0], out[..., 1])
  np.testing.assert_array_equal(out[..., 0], out[..., 2])


def test_random_numbers_are_the_same_under_xla():
  seeds = tf.constant([[3, 4], [-5, 2**31 - 1]], tf.int32)
  for numbers in (draws.uniform_numbers, draws.normal_numbers):
    def sample(seeds, numbers=numbers):
      return numbers(seeds, draws.NOISE_SALT, [5, 7])

    compiled = tf.function(sample, jit_compile=True)(seeds)
    np.testing.assert_allclose(sample(seeds), compiled, atol=1e-5)


def test_the_order_is_that_of_a_scanner():
  # Noise comes after blur: it is not smoothed away.
  plain = np.full((64, 64), 128)
  assert changed(plain, blur=2.0, noise=0.05).std() == pytest.approx(0.05 * 255, rel=0.1)


@pytest.mark.parametrize(
    "amounts, text",
    [
        ({}, "same"),
        ({"lens_x": 0.1}, "same"),
        ({"rotation": math.radians(7)}, "rot+07"),
        ({"rotation": math.radians(-12), "flip_horizontal": 1}, "flipx_rot-12"),
        ({"quarter_turns": 3.4, "scale": math.log(0.9)}, "turn270_scale0.90"),
        ({"noise": 0.04, "translation_y": -0.03}, "down-03_noise0.040"),
    ],
)
def test_a_draw_is_told_in_a_few_letters(amounts, text):
  assert draws.describe(amounts) == text
  assert draws.is_same(amounts) == (text == "same")


def test_every_parameter_is_described_that_changes_something_by_itself():
  names = draws.by_hand().names
  described = {name for name in names if draws.describe({name: 1.5}) != "same"}
  only_how = {"lens_y", "lens_x", "low_resolution_skew", "synthetic_by_class",
              "synthetic_texture", "synthetic_blur"}  # fmt: skip
  assert described == set(names) - only_how


def test_smoothing_reaches_over_images_smaller_than_itself():
  assert intensity.gaussian_smoothed(
      tf.fill([1, 2, 3, 1], 50.0), tf.constant([2.0]), 2.0
  ).shape == (1, 2, 3, 1)
