"""Folders of scans and labels in every layout, and what is wrong with them."""

import json
import pathlib
import shutil
import tempfile
from typing import ClassVar

import build_samples
import numpy as np
import pytest
import scan_folders
import tensorflow_datasets as tfds
from scan_label_cases import builder_of, by_key, found_in, refusal, slices_of

from flexunet.core.errors import InputError
from flexunet.datasets.scan_label import scan_label_dataset_builder


class OnPairs:
  """Four subjects of six slices."""

  DATASET_CLASS = scan_label_dataset_builder.Builder

  @classmethod
  def setUpClass(cls):
    cls._folder = tempfile.TemporaryDirectory()
    cls.EXAMPLE_DIR = str(scan_folders.pairs(pathlib.Path(cls._folder.name) / "raw"))
    cls.DATASET_CLASS.num_workers = 1  # The mocks of TFDS do not reach other processes.
    super().setUpClass()

  @classmethod
  def tearDownClass(cls):
    super().tearDownClass()
    cls.DATASET_CLASS.num_workers = None
    cls._folder.cleanup()


class ScanLabelSlicesTest(OnPairs, tfds.testing.DatasetBuilderTestCase):
  """TFDS's own checks: registration, features, counts, disjoint splits, reload."""

  BUILDER_CONFIG_NAMES_TO_TEST = ("slices",)
  SPLITS: ClassVar = {"train": 12, "validation": 6, "test": 6}


class ScanLabelVolumesTest(OnPairs, tfds.testing.DatasetBuilderTestCase):
  """The same of whole scans."""

  BUILDER_CONFIG_NAMES_TO_TEST = ("volumes",)
  SPLITS: ClassVar = {"train": 2, "validation": 1, "test": 1}


def test_scans_and_labels_in_two_folders_pair_by_name(tmp_path):
  root = scan_folders.pairs(tmp_path / "raw")
  (root / "labels" / "dora.nii.gz").unlink()
  cases = by_key(found_in(root, tmp_path))
  assert sorted(cases) == ["anna", "bert", "carl", "dora"]
  assert [cases[name].labelled for name in sorted(cases)] == [True, True, True, False]


@pytest.mark.parametrize(
    ("images", "labels", "ending"),
    [("imgs", "masks", ""), ("imagesTr", "labelsTr", ""), ("scans", "segmentations", "_seg"),
     ("Images", "GT", "-mask")],
)  # fmt: skip
def test_other_names_of_folders_and_labels_pair_too(images, labels, ending, tmp_path):
  for seed, name in enumerate(("a_1000", "a_1001", "a_0003")):
    scan_folders.save(scan_folders.voxels(seed), tmp_path / "raw" / images / f"{name}.nii")
    label = scan_folders.label_of(seed)
    scan_folders.save(label, tmp_path / "raw" / labels / f"{name}{ending}.nii.gz")
  cases = by_key(found_in(tmp_path / "raw", tmp_path))
  assert sorted(cases) == ["a_0003", "a_1000", "a_1001"]
  assert all(case.labelled for case in cases.values())


def test_a_scan_whose_label_is_missing_is_named(tmp_path):
  raw = build_samples.raw_folder("scan_label", tmp_path / "raw", subjects=3)
  assert found_in(raw, tmp_path).warnings == []
  label = sorted(raw.rglob("labels/*"))[1]
  label.unlink()
  [line] = found_in(raw, tmp_path).warnings
  assert line == (
      f"images/{label.name}: no label has this name, so it goes to the split unlabeled."
  )


def test_labels_beside_their_scans_pair_by_their_endings(tmp_path):
  root = tmp_path / "raw"
  for seed, name in enumerate(("sub_1", "sub_10", "sub_2")):
    scan_folders.save(scan_folders.voxels(seed), root / f"{name}.nii.gz")
    scan_folders.save(scan_folders.label_of(seed), root / f"{name}_label.nii.gz")
  cases = by_key(found_in(root, tmp_path))
  assert sorted(cases) == ["sub_1", "sub_10", "sub_2"]
  for name, case in cases.items():
    assert case.files["image"].name == f"{name}.nii.gz"
    assert case.files["label"].name == f"{name}_label.nii.gz"


