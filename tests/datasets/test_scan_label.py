"""Folders of scans and labels in every layout, and what is wrong with them."""

import json
import pathlib
import shutil
import tempfile
from typing import ClassVar

import build_samples
import nibabel as nib
import numpy as np
import pytest
import scan_folders
import tensorflow_datasets as tfds

from flexunet.core.errors import InputError
from flexunet.datasets import catalog
from flexunet.datasets.builder.raw_folder import Notes
from flexunet.datasets.scan_label import scan_label_dataset_builder
from flexunet.imaging.slice_recipe import SliceRecipe


def builder_of(tmp_path, **options):
  return catalog.builder("scan_label", tmp_path / "out", options=options)


def found_in(root, tmp_path, **options):
  return builder_of(tmp_path, **options).inspect_source(root)


def by_key(findings):
  return {case.key: case for case in findings.cases}


def refusal(root, tmp_path, **options) -> str:
  with pytest.raises(InputError) as error:
    builder = builder_of(tmp_path, **options)
    builder.decide(builder.inspect_source(root))
  return str(error.value)


def slices_of(root, tmp_path, **options):
  """Returns {case key: (images, labels, spacings)} as a build would write them."""
  builder = builder_of(tmp_path, **options)
  findings = builder.inspect_source(root)
  builder.set_source("", np.dtype(np.int16), builder.decide(findings))
  cut = {}
  for case in findings.cases:
    slices = list(builder.slices_of(case, Notes()))
    cut[case.key] = (
        np.stack([one.image for one in slices]),
        np.stack([one.label for one in slices]),
        [(*one.spacing_mm, one.slice_spacing_mm) for one in slices],
    )
  return cut


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


def test_slices_agree_with_the_files_voxel_for_voxel(tmp_path):
  root = scan_folders.pairs(tmp_path / "raw", names=("anna",))
  image, label, spacings = slices_of(root, tmp_path)["anna"]
  # Axes L, A, S with 3 mm between slices: axial, rows run to the back, columns to the left.
  expected = scan_folders.label_of(0)[:, ::-1].transpose(2, 1, 0)
  np.testing.assert_array_equal(label, expected)
  assert spacings[0] == (1.0, 1.0, 3.0)
  scan = scan_folders.voxels(0)[:, ::-1].transpose(2, 1, 0).astype(float)
  inside = (image > 0) & (image < 255)
  assert np.corrcoef(scan[inside], image[inside])[0, 1] > 0.999


def turned(array, affine, codes):
  image = nib.Nifti1Image(array, affine)
  turn = nib.orientations.ornt_transform(
      nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(codes)
  )
  image = image.as_reoriented(turn)
  return np.asanyarray(image.dataobj), image.affine


@pytest.mark.parametrize("codes", ["LAS", "RAS", "LPS", "RPI", "ASL", "SPR", "PIR", "ILA"])
def test_eight_orientations_of_a_scan_give_equal_records(codes, tmp_path):
  plain = slices_of(scan_folders.pairs(tmp_path / "plain", names=("a",)), tmp_path)["a"]
  for kind, array in (("images", scan_folders.voxels(0)), ("labels", scan_folders.label_of(0))):
    voxels, affine = turned(array, scan_folders.LAS, codes)
    scan_folders.save(voxels, tmp_path / "turned" / kind / "a.nii.gz", affine)
  for own, wanted in zip(slices_of(tmp_path / "turned", tmp_path)["a"], plain, strict=True):
    np.testing.assert_array_equal(own, wanted)


