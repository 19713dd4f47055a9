"""The MS builder: three modalities without geometry, and spacing from a spreadsheet."""

import pathlib
import tempfile
import zipfile

import build_samples
import nibabel as nib
import numpy as np
import pytest
import tensorflow_datasets as tfds

from flexunet.core.errors import InputError
from flexunet.datasets.builder.raw_folder import Notes
from flexunet.datasets.ms_lesion_mri import (
  ms_lesion_mri_dataset_builder,
  sequence_table,
)
from flexunet.tools.phantom import layouts, volumes

NAME = "ms_lesion_mri"
SIZE = (28, 21, 10)
TABLE = "Supplementary Table 2 for  sequence parameters .xlsx"


def raw_folder(folder, subjects=4):
  return layouts.write(NAME, folder, subjects=subjects, seed=0, size=SIZE)


class MsLesionTest(tfds.testing.DatasetBuilderTestCase):
  """TFDS's own checks."""

  DATASET_CLASS = ms_lesion_mri_dataset_builder.Builder
  BUILDER_CONFIG_NAMES_TO_TEST = ("t2",)
  SPLITS = {"train": 20, "validation": 10, "test": 10}  # noqa: RUF012 (four patients)

  @classmethod
  def setUpClass(cls):
    cls._folder = tempfile.TemporaryDirectory()
    cls.EXAMPLE_DIR = str(raw_folder(pathlib.Path(cls._folder.name)))
    super().setUpClass()

  @classmethod
  def tearDownClass(cls):
    super().tearDownClass()
    cls._folder.cleanup()


@pytest.mark.parametrize(
    ("modality", "slices", "height", "width"),
    [("t2", 10, 28, 21), ("t1", 10, 32, 24), ("flair", 12, 28, 21)],
)
def test_each_modality_is_a_config_with_its_own_shape(tmp_path, modality, slices, height, width):
  raw = raw_folder(tmp_path / "raw", subjects=3)
  builder = build_samples.build(f"{NAME}/{modality}", raw, tmp_path / "out")
  rows = build_samples.rows_of(builder)
  assert len(rows) == 3 * slices
  assert {(row["height"], row["width"]) for row in rows} == {(str(height), str(width))}
  left_out = build_samples.report_of(builder)["left_out"]
  assert sum("another modality" in entry["reason"] for entry in left_out) == 3 * 4


def test_a_patient_stands_on_one_side_in_all_modalities(tmp_path):
  raw = raw_folder(tmp_path / "raw", subjects=6)
  sides = []
  for modality in ("t2", "flair"):
    builder = build_samples.build(f"{NAME}/{modality}", raw, tmp_path / "out")
    sides.append({row["subject"]: row["split"] for row in build_samples.rows_of(builder)})
  assert sides[0] == sides[1] and len(sides[0]) == 6


def test_slices_are_shown_as_stored_and_spacing_comes_from_the_table(tmp_path):
  raw = raw_folder(tmp_path / "raw", subjects=3)
  builder = ms_lesion_mri_dataset_builder.Builder(data_dir=tmp_path / "out")
  [case] = [c for c in builder.inspect_source(raw).cases if c.subject == "ms_001"]
  cut = list(builder.slices_of(case, Notes()))[4]
  stored = np.asanyarray(nib.load(raw / "Patient-1" / "1-LesionSeg-T2.nii").dataobj)
  np.testing.assert_array_equal(cut.label, stored[:, :, 4])
  # The header says 1 mm; the phantom's table says 100 mm over 10 slices.
  assert np.isnan(cut.spacing_mm).all() and cut.slice_spacing_mm == pytest.approx(10.0)


def test_without_the_table_the_spacing_is_unknown_and_the_report_says_so(tmp_path):
  raw = raw_folder(tmp_path / "raw", subjects=3)
  (raw / TABLE).unlink()
  builder = ms_lesion_mri_dataset_builder.Builder(data_dir=tmp_path / "out")
  findings = builder.inspect_source(raw)
  assert all(np.isnan(case.details["slice_spacing_mm"]) for case in findings.cases)
  assert any("Table 2 was not found" in line for line in findings.warnings)


@pytest.mark.parametrize("content", [b"", b"PK no zip", b"<html>"])
def test_a_broken_table_is_a_warning_not_a_failure(tmp_path, content):
  raw = raw_folder(tmp_path / "raw", subjects=3)
  (raw / TABLE).write_bytes(content)
  builder = ms_lesion_mri_dataset_builder.Builder(data_dir=tmp_path / "out")
  findings = builder.inspect_source(raw)
  assert len(findings.cases) == 3
  assert any("cannot be read" in line and "xlsx" in line for line in findings.warnings)


