"""Datasets in a bucket: copied once, again where they changed, whole or not at all."""

import pathlib

import dataset_samples
import fsspec
import pytest

from flexunet.core import private_paths, remote_folder
from flexunet.core.errors import InputError
from flexunet.datasets import dataset_folders
from flexunet.pipelines import dataset_source

NAME = "blobs"


def test_an_address_is_known_also_after_pathlib():
  assert remote_folder.address_of("gs://b/data/") == "gs://b/data"
  assert remote_folder.address_of(pathlib.Path("s3://b/data")) == "s3://b/data"
  for path in ("/data", "data", "~/data", "C:/data", r"C:\data", "a:b", "."):
    assert remote_folder.address_of(path) is None


def test_a_run_stores_an_address_as_it_is(tmp_path):
  stored = private_paths.stored("gs://bucket/data", tmp_path)
  assert stored == "gs://bucket/data" == private_paths.located(stored, tmp_path)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  """Returns (local version folder, address of the folder it was put into in a bucket)."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  records = [
      dict(zip(("image", "label"), dataset_samples.blob_slice(16, 16, seed)),
           subject=f"s{seed}", volume=f"s{seed}", slice_index=0)
      for seed in range(4)
  ]  # fmt: skip
  local = dataset_samples.write_dataset(
      tmp_path / "data", {"train": records[:2], "validation": records[2:]}
  )
  memory = fsspec.filesystem("memory")
  memory.rm("/bucket", recursive=True) if memory.exists("/bucket") else None
  memory.put(str(tmp_path / "data"), "/bucket/data", recursive=True)
  memory.pipe("/bucket/data/other/1.0.0/big.bin", b"0" * 1000)
  yield local, "memory://bucket/data"
  memory.rm("/bucket", recursive=True)


def test_the_same_dataset_opens_from_the_bucket(bucket, tmp_path):
  local, address = bucket
  here = dataset_source.open_dataset(NAME, local)
  there = dataset_source.open_dataset(NAME, pathlib.Path(address))
  assert there.fingerprint == here.fingerprint and there.path != here.path
  for split in ("train", "validation"):
    mine, theirs = here.records(split), there.records(split)
    assert theirs.subject.tolist() == mine.subject.tolist()
    assert [pathlib.Path(f).read_bytes() for f in theirs.files] == [
        pathlib.Path(f).read_bytes() for f in mine.files
    ]
  # What else lies in the bucket is left there.
  assert not list((tmp_path / "cache").rglob("big.bin"))


def test_it_is_copied_once_and_again_where_it_changed(bucket, monkeypatch):
  local, address = bucket
  copied = []
  copy = remote_folder.RemoteFolder._copy
  monkeypatch.setattr(remote_folder.RemoteFolder, "_copy",
                      lambda self, name, update: copied.append(name) or copy(self, name, update))
  dataset_folders.locate(NAME, pathlib.Path(address))
  assert len(copied) == len([p for p in local.iterdir() if p.is_file()])
  copied.clear()
  dataset_folders.locate(NAME, pathlib.Path(address))
  assert copied == []
  memory = fsspec.filesystem("memory")
  changed = next(n for n in memory.find("/bucket/data") if n.endswith("dataset_info.json"))
  memory.pipe(changed, memory.cat(changed) + b"\n")
  dataset_folders.locate(NAME, pathlib.Path(address))
  assert [pathlib.PurePosixPath(one).name for one in copied] == ["dataset_info.json"]


def test_what_is_not_there_or_cannot_be_read_is_one_line(bucket, tmp_path):
  _, address = bucket
  with pytest.raises(InputError, match="memory://none: there is no file"):
    dataset_folders.locate("a", pathlib.Path("memory://none"))
  with pytest.raises(InputError, match="nothing reads nonsense:// addresses"):
    dataset_folders.locate("a", pathlib.Path("nonsense://bucket"))
  with pytest.raises(InputError, match="has no 'hippo'"):
    dataset_folders.locate("hippo", pathlib.Path(address))
  with pytest.raises(InputError, match="must not hold"):
    remote_folder.RemoteFolder("memory://bucket/../x", tmp_path)


def test_a_missing_package_is_named(monkeypatch):
  def missing(address):
    raise ImportError("Please install s3fs to access S3")

  monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
  with pytest.raises(InputError, match="needs s3fs: pip install s3fs"):
    dataset_folders.locate("a", pathlib.Path("s3://bucket/data"))


def test_a_copy_that_breaks_off_leaves_no_part(bucket, monkeypatch):
  _, address = bucket
  remote = remote_folder.RemoteFolder(address)

  def broken(*_):
    raise OSError("connection lost")

  monkeypatch.setattr(remote._system, "open", broken)
  with pytest.raises(InputError, match="cannot be read: connection lost"):
    remote.fetch(lambda name: True)
  assert not [path for path in remote.path.rglob("*") if path.is_file()]
