import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from flexunet.pipelines.augmentation import augment, draws
from flexunet.pipelines.augmentation.config import (
  PROBABILITIES,
  AugmentationConfig,
  probability_of,
)

# All that a transformation can be given, at full strength in some direction.
FULL = {
    "flip_horizontal": {"flip_horizontal": 1},
    "flip_vertical": {"flip_vertical": 1},
    "right_angle": {"quarter_turns": 1},
    "rotation": {"rotation": 0.4},
    "scale": {"scale": -0.3},
    "shear": {"shear_y": 0.1, "shear_x": 0.2},
    "translation": {"translation_y": 0.1, "translation_x": -0.15},
    "elastic": {"elastic": 800},
    "distortion": {"distortion": 0.06},
    "barrel": {"barrel": 0.4, "lens_y": 0.1},
    "pincushion": {"pincushion": 0.4, "lens_x": -0.1},
    "bias_field": {"bias_field": 0.6},
    "brightness": {"brightness": -0.3},
    "contrast": {"contrast": 0.4},
    "gamma": {"gamma": 0.5},
    "blur": {"blur": 1.2},
    "sharpening": {"sharpening": 2},
    "low_resolution": {"low_resolution": 0.9},
    "noise": {"noise": 0.1},
    "synthetic": {"synthetic": 1, "synthetic_by_class": 0.7, "synthetic_texture": 0.4},
}
# It has no strength: it is drawn, or not.
WITHOUT_STRENGTH = ("flip_horizontal", "flip_vertical", "right_angle", "synthetic")
GEOMETRY = list(FULL)[:11]
GREY = list(FULL)[11:]
NOTHING = AugmentationConfig(augmentation="none", blur_sigma=1.5).resolve()


def only(name: str, probability: float = 1.0, **strengths) -> AugmentationConfig:
  return dataclasses.replace(NOTHING, **{probability_of(name): probability}, **strengths)


def sample(size_hw=(48, 48), channels=1, seed=0):
  """Returns a smooth image [H, W, C] with a bright disc and its label [H, W] of classes 0, 3, 7."""
  height, width = size_hw
  rows, columns = np.mgrid[:height, :width]
  ramp = 40 + 60 * rows / height + 40 * columns / width
  texture = np.random.default_rng(seed).uniform(0, 20, size_hw)
  near = np.hypot(rows - 0.4 * height, columns - 0.6 * width) < 0.2 * min(size_hw)
  band = np.abs(rows - 0.8 * height) < 3
  image = np.where(near, 220, ramp + texture).astype(np.uint8)
  label = np.where(near, 7, np.where(band, 3, 0)).astype(np.uint8)
  return np.repeat(image[..., None], channels, axis=-1), label


def applied(name: str, image, label, seed=(1, 2), **amounts):
  """Applies one transformation with given strengths to one example."""
  draw = draws.by_hand(**(amounts or FULL[name]))
  seeds = tf.constant([seed], tf.int32)
  images, labels = augment.apply(only(name), draw, image[None], label[None], seeds)
  return images[0].numpy(), labels[0].numpy()


def augmented(config, image, label, seed):
  out = augment.augment_example(
      config, tf.constant(image), tf.constant(label), tf.constant(seed, tf.int32)
  )
  return tuple(x.numpy() for x in out)


def test_every_transformation_of_the_config_is_tested_here():
  assert {probability_of(name) for name in FULL} == set(PROBABILITIES)


@pytest.mark.parametrize("name", FULL)
@pytest.mark.parametrize("shape", [(48, 48, 1), (40, 52, 3)], ids=str)
def test_dtype_and_shape_stay_and_the_image_changes(name, shape):
  image, label = sample(shape[:2], shape[2])
  amounts = {"quarter_turns": 2} if name == "right_angle" and shape[0] != shape[1] else {}
  new_image, new_label = applied(name, image, label, **amounts)
  assert (new_image.dtype, new_label.dtype) == (np.uint8, np.uint8)
  assert (new_image.shape, new_label.shape) == (image.shape, label.shape)
  assert (new_image != image).any()


@pytest.mark.parametrize("name", FULL)
def test_label_values_stay_in_the_set(name):
  image, label = sample()
  for seed in range(5):
    _, new_label = augmented(only(name), image, label, (seed, 9))
    assert set(np.unique(new_label)) <= {0, 3, 7}
    assert 7 in new_label


@pytest.mark.parametrize("name", GREY)
def test_changes_of_grey_values_leave_the_label_alone(name):
  image, label = sample()
  _, new_label = applied(name, image, label)
  np.testing.assert_array_equal(new_label, label)


@pytest.mark.parametrize("name", GEOMETRY)
def test_image_and_label_move_together(name):
  # The landmark: a disc that is bright exactly where the label says so, on black.
  _, label = sample((64, 64))
  disc = label == 7
  image = np.where(disc, 255, 0).astype(np.uint8)[..., None]
  new_image, new_label = applied(name, image, label)
  bright, labelled = new_image[..., 0] > 127, new_label == 7
  assert (labelled != disc).any(), "the disc did not move or change"
  # Bilinear and nearest agree but for the pixels of the very edge.
  assert np.count_nonzero(bright != labelled) <= 0.15 * np.count_nonzero(labelled)
  overlap = 2 * np.count_nonzero(bright & labelled) / (bright.sum() + labelled.sum())
  assert overlap > 0.95


