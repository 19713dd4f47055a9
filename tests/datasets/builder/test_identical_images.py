"""One scan under two subject names is found, named, and kept on one side."""

import json
import pathlib
import shutil

import build_samples
import nibabel as nib
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from flexunet.datasets import built_dataset
from flexunet.datasets.builder import case_splits, identical_images, shard_writer
from flexunet.datasets.builder.identical_images import CaseImages, digests_of, digests_of_volume
from flexunet.datasets.builder.raw_folder import Case
from flexunet.tools import verify_records

HIPPOCAMPUS = "hippocampus_t1w"


def case(subject, split=None, labelled=True):
  return Case(
      key=f"{subject}_{split or ''}", subject=subject, volume=subject, files={}, split=split,
      labelled=labelled,
  )  # fmt: skip


def found_in(**digests):
  """Returns the subjects that share images, of {subject: a letter per image}."""
  images = [CaseImages(case(name), [(one,) for one in text]) for name, text in digests.items()]
  return identical_images.find(images).joined


def test_images_that_show_next_to_nothing_have_no_digest():
  black = np.zeros((40, 50), np.uint8)
  marked = black.copy()
  marked[:4, :4] = 255  # 16 of 2000 pixels: less than one in a hundred.
  seen = black.copy()
  seen[:4, :5] = 255  # 20 of them.
  constant = np.full((40, 50, 3), (200, 10, 90), np.uint8)
  unknown = np.full((40, 50), np.nan, np.float32)
  assert digests_of([black, marked, constant, unknown]) == ()
  assert len(digests_of([seen])) == 1


def test_a_digest_is_of_the_pixels_and_their_frame():
  image = np.arange(200, dtype=np.uint8).reshape(10, 20)
  assert digests_of([image]) == digests_of([np.asfortranarray(image)])
  assert digests_of([image]) != digests_of([image.reshape(20, 10)])
  changed = image.copy()
  changed[5, 5] += 1
  assert digests_of([image]) != digests_of([changed])


def test_a_volume_in_another_type_and_byte_order_has_the_same_digests():
  voxels = np.random.default_rng(0).integers(0, 500, (8, 9, 3)).astype(np.int16)
  first = digests_of_volume(voxels, 2.0, -10.0)
  assert len(first) == 3
  assert digests_of_volume(voxels.astype(">i2"), 2.0, -10.0) == first
  assert digests_of_volume((2.0 * voxels - 10).astype(np.float32), 1.0, 0.0) == first


def test_subjects_that_share_one_image_belong_together():
  assert found_in(a="xyz", b="uvw", c="zpq") == [["a", "c"]]
  assert found_in(a="xy", b="yz", c="zw", d="pq") == [["a", "b", "c"]]
  assert found_in(a="x", b="y") == []


def test_a_title_page_joins_nobody_and_five_copies_of_a_scan_are_one():
  pages = {f"p{number}": f"T{'ABCDEFGH'[number]}{'abcdefgh'[number]}" for number in range(8)}
  assert found_in(**pages) == []
  # Two of them share their scan as well: they alone are joined.
  assert found_in(**pages, q=pages["p3"]) == [["p3", "q"]]
  assert found_in(**{f"p{number}": "xyz" for number in range(5)}) == [
      ["p0", "p1", "p2", "p3", "p4"]]


def test_what_published_sides_share_is_left_out_of_train_then_of_validation():
  images = [
      CaseImages(case("a", "train"), [("x",), ("y",), ("z",), ("w",), ()]),
      CaseImages(case("b", "validation"), [("x",), ("p",), ("q",)]),
      CaseImages(case("c", "test"), [("p",), ("r",)]),
      CaseImages(case("d", "train"), [("r",), ()]),
      CaseImages(case("e", "train"), [("s",)]),
      CaseImages(case("f", labelled=False), [("x",)]),
  ]
  identical = identical_images.find(images)
  assigned = case_splits.decide([one.case for one in images], "salt")
  assert identical.copies(images, assigned) == {
      "a_train": {0: "validation"},
      "b_validation": {1: "test"},
      # All of d: half of what it shows or more is in test.
      "d_train": {0: "test", 1: "test"},
  }
  (line,) = identical.warnings(assigned, str)
  assert line.startswith("LEAK: Subjects a, b, c, d, f share 3 identical images in train and")
  assert identical.report(assigned, str) == [
      {"subjects": ["a", "b", "c", "d", "f"], "images": 3,
       "splits": ["train", "validation", "test", "unlabeled"]}]  # fmt: skip


def test_another_fold_in_a_payload_is_what_a_worker_would_have_written():
  features = tfds.features.FeaturesDict({
      "fold": tfds.features.Scalar(np.int32), "subject": tfds.features.Text()})
  # As in `case_records`.
  from tensorflow_datasets.core import example_serializer

  serializer = example_serializer.ExampleSerializer(features.get_serialized_info())

  def payload(fold):
    encoded = features.encode_example({"fold": fold, "subject": "a"})
    return serializer.get_tf_example(encoded).SerializeToString(deterministic=True)

  for fold in (-1, 0, 4):
    assert shard_writer._with_fold(payload(2), fold) == payload(fold)


