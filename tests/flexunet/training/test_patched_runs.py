"""Runs that train on patches: the network that is kept, its weights, resuming, the device."""

import dataclasses

import flagged
import numpy as np
import pytest
import resume_runs

from flexunet.training import input_pipeline, resuming

PATCHES = ("--patch_size=16", "--batch_size=8")
AUGMENTED = ("--augmentation=strong",)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return flagged.write_dataset(tmp_path_factory.mktemp("data"))


def test_the_network_that_is_kept_sees_whole_slices_and_shares_its_weights(data_dir):
  run = flagged.setup(data_dir, *PATCHES)
  assert run.network.input_shape[1:3] == (16, 16) and run.kept.input_shape[1:3] == (20, 28)
  assert run.network.get_layer("head").kernel is run.kept.get_layer("head").kernel
  whole = flagged.setup(data_dir, "--patch_size=none").kept
  assert [layer.name for layer in run.kept.layers] == [layer.name for layer in whole.layers]
  # Slices of 20 x 28 are no multiple of 8.
  deep = flagged.setup(data_dir, *PATCHES, "--num_layers=4")
  padded = flagged.setup(data_dir, "--patch_size=none", "--num_layers=4")
  names = {layer.name for layer in deep.kept.layers}
  assert names == {layer.name for layer in padded.kept.layers}
  assert deep.kept.input_shape == padded.kept.input_shape
  image = np.zeros((1, *deep.kept.input_shape[1:]), np.uint8)
  assert deep.kept(image).shape == (1, *deep.kept.input_shape[1:3], 3)


@pytest.mark.parametrize("where", ["ram", pytest.param("device", marks=pytest.mark.slow)])
def test_half_of_the_patches_hold_foreground_and_shares_count_their_pixels(data_dir, where):
  run = flagged.setup(data_dir, *PATCHES, f"--cache={where}")
  assert (run.order.centered, run.order.drawn) == (4, 4)
  counts = np.zeros(3)
  for _, label in flagged.finished(run, steps=256 // 8):
    assert (label[:4] > 0).any(axis=(1, 2)).all()
    counts += np.bincount(label.ravel(), minlength=3)
  shares = input_pipeline.pixel_shares(run.config, run.data.train, run.order, run.streams)
  np.testing.assert_allclose(shares, counts / counts.sum())
  augmented = flagged.setup(data_dir, *PATCHES, *AUGMENTED, f"--cache={where}")
  changed = input_pipeline.pixel_shares(
      augmented.config, augmented.data.train, augmented.order, augmented.streams
  )
  np.testing.assert_array_equal(changed, shares)  # Counted before anything is augmented.


@pytest.mark.slow
@pytest.mark.parametrize("beside", [(), AUGMENTED])
def test_patches_of_the_device_are_those_of_the_host(data_dir, beside):
  host = flagged.finished(flagged.setup(data_dir, *PATCHES, *beside))
  for device in (("--cache=device",), ("--augment_on=device", "--cache=none")):
    found = flagged.finished(flagged.setup(data_dir, *PATCHES, *beside, *device))
    for (image, label), (wanted, truth) in zip(found, host, strict=True):
      assert image.shape == (8, 16, 16, 1)
      assert (np.abs(image.astype(int) - wanted) > 1).mean() < 1e-3
      assert (label != truth).mean() < 1e-3


@pytest.mark.slow
def test_steps_on_the_device_have_the_losses_of_the_host(data_dir):
  plain = (*PATCHES, "--dropout_rate=0")
  host, device = (
      flagged.losses(flagged.setup(data_dir, *plain, f"--cache={where}"))
      for where in ("ram", "device")
  )
  np.testing.assert_allclose(device, host, rtol=2e-3)


@pytest.mark.parametrize(
    "beside",
    [("--context_slices=1", "--image_channels=3"), ("--resize_mode=fit", "--image_size=32,48"),
     ("--resize_mode=stretch", "--image_size=24,24"), ("--crop_foreground",), ("--class_balance",),
     ("--patch_size=32,16",), ("--foreground_fraction=0",),
     ("--deep_supervision", "--num_layers=3")],
)  # fmt: skip
def test_patches_go_together_with_other_choices(data_dir, beside):
  run = flagged.setup(data_dir, *PATCHES, *beside)
  image, label = run.first_batch()
  assert image.shape == (8, *run.config.data.patch_hw, run.config.model.image_channels)
  if run.config.data.foreground_fraction:
    assert (label[:4] > 0).any(axis=(1, 2)).all()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["host", "device"])
def test_killed_within_an_epoch_and_resumed_it_ends_the_same(blob_data, tmp_path, where):
  data, beside = "--patch_size=16", {"epochs": 2, "ema_momentum": 0.9, "augment_on": where}
  code, expected, stderr = resume_runs.train(blob_data, tmp_path / "whole", data, **beside)
  assert code == 0, stderr
  killed, _, stderr = resume_runs.train(
      blob_data, tmp_path / "run", data, "--kill=terminate_step:7", **beside
  )
  assert killed == 128 + 15, stderr
  code, found, stderr = resume_runs.train(blob_data, tmp_path / "run", data, "--resume", **beside)
  assert (code, found) == (0, expected), stderr


def test_a_run_from_before_patches_resumes_on_whole_slices(data_dir):
  now = flagged.setup(data_dir).config
  kept = {name: why for name, why in now.reasons.items() if not name.startswith("patch_")}
  data = dataclasses.replace(now.data, patch_size="auto", patch_foreground_share=None)
  old = dataclasses.replace(now, data=data, reasons=kept)
  patched = dataclasses.replace(
      now, data=dataclasses.replace(now.data, patch_size="16,16", patch_foreground_share=0.5),
      reasons={**now.reasons, "patch_size": "small"},
  )  # fmt: skip
  assert resuming.merge(old, patched).data.patch_hw is None