def test_a_folder_for_each_case_names_the_subject(tmp_path):
  for seed in range(3):
    folder = tmp_path / "raw" / f"case_{seed}"
    scan_folders.save(scan_folders.voxels(seed), folder / "imaging.nii.gz")
    scan_folders.save(scan_folders.label_of(seed), folder / "segmentation.nii.gz")
  assert sorted(by_key(found_in(tmp_path / "raw", tmp_path))) == ["case_0", "case_1", "case_2"]


@pytest.mark.parametrize("inside", [True, False])
def test_published_sides_are_kept_unless_split_anew(inside, tmp_path):
  root = tmp_path / "raw"
  for seed, (side, name) in enumerate(
      (("train", "a"), ("train", "b"), ("valid", "c"), ("test", "d"))
  ):
    for kind, array in (("images", scan_folders.voxels(seed)),
                        ("labels", scan_folders.label_of(seed))):  # fmt: skip
      place = root / side / kind if inside else root / kind / side
      scan_folders.save(array, place / f"{name}.nii.gz")
  kept = {case.key: case.split for case in found_in(root, tmp_path).cases}
  assert kept == {"a": "train", "b": "train", "c": "validation", "d": "test"}
  assert {case.split for case in found_in(root, tmp_path, split="subject").cases} == {None}


def test_without_a_published_validation_side_some_of_train_validate(tmp_path):
  root = tmp_path / "raw"
  for seed in range(8):
    side = "test" if seed == 7 else "train"
    scan_folders.save(scan_folders.voxels(seed), root / side / "images" / f"s{seed}.nii.gz")
    scan_folders.save(scan_folders.label_of(seed), root / side / "labels" / f"s{seed}.nii.gz")
  splits = [case.split for case in found_in(root, tmp_path).cases]
  # 15 % of seven is 1.05.
  assert (splits.count("train"), splits.count("validation"), splits.count("test")) == (6, 1, 1)


def test_msd_names_its_classes_and_leaves_mac_files_and_unlabelled_scans_apart(tmp_path):
  scan_folders.msd(tmp_path / "raw")
  builder = builder_of(tmp_path)
  findings = builder.inspect_source(tmp_path / "raw")
  decided = builder.decide(findings)
  assert [entry["name"] for entry in decided["label_scheme"]] == [
      "background", "left_side", "right",
  ]  # fmt: skip
  cases = by_key(findings)
  assert sorted(cases) == ["toy_0000", "toy_0001", "toy_0002", "toy_0003", "toy_0009"]
  assert not cases["toy_0009"].labelled
  assert decided["modality"] == "mri" and findings.choices["layout"].startswith("msd")


def test_nnunet_strips_the_channel_and_keeps_its_folds(tmp_path):
  folder = scan_folders.nnunet(tmp_path / "raw")
  folds = [{"train": [], "val": ["case_1001", "case_1003"]}, {"train": [], "val": ["case_1000"]}]
  (folder / "splits_final.json").write_text(json.dumps(folds))
  cases = by_key(found_in(tmp_path / "raw", tmp_path))
  assert {name: case.fold for name, case in cases.items()} == {
      "case_1000": 1, "case_1001": 0, "case_1002": None, "case_1003": 0,
  }  # fmt: skip


