"""What each geometric transformation does, in numbers that can be derived by hand."""

import math

import numpy as np
import pytest
import tensorflow as tf

from flexunet.pipelines.augmentation import augment, draws, sampling, spatial
from flexunet.pipelines.augmentation.config import PROBABILITIES, AugmentationConfig

SIZE = 65
MIDDLE = 32
ALL = AugmentationConfig(
    augmentation="none", **dict.fromkeys(PROBABILITIES, 0.5), lens_radius=1.0
).resolve()


def moved(row, column, size=(SIZE, SIZE), config=ALL, **amounts):
  """Returns (row, column) of the middle of a dot of 5x5 pixels after the transformation."""
  label = np.zeros(size, np.uint8)
  label[row - 2 : row + 3, column - 2 : column + 3] = 1
  image = label[..., None] * np.uint8(200)
  _, out = augment.apply(
      config, draws.by_hand(**amounts), image[None], label[None], tf.constant([[1, 2]])
  )
  return tuple(np.argwhere(out[0].numpy()).mean(axis=0))


def at(row, column):
  return pytest.approx((row, column), abs=0.6)


def test_a_rotation_turns_counter_clockwise_about_the_middle():
  # From the right of the middle a quarter turn leads to the top.
  assert moved(MIDDLE, MIDDLE + 20, rotation=math.pi / 2) == at(MIDDLE - 20, MIDDLE)
  half = 20 * math.sqrt(0.5)
  assert moved(MIDDLE, MIDDLE + 20, rotation=math.pi / 4) == at(MIDDLE - half, MIDDLE + half)
  assert moved(MIDDLE, MIDDLE, rotation=1) == at(MIDDLE, MIDDLE)


def test_a_scale_moves_away_from_the_middle():
  assert moved(MIDDLE + 10, MIDDLE - 12, scale=math.log(1.5)) == at(MIDDLE + 15, MIDDLE - 18)
  assert moved(MIDDLE + 10, MIDDLE - 12, scale=math.log(0.5)) == at(MIDDLE + 5, MIDDLE - 6)


def test_a_shift_is_a_share_of_height_and_width():
  # Of 40 rows and 60 columns.
  assert moved(10, 10, (40, 60), translation_y=0.25, translation_x=0.5) == at(20, 40)


def test_a_shear_moves_one_axis_by_the_other():
  assert moved(MIDDLE, MIDDLE + 20, shear_y=0.25) == at(MIDDLE + 5, MIDDLE + 20)
  assert moved(MIDDLE + 20, MIDDLE, shear_x=0.25) == at(MIDDLE + 20, MIDDLE + 5)


def test_all_affine_parts_compose_in_the_order_shear_rotation_scale_shift():
  # (y, x) = (0, 16): shear_y 0.25 -> (4, 16); quarter turn -> (-16, 4); half size -> (-8, 2);
  # shift by 0.1 * 65 rows -> (-1.5, 2).
  assert moved(
      MIDDLE,
      MIDDLE + 16,
      shear_y=0.25,
      rotation=math.pi / 2,
      scale=math.log(0.5),
      translation_y=0.1,
  ) == at(MIDDLE - 1.5, MIDDLE + 2)


def test_flips_and_turns_move_pixels_exactly():
  generator = np.random.default_rng(1)
  image = generator.integers(0, 256, (1, 6, 6, 3), np.uint8)
  label = generator.integers(0, 4, (1, 6, 6), np.uint8)
  expected = {
      "flip_horizontal": (1, lambda x: x[:, ::-1]),
      "flip_vertical": (1, lambda x: x[::-1]),
      "quarter_turns": (1.9, lambda x: np.rot90(x, 1)),
      "quarter_turns ": (2.5, lambda x: np.rot90(x, 2)),
      "quarter_turns  ": (3.9, lambda x: np.rot90(x, 3)),
  }
  for name, (amount, change) in expected.items():
    out = augment.apply(
        ALL, draws.by_hand(**{name.strip(): amount}), image, label, tf.constant([[1, 2]])
    )
    np.testing.assert_array_equal(out[0][0], change(image[0]))
    np.testing.assert_array_equal(out[1][0], change(label[0]))


