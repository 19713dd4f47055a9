"""What an import costs: flags and their help answer before TensorFlow could be loaded."""

import subprocess
import sys

import pytest

_HEAVY = {"tensorflow", "tensorflow_datasets", "keras", "matplotlib", "jax", "torch"}


def loaded_after(program: str) -> set[str]:
  """Returns the top-level modules that a fresh interpreter has loaded after `program`."""
  program += "\nimport sys\nprint('|'.join({name.split('.')[0] for name in sys.modules}))"
  result = subprocess.run(
      [sys.executable, "-c", program], capture_output=True, text=True, check=True
  )
  return set(result.stdout.splitlines()[-1].split("|"))


@pytest.mark.parametrize(
    "module",
    [
        "flexunet",
        "flexunet.config",
        "flexunet.train",
        "flexunet.evaluate",
        "flexunet.predict",
        "flexunet.presets.preset_files",
        "flexunet.network.cost",
        "flexunet.objectives.names",
        "flexunet.pipelines.dataset_source",
        "flexunet.pipelines.record_table",
        "flexunet.pipelines.augmentation.config",
        "flexunet.pipelines.feature_keys",
        "flexunet.datasets.builder.plugin",
        "flexunet.tools.build",
        "flexunet.tools.convert_config.__main__",
        "flexunet.tools.inspect_model",
    ],
)
def test_a_light_module_loads_no_framework(module):
  assert not loaded_after(f"import {module}") & _HEAVY


@pytest.mark.slow
def test_a_module_that_trains_would_be_seen():
  assert "tensorflow" in loaded_after("import flexunet.pipelines.order")


def test_the_help_of_the_training_loads_no_framework():
  program = (
      "from flexunet import train\n"
      "try:\n"
      "  train._PROGRAM.parse(['train', '--help'])\n"
      "except SystemExit as ended:\n"
      "  assert ended.code == 0\n"
  )
  assert not loaded_after(program) & _HEAVY