@pytest.mark.parametrize(
    ("labels", "names"),
    [({"background": 0, "whole": [1, 2], "core": [2]}, ["background", "whole", "core"]),
     ({"background": 0, "whole": [1, 2], "core": 2}, ["background", "whole", "core"]),
     ({"background": 0, "whole": [1, 2]}, ["background", "whole_1", "whole_2"])],
)  # fmt: skip
def test_regions_of_nnunet_become_one_class_per_id_and_that_is_said(labels, names, tmp_path):
  scan_folders.nnunet(tmp_path / "raw", labels=labels)
  builder = builder_of(tmp_path)
  findings = builder.inspect_source(tmp_path / "raw")
  builder.set_source("", np.dtype(np.int16), builder.decide(findings))
  assert builder.label_scheme().names == names
  assert findings.choices["regions"].startswith("whole = 1+2")
  assert f"classes are the ids: 0 background, 1 {names[1]}, 2 {names[2]}" in (
      findings.choices["regions"]
  )


def test_regions_in_a_file_of_classes_are_refused(tmp_path):
  scan_folders.pairs(tmp_path / "raw")
  (tmp_path / "classes.json").write_text(json.dumps({"whole": [1, 2]}))
  line = refusal(tmp_path / "raw", tmp_path, classes=str(tmp_path / "classes.json"))
  assert "'whole' is a region of the ids [1, 2]" in line


def test_bids_keeps_the_sessions_of_a_person_together(tmp_path):
  scan_folders.bids(tmp_path / "raw")
  builder = builder_of(tmp_path)
  findings = builder.inspect_source(tmp_path / "raw")
  assert [(case.subject, case.volume) for case in findings.cases] == [
      (f"sub-0{n}", f"sub-0{n}_ses-{m}") for n in (1, 2, 3) for m in (1, 2)
  ]
  assert all(case.labelled for case in findings.cases)
  names = [entry["name"] for entry in builder.decide(findings)["label_scheme"]]
  assert names == ["background", "front_part", "back"]


def test_of_several_bids_contrasts_the_user_names_one(tmp_path):
  root = scan_folders.bids(tmp_path / "raw", sessions=("ses-1",))
  for scan in list(root.glob("sub-*/ses-1/anat/*_T1w.nii.gz")):
    shutil.copy(scan, str(scan).replace("_T1w", "_FLAIR"))
  assert "holds the contrasts FLAIR, T1w" in refusal(root, tmp_path)
  cases = found_in(root, tmp_path, channels=("FLAIR",)).cases
  assert {case.files["image"].name[-13:] for case in cases} == {"_FLAIR.nii.gz"}


def test_a_bids_label_of_no_scan_is_named(tmp_path):
  root = scan_folders.bids(tmp_path / "raw", sessions=("ses-1",))
  lost = root / "derivatives/manual/sub-01/ses-1/anat/sub-01_ses-1_run-2_desc-toy_dseg.nii.gz"
  scan_folders.save(scan_folders.label_of(0), lost)
  for scan in list(root.glob("sub-*/ses-1/anat/*_T1w.nii.gz")):
    scan.rename(str(scan).replace("_T1w", "_run-1_T1w"))
  assert "run-2_desc-toy_dseg.nii.gz: must belong to one scan" in refusal(root, tmp_path)


TABLE = "subject;image;label;split;fold\n"


@pytest.mark.parametrize("given", [False, True])
def test_a_table_lists_scans_of_any_form(given, tmp_path):
  root = tmp_path / "raw"
  rows = ["anna;x/1.nii;y/1.nii;train;0", "anna;x/2.nii;y/2.nii;train;0",
          "bert;x/3.nii;y/3.nii;val;1", "carl;x/4.nii;;;"]  # fmt: skip
  for number in range(1, 5):
    scan_folders.save(scan_folders.voxels(number), root / "x" / f"{number}.nii")
    scan_folders.save(scan_folders.label_of(number), root / "y" / f"{number}.nii")
  table = (tmp_path / "mine.csv") if given else root / "scans.csv"
  table.write_text(TABLE + "\n".join(rows) + "\n")
  options = {"table": str(table)} if given else {}
  cases = by_key(found_in(root, tmp_path, **options))
  assert {name: (c.subject, c.split, c.fold, c.labelled) for name, c in cases.items()} == {
      "anna_1": ("anna", "train", 0, True),
      "anna_2": ("anna", "train", 0, True),
      "bert": ("bert", "validation", 1, True),
      "carl": ("carl", None, None, False),
  }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image,label\na.nii,b.nii\n", "must have a header subject,image"),
        ("subject,image,lable\na,images/anna.nii.gz,x\n", "Did you mean 'label'"),
        ("subject,image\na,nowhere.nii\n", "line 2: image nowhere.nii: there is no such file"),
        ("subject,image\na,../x.nii\n", "must lie in the raw folder"),
        ("subject,image,label,split\na,images/anna.nii.gz,labels/anna.nii.gz,some\n",
         "split must be train, validation or test"),
    ],
)  # fmt: skip
def test_a_bad_table_is_one_clear_line(text, words, tmp_path):
  root = scan_folders.pairs(tmp_path / "raw")
  (root / "scans.csv").write_text(text)
  assert words in refusal(root, tmp_path)


