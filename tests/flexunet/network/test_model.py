"""The network: parameter counts, shapes, any size, saving, precision, every knob."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import run_samples

from flexunet.core.errors import InputError
from flexunet.network import cost, layers, model

SMALL = dict(image_size=(16, 24), image_channels=1, num_classes=3, base_filters=4, base_kernels=5,
             num_layers=3)  # fmt: skip


def small(**changes) -> keras.Model:
  return model.build_model(**{**SMALL, **changes})


def images(*shape, seed=0) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, 256, shape).astype("uint8")


@pytest.mark.parametrize(
    ("base_kernels", "num_classes", "parameters"),
    [(11, 7, 126_809_303), (9, 2, 124_996_866), (9, 3, 124_996_883), (11, 2, 126_809_218)],
)
def test_published_networks_have_exactly_their_parameters(base_kernels, num_classes, parameters):
  published = run_samples.published(base_kernels=base_kernels, num_classes=num_classes)
  assert cost.count_parameters(published) == parameters


@pytest.mark.slow
def test_the_built_published_network_has_exactly_its_parameters():
  assert model.build_model().count_params() == 126_809_303


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_layers": 1},
        {"num_layers": 5, "base_kernels": 11, "dilation": 3},
        {"num_classes": 1, "image_channels": 2},
        {"normalization": "batch"},
        {"normalization": "group", "base_filters": 6},
        {"normalization": "instance"},
        {"normalization": "layer", "input_normalization": "per_image"},
        {"deep_supervision": True, "num_layers": 6, "base_filters": 2},
        {"image_size": (17, 30)},
        {"stem": "half", "image_size": (17, 30), "deep_supervision": True},
        {"stem": "half_refined", "image_channels": 3, "num_classes": 1},
        {"stem": "half_refined", "num_layers": 1, "normalization": "group"},
        {"block": "residual", "encoder_blocks": 3, "normalization": "instance"},
        {"block": "residual", "max_filters": 8, "num_layers": 4, "decoder_convolutions": 1},
        {"encoder_blocks": 2, "upsampling": "nearest", "normalization": "batch"},
        {"upsampling": "nearest", "image_size": (17, 30)},
    ],
)
def test_counting_agrees_with_building_and_outputs_are_probabilities(changes):
  network = small(**changes)
  counted = cost.count_parameters(run_samples.published(**{**SMALL, **changes}))
  assert network.count_params() == counted
  height, width, channels = network.input_shape[1:]
  outputs = network(images(2, height, width, channels))
  outputs = outputs if isinstance(outputs, list) else [outputs]
  for output in outputs:
    output = output.numpy()
    assert output.shape == (2, height, width, changes.get("num_classes", 3))
    assert output.dtype == np.float32
    if output.shape[-1] > 1:
      np.testing.assert_allclose(output.sum(-1), 1, atol=1e-5)
    else:
      assert (output > 0).all() and (output < 1).all()


def test_stages_follow_the_ladder():
  published = run_samples.published(dilation=3).stages()
  assert [stage.filters for stage in published] == [16 * 2**n for n in range(8)]
  assert [stage.kernel for stage in published] == [11, 9, 7, 5, 3, 3, 3, 3]
  assert [stage.dilation for stage in published] == [3, 2, 1, 1, 1, 1, 1, 1]
  assert [stage.dropout_rate for stage in published] == [0.05 * n for n in range(8)]


def test_the_network_is_built_by_the_ladder():
  network = small(dilation=2, dropout_rate=0.1, base_kernels=7, activation="mish",
                  kernel_initializer="glorot_uniform")  # fmt: skip
  for side in ("encoder", "decoder"):
    for stage in range(3 if side == "encoder" else 2):
      for index in range(2):
        layer = network.get_layer(f"{side}{stage}_conv{index}")
        assert layer.kernel_size == (7 - 2 * stage,) * 2
        assert layer.dilation_rate == (max(1, 2 - stage),) * 2
        assert layer.activation is keras.activations.mish
        assert isinstance(layer.kernel_initializer, keras.initializers.GlorotUniform)
      if stage:
        assert network.get_layer(f"{side}{stage}_dropout").rate == pytest.approx(0.1 * stage)
  assert not any(layer.name == "encoder0_dropout" for layer in network.layers)


def test_residual_blocks_add_their_input_before_the_last_activation():
  network = small(block="residual", encoder_blocks=2, normalization="batch", dropout_rate=0.0)
  names = [layer.name for layer in network.layers if layer.name.startswith("encoder1_")]
  assert names == [
      *(f"encoder1_{kind}0" for kind in ("conv", "norm", "act")), "encoder1_conv1",
      "encoder1_shortcut_conv", "encoder1_norm1", "encoder1_shortcut_norm", "encoder1_add1",
      "encoder1_act1", *(f"encoder1_{kind}2" for kind in ("conv", "norm", "act")),
      "encoder1_conv3", "encoder1_norm3", "encoder1_add3", "encoder1_act3",
  ]  # fmt: skip
  tensors = [network.get_layer(f"encoder1_{name}").output for name in ("norm3", "act1", "act3")]
  residue, before, after = keras.Model(network.input, tensors)(images(2, 16, 24, 1))
  np.testing.assert_allclose(after, np.maximum(np.add(residue, before), 0), atol=1e-6)


def test_a_first_stage_at_half_size_sees_every_pixel_and_answers_for_each():
  network = small(stem="half", num_layers=1, num_classes=2)
  stem = network.get_layer("stem")(np.arange(8.0).reshape(1, 2, 4, 1))
  np.testing.assert_array_equal(stem[0, 0], [[0, 1, 4, 5], [2, 3, 6, 7]])
  assert network.get_layer("encoder0_conv0").output.shape == (None, 8, 12, 4)
  logits = keras.Model(network.input, network.get_layer("head").output)
  four = logits(images(1, 16, 24, 1)).numpy()[0, 4:6, 8:10].reshape(4, 2)
  assert len(np.unique(four[:, 0])) == 4  # Each of them has weights of its own.


def test_stages_are_no_wider_than_asked_for():
  shape = run_samples.published(max_filters=100)
  assert [stage.filters for stage in shape.stages()] == [16, 32, 64, *[100] * 5]


def test_input_is_scaled_inside_whatever_its_type():
  network = small()
  bytes_in = images(1, 16, 24, 1)
  scaled = network.get_layer("scale")(bytes_in).numpy()
  np.testing.assert_allclose(scaled, bytes_in / 255, atol=1e-7)
  np.testing.assert_array_equal(network(bytes_in), network(bytes_in.astype("float32")))


def test_per_image_normalization_ignores_air_and_padding():
  layer = layers.PerImageNormalization(epsilon=0.0)
  picture = np.array([[10.0, 30.0], [0.0, 20.0]]).reshape(1, 2, 2, 1)
  # Of 10, 20, 30: mean 20, standard deviation sqrt(200 / 3).
  found = layer(picture).numpy()[0, ..., 0]
  np.testing.assert_allclose(found, np.array([[-10, 10], [-20, 0]]) / np.sqrt(200 / 3), rtol=1e-5)
  padded = layer(np.pad(picture, [[0, 0], [0, 3], [0, 5], [0, 0]])).numpy()
  np.testing.assert_allclose(padded[:, :2, :2, 0], found[None], rtol=1e-5)
  nothing = layers.PerImageNormalization()(np.zeros((1, 2, 2, 1))).numpy()
  assert (nothing == 0).all()


def test_any_size_is_padded_by_zeros_and_cropped_back():
  free = small(image_size=None)
  pictures = images(2, 13, 18, 1)
  # The next multiples of 2 ** (3 - 1).
  padded = np.pad(pictures, [[0, 0], [0, 3], [0, 2], [0, 0]])
  np.testing.assert_allclose(free(pictures), free(padded)[:, :13, :18], atol=1e-6)
  fixed = small(image_size=(13, 18))
  fixed.set_weights(free.get_weights())
  np.testing.assert_allclose(free(pictures), fixed(pictures), atol=1e-6)
  assert free(images(1, 1, 1, 1)).shape == (1, 1, 1, 3)


@pytest.mark.parametrize("stem", ["full", "half", "half_refined"])
@pytest.mark.parametrize("size", [(16, 24), (15, 22)])
def test_a_fixed_network_can_be_opened_to_any_size_again_and_again(size, stem):
  fixed = small(image_size=size, stem=stem)
  pictures = images(2, *size, 1)
  for _ in range(2):
    free = model.accept_any_size(fixed)
    np.testing.assert_allclose(free(pictures), fixed(pictures), atol=1e-6)
    assert free(images(1, 9, 31, 1)).shape == (1, 9, 31, 3)
  assert model.accept_any_size(free) is free


def test_opened_networks_share_their_weights():
  fixed = small()
  free = model.accept_any_size(fixed)
  fixed.get_layer("head").bias.assign([50.0, 0.0, 0.0])
  assert free(images(1, 9, 9, 1)).numpy()[..., 0].min() > 0.99



@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"image_size": None, "normalization": "group", "input_normalization": "per_image"},
        {"stem": "half", "block": "residual", "normalization": "batch"},
        {"stem": "half_refined", "image_size": None, "upsampling": "nearest"},
        {"encoder_blocks": 2, "upsampling": "nearest", "decoder_convolutions": 1},
    ],
)
def test_a_saved_network_answers_equally(changes, tmp_path):
  network = small(**changes)
  pictures = images(2, 16, 24, 1)
  network.save(tmp_path / "model.keras")
  again = keras.saving.load_model(tmp_path / "model.keras")
  np.testing.assert_array_equal(network(pictures), again(pictures))


@pytest.mark.parametrize(
    ("num_classes", "shares"), [(3, [0.9, 0.08, 0.02]), (2, [600, 0]), (1, [0.75, 0.25])]
)
def test_an_untrained_network_expects_the_classes_at_their_shares(num_classes, shares):
  network = small(num_classes=num_classes, deep_supervision=True)
  model.set_class_prior(network, shares)
  for output in network(np.zeros((1, 16, 24, 1))):  # No features: the bias alone answers.
    expected = np.array(shares) / sum(shares)
    found = output.numpy().mean((0, 1, 2))
    np.testing.assert_allclose(found, expected[1:] if num_classes == 1 else expected, atol=2e-5)
    assert found.min() > 0


@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.5, 0.5, -0.1], [0, 0, 0]])
def test_shares_that_do_not_fit_are_refused(shares):
  with pytest.raises(InputError, match="3 numbers of at least 0"):
    model.set_class_prior(small(), shares)


def test_deep_supervision_repeats_the_coarse_outputs():
  network = small(deep_supervision=True)
  fine, coarse = (output.numpy() for output in network(images(1, 16, 24, 1)))
  np.testing.assert_array_equal(coarse[:, ::2, ::2], coarse[:, 1::2, 1::2])
  assert not np.array_equal(fine[:, ::2, ::2], fine[:, 1::2, 1::2])
  assert model.deep_supervision_weights(network) == pytest.approx([2 / 3, 1 / 3])


@pytest.mark.parametrize(
    "changes",
    [
        {"num_classes": 1}, {"image_size": (15, 22)}, {"deep_supervision": True},
        {"stem": "half", "deep_supervision": True}, {"stem": "half_refined", "num_classes": 1},
    ],
)
def test_the_logits_twin_shares_the_weights_and_gives_what_becomes_the_probabilities(changes):
  network = small(**changes)
  twin = model.logits_twin(network)
  assert [id(one) for one in twin.weights] == [id(one) for one in network.weights]
  image = images(1, *network.input_shape[1:])
  logits, found = (keras.tree.flatten(one(image)) for one in (twin, network))
  for one, probability in zip(logits, found, strict=True):
    one = one.numpy().astype(float)
    expected = 1 / (1 + np.exp(-one)) if one.shape[-1] == 1 else np.exp(one)
    expected = expected if one.shape[-1] == 1 else expected / expected.sum(-1, keepdims=True)
    np.testing.assert_allclose(probability, expected, atol=1e-6)
  again = model.probability_twin(twin)
  assert len(again.outputs) == 1
  np.testing.assert_array_equal(again(image), found[0])


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_probabilities_stay_float32_in_mixed_precision(policy):
  before = keras.config.dtype_policy()
  keras.config.set_dtype_policy(policy)
  try:
    network = small(image_size=(15, 22), input_normalization="per_image")
  finally:
    keras.config.set_dtype_policy(before)
  found = network(images(1, 15, 22, 1))
  assert found.dtype == "float32"
  assert network.get_layer("encoder0_conv0").compute_dtype == policy.removeprefix("mixed_")
  np.testing.assert_allclose(found.numpy().sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stem": "half", "block": "residual", "upsampling": "nearest"},
        {"stem": "half_refined", "encoder_blocks": 2, "upsampling": "nearest"},
    ],
)
def test_one_step_of_training_moves_every_weight(changes):
  network = small(normalization="batch", deep_supervision=True, **changes)
  before = [weight.copy() for weight in network.get_weights()]
  network.compile(keras.optimizers.SGD(0.1), loss=["sparse_categorical_crossentropy"] * 2)
  label = np.random.default_rng(1).integers(0, 3, (4, 16, 24))
  network.train_on_batch(images(4, 16, 24, 1), [label, label])
  moved = [not np.array_equal(a, b) for a, b in zip(before, network.get_weights(), strict=True)]
  # A bias before batch normalization has no effect, hence no gradient beyond rounding.
  names = [weight.path for weight in network.weights]
  still = [name for name, moves in zip(names, moved, strict=True) if not moves]
  assert all(name.endswith("/bias") for name in still), still


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(base_kernels=4), "odd.*Take 3 or 5"),
        (dict(num_layers=0), "num_layers must be from 1 to 12"),
        (dict(base_filters=2.5), "base_filters"),
        (dict(num_classes=True), "num_classes"),
        (dict(normalization="bach"), "Did you mean 'batch'"),
        (dict(activation="relo"), "Did you mean 'relu'"),
        (dict(kernel_initializer="he"), "kernel_initializer must be one of"),
        (dict(input_normalization="z"), "input_normalization"),
        (dict(dropout_rate=0.5), "0.5 x 2 = 1"),
        (dict(dropout_rate=-0.1), "dropout_rate"),
        (dict(image_size=(0, 512)), "image_size must be"),
        (dict(image_size=(16, 0)), "image_size"),
        (dict(deep_supervision=True, num_layers=2), "at least 3"),
        (dict(stem="halve"), "Did you mean 'half'"),
        (dict(block="resnet"), "block must be one of plain, residual"),
        (dict(upsampling="linear"), "must be one of transpose, nearest"),
        (dict(encoder_blocks=0), "encoder_blocks must be from 1 to 12"),
        (dict(decoder_convolutions=5), "decoder_convolutions must be from 1 to 4"),
        (dict(max_filters=3), "max_filters must be 0 or at least base_filters, 4. Got: 3"),
    ],
)
def test_a_wrong_knob_is_one_clear_line(changes, said):
  with pytest.raises(InputError, match=said) as caught:
    small(**changes)
  assert "\n" not in str(caught.value)
