"""Margins and volume intervals beside a label, and when they are refused."""

import json

import nibabel as nib
import numpy as np
import pytest
import run_samples
from PIL import Image

from flexunet.core.errors import InputError
from flexunet.evaluation.conformal import Margins, Scores, VolumeRatios
from flexunet.prediction import error_bounds, files, scans
from flexunet.prediction.outputs import Outputs
from flexunet.prediction.predictor import Predictor
from flexunet.run_calibration import RunCalibration

NAMES = run_samples.SCHEME.names
NO_WINDOW = {"kind": "none", "low": 0.0, "high": 255.0}
AFFINE = np.diag([2.0, 1.0, 0.5, 1.0])


def learnt(unit="mm", geometry="3d", ratios=True) -> RunCalibration:
  five = tuple("abcde")
  logs = np.log([0.8, 1.0, 1.1, 1.0, 1.2])
  own = Scores(five, np.array([0.0, 0.5, 1.0, 1.5, 2.0]))
  few = Scores(("a",), np.array([1.0]))
  return RunCalibration(
      learnt_on={}, temperature=None, clean_up=None,
      margins=Margins(unit, geometry, 1.0, {NAMES[1]: own, NAMES[2]: few}),
      volume_ratios=VolumeRatios({NAMES[1]: Scores(five, np.stack([logs, logs], axis=1))})
      if ratios else None,
  )  # fmt: skip


def predict(path, out, bounds, **facts):
  settings = run_samples.with_facts(
      run_samples.run_config(), **{"intensity": NO_WINDOW, "spacing_mm": None, **facts}
  )
  found = scans.find(path, out, volumes_first=True)
  return files.predict_all(
      found.scans, Predictor(run_samples.BrightnessNetwork(), settings), settings,
      Outputs(folder=out, overlay=False, bounds=bounds), show_progress=False,
  )  # fmt: skip


def save_scan(path, affine=AFFINE):
  voxels = np.full((9, 11, 13), 10, np.int16)
  voxels[4, 5, 6] = 120
  nib.save(nib.Nifti1Image(voxels, affine), path)


def distances(spacing):
  places = np.moveaxis(np.indices((9, 11, 13)), 0, -1) - (4, 5, 6)
  return np.linalg.norm(places * spacing, axis=-1)


def test_a_structure_is_widened_by_its_margin_in_mm_on_the_grid_of_the_scan(tmp_path):
  save_scan(tmp_path / "scan.nii.gz")
  bounds, lines = error_bounds.bounds_of(learnt(), NAMES, 0.8, None)
  # 0.8 * 6 = 4.8: the fifth of five.
  assert bounds.margins == {NAMES[1]: 2.0}
  assert lines == [f"no margin around {NAMES[2]}: it takes 4 subjects, and calibration had 1."]
  outcome = predict(tmp_path / "scan.nii.gz", tmp_path / "out", bounds)
  assert not outcome.failures
  written = nib.load(tmp_path / "out" / f"scan_margin_{NAMES[1]}.nii.gz")
  np.testing.assert_allclose(written.affine, AFFINE)
  expected = distances((2.0, 1.0, 0.5)) <= 2.0
  assert np.array_equal(np.asarray(written.dataobj), expected)
  stored = json.loads((tmp_path / "out" / "scan_bounds.json").read_text())
  assert stored["margin"] == {
      "level": 0.8, "unit": "mm", "within_slices": False, "contained": 1.0,
      "classes": {NAMES[1]: 2.0},
  }  # fmt: skip
  assert "volume" not in stored


def test_within_slices_a_margin_stays_in_its_slice(tmp_path):
  save_scan(tmp_path / "scan.nii")
  bounds, _ = error_bounds.bounds_of(learnt("px", "2d"), NAMES, 0.8, None)
  predict(tmp_path / "scan.nii", tmp_path / "out", bounds)
  found = np.asarray(nib.load(tmp_path / "out" / f"scan_margin_{NAMES[1]}.nii").dataobj)
  # Axial slices: the third axis is not widened.
  expected = (distances((1.0, 1.0, 1.0)) <= 2.0) & (np.indices((9, 11, 13))[2] == 6)
  assert np.array_equal(found, expected)


def test_the_interval_of_a_volume_is_in_ml(tmp_path):
  save_scan(tmp_path / "scan.nii.gz")
  bounds, lines = error_bounds.bounds_of(learnt(), NAMES, None, 0.8)
  assert lines == []
  predict(tmp_path / "scan.nii.gz", tmp_path / "out", bounds)
  stored = json.loads((tmp_path / "out" / "scan_bounds.json").read_text())["volume"]
  # One voxel of 2 x 1 x 0.5 mm; the largest deviation of five is the factor 1 / 0.8.
  own = stored["classes"][NAMES[1]]
  assert stored["unit"] == "ml" and own["predicted"] == pytest.approx(0.001)
  assert (own["low"], own["high"]) == pytest.approx((0.0008, 0.00125))
  assert stored["classes"][NAMES[2]] == {"predicted": 0.0, "low": None, "high": None}


def test_margins_in_mm_are_refused_where_the_spacing_is_unknown(tmp_path):
  save_scan(tmp_path / "a.nii")
  data = bytearray((tmp_path / "a.nii").read_bytes())
  data[80:92], data[252:256] = bytes(12), bytes(4)  # pixdim[1:4], qform_code and sform_code.
  (tmp_path / "a.nii").write_bytes(data)
  bounds, _ = error_bounds.bounds_of(learnt(), NAMES, 0.8, None)
  outcome = predict(tmp_path / "a.nii", tmp_path / "out", bounds)
  assert "its header states none. Leave out --margin" in outcome.failures[0]
  assert not (tmp_path / "out" / "a_label.nii").exists()


def test_of_images_margins_are_pixels(tmp_path):
  pixels = np.full((9, 9), 10, np.uint8)
  pixels[4, 4] = 120
  Image.fromarray(pixels).save(tmp_path / "a.png")
  bounds, _ = error_bounds.bounds_of(learnt("px", "2d"), NAMES, 0.8, None)
  predict(tmp_path / "a.png", tmp_path / "out", bounds, slice_plan=None, intensity=None)
  found = np.asarray(Image.open(tmp_path / "out" / f"a_margin_{NAMES[1]}.png"))
  rows, columns = np.indices((9, 9)) - 4
  assert np.array_equal(found, np.where(rows**2 + columns**2 <= 4, 255, 0))
  mm, _ = error_bounds.bounds_of(learnt(), NAMES, 0.8, None)
  outcome = predict(tmp_path / "a.png", tmp_path / "b", mm, slice_plan=None, intensity=None)
  assert "Leave out --margin for images" in outcome.failures[0]


def test_what_is_asked_of_a_run_that_cannot_say_it_is_refused():
  assert error_bounds.bounds_of(None, NAMES, None, None) == (None, [])
  with pytest.raises(InputError, match="need a calibrated run. Run flexunet calibrate"):
    error_bounds.bounds_of(None, NAMES, 0.9, None)
  with pytest.raises(InputError, match="it takes 9 subjects, and calibration had 5"):
    error_bounds.bounds_of(learnt(), NAMES, 0.9, None)
  with pytest.raises(InputError, match="--margin must be a share of subjects"):
    error_bounds.bounds_of(learnt(), NAMES, 90.0, None)
  with pytest.raises(InputError, match="needs a run that was trained on volumes"):
    error_bounds.bounds_of(learnt(ratios=False), NAMES, None, 0.5)
