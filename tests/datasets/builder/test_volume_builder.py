"""Config `volumes`: what the source stores comes back without loss."""

import build_samples
import nibabel as nib
import numpy as np
import pytest
import tensorflow_datasets as tfds

from flexunet.core.errors import InputError
from flexunet.datasets.builder import volume_builder
from flexunet.datasets.builder.raw_folder import Case, Notes
from flexunet.imaging import nifti
from flexunet.imaging.volume import Volume

SHAPE = (6, 5, 4)


def write_pair(folder, number, voxels, order="<", labelled=True):
  """Writes one HFH subject as ANALYZE, 4-D with a trailing axis of length 1."""
  header = nib.AnalyzeHeader(endianness=order)
  header.set_data_dtype(voxels.dtype)
  image = nib.AnalyzeImage(voxels[..., None], None, header)
  image.header.set_zooms((0.5, 2.0, 0.75, 1.0))
  path = folder / ("Train" if labelled else "Test") / f"HFH_{number:03d}.hdr"
  path.parent.mkdir(parents=True, exist_ok=True)
  image.to_filename(path)
  if labelled:
    label = (voxels > np.median(voxels)).astype(np.uint8) + (voxels == voxels.max())
    made = nib.AnalyzeImage(label.astype(np.int16)[..., None], None)
    made.header.set_zooms((0.5, 2.0, 0.75, 1.0))
    (path.parent / "Labels").mkdir(exist_ok=True)
    made.to_filename(path.parent / "Labels" / f"HFH_{number:03d}_Hipp_Labels.hdr")


def write_nifti(folder, number, voxels, affine, order="<", slope=None, trailing=False):
  """Writes one HFH subject as NIfTI with a stated orientation."""
  header = nib.Nifti1Header(endianness=order)
  header.set_data_dtype(voxels.dtype)
  image = nib.Nifti1Image(voxels[..., None] if trailing else voxels, affine, header)
  if slope is not None:
    image.header.set_slope_inter(*slope)
  (folder / "Train" / "Labels").mkdir(parents=True, exist_ok=True)
  image.to_filename(folder / "Train" / f"HFH_{number:03d}.nii.gz")
  label = nib.Nifti1Image((voxels > 0).astype(np.uint8), affine)
  label.to_filename(folder / "Train" / "Labels" / f"HFH_{number:03d}_Hipp_Labels.nii.gz")


def numbers(seed, dtype):
  return np.random.default_rng(seed).integers(-300, 300, SHAPE).astype(dtype)


def read_back(builder):
  """Returns {subject: example} of all records."""
  return {
      example["subject"].decode(): example
      for split in builder.info.splits
      for example in tfds.as_numpy(builder.as_dataset(split))
  }


