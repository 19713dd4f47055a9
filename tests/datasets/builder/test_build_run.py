"""A whole build: the same bytes every time, nothing half-done, no subject on two sides."""

import csv
import dataclasses
import itertools
import pathlib
import signal
import subprocess
import sys
import time

import build_samples
import pytest
import tensorflow_datasets as tfds

from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.datasets import subject_splits
from flexunet.datasets.builder import build_run, case_records, shard_writer, workers

HIPPOCAMPUS = "hippocampus_t1w"


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
  return build_samples.raw_folder(
      HIPPOCAMPUS, tmp_path_factory.mktemp("run") / "raw", subjects=5)


@pytest.fixture(scope="module")
def built(raw, tmp_path_factory):
  return build_samples.build(HIPPOCAMPUS, raw, tmp_path_factory.mktemp("built"))


def two_sides(listing: pathlib.Path) -> dict:
  with open(listing, newline="") as stream:
    return subject_splits.subjects_in_two_splits(
        (row["subject"], row["split"]) for row in csv.DictReader(stream))


@pytest.mark.parametrize("dataset", sorted(build_samples.SIZES))
def test_no_subject_stands_on_two_sides(dataset, tmp_path):
  raw = build_samples.raw_folder(dataset, tmp_path / "raw", subjects=6)
  # The palette of the phantom; the layout of the NIfTI form.
  names = {"image_mask": "image_mask/full_head_t1w", "brain_ich_ct/nifti": "brain_ich_ct"}
  config = names.get(dataset, dataset)
  builder = build_samples.build(config, raw, tmp_path / "out")
  assert len({row["subject"] for row in build_samples.rows_of(builder)}) >= 4
  listing = pathlib.Path(builder.data_path) / "records.csv"
  assert build_samples.rows_of(builder)
  assert two_sides(listing) == {}


