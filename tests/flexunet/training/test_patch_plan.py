"""Patches are planned where foreground is a small part of the slices, and hold what is needed."""

import dataclasses

import numpy as np
import pytest
import run_samples

from flexunet import config
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


# Discs of 20 and of 10 pixels: areas of 314 and 79 pixels, together 1.3 % of a slice.
SMALL = table([[314, 79]] * 9)


def test_small_structures_are_trained_on_in_patches():
  size, why = patch_plan.choose(model(), SMALL)
  # Three diameters of the larger structure are 60 pixels, in multiples of 2 ** 3.
  assert size == (64, 64)
  assert "foreground fills 1.3 % of a slice" in why and "about 20 pixels wide" in why


def test_the_deepest_stage_has_four_pixels_along_a_patch():
  assert patch_plan.choose(model(layers=5), SMALL)[0] == (64, 64)  # 4 x 16.
  size, why = patch_plan.choose(model(layers=6), SMALL)
  assert size is None and "patches of 128x128 would be hardly smaller" in why


def test_a_patch_is_no_larger_than_the_input():
  assert patch_plan.choose(model(image_size=(40, 768)), SMALL)[0] == (40, 64)


@pytest.mark.parametrize(
    ("slices", "why"),
    [
        (table([[1500, 200]] * 9), "foreground fills 5.5 % of a slice"),
        (table([[0, 0]] * 9), "it is not listed how much foreground"),
        (dataclasses.replace(SMALL, pixels=None), "it is not listed how much foreground"),
    ],
)
def test_else_whole_slices_are_trained_on(slices, why):
  size, reason = patch_plan.choose(model(), slices)
  assert size is None and reason.startswith("whole slices") and why in reason


def test_slices_that_are_scaled_down_have_smaller_structures():
  large = table([[4 * 314]] * 9, height=320, width=384)
  assert patch_plan.choose(model(), large)[0] == (64, 64)
  assert "about 20 pixels wide" in patch_plan.choose(model(), large)[1]


def test_a_step_has_half_of_the_pixels_of_whole_slices():
  data = config.DataConfig(patch_size="64")
  share = data.share_of_slice(model())
  assert share == 64 * 64 / (160 * 192)
  # Half of 8 slices are 122,880 pixels, 30 patches of 4,096: a multiple of 4.
  assert patch_plan.batch_size(8, share)[0] == 28
  assert "47 % of the pixels of 8 slices" in patch_plan.batch_size(8, share)[1]
  assert patch_plan.batch_size(1, 0.9)[0] == 8


def test_given_values_stay_and_open_ones_are_filled_in_with_a_reason():
  given = config.DataConfig(patch_size="48,64", patch_foreground_share=0.75)
  done, reasons = patch_plan.complete(model(), given, SMALL)
  assert done == given and set(reasons.values()) == {"given"}
  done, reasons = patch_plan.complete(model(), config.DataConfig(), SMALL)
  assert (done.patch_hw, done.patch_foreground_share) == ((64, 64), 0.5)
  assert "foreground fills" in reasons["patch_size"]
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