def test_a_turn_comes_before_a_flip():
  label = np.arange(9, dtype=np.uint8).reshape(1, 3, 3)
  draw = draws.by_hand(quarter_turns=1, flip_horizontal=1)
  _, out = augment.apply(ALL, draw, label[..., None], label, tf.constant([[1, 2]]))
  np.testing.assert_array_equal(out[0], np.rot90(label[0])[:, ::-1])


def test_images_that_are_not_square_are_turned_by_half_turns_only():
  config = AugmentationConfig(augmentation="none", right_angle_probability=1.0).resolve()
  seeds = tf.constant([[1, n] for n in range(50)], tf.int32)
  turns = np.floor(draws.draw(config, (40, 60), seeds)["quarter_turns"])
  assert set(turns) == {2}
  turns = np.floor(draws.draw(config, (60, 60), seeds)["quarter_turns"])
  assert set(turns) == {1, 2, 3}


def test_what_comes_from_outside_is_background():
  image = np.full((1, 20, 20, 1), 255, np.uint8)
  label = np.full((1, 20, 20), 3, np.uint8)
  draw = draws.by_hand(translation_x=0.5)
  images, labels = augment.apply(ALL, draw, image, label, tf.constant([[1, 2]]))
  np.testing.assert_array_equal(labels[0], np.repeat([[0] * 10 + [3] * 10], 20, axis=0))
  np.testing.assert_array_equal(images[0, ..., 0], np.where(labels[0] == 3, 255, 0))


def test_linear_sampling_weighs_the_four_neighbours_and_rounds():
  image = np.array([[0, 100], [200, 50]], np.uint8)[None, ..., None]
  for row, column, value in [
      (0, 0, 0),
      (0, 0.5, 50),
      (0.25, 0.5, 69),  # 0.75 * 50 + 0.25 * 125 = 68.75
      (1, 1, 50),
      (-0.5, 1, 50),  # Half of it lies outside.
      (1.25, 0, 150),
      (-3, 0, 0),
      (0, 9e9, 0),
  ]:
    rows, columns = tf.fill([1, 2, 2], float(row)), tf.fill([1, 2, 2], float(column))
    where = sampling.places(rows, columns, (2, 2))
    bordered = sampling.with_border(tf.constant(image))
    assert sampling.sample_linear(bordered, where)[0, 0, 0, 0] == value


def test_nearest_sampling_picks_the_nearest_pixel():
  label = tf.constant([[[1, 2], [3, 4]]], tf.uint8)[..., None]
  places = {(0.4, 0.4): 1, (0.6, 0.4): 3, (1.4, 1.4): 4, (-0.6, 0): 0, (0, 1.6): 0}
  for (row, column), value in places.items():
    rows, columns = tf.fill([1, 2, 2], row * 1.0), tf.fill([1, 2, 2], column * 1.0)
    where = sampling.places(rows, columns, (2, 2))
    assert sampling.sample_nearest(sampling.with_border(label), where)[0, 0, 0, 0] == value


def test_a_barrel_enlarges_its_centre_and_leaves_what_lies_beyond_its_radius():
  grid = {}
  for name in ("barrel", "pincushion"):
    draw = draws.by_hand(**{name: 0.4})
    rows, columns = spatial.source_grid(ALL, draw, tf.constant([[1, 2]]), (SIZE, SIZE))
    # The step between neighbours in the middle is the inverse of the enlargement.
    grid[name] = float(columns[0, MIDDLE, MIDDLE + 1] - columns[0, MIDDLE, MIDDLE])
    corner = (float(rows[0, 0, 0]), float(columns[0, 0, 0]))
    assert corner == pytest.approx((0, 0), abs=1e-4)
    # Nothing folds: the source advances along every row.
    assert np.diff(columns[0].numpy(), axis=1).min() > 0
  assert grid["barrel"] == pytest.approx(1 - 0.4, abs=0.01)
  assert grid["pincushion"] == pytest.approx(1 + 0.4, abs=0.01)


def test_the_centre_of_a_barrel_stays_where_it_is():
  draw = draws.by_hand(barrel=0.4, lens_y=0.2, lens_x=-0.1)
  rows, columns = spatial.source_grid(ALL, draw, tf.constant([[1, 2]]), (61, 61))
  row, column = round(30 + 0.2 * 61), round(30 - 0.1 * 61)
  assert float(rows[0, row, column]) == pytest.approx(row, abs=0.3)
  assert float(columns[0, row, column]) == pytest.approx(column, abs=0.3)


