"""Paths in files that are passed on name neither the user nor the machine."""

import pathlib
import socket

import pytest

from flexunet.core import private_paths


@pytest.fixture(autouse=True)
def anna(monkeypatch):
  """The user is anna_mueller on the machine ward7, her home in /home."""
  for name in ("USER", "LOGNAME", "USERNAME", "SUDO_USER"):
    monkeypatch.setenv(name, "anna_mueller")
  monkeypatch.setenv("HOME", "/home/anna_mueller")
  monkeypatch.setattr(socket, "gethostname", lambda: "ward7.clinic.org")


@pytest.mark.parametrize(
    ("path", "folder", "stored"),
    [
        ("/scratch/p/data", "/scratch/p/runs/one", "../../data"),
        ("/scratch/p/data", "/scratch/p/data/run", ".."),
        ("/home/anna_mueller/data", "/home/anna_mueller/runs/one", "../../data"),
        ("/home/anna_mueller/data", "/scratch/one", "~/data"),
        ("~/data", "/scratch/one", "~/data"),
        ("~/data", "/home/anna_mueller/one", "../data"),
        # Through the root of the file system a relative path is as telling as an absolute one.
        ("/mnt/share/data", "/scratch/one", "data"),
        ("/home/hans/data", "/home/anna_mueller/one", "data"),
        ("/scratch/anna_mueller/data", "/scratch/runs/one", "data"),
        ("/scratch/WARD7/data", "/scratch/runs/one", "data"),
        ("/home/anna_mueller", "/scratch/one", "~/."),
    ],
)
def test_a_path_is_stored_relative_to_the_folder_or_by_its_end(path, folder, stored):
  assert private_paths.stored(path, pathlib.Path(folder)) == stored


def test_a_stored_path_is_found_again_after_both_folders_moved(tmp_path):
  for place in ("here", "there"):
    (tmp_path / place / "data").mkdir(parents=True)
    (tmp_path / place / "runs" / "one").mkdir(parents=True)
  stored = private_paths.stored(tmp_path / "here" / "data", tmp_path / "here" / "runs" / "one")
  for place in ("here", "there"):
    found = private_paths.located(stored, tmp_path / place / "runs" / "one")
    assert pathlib.Path(found) == tmp_path / place / "data"
  assert private_paths.located("~/data", tmp_path) == "~/data"
  assert private_paths.located("/data", tmp_path) == "/data"


def test_a_run_folder_that_is_reached_through_a_link_finds_its_data(tmp_path):
  (tmp_path / "a" / "data").mkdir(parents=True)
  (tmp_path / "a" / "run").mkdir()
  (tmp_path / "link").symlink_to(tmp_path / "a" / "run")
  found = private_paths.located("../data", tmp_path / "link")
  assert pathlib.Path(found) == tmp_path / "a" / "data"


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("--data_dir=/home/anna_mueller/My data", "--data_dir=My data"),
        ("--data_dir=C:\\Users\\anna\\data", "--data_dir=data"),
        ("--data_dir=DATA", "--data_dir=DATA"),
        ("--data_dir=../DATA", "--data_dir=../DATA"),
        ("--data_dir=../anna_mueller/DATA", "--data_dir=DATA"),
        ("--dataset=hippocampus_t1w/left_right", "--dataset=hippocampus_t1w/left_right"),
        ("/mnt/share/flags.txt", "flags.txt"),
        ("--xla_gpu_cuda_data_dir=/home/anna_mueller/cuda", "--xla_gpu_cuda_data_dir=cuda"),
        ("--learning_rate=0.5", "--learning_rate=0.5"),
    ],
)
def test_a_word_of_a_command_keeps_the_end_of_its_paths(word, kept):
  assert private_paths.without_folders(word) == kept


def test_names_that_thousands_have_are_nobodys(monkeypatch):
  for name in ("USER", "LOGNAME", "USERNAME", "SUDO_USER"):
    monkeypatch.setenv(name, "root")
  monkeypatch.setenv("HOME", "/root")
  assert "root" not in private_paths.user_names()
  assert private_paths.host_names() == {"ward7.clinic.org", "ward7"}
