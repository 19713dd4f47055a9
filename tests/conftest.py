"""What every test leaves behind as it found it, and the data that several tests share."""

import pathlib
import subprocess
import sys

import pytest
import skip_rules
from fuzz_hooks import (  # noqa: F401  pytest finds its hooks here.
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
)
from skip_rules import (  # noqa: F401  The same.
    pytest_collection_modifyitems,
    pytest_make_collect_report,
    pytest_runtest_makereport,
    pytest_runtest_setup,
)


@pytest.fixture(autouse=True)
def undo_determinism():
  """A run switches the whole process to deterministic operations, where Keras refuses XLA."""
  yield
  if "tensorflow" in sys.modules:
    from tensorflow.python.framework import config

    config.disable_op_determinism()


@pytest.fixture
def realdata():
  """The folder of real scans, or the test is skipped."""
  folder = skip_rules.realdata_folder()
  if folder is None:
    pytest.skip("needs the folder of real scans (FLEXUNET_REALDATA or ../shared/realdata)")
  return folder


@pytest.fixture
def realdata_tree(realdata, tmp_path):
  """A function that lays out the raw tree of a dataset from real scans, or skips the test."""

  def lay_out(dataset: str, subjects: int | None = None) -> pathlib.Path:
    out = tmp_path / "raw"
    command = [sys.executable, str(realdata / "lay_out.py"), dataset, str(out)]
    if subjects is not None:
      command += ["--subjects", str(subjects)]
    subprocess.run(command, check=True, capture_output=True)
    return out

  return lay_out


@pytest.fixture(scope="session")
def jax_cache(tmp_path_factory):
  """Variables by which the programs of a test, or of several, compile each step on JAX once."""
  return {
      "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
      "JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "JAX_PERSISTENT_COMPILATION_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
  }


@pytest.fixture(scope="session")
def blob_data(tmp_path_factory):
  # Heavy: TensorFlow. The process that hands out tests to others reads this file and needs none.
  import dataset_samples

  folder = tmp_path_factory.mktemp("data")

  def blobs(subjects, seed):
    made = []
    for place in range(4 * len(subjects)):
      image, label = dataset_samples.blob_slice(20, 28, seed + place)
      subject = subjects[place // 4]
      made.append({"image": image, "label": label, "subject": subject, "volume": subject,
                   "slice_index": place % 4, "spacing_mm": (1.0, 2.0)})  # fmt: skip
    return made

  return dataset_samples.write_dataset(
      folder, {"train": blobs("abcdefghi", 0), "validation": blobs("jk", 100)}
  )
