"""One dataset in two containers: the trainer, its streams and evaluation see no difference."""

import shutil

import build_samples
import dataset_samples
import flagged
import numpy as np
import pytest
import resume_runs

from flexunet.core.errors import InputError
from flexunet.datasets import dataset_folders
from flexunet.evaluation import labelled_volumes
from flexunet.pipelines import batches, order, readers
from flexunet.pipelines.dataset_source import open_dataset
from flexunet.pipelines.resizing import Resizing
from flexunet.tools import verify_records


@pytest.fixture(scope="module")
def packed(blob_data, tmp_path_factory):
  return dataset_samples.as_array_record(blob_data, tmp_path_factory.mktemp("packed") / "1.0.0")


def loader_of(folder):
  source = open_dataset(None, folder)
  spec = readers.ExampleSpec(
      resizing=Resizing((32, 32), "pad"), image_channels=3, context_slices=1
  )
  return batches.open_loader(source, readers.slice_table(source, "train"), spec)


def test_the_training_stream_is_the_same_from_any_step(blob_data, packed):
  streams = []
  for folder in (blob_data, packed):
    loader = loader_of(folder)
    drawn = order.EpochOrder(num_records=loader.num_rows, batch_size=5, seed=3)
    stream = batches.training_batches(loader, drawn, start_step=4, num_steps=6)
    streams.append(list(stream.as_numpy_iterator()))
  for ours, theirs in zip(*streams, strict=True):
    for name, values in theirs.items():
      np.testing.assert_array_equal(ours[name], values)


def test_evaluation_reads_the_same_volumes(blob_data, packed):
  read = []
  for folder in (blob_data, packed):
    source = open_dataset(None, folder)
    table = readers.slice_table(source, "validation")
    read.append(list(labelled_volumes.read_volumes(source, table)))
  for ours, theirs in zip(*read, strict=True):
    assert (ours.subject, ours.slice_index) == (theirs.subject, theirs.slice_index)
    np.testing.assert_array_equal(np.stack(ours.images), np.stack(theirs.images))
    np.testing.assert_array_equal(np.stack(ours.labels), np.stack(theirs.labels))
    assert ours.spacing_mm == theirs.spacing_mm


def test_a_damaged_record_is_found_and_named(packed, tmp_path):
  folder = shutil.copytree(packed, tmp_path / "1.0.0")
  [shard] = folder.glob("*-train.*")
  data = bytearray(shard.read_bytes())
  used = np.flatnonzero(np.frombuffer(bytes(data), np.uint8))  # The rest fills blocks up.
  data[used[len(used) // 3]] ^= 255
  shard.write_bytes(data)
  loader = loader_of(folder)
  corrupt = loader.find_corrupt()
  assert 0 < len(corrupt) < loader.num_rows
  source = open_dataset(None, folder)
  with pytest.raises(InputError, match="cannot be. Build or copy the dataset again"):
    list(labelled_volumes.read_volumes(source, readers.slice_table(source, "train")))


def test_a_shard_of_more_records_than_the_table_is_refused(packed, tmp_path):
  folder = shutil.copytree(packed, tmp_path / "1.0.0")
  listing = folder / "records.csv"
  lines = listing.read_text().splitlines()
  listing.write_text("\n".join([*lines[:3], *lines[4:]]) + "\n")
  with pytest.raises(InputError, match=r"must have 35 records.*It has 36"):
    open_dataset(None, folder).records("train")


@pytest.mark.slow
def test_a_built_dataset_of_either_container_verifies_and_plans_the_same(tmp_path):
  raw = build_samples.raw_folder("hippocampus_t1w", tmp_path / "raw", subjects=5)
  found = []
  for container in ("tfrecord", "array_record"):
    out = tmp_path / container
    build_samples.build("hippocampus_t1w", raw, out, file_format=container)
    assert not list(verify_records.verify(dataset_folders.find_one(out)).problems)
    run = flagged.setup(out, "--dataset=hippocampus_t1w", "--num_layers=2", "--base_filters=4",
                        "--batch_size=4", "--epochs=1")  # fmt: skip
    image, _ = run.first_batch()
    found.append((run.config.model, np.asarray(image)))
  assert found[0][0] == found[1][0]
  np.testing.assert_array_equal(found[0][1], found[1][1])


@pytest.mark.slow
def test_a_run_on_one_container_killed_and_resumed_ends_like_one_on_the_other(
    blob_data, packed, tmp_path
):
  code, expected, stderr = resume_runs.train(blob_data, tmp_path / "whole")
  assert code == 0, stderr
  code, _, _ = resume_runs.train(packed, tmp_path / "run", "--kill=within_step:7")
  assert code == -9
  code, found, stderr = resume_runs.train(packed, tmp_path / "run", "--resume")
  assert code == 0, stderr
  assert found == expected
