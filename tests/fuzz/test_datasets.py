"""Damaged shards, reports, tables and metadata of a built dataset."""

import fuzz_damage
import fuzz_inputs
import fuzz_judge
import numpy as np
import pytest
from fuzz_judge import Seen

from flexunet.core.errors import InputError
from flexunet.datasets import built_dataset
from flexunet.pipelines import dataset_source, readers
from flexunet.pipelines.resizing import Resizing
from flexunet.tools import verify_records

pytestmark = pytest.mark.fuzz


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
  root = tmp_path_factory.mktemp("dataset")
  raw = fuzz_inputs.write_raw("hippocampus_t1w", root / "raw")
  return fuzz_inputs.build("hippocampus_t1w", raw, root / "data")


def problems_of(dataset) -> list[str]:
  """Returns what `flexunet verify` finds."""
  return verify_records.verify(built_dataset.open_folder(dataset)).problems


def as_training_reads(dataset) -> tuple:
  """Opens a dataset as a run does; returns what decides the run."""
  source = dataset_source.open_dataset(None, dataset)
  facts = (source.name, source.fingerprint, source.holds_volumes, source.recipe)
  scheme = source.label_scheme().to_json()
  tables = [source.records(split) for split in source.splits]
  columns = [
      [getattr(table, name).tolist() for name in ("subject", "volume", "fold", "offset", "pixels")]
      for table in tables
  ]
  return facts, scheme, source.splits, columns


def opened_and_verified(dataset) -> Seen:
  """Reads it for training, then verifies it; each may refuse it."""
  refusals, result = [], None
  try:
    result = as_training_reads(dataset)
  except InputError as error:
    refusals.append(str(error))
    assert "\n" not in str(error), error
  try:
    refusals += problems_of(dataset)
  except InputError as error:
    refusals.append(str(error))
    assert "\n" not in str(error), error
  return Seen(result, refusals)


def test_shards_are_verified(dataset):
  shards = sorted(dataset.glob("*.tfrecord*"))
  category = fuzz_judge.category("records, verified")
  rng = fuzz_judge.generator(category.name)
  kinds = ["flip"] * fuzz_judge.trials(500) + list(fuzz_damage.BYTES)
  for kind in kinds:
    shard = shards[rng.integers(len(shards))]
    whole = shard.read_bytes()
    what, damaged = fuzz_damage.flip(whole, rng)
    if kind != "flip":
      what, damaged = kind, fuzz_damage.BYTES[kind](whole, rng)
    shard.write_bytes(damaged)
    category.judge(
        f"{shard.name}: {what}",
        lambda: Seen(None, problems_of(dataset)),
        lambda result, same=damaged == whole: same,
        [shard.name],
    )
    shard.write_bytes(whole)
  category.check()


def test_shards_are_read_for_training(dataset):
  source = dataset_source.open_dataset(None, dataset)
  table = source.records("train")
  spec = readers.ExampleSpec(resizing=Resizing((32, 32), "pad"))
  loader = readers.ExampleLoader(source, table, spec)

  def decoded():
    return [loader(row) for row in range(len(table))]

  reference = [(example["image"].numpy(), example["label"].numpy()) for example in decoded()]
  category = fuzz_judge.category("records, trained on")
  rng = fuzz_judge.generator(category.name)
  shards = sorted(dataset.glob("*train.tfrecord*"))
  for _ in range(fuzz_judge.trials(500)):
    shard = shards[rng.integers(len(shards))]
    whole = shard.read_bytes()
    what, damaged = fuzz_damage.flip(whole, rng)
    shard.write_bytes(damaged)

    def read():
      if corrupt := loader.find_corrupt():  # What training asks where a record cannot be read.
        return Seen(None, [table.describe(row) for row in corrupt])
      return Seen([(one["image"].numpy(), one["label"].numpy()) for one in decoded()])

    category.judge(
        f"{shard.name}: {what}",
        read,
        lambda result: result is not None and all(
            np.array_equal(a, b) and np.array_equal(c, d)
            for (a, c), (b, d) in zip(result, reference, strict=True)
        ),
        [shard.name],
    )  # fmt: skip
    shard.write_bytes(whole)
  category.check()


# File, full number of flips, full number of edits.
_FILES = [
    ("build_report.json", 500, 80),
    ("records.csv", 500, 80),
    ("dataset_info.json", 100, 40),
    ("features.json", 100, 40),
]


@pytest.mark.parametrize(("name", "flips", "edits"), _FILES)
def test_report_table_and_metadata(dataset, name, flips, edits):
  path = dataset / name
  whole = path.read_bytes()
  assert problems_of(dataset) == []
  edit = fuzz_damage.edit_table if name.endswith(".csv") else fuzz_damage.edit_json
  for kind, count in (("flips", flips), ("edits", edits)):
    category = fuzz_judge.category(f"{name}, {kind}")
    rng = fuzz_judge.generator(category.name)
    for _ in range(fuzz_judge.trials(count)):
      if kind == "flips":
        what, damaged = fuzz_damage.flip(whole, rng)
      else:
        what, text = edit(whole.decode("utf-8"), rng)
        damaged = text.encode("utf-8")
      path.write_bytes(damaged)
      category.judge(
          what,
          lambda: opened_and_verified(dataset),
          lambda result, same=damaged == whole: same,
          [name, str(dataset)],
      )
    path.write_bytes(whole)
    category.check()
