"""Which datasets are there: those that came to their end, and no others."""

import pathlib

import build_samples
import pytest

from flexunet.core.errors import InputError
from flexunet.datasets import dataset_folders
from flexunet.datasets.builder import build_tool


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """(data_dir with one dataset, its raw folder, of which a scan is now truncated)."""
  root = tmp_path_factory.mktemp("built")
  raw = build_samples.raw_folder("full_head_t1w", root / "raw", subjects=3)
  build_tool.build_dataset("full_head_t1w", raw, root / "data", num_workers=1)
  scan = sorted(raw.rglob("T1-Weighted MRI/*.nii"))[0]
  scan.write_bytes(scan.read_bytes()[:600])
  return root / "data", raw


def listed(data_dir: pathlib.Path, dataset: str) -> str:
  with pytest.raises(InputError) as error:
    dataset_folders.locate(dataset, data_dir)
  return str(error.value)


@pytest.mark.parametrize("options", [{"plane": "axial"}, {"config_name": "mine"}])
def test_a_failed_build_of_a_second_config_leaves_no_folder(built, options):
  data_dir, raw = built
  with pytest.raises(InputError, match="truncated"):
    build_tool.build_dataset("full_head_t1w", raw, data_dir, num_workers=1, **options)
  folders = {path.name for path in (data_dir / "full_head_t1w").iterdir()}
  assert folders == {"slices", ".config"}  # .config is the note of TFDS on the default config.


def test_what_a_killed_build_leaves_is_not_listed_as_built(built):
  data_dir, _ = built
  for name in ("killed/.work-1.0.0-ab/lock", "killed/incomplete.A_1.0.0/dataset_info.json"):
    path = data_dir / "full_head_t1w" / name
    path.parent.mkdir(parents=True)
    path.write_text("{}")
  (data_dir / "notes").mkdir()
  assert listed(data_dir, "full_head_t1w/nope").endswith("It holds: slices.")
  assert listed(data_dir, "nope").endswith("It holds: full_head_t1w.")
  assert dataset_folders.locate("full_head_t1w", data_dir).name == "1.0.0"
