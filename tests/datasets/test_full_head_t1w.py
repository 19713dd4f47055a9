"""The full-head builder, on phantoms with the traps of the real files."""

import pathlib
import tempfile

import build_samples
import nibabel as nib
import numpy as np
import pytest
import tensorflow_datasets as tfds

from flexunet.core.errors import InputError
from flexunet.datasets.builder.raw_folder import Notes
from flexunet.datasets.full_head_t1w import full_head_t1w_dataset_builder
from flexunet.imaging import nifti
from flexunet.tools.phantom import layouts

NAME = "full_head_t1w"
SIZE = (16, 20, 12)  # Sides differ, so that a transposed slice cannot pass.


def raw_folder(folder, subjects=4):
  return layouts.write(NAME, folder, subjects=subjects, seed=0, size=SIZE)


def files(raw, kind):
  return sorted(raw.rglob(f"{kind}/*.nii"))


class FullHeadTest(tfds.testing.DatasetBuilderTestCase):
  """TFDS's own checks."""

  DATASET_CLASS = full_head_t1w_dataset_builder.Builder
  BUILDER_CONFIG_NAMES_TO_TEST = ("slices",)
  SPLITS = {"train": 24, "validation": 12, "test": 12}  # noqa: RUF012 (four subjects)

  @classmethod
  def setUpClass(cls):
    cls._folder = tempfile.TemporaryDirectory()
    cls.EXAMPLE_DIR = str(raw_folder(pathlib.Path(cls._folder.name)))
    super().setUpClass()

  @classmethod
  def tearDownClass(cls):
    super().tearDownClass()
    cls._folder.cleanup()


def test_seven_classes_by_their_right_names(tmp_path):
  builder = build_samples.build(NAME, raw_folder(tmp_path / "raw"), tmp_path / "out")
  names = [entry["name"] for entry in build_samples.report_of(builder)["label_scheme"]]
  assert names == ["background", "air_cavity", "grey_matter", "white_matter", "csf", "bone",
                   "soft_tissue"]  # fmt: skip
  rows = build_samples.rows_of(builder)
  assert {(row["height"], row["width"]) for row in rows} == {("20", "16")}
  assert {row["subject"] for row in rows} == {"gu001", "nyu002", "gu003", "nyu004"}


def test_every_subject_reports_white_over_grey_over_fluid(tmp_path):
  builder = build_samples.build(NAME, raw_folder(tmp_path / "raw"), tmp_path / "out")
  facts = build_samples.report_of(builder)["volume_facts"]
  assert len(facts) == 4
  for fact in facts.values():
    assert fact["white_over_grey_over_csf"]
    means = fact["mean_t1"]
    assert means["white_matter"] > means["grey_matter"] > means["csf"]


def test_a_label_with_grey_and_white_swapped_is_warned_about_by_name(tmp_path):
  raw = raw_folder(tmp_path / "raw", subjects=3)
  path = files(raw, "Full-Head Segmentation")[0]
  image = nib.load(path)
  voxels = np.asanyarray(image.dataobj).copy()
  grey, white = voxels == 2, voxels == 3
  voxels[grey], voxels[white] = 3, 2
  nib.save(nib.Nifti1Image(voxels, image.affine), path)
  report = build_samples.report_of(build_samples.build(NAME, raw, tmp_path / "out"))
  [warning] = [line for line in report["warnings"] if "mean T1" in line]
  assert warning.startswith("gu001: ")


def test_a_slice_is_upright_and_matches_its_voxels(tmp_path):
  raw = raw_folder(tmp_path / "raw", subjects=3)
  builder = full_head_t1w_dataset_builder.Builder(data_dir=tmp_path / "out")
  [case] = [c for c in builder.inspect_source(raw).cases if c.subject == "gu001"]
  stored = nifti.read(case.files["label"]).voxels
  slices = list(builder.slices_of(case, Notes()))
  assert [cut.index for cut in slices] == list(range(12))
  # Stored axes run to left, anterior, superior; anterior is up.
  np.testing.assert_array_equal(slices[5].label, np.rot90(stored[:, :, 5]))


