"""Small built phantoms that the tests of several tools read."""

import pathlib

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
