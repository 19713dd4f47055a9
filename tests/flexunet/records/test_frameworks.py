"""Records in the loaders of PyTorch and Grain, with workers of every kind."""

import hashlib

import numpy as np
import pytest

from flexunet.records import open_records


def rows_of(record: dict) -> tuple:
  return int(record["slice_index"]), hashlib.sha256(bytes(np.asarray(record["image"]))).hexdigest()


@pytest.mark.needs_extra("torch")
@pytest.mark.parametrize("method", [None, "fork", "spawn"])
def test_the_loader_of_pytorch_gives_the_same_values(blob_data, method):
  import torch

  records = open_records(blob_data)
  loader = torch.utils.data.DataLoader(
      records.as_torch(), batch_size=None, num_workers=2 if method else 0,
      multiprocessing_context=method,
  )  # fmt: skip
  assert isinstance(loader.dataset, torch.utils.data.Dataset)
  assert [rows_of(one) for one in loader] == [rows_of(one) for one in records]
  assert [one["subject"] for one in loader] == records.table.subject.tolist()


@pytest.mark.needs_extra("torch")
def test_a_transform_sees_tensors(blob_data):
  data = open_records(blob_data).as_torch(lambda record: record["image"].permute(2, 0, 1).float())
  assert data[0].shape == (1, 20, 28)


@pytest.mark.needs_extra("grain")
def test_grain_shuffles_and_batches(blob_data):
  records = open_records(blob_data, features=("slice_index", "image"))
  data = records.as_grain()
  assert [rows_of(data[row]) for row in range(len(records))] == [rows_of(one) for one in records]
  batches = list(data.shuffle(seed=1).batch(6).to_iter_dataset())
  assert batches[0]["image"].shape == (6, 20, 28, 1)
  assert sorted(np.concatenate([one["slice_index"] for one in batches]).tolist()) == sorted(
      records.table.slice_index.tolist()
  )
