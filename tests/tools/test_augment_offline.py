"""augment_offline on small built phantoms: what gets copies, what stays, what is refused."""

import dataclasses
import json
import pathlib
import re

import build_samples
import forked
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.datasets import built_dataset
from flexunet.datasets.builder import croissant
from flexunet.pipelines import dataset_source, readers
from flexunet.pipelines.augmentation.config import AugmentationConfig
from flexunet.tools import verify_records
from flexunet.tools.augment_offline import copies, dataset

ROTATED = AugmentationConfig(
    augmentation="none", rotation_probability=1.0, flip_horizontal_probability=0.5
).resolve()


@pytest.fixture(scope="module")
def stroke(tmp_path_factory):
  """A built dataset of two foreground classes."""
  folder = tmp_path_factory.mktemp("stroke")
  raw = build_samples.raw_folder("brain_stroke_ct", folder / "raw", subjects=8)
  builder = build_samples.build("brain_stroke_ct", raw, folder / "data")
  return built_dataset.open_folder(pathlib.Path(builder.data_path))


def plan(**changes) -> copies.Plan:
  values = {"config": ROTATED, "copies": 2, "only_classes": ("hemorrhagic",), **changes}
  return copies.Plan(**values)


@pytest.fixture(scope="module")
def augmented(stroke, tmp_path_factory):
  folder, count = dataset.write_records(stroke, plan(), tmp_path_factory.mktemp("out"))
  return built_dataset.open_folder(folder), count


def copies_in(dataset) -> list[dict]:
  return [row for row in dataset.rows if "_aug" in row["key"]]


def rows_with(dataset, name: str) -> list[dict]:
  return [r for r in dataset.rows if r["split"] == "train" and int(r[f"pixels_{name}"])]


def test_each_training_slice_of_the_class_gets_its_copies_and_no_other(stroke, augmented):
  dataset, count = augmented
  sources = {row["key"] for row in rows_with(stroke, "hemorrhagic")}
  assert sources, "the phantom must hold the class"
  copies = copies_in(dataset)
  assert count == len(copies) == 2 * len(sources)
  assert {row["key"].split("_aug")[0] for row in copies} == sources
  assert {row["split"] for row in copies} == {"train"}
  assert len(dataset.rows) == len(stroke.rows) + count


def test_names_tell_what_was_done(augmented):
  for row in copies_in(augmented[0]):
    assert re.fullmatch(r"\w+_aug0[12](_flipx)?_rot[+-]\d\d", row["key"]), row["key"]


def test_a_copy_keeps_subject_and_fold_and_has_a_volume_of_its_own(stroke, augmented):
  sources = {row["key"]: row for row in stroke.rows}
  for row, example in augmented[0].records():
    original = sources[row["key"].split("_aug")[0]]
    for column in ("subject", "fold", "slice_index", "height", "width"):
      assert row[column] == original[column]
    assert example["subject"] == row["subject"]
    assert example["volume"] == row["volume"]
    if "_aug" in row["key"]:
      assert row["volume"] == f"{original['volume']}_{re.search('aug0[12]', row['key']).group()}"
    else:
      assert row["volume"] == original["volume"]


def test_copies_differ_from_their_sources_and_hold_the_class(stroke, augmented):
  sources = {row["key"]: example for row, example in stroke.records()}
  class_id = stroke.scheme.names.index("hemorrhagic")
  for row, example in augmented[0].records():
    original = sources[row["key"].split("_aug")[0]]
    if "_aug" not in row["key"]:
      np.testing.assert_array_equal(example["image"], original["image"])
      continue
    assert (example["image"] != original["image"]).any()
    assert class_id in example["label"]
    assert set(np.unique(example["label"])) <= set(np.unique(original["label"]))
    counts = np.bincount(example["label"].ravel(), minlength=3)
    assert [int(row[f"pixels_{name}"]) for name in stroke.scheme.names] == list(counts)


def test_the_copy_keeps_the_list_of_who_stands_where(stroke, augmented):
  name = "splits.json"
  assert (augmented[0].path / name).read_bytes() == (stroke.path / name).read_bytes()


def test_the_result_verifies_and_other_splits_are_unchanged_bytes(stroke, augmented):
  dataset, _ = augmented
  assert verify_records.verify(dataset).problems == []
  for shard in stroke.report["shards"]:
    if shard["split"] != "train":
      old, new = stroke.path / shard["file"], dataset.path / shard["file"]
      assert old.read_bytes() == new.read_bytes()
  for name in ("validation", "test"):
    assert dataset.report["splits"][name] == stroke.report["splits"][name]
  assert dataset.report["splits"]["train"]["subjects"] == (
      stroke.report["splits"]["train"]["subjects"]
  )


def test_tfds_and_the_pipeline_read_it(augmented):
  dataset, _ = augmented
  builder = tfds.builder_from_directory(dataset.path)
  assert builder.info.config_name == "slices_augmented"
  total = len([row for row in dataset.rows if row["split"] == "train"])
  assert builder.info.splits["train"].num_examples == total
  assert len(list(builder.as_dataset(split="train"))) == total
  opened = dataset_source.open_dataset("brain_stroke_ct/slices_augmented", dataset.path.parents[2])
  assert len(readers.slice_table(opened, "train")) == total


def test_the_report_tells_settings_and_source(stroke, augmented):
  entry = augmented[0].report["augmentation"]
  assert entry["source"] == stroke.report["fingerprint"]
  assert entry["source"] != augmented[0].report["fingerprint"]
  assert (entry["copies"], entry["only_classes"]) == (2, ["hemorrhagic"])
  assert entry["config"]["rotation_probability"] == 1.0


