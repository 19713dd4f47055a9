"""Predictions of scans of every format: which files are found, and what is written for each."""

import nibabel as nib
import numpy as np
import pytest
import run_samples
from dicom_samples import dataset, save, write_series
from PIL import Image

from flexunet.imaging import scan_files
from flexunet.prediction import files, scans
from flexunet.prediction.predictor import Predictor

GREYS = np.array([10, 120, 240], np.int16)
LABEL = np.random.default_rng(5).integers(0, 3, (7, 9, 5)).astype(np.uint8)
VOXELS = GREYS[LABEL]
AFFINE = np.diag([-0.7, -1.1, 2.5, 1.0])


def predict(path, output_dir, output_format="same", series=""):
  run_config = run_samples.with_facts(
      run_samples.run_config(), intensity={"kind": "none", "low": 0.0, "high": 255.0},
      spacing_mm=None, slice_plan={"axes": "LPS", "plane": "axial"},
  )  # fmt: skip
  predictor = Predictor(run_samples.BrightnessNetwork(), run_config)
  return files.predict_path(
      path, predictor, run_config, files.Outputs(folder=output_dir, overlay=False),
      show_progress=False, output_format=output_format, series=series,
  )  # fmt: skip


def names_below(folder):
  return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def write_itk(path):
  import SimpleITK

  image = SimpleITK.GetImageFromArray(np.ascontiguousarray(VOXELS.T))
  image.SetSpacing((0.7, 1.1, 2.5))
  SimpleITK.WriteImage(image, str(path))


@pytest.mark.parametrize(("name", "label"), [("a.mgz", "a_label.mgz"), ("B.MGH", "B_label.MGH")])
def test_a_freesurfer_scan_gives_one_like_it_or_nifti(tmp_path, name, label):
  nib.MGHImage(VOXELS, AFFINE).to_filename(tmp_path / name.lower())
  (tmp_path / name.lower()).rename(tmp_path / name)
  assert predict(tmp_path, tmp_path / "out").predicted == 1
  assert names_below(tmp_path / "out") == [label]
  np.testing.assert_array_equal(scan_files.read(tmp_path / "out" / label).voxels, LABEL)
  predict(tmp_path, tmp_path / "nifti", "nifti")
  assert names_below(tmp_path / "nifti") == [f"{label.split('.')[0]}.nii.gz"]


def test_a_tiff_of_several_pages_is_a_volume_and_one_of_a_single_page_an_image(tmp_path):
  pages = [Image.fromarray(VOXELS[:, :, k].T.astype(np.uint8)) for k in range(5)]
  pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
  pages[0].save(tmp_path / "single.tif")
  listed = scans.find(tmp_path, tmp_path / "out", volumes_first=False).scans
  assert [(scan.stem, scan.kind) for scan in listed] == [("single", "image"), ("stack", "volume")]
  predict(tmp_path / "stack.tif", tmp_path / "out")
  found = scan_files.read(tmp_path / "out" / "stack_label.tif")
  np.testing.assert_array_equal(found.voxels, LABEL)
  predict(tmp_path / "single.tif", tmp_path / "out")
  found = np.asarray(Image.open(tmp_path / "out" / "single_label.png"))
  np.testing.assert_array_equal(found, LABEL[:, :, 0].T)


@pytest.mark.needs_extra("itk")
@pytest.mark.parametrize(
    ("name", "label"), [("a.mha", "a_label.mha"), ("a.mhd", "a_label.mha"),
                        ("a.nrrd", "a_label.nrrd"), ("a.nhdr", "a_label.nrrd")],
)  # fmt: skip
def test_metaimage_and_nrrd_give_one_file_like_them(tmp_path, name, label):
  write_itk(tmp_path / name)
  outcome = predict(tmp_path, tmp_path / "out")
  assert (outcome.predicted, outcome.failures, outcome.not_read) == (1, [], {})
  assert names_below(tmp_path / "out") == [label]
  np.testing.assert_array_equal(scan_files.read(tmp_path / "out" / label).voxels, LABEL)


@pytest.mark.needs_extra("dicom")
def test_folders_of_series_give_segmentations_named_after_them(tmp_path):
  raw = tmp_path / "raw"
  write_series(raw / "a", VOXELS)
  write_series(raw / "deep" / "b", VOXELS, names="IM{:04d}")
  save(dataset("1.2.840.10008.5.1.4.1.1.88.11"), raw / "a" / "report.dcm")
  outcome = predict(raw, tmp_path / "out")
  assert (outcome.predicted, outcome.failures) == (2, [])
  assert names_below(tmp_path / "out") == ["a_label.dcm", "deep/b_label.dcm"]
  scan = scan_files.read(raw / "a" / "IM0001.dcm")
  label, names = scan_files.read_label(tmp_path / "out" / "a_label.dcm", scan)
  np.testing.assert_array_equal(label.voxels, LABEL)
  assert list(names) == [1, 2]
  found = scans.find(raw, tmp_path / "out", volumes_first=True)
  assert found.dicom_skipped == {"a DICOM report": 1}


@pytest.mark.needs_extra("dicom")
def test_the_folder_of_a_series_or_one_of_its_files_may_be_named(tmp_path):
  paths = write_series(tmp_path / "case", VOXELS)
  predict(tmp_path / "case", tmp_path / "out", "nifti")
  predict(paths[2], tmp_path / "out", "nifti")
  assert names_below(tmp_path / "out") == ["IM0003_label.nii.gz", "case_label.nii.gz"]
  for name in ("IM0003_label.nii.gz", "case_label.nii.gz"):
    found = nib.load(tmp_path / "out" / name)
    np.testing.assert_array_equal(np.asanyarray(found.dataobj), LABEL)
    np.testing.assert_allclose(found.affine, scan_files.read_header(paths[0]).affine)


@pytest.mark.needs_extra("dicom")
def test_several_series_of_a_folder_are_predicted_each_or_the_one_chosen(tmp_path):
  write_series(tmp_path / "case", VOXELS, number=3)
  write_series(tmp_path / "case", VOXELS, number=8, series="1.2.3.8", names="S8{}.dcm")
  predict(tmp_path / "case", tmp_path / "all")
  assert names_below(tmp_path / "all") == ["case_series3_label.dcm", "case_series8_label.dcm"]
  predict(tmp_path / "case", tmp_path / "one", series="8")
  assert names_below(tmp_path / "one") == ["case_label.dcm"]


@pytest.mark.needs_extra("dicom")
def test_a_bad_series_is_one_line_and_takes_no_other_with_it(tmp_path):
  write_series(tmp_path / "good", VOXELS)
  for path in write_series(tmp_path / "gap", VOXELS)[2:3]:
    path.unlink()
  write_series(tmp_path / "broken", VOXELS)[1].write_bytes(b"nothing")
  outcome = predict(tmp_path, tmp_path / "out")
  assert outcome.predicted == 1
  broken, gap = outcome.failures
  assert "broken/IM0002.dcm: states no kind of DICOM file" in broken
  assert "slices are missing: 1, between IM0002.dcm and IM0004.dcm" in gap


def test_a_segmentation_of_a_nifti_is_refused(tmp_path):
  nib.Nifti1Image(VOXELS, AFFINE).to_filename(tmp_path / "a.nii.gz")
  with pytest.raises(ValueError, match=r"the scan is \.nii\.gz"):
    predict(tmp_path, tmp_path / "out", "dicom_seg")