def assert_equals_source(example, path):
  stored, slope, inter = nifti.read_stored(path)
  np.testing.assert_array_equal(example["image"], stored.voxels)
  assert example["image"].dtype == stored.voxels.dtype
  assert example["source_dtype"].decode() == nifti.read_header(path).dtype.name
  np.testing.assert_array_equal(example["affine"], stored.affine)
  assert example["affine"].dtype == np.float64
  np.testing.assert_array_equal(example["spacing_mm"], stored.spacing_mm)
  assert (example["scale_slope"], example["scale_inter"]) == (slope, inter)
  assert bool(example["oriented"]) == stored.oriented
  # And the intensities are those another reader sees.
  seen = np.asanyarray(nib.load(path).dataobj).reshape(stored.voxels.shape)
  np.testing.assert_allclose(
      example["image"] * example["scale_slope"] + example["scale_inter"], seen, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_analyze_of_both_byte_orders_comes_back_as_stored(tmp_path, dtype):
  raw = tmp_path / "raw"
  for number, order in ((1, "<"), (2, ">"), (3, "<")):
    write_pair(raw, number, numbers(number, dtype), order)
  write_pair(raw, 4, numbers(4, dtype), ">", labelled=False)
  builder = build_samples.build("hippocampus_t1w/volumes", raw, tmp_path / "out")
  examples = read_back(builder)
  assert len(examples) == 4
  for number in (1, 2, 3):
    example = examples[f"hfh_{number:03d}"]
    assert_equals_source(example, raw / "Train" / f"HFH_{number:03d}.hdr")
    label = nifti.read(raw / "Train" / "Labels" / f"HFH_{number:03d}_Hipp_Labels.hdr")
    np.testing.assert_array_equal(example["label"], label.voxels)
  assert_equals_source(examples["hfh_004"], raw / "Test" / "HFH_004.hdr")


@pytest.mark.slow
def test_nifti_with_scale_factors_a_trailing_axis_and_any_affine_comes_back(tmp_path):
  raw = tmp_path / "raw"
  oblique = np.array([[0, -1.7, 0.1, 3], [0.9, 0, 0, -7], [0, 0.2, 2.5, 11], [0, 0, 0, 1]])
  write_nifti(raw, 1, numbers(1, np.int16), oblique, slope=(0.37, -1024.0))
  write_nifti(raw, 2, numbers(2, np.int16), np.diag([-1.0, 2, 3, 1]), order=">", trailing=True)
  write_nifti(raw, 3, numbers(3, np.int16), oblique)
  examples = read_back(build_samples.build("hippocampus_t1w/volumes", raw, tmp_path / "out"))
  for number in (1, 2, 3):
    assert_equals_source(
        examples[f"hfh_{number:03d}"], raw / "Train" / f"HFH_{number:03d}.nii.gz")


@pytest.mark.slow
def test_a_label_stored_along_other_axes_and_scans_of_freesurfer_are_taken(tmp_path):
  raw = tmp_path / "raw"
  affine = np.diag([-1.0, 2, 3, 1])
  for number in (1, 2, 3):
    write_nifti(raw, number, numbers(number, np.int16), affine)
  label_path = raw / "Train" / "Labels" / "HFH_001_Hipp_Labels.nii.gz"
  label = nib.load(label_path)
  turned = label.as_reoriented(
      nib.orientations.ornt_transform(
          nib.orientations.axcodes2ornt("LAS"), nib.orientations.axcodes2ornt("SPR")
      )
  )
  assert turned.shape == SHAPE[::-1]
  turned.to_filename(label_path)
  scan_path = raw / "Train" / "HFH_002.nii.gz"
  scan = nib.load(scan_path)
  nib.MGHImage(np.asanyarray(scan.dataobj), affine).to_filename(raw / "Train" / "HFH_002.mgz")
  scan_path.unlink()
  examples = read_back(build_samples.build("hippocampus_t1w/volumes", raw, tmp_path / "out"))
  np.testing.assert_array_equal(examples["hfh_001"]["label"], numbers(1, np.int16) > 0)
  np.testing.assert_array_equal(examples["hfh_002"]["image"], numbers(2, np.int16))


@pytest.mark.slow
def test_sources_of_different_dtypes_are_stored_in_one_that_holds_both(tmp_path):
  raw = tmp_path / "raw"
  write_pair(raw, 1, numbers(1, np.int16))
  write_pair(raw, 2, numbers(2, np.uint8))
  write_pair(raw, 3, numbers(3, np.float32))
  examples = read_back(build_samples.build("hippocampus_t1w/volumes", raw, tmp_path / "out"))
  for number, name in ((1, "int16"), (2, "uint8"), (3, "float32")):
    example = examples[f"hfh_{number:03d}"]
    assert example["image"].dtype == np.float32
    assert example["source_dtype"].decode() == name
    np.testing.assert_array_equal(
        example["image"].astype(name),
        nifti.read(raw / "Train" / f"HFH_{number:03d}.hdr").voxels)


@pytest.mark.slow
def test_a_built_dataset_opens_with_the_dtype_it_was_built_with(tmp_path):
  raw = tmp_path / "raw"
  for number in (1, 2, 3):
    write_pair(raw, number, numbers(number, np.float64))
  build_samples.build("hippocampus_t1w/volumes", raw, tmp_path / "out")
  again = build_samples.catalog.builder("hippocampus_t1w/volumes", tmp_path / "out")
  assert again.info.features["image"].np_dtype == np.float64
  example = next(iter(tfds.as_numpy(again.as_dataset("train"))))
  assert example["image"].dtype == np.float64


def test_a_float_label_is_rounded_and_a_wrong_value_is_named():
  notes = Notes()
  values = np.array([[[0.0, 1.0000002, 2.0]]])
  ids = volume_builder.map_label(values, {0: 0, 1: 1, 2: 1}, "label.nii", notes)
  np.testing.assert_array_equal(ids, [[[0, 1, 1]]])
  for bad in (1.5, np.nan, 7.0, -1.0):
    with pytest.raises(InputError, match=r"label.nii: label values must be among \[0, 1, 2\]"):
      volume_builder.map_label(np.array([[[0.0, bad]]]), {0: 0, 1: 1, 2: 1}, "label.nii", notes)


def test_a_label_placed_elsewhere_than_its_scan_is_refused():
  voxels = np.zeros(SHAPE)
  shifted = np.eye(4)
  shifted[0, 3] = 2.0
  scan = Volume(voxels, np.eye(4), oriented=True)
  with pytest.raises(InputError, match="elsewhere"):
    volume_builder.check_same_grid(
        scan, Volume(voxels, shifted, oriented=True), "label.nii", Notes())


@pytest.mark.parametrize(
    ("of_scan", "of_label", "warning"),
    [
        (True, False, "label.nii: the scan states an orientation, the label does not"),
        (False, True, "label.nii: the label states an orientation, the scan does not"),
        (True, True, ""),
        (False, False, ""),
    ],
)
def test_an_orientation_that_only_scan_or_label_states_is_warned_of(of_scan, of_label, warning):
  voxels, notes = np.zeros(SHAPE), Notes()
  scan, label = (Volume(voxels, np.eye(4), oriented) for oriented in (of_scan, of_label))
  volume_builder.check_same_grid(scan, label, "folder/label.nii", notes)
  assert [line.split(":")[:2] for line in notes.warnings] == (
      [warning.split(":")] if warning else [])


def test_voxels_that_are_nan_in_part_are_warned_of(tmp_path):
  for number in (1, 2, 3):
    voxels = numbers(number, np.float32)
    voxels[0, 0, :2] = np.nan
    write_pair(tmp_path / "raw", number, voxels)
  builder = build_samples.build("hippocampus_t1w", tmp_path / "raw", tmp_path / "out")
  warnings = [line for line in build_samples.report_of(builder)["warnings"] if "NaN" in line]
  assert len(warnings) == 3 and f"2 of its {np.prod(SHAPE)} voxels are NaN" in warnings[0]


def test_a_case_changes_its_state_with_its_files(tmp_path):
  file = tmp_path / "a.nii"
  file.write_bytes(b"1")
  case = Case(key="a", subject="a", volume="a", files={"image": file})
  before = case.state(tmp_path)
  assert case.state(tmp_path) == before
  file.write_bytes(b"12")
  assert case.state(tmp_path) != before


@pytest.mark.parametrize(
    "dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64, np.float32, np.float64]
)
def test_labels_of_every_dtype_become_ids_and_are_counted(dtype):
  values = np.arange(2 * 3 * 4).reshape(2, 3, 4) % 3
  notes = Notes()
  ids = volume_builder.map_label(values.astype(dtype), {0: 0, 1: 2, 2: 1}, "label.nii", notes)
  np.testing.assert_array_equal(ids, np.array([0, 2, 1])[values])
  assert ids.dtype == np.uint8
  assert notes.histograms == {"label": {"0": 8, "1": 8, "2": 8}}


@pytest.mark.parametrize(
    ("values", "dtype", "shown"), [
        ([-128, 127], np.int8, "-128, 127"), ([0, 2**62], np.int64, "4.61"),
        ([0, 65535], np.uint16, "65535"), ([0.0, np.inf], np.float64, "inf"),
    ],
)
def test_values_at_the_ends_of_a_dtype_are_named(values, dtype, shown):
  with pytest.raises(InputError, match=f"found {shown}"):
    volume_builder.map_label(np.array([[values]], dtype), {0: 0}, "label.nii", Notes())
