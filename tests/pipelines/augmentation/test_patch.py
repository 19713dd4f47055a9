"""A patch is the part of the whole augmented slice that lies at its place."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from flexunet.pipelines.augmentation import augment, draws, intensity, patch
from flexunet.pipelines.augmentation.config import AugmentationConfig

NOTHING = AugmentationConfig(augmentation="none").resolve()
# Noise is a patch's own, and contrast is changed about the mean of the stored slice.
STRONG = dataclasses.replace(
    AugmentationConfig(augmentation="strong").resolve(),
    flip_vertical_probability=0.5,
    right_angle_probability=0.5,
    noise_probability=0.0,
    contrast_probability=0.0,
)
SIZES = [(64, 64), (48, 80)]
PATCH = (24, 32)


def slices(size_hw, count, channels=1):
  """Returns smooth images with labels of three values, so that a wrong place shows."""
  y, x = np.mgrid[: size_hw[0], : size_hw[1]].astype(np.float64)
  images, labels = [], []
  for number in range(count):
    waves = [
        127 + 60 * np.sin(y / (5 + number + c)) + 60 * np.cos(x / (7 + number) + c)
        for c in range(channels)
    ]
    images.append(np.stack(waves, axis=-1).round().astype(np.uint8))
    labels.append(((y // 9 + x // 11 + number) % 3).astype(np.uint8))
  return tf.constant(np.stack(images)), tf.constant(np.stack(labels))


def corners_of(size_hw, count):
  """Returns corners of patches all over the slice, its four corners first."""
  low, high = (0, 0), (size_hw[0] - PATCH[0], size_hw[1] - PATCH[1])
  ends = [low, high, (low[0], high[1]), (high[0], low[1])]
  generator = np.random.default_rng(2)
  others = [generator.integers(0, np.array(high) + 1) for _ in range(count - 4)]
  return np.array([*ends, *others], np.float32)


def cropped(whole, corners):
  return np.stack([
      one[int(top) : int(top) + PATCH[0], int(left) : int(left) + PATCH[1]]
      for one, (top, left) in zip(whole.numpy(), corners, strict=True)
  ])


def assert_parts_of_the_whole(config, size_hw, count=24, channels=1):
  images, labels = slices(size_hw, count, channels)
  seeds = tf.constant([[5, number] for number in range(count)])
  separate = channels > 1
  whole = augment.augment_batch(config, images, labels, seeds, separate)
  draw, corners = draws.draw(config, size_hw, seeds), corners_of(size_hw, count)
  found = patch.change(config, draw, images, labels, seeds, corners, PATCH, separate)
  wanted = cropped(whole[0], corners), cropped(whole[1], corners)
  off = np.abs(found[0].numpy().astype(int) - wanted[0])
  # Rounding of a grey value, and of it once more where later steps raise the contrast.
  assert off.max() <= 3 and (off > 1).mean() < 1e-3
  assert (found[1].numpy() != wanted[1]).mean() < 1e-3
  assert (wanted[0] != cropped(images, corners)).any()


@pytest.mark.parametrize("size_hw", SIZES)
def test_a_patch_is_a_part_of_the_whole_changed_slice(size_hw):
  assert_parts_of_the_whole(STRONG, size_hw)


@pytest.mark.parametrize(
    "kind", ["flip_horizontal", "right_angle", "rotation", "scale", "elastic", "distortion",
             "barrel", "pincushion", "bias_field", "blur", "sharpening", "low_resolution"]
)  # fmt: skip
def test_each_change_alone_ends_at_no_border_of_the_patch(kind):
  field = f"{kind}_probability"
  of_strong = {
      name: value for name, value in dataclasses.asdict(STRONG).items()
      if not name.endswith("_probability") and name != "augmentation"
  }  # fmt: skip
  config = dataclasses.replace(NOTHING, **of_strong, **{field: 1.0})
  assert_parts_of_the_whole(config, (64, 64), count=8)


def test_channels_that_are_scans_of_their_own_have_the_draws_of_the_whole():
  assert_parts_of_the_whole(STRONG, (64, 64), count=12, channels=2)


def test_contrast_is_changed_about_the_mean_of_the_stored_slice():
  config = dataclasses.replace(NOTHING, contrast_probability=1.0)
  image = np.full((1, 32, 32, 1), 40, np.uint8)
  image[:, :16] = 200  # The mean is 120.
  draw = draws.by_hand(contrast=0.5)
  label = np.zeros((1, 32, 32), np.uint8)
  images, labels = tf.constant(image), tf.constant(label)
  found, _ = patch.change(
      config, draw, images, labels, tf.constant([[1, 2]]), tf.zeros([1, 2]), (8, 8)
  )
  # 120 + 1.5 * (200 - 120); the patch alone, all 200, would stay as it is.
  assert (found.numpy() == 240).all()


def test_noise_is_of_the_seed_and_of_the_strength_asked_for():
  config = dataclasses.replace(NOTHING, noise_probability=1.0)
  images, labels = tf.zeros([2, 64, 64, 1], tf.uint8) + 128, tf.zeros([2, 64, 64], tf.uint8)
  names = list(draws.parameters(config))
  draw = draws.Draw(names, tf.constant([[0.04 * (name == "noise") for name in names]] * 2))
  corners = tf.zeros([2, 2])
  found = [
      patch.change(config, draw, images, labels, tf.constant(seeds), corners, (32, 32))[0].numpy()
      for seeds in ([[1, 2], [3, 4]], [[1, 2], [3, 5]])
  ]
  assert (found[0][0] == found[1][0]).all() and (found[0][1] != found[1][1]).any()
  assert found[0].std() == pytest.approx(255 * 0.04, rel=0.05)


@pytest.mark.parametrize("size_hw", SIZES)
def test_pixels_land_where_the_changed_slice_shows_them(size_hw):
  count, middle = 40, (size_hw[0] // 2 - 4, size_hw[1] // 2 + 5)
  config = dataclasses.replace(STRONG, elastic_probability=0.4)
  labels = np.zeros((count, *size_hw), np.uint8)
  labels[:, middle[0] - 2 : middle[0] + 3, middle[1] - 2 : middle[1] + 3] = 1
  labels, images = tf.constant(labels), tf.zeros([count, *size_hw, 1], tf.uint8)
  seeds = tf.constant([[9, number] for number in range(count)])
  _, moved = augment.augment_batch(config, images, labels, seeds)
  draw = draws.draw(config, size_hw, seeds)
  points = tf.constant([middle] * count, tf.float32)
  landed = patch.landing(config, draw, seeds, points, size_hw).numpy()
  shown = 0
  for one, place in zip(moved.numpy(), landed, strict=True):
    there = np.argwhere(one)
    if len(there) < 20:  # Partly outside.
      continue
    shown += 1
    assert np.abs(there.mean(axis=0) - place).max() < 1.5
  assert shown > 25


def test_no_more_pixels_are_computed_around_a_patch_than_a_change_reaches():
  assert intensity.reach(NOTHING) == 0
  blurred = dataclasses.replace(NOTHING, blur_probability=0.1, blur_sigma=1.5)
  assert intensity.reach(blurred) == 5  # Three widths.
  assert intensity.reach(dataclasses.replace(blurred, sharpening_probability=0.1)) == 5
  coarse = dataclasses.replace(
      blurred, low_resolution_probability=0.1, low_resolution_factor=3.0
  )
  assert intensity.reach(coarse) == 5 + 4
