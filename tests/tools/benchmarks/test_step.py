"""The benchmark of a training step: what is compared, counted and printed; no time is asserted."""

import json

import forked
import pytest

from flexunet.core.errors import InputError
from flexunet.network.architecture import ModelConfig
from flexunet.tools.benchmarks import step

SHAPE = ModelConfig(
    image_size=(8, 12), num_classes=3, base_filters=4, base_kernels=3, num_layers=2,
    dropout_rate=0.0, normalization="batch", stem="full",
    decoder_convolutions=2,
)  # fmt: skip
FIRST = step.Contender("first", SHAPE, 2, "float32")


def test_others_differ_from_the_first_in_what_is_named():
  compare = "stem=half block=residual; image_size=16,8 deep_supervision=false; batch_size=5;"
  first, blocks, size, batch = step.contenders(FIRST, compare)
  assert first is FIRST
  assert (blocks.model.stem, blocks.model.block) == ("half", "residual")
  assert (size.model.image_size, size.batch_size) == ((16, 8), 2)
  assert (batch.batch_size, batch.model, batch.name) == (5, SHAPE, "batch_size=5")


@pytest.mark.parametrize(
    ("compare", "said"),
    [
        ("stem", "must hold knob=value"),
        ("stems=half", "Did you mean 'stem'"),
        ("stem=halve", "stem must be one of"),
        ("num_layers=two", "num_layers must be whole numbers"),
        ("deep_supervision=yes", "one of true, false"),
        ("precision=bfloat16", "precision must be one of"),
    ],
)
def test_what_cannot_be_compared_is_refused(compare, said):
  with pytest.raises(InputError, match=said):
    step.contenders(FIRST, compare)


def test_operations_of_a_batch_are_counted_by_hand():
  # Two multiply-adds' operations for each of 2 images of 96 pixels, 24 in the second stage.
  first = 96 * 9 * (1 * 4 + 4 * 4) + 24 * 9 * (4 * 8 + 8 * 8)
  decoder = 96 * 8 * 4 + 96 * 9 * (8 * 4 + 4 * 4) + 96 * 4 * 3
  assert FIRST.forward_flops == 2 * 2 * (first + decoder)
  # The joined features at full size, 8 channels of 4 bytes; 2 bytes in mixed precision.
  assert step.largest_map_bytes(FIRST) == 2 * 96 * 8 * 4
  (_, mixed) = step.contenders(FIRST, "precision=mixed_bfloat16")
  assert step.largest_map_bytes(mixed) == 2 * 96 * 8 * 2


def test_the_roof_is_the_slower_of_computing_and_moving():
  roof = step.Roof({"float32": 100.0}, 10.0, 1)
  assert roof.limit(500, 20, "float32") == (5.0, "compute")
  assert roof.limit(100, 20, "float32") == (2.0, "memory")


@pytest.mark.slow
def test_the_benchmark_prints_networks_and_layers_as_json():
  done = forked.command(
      "benchmark_step", "--image_size=8,12",
      "--num_classes=3", "--num_layers=2", "--base_filters=4", "--dropout_rate=0",
      "--batch_size=2", "--precision=float32", "--rounds=1", "--steps=1",
      "--compare=stem=half batch_size=4",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  found = json.loads(done.stdout)
  first, half = found["networks"]
  assert first["forward_flops"] == FIRST.forward_flops
  assert first["training_time_per_image_to_first"] == 1
  assert (half["name"], half["batch_size"]) == ("stem=half batch_size=4", 4)
  assert "layers" not in half
  assert half["training_megapixel_per_s"] == pytest.approx(
      half["steps_per_s"] * 4 * 96 / 1e6, abs=1e-4
  )
  layers = {layer["name"]: layer for layer in first["layers"]}
  assert sum(layer["forward_flops"] for layer in first["layers"]) == FIRST.forward_flops
  # 2 images of 96 pixels from 1 to 4 channels, 9 taps from 1 to 4 and 4 biases, 4 bytes each.
  assert layers["encoder0_conv0"]["forward_bytes"] == 4 * (2 * 96 * (1 + 4) + 9 * 4 + 4)
  assert "encoder0_norm0+encoder0_act0" in layers
  assert {layer["limited_by"] for layer in first["layers"]} <= {"compute", "memory"}
  assert set(found["machine"]["convolution_gflop_per_s"]) == {"float32"}
