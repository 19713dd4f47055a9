"""Grey values drawn anew: what of an example stays, what changes, and by what it is decided."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

from flexunet.imaging.label_scheme import IGNORED
from flexunet.pipelines.augmentation import augment, contrast, draws
from flexunet.pipelines.augmentation.config import AugmentationConfig

# Nothing but the synthesis: no noise, no blur, each class and cluster a plain grey value.
PLAIN = AugmentationConfig(
    augmentation="none", synthetic_share=1.0, synthetic_noise_std=0.0, synthetic_blur_sigma=0.0,
    synthetic_texture=0.0, synthetic_class_range=0.0,
).resolve()  # fmt: skip


def slices(count=8, size_hw=(40, 48)):
  """Returns images [B, H, W, 1] and labels [B, H, W]: air, a head of two greys, classes 1 and 2."""
  rows, columns = np.mgrid[: size_hw[0], : size_hw[1]]
  from_middle = np.hypot(rows - size_hw[0] / 2, columns - size_hw[1] / 2)
  label = np.where(from_middle < 5, 2, np.where(from_middle < 10, 1, 0)).astype(np.uint8)
  head = np.where(rows < size_hw[0] / 2, 100, 180)
  image = np.select([label == 2, label == 1, from_middle < 17], [60, 140, head], 0)
  images = np.repeat(image[None, ..., None], count, 0).astype(np.uint8)
  return images, np.repeat(label[None], count, 0)


def made(config, images, labels, first_seed=1, **batch):
  seeds = np.array([[first_seed, n] for n in range(len(images))], np.int32)
  out = augment.augment_batch(
      config, tf.constant(images), tf.constant(labels), tf.constant(seeds), **batch
  )
  return tuple(one.numpy() for one in out)


def test_labels_stay_and_air_stays_dark():
  images, labels = slices()
  out, out_labels = made(PLAIN, images, labels)
  np.testing.assert_array_equal(out_labels, labels)
  assert out.dtype == np.uint8 and out.shape == images.shape
  assert (out[images == 0] == 0).all()
  assert (out != images).any(axis=(1, 2, 3)).all()


def test_drawn_class_by_class_each_class_is_plain_and_background_has_clusters():
  images, labels = slices(24)
  draw = draws.by_hand(synthetic=1.0, synthetic_by_class=1.0)
  tall = draws.Draw(draw.names, tf.repeat(draw.values, 24, axis=0))
  seeds = tf.constant([[3, n] for n in range(24)], tf.int32)
  out = contrast.change(PLAIN, tall, seeds, tf.constant(images), tf.constant(labels)).numpy()
  for region in (labels == 1, labels == 2):
    of_region = out[..., 0][region].reshape(24, -1)
    assert (of_region == of_region[:, :1]).all()
  # The two greys of the head outside the labels: 100 and 180 are different clusters.
  head = [out[images == grey].reshape(24, -1)[:, 0] for grey in (100, 180)]
  assert (head[0] != head[1]).mean() > 0.9
  # Uniform grey values: of 24 some are dark and some bright.
  greys = out[..., 0][:, 20, 24]
  assert greys.min() < 80 and greys.max() > 175


def test_one_curve_for_the_whole_image_shows_no_border_that_the_scan_does_not_show():
  images, labels = slices(4)
  images[labels > 0] = 140
  out, _ = made(dataclasses.replace(PLAIN, synthetic_by_class=0.0), images, labels)
  same_grey = out[..., 0][labels > 0].reshape(4, -1)
  assert (same_grey == same_grey[:, :1]).all()


def test_the_full_texture_is_a_line_between_the_greys_of_two_clusters():
  # Grey values 40 and 200 are the clusters; 120 lies halfway.
  image = np.zeros((1, 30, 30, 1), np.uint8)
  image[:, :14], image[:, 14:16], image[:, 16:] = 40, 120, 200
  config = dataclasses.replace(PLAIN, synthetic_clusters=2, synthetic_texture=1.0)
  draw = draws.by_hand(synthetic=1.0, synthetic_texture=1.0)
  out = contrast.change(
      config, draw, tf.constant([[5, 6]]), tf.constant(image), tf.zeros((1, 30, 30), tf.uint8)
  ).numpy()[0, ..., 0]
  low, middle, high = (int(out[row, 0]) for row in (0, 15, 29))
  assert low != high
  # The clusters lie at the means 45.. and 195.. once the middle rows have joined one of them.
  assert middle == pytest.approx((low + high) / 2, abs=0.12 * abs(high - low))


def test_the_share_of_examples_is_met_and_the_others_stay():
  images, labels = slices(400, (12, 12))
  out, _ = made(dataclasses.replace(PLAIN, synthetic_share=0.3), images, labels)
  changed = (out != images).any(axis=(1, 2, 3))
  # The deviation of the mean of 400 coins of 0.3 is 0.023.
  assert changed.mean() == pytest.approx(0.3, abs=0.07)


def test_it_is_a_function_of_the_seed_alone():
  images, labels = slices(6)
  config = AugmentationConfig(augmentation="contrast", synthetic_share=1.0).resolve()
  out, out_labels = made(config, images, labels)
  again, _ = made(config, images, labels)
  np.testing.assert_array_equal(out, again)
  one, one_label = augment.augment_example(
      config, tf.constant(images[4]), tf.constant(labels[4]), tf.constant([1, 4])
  )
  assert np.abs(one.numpy().astype(int) - out[4]).max() <= 1
  assert np.mean(one_label.numpy() != out_labels[4]) <= 0.002
  other, _ = made(config, images, labels, first_seed=2)
  assert (other != out).any(axis=(1, 2, 3)).all()


@pytest.mark.slow
def test_the_compiled_step_makes_what_the_input_pipeline_makes():
  images, labels = slices(6)
  config = AugmentationConfig(augmentation="contrast", synthetic_share=1.0).resolve()
  seeds = np.array([[1, n] for n in range(6)], np.int32)
  compiled = tf.function(
      lambda *batch: augment.augment_batch(config, *batch), jit_compile=True, autograph=False
  )
  on_device = compiled(images, labels, seeds)
  stream = tf.data.Dataset.from_tensor_slices((images, labels, seeds)).map(
      lambda *one: augment.augment_example(config, *one)
  )
  on_host = next(iter(stream.batch(6)))
  assert np.abs(on_device[0].numpy().astype(int) - on_host[0].numpy()).max() <= 1
  assert np.mean(on_device[1].numpy() != on_host[1].numpy()) <= 0.002


@pytest.mark.parametrize("value", [0, 1, 37, 254])
def test_images_of_one_class_alone_and_of_classes_beyond_the_table_are_drawn(value):
  images, _ = slices(3)
  labels = np.full(images.shape[:3], value, np.uint8)
  out, out_labels = made(PLAIN, images, labels)
  assert (out != images).any() and (out_labels == value).all()
  one_grey, _ = made(PLAIN, np.full_like(images, 90), labels)
  assert (one_grey == one_grey[:, :1, :1]).all()


def test_one_cluster_and_images_of_nothing_are_drawn():
  images, labels = slices(3)
  single = dataclasses.replace(PLAIN, synthetic_clusters=1)
  out, _ = made(single, images, labels)
  for grey in (100, 180):
    assert (out[images == grey] > 0).any()
  empty, _ = made(PLAIN, np.zeros_like(images), np.zeros_like(labels))
  assert (empty == 0).all()


def test_ignored_pixels_count_as_background_and_stay_ignored():
  images, labels = slices(4)
  marked = labels.copy()
  marked[:, :3] = IGNORED  # Rows of air.
  out, out_labels = made(PLAIN, images, marked)
  np.testing.assert_array_equal(out_labels, marked)
  np.testing.assert_array_equal(out, made(PLAIN, images, labels)[0])


def test_channels_are_synthetic_together_and_each_has_its_own_contrast():
  images, labels = slices(60)
  both = np.repeat(images, 2, axis=-1)
  config = dataclasses.replace(PLAIN, synthetic_share=0.5)
  out, _ = made(config, both, labels, separate_channels=True)
  changed = (out != both).any(axis=(1, 2))
  np.testing.assert_array_equal(changed[:, 0], changed[:, 1])
  assert 10 < changed[:, 0].sum() < 50
  differ = (out[..., 0] != out[..., 1]).any(axis=(1, 2))
  np.testing.assert_array_equal(differ, changed[:, 0])


def test_neighbouring_slices_as_channels_share_one_contrast():
  images, labels = slices(5)
  out, _ = made(PLAIN, np.repeat(images, 3, axis=-1), labels)
  np.testing.assert_array_equal(out[..., 0], out[..., 1])
  np.testing.assert_array_equal(out[..., 0], out[..., 2])


def test_blur_mixes_neighbouring_tissues():
  images, labels = slices(6)
  out, _ = made(dataclasses.replace(PLAIN, synthetic_blur_sigma=2.0), images, labels)
  sharp, _ = made(PLAIN, images, labels)
  assert max(len(np.unique(one)) for one in out) > max(len(np.unique(one)) for one in sharp)


def test_a_resolution_may_be_low_along_one_axis_alone():
  image = np.indices((16, 16)).sum(axis=0) % 2 * 255
  image = image[None, ..., None].astype(np.uint8)
  config = AugmentationConfig(augmentation="none", low_resolution_probability=1.0).resolve()
  for skew, kept in ((1.0, 1), (-1.0, 0)):
    draw = draws.by_hand(low_resolution=np.log(2), low_resolution_skew=skew)
    out, _ = augment.apply(config, draw, image, np.zeros((1, 16, 16), np.uint8), [[1, 2]])
    spread = [np.std(out.numpy()[0, ..., 0], axis=axis).max() for axis in (0, 1)]
    # Skew above 0 spares the columns: neighbours in a row still differ.
    assert spread[kept] > 60 and spread[1 - kept] < 1


def test_a_run_from_before_there_were_synthetic_images_reads_as_it_was():
  complete = AugmentationConfig(augmentation="strong").resolve(mirroring=False)
  younger = ("synthetic", "low_resolution_anisotropy")
  values = dataclasses.asdict(complete)
  earlier = {name: value for name, value in values.items() if not name.startswith(younger)}
  read = AugmentationConfig.of_run(json.loads(json.dumps(earlier)))
  assert read == complete and read.synthetic_share == 0


def test_the_draws_of_everything_else_are_those_of_a_run_without_it():
  seeds = tf.constant([[1, n] for n in range(20)], tf.int32)
  without = AugmentationConfig(augmentation="default").resolve()
  drawn = [draws.draw(one, (32, 32), seeds)
           for one in (without, dataclasses.replace(without, synthetic_share=0.5))]  # fmt: skip
  for name in drawn[0].names:
    if not name.startswith("synthetic"):
      np.testing.assert_array_equal(drawn[0][name], drawn[1][name], err_msg=name)
