"""Builds from a bucket into a bucket (a file system in memory): the files of a local build."""

import pathlib
import shutil

import beam_servers
import build_samples
import fsspec
import pytest

from flexunet.core.errors import InputError, UnfinishedError
from flexunet.datasets.builder import (
    bucket_build,
    build_tool,
    case_records,
    shared_work,
)
from flexunet.datasets.builder.raw_folder import Case


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  """Returns (local raw folder, its address, address for datasets, the file system)."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  raw = build_samples.raw_folder("hippocampus_t1w", tmp_path / "raw")
  memory = fsspec.filesystem("memory")
  memory.rm("/built", recursive=True) if memory.exists("/built") else None
  memory.put(str(raw), "/built/raw", recursive=True)
  yield raw, "memory://built/raw", "memory://built/data", memory
  memory.rm("/built", recursive=True)


def local_files(folder: pathlib.Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def put_files(memory) -> dict[str, bytes]:
  """Returns all files of all datasets in the bucket."""
  return {path.rsplit("/", 1)[-1]: memory.cat_file(path) for path in memory.find("/built/data")}


def build(raw, data, **given):
  return build_tool.build_dataset("hippocampus_t1w", raw, data, **given)


@pytest.mark.parametrize("beam_options", [None, ""])
def test_a_build_between_buckets_is_that_of_this_machine(bucket, tmp_path, beam_options):
  raw, raw_address, data_address, memory = bucket
  expected = local_files(build(raw, tmp_path / "local", num_workers=1))
  given = {"num_workers": 1} if beam_options is None else {"beam_options": beam_options}
  path = build(raw_address, data_address, **given)
  assert put_files(memory) == expected  # No work files either.
  assert str(path) == "memory:/built/data/hippocampus_t1w/slices/1.0.0"
  # What was built here for the bucket is gone; the raw folder's copy is kept.
  assert not list((tmp_path / "cache" / "flexunet" / "builds").rglob("*.tfrecord*"))


def test_what_is_in_the_bucket_is_not_built_again(bucket, monkeypatch):
  _, raw_address, data_address, memory = bucket
  build(raw_address, data_address, num_workers=1)
  before = put_files(memory)
  monkeypatch.setattr(build_tool, "build", lambda *given: pytest.fail("built again"))
  build(raw_address, data_address, num_workers=1)
  assert put_files(memory) == before


def test_a_dataset_that_did_not_arrive_whole_is_built_again(bucket):
  _, raw_address, data_address, memory = bucket
  build(raw_address, data_address, num_workers=1)
  before = put_files(memory)
  [info] = [path for path in memory.find("/built/data") if path.endswith("/dataset_info.json")]
  memory.rm_file(info)
  build(raw_address, data_address, num_workers=1)
  assert put_files(memory) == before


def test_a_scan_that_left_the_bucket_is_not_built(bucket):
  _, raw_address, _, memory = bucket
  first = bucket_build.BuildFolders(raw_address, "data").raw
  gone = next(path for path in memory.find("/built/raw") if path.endswith(".img"))
  kept = first / gone.removeprefix("/built/raw/")
  assert kept.is_file()
  memory.rm_file(gone)
  assert bucket_build.BuildFolders(raw_address, "data").raw == first
  assert not kept.exists()


def test_an_address_that_nothing_reads_is_named_before_the_build(bucket):
  with pytest.raises(InputError, match="nothing reads nosuch:// addresses"):
    build(bucket[0], "nosuch://bucket/data")


def test_a_worker_fetches_the_files_of_its_case_and_nothing_else(bucket):
  raw, raw_address, _, _ = bucket
  scans = sorted((raw / "Train").glob("*.img"))
  case = Case("a", "a", "a", {"image": scans[0].with_suffix(".hdr"), "image_voxels": scans[0]})
  expected = scans[0].read_bytes()
  shutil.rmtree(raw)  # A worker elsewhere does not see it.
  with shared_work.RawSource(str(raw), raw_address).at_hand(case) as (found, folder):
    assert found.files["image_voxels"].read_bytes() == expected
    assert found.files["image"].with_suffix(".img") == found.files["image_voxels"]
    assert len([path for path in pathlib.Path(folder).rglob("*") if path.is_file()]) == 2
  assert not pathlib.Path(folder).exists()


def test_bad_files_are_named_as_on_one_machine(bucket, tmp_path):
  raw, raw_address, data_address, memory = bucket
  scan = sorted((raw / "Train").glob("*.img"))[0]
  memory.pipe(f"/built/raw/Train/{scan.name}", scan.read_bytes()[:-100])
  with pytest.raises(InputError) as raised:
    build(raw_address, data_address, beam_options="")
  assert not isinstance(raised.value, UnfinishedError) and scan.name in str(raised.value)
  assert "flexunet-raw-" not in str(raised.value) and not memory.exists("/built/data")


def test_cases_that_lie_in_the_bucket_are_not_read_again(bucket, monkeypatch):
  """Also where the machine of the build is another one than the first time."""
  raw, _, data_address, memory = bucket
  failing = beam_servers.out_of_memory_after(2)
  with failing, pytest.raises(UnfinishedError, match="2 of 5 cases"):
    build(raw, data_address, beam_options="")
  work = [path for path in memory.find("/built/data") if path.endswith(".records")]
  assert len(work) == 2
  shutil.rmtree(bucket_build.BuildFolders(raw, data_address).data)
  read, write_case = [], case_records.write_case
  monkeypatch.setattr(
      case_records, "write_case",
      lambda builder, task: read.append(task.written.key) or write_case(builder, task),
  )  # fmt: skip
  build(raw, data_address, beam_options="")
  assert len(read) == 3
  assert not [path for path in memory.find("/built/data") if path.endswith(".records")]
