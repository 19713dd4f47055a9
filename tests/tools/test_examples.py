"""The examples run as their users run them, on a small dataset, where their packages are."""

import json
import os
import pathlib
import subprocess
import sys

import build_samples
import nibabel as nib
import numpy as np
import pytest

from flexunet.records import open_records

_ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """Config -> version folder."""
  folder = tmp_path_factory.mktemp("examples")
  raw = build_samples.raw_folder("hippocampus_t1w", folder / "raw", subjects=6)
  return {
      config: pathlib.Path(
          build_samples.build(f"hippocampus_t1w/{config}", raw, folder / config).data_path
      )
      for config in ("slices", "volumes")
  }


def run_example(name: str, *arguments) -> str:
  done = subprocess.run(
      [sys.executable, str(_ROOT / "tools" / "examples" / name), *map(str, arguments)],
      capture_output=True, text=True, check=False,
      env={**os.environ, "PYTHONPATH": str(_ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  return done.stdout


def test_examples_are_short():
  for path in (_ROOT / "tools" / "examples").glob("*.py"):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 120, path.name


@pytest.mark.needs_extra("torch")
def test_a_pytorch_network_trains_and_is_scored(built, tmp_path):
  out = run_example(
      "train_torch.py", built["slices"], tmp_path / "out", "--steps=4", "--size=16", "--workers=2"
  )
  assert "step 4: loss" in out and "mean Dice of" in out
  rows = json.loads((tmp_path / "out" / "scores.json").read_text())
  for volume in open_records(built["slices"], "test").volumes():
    [row] = [row for row in rows if row["volume"] == volume.volume]
    assert row["class"] == "hippocampus" and row["reference_pixels"] == (volume.label == 1).sum()
    label = nib.load(tmp_path / "out" / f"{volume.volume}.nii.gz")
    assert label.shape == volume.label.shape
    assert row["predicted_pixels"] == (np.asanyarray(label.dataobj) == 1).sum()


@pytest.mark.needs_extra("jax")
def test_a_jax_network_trains(built):
  out = run_example("train_jax.py", built["slices"], "--steps=4", "--size=16")
  assert "step 4: loss" in out and "hippocampus: Dice" in out


@pytest.mark.slow
def test_another_keras_model_trains_on_the_pipeline(built):
  out = run_example("train_keras.py", built["slices"], "--steps=4", "--size=32")
  assert "val_accuracy" in out


def test_the_raw_folder_of_nnunet_holds_the_scans(built, tmp_path):
  out = tmp_path / "Dataset001_hippocampus"
  run_example("export_nnunet.py", built["volumes"], out)
  about = json.loads((out / "dataset.json").read_text())
  assert about["labels"] == {"background": 0, "hippocampus_1": 1, "hippocampus_2": 2}
  parts = {"Tr": ("train", "validation"), "Ts": ("test",)}
  for part, splits in parts.items():
    volumes = [one for split in splits for one in open_records(built["volumes"], split).volumes()]
    names = sorted(path.name for path in (out / f"images{part}").iterdir())
    assert names == sorted(f"{volume.volume}_0000.nii.gz" for volume in volumes)
    for volume in volumes:
      image = nib.load(out / f"images{part}" / f"{volume.volume}_0000.nii.gz")
      label = nib.load(out / f"labels{part}" / f"{volume.volume}.nii.gz")
      np.testing.assert_array_equal(image.get_fdata(), volume.image[..., 0])
      np.testing.assert_array_equal(np.asanyarray(label.dataobj), volume.label)
      np.testing.assert_allclose(image.affine, volume.affine)
  assert about["numTraining"] == len(list((out / "imagesTr").iterdir()))
  for split in json.loads((out / "splits_final.json").read_text()):
    assert not set(split["train"]) & set(split["val"]) and split["val"]


def test_slices_are_no_scans_for_nnunet(built, tmp_path):
  done = subprocess.run(
      [sys.executable, str(_ROOT / "tools" / "examples" / "export_nnunet.py"),
       str(built["slices"]), str(tmp_path / "out")],
      capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(_ROOT)},
  )  # fmt: skip
  assert done.returncode == 1 and "must be of config `volumes`" in done.stderr
