"""The hippocampus builder, on phantoms with the traps of the real files."""

import tempfile
from typing import ClassVar

import build_samples
import nibabel as nib
import numpy as np
import pytest
import tensorflow_datasets as tfds

from flexunet.core.errors import InputError
from flexunet.datasets.hippocampus_t1w import hippocampus_t1w_dataset_builder


class OnPhantoms:
  """Three subjects of 12 coronal slices, one on each side, and one without labels."""

  DATASET_CLASS = hippocampus_t1w_dataset_builder.Builder

  @classmethod
  def setUpClass(cls):
    cls._folder = tempfile.TemporaryDirectory()
    raw = build_samples.raw_folder("hippocampus_t1w", f"{cls._folder.name}/raw", subjects=3)
    cls.EXAMPLE_DIR = str(raw)
    cls.DATASET_CLASS.num_workers = 1  # The mocks of TFDS do not reach other processes.
    super().setUpClass()

  @classmethod
  def tearDownClass(cls):
    super().tearDownClass()
    cls.DATASET_CLASS.num_workers = None
    cls._folder.cleanup()


class HippocampusSlicesTest(OnPhantoms, tfds.testing.DatasetBuilderTestCase):
  """TFDS's own checks: registration, features, counts, disjoint splits, reload."""

  BUILDER_CONFIG_NAMES_TO_TEST = ("slices", "left_right")
  SPLITS: ClassVar = {"train": 12, "validation": 12, "test": 12, "unlabeled": 12}


class HippocampusVolumesTest(OnPhantoms, tfds.testing.DatasetBuilderTestCase):
  """The same of whole scans."""

  BUILDER_CONFIG_NAMES_TO_TEST = ("volumes",)
  SPLITS: ClassVar = {"train": 1, "validation": 1, "test": 1, "unlabeled": 1}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
  folder = tmp_path_factory.mktemp("hippocampus") / "raw"
  return build_samples.raw_folder("hippocampus_t1w", folder, subjects=3)


def load(path):
  return np.asanyarray(nib.load(path).dataobj)[..., 0]


@pytest.mark.slow
def test_slices_are_the_upright_coronal_slices_of_the_files(raw, tmp_path):
  builder = build_samples.build("hippocampus_t1w/left_right", raw, tmp_path)
  seen = 0
  for split in ("train", "validation", "test"):
    for example in tfds.as_numpy(builder.as_dataset(split)):
      number, index = example["subject"].decode()[4:], int(example["slice_index"])
      label = load(raw / "Train" / "Labels" / f"HFH_{number}_Hipp_Labels.hdr")
      np.testing.assert_array_equal(example["label"][..., 0], np.rot90(label[:, index, :]))
      image = np.rot90(load(raw / "Train" / f"HFH_{number}.hdr")[:, index, :]).astype(float)
      grey = example["image"][..., 0].astype(float)
      inside = (grey > 0) & (grey < 255)
      # One linear window for the whole volume keeps the order of intensities.
      assert np.corrcoef(image[inside], grey[inside])[0, 1] > 0.999
      seen += 1
  assert seen == 3 * 12


def test_both_hippocampi_are_one_class_by_default_and_two_in_left_right(raw, tmp_path):
  merged = build_samples.report_of(build_samples.build("hippocampus_t1w", raw, tmp_path))
  two = build_samples.report_of(build_samples.build("hippocampus_t1w/left_right", raw, tmp_path))
  assert [entry["name"] for entry in merged["label_scheme"]] == ["background", "hippocampus"]
  for split in ("train", "validation", "test"):
    pixels = two["splits"][split]["pixels"]
    assert pixels["hippocampus_1"] > 0 and pixels["hippocampus_2"] > 0
    assert merged["splits"][split]["pixels"]["hippocampus"] == (
        pixels["hippocampus_1"] + pixels["hippocampus_2"]
    )
  assert set(merged["mask_values"]["label"]) == {"0", "1", "2"}


def test_scans_without_labels_stand_in_no_labelled_split(raw, tmp_path):
  builder = build_samples.build("hippocampus_t1w", raw, tmp_path)
  report = build_samples.report_of(builder)
  unlabeled = set(report["splits"]["unlabeled"]["subjects"])
  assert len(unlabeled) == 1
  for split in ("train", "validation", "test"):
    assert not unlabeled & set(report["splits"][split]["subjects"])
  assert {row["fold"] for row in build_samples.rows_of(builder) if row["split"] == "unlabeled"} == {
      "-1"
  }


def test_the_folder_may_be_named_by_one_of_its_parents(raw, tmp_path):
  builder = hippocampus_t1w_dataset_builder.Builder(data_dir=tmp_path)
  assert len(builder.inspect_source(raw.parent).cases) == 4


def test_problems_of_the_whole_folder_come_at_once(tmp_path):
  raw = build_samples.raw_folder("hippocampus_t1w", tmp_path / "raw", subjects=3)
  scans = sorted((raw / "Train").glob("*.img"))
  scans[0].write_bytes(scans[0].read_bytes()[:-10])
  scans[1].unlink()
  labels = sorted((raw / "Train" / "Labels").glob("*.hdr"))
  labels[2].unlink()
  labels[2].with_suffix(".img").unlink()
  (raw / "Train" / "notes.txt").write_text("x")
  builder = hippocampus_t1w_dataset_builder.Builder(data_dir=tmp_path / "out")
  with pytest.raises(InputError) as caught:
    builder.inspect_source(raw)
  message = str(caught.value)
  assert message.startswith("3 problems")
  for word in ("truncated", "twin", "has no Train/Labels"):
    assert word in message


@pytest.mark.realdata
@pytest.mark.slow
def test_real_scans_build_to_the_counts_of_their_folder(realdata_tree, tmp_path):
  raw = realdata_tree("hippocampus_t1w", subjects=4)
  report = build_samples.report_of(build_samples.build("hippocampus_t1w", raw, tmp_path))
  slices = {path.stem: nib.load(path).shape[1] for path in raw.glob("T*/HFH_*.hdr")}
  assert sum(split["num_records"] for split in report["splits"].values()) == sum(slices.values())