@pytest.mark.parametrize("name", [name for name in FULL if name not in WITHOUT_STRENGTH])
def test_zero_strength_changes_nothing(name):
  image, label = sample((40, 52))
  # A billionth of the strength takes the branch "drawn", where zero itself would not.
  faint = {parameter: 1e-9 * amount for parameter, amount in FULL[name].items()}
  new_image, new_label = applied(name, image, label, **faint)
  np.testing.assert_array_equal(new_image, image)
  np.testing.assert_array_equal(new_label, label)


def test_probability_zero_changes_nothing():
  image, label = sample()
  config = AugmentationConfig(augmentation="strong", **dict.fromkeys(PROBABILITIES, 0.0)).resolve()
  new_image, new_label = augmented(config, image, label, (3, 4))
  np.testing.assert_array_equal(new_image, image)
  np.testing.assert_array_equal(new_label, label)


def test_a_draw_of_nothing_changes_nothing_whatever_may_be_drawn():
  image, label = sample((40, 52))
  config = AugmentationConfig(**dict.fromkeys(PROBABILITIES, 0.5)).resolve()
  out = augment.apply(config, draws.by_hand(), image[None], label[None], tf.constant([[1, 2]]))
  np.testing.assert_array_equal(out[0][0], image)
  np.testing.assert_array_equal(out[1][0], label)


@pytest.mark.parametrize("name", FULL)
def test_eager_graph_and_tf_data_agree(name):
  image, label = sample()
  config = only(name)
  eager = augmented(config, image, label, (5, 6))

  @tf.function(autograph=False, input_signature=[tf.TensorSpec([2], tf.int32)])
  def change(seed):
    return augment.augment_example(config, tf.constant(image), tf.constant(label), seed)

  seeds = np.array([[5, 6]], np.int32)
  stream = tf.data.Dataset.from_tensor_slices(seeds).map(change)
  for graph in (change(seeds[0]), next(iter(stream))):
    # Other kernels may round one number the other way: a grey value, a pixel on a class border.
    assert np.abs(eager[0].astype(int) - graph[0].numpy()).max() <= 1
    assert np.mean(eager[1] != graph[1].numpy()) <= 0.002


@pytest.mark.parametrize("name", [*FULL, "default", "strong", "contrast"])
def test_a_batch_gives_what_its_examples_give(name):
  pairs = [sample((40, 40), seed=seed) for seed in range(4)]
  config = only(name, 0.5) if name in FULL else AugmentationConfig(augmentation=name).resolve()
  images, labels = (np.stack(column) for column in zip(*pairs))
  seeds = np.array([[7, n] for n in range(4)], np.int32)
  batch = augment.augment_batch(
      config, tf.constant(images), tf.constant(labels), tf.constant(seeds)
  )
  for n, (image, label) in enumerate(pairs):
    one = augmented(config, image, label, seeds[n])
    assert np.abs(one[0].astype(int) - batch[0][n].numpy()).max() <= 1
    assert np.mean(one[1] != batch[1][n].numpy()) <= 0.002


def test_a_batch_of_unknown_length_gives_the_same():
  config = dataclasses.replace(only("distortion", 0.5), noise_probability=0.5)
  image, label = sample((32, 32))
  images, labels = np.stack([image] * 3), np.stack([label] * 3)
  seeds = np.array([[7, n] for n in range(3)], np.int32)
  known = augment.augment_batch(
      config, tf.constant(images), tf.constant(labels), tf.constant(seeds)
  )
  signature = [
      tf.TensorSpec([None, 32, 32, 1], tf.uint8),
      tf.TensorSpec([None, 32, 32], tf.uint8),
      tf.TensorSpec([None, 2], tf.int32),
  ]
  unknown = tf.function(
      lambda *batch: augment.augment_batch(config, *batch),
      input_signature=signature,
      autograph=False,
  )(images, labels, seeds)
  assert np.abs(known[0].numpy().astype(int) - unknown[0].numpy()).max() <= 1
  assert np.mean(known[1].numpy() != unknown[1].numpy()) <= 0.002


def test_the_same_seed_gives_the_same_and_another_seed_another():
  image, label = sample()
  config = AugmentationConfig(augmentation="strong").resolve()
  first = augmented(config, image, label, (11, 12))
  again = augmented(config, image, label, (11, 12))
  np.testing.assert_array_equal(first[0], again[0])
  np.testing.assert_array_equal(first[1], again[1])
  for other in ((11, 13), (10, 12)):
    assert (augmented(config, image, label, other)[0] != first[0]).any()


def test_switching_one_transformation_on_leaves_the_draw_of_the_others():
  seeds = tf.constant([[1, n] for n in range(20)], tf.int32)
  without = draws.draw(only("rotation", 0.5), (32, 32), seeds)
  config = dataclasses.replace(only("rotation", 0.5), noise_probability=0.5, blur_probability=0.9)
  np.testing.assert_array_equal(
      without["rotation"], draws.draw(config, (32, 32), seeds)["rotation"]
  )


@pytest.mark.parametrize(
    "images, labels, wanted",
    [
        (np.zeros((1, 4, 4, 1), np.float32), np.zeros((1, 4, 4), np.uint8), "uint8"),
        (np.zeros((1, 4, 4), np.uint8), np.zeros((1, 4, 4), np.uint8), r"\[B, H, W, C\]"),
        (np.zeros((1, 4, 4, 1), np.uint8), np.zeros((1, 4, 5), np.uint8), "one shape"),
    ],
)
def test_wrong_arrays_are_refused(images, labels, wanted):
  seeds = tf.constant([[1, 2]])
  with pytest.raises(ValueError, match=wanted):
    augment.augment_batch(only("blur"), tf.constant(images), tf.constant(labels), seeds)
