"""The fused layer gives what Keras' own gives, in training and after it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from flexunet.network import layers, model

ARGUMENTS = {"momentum": 0.9, "epsilon": 1e-5}


def pair(dtype="float32", **arguments):
  """Returns the fused layer and Keras' own, built for 3 channels, with equal weights."""
  pair = [
      kind(dtype=dtype, **{**ARGUMENTS, **arguments})
      for kind in (layers.BatchNormalization, keras.layers.BatchNormalization)
  ]
  draw = np.random.default_rng(3)
  for layer in pair:
    layer.build((None, 6, 5, 3))
  weights = [draw.uniform(0.5, 2.0, w.shape) for w in pair[0].weights]
  for layer in pair:
    layer.set_weights(weights)
  return pair


def maps(seed=0):
  return tf.constant(np.random.default_rng(seed).normal(2.0, 3.0, (4, 6, 5, 3)), tf.float32)


def learn(layer, inputs):
  """Returns the outputs of a training step and the gradients of a sum that is not symmetric."""
  with tf.GradientTape() as tape:
    tape.watch(inputs)
    outputs = layer(inputs, training=True)
    total = tf.reduce_sum(tf.cast(outputs, tf.float32) ** 3)
  return outputs, tape.gradient(total, [inputs, *(w.value for w in layer.trainable_weights)])


def test_a_training_step_equals_that_of_keras():
  ours, theirs = pair()
  outputs, gradients = learn(ours, maps())
  expected, expected_gradients = learn(theirs, maps())
  np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
  for found, wanted in zip(gradients, expected_gradients, strict=True):
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-2)
  for found, wanted in zip(ours.weights, theirs.weights, strict=True):
    np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=1e-5, err_msg=found.name)


@pytest.mark.parametrize("trainable", [True, False])
def test_kept_statistics_are_used_outside_training_and_when_frozen(trainable):
  ours, theirs = pair()
  ours.trainable = theirs.trainable = trainable
  before = [w.numpy() for w in ours.weights]
  training = not trainable
  np.testing.assert_allclose(
      ours(maps(), training=training), theirs(maps(), training=training), rtol=1e-4, atol=1e-5
  )
  for found, wanted in zip(ours.weights, before, strict=True):
    np.testing.assert_array_equal(found.numpy(), wanted)


def test_sixteen_bit_maps_keep_statistics_in_float32():
  ours, theirs = pair("mixed_bfloat16")
  outputs = ours(maps(), training=True)
  assert outputs.dtype == tf.bfloat16
  expected = theirs(maps(), training=True)
  # bfloat16 has eight bits: steps of 1/64 between 2 and 4.
  np.testing.assert_allclose(tf.cast(outputs, tf.float32), tf.cast(expected, tf.float32), atol=0.07)
  assert {w.dtype for w in ours.weights} == {"float32"}
  np.testing.assert_allclose(
      ours.moving_variance.numpy(), theirs.moving_variance.numpy(), rtol=1e-2
  )


@pytest.mark.parametrize("arguments", [{"axis": 1}, {"scale": False}, {"center": False}])
def test_what_the_operation_does_not_cover_is_left_to_keras(arguments):
  pair = [
      kind(**ARGUMENTS, **arguments)
      for kind in (layers.BatchNormalization, keras.layers.BatchNormalization)
  ]
  inputs = maps()
  np.testing.assert_array_equal(*(layer(inputs, training=True) for layer in pair))


def test_the_training_graph_holds_one_operation_a_layer():
  network = model.build_model(
      image_size=(16, 16), image_channels=1, num_classes=3, base_filters=4, base_kernels=3,
      num_layers=2, dropout_rate=0.0, normalization="batch")
  step = tf.function(lambda images: network(images, training=True))
  graph = step.get_concrete_function(tf.TensorSpec((2, 16, 16, 1), tf.float32)).graph
  operations = [operation.type for operation in graph.get_operations()]
  layers = [one for one in network.layers if isinstance(one, keras.layers.BatchNormalization)]
  assert operations.count("FusedBatchNormV3") == len(layers) == 6


def test_a_saved_network_is_read_back_with_the_layer(tmp_path):
  network = model.build_model(
      image_size=(16, 16), image_channels=1, num_classes=3, base_filters=4, base_kernels=3,
      num_layers=2, normalization="batch")
  network.save(tmp_path / "model.keras")
  again = keras.saving.load_model(tmp_path / "model.keras", compile=False)
  kinds = {type(one) for one in again.layers if "norm" in one.name}
  assert kinds == {layers.BatchNormalization}
