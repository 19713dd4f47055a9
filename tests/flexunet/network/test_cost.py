"""Layers, receptive field and memory by arithmetic, against the built network."""

from __future__ import annotations

import json
import zipfile

import keras
import numpy as np
import pytest
import run_samples

from flexunet.core.errors import InputError
from flexunet.network import architecture, cost, model

VARIANTS = [
    {},
    {"num_layers": 1, "num_classes": 1},
    {"normalization": "batch", "activation": "mish", "dilation": 2},
    {"normalization": "instance", "input_normalization": "per_image", "image_size": None},
    {"normalization": "group", "base_filters": 6, "dropout_rate": 0.0},
    {"normalization": "layer", "deep_supervision": True, "kernel_initializer": "glorot_uniform"},
    {"stem": "half", "image_size": (24, 44), "deep_supervision": True},
    {"stem": "half_refined", "normalization": "batch", "num_layers": 2},
    {"stem": "half", "num_layers": 1},
    {"block": "residual", "encoder_blocks": 2, "normalization": "batch"},
    {"block": "residual", "encoder_blocks": 4, "decoder_convolutions": 1, "max_filters": 6},
    {"encoder_blocks": 3, "decoder_convolutions": 3, "upsampling": "nearest"},
    {"upsampling": "nearest", "max_filters": 4, "stem": "half_refined"},
]


def small(**changes) -> architecture.ModelConfig:
  defaults = dict(image_size=(24, 40), image_channels=2, num_classes=3, base_filters=4,
                  base_kernels=5, num_layers=3)  # fmt: skip
  return run_samples.published(**{**defaults, **changes})


def built(shape: architecture.ModelConfig):
  return model.build_model(**{name: getattr(shape, name) for name in shape.__dataclass_fields__})


@pytest.mark.parametrize("changes", VARIANTS)
def test_rows_agree_with_the_built_layers(changes):
  shape = small(**changes)
  network = built(shape)
  table = cost.rows(shape)
  assert sum(row.parameters for row in table) == cost.count_parameters(shape)
  for row in table:
    layer = network.get_layer(row.name)
    assert layer.output.shape[-1] == row.channels, row.name
    if shape.image_size:
      assert layer.output.shape[1:3] == row.size, row.name
      assert row.kept >= row.size[0] * row.size[1] * row.channels
    if shape.normalization == "none":
      assert layer.count_params() == row.parameters, row.name


def test_multiply_adds_of_knobs_by_hand():
  one = {"num_layers": 1, "image_size": (4, 6), "image_channels": 1}
  # 2 x 3 pixels: 5 x 5 taps from 4 to 4 channels, twice, and 4 channels to 3 classes of 4 pixels.
  half = 6 * (25 * 4 * 4 + 25 * 4 * 4 + 4 * 12)
  assert sum(row.multiply_adds for row in cost.rows(small(**one, stem="half"))) == half
  # To 4 x 2 channels instead of the classes; 24 pixels: 3 x 3 taps from 2 + 1 to 2, and 2 to 3.
  refined = half - 6 * 4 * 12 + 6 * 4 * 8 + 24 * (9 * 3 * 2 + 2 * 3)
  assert sum(row.multiply_adds for row in cost.rows(small(**one, stem="half_refined"))) == refined
  # 24 pixels: 5 x 5 taps from 1 to 4 and from 4 to 4, 1 tap from 1 to 4, and 4 to 3 classes.
  residual = 24 * (25 * 4 + 25 * 16 + 4 + 4 * 3)
  assert sum(row.multiply_adds for row in cost.rows(small(**one, block="residual"))) == residual
  rows = {row.name: row for row in cost.rows(small(upsampling="nearest"))}
  assert (rows["up0_conv"].multiply_adds, rows["up0"].multiply_adds) == (12 * 20 * 8 * 4, 0)


def test_multiply_adds_of_a_single_stage_by_hand():
  shape = small(num_layers=1, image_size=(3, 5))
  # 15 pixels: 5 x 5 taps from 2 to 4 channels, from 4 to 4, and 1 tap from 4 to 3.
  expected = 15 * (25 * 2 * 4 + 25 * 4 * 4 + 4 * 3)
  assert sum(row.multiply_adds for row in cost.rows(shape)) == expected