def test_the_column_is_found_whichever_header_row_names_the_modality():
  by_modality = [["ID", "T1", "", "T2-Weighted"], ["", "Thickness", "Spacing", "Slice spacing"],
                 ["Patient-7", "5", "5.5", "6.5"]]  # fmt: skip
  assert sequence_table.parse(by_modality, "t1") == {7: 5.5}
  assert sequence_table.parse(by_modality, "t2") == {7: 6.5}
  by_quantity = [
      ["Some title"],
      ["ID", "Spacing between slices", "", "Thickness"],
      ["", "T2", "T2 FLAIR", "T2"],
      ["1", "4", "3.3", "2"],
      ["2", "n/a", "4.4", "2"],
  ]
  assert sequence_table.parse(by_quantity, "t2") == {1: 4.0}
  assert sequence_table.parse(by_quantity, "flair") == {1: 3.3, 2: 4.4}
  assert sequence_table.parse(by_quantity, "t1") == {}


def test_a_spreadsheet_with_shared_texts_and_gaps_is_read(tmp_path):
  path = tmp_path / "a.xlsx"
  space = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
  with zipfile.ZipFile(path, "w") as archive:
    texts = "<si><t>first</t></si><si><r><t>a</t></r><r><t>b</t></r></si>"
    cells = '<row><c r="A1" t="s"><v>1</v></c><c r="C1"><v>2.5</v></c></row>'
    archive.writestr("xl/sharedStrings.xml", f"<sst {space}>{texts}</sst>")
    archive.writestr(
        "xl/worksheets/sheet1.xml",
        f"<worksheet {space}><sheetData>{cells}</sheetData></worksheet>",
    )
  assert sequence_table.read_rows(path) == [["ab", "", "2.5"]]


def test_a_spreadsheet_with_entities_is_refused(tmp_path):
  path = tmp_path / "bomb.xlsx"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("xl/worksheets/sheet1.xml", '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>')
  with pytest.raises(InputError, match="document type"):
    sequence_table.read_rows(path)


def test_the_phantoms_own_spreadsheet_reads_back(tmp_path):
  rows = [["a & b", None, 1.5], [2, "x"]]
  volumes.write(tmp_path / "a.xlsx", rows)
  assert sequence_table.read_rows(tmp_path / "a.xlsx") == [["a & b", "", "1.5"], ["2", "x"]]


def test_free_text_on_patients_is_left_out(tmp_path):
  raw = raw_folder(tmp_path / "raw", subjects=3)
  builder = ms_lesion_mri_dataset_builder.Builder(data_dir=tmp_path / "out")
  reasons = builder.inspect_source(raw).left_out
  assert "free text" in reasons["Supplementary Table 1 for patient info .xlsx"]


def _wrong_patient(raw):
  (raw / "Patient-1" / "1-T2.nii").rename(raw / "Patient-1" / "2-T2.nii")


def _second_folder(raw):
  (raw / "again").mkdir()
  (raw / "Patient-1").rename(raw / "again" / "Patient-2")
  for path in (raw / "again" / "Patient-2").iterdir():
    path.rename(path.with_name("2" + path.name[1:]))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda raw: (raw / "Patient-1/1-LesionSeg-T2.nii").unlink(), "lacks 1-LesionSeg-T2.nii"),
        (lambda raw: (raw / "Patient-1/1-T2.nii").unlink(), "Patient-1: lacks 1-T2.nii"),
        (_wrong_patient, "names patient 2 in the folder of patient 1"),
        (_second_folder, "duplicate"),
        (lambda raw: (raw / "Patient-1/1-T2.nii").write_bytes(bytes(100)), "1-T2.nii"),
    ],
)
def test_a_folder_with_a_fault_is_refused(tmp_path, spoil, message):
  raw = raw_folder(tmp_path / "raw", subjects=3)
  spoil(raw)
  builder = ms_lesion_mri_dataset_builder.Builder(data_dir=tmp_path / "out")
  with pytest.raises(InputError, match=message):
    builder.inspect_source(raw)


def test_volumes_stay_float64_and_state_no_orientation(tmp_path):
  raw = raw_folder(tmp_path / "raw", subjects=3)
  builder = build_samples.build(f"{NAME}/flair_volumes", raw, tmp_path / "out")
  examples = [e for split in builder.info.splits for e in tfds.as_numpy(builder.as_dataset(split))]
  [example] = [e for e in examples if e["subject"] == b"ms_002"]
  stored = np.asanyarray(nib.load(raw / "Patient-2" / "2-Flair.nii").dataobj)
  assert example["image"].dtype == np.float64 and not example["oriented"]
  np.testing.assert_array_equal(example["image"], stored)
  np.testing.assert_allclose(example["spacing_mm"], [np.nan, np.nan, 100 / 12])


@pytest.mark.realdata
@pytest.mark.slow
def test_real_patients_build_in_all_modalities(realdata_tree, tmp_path):
  raw = realdata_tree(NAME)
  for modality in ("t2", "t1", "flair"):
    builder = build_samples.build(f"{NAME}/{modality}", raw, tmp_path / "out", workers=2)
    rows = build_samples.rows_of(builder)
    assert {row["subject"] for row in rows} == {"ms_001", "ms_002"} and len(rows) == 62
    assert sum(int(row["pixels_lesion"]) for row in rows) > 0
