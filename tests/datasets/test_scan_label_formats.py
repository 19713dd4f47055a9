"""Folders of scans in other formats than NIfTI: equal records, whatever the format."""

import nibabel as nib
import numpy as np
import pytest
from dicom_samples import dataset, save, write_series

from flexunet.core.errors import InputError
from flexunet.datasets import catalog
from flexunet.datasets.builder.raw_folder import Notes
from flexunet.imaging import scan_files

SHAPE = (8, 6, 5)
NAMES = ["background", "tumour", "edema"]


def numbers(case):
  return np.random.default_rng(case).integers(0, 900, SHAPE).astype(np.int16)


def label_of(case):
  return (numbers(case) // 301).astype(np.uint8)


def slices_of(root, tmp_path, **options):
  """Returns {case: (images, labels)}, and the names of the classes."""
  builder = catalog.builder("scan_label", tmp_path / "out", options=options)
  findings = builder.inspect_source(root)
  builder.set_source("", np.dtype(np.int16), builder.decide(findings))
  cut = {}
  for case in findings.cases:
    slices = list(builder.slices_of(case, Notes()))
    cut[case.key] = [np.stack([getattr(one, k) for one in slices]) for k in ("image", "label")]
  return cut, builder.label_scheme().names


def write_dicom(root, labels=".dcm"):
  for case in range(4):
    [path, *_] = write_series(root / "images" / f"case{case}", numbers(case))
    target = root / "labels" / f"case{case}{labels}"
    scan_files.write_label_like(path, label_of(case), target, NAMES)
  return root


def write_like(root, source, ending):
  """Writes the scans of a folder of DICOM as another format, its labels as NIfTI."""
  for folder in sorted((source / "images").iterdir()):
    scan = scan_files.read(folder / "IM0001.dcm")
    path = root / "images" / f"{folder.name}{ending}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if ending == ".mgz":
      nib.MGHImage(scan.voxels, scan.affine).to_filename(path)
    elif ending == ".nii.gz":
      nib.as_closest_canonical(nib.Nifti1Image(scan.voxels, scan.affine)).to_filename(path)
    else:
      import SimpleITK

      image = SimpleITK.GetImageFromArray(np.ascontiguousarray(scan.voxels.T))
      image.SetSpacing([float(mm) for mm in scan.spacing_mm])
      image.SetOrigin((np.diag([-1, -1, 1]) @ scan.affine[:3, 3]).tolist())
      SimpleITK.WriteImage(image, str(path), useCompression=True)
    target = root / "labels" / f"{folder.name}.nii.gz"
    scan_files.write_label_like(folder / "IM0001.dcm", label_of(int(folder.name[-1])), target)
  return root


@pytest.mark.needs_extra("dicom")
@pytest.mark.needs_extra("itk")
@pytest.mark.parametrize("ending", [".nii.gz", ".mgz", ".mha", ".mhd", ".nrrd"])
def test_a_folder_of_any_format_gives_the_slices_of_its_dicom(tmp_path, ending):
  source = write_dicom(tmp_path / "dicom")
  expected, names = slices_of(source, tmp_path)
  assert names == NAMES and len(expected) == 4
  raw = write_like(tmp_path / "raw", source, ending)
  found, _ = slices_of(raw, tmp_path)
  builder = catalog.builder("scan_label", tmp_path / "out", options={})
  assert builder.inspect_source(raw).left_out == {}
  assert found.keys() == expected.keys()
  for key, (images, labels) in expected.items():
    np.testing.assert_array_equal(found[key][0], images)
    np.testing.assert_array_equal(found[key][1], labels)


@pytest.mark.needs_extra("dicom")
def test_labels_of_dicom_may_be_nifti_and_a_report_among_the_slices_is_left_out(tmp_path):
  root = write_dicom(tmp_path / "raw", ".nii.gz")
  save(dataset("1.2.840.10008.5.1.4.1.1.88.11"), root / "images" / "case0" / "report.dcm")
  cut, names = slices_of(root, tmp_path)
  expected, _ = slices_of(write_dicom(tmp_path / "seg"), tmp_path)
  for key, arrays in expected.items():
    np.testing.assert_array_equal(cut[key][1], arrays[1])
  assert names == ["background", "class_1", "class_2"]
  findings = catalog.builder("scan_label", tmp_path / "out", options={}).inspect_source(root)
  assert findings.left_out == {"images/case0/report.dcm": "a DICOM report"}


@pytest.mark.needs_extra("dicom")
def test_one_of_two_series_in_the_folder_of_a_case_is_chosen(tmp_path):
  root = write_dicom(tmp_path / "raw", ".nii.gz")
  expected, _ = slices_of(root, tmp_path)
  write_series(root / "images" / "case1", numbers(9), series="1.2.3", number=8, names="S{}.dcm")
  chosen, _ = slices_of(root, tmp_path, series="4")
  for name, (images, labels) in expected.items():
    np.testing.assert_array_equal(chosen[name][0], images)
    np.testing.assert_array_equal(chosen[name][1], labels)
  builder = catalog.builder("scan_label", tmp_path / "out", options={"series": "4"})
  reasons = builder.inspect_source(root).left_out.values()
  assert sum("not chosen" in why for why in reasons) == numbers(9).shape[2]


@pytest.mark.needs_extra("dicom")
def test_two_series_in_the_folder_of_a_case_are_a_problem(tmp_path):
  root = write_dicom(tmp_path / "raw")
  write_series(root / "images" / "case1", numbers(9), series="1.2.3", number=8, names="S{}.dcm")
  with pytest.raises(InputError, match=r"images/case1: holds 2 DICOM scans \(case1_series4, "):
    catalog.builder("scan_label", tmp_path / "out", options={}).inspect_source(root)


@pytest.mark.needs_extra("dicom")
def test_segments_of_one_number_with_two_names_are_refused(tmp_path):
  root = write_dicom(tmp_path / "raw")
  path = root / "images" / "case2" / "IM0001.dcm"
  other = ["background", "edema", "tumour"]
  scan_files.write_label_like(path, label_of(2), root / "labels" / "case2.dcm", other)
  with pytest.raises(InputError, match="segment 1 is 'edema', in another label 'tumour'"):
    slices_of(root, tmp_path)
