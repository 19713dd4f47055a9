"""What imports cost: reading a volume needs no TFDS, and a build needs no TensorFlow."""

import subprocess
import sys

import build_samples
import pytest

from flexunet.datasets import catalog


def loaded_after(program: str) -> set[str]:
  """Returns the top-level modules that a fresh interpreter has loaded after `program`."""
  program += "\nimport sys\nprint('|'.join({name.split('.')[0] for name in sys.modules}))"
  result = subprocess.run(
      [sys.executable, "-c", program], capture_output=True, text=True, check=True)
  return set(result.stdout.splitlines()[-1].split("|"))


def test_reading_a_volume_loads_neither_tfds_nor_tensorflow():
  loaded = loaded_after("from flexunet.imaging import nifti, slicing, intensity")
  assert "nibabel" in loaded
  assert not loaded & {"tensorflow_datasets", "tensorflow", "keras"}


def test_a_built_dataset_and_the_options_of_a_build_are_read_without_tfds():
  loaded = loaded_after("from flexunet.datasets import built_dataset, catalog")
  assert not loaded & {"tensorflow_datasets", "tensorflow", "keras"}
  loaded = loaded_after("from flexunet.tools import build\nbuild._PROGRAM.help()")
  assert not loaded & {"tensorflow_datasets", "tensorflow", "keras"}


@pytest.mark.slow
def test_a_build_loads_no_tensorflow(tmp_path):
  raw = build_samples.raw_folder("hippocampus_t1w", tmp_path / "raw", subjects=3)
  loaded = loaded_after(
      "import sys\n"
      "from flexunet.tools import build\n"
      "build.main(build._PROGRAM.parse(['build', 'hippocampus_t1w',"
      f" '--manual_dir={raw}', '--data_dir={tmp_path / 'out'}']))"
  )
  assert "tensorflow_datasets" in loaded and "tensorflow" not in loaded
  assert list(tmp_path.rglob("dataset_info.json"))


@pytest.mark.slow
@pytest.mark.parametrize("first", ["tensorflow_datasets", "flexunet.datasets"])
def test_tfds_finds_the_builders_whichever_was_imported_first(first):
  program = (
      f"import {first}\n"
      "import flexunet.datasets\n"
      "import tensorflow_datasets as tfds\n"
      "print(tfds.builder_cls('hippocampus_t1w').__module__)"
  )
  result = subprocess.run(
      [sys.executable, "-c", program], capture_output=True, text=True, check=True)
  assert "flexunet.datasets.hippocampus_t1w" in result.stdout


@pytest.mark.parametrize("name", catalog.NAMES)
def test_each_dataset_has_its_prose_beside_its_builder(name):
  builder = catalog.builder_class(name)
  metadata = builder.get_metadata()
  assert metadata.description and metadata.citation and metadata.tags