@pytest.mark.parametrize(
    ("layers", "kernel", "dilation", "knobs"),
    [
        (1, 5, 1, {}), (2, 3, 1, {}), (2, 5, 2, {}), (3, 5, 1, {}),
        (1, 3, 1, {"stem": "half"}),
        (2, 3, 1, {"stem": "half"}),
        (1, 3, 1, {"stem": "half_refined"}),
        (2, 5, 1, {"stem": "half_refined"}),
        (3, 3, 1, {"block": "residual", "encoder_blocks": 3}),
        (3, 3, 1, {"decoder_convolutions": 1, "upsampling": "nearest"}),
        (3, 3, 1, {"decoder_convolutions": 3}),
        (2, 3, 1, {"stem": "half_refined", "upsampling": "nearest"}),
    ],
)  # fmt: skip
def test_receptive_field_is_what_moves_an_output_pixel(layers, kernel, dilation, knobs):
  size = 96
  shape = run_samples.published(
      image_size=(8, size), image_channels=1, num_classes=1, base_filters=1, base_kernels=kernel,
      num_layers=layers, dilation=dilation, **knobs,
  )  # fmt: skip
  network = built(shape)
  # All weights positive and no bias: nothing in, nothing out, and each pixel that can raise a
  # feature does. The logits, since a sigmoid would round the rim away.
  network.set_weights([np.full_like(w, 0.1) * (w.ndim > 1) for w in network.get_weights()])
  features = keras.Model(network.input, network.get_layer("head").output)
  pulses = np.zeros((size, 8, size, 1), np.float32)
  pulses[np.arange(size), :, np.arange(size), 0] = 255.0
  moved = features.predict(pulses, verbose=0, batch_size=size)[:, 0, :, 0] > 0
  middle = slice(size // 2 - 4, size // 2 + 4)  # Every position on the pooling grid.
  reach = [np.flatnonzero(column) for column in moved.T[middle]]
  widest = max(int(columns[-1] - columns[0]) + 1 for columns in reach)
  assert widest == cost.output_field(shape) < size
  if shape.stem != "half_refined":
    assert widest == cost.receptive_fields(shape)[0].decoder


def test_receptive_fields_of_the_encoder_by_hand():
  fields = cost.receptive_fields(small(num_layers=2, base_kernels=5))
  # Stage 1: two 3 x 3 see 5 pooled pixels, so 10 pixels, and two 5 x 5 add 8.
  assert [field.encoder for field in fields] == [1 + 4 + 4, 5 * 2 + 8]
  assert fields[1].decoder == fields[1].encoder


def test_memory_grows_by_the_same_amount_with_each_image():
  shape = small()
  one, two, three = (cost.training_bytes(shape, size) for size in (1, 2, 3))
  assert three - two == two - one > 0
  assert one - (two - one) == 16 * cost.count_parameters(shape)
  half = cost.training_bytes(shape, 2, bytes_per_number=2)
  assert half - 16 * cost.count_parameters(shape) == two - one


@pytest.mark.parametrize("changes", VARIANTS)
def test_knobs_come_back_from_a_saved_model(changes, tmp_path):
  shape = small(**changes)
  built(shape).save(tmp_path / "model.keras")
  found = cost.config_of_keras_file(tmp_path / "model.keras")
  if shape.encoder_blocks > shape.num_layers:  # No stage has so many.
    shape = small(**{**changes, "encoder_blocks": shape.num_layers})
    changes = {**changes, "encoder_blocks": shape.num_layers}
  if shape.num_layers == 1:  # Without a second stage there is no dropout to read.
    found = small(**{**changes, "dropout_rate": found.dropout_rate or 0.05})
  assert found == shape


def test_files_that_are_no_flexunet_are_refused(tmp_path):
  with pytest.raises(InputError, match="does not exist"):
    cost.config_of_keras_file(tmp_path / "none.keras")
  (tmp_path / "text.keras").write_text("no archive")
  with pytest.raises(InputError, match="saved as .keras"):
    cost.config_of_keras_file(tmp_path / "text.keras")
  other = {"config": {"layers": [{"config": {"name": "dense"}, "class_name": "Dense"}]}}
  with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
    archive.writestr("config.json", json.dumps(other))
  with pytest.raises(InputError, match="must hold a FlexUNet"):
    cost.config_of_keras_file(tmp_path / "other.keras")