def copy_subject(raw, number, other, compress=False):
  """Adds a subject with the scan of another one, as ANALYZE pair or packed as .nii.gz."""
  for path in [p for p in raw.rglob(f"HFH_{number:03d}*") if "Test" not in p.parts]:
    target = path.with_name(path.name.replace(f"HFH_{number:03d}", f"HFH_{other:03d}"))
    if not compress:
      shutil.copyfile(path, target)
    elif path.suffix == ".hdr":
      stored = nib.load(path)
      header = nib.Nifti1Header()
      header.set_data_dtype(">f4")
      image = nib.Nifti1Image(np.asarray(stored.dataobj), stored.affine, header)
      image.set_sform(None, 0)
      image.set_qform(None, 0)
      image.to_filename(target.with_suffix(".nii.gz"))


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
  """A raw folder of eight subjects and two copies, and the numbers that show one scan."""
  raw = build_samples.raw_folder(
      HIPPOCAMPUS, tmp_path_factory.mktemp("twins") / "raw", subjects=8)
  copy_subject(raw, 2, 21)
  copy_subject(raw, 2, 22, compress=True)
  return raw, {"hfh_002", "hfh_021", "hfh_022"}


def test_one_scan_under_three_names_stands_on_one_side(twins, tmp_path):
  raw, same = twins
  builder = build_samples.build(HIPPOCAMPUS, raw, tmp_path)
  rows = build_samples.rows_of(builder)
  by_names_alone = builder.assign_splits(builder.inspect_source(raw).cases)
  # By their names they would part; that is what this test is about.
  assert len({by_names_alone.splits[name] for name in same}) > 1
  assert len({(row["split"], row["fold"]) for row in rows if row["subject"] in same}) == 1
  report = build_samples.report_of(builder)
  (entry,) = report["identical_images"]
  assert set(entry["subjects"]) == same and entry["images"] > 0 and len(entry["splits"]) == 1
  (line,) = [text for text in report["warnings"] if "identical images" in text]
  assert "hfh_002, hfh_021, hfh_022" in line
  listed = json.loads((pathlib.Path(builder.data_path) / "splits.json").read_text())["subjects"]
  assert len({listed[name]["split"] for name in same}) == 1
  assert {name: split["num_subjects"] for name, split in report["splits"].items()} == {
      "train": 7, "validation": 2, "test": 1, "unlabeled": 1}


def test_folds_that_change_by_it_are_those_of_the_records_and_all_verifies(twins, tmp_path):
  raw, _ = twins
  builder = build_samples.build(HIPPOCAMPUS, raw, tmp_path / "one")
  dataset = built_dataset.open_folder(pathlib.Path(builder.data_path))
  by_names_alone = builder.assign_splits(builder.inspect_source(raw).cases).folds
  changed = 0
  for row, record in dataset.records():
    assert int(row["fold"]) == record["fold"]
    changed += record["fold"] != by_names_alone.get(record["subject"], -1)
  assert changed > 0
  assert verify_records.verify(dataset).problems == []
  again = build_samples.build(HIPPOCAMPUS, raw, tmp_path / "two")
  assert build_samples.digests(again.data_path) == build_samples.digests(builder.data_path)


def test_whole_volumes_are_compared_too(twins, tmp_path):
  raw, same = twins
  builder = build_samples.build(HIPPOCAMPUS, raw, tmp_path, config="volumes")
  (entry,) = build_samples.report_of(builder)["identical_images"]
  assert set(entry["subjects"]) == same
  assert entry["images"] <= build_samples.SIZES[HIPPOCAMPUS][2]


def test_an_interrupted_build_with_copies_ends_with_the_same_bytes(twins, tmp_path):
  raw, _ = twins
  whole = build_samples.build(HIPPOCAMPUS, raw, tmp_path / "whole")
  build_samples.build_until(4, HIPPOCAMPUS, raw, tmp_path / "cut")
  builder = build_samples.build(HIPPOCAMPUS, raw, tmp_path / "cut")
  assert build_samples.digests(builder.data_path) == build_samples.digests(whole.data_path)


def write_image(folder, stem, seed, suffix="png"):
  """Writes an image and its mask."""
  for kind in ("images", "masks"):
    (folder / kind).mkdir(parents=True, exist_ok=True)
  image = np.random.default_rng(seed).integers(0, 255, (20, 30)).astype(np.uint8)
  Image.fromarray(image).save(folder / "images" / f"{stem}.{suffix}")
  mask = np.zeros((20, 30), np.uint8)
  mask[5:9, 5:9] = 255
  Image.fromarray(mask).save(folder / "masks" / f"{stem}.png")


def test_a_copy_in_published_train_of_a_test_image_is_left_out_and_named(tmp_path):
  raw = tmp_path / "raw"
  for number, (side, subject) in enumerate(
      [("train", 1001), ("train", 1002), ("valid", 1003), ("test", 1004)]
  ):
    for index in range(3):
      write_image(raw / side, f"{subject}_{index}", 10 * number + index)
  write_image(raw / "train", "1001_7", 31, suffix="bmp")  # 1004_1, in another container.
  builder = build_samples.build("image_mask/binary", raw, tmp_path / "out")
  report = build_samples.report_of(builder)
  keys = {row["key"] for row in build_samples.rows_of(builder)}
  assert "1001_0007" not in keys and "1004_0001" in keys and len(keys) == 12
  assert report["slices_left_out"] == {"1001": {"copy in train of what stands in test": 1}}
  (line,) = report["warnings"]
  assert line.startswith("LEAK: Subjects 1001, 1004 share 1 identical image in train and test")


def test_one_image_of_one_subject_on_two_published_sides_is_left_out_of_train(tmp_path):
  raw = tmp_path / "raw"
  for index in range(4):
    write_image(raw / "train", f"1001_{index}", index)
  write_image(raw / "test", "1001_9", 2)
  write_image(raw / "valid", "1003_1", 50)
  builder = build_samples.build("image_mask/binary", raw, tmp_path / "out")
  rows = build_samples.rows_of(builder)
  assert {row["slice_index"] for row in rows if row["split"] == "train"} == {"0", "1", "3"}
  lines = build_samples.report_of(builder)["warnings"]
  assert any(line.startswith("LEAK: Subject 1001 has 1 identical image in") for line in lines)
