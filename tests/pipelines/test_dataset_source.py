"""What a built dataset lacks is found when its table is opened, before anything is trained."""

import csv
import os
import pathlib
import shutil

import dataset_samples
import flagged
import pytest

from flexunet.core.errors import InputError
from flexunet.pipelines.dataset_source import check_folder, open_dataset


@pytest.fixture
def data_dir(tmp_path):
  return flagged.write_dataset(tmp_path / "data")


def shard_of(data_dir, split) -> pathlib.Path:
  (path,) = data_dir.glob(f"*-{split}.tfrecord-*")
  return path


@pytest.mark.parametrize("listed", [True, False])
def test_a_missing_shard_is_named(data_dir, listed):
  if not listed:  # A dataset that TFDS alone built.
    (data_dir / "records.csv").unlink()
  shard_of(data_dir, "validation").unlink()
  source = open_dataset(None, data_dir)
  assert len(source.records("train")) == 12  # Three subjects of four slices.
  with pytest.raises(InputError, match=r"blobs-validation\.tfrecord.*the shard is missing\. Build"):
    source.records("validation")


@pytest.mark.parametrize("change_bytes", [-1, 1])
def test_a_shard_of_another_size_is_named_with_both_sizes(data_dir, change_bytes):
  path = shard_of(data_dir, "train")
  size = path.stat().st_size
  with open(path, "ab") as stream:
    stream.truncate(size + change_bytes)
  with pytest.raises(InputError, match=f"must have {size} bytes.*It has {size + change_bytes}"):
    open_dataset(None, data_dir).records("train")


def test_a_table_without_lengths_is_refused(data_dir):
  text = (data_dir / "records.csv").read_text()
  (data_dir / "records.csv").write_text(text.replace(",length,", ",width_of,", 1))
  with pytest.raises(InputError, match=r"records\.csv must list the records.*'length'"):
    open_dataset(None, data_dir).records("train")


def test_a_shard_that_is_a_link_to_its_file_is_read(data_dir, tmp_path):
  path = shard_of(data_dir, "train")
  shutil.move(path, tmp_path / "elsewhere")
  os.symlink(tmp_path / "elsewhere", path)
  assert len(open_dataset(None, data_dir).records("train")) == 12


def test_a_fold_of_test_subjects_alone_is_refused_before_anything_is_read(data_dir):
  listing = data_dir / "records.csv"
  with open(listing, newline="") as stream:
    rows = list(csv.DictReader(stream))
  for row in rows:
    row["fold"] = "3" if row["split"] == "test" else "0"
  with open(listing, "w", newline="") as stream:
    writer = csv.DictWriter(stream, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
  with pytest.raises(InputError, match=r"It has: 0\. Got: 3"):
    check_folder(None, data_dir, ("train", "validation"), fold=3)
  with pytest.raises(InputError, match="--fold=0 of .* leaves nothing to train on"):
    check_folder(None, data_dir, ("train", "validation"), fold=0)


def test_a_split_without_records_names_those_there_are(tmp_path):
  data_dir = dataset_samples.write_dataset(
      tmp_path, {"train": flagged.records("ab", 0), "validation": flagged.records("c", 9)}
  )
  message = r"Split 'test' of dataset blobs\S* holds no records.*It has train, validation"
  with pytest.raises(InputError, match=message):
    check_folder(None, data_dir, ["test"])
  with pytest.raises(InputError, match=message):
    open_dataset(None, data_dir).check_split("test")
  with pytest.raises(InputError, match="Unknown split.*Did you mean 'validation'"):
    check_folder(None, data_dir, ["validaton"])
