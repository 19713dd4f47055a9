"""Patches are planned where foreground is a small part of the slices, and hold what is needed."""

import dataclasses

import numpy as np
import pytest
import run_samples

from flexunet import config
from flexunet.core.errors import InputError
from flexunet.pipelines.record_table import RecordTable
from flexunet.training import patch_plan


def table(foreground, height=160, width=192, empty=10):
  """Returns slices with so many pixels of each class [N, classes without background]."""
  foreground = np.concatenate([foreground, np.zeros((empty, len(foreground[0])))])
  count, area = len(foreground), height * width
  pixels = np.concatenate([area - foreground.sum(axis=1, keepdims=True), foreground], axis=1)
  unknown = np.full(count, -1, np.int32)
  names = np.full(count, "a", str)
  return RecordTable(
      files=["x"], shard=np.zeros(count, np.int32), offset=np.arange(count), subject=names,
      volume=names, slice_index=unknown, fold=unknown,
      height=np.full(count, height, np.int32), width=np.full(count, width, np.int32),
      pixels=pixels.astype(np.int64),
  )  # fmt: skip


def model(layers=4, image_size=(160, 192)):
  return run_samples.published(num_layers=layers, image_size=image_size, dropout_rate=0.0)


SMALL = table([[314, 79]] * 9)


def test_patches_have_64_pixels_along_an_edge_or_a_quarter_of_the_input():
  assert patch_plan.choose(model(), SMALL)[0] == (64, 64)
  assert patch_plan.choose(model(image_size=(512, 320)), SMALL)[0] == (128, 128)


def test_the_deepest_stage_has_two_pixels_along_a_patch():
  assert patch_plan.choose(model(layers=6), SMALL)[0] == (64, 64)  # 2 x 32.
  assert patch_plan.choose(model(layers=7), SMALL)[0] is None  # 128 x 128 of 160 x 192.
  half = dataclasses.replace(model(layers=6, image_size=(512, 512)), stem="half")
  assert patch_plan.choose(half, SMALL)[0] == (128, 128)  # 2 x 64.


def test_slices_that_are_standardized_by_their_own_pixels_are_trained_on_whole():
  own = dataclasses.replace(model(), input_normalization="per_image")
  size, why = patch_plan.choose(own, SMALL)
  assert size is None and "a patch has others" in why
  with pytest.raises(InputError, match="--patch_size needs --input_normalization=unit"):
    patch_plan.complete(own, config.DataConfig(patch_size="64,64"), SMALL)


def test_a_patch_is_no_larger_than_the_input():
  assert patch_plan.choose(model(image_size=(40, 256)), SMALL)[0] == (40, 64)


@pytest.mark.parametrize(
    ("slices", "image_size", "why"),
    [
        (table([[0, 0]] * 9), (160, 192), "it is not listed how much foreground"),
        (dataclasses.replace(SMALL, pixels=None), (160, 192), "it is not listed how much"),
        (SMALL, (80, 96), "patches of 64x64 would be hardly smaller"),  # 4,096 of 7,680 pixels.
    ],
)
def test_else_whole_slices_are_trained_on(slices, image_size, why):
  size, reason = patch_plan.choose(model(image_size=image_size), slices)
  assert size is None and reason.startswith("whole slices") and why in reason


@pytest.mark.parametrize(
    ("patch_hw", "count"), [((64, 64), 32), ((96, 96), 12), ((48, 48), 56), ((256, 256), 8)]
)
def test_a_step_has_as_many_pixels_as_32_patches_of_64x64(patch_hw, count):
  # 131,072 pixels: 14 patches of 96x96, 56 of 48x48, 2 of 256x256; multiples of 4, at least 8.
  assert patch_plan.batch_size(patch_hw)[0] == count


def test_given_values_stay_and_open_ones_are_filled_in_with_a_reason():
  given = config.DataConfig(patch_size="48,64", patch_foreground_share=0.75)
  done, reasons = patch_plan.complete(model(), given, SMALL)
  assert done == given and set(reasons.values()) == {"given"}
  done, reasons = patch_plan.complete(model(), config.DataConfig(), SMALL)
  assert (done.patch_hw, done.patch_foreground_share) == ((64, 64), 0.5)
  assert "more slices" in reasons["patch_size"]
  none, reasons = patch_plan.complete(model(), config.DataConfig(patch_size="none"), SMALL)
  assert (none.patch_hw, none.patch_foreground_share) == (None, 0.0)
  assert reasons["patch_size"] == "given"


def test_the_size_of_patches_reads_as_it_was_given():
  assert config.DataConfig(patch_size="64").patch_size == "64,64"
  assert config.DataConfig(patch_size="64,96").patch_hw == (64, 96)
  assert config.DataConfig().patch_hw is config.DataConfig(patch_size="none").patch_hw is None


def test_a_validation_has_about_as_many_pixels_a_batch_as_a_step():
  run = run_samples.run_config(image_size=(64, 64))
  assert run.held_out_batch_size == run.training.batch_size == 4
  patched = dataclasses.replace(
      run, data=dataclasses.replace(run.data, patch_size="32,32"),
      training=dataclasses.replace(run.training, batch_size=30),
  )  # fmt: skip
  assert patched.held_out_batch_size == 8  # A quarter of 30, rounded.
  assert patched.data.step_model(patched.model).image_size == (32, 32)
