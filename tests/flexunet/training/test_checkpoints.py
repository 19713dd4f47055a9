"""Checkpoints on disk: whole or not at all, damage seen, the one before taken."""

import hashlib
import json
import os
import sys
import threading

import numpy as np
import pytest

from flexunet.core.errors import InputError
from flexunet.training import checkpoints


def made(step):
  arrays = {"model": [np.full((2, 3), step, np.float32), np.array([1, step], np.uint32)]}
  return checkpoints.Checkpoint(arrays=arrays, state={"step": step, "best": float("-inf")})


@pytest.fixture
def store(tmp_path):
  store = checkpoints.CheckpointStore(tmp_path / "checkpoints", keep=2)
  for step in (10, 20, 30):
    store.write(made(step))
  return store


def test_what_was_written_comes_back(store):
  checkpoint, name, damaged = store.read()
  assert checkpoint.state == {"step": 30, "best": float("-inf")} and not damaged
  np.testing.assert_array_equal(checkpoint.arrays["model"][0], np.full((2, 3), 30))
  assert checkpoint.arrays["model"][1].dtype == np.uint32
  assert name.endswith("_step_30")


def test_only_so_many_are_kept(store):
  assert [name.split("_")[-1] for name in store.names()] == ["30", "20"]


@pytest.mark.parametrize("file", ["arrays.npz", "state.json", "manifest.json"])
def test_a_damaged_newest_one_falls_back_to_the_one_before_and_says_so(store, tmp_path, file):
  path = tmp_path / "checkpoints" / store.names()[0] / file
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 0xFF
  path.write_bytes(bytes(content[:-1]))
  checkpoint, _, damaged = store.read()
  assert checkpoint.state["step"] == 20
  assert len(damaged) == 1 and "_step_30" in damaged[0]


def test_a_missing_file_counts_as_damage(store, tmp_path):
  (tmp_path / "checkpoints" / store.names()[0] / "arrays.npz").unlink()
  assert store.read()[0].state["step"] == 20


def test_with_none_left_the_error_says_what_to_do(store, tmp_path):
  for name in store.names():
    (tmp_path / "checkpoints" / name / "manifest.json").write_text("{}")
  with pytest.raises(InputError, match="whole checkpoint.*Start a new run in another folder"):
    store.read()


def test_what_a_killed_writer_left_is_no_checkpoint_and_is_removed(store, tmp_path):
  partial = tmp_path / "checkpoints" / ".partial-abc"
  partial.mkdir()
  assert store.read()[0].state["step"] == 30
  store.remove_partial()
  assert not partial.exists() and len(store.names()) == 2


def test_the_pointer_decides_between_two_whole_ones(store, tmp_path):
  older = store.names()[1]
  (tmp_path / "checkpoints" / "current").write_text(older)
  assert store.read()[1] == older


def test_a_damaged_pointer_names_none_of_them(store, tmp_path):
  newest = store.names()[0]
  (tmp_path / "checkpoints" / "current").write_bytes(b"\xff\xfe")
  assert store.read()[1] == newest


def test_names_keep_counting_when_a_step_is_saved_twice(store):
  name = store.write(made(30))
  assert store.names()[0] == name and store.read()[1] == name


def test_the_manifest_holds_a_hash_per_file(store, tmp_path):
  folder = tmp_path / "checkpoints" / store.names()[0]
  hashes = json.loads((folder / "manifest.json").read_text())["sha256"]
  assert set(hashes) == {"arrays.npz", "state.json"}


def test_many_arrays_keep_their_order(tmp_path):
  store = checkpoints.CheckpointStore(tmp_path, keep=1)
  arrays = {"optimizer": [np.array(index) for index in range(123)]}
  store.write(checkpoints.Checkpoint(arrays=arrays, state={"step": 1}))
  assert [int(value) for value in store.read()[0].arrays["optimizer"]] == list(range(123))


def test_arrays_of_every_kind_come_back_as_they_were(tmp_path):
  store = checkpoints.CheckpointStore(tmp_path, keep=1)
  arrays = [
      np.array(7, np.uint32), np.zeros((0, 3), np.float32), np.arange(12.0).reshape(3, 4).T,
      np.arange(20, dtype=np.int8)[::3], np.full((2, 1 << 20), -0.0, np.float32), np.array([True]),
  ]  # fmt: skip
  store.write(checkpoints.Checkpoint(arrays={"model": arrays}, state={"step": 1}))
  found = store.read()[0].arrays["model"]
  assert [(a.shape, a.dtype) for a in found] == [(a.shape, a.dtype) for a in arrays]
  for one, other in zip(found, arrays, strict=True):
    assert one.tobytes() == other.tobytes()


def test_the_hash_taken_while_writing_is_that_of_the_file(store, tmp_path):
  folder = tmp_path / "checkpoints" / store.names()[0]
  hashes = json.loads((folder / "manifest.json").read_text())["sha256"]
  for name, digest in hashes.items():
    assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priority")
def test_the_background_writer_steps_back_and_the_training_thread_does_not(tmp_path):
  seen = []

  class Store(checkpoints.CheckpointStore):
    def write(self, checkpoint):
      seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
      return super().write(checkpoint)

  before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
  writer = checkpoints.BackgroundWriter(Store(tmp_path))
  writer.submit(made(1))
  writer.wait()
  assert seen == [max(before, 10)]
  assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


def test_a_group_of_no_arrays_comes_back(tmp_path):
  store = checkpoints.CheckpointStore(tmp_path, keep=1)
  store.write(checkpoints.Checkpoint(arrays={"model": [np.ones(1)], "metrics": []},
                                     state={"step": 1}))  # fmt: skip
  assert store.read()[0].arrays["metrics"] == []


def test_the_background_writer_writes_what_it_was_given(tmp_path):
  writer = checkpoints.BackgroundWriter(checkpoints.CheckpointStore(tmp_path, keep=3))
  for step in (1, 2):
    writer.submit(made(step))
  writer.wait()
  assert not writer.busy
  assert checkpoints.CheckpointStore(tmp_path).read()[0].state["step"] == 2


def test_a_full_disk_is_reported_in_the_training_thread(tmp_path, monkeypatch):
  def refuse(*_, **__):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(checkpoints._HashingFile, "write", refuse)
  writer = checkpoints.BackgroundWriter(checkpoints.CheckpointStore(tmp_path / "c", keep=3))
  writer.submit(made(1))
  with pytest.raises(InputError, match="No space left.*--keep_checkpoints"):
    writer.wait()
  assert not list((tmp_path / "c").iterdir())  # No half checkpoint is left.
