"""The stroke builder: masks in every known form, subjects shared with CT-ICH."""

import pathlib
import tempfile

import build_samples
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from flexunet.core.errors import InputError
from flexunet.datasets.brain_ich_ct import ct_ich_patients
from flexunet.datasets.brain_stroke_ct import brain_stroke_ct_dataset_builder
from flexunet.tools.phantom import layouts

NAME = "brain_stroke_ct"
TREE = "NEW-DATASET/REAL-TIME STROKE DETECTION IN MRI, CT, PET IMAGES/CT Images/data"
# Patients of CT-ICH on each side of the published split, and two with an infarct.
BLEEDING = ("078", "077", "080")
INFARCTS = ("0539025", "0539035", "0539045")


def write_subject(root, stroke_type, subject, masks, part="Training", padding=0, shape=(30, 20)):
  """Writes pictures 8, 9, 10, ... and a mask file each; None writes no mask."""
  generator = np.random.default_rng(int(subject))
  folder = root / TREE / part / stroke_type
  for kind in ("images", "mask") if any(m is not None for m in masks) else ("images",):
    (folder / kind / subject).mkdir(parents=True)
  for number, mask in enumerate(masks, start=8):
    name = f"{number:0{padding}d}"
    image = generator.integers(0, 255, shape).astype(np.uint8)
    Image.fromarray(image).save(folder / "images" / subject / f"{name}.png")
    if mask is not None:
      Image.fromarray(mask).save(folder / "mask" / subject / f"{name}.png")
  return folder


def square(value, shape=(30, 20)):
  mask = np.zeros(shape, np.uint8)
  mask[10:16, 4:9] = value  # 30 pixels.
  return mask


def write_tree(root):
  for subject in BLEEDING:
    write_subject(root, "Hemorrhagic", subject, [square(255), square(0), square(255)])
  for subject in INFARCTS:
    write_subject(root, "Ischemic", subject, [square(255)] * 2, padding=3)
  return root


class BrainStrokeTest(tfds.testing.DatasetBuilderTestCase):
  """TFDS's own checks."""

  DATASET_CLASS = brain_stroke_ct_dataset_builder.Builder
  BUILDER_CONFIG_NAMES_TO_TEST = ("slices",)
  SPLITS = {"train": 5, "validation": 5, "test": 5}  # noqa: RUF012 (3 of a bleeding, 2 of an infarct)

  @classmethod
  def setUpClass(cls):
    cls._folder = tempfile.TemporaryDirectory()
    cls.EXAMPLE_DIR = str(write_tree(pathlib.Path(cls._folder.name)))
    super().setUpClass()

  @classmethod
  def tearDownClass(cls):
    super().tearDownClass()
    cls._folder.cleanup()


def builder_in(tmp_path):
  return brain_stroke_ct_dataset_builder.Builder(data_dir=tmp_path / "out")


def test_bleedings_and_infarcts_are_two_classes_and_empty_masks_are_negatives(tmp_path):
  builder = build_samples.build(NAME, write_tree(tmp_path / "raw"), tmp_path / "out")
  rows = build_samples.rows_of(builder)
  assert len(rows) == 3 * 3 + 3 * 2
  for row in rows:
    bleeding = row["subject"].startswith("ctich_")
    expected = (0 if row["slice_index"] == "9" else 30, 0) if bleeding else (0, 30)
    assert (int(row["pixels_hemorrhagic"]), int(row["pixels_ischemic"])) == expected
  report = build_samples.report_of(builder)
  assert report["mask_values"] == {
      "hemorrhagic_mask": {"0": 9 * 600 - 6 * 30, "255": 6 * 30},
      "ischemic_mask": {"0": 6 * 600 - 6 * 30, "255": 6 * 30},
  }


def test_patients_of_ct_ich_stand_where_they_stand_there(tmp_path):
  report = build_samples.report_of(
      build_samples.build(NAME, write_tree(tmp_path / "raw"), tmp_path / "out"))
  sides = ct_ich_patients.splits()
  for split, entry in report["splits"].items():
    for subject in entry["subjects"]:
      if subject.startswith("ctich_"):
        assert sides[subject] == split
  folds = {row["subject"]: int(row["fold"]) for row in build_samples.rows_of(
      build_samples.build(NAME, tmp_path / "raw", tmp_path / "again"))}  # fmt: skip
  assert folds["ctich_080"] == ct_ich_patients.fold(80)


def test_a_subject_without_a_mask_folder_is_unlabelled_not_negative(tmp_path):
  raw = write_tree(tmp_path / "raw")
  write_subject(raw, "Hemorrhagic", "066", [None, None])
  findings = builder_in(tmp_path).inspect_source(raw)
  assert "ctich_066" not in {case.subject for case in findings.cases}
  reasons = [why for file, why in findings.left_out.items() if "/066/" in file]
  assert reasons == ["no mask folder of this subject: unlabelled"] * 2


