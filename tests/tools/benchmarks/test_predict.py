"""The benchmark of prediction times both ways on real files, and keeps nothing."""

import json

import forked
import nibabel as nib
import numpy as np
import pytest
import run_samples

from flexunet import run_folder


@pytest.mark.slow
def test_both_ways_are_timed_and_compared(tmp_path):
  # Heavy, and needed here only.
  from flexunet.network import model

  made = run_folder.RunFolder.create(tmp_path / "run")
  made.write_config(run_samples.run_config())
  model.build_model(
      image_size=(32, 32), image_channels=1, num_classes=3, base_filters=4, base_kernels=3,
      num_layers=2,
  ).save(made.model_keras)  # fmt: skip
  voxels = np.random.default_rng(0).integers(0, 900, (20, 26, 5)).astype(np.int16)
  for name in ("a", "b", "c"):
    nib.save(nib.Nifti1Image(voxels, np.diag([1, 1, 4, 1])), tmp_path / f"{name}.nii")
  before = sorted(tmp_path.rglob("*"))
  done = forked.command(
      "benchmark_predict", f"--run_dir={made.path}", f"--input={tmp_path}", "--rounds=2",
      "--volumes=2",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  figures = json.loads(done.stdout)
  assert figures["volumes"] == 2 and figures["peak_mib_above_network"] > 0
  assert list(figures["start_s"]) == ["imports", "network", "first_batch"]
  assert 0 < figures["share_in_network"] < 1
  speeds = figures["volumes_a_minute"]
  ratio = speeds["predict"] / speeds["slices"]
  assert figures["predict_to_slices"] == pytest.approx(ratio, rel=0.05)
  assert [len(turns) for turns in figures["seconds_of_each_turn"].values()] == [2, 2]
  assert sorted(tmp_path.rglob("*")) == before
