"""A network made to answer fast gives the answer of the network it was made of, in float32."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from flexunet.network import architecture, export, inference, model, weights

SMALL = {
    "image_size": (24, 16), "image_channels": 1, "num_classes": 3, "base_filters": 4,
    "base_kernels": 3, "num_layers": 3, "dropout_rate": 0.1, "normalization": "batch",
}  # fmt: skip


def trained(policy="float32", **changes) -> keras.Model:
  """Returns a network whose statistics and biases are not those of the start."""
  before = keras.config.dtype_policy()
  keras.config.set_dtype_policy(policy)
  try:
    network = model.build_model(**{**SMALL, **changes})
  finally:
    keras.config.set_dtype_policy(before)
  weights.set_from_seed(network, 1)
  generator = np.random.default_rng(2)
  for variable in network.weights:
    if variable.path.endswith(("bias", "beta", "moving_mean")):
      variable.assign(generator.normal(0, 0.3, variable.shape))
    elif variable.path.endswith(("gamma", "moving_variance")):
      variable.assign(generator.uniform(0.5, 2.0, variable.shape))
  return network


def answer(network, images) -> np.ndarray:
  function = tf.function(inference.as_function(network), autograph=False)
  return function(tf.constant(images)).numpy()


def images_of(height=24, width=16, channels=1, count=2) -> np.ndarray:
  shape = (count, height, width, channels)
  return np.random.default_rng(3).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize(
    "changes",
    [
        *({"normalization": kind} for kind in architecture.NORMALIZATIONS),
        *({"normalization": "none", "activation": kind} for kind in ("gelu", "leaky_relu")),
        {"activation": "elu"},
        {"num_classes": 1},
        {"dilation": 2, "base_kernels": 7, "image_channels": 3},
        {"input_normalization": "per_image"},
        {"deep_supervision": True},
        {"image_size": (22, 15)},  # Padded inside.
        {"image_size": None},
        {"num_layers": 1},
        {"stem": "half"},
        {"stem": "half", "image_size": (22, 15), "normalization": "group"},
        {"stem": "half_refined", "image_channels": 3},
        {"block": "residual", "encoder_blocks": 2},
        {"block": "residual", "normalization": "none"},
        {"upsampling": "nearest", "decoder_convolutions": 1},
        {"upsampling": "nearest", "max_filters": 6},
    ],
    ids=str,
)
def test_the_answer_is_that_of_the_network(changes):
  network = trained(**changes)
  height, width = changes.get("image_size") or (24, 16)
  images = images_of(height, width, changes.get("image_channels", 1))
  expected = network(images.astype(np.float32), training=False)
  expected = expected[0] if isinstance(expected, list) else expected
  # Sums are in another order, and with AVX2 in steps of another length than with AVX-512.
  assert np.abs(answer(network, images) - keras.ops.convert_to_numpy(expected)).max() < 3e-5


def test_a_network_of_16_bit_numbers_answers_as_its_export_in_float32():
  network, images = trained("mixed_bfloat16"), images_of()
  expected = keras.ops.convert_to_numpy(export.float32_twin(network)(images, training=False))
  assert np.abs(answer(network, images) - expected).max() < 1e-5


@pytest.mark.parametrize("stem", ["full", "half", "half_refined"])
@pytest.mark.parametrize("size_hw", [(24, 16), (32, 8), (21, 30), (3, 5)])
def test_other_sizes_are_answered_as_by_the_network_for_any_size(size_hw, stem):
  network, images = trained(stem=stem), images_of(*size_hw)
  expected = model.accept_any_size(network)(images.astype(np.float32), training=False)
  assert np.abs(answer(network, images) - keras.ops.convert_to_numpy(expected)).max() < 1e-5


@pytest.mark.parametrize("changes", [{}, {"block": "residual", "stem": "half_refined"}])
def test_normalization_is_folded_into_the_convolutions(changes):
  function = tf.function(inference.as_function(trained(**changes)), autograph=False)
  graph = function.get_concrete_function(tf.TensorSpec((None, 24, 16, 1), tf.uint8)).graph
  kinds = {operation.type for operation in graph.get_operations()}
  assert "Conv2D" in kinds and not any("BatchNorm" in kind for kind in kinds)


def test_training_on_does_not_change_what_was_made_of_the_network_before():
  network, images = trained(), images_of()
  function = inference.as_function(network)
  before = function(tf.constant(images)).numpy()
  for variable in network.weights:
    variable.assign(variable * 0)
  assert np.array_equal(function(tf.constant(images)).numpy(), before)