def test_a_picture_without_a_mask_among_others_is_left_out_by_name(tmp_path):
  raw = write_tree(tmp_path / "raw")
  write_subject(raw, "Hemorrhagic", "066", [square(255), None])
  findings = builder_in(tmp_path).inspect_source(raw)
  [(file, reason)] = [entry for entry in findings.left_out.items() if "/066/" in entry[0]]
  assert file.endswith("images/066/9.png") and reason == "no mask of this slice: unlabelled"


def test_a_subject_in_training_and_testing_is_one_subject(tmp_path):
  raw = write_tree(tmp_path / "raw")
  folder = write_subject(raw, "Ischemic", "0539025", [square(255)], part="Testing", padding=3)
  # The same slice number on both sides would be a duplicate.
  for path in folder.rglob("008.png"):
    path.rename(path.with_name("020.png"))
  findings = builder_in(tmp_path).inspect_source(raw)
  [case] = [case for case in findings.cases if case.subject == "aisd_0539025"]
  assert case.details == (8, 9, 20)
  assert any("aisd_0539025 stands in Training and in Testing" in w for w in findings.warnings)


@pytest.mark.parametrize(
    ("values", "name", "ischemic", "expected"),
    [
        ([0, 255], "a.png", False, [False, True]),
        ([3, 127, 128, 250], "a.jpg", False, [False, False, True, True]),
        ([0, 1], "a.png", False, [False, True]),
        ([0, 1, 2, 3, 4, 5], "a.png", True, [False, True, True, True, False, True]),
        ([0, 251, 252, 255], "a.png", True, [False, True, True, True]),
    ],
)
def test_every_form_of_a_mask_means_the_same(values, name, ischemic, expected):
  mask = np.array([values], np.uint8)
  np.testing.assert_array_equal(
      brain_stroke_ct_dataset_builder.lesion(mask, pathlib.Path(name), ischemic), [expected])


def test_a_grey_picture_is_no_mask():
  picture = np.arange(256, dtype=np.uint8).reshape(16, 16)
  with pytest.raises(InputError, match=r"a\.png: mask values must be"):
    brain_stroke_ct_dataset_builder.lesion(picture, pathlib.Path("a.png"), ischemic=True)


def _other_size(raw):
  path = next(raw.rglob("mask/078/8.png"))
  Image.fromarray(np.zeros((30, 21), np.uint8)).save(path)


def _sixteen_bit(raw):
  path = next(raw.rglob("images/078/8.png"))
  Image.fromarray(np.zeros((30, 20), np.uint16)).save(path)


def _twice(raw):
  path = next(raw.rglob("images/078/8.png"))
  path.with_name("08.png").write_bytes(path.read_bytes())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda raw: next(raw.rglob("images/078/8.png")).unlink(), "has no image of its number"),
        (lambda raw: next(raw.rglob("images/078/8.png")).write_bytes(b"no png"), "8.png"),
        (_sixteen_bit, "8.png: must be 8-bit"),
        (_twice, "both are slice 8 of one subject"),
        (_other_size, "a mask has the size of its image"),
    ],
)
def test_a_folder_with_a_fault_is_refused_and_nothing_is_built(tmp_path, spoil, message):
  raw = write_tree(tmp_path / "raw")
  spoil(raw)
  with pytest.raises(InputError, match=message):
    build_samples.build(NAME, raw, tmp_path / "out")
  assert not list((tmp_path / "out").rglob("*.tfrecord*"))


def test_the_phantom_with_all_its_quirks_builds(tmp_path):
  raw = layouts.write(NAME, tmp_path / "raw", subjects=8, seed=0, size=(64, 8))
  report = build_samples.report_of(build_samples.build(NAME, raw, tmp_path / "out"))
  subjects = [s for split in report["splits"].values() for s in split["subjects"]]
  assert len(subjects) == 7  # One of eight has no mask folder.
  values = report["mask_values"]["ischemic_mask"]
  assert {"1", "2", "3", "5", "251", "255"} <= set(values)


@pytest.mark.realdata
@pytest.mark.slow
def test_the_real_pictures_build_to_23_slices_of_five_subjects(realdata_tree, tmp_path):
  raw = realdata_tree(NAME)
  report = build_samples.report_of(build_samples.build(NAME, raw, tmp_path, workers=2))
  splits = report["splits"].values()
  assert sum(split["num_records"] for split in splits) == 23
  assert sum(split["num_foreground_records"] for split in splits) == 23
  assert sum(split["num_subjects"] for split in splits) == 5
