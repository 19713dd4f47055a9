"""Prediction on real scans: the label lies on the scan, header and all."""

import nibabel as nib
import numpy as np
import pytest
import run_samples

from flexunet.imaging import intensity
from flexunet.prediction import files, scans
from flexunet.prediction.predictor import Predictor


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.parametrize("plane", ["axial", "coronal"])
def test_a_label_of_a_real_scan_has_its_grid_and_header_geometry(realdata, tmp_path, plane):
  scan_path = min((realdata / "oasis_t1").glob("*_t1w.nii.gz"))
  window = {"kind": "percentile", "low": 0.5, "high": 99.5}
  run_config = run_samples.with_facts(
      run_samples.run_config(image_size=(256, 256)),
      slice_plan={"axes": "LAS", "plane": plane}, intensity=window, spacing_mm=[1.0, 1.0],
      pixel_sizes={name: [1.0, 1.0] for name in ("low_mm", "median_mm", "high_mm")},
  )  # fmt: skip
  network = run_samples.BrightnessNetwork()
  found = scans.find(scan_path, tmp_path, volumes_first=True)
  outcome = files.predict_all(
      found.scans, Predictor(network, run_config, batch_size=32), run_config,
      files.Outputs(folder=tmp_path, overlay=False), show_progress=False,
  )  # fmt: skip
  assert outcome.failures == [] and outcome.warnings == []
  scan = nib.load(scan_path)
  label = nib.load(found.scans[0].label_path(tmp_path))
  assert label.shape == scan.shape
  for name in ("pixdim", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"):
    assert np.array_equal(label.header[name], scan.header[name]), name
  voxels = np.squeeze(np.asanyarray(scan.dataobj))
  expected = np.digitize(intensity.IntensityWindow(**window).to_uint8(voxels), [60, 180])
  assert np.array_equal(np.squeeze(np.asarray(label.dataobj)), expected)
