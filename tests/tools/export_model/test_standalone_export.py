"""Exports of a run stand alone, are checked by their own runtimes, and say what they are."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import keras
import nibabel as nib
import numpy as np
import pytest
import run_samples

from flexunet import run_calibration, run_folder
from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.network import model
from flexunet.prediction import predictor, scan_volumes
from flexunet.tools.export_model import check, folder


def trained_run(path: pathlib.Path) -> run_folder.RunFolder:
  """Returns an evaluated run of a small network of random weights, whose dataset is gone."""
  run = run_samples.evaluated_run(path)
  run.write_config(run_samples.run_config((16, 24), "fit"))
  keras.utils.set_random_seed(0)
  network = model.build_model(
      image_size=(16, 24), image_channels=1, num_classes=3, base_filters=4, base_kernels=3,
      num_layers=2, dropout_rate=0.0, normalization="none",
  )
  network.save(run.model_keras)
  return run


def wanted(run: run_folder.RunFolder, *formats: str, **others) -> folder.Wanted:
  return folder.Wanted(run.model_keras, run, formats, **{"output": "labels", **others})


@pytest.mark.slow
def test_a_saved_model_gives_labels_in_a_process_without_flexunet(tmp_path):
  run = trained_run(tmp_path / "run")
  out = tmp_path / "out"
  (entry, weights) = folder.write(wanted(run, "saved_model", "weights", licence="CC0"), out)
  assert entry["checked_on"] == "generated slices"
  assert entry["label_agreement"] > 0.999 and entry["largest_margin"] <= check.MAX_DIFFERENCE
  assert weights["path"] == "model.weights.h5"
  facts = json.loads((out / "export.json").read_text())
  assert [one["name"] for one in facts["inputs"]] == ["image", "window"]
  assert facts["geometry"]["display_axes"] == "PLS" and facts["output"] == "labels"
  assert facts["window"][0]["low"] == 1.0 and "percentile" in facts["window"][0]["rule"]
  assert [one["name"] for one in facts["classes"]] == run_samples.SCHEME.names
  for name, digest in facts["sha256"].items():
    assert files.sha256_of(out / name) == digest
  assert set(facts["sha256"]) > {"MODEL_CARD.md", "saved_model/saved_model.pb"}
  card = (out / "MODEL_CARD.md").read_text()
  assert "Not for diagnosis" in card and "network: CC0" in card
  assert "| test | 4 | 4 | 124 |" in card and "grey_matter" in card
  assert "the tolerance is below the voxel size" in card


@pytest.mark.slow
def test_litert_takes_one_slice_of_a_given_size(tmp_path):
  run = trained_run(tmp_path / "run")
  with pytest.raises(InputError, match="--image_size=HEIGHT,WIDTH"):
    folder.write(wanted(run, "litert"), tmp_path / "out")
  assert not (tmp_path / "out").exists()
  (entry,) = folder.write(
      wanted(run, "litert", size=(21, 17), output="probabilities"), tmp_path / "out"
  )
  assert entry["image_size"] == [21, 17] and entry["max_difference"] <= check.MAX_DIFFERENCE


@pytest.mark.slow
@pytest.mark.needs_extra("export")
@pytest.mark.parametrize("oriented", [True, False])
def test_the_example_gives_the_labels_of_prediction(oriented, tmp_path):
  run = trained_run(tmp_path / "run")
  out = tmp_path / "out"
  folder.write(wanted(run, "onnx"), out)
  affine = np.array([[0, 0, 1.5, 0], [-0.9, 0, 0, 0], [0, 0.8, 0, 0], [0, 0, 0, 1]], float)
  voxels = np.random.default_rng(3).integers(0, 900, (20, 31, 5)).astype(np.int16)
  scan = nib.Nifti1Image(voxels, affine if oriented else None)
  if not oriented:
    scan.header["sform_code"] = scan.header["qform_code"] = 0
  scan.header.set_slope_inter(1.3, 2.0)
  nib.save(scan, tmp_path / "scan.nii.gz")
  # Neither TensorFlow nor flexunet can be imported by the example.
  blocked = "import runpy, sys; sys.modules.update(tensorflow=None, flexunet=None, keras=None);"
  subprocess.run(
      [sys.executable, "-c", f"{blocked} runpy.run_path(sys.argv.pop(1), run_name='__main__')",
       str(out / "predict_onnx.py"), str(out), str(tmp_path / "label.nii.gz"),
       str(tmp_path / "scan.nii.gz")],
      check=True,
  )  # fmt: skip
  found = np.asarray(nib.load(tmp_path / "label.nii.gz").dataobj)
  expected = scan_volumes.predict_scan(
      predictor.Predictor(predictor.load_model(run), run.read_config()),
      run.read_config(), tmp_path / "scan.nii.gz",
  )  # fmt: skip
  assert len(np.unique(expected.label)) > 1
  assert (found != expected.label).mean() < 1e-3


def test_the_temperature_of_a_run_is_that_of_its_probabilities(tmp_path, monkeypatch):
  run = trained_run(tmp_path / "run")
  asked = wanted(run, "saved_model", output="probabilities")
  assert folder._temperature(asked) == 1.0  # It has none.
  monkeypatch.setattr(run_calibration, "temperature_of", lambda own: 1.7 if own == run else 0.0)
  assert folder._temperature(asked) == 1.7
  assert folder._temperature(wanted(run, "saved_model")) == 1.0  # It changes no label.


def test_the_example_is_short_and_needs_three_packages():
  lines = folder.EXAMPLE.read_text().splitlines()
  assert len(lines) < 60
  imported = {line.split()[1] for line in lines if line.startswith(("import ", "from "))}
  assert imported == {"json", "pathlib", "sys", "nibabel", "numpy", "onnxruntime"}


def test_another_answer_is_an_error_and_a_tie_is_not():
  path = pathlib.Path("model.onnx")
  sure = np.array([[[[0.9, 0.1], [0.3, 0.7]]]], np.float32)
  nearly = np.array([[[[0.502, 0.498], [0.3, 0.7]]]], np.float32)
  other = [np.array([[[1, 1]]], np.uint8)]
  found = check.compare(other, [nearly], path)
  assert (found.differing_pixels, found.label_agreement) == (1, 0.5)
  assert found.largest_margin == pytest.approx(0.004, abs=1e-6)
  with pytest.raises(RuntimeError, match="differs from prediction: 1 of 2 pixels"):
    check.compare(other, [sure], path)
  with pytest.raises(RuntimeError, match="differs"):
    check.compare([sure * np.nan], [sure], path)
  with pytest.raises(RuntimeError, match="shape"):
    check.compare([sure[:, :1, :1]], [sure], path)