def test_what_has_no_twin_is_told_by_name(tmp_path):
  raw = raw_folder(tmp_path / "raw")
  scans, labels = files(raw, "T1-Weighted MRI"), files(raw, "Full-Head Segmentation")
  labels[0].unlink()
  scans[1].unlink()
  builder = full_head_t1w_dataset_builder.Builder(data_dir=tmp_path / "out")
  findings = builder.inspect_source(raw)
  assert [case.subject for case in findings.cases if not case.labelled] == ["gu001"]
  assert any(labels[1].name in line and "no scan" in line for line in findings.warnings)
  assert any(scans[0].name in line and "unlabeled" in line for line in findings.warnings)
  assert findings.left_out[findings.relative(labels[1])] == "label without a scan"


def test_underscores_and_a_label_named_as_its_scan_are_accepted(tmp_path):
  raw = raw_folder(tmp_path / "raw")
  for path in files(raw, "Full-Head Segmentation"):
    path.rename(path.with_name(path.name.replace("_label", "")))
  for folder in list(raw.rglob("T1-Weighted MRI")):
    folder.rename(folder.with_name("T1_Weighted_MRI"))
  builder = full_head_t1w_dataset_builder.Builder(data_dir=tmp_path / "out")
  assert len(builder.inspect_source(raw).cases) == 4


def _other_shape(raw):
  path = files(raw, "Full-Head Segmentation")[0]
  nib.save(nib.Nifti1Image(np.zeros((16, 20, 11), np.float32), np.eye(4)), path)


def _duplicate(raw):
  path = files(raw, "T1-Weighted MRI")[0]
  path.with_name(path.name.replace("_deface", "")).write_bytes(path.read_bytes())


def _no_labels(raw):
  for path in files(raw, "Full-Head Segmentation"):
    path.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_other_shape, "must lie on the grid of its scan"),
        (_duplicate, "a second file of subject gu001"),
        (_no_labels, "no scan has a label"),
        (lambda raw: files(raw, "T1-Weighted MRI")[0].write_bytes(b"no nifti"), "GU001_deface.nii"),
    ],
)
def test_a_folder_with_a_fault_is_refused(tmp_path, spoil, message):
  raw = raw_folder(tmp_path / "raw", subjects=3)
  spoil(raw)
  builder = full_head_t1w_dataset_builder.Builder(data_dir=tmp_path / "out")
  with pytest.raises(InputError, match=message):
    builder.inspect_source(raw)


@pytest.mark.parametrize("value", [7, -1, 2.5])
def test_a_label_value_beyond_the_seven_is_refused(tmp_path, value):
  raw = raw_folder(tmp_path / "raw", subjects=3)
  path = files(raw, "Full-Head Segmentation")[0]
  image = nib.load(path)
  voxels = np.asanyarray(image.dataobj).astype(np.float32)
  voxels[3, 3, 3] = value
  nib.save(nib.Nifti1Image(voxels, image.affine), path)
  with pytest.raises(InputError, match=rf"{path.name}: label values .* found {value:g}"):
    build_samples.build(NAME, raw, tmp_path / "out")
  assert not list((tmp_path / "out").rglob("*.tfrecord*"))


def test_volumes_hold_the_stored_voxels(tmp_path):
  raw = raw_folder(tmp_path / "raw", subjects=3)
  builder = build_samples.build(f"{NAME}/volumes", raw, tmp_path / "out")
  examples = [e for split in builder.info.splits for e in tfds.as_numpy(builder.as_dataset(split))]
  [example] = [e for e in examples if e["subject"] == b"gu001"]
  source = nib.load(files(raw, "T1-Weighted MRI")[0])
  np.testing.assert_array_equal(example["image"], np.asanyarray(source.dataobj))
  assert example["image"].dtype == np.int16
  np.testing.assert_array_equal(example["affine"], source.affine)


def test_files_beside_the_layout_get_a_line(tmp_path):
  raw = raw_folder(tmp_path / "raw", subjects=3)
  builder = full_head_t1w_dataset_builder.Builder(data_dir=tmp_path / "out")
  findings = builder.inspect_source(raw)
  used = {path for case in findings.cases for path in case.files.values()}
  every = {p for p in raw.rglob("*") if p.is_file()}
  assert {findings.relative(path) for path in every - used} == set(findings.left_out)


@pytest.mark.realdata
@pytest.mark.slow
def test_real_scans_build_with_the_right_order_of_tissues(realdata_tree, tmp_path):
  raw = realdata_tree(NAME, 5)
  report = build_samples.report_of(build_samples.build(NAME, raw, tmp_path, workers=2))
  facts = report["volume_facts"]
  assert len(facts) == 5 and all(fact["white_over_grey_over_csf"] for fact in facts.values())
  assert report["warnings"] == []
