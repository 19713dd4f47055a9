"""The CT-ICH builder, on phantoms with the traps of the real files."""

import csv
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import ClassVar

import build_samples
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from flexunet.core.errors import InputError
from flexunet.datasets import catalog
from flexunet.datasets.brain_ich_ct import (
  brain_ich_ct_dataset_builder,
  ct_ich_patients,
  ct_ich_releases,
)
from flexunet.datasets.builder import croissant

HEADER = (
    "PatientNumber,SliceNumber,Intraventricular,Intraparenchymal,Subarachnoid,Epidural,Subdural,"
    "No_Hemorrhage,Fracture_Yes_No"
)
# One patient of each side of the published split.
TRAIN, VALIDATION, TEST = 78, 77, 80


def write_tree(folder, patients=(TRAIN, VALIDATION, TEST), slices=12):
  """Writes the v1.0.0 layout: slice 2 bleeds and is masked; slice 3 bleeds and is not."""
  generator = np.random.default_rng(0)
  lines = [HEADER]
  for patient in patients:
    brain = folder / "Patients_CT" / f"{patient:03d}" / "brain"
    brain.mkdir(parents=True)
    for number in range(1, slices + 1):
      image = generator.integers(0, 255, (30, 20)).astype(np.uint8)
      Image.fromarray(image).save(brain / f"{number}.jpg")
      bleeds = number in (2, 3)
      lines.append(f"{patient},{number},0,{int(bleeds)},0,0,{int(number == 2)},{int(not bleeds)},0")
    mask = np.zeros((30, 20), np.uint8)
    mask[10:20, 5:15] = 255
    Image.fromarray(mask).save(brain / "2_HGE_Seg.jpg")
  text = "\r\n".join(lines) + "\r\n"
  (folder / "hemorrhage_diagnosis.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
  return folder


class BrainIchTest(tfds.testing.DatasetBuilderTestCase):
  """TFDS's own checks."""

  DATASET_CLASS = brain_ich_ct_dataset_builder.Builder
  BUILDER_CONFIG_NAMES_TO_TEST = ("slices",)
  SPLITS: ClassVar = {"train": 11, "validation": 11, "test": 11}  # 12 less the unlabelled one.

  @classmethod
  def setUpClass(cls):
    cls._folder = tempfile.TemporaryDirectory()
    cls.EXAMPLE_DIR = str(write_tree(pathlib.Path(cls._folder.name)))
    super().setUpClass()

  @classmethod
  def tearDownClass(cls):
    super().tearDownClass()
    cls._folder.cleanup()


def test_positives_without_a_mask_are_left_out_by_name_and_negatives_are_kept(tmp_path):
  raw = write_tree(tmp_path / "raw")
  builder = build_samples.build("brain_ich_ct", raw, tmp_path / "out")
  report = build_samples.report_of(builder)
  assert [entry["file"] for entry in report["left_out"]] == [
      f"Patients_CT/{patient:03d}/brain/3.jpg" for patient in sorted((TRAIN, VALIDATION, TEST))
  ]
  train = report["splits"]["train"]
  assert (train["num_records"], train["num_foreground_records"]) == (11, 1)
  # Noisy JPEG edges make a mask of 100 pixels a few pixels larger or smaller, no more.
  assert abs(train["pixels"]["hemorrhage"] - 100) <= 20
  assert set(report["mask_values"]) == {"mask_jpeg"}
  indices = sorted(int(r["slice_index"]) for r in build_samples.rows_of(builder)
                   if r["subject"] == "ctich_078")
  assert indices == [0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11]  # 10.jpg comes after 2.jpg.


@pytest.mark.slow
def test_a_slice_carries_its_subtypes_and_its_patients_fold(tmp_path):
  raw = write_tree(tmp_path / "raw")
  builder = build_samples.build("brain_ich_ct", raw, tmp_path / "out")
  for example in tfds.as_numpy(builder.as_dataset("train")):
    positive = int(example["slice_index"]) == 1
    assert example["intraparenchymal"] == int(positive) and example["subdural"] == int(positive)
    assert example["epidural"] == 0 and example["fracture"] == 0
    assert example["fold"] == ct_ich_patients.fold(TRAIN)
    assert example["label"].any() == positive
    assert np.isnan(example["spacing_mm"]).all()


def test_a_patient_stands_on_the_published_side_whoever_else_is_there(tmp_path):
  few = write_tree(tmp_path / "few", patients=(TEST,), slices=2)
  many = write_tree(tmp_path / "many", patients=(49, 54, 55, TEST), slices=2)
  for raw in (few, many):
    report = build_samples.report_of(
        build_samples.build("brain_ich_ct", raw, tmp_path / f"out_{raw.name}"))
    assert "ctich_080" in report["splits"]["test"]["subjects"]


def test_an_empty_split_is_warned_about(tmp_path):
  raw = write_tree(tmp_path / "raw", patients=(TEST,), slices=2)
  report = build_samples.report_of(build_samples.build("brain_ich_ct", raw, tmp_path / "out"))
  assert sum("is empty" in line for line in report["warnings"]) == 2


def test_slices_and_patients_of_the_table_that_are_missing_are_named(tmp_path):
  raw = write_tree(tmp_path / "raw", slices=4)
  for number in (1, 4):
    (raw / f"Patients_CT/078/brain/{number}.jpg").unlink()
  shutil.rmtree(raw / "Patients_CT/080")
  findings = catalog.builder("brain_ich_ct", tmp_path / "out").inspect_source(raw)
  assert sorted(findings.warnings) == [
      "Patients_CT/078/brain: slices that the table lists are missing (2): 1, 4.",
      "hemorrhage_diagnosis.csv: patients that it lists are missing (1): 080.",
  ]


def test_rows_beyond_the_last_slice_of_a_scan_are_named(tmp_path):
  raw = build_samples.raw_folder("brain_ich_ct/nifti", tmp_path / "raw", subjects=2)
  findings = catalog.builder("brain_ich_ct", tmp_path / "out").inspect_source(raw)
  assert findings.warnings == []
  table = raw / "hemorrhage_diagnosis_raw_ct.csv"
  lines = table.read_text(encoding="utf-8-sig").split()
  patient = lines[1].split(",")[0]
  # The scans have 5 slices.
  lines.append(",".join([patient, "6", *lines[1].split(",")[2:]]))
  table.write_text("\n".join(lines))
  findings = catalog.builder("brain_ich_ct", tmp_path / "out").inspect_source(raw)
  [warning] = findings.warnings
  name = f"{int(patient):03d}.nii"
  assert warning.endswith(f"{name}: slices that the table lists are missing (1): 6.")


@pytest.mark.parametrize(
    ("spoil", "message"), [
        (lambda raw: (raw / "hemorrhage_diagnosis.csv").unlink(), "hemorrhage_diagnosis.csv"),
        (lambda raw: (raw / "Patients_CT/078/brain/2.jpg").unlink(), "has no image 2.jpg"),
        (lambda raw: (raw / "Patients_CT/078/brain/1.jpg").write_bytes(b"no jpeg"), "damaged"),
        (lambda raw: shutil.rmtree(raw / "Patients_CT/078/brain"), "no folder brain"),
        (lambda raw: (raw / "hemorrhage_diagnosis.csv").write_text("a,b\n1,2\n"), "columns"),
        (lambda raw: (raw / "hemorrhage_diagnosis.csv").write_text(
            HEADER + "\n78,1,0,0,0,0,x,1,0\n"), "line 2"),
        (lambda raw: shutil.rmtree(raw / "Patients_CT"), "nothing of this dataset"),
    ],
)
def test_a_folder_with_a_gap_is_refused(tmp_path, spoil, message):
  raw = write_tree(tmp_path / "raw", slices=3)
  spoil(raw)
  builder = brain_ich_ct_dataset_builder.Builder(data_dir=tmp_path / "out")
  with pytest.raises(InputError, match=message):
    builder.inspect_source(raw)


def test_the_table_is_read_through_its_byte_order_mark(tmp_path):
  rows = ct_ich_releases.read_table(
      write_tree(tmp_path, patients=(TRAIN,)) / "hemorrhage_diagnosis.csv"
  )
  assert rows[(TRAIN, 2)].subtypes == (0, 1, 0, 0, 1) and rows[(TRAIN, 2)].hemorrhage
  assert not rows[(TRAIN, 1)].hemorrhage


def test_the_nifti_form_builds_windowed_slices_with_known_spacing(tmp_path):
  raw = build_samples.raw_folder("brain_ich_ct/nifti", tmp_path / "raw", subjects=3)
  builder = build_samples.build("brain_ich_ct", raw, tmp_path / "out")
  report = build_samples.report_of(builder)
  assert report["slice_plan"] == {"axes": "LAS", "plane": "axial"}
  assert report["intensity"] == {"kind": "window", "low": -20.0, "high": 100.0}
  assert sum(split["num_records"] for split in report["splits"].values()) == 3 * 5
  assert set(report["mask_values"]) == {"mask_nifti"}
  with open(raw / "hemorrhage_diagnosis_raw_ct.csv", encoding="utf-8-sig", newline="") as stream:
    positive = sum(row["No_Hemorrhage"] == "0" for row in csv.DictReader(stream))
  found = sum(split["num_foreground_records"] for split in report["splits"].values())
  assert 0 < found <= positive


@pytest.mark.parametrize(
    "options", [{"plane": "coronal"}, {"window": (0, 80)}, {"isotropic_mm": 1.0},
                {"form": "volumes"}, {"bias_correction": "n4"}])  # fmt: skip
def test_the_jpeg_form_takes_no_option_of_scans(tmp_path, options):
  raw = write_tree(tmp_path / "raw", slices=3)
  builder = catalog.builder("brain_ich_ct", tmp_path / "out", options=options)
  with pytest.raises(InputError, match=f"{next(iter(options))}.* needs the NIfTI scans"):
    builder.inspect_source(raw)


def test_ct_has_no_bias_field_to_correct(tmp_path):
  raw = build_samples.raw_folder("brain_ich_ct/nifti", tmp_path / "raw", subjects=3)
  with pytest.raises(InputError, match="bias_correction=n4 is for MRI, but brain_ich_ct has a"):
    build_samples.build(
        "brain_ich_ct", raw, tmp_path / "out", options={"bias_correction": "n4"}
    )


def test_a_folder_of_both_forms_gives_the_jpeg_slices_and_whole_scans_on_request(tmp_path):
  raw = build_samples.raw_folder("brain_ich_ct/nifti", tmp_path / "raw", subjects=3)
  write_tree(raw, slices=3)
  slices = build_samples.report_of(build_samples.build("brain_ich_ct", raw, tmp_path / "out"))
  assert slices["slice_plan"] is None and any("v1.3.1 too" in w for w in slices["warnings"])
  scans = build_samples.build("brain_ich_ct/volumes", raw, tmp_path / "out")
  assert build_samples.report_of(scans)["form"] == "volumes"


def test_the_restricted_form_is_not_called_open(tmp_path):
  for layout, phrase in (("brain_ich_ct", "by/4.0"), ("brain_ich_ct/nifti", "not to be passed")):
    out = tmp_path / layout
    raw = build_samples.raw_folder(layout, out / "raw", subjects=3)
    builder = build_samples.build("brain_ich_ct", raw, out / "data")
    path = pathlib.Path(builder.data_path) / croissant.NAME
    assert phrase in json.loads(path.read_text(encoding="utf-8"))["license"][0]


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["brain_ich_ct", "brain_ich_ct/nifti"])
def test_tfds_build_takes_either_form_and_tfds_reads_the_result(tmp_path, layout):
  raw = build_samples.raw_folder(layout, tmp_path / "raw", subjects=3)
  checkout = pathlib.Path(__file__).resolve().parents[2]
  program = pathlib.Path(sys.executable).with_name("tfds")
  subprocess.run(
      [program, "build", "datasets/brain_ich_ct", f"--manual_dir={raw}",
       f"--data_dir={tmp_path / 'data'}"],
      cwd=checkout, env={**os.environ, "PYTHONPATH": str(checkout)}, check=True,
      capture_output=True,
  )  # fmt: skip
  built = tfds.builder_from_directory(tmp_path / "data" / "brain_ich_ct" / "slices" / "1.0.0")
  found = [example for split in built.info.splits for example in
           tfds.as_numpy(built.as_dataset(split))]  # fmt: skip
  patients = {example["subject"] for example in found}
  assert len(patients) == 3 and all(example["image"].dtype == np.uint8 for example in found)
  ours = build_samples.build("brain_ich_ct", raw, tmp_path / "ours")
  assert build_samples.digests(built.data_path) == build_samples.digests(ours.data_path)


@pytest.mark.realdata
@pytest.mark.slow
def test_the_real_pictures_build_to_483_slices_of_17_patients(realdata_tree, tmp_path):
  raw = realdata_tree("brain_ich_ct")
  report = build_samples.report_of(build_samples.build("brain_ich_ct", raw, tmp_path, workers=2))
  splits = report["splits"].values()
  assert sum(split["num_records"] for split in splits) == 483
  assert sum(split["num_subjects"] for split in splits) == 17
  assert sum(split["num_foreground_records"] for split in splits) == 21
  unlabelled = [e["file"] for e in report["left_out"] if "unlabelled" in e["reason"]]
  assert len(unlabelled) == 9 and all("/049/brain/" in file for file in unlabelled)