def test_a_split_made_by_slice_would_be_found(built, tmp_path):
  rows = build_samples.rows_of(built)
  labelled = [row for row in rows if row["split"] != "unlabeled"]
  # What the published recipes do: shuffle the slices, cut the list.
  labelled.sort(key=lambda row: subject_splits.salted_hash("by slice", row["key"]))
  for position, row in enumerate(labelled):
    row["split"] = "train" if position < 0.7 * len(labelled) else "test"
  listing = tmp_path / "records.csv"
  with open(listing, "w", newline="") as stream:
    writer = csv.DictWriter(stream, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
  assert set(two_sides(listing)) == {row["subject"] for row in labelled}


def test_no_fold_of_five_subjects_in_cross_validation_is_empty(tmp_path):
  # Seven subjects: one falls to the test split, and has no fold.
  raw = build_samples.raw_folder(HIPPOCAMPUS, tmp_path / "raw", subjects=7)
  rows = build_samples.rows_of(build_samples.build(HIPPOCAMPUS, raw, tmp_path / "out"))
  fold_of = {row["subject"]: (row["split"], int(row["fold"])) for row in rows}
  folds = [fold for split, fold in fold_of.values() if split in ("train", "validation")]
  assert sorted(folds) == [0, 0, 1, 2, 3, 4]
  others = {split: fold for split, fold in fold_of.values() if fold == -1}
  assert others.keys() == {"test", "unlabeled"}


def test_building_again_gives_the_same_bytes(raw, built, tmp_path):
  again = build_samples.build(HIPPOCAMPUS, raw, tmp_path)
  digests = build_samples.digests(built.data_path)
  assert len(digests) > 5
  assert build_samples.digests(again.data_path) == digests


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_any_number_of_workers_gives_the_same_bytes(raw, built, tmp_path, monkeypatch, count):
  monkeypatch.setattr(workers, "_may_fork", lambda: False)
  parallel = build_samples.build(HIPPOCAMPUS, raw, tmp_path, workers=count)
  assert build_samples.digests(parallel.data_path) == build_samples.digests(built.data_path)


@pytest.mark.slow
def test_forked_workers_give_the_same_bytes(raw, built, tmp_path):
  # A process of its own: this one may hold TensorFlow, and then nothing is forked.
  program = (
      "import sys, tensorflow_datasets as tfds\n"
      "from flexunet.datasets import catalog\n"
      "from flexunet.datasets.builder import workers\n"
      "raw, out = sys.argv[1:]\n"
      "fork, forked = workers._fork, []\n"
      "workers._fork = lambda builder: forked.append(1) or fork(builder)\n"
      f"builder = catalog.builder({HIPPOCAMPUS!r}, out)\n"
      "builder.num_workers = 3\n"
      "config = tfds.download.DownloadConfig(manual_dir=raw)\n"
      "builder.download_and_prepare(download_config=config)\n"
      "assert len(forked) == 2 or sys.platform != 'linux'\n"
  )
  subprocess.run([sys.executable, "-c", program, raw, tmp_path], check=True, timeout=120)
  folder = tmp_path / HIPPOCAMPUS / "slices" / "1.0.0"
  assert build_samples.digests(folder) == build_samples.digests(built.data_path)


def test_the_record_table_tells_where_each_record_lies(built):
  folder = pathlib.Path(built.data_path)
  rows = build_samples.rows_of(built)
  assert len(rows) == sum(split.num_examples for split in built.info.splits.values())
  for row in rows:
    content = (folder / row["shard"]).read_bytes()
    offset, length = int(row["offset"]), int(row["length"])
    assert int.from_bytes(content[offset : offset + 8], "little") == length
    payload = content[offset + 12 : offset + 12 + length]
    assert row["subject"].encode() in payload
  # The records of a shard fill it without a gap.
  first = [row for row in rows if row["shard"] == rows[0]["shard"]]
  assert (folder / first[0]["shard"]).stat().st_size == sum(int(r["length"]) + 16 for r in first)


def test_the_report_agrees_with_the_shards_and_the_table(built):
  folder = pathlib.Path(built.data_path)
  report = build_samples.report_of(built)
  for shard in report["shards"]:
    assert files.sha256_of(folder / shard["file"]) == shard["sha256"]
  rows = build_samples.rows_of(built)
  for name, split in report["splits"].items():
    mine = [row for row in rows if row["split"] == name]
    assert split["num_records"] == len(mine)
    assert split["pixels"]["hippocampus"] == sum(int(row["pixels_hippocampus"]) for row in mine)
  assert sum(report["split_realised"].values()) == pytest.approx(1, abs=1e-3)


def test_records_are_mixed_and_shards_are_several(built):
  rows = [row for row in build_samples.rows_of(built) if row["split"] == "train"]
  subjects = [row["subject"] for row in rows]
  changes = sum(a != b for a, b in itertools.pairwise(subjects))
  assert changes > len(set(subjects))
  assert len({row["shard"] for row in rows}) == 4


def test_no_local_path_reaches_the_built_files(built, raw):
  for path in pathlib.Path(built.data_path).iterdir():
    assert str(raw).encode() not in path.read_bytes()


def test_an_interrupted_build_leaves_no_dataset_and_goes_on_where_it_stopped(
    raw, built, tmp_path, monkeypatch
):
  done = build_samples.build_until(3, HIPPOCAMPUS, raw, tmp_path)
  assert not list(tmp_path.rglob("dataset_info.json"))

  write_case = case_records.write_case

  def counting(builder, task):
    done.append(task.case.key)
    return write_case(builder, task)

  monkeypatch.setattr(case_records, "write_case", counting)
  builder = build_samples.build(HIPPOCAMPUS, raw, tmp_path)
  assert len(done) == len(set(done)) == 6  # 5 labelled and 1 unlabelled, each read once.
  assert build_samples.digests(builder.data_path) == build_samples.digests(built.data_path)
  assert not list(tmp_path.rglob(".work-*"))


def test_a_damaged_work_file_is_written_again(raw, built, tmp_path):
  build_samples.build_until(3, HIPPOCAMPUS, raw, tmp_path)
  victim = sorted(tmp_path.rglob("*.records"))[0]
  content = bytearray(victim.read_bytes())
  content[100] ^= 1
  victim.write_bytes(content)
  builder = build_samples.build(HIPPOCAMPUS, raw, tmp_path)
  assert build_samples.digests(builder.data_path) == build_samples.digests(built.data_path)


def test_two_builds_of_one_dataset_do_not_mix(raw, tmp_path, monkeypatch):
  write_case, refusals = case_records.write_case, []

  def meanwhile(builder, task):
    if not refusals:
      refusals.append(None)
      with pytest.raises(InputError, match="another process is building"):
        build_samples.build(HIPPOCAMPUS, raw, tmp_path)
    return write_case(builder, task)

  monkeypatch.setattr(case_records, "write_case", meanwhile)
  builder = build_samples.build(HIPPOCAMPUS, raw, tmp_path)
  assert refusals and pathlib.Path(builder.data_path, "dataset_info.json").is_file()


@pytest.mark.slow
def test_a_killed_build_resumes_to_the_same_bytes(tmp_path):
  raw = build_samples.layouts.write(HIPPOCAMPUS, tmp_path / "raw", subjects=12, size=(96, 96, 96))
  whole = build_samples.build(HIPPOCAMPUS, raw, tmp_path / "whole")
  out = tmp_path / "killed"
  command = [
      sys.executable, "-m", "flexunet.tools.build", HIPPOCAMPUS, f"--manual_dir={raw}",
      f"--data_dir={out}", "--num_workers=2",
  ]
  process = subprocess.Popen(command)
  deadline = time.monotonic() + 120
  while len(list(out.rglob("*.json"))) < 4 and process.poll() is None:
    assert time.monotonic() < deadline
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  assert process.wait() == -signal.SIGKILL
  assert not list(out.rglob("dataset_info.json"))
  work_files = {path.name for path in out.rglob("*.records")}
  assert work_files
  subprocess.run(command, check=True)
  builder_folder = out / HIPPOCAMPUS / "slices" / "1.0.0"
  assert build_samples.digests(builder_folder) == build_samples.digests(whole.data_path)
  assert sorted(path.name for path in builder_folder.parent.iterdir()) == ["1.0.0"]


@pytest.mark.slow
def test_a_script_without_a_main_guard_builds_too(raw, built, tmp_path):
  script = tmp_path / "script.py"
  script.write_text(
      "import tensorflow_datasets as tfds\n"
      "from flexunet.datasets import catalog\n"
      f"builder = catalog.builder('{HIPPOCAMPUS}', {str(tmp_path / 'out')!r})\n"
      "builder.num_workers = 2\n"
      "builder.download_and_prepare(\n"
      f"    download_config=tfds.download.DownloadConfig(manual_dir={str(raw)!r}))\n"
  )
  subprocess.run([sys.executable, str(script)], timeout=120, check=True)
  folder = tmp_path / "out" / HIPPOCAMPUS / "slices" / "1.0.0"
  assert build_samples.digests(folder) == build_samples.digests(built.data_path)


@pytest.mark.slow
def test_a_fault_in_a_worker_comes_back_with_its_trace(raw, tmp_path, monkeypatch):
  monkeypatch.setattr(workers, "_may_fork", lambda: False)
  builder = build_samples.catalog.builder(HIPPOCAMPUS, tmp_path)
  address = dataclasses.replace(build_run.address_of(builder), config="no such config")
  case = builder.inspect_source(raw).cases[0]
  task = case_records.CaseTask(case, 0, tmp_path / "x", written=case)
  with pytest.raises(RuntimeError, match="no such config"):
    workers.read_cases(builder, address, [task] * 4, 2)


@pytest.mark.slow
def test_array_records_hold_the_same_examples(raw, built, tmp_path):
  other = build_samples.build(HIPPOCAMPUS, raw, tmp_path, file_format="array_record")
  source = other.as_data_source("test")
  theirs = {(e["subject"], int(e["slice_index"])): e["label"].tobytes() for e in source}
  ours = {
      (e["subject"], int(e["slice_index"])): e["label"].tobytes()
      for e in tfds.as_numpy(built.as_dataset("test"))
  }
  assert theirs == ours and len(ours) == 12
  assert {row["offset"] for row in build_samples.rows_of(other)} == {"-1"}


def test_shards_and_examples_can_be_limited_as_tfds_does(raw, tmp_path):
  builder = build_samples.catalog.builder(HIPPOCAMPUS, tmp_path)
  builder.num_workers = 1
  builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(
          manual_dir=raw, num_shards=2, max_examples_per_split=5))
  for name, split in builder.info.splits.items():
    assert (split.num_examples, split.num_shards) == (5, 2)
    assert build_samples.report_of(builder)["splits"][name]["num_records"] == 5


@pytest.mark.parametrize(
    ("total", "count", "wanted", "most", "shards"), [
        (100, 3, None, None, 3),  # Never more shards than records.
        (100, 50, None, None, 4),
        (100 << 20, 5000, None, None, 7),  # 100 MB at 16 MB each.
        (100 << 20, 5000, None, 8 << 20, 13),
        (100 << 20, 5000, 3, None, 3),
    ],
)
def test_shards_are_several_and_of_a_size_suited_to_parallel_reading(
    total, count, wanted, most, shards
):
  assert shard_writer.num_shards(total, count, wanted, most) == shards