def test_the_elastic_field_has_the_deviation_of_smoothed_noise():
  # Uniform noise in -1..1, smoothed by a Gaussian of sigma 8 pixels, times alpha.
  sigma, alpha = 8.0, 400.0
  noise = np.random.default_rng(0).uniform(-1, 1, (256, 256))
  frequency = np.fft.fftfreq(256)
  pass_band = np.exp(-2 * (math.pi * frequency * sigma) ** 2)
  smoothed = np.fft.ifft2(np.fft.fft2(noise) * pass_band[:, None] * pass_band).real
  config = AugmentationConfig(
      augmentation="none", elastic_probability=1.0, elastic_sigma=sigma
  ).resolve()
  found = []
  for seed in range(4):
    rows, _ = spatial.source_grid(
        config, draws.by_hand(elastic=alpha), tf.constant([[seed, 2]]), (512, 512)
    )
    found.append(np.std(rows[0].numpy() - np.arange(512)[:, None]))
  assert np.mean(found) == pytest.approx(alpha * smoothed.std(), rel=0.1)


def test_the_elastic_field_scales_with_the_image():
  draw = draws.by_hand(elastic=800)
  small, _ = spatial.source_grid(ALL, draw, tf.constant([[3, 2]]), (64, 64))
  large, _ = spatial.source_grid(ALL, draw, tf.constant([[3, 2]]), (256, 256))
  deviations = [
      np.std(grid[0].numpy() - np.arange(size)[:, None]) / size
      for grid, size in ((small, 64), (large, 256))
  ]
  assert deviations[0] == pytest.approx(deviations[1], rel=0.5)


def test_spline_weights_sum_to_one_and_are_smooth():
  basis = draws.spline_basis(101, 6)
  np.testing.assert_allclose(basis.sum(axis=1), 1, atol=1e-6)
  assert basis.min() >= 0
  assert np.abs(np.diff(basis, axis=0)).max() < 0.04


def test_the_smooth_distortion_moves_no_further_than_its_amount():
  config = AugmentationConfig(augmentation="none", distortion_probability=1.0).resolve()
  for seed in range(5):
    rows, columns = spatial.source_grid(
        config, draws.by_hand(distortion=0.1), tf.constant([[seed, 1]]), (50, 80)
    )
    moves = np.stack([rows[0] - np.arange(50)[:, None], columns[0] - np.arange(80)])
    assert 0.5 < np.abs(moves).max() <= 0.1 * 50 + 1e-4


def test_coins_keep_their_probabilities_and_exclude_what_cannot_go_together():
  config = AugmentationConfig(
      augmentation="none",
      rotation_probability=0.3,
      scale_probability=0.2,
      blur_probability=0.4,
      sharpening_probability=0.5,
  ).resolve()
  seeds = tf.constant([[5, n] for n in range(2000)], tf.int32)
  # As the map over a batch of unknown length draws: quicker than 2000 operations.
  drawn = tf.function(
      lambda seeds: draws.draw(config, (8, 8), seeds).values,
      input_signature=[tf.TensorSpec([None, 2], tf.int32)],
  )(seeds)
  names = list(draws.parameters(config))
  happens = {n: drawn.numpy()[:, i] != 0 for i, n in enumerate(names)}
  # Four deviations of a share of 2000 draws are at most 0.045.
  assert happens["rotation"].mean() == pytest.approx(0.3, abs=0.045)
  assert happens["scale"].mean() == pytest.approx(0.2, abs=0.045)
  assert not (happens["scale"] & ~happens["rotation"]).any()
  assert happens["blur"].mean() == pytest.approx(0.4, abs=0.045)
  assert happens["sharpening"].mean() == pytest.approx(0.5, abs=0.045)
  assert not (happens["blur"] & happens["sharpening"]).any()
  assert not happens["noise"].any()
  angles = drawn.numpy()[happens["rotation"], names.index("rotation")]
  assert np.abs(angles).max() <= math.radians(15)
  assert np.abs(angles).max() > math.radians(14)
