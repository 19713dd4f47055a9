"""Real scans for the tests that want them."""

import os
import pathlib
import subprocess
import sys

import pytest

_CHECKOUT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def realdata_tree(tmp_path):
  """A function that lays out the raw tree of a dataset from real scans, or skips the test."""
  default = _CHECKOUT.parent / "shared" / "realdata"
  folder = pathlib.Path(os.environ.get("FLEXUNET_REALDATA", default))
  if not (folder / "lay_out.py").is_file():
    pytest.skip("needs the folder of real scans (FLEXUNET_REALDATA or ../shared/realdata)")

  def lay_out(dataset: str, subjects: int | None = None) -> pathlib.Path:
    out = tmp_path / "raw"
    command = [sys.executable, str(folder / "lay_out.py"), dataset, str(out)]
    if subjects is not None:
      command += ["--subjects", str(subjects)]
    subprocess.run(command, check=True, capture_output=True)
    return out

  return lay_out
