"""Exported files answer as the network does, and a wrong one is found out."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from flexunet.core.errors import InputError
from flexunet.network import export, model


def small(**changes) -> keras.Model:
  defaults = dict(image_size=(12, 20), image_channels=1, num_classes=3, base_filters=4,
                  base_kernels=3, num_layers=2)  # fmt: skip
  return model.build_model(**{**defaults, **changes})


KNOBS = [
    {},
    {"stem": "half", "normalization": "batch", "upsampling": "nearest"},
    {"stem": "half_refined", "block": "residual", "encoder_blocks": 2, "max_filters": 4},
]


@pytest.mark.parametrize("knobs", KNOBS)
def test_a_saved_model_and_weights_answer_equally(tmp_path, knobs):
  done = export.export(small(**knobs), ["saved_model", "weights"], tmp_path)
  assert [entry.path.name for entry in done] == ["saved_model", "model.weights.h5"]
  assert all(entry.path.exists() for entry in done)
  assert all(entry.max_difference < 1e-5 for entry in done)
  assert all(entry.label_agreement == 1 for entry in done)


def test_a_saved_model_holds_every_weight_once(tmp_path):
  network = small(base_filters=16, base_kernels=7)
  export.export(network, ["saved_model"], tmp_path)
  (data,) = (tmp_path / "saved_model" / "variables").glob("variables.data*")
  numbers = 4 * network.count_params()
  assert numbers < data.stat().st_size < 1.2 * numbers


@pytest.mark.slow
def test_a_saved_model_of_any_size_takes_sizes_that_need_padding(tmp_path):
  import tensorflow as tf

  network = small(image_size=None, num_layers=3)
  export.export(network, ["saved_model"], tmp_path)
  loaded = tf.saved_model.load(str(tmp_path / "saved_model"))
  for size in ((5, 7), (16, 24)):
    picture = np.random.default_rng(0).uniform(0, 255, (1, *size, 1)).astype("float32")
    np.testing.assert_allclose(loaded.serve(picture), network(picture), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("knobs", KNOBS)
def test_litert_answers_equally_at_a_size_that_needs_padding(tmp_path, knobs):
  network = small(**{"image_size": None, "num_layers": 3, "normalization": "batch", **knobs})
  (done,) = export.export(network, ["litert"], tmp_path, image_size=(10, 15))
  assert done.max_difference < 1e-4 and done.path.stat().st_size > 0


@pytest.mark.needs_extra("export")
@pytest.mark.slow
@pytest.mark.parametrize("knobs", KNOBS)
@pytest.mark.parametrize("size", [(12, 20), None])
def test_onnx_answers_equally(size, tmp_path, knobs):
  network = small(image_size=size, num_layers=3, **knobs)
  (done,) = export.export(network, ["onnx"], tmp_path)
  assert done.max_difference < 1e-4


def test_the_twin_is_float32_with_one_output_and_the_same_weights():
  before = keras.config.dtype_policy()
  keras.config.set_dtype_policy("mixed_bfloat16")
  try:
    network = small(deep_supervision=True, num_layers=4, normalization="batch")
    twin = export.float32_twin(network, (16, 24))
    assert keras.config.dtype_policy().name == "mixed_bfloat16"
  finally:
    keras.config.set_dtype_policy(before)
  assert twin.output_shape == (None, 16, 24, 3)
  assert {layer.compute_dtype for layer in twin.layers} == {"float32"}
  for layer in twin.layers:
    for mine, its in zip(
        layer.get_weights(), network.get_layer(layer.name).get_weights(), strict=True
    ):
      np.testing.assert_array_equal(mine, its)


@pytest.mark.parametrize("fault", [0.01, float("nan")])
def test_an_export_that_differs_is_an_error(fault, tmp_path, monkeypatch):
  def wrong(twin, folder):
    return folder / "wrong", lambda image: twin(image).numpy() + fault

  monkeypatch.setitem(export.FORMATS, "wrong", wrong)
  with pytest.raises(RuntimeError, match="differs from the Keras network"):
    export.export(small(), ["wrong"], tmp_path)


def test_litert_needs_a_fixed_size(tmp_path):
  with pytest.raises(InputError, match="--image_size=HEIGHT,WIDTH"):
    export.export(small(image_size=None), ["litert"], tmp_path)


def test_a_network_of_another_kind_is_refused(tmp_path):
  other = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(2, 3)])
  with pytest.raises(InputError, match="must hold a FlexUNet"):
    export.export(other, ["weights"], tmp_path)


def test_a_missing_package_names_the_extra(monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "tf2onnx", None)
  monkeypatch.setitem(__import__("sys").modules, "onnx", type(keras)("onnx"))
  with pytest.raises(InputError, match=r"tf2onnx.*flexunet\[export\]"):
    export.check_format("onnx")