def test_what_the_copies_do_not_change_is_carried_over(stroke, tmp_path):
  # What the options of the build left out, and any key that a later version may add.
  kept = {"slices_left_out": {"ctich_051": {"no labelled pixel, by empty_slices": 3}}, "later": 1}
  richer = dataclasses.replace(stroke, report={**stroke.report, **kept})
  folder, _ = dataset.write_records(richer, plan(), tmp_path)
  written = built_dataset.read_report(folder)
  recomputed = {"splits", "split_realised", "shards", "fingerprint", "config", "augmentation"}
  assert {k: v for k, v in written.items() if k not in recomputed} == {
      k: v for k, v in richer.report.items() if k not in recomputed}


def test_the_croissant_file_lists_the_new_shards(augmented):
  folder = augmented[0].path
  content = json.loads((folder / croissant.NAME).read_text(encoding="utf-8"))
  assert content["name"] == "brain_stroke_ct-slices_augmented" and content["license"]
  for entry in content["distribution"]:
    assert files.sha256_of(folder / entry["contentUrl"]) == entry["sha256"]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(stroke, augmented, tmp_path):
  again, _ = dataset.write_records(stroke, plan(), tmp_path / "again")
  other, _ = dataset.write_records(stroke, plan(seed=2), tmp_path / "other")
  first = build_samples.digests(augmented[0].path)
  assert build_samples.digests(again) == first
  assert build_samples.digests(other) != first


def test_one_draw_for_a_volume_is_the_same_for_its_slices(stroke, tmp_path):
  folder, _ = dataset.write_records(stroke, plan(draw_by="volume"), tmp_path)
  done = {}
  for row in copies_in(built_dataset.open_folder(folder)):
    done.setdefault(row["volume"], set()).add(re.sub(r".*_aug\d\d_", "", row["key"]))
  assert all(len(names) == 1 for names in done.values())
  assert len(set.union(*done.values())) > 1


def test_images_hold_copies_in_the_training_folder_alone(stroke, tmp_path):
  out = tmp_path / "images"
  count = dataset.write_images(stroke, plan(copies=1), out)
  names = {
      kind: {p.name for p in (out / "train" / kind).iterdir()} for kind in ("images", "masks")
  }
  assert names["images"] == names["masks"]
  assert len([name for name in names["images"] if "_aug01_" in name]) == count > 0
  for split in ("validation", "test"):
    assert not list((out / split).rglob("*_aug*"))
  name = next(name for name in names["masks"] if "_aug01_" in name)
  mask = np.asarray(Image.open(out / "train/masks" / name))
  _, off_palette = stroke.scheme.decode(mask)
  assert off_palette == 0


@pytest.mark.parametrize(
    "changes, wanted",
    [
        ({"only_classes": ("haemorrhagic",)}, "Did you mean 'hemorrhagic'"),
        ({"only_classes": ("background",)}, "Unknown class 'background'"),
    ],
)
@pytest.mark.parametrize("form", ["write_records", "write_images"])
def test_what_must_not_be_augmented_is_refused_and_nothing_is_written(
    stroke, tmp_path, form, changes, wanted
):
  with pytest.raises(InputError, match=wanted):
    getattr(dataset, form)(stroke, plan(**changes), tmp_path / "out")
  assert build_samples.files_below(tmp_path) == []


def test_copies_of_copies_are_refused(augmented, tmp_path):
  with pytest.raises(InputError, match="holds augmented copies already"):
    dataset.write_records(augmented[0], plan(), tmp_path)


def test_an_existing_result_is_not_touched(stroke, augmented):
  out = augmented[0].path.parents[2]
  with pytest.raises(InputError, match="exists already"):
    dataset.write_records(stroke, plan(), out)


def test_an_augmentation_that_is_off_is_refused():
  with pytest.raises(InputError, match="The augmentation is off"):
    plan(config=AugmentationConfig(augmentation="none").resolve())


def test_a_failure_on_the_way_leaves_nothing(stroke, tmp_path):
  # So unlikely that no draw of a hundred adds noise.
  config = AugmentationConfig(
      augmentation="none", noise_probability=1e-6, noise_std=0.01
  ).resolve()
  with pytest.raises(InputError, match="100 draws for one slice"):
    dataset.write_records(stroke, plan(config=config), tmp_path / "a/b")
  assert build_samples.files_below(tmp_path) == []


@pytest.mark.slow
def test_the_program_writes_what_the_function_writes(stroke, augmented, tmp_path):
  done = forked.command(
      "augment_offline", f"--data_dir={stroke.path}",
      f"--output_dir={tmp_path}", "--copies=2", "--only_class=hemorrhagic",
      "--augmentation=none", "--rotation_probability=1", "--flip_horizontal_probability=0.5",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  (report,) = tmp_path.rglob("build_report.json")
  assert build_samples.digests(report.parent) == build_samples.digests(augmented[0].path)


def test_copies_of_resampled_slices_do_not_keep_the_labels_of_the_scan(tmp_path):
  raw = build_samples.raw_folder("hippocampus_t1w", tmp_path / "raw", subjects=2)
  builder = build_samples.build(
      "hippocampus_t1w", raw, tmp_path / "data", options={"isotropic_mm": 2.0}
  )
  source = built_dataset.open_folder(pathlib.Path(builder.data_path))
  chosen = plan(copies=1, only_classes=("hippocampus",))
  folder, count = dataset.write_records(source, chosen, tmp_path / "out")
  made = built_dataset.open_folder(folder)
  kept = {row["key"]: len(example["native_label"]) for row, example in made.records()}
  before = {row["key"]: len(example["native_label"]) for row, example in source.records()}
  copied = {row["key"] for row in copies_in(made)}
  assert len(copied) == count > 0 and {kept[key] for key in copied} == {0}
  assert {key: kept[key] for key in before} == before and max(before.values()) > 0
  assert not verify_records.verify(made).problems
