"""A graph that stands alone answers native slices as `Predictor` does."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
import run_samples
import tensorflow as tf

from flexunet import config
from flexunet.core.errors import InputError
from flexunet.imaging.intensity import IntensityWindow
from flexunet.network import model, standalone
from flexunet.network.standalone import Surroundings
from flexunet.pipelines.pixel_size import PixelSizes
from flexunet.prediction.predictor import Predictor, to_label

SIZES = PixelSizes(low_mm=(1.0, 1.0), median_mm=(1.2, 1.2), high_mm=(1.5, 1.5))
UNKNOWN_MM = (float("nan"), float("nan"))


def sample(resize_mode="fit", pixel_sizes=None, data=None, **knobs):
  """Returns (network, config) of a run whose weights are random."""
  keras.utils.set_random_seed(0)
  run = run_samples.run_config((16, 24), resize_mode, **knobs)
  facts = dataclasses.replace(run.dataset_facts, pixel_sizes=pixel_sizes)
  run = dataclasses.replace(
      run, dataset_facts=facts, data=dataclasses.replace(run.data, **(data or {}))
  )
  fields = {field.name: getattr(run.model, field.name) for field in dataclasses.fields(run.model)}
  return model.build_model(**fields), run


def slices_of(*shape):
  return np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)


def asked(network, run: config.RunConfig, image, spacing_mm, **others):
  """Returns the answer of the graph, whose window is 0 to 255."""
  around = Surroundings.of_run(run, **others)
  graph = standalone.of_network(network, around)
  given = {
      "image": tf.constant(image.astype(np.float32)),
      "window": tf.constant([[0.0, 255.0]] * len(around.windows), tf.float64),
      "spacing_mm": tf.constant(spacing_mm, tf.float64),
  }
  answer = graph.function()(*(given[spec.name] for spec in graph.signature()))
  return answer[graph.output_name].numpy()


@pytest.mark.parametrize(
    ("resize_mode", "pixel_sizes", "spacing_mm"),
    [
        ("pad", None, UNKNOWN_MM),
        ("fit", None, UNKNOWN_MM),
        ("stretch", None, UNKNOWN_MM),
        ("fit", SIZES, (0.5, 0.9)),  # Scaled cubically, each axis by itself.
        ("pad", SIZES, (2.5, 2.5)),  # The frame grows.
        ("stretch", SIZES, (90.0, 1.0)),  # Not believed.
        ("fit", SIZES, UNKNOWN_MM),
    ],
)
@pytest.mark.parametrize("native", [(11, 21), (29, 13)])
def test_slices_of_any_size_are_answered_as_prediction_does(
    resize_mode, pixel_sizes, spacing_mm, native
):
  network, run = sample(resize_mode, pixel_sizes)
  image = slices_of(2, *native, 1)
  expected = np.stack(list(Predictor(network, run).probabilities(image, spacing_mm)))
  found = asked(network, run, image, spacing_mm, probabilities=True)
  # A grey value that falls on a half may be rounded either way.
  np.testing.assert_allclose(found, expected, atol=5e-3)
  assert (np.abs(found - expected) < 1e-5).mean() > 0.5


@pytest.mark.parametrize("cubic", [False, True])
@pytest.mark.parametrize(("native", "inner"), [((11, 21), (16, 24)), ((50, 33), (16, 40))])
def test_grey_values_are_those_of_tf_image_resize_but_for_halves(native, inner, cubic):
  image = slices_of(2, *native, 2)
  method = "bicubic" if cubic else "bilinear"
  exact = tf.image.resize(image, inner, method=method, antialias=True).numpy()
  found = standalone._scaled(
      tf.cast(image, tf.float32), tf.constant(native), tf.constant(inner), tf.constant(cubic)
  ).numpy()
  expected = np.clip(np.round(exact), 0, 255)
  other = found != expected
  assert np.abs(found - expected).max() <= 1
  assert (np.abs(exact % 1 - 0.5)[other] < 1e-4).all()
  np.testing.assert_allclose(
      standalone._enlarged(tf.constant(exact), 1, tf.constant(70)),
      tf.image.resize(exact, (70, exact.shape[2])), rtol=1e-6,
  )  # fmt: skip


def test_class_ids_of_one_output_follow_the_rule_of_ties():
  network, run = sample(num_classes=1)
  image = slices_of(2, 20, 30, 1)
  expected = [to_label(one) for one in Predictor(network, run).probabilities(image)]
  found = asked(network, run, image, UNKNOWN_MM)
  assert found.dtype == np.uint8 and found.shape == (2, 20, 30)
  assert (found != np.stack(expected)).mean() < 1e-3
  network.get_layer("head").kernel.assign(tf.zeros_like(network.get_layer("head").kernel))
  network.get_layer("head").bias.assign([0.0])  # 0.5 everywhere: background.
  assert not asked(network, run, image, UNKNOWN_MM).any()


def test_neighbours_go_in_as_channels():
  network, run = sample(image_channels=3, data={"context_slices": 1})
  volume = slices_of(4, 20, 30)
  expected = np.stack(list(Predictor(network, run).probabilities(volume)))
  stacked = np.stack([volume[[0, 0, 1, 2]], volume, volume[[1, 2, 3, 3]]], axis=-1)
  found = asked(network, run, stacked, UNKNOWN_MM, probabilities=True)
  np.testing.assert_allclose(found, expected, atol=5e-3)


def test_a_grey_slice_is_repeated_for_a_network_of_three_channels():
  network, run = sample(image_channels=3)
  image = slices_of(1, 20, 30, 1)
  expected = np.stack(list(Predictor(network, run).probabilities(image)))
  found = asked(network, run, image, UNKNOWN_MM, probabilities=True)
  np.testing.assert_allclose(found, expected, atol=5e-3)


@pytest.mark.parametrize(
    ("window", "limits"),
    [
        (IntensityWindow("window", -20.0, 80.0), None),
        (IntensityWindow("percentile", 1.0, 99.0), (37.0, 911.3)),
        (IntensityWindow("percentile", 1.0, 99.0), (40.0, 40.0)),  # Flat.
        (IntensityWindow("none"), None),
    ],
)
def test_intensities_become_the_same_eight_bits(window, limits):
  network, _ = sample()
  around = Surroundings((16, 24), "fit", None, (window,))
  graph = standalone.of_network(network, around)
  values = np.random.default_rng(2).normal(200, 300, (1, 9, 9, 1)).astype(np.float32)
  values[0, 0, :3, 0] = [np.nan, np.inf, -np.inf]
  given = None if limits is None else tf.constant([limits], tf.float64)
  found = graph._eight_bits(tf.constant(values), given)
  if limits is None:
    expected = window.to_uint8(values)
  elif limits[0] == limits[1]:
    expected = np.where(values > 40, 255, 0)
  else:
    expected = IntensityWindow("window", *limits).to_uint8(values)
  np.testing.assert_array_equal(found, expected)


def test_a_temperature_of_two_takes_the_roots_of_probabilities():
  network, run = sample(num_classes=1)
  image = slices_of(2, 20, 30, 1)
  plain, soft = (
      asked(network, run, image, UNKNOWN_MM, probabilities=True, temperature=one)
      for one in (1.0, 2.0)
  )
  np.testing.assert_array_equal(plain.argmax(-1), soft.argmax(-1))
  roots = np.sqrt(plain)
  np.testing.assert_allclose(soft, roots / roots.sum(axis=-1, keepdims=True), atol=1e-5)
  roots = np.sqrt(plain)
  np.testing.assert_allclose(soft, roots / roots.sum(-1, keepdims=True), atol=1e-5)


def test_a_run_on_boxes_of_volumes_and_litert_without_a_size_are_refused():
  _, run = sample(data={"crop_foreground": True})
  with pytest.raises(InputError, match="--output=network"):
    Surroundings.of_run(run)
  _, run = sample()
  with pytest.raises(InputError, match="--image_size=HEIGHT,WIDTH"):
    Surroundings.of_run(run).at_fixed_size()


def test_slices_that_a_build_resampled_go_in_as_eight_bits():
  _, run = sample()
  facts = dataclasses.replace(run.dataset_facts, in_plane_mm=(1.0, 1.0))
  around = Surroundings.of_run(dataclasses.replace(run, dataset_facts=facts))
  assert around.windows == () and not around.takes_window