def written(kind: str, path, array):
  """Writes a scan in an odd but equal form."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if kind == "big_endian":
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(array.dtype.newbyteorder(">"))
    nib.save(nib.Nifti1Image(array, scan_folders.LAS, header), path)
  elif kind == "singleton":
    nib.save(nib.Nifti1Image(array[..., None], scan_folders.LAS), path)
  elif kind == "slope":
    image = nib.Nifti1Image((array * 2).astype(np.int16), scan_folders.LAS)
    image.header.set_slope_inter(0.5, 0.0)
    nib.save(image, path)
    stored = bytearray(path.read_bytes())
    stored[112:120] = np.array([0.5, 0.0], "<f4").tobytes()  # scl_slope, scl_inter
    path.write_bytes(stored)
  elif kind == "float":
    nib.save(nib.Nifti1Image(array.astype(np.float32), scan_folders.LAS), path)
  else:
    nib.save(nib.Nifti1Image(array.astype(np.uint8), scan_folders.LAS), path)


@pytest.mark.parametrize("kind", ["big_endian", "singleton", "slope", "float", "uint8"])
def test_odd_forms_of_a_scan_give_equal_records(kind, tmp_path):
  plain = slices_of(scan_folders.pairs(tmp_path / "plain", names=("a",)), tmp_path)["a"]
  written(kind, tmp_path / "odd" / "images" / "a.nii", scan_folders.voxels(0))
  # Labels are also written with a slope, as floats and on a trailing axis.
  label = scan_folders.label_of(0).astype(np.int16)
  written(kind, tmp_path / "odd" / "labels" / "a.nii", label)
  for own, wanted in zip(slices_of(tmp_path / "odd", tmp_path)["a"], plain, strict=True):
    np.testing.assert_array_equal(own, wanted)


def test_an_oblique_scan_keeps_its_own_grid(tmp_path):
  plain = slices_of(scan_folders.pairs(tmp_path / "plain", names=("a",)), tmp_path)["a"]
  angle = np.radians(12)
  turn = np.eye(4)
  turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
  for kind, array in (("images", scan_folders.voxels(0)), ("labels", scan_folders.label_of(0))):
    scan_folders.save(array, tmp_path / "odd" / kind / "a.nii.gz", turn @ scan_folders.LAS)
  image, label, spacings = slices_of(tmp_path / "odd", tmp_path)["a"]
  np.testing.assert_array_equal(image, plain[0])
  np.testing.assert_array_equal(label, plain[1])
  np.testing.assert_allclose(spacings, plain[2])


@pytest.mark.parametrize("what", ["shape", "affine", "values"])
def test_a_label_that_does_not_fit_its_scan_is_one_line(what, tmp_path):
  root = scan_folders.pairs(tmp_path / "raw", names=("anna",))
  label, affine = scan_folders.label_of(0), scan_folders.LAS.copy()
  if what == "shape":
    label = label[:-1]
  elif what == "affine":
    affine[0, 3] = 5.0
  else:
    label = label.astype(np.float32) + 0.5
  scan_folders.save(label, root / "labels" / "anna.nii.gz", affine)
  with pytest.raises(InputError) as error:
    slices_of(root, tmp_path)
  assert "labels/anna.nii.gz" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [((1, 1, 3), "axial"), ((1, 2, 1), "coronal"), ((3, 1, 1), "sagittal"), ((1, 1, 1), "axial"),
     ((0.5, 0.5, 0.4), "axial"), ((1, 2, 3), "axial"), ((1, 3, 2), "coronal")],
)  # fmt: skip
def test_the_plane_is_that_of_the_finest_equal_spacing(spacing, expected, tmp_path):
  affine = np.diag([-spacing[0], spacing[1], spacing[2], 1.0])
  shape = (12, 12, 12)
  for kind, array in (("images", scan_folders.voxels(0, shape)),
                      ("labels", scan_folders.label_of(0, shape))):  # fmt: skip
    scan_folders.save(array, tmp_path / "raw" / kind / "a.nii.gz", affine)
  builder = builder_of(tmp_path)
  assert builder.decide(builder.inspect_source(tmp_path / "raw"))["plane"] == expected


def mixed_spacing(root) -> pathlib.Path:
  for seed, mm in enumerate((1.0, 1.0, 2.0)):
    affine = np.diag([-mm, mm, 5.0, 1.0])
    name = f"s{seed}.nii.gz"
    scan_folders.save(scan_folders.voxels(seed), root / "images" / name, affine)
    scan_folders.save(scan_folders.label_of(seed), root / "labels" / name, affine)
  return root


def test_mixed_spacings_become_their_median(tmp_path):
  cut = slices_of(mixed_spacing(tmp_path / "raw"), tmp_path)
  # Ten columns and twelve rows of 2 mm are twenty and twenty-four of 1 mm.
  assert {key: image.shape for key, (image, _, _) in cut.items()} == {
      "s0": (6, 12, 10), "s1": (6, 12, 10), "s2": (6, 24, 20),
  }  # fmt: skip
  assert {spacing for _, _, spacings in cut.values() for spacing in spacings} == {(1.0, 1.0, 5.0)}
  assert set(np.unique(cut["s2"][1])) == {0, 1, 2}


def test_spacings_are_kept_or_given_where_asked_for(tmp_path):
  root = mixed_spacing(tmp_path / "raw")
  kept = slices_of(root, tmp_path, spacing_mm="keep")
  assert kept["s2"][0].shape == (6, 12, 10) and kept["s2"][2][0] == (2.0, 2.0, 5.0)
  given = slices_of(root, tmp_path, spacing_mm="2,0.5")
  assert given["s0"][0].shape == (6, 6, 20) and given["s0"][2][0] == (2.0, 0.5, 5.0)
  with pytest.raises(InputError, match="spacing_mm must be auto, keep, or ROW,COLUMN"):
    builder_of(tmp_path, spacing_mm="fine")


def test_ct_gets_one_window_from_the_foreground_of_the_training_split(tmp_path):
  folder = scan_folders.msd(tmp_path / "raw", modality="CT", count=6)
  for path in folder.glob("imagesTr/toy*"):
    scan = np.asanyarray(nib.load(path).dataobj).copy()
    label = np.asanyarray(nib.load(folder / "labelsTr" / path.name).dataobj)
    scan[label == 0] = -1000
    scan[label == 1], scan[label == 2] = 40, 80
    scan_folders.save(scan, path)
  builder = builder_of(tmp_path)
  findings = builder.inspect_source(tmp_path / "raw")
  decided = builder.decide(findings)
  # The labels hold nothing but 40 and 80.
  assert decided["intensity"] == {"kind": "window", "low": 40.0, "high": 80.0}
  assert "labelled voxels of the training split" in findings.choices["intensities"]
  # What the user leaves out of the training split has no say: subject 0 alone is brighter.
  bright = folder / "imagesTr" / "toy_0000.nii.gz"
  scan_folders.save(np.asanyarray(nib.load(bright).dataobj) + np.int16(500), bright)
  (tmp_path / "test.txt").write_text("toy_0000\n")
  held_out = builder_of(tmp_path, holdout=str(tmp_path / "test.txt"))
  decided = held_out.decide(held_out.inspect_source(tmp_path / "raw"))
  assert decided["intensity"] == {"kind": "window", "low": 40.0, "high": 80.0}
  given = builder_of(tmp_path, modality="mri")
  decided = given.decide(given.inspect_source(tmp_path / "raw"))
  assert decided["intensity"]["kind"] == "percentile"


def test_hounsfield_units_are_recognised_by_their_air(tmp_path):
  root = scan_folders.pairs(tmp_path / "raw")
  scan = scan_folders.voxels(0)
  scan[0] = -1024
  scan_folders.save(scan, root / "images" / "anna.nii.gz")
  builder = builder_of(tmp_path)
  assert builder.decide(builder.inspect_source(root))["modality"] == "ct"


@pytest.mark.slow
def test_a_build_is_reported_and_read_again(tmp_path):
  root = mixed_spacing(scan_folders.pairs(tmp_path / "raw"))
  builder = build_samples.build("scan_label", root, tmp_path / "out", workers=2)
  report = build_samples.report_of(builder)
  assert report["in_plane_mm"] == [1.0, 1.0] and report["channel_names"] == ["image"]
  assert report["choices"]["layout"].startswith("pairs") and report["decided"]["plane"] == "axial"
  again = catalog.builder("scan_label", tmp_path / "out")
  assert again.info.features["label"].names == ["background", "class_1", "class_2"]
  assert again.label_scheme().names == ["background", "class_1", "class_2"]


def channels_of(root, tmp_path, **options):
  """Returns [(image of each channel, label) of each slice] of the first case."""
  builder = builder_of(tmp_path, **options)
  findings = builder.inspect_source(root)
  builder.set_source("", np.dtype(np.int16), builder.decide(findings))
  notes = Notes()
  slices = list(builder.slices_of(findings.cases[0], notes))
  return [((one.image, *one.others), one.label) for one in slices], notes


def test_channels_are_features_of_their_own_with_a_window_each(tmp_path):
  scan_folders.nnunet(tmp_path / "raw", channels=("FLAIR", "T1", "T2"))
  slices, _ = channels_of(tmp_path / "raw", tmp_path)
  assert len(slices) == 6 and {len(images) for images, _ in slices} == {3}
  # The channels differ by 7 and by 14, which a window of percentiles takes away.
  for images, _ in slices:
    np.testing.assert_array_equal(images[0], images[1])
  builder = build_samples.build("scan_label", tmp_path / "raw", tmp_path / "out")
  report = build_samples.report_of(builder)
  assert report["channel_names"] == ["FLAIR", "T1", "T2"]
  assert len(report["other_intensities"]) == 2
  record = next(iter(tfds.as_numpy(builder.as_dataset("train"))))
  assert {key: record[key].shape for key in record if key.startswith("image")} == {
      "image": (12, 10, 1), "image_2": (12, 10, 1), "image_3": (12, 10, 1),
  }  # fmt: skip


def test_channels_are_chosen_by_name_and_in_order(tmp_path):
  folder = scan_folders.nnunet(tmp_path / "raw", channels=("FLAIR", "T1", "T2"))
  cases = found_in(tmp_path / "raw", tmp_path, channels=("T2", "FLAIR")).cases
  assert cases[0].files["image"] == folder / "imagesTr" / "case_1000_0002.nii.gz"
  assert cases[0].files["image_2"] == folder / "imagesTr" / "case_1000_0000.nii.gz"
  assert "no PD" in refusal(tmp_path / "raw", tmp_path, channels=("PD",))


def test_a_case_that_lacks_a_channel_is_named(tmp_path):
  folder = scan_folders.nnunet(tmp_path / "raw", channels=("FLAIR", "T1"))
  (folder / "imagesTr" / "case_1002_0001.nii.gz").unlink()
  assert "scan case_1002 lacks the channel T1" in refusal(tmp_path / "raw", tmp_path)


def test_scans_beside_one_label_are_its_channels(tmp_path):
  for seed in range(3):
    folder = tmp_path / "raw" / f"BraTS_{seed}"
    for name in ("flair", "t1", "t1ce"):
      scan_folders.save(scan_folders.voxels(seed), folder / f"BraTS_{seed}_{name}.nii.gz")
    scan_folders.save(scan_folders.label_of(seed), folder / f"BraTS_{seed}_seg.nii.gz")
  findings = found_in(tmp_path / "raw", tmp_path)
  assert findings.choices["channels"] == "flair, t1, t1ce"
  assert [case.key for case in findings.cases] == ["BraTS_0", "BraTS_1", "BraTS_2"]


def test_channels_on_other_grids_are_refused_or_resampled(tmp_path):
  folder = scan_folders.nnunet(tmp_path / "raw", channels=("T1", "T2"))
  # The second channel of the first case: every second column, each twice as wide.
  coarse = scan_folders.LAS.copy()
  coarse[0, 0] = -2.0
  other = folder / "imagesTr" / "case_1000_0001.nii.gz"
  ramp = np.broadcast_to(10 + 20 * np.arange(5)[:, None, None], (5, 12, 6)).astype(np.int16)
  scan_folders.save(ramp, other, coarse)
  with pytest.raises(InputError) as error:
    channels_of(tmp_path / "raw", tmp_path)
  for words in (str(other), "case_1000_0000.nii.gz", "5 x 12 x 6", "--resample_channels"):
    assert words in str(error.value)
  slices, notes = channels_of(tmp_path / "raw", tmp_path, resample_channels=True)
  assert notes.facts["resampled_channels"] == ["T2"]
  row = slices[0][0][1][0].astype(int)
  # A ramp stays a ramp between the centres of its voxels, columns 0 to 8 of the fine grid.
  assert row.shape == (10,) and (np.diff(row[1:8]) > 0).all()
  assert np.ptp(np.diff(row[1:8])) <= 1


def test_a_channel_whose_axes_run_another_way_is_turned(tmp_path):
  folder = scan_folders.nnunet(tmp_path / "raw", channels=("T1", "T2"))
  plain, _ = channels_of(tmp_path / "raw", tmp_path)
  other = folder / "imagesTr" / "case_1000_0001.nii.gz"
  scan_folders.save(*turned_to(other, "RPI"))
  found, notes = channels_of(tmp_path / "raw", tmp_path)
  assert "resampled_channels" not in notes.facts
  for (images, _), (wanted, _) in zip(found, plain, strict=True):
    np.testing.assert_array_equal(images[1], wanted[1])


def turned_to(path, codes):
  """Returns (voxels, path, affine) of a scan with its axes running another way."""
  image = nib.load(path)
  voxels, affine = turned(np.asanyarray(image.dataobj), image.affine, codes)
  return voxels, path, affine


def test_whole_volumes_hold_every_channel_and_are_cut_the_same(tmp_path):
  scan_folders.nnunet(tmp_path / "raw", channels=("T1", "T2"))
  slices, _ = channels_of(tmp_path / "raw", tmp_path)
  builder = build_samples.build("scan_label/volumes", tmp_path / "raw", tmp_path / "out")
  recipe = SliceRecipe.of_report(build_samples.report_of(builder))
  records = [r for split in builder.info.splits for r in tfds.as_numpy(builder.as_dataset(split))]
  record = next(r for r in records if r["subject"] == b"case_1000")
  images = recipe.cut_record(record).images()
  for own, (wanted, _) in zip(images, slices, strict=True):
    np.testing.assert_array_equal(np.moveaxis(own, -1, 0), np.stack(wanted))


@pytest.mark.realdata
@pytest.mark.slow
def test_the_scans_of_hippocampus_t1w_give_the_same_slices(realdata_tree, tmp_path):
  raw = realdata_tree("hippocampus_t1w", subjects=3)
  mine = tmp_path / "mine"
  for path in sorted(raw.rglob("HFH_*")):
    kind = "labels" if "Labels" in path.name else "images"
    (mine / kind).mkdir(parents=True, exist_ok=True)
    shutil.copy(path, mine / kind / path.name.replace("_Hipp_Labels", "_label"))
  theirs = catalog.builder("hippocampus_t1w/left_right", tmp_path / "out")
  found = theirs.inspect_source(raw)
  ours = slices_of_labelled(mine, tmp_path)
  assert ours
  for case in (case for case in found.cases if case.labelled):
    for one, (image, label) in zip(
        theirs.slices_of(case, Notes()), ours[case.key.upper()], strict=True
    ):
      np.testing.assert_array_equal(one.image, image)
      np.testing.assert_array_equal(one.label, label)


def slices_of_labelled(root, tmp_path):
  """Returns {case key: (image, label) of each slice} of the labelled scans."""
  builder = builder_of(tmp_path)
  findings = builder.inspect_source(root)
  builder.set_source("", np.dtype(np.int16), builder.decide(findings))
  return {
      case.key: [(one.image, one.label) for one in builder.slices_of(case, Notes())]
      for case in findings.cases if case.labelled
  }  # fmt: skip


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.parametrize("layout", ["pairs", "msd", "nnunet", "bids"])
def test_real_layouts_agree_with_nibabel_voxel_for_voxel(layout, realdata_tree, tmp_path):
  raw = realdata_tree(layout, subjects=2)
  builder = catalog.builder("scan_label", tmp_path / "out", options={"plane": "coronal"})
  findings = builder.inspect_source(raw)
  builder.set_source("", np.dtype(np.int16), builder.decide(findings))
  labelled = [case for case in findings.cases if case.labelled]
  assert len(labelled) == 1 and len(findings.cases) == 2
  label = np.asanyarray(nib.load(labelled[0].files["label"]).dataobj)
  cut = np.stack([one.label for one in builder.slices_of(labelled[0], Notes())], axis=1)
  # LAS scans: rows of a coronal slice run downwards, columns to the left.
  np.testing.assert_array_equal(cut[::-1].transpose(2, 1, 0), label)