def test_two_layouts_or_none_are_said_with_what_was_looked_for(tmp_path):
  scan_folders.pairs(tmp_path / "raw" / "one")
  scan_folders.pairs(tmp_path / "raw" / "two")
  message = refusal(tmp_path / "raw", tmp_path)
  assert "several layouts fit: pairs in one, pairs in two" in message and "scans.csv" in message
  (tmp_path / "empty").mkdir()
  (tmp_path / "empty" / "notes.txt").write_text("")
  message = refusal(tmp_path / "empty", tmp_path)
  assert "nothing of this dataset was found" in message and "subject,image[,image2" in message


def test_ids_without_names_are_counted_and_get_made_up_ones(tmp_path):
  root = scan_folders.pairs(tmp_path / "raw", names=("anna",))
  builder = builder_of(tmp_path)
  findings = builder.inspect_source(root)
  decided = builder.decide(findings)
  assert [entry["name"] for entry in decided["label_scheme"]] == [
      "background", "class_1", "class_2",
  ]  # fmt: skip
  # Blocks of 3 x 4 x 3 and of 3 x 3 x 3 voxels.
  text = findings.choices["classes"]
  assert "label ids 1 (36 voxels), 2 (27 voxels)" in text and "--classes=classes.json" in text


def test_classes_are_named_merged_and_dropped_by_the_user(tmp_path):
  root = scan_folders.pairs(tmp_path / "raw")
  (tmp_path / "classes.json").write_text('{"1": "hippocampus left", "2": "hippocampus right"}')
  classes = str(tmp_path / "classes.json")

  def decided(**options):
    builder = builder_of(tmp_path, **options)
    found = builder.decide(builder.inspect_source(root))
    return [entry["name"] for entry in found["label_scheme"]], dict(found["label_map"])

  names, ids = decided(classes=classes)
  assert names == ["background", "hippocampus_left", "hippocampus_right"]
  names, ids = decided(map=("1:hippocampus", "2:hippocampus"))
  assert names == ["background", "hippocampus"] and ids == {0: 0, 1: 1, 2: 1}
  names, ids = decided(map=("1:background",), classes=classes)
  assert names == ["background", "hippocampus_right"] and ids == {0: 0, 1: 0, 2: 1}
  assert "map names label id 7" in refusal(root, tmp_path, map=("7:x",))
  with pytest.raises(InputError, match="map must be ID:NAME"):
    builder_of(tmp_path, map=("hippocampus",))


def test_a_label_id_that_nothing_names_is_an_error_with_its_voxels(tmp_path):
  folder = scan_folders.nnunet(tmp_path / "raw", labels={"background": 0, "front": 1})
  with pytest.raises(InputError) as error:
    slices_of(tmp_path / "raw", tmp_path)
  message = str(error.value)
  assert str(folder / "labelsTr" / "case_1000.nii.gz") in message
  assert "found 2 (voxels: 27)" in message and "--classes" in message
  cut = slices_of(tmp_path / "raw", tmp_path, map=("2:background",))
  assert np.unique(cut["case_1000"][1]).tolist() == [0, 1]
