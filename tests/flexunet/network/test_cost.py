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
  assert sum(row.parameters for row in table) == architecture.count_parameters(shape)
  for row in table:
    layer = network.get_layer(row.name)
    assert layer.output.shape[-1] == row.channels, row.name
    if shape.image_size:
      assert layer.output.shape[1:3] == row.size, row.name
    if shape.normalization == "none":
      assert layer.count_params() == row.parameters, row.name


def test_multiply_adds_of_a_single_stage_by_hand():
  shape = small(num_layers=1, image_size=(3, 5))
  # 15 pixels: 5 x 5 taps from 2 to 4 channels, from 4 to 4, and 1 tap from 4 to 3.
  expected = 15 * (25 * 2 * 4 + 25 * 4 * 4 + 4 * 3)
  assert sum(row.multiply_adds for row in cost.rows(shape)) == expected


@pytest.mark.parametrize(
    ("layers", "kernel", "dilation"), [(1, 5, 1), (2, 3, 1), (2, 5, 2), (3, 5, 1)]
)
def test_receptive_field_is_what_moves_an_output_pixel(layers, kernel, dilation):
  size = 96
  shape = run_samples.published(
      image_size=(4, size), image_channels=1, num_classes=1, base_filters=1, base_kernels=kernel,
      num_layers=layers, dilation=dilation,
  )  # fmt: skip
  network = built(shape)
  # All weights positive and no bias: nothing in, nothing out, and each pixel that can raise a
  # feature does. The features before the head, since a sigmoid would round the rim away.
  network.set_weights([np.full_like(w, 0.1) * (w.ndim > 1) for w in network.get_weights()])
  last = "decoder0_conv1" if layers > 1 else "encoder0_conv1"
  features = keras.Model(network.input, network.get_layer(last).output)
  pulses = np.zeros((size, 4, size, 1), np.float32)
  pulses[np.arange(size), :, np.arange(size), 0] = 255.0
  moved = features.predict(pulses, verbose=0, batch_size=size)[:, 0, :, 0] > 0
  middle = slice(size // 2 - 4, size // 2 + 4)  # Every position on the pooling grid.
  reach = [np.flatnonzero(column) for column in moved.T[middle]]
  widest = max(int(columns[-1] - columns[0]) + 1 for columns in reach)
  assert widest == cost.receptive_fields(shape)[0].decoder < size


def test_receptive_fields_of_the_encoder_by_hand():
  fields = cost.receptive_fields(small(num_layers=2, base_kernels=5))
  # Stage 1: two 3 x 3 see 5 pooled pixels, so 10 pixels, and two 5 x 5 add 8.
  assert [field.encoder for field in fields] == [1 + 4 + 4, 5 * 2 + 8]
  assert fields[1].decoder == fields[1].encoder


def test_memory_grows_by_the_same_amount_with_each_image():
  shape = small()
  one, two, three = (cost.training_bytes(shape, size) for size in (1, 2, 3))
  assert three - two == two - one > 0
  assert one - (two - one) == 16 * architecture.count_parameters(shape)
  half = cost.training_bytes(shape, 2, bytes_per_number=2)
  assert half - 16 * architecture.count_parameters(shape) == two - one


@pytest.mark.parametrize("changes", VARIANTS)
def test_knobs_come_back_from_a_saved_model(changes, tmp_path):
  shape = small(**changes)
  built(shape).save(tmp_path / "model.keras")
  found = cost.config_of_keras_file(tmp_path / "model.keras")
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
