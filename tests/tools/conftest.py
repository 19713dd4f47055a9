"""Small built phantoms that the tests of several tools read."""

import pathlib
import subprocess
import sys

import build_samples
import pytest


def _built(dataset: str, folder: pathlib.Path) -> pathlib.Path:
  """Builds a phantom dataset and returns its version folder."""
  raw = build_samples.raw_folder(dataset.partition("/")[0], folder / "raw")
  return pathlib.Path(build_samples.build(dataset, raw, folder / "data").data_path)


@pytest.fixture(scope="session")
def built_slices(tmp_path_factory):
  return _built("hippocampus_t1w", tmp_path_factory.mktemp("slices"))


@pytest.fixture(scope="session")
def built_volumes(tmp_path_factory):
  return _built("hippocampus_t1w/volumes", tmp_path_factory.mktemp("volumes"))


@pytest.fixture(scope="session")
def built_heads(tmp_path_factory):
  return _built("full_head_t1w", tmp_path_factory.mktemp("heads"))


@pytest.fixture
def run_tool():
  """A function that runs a program of tools/ and returns how it ended and what it said."""

  def run(tool: str, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", f"flexunet.tools.{tool}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)

  return run
