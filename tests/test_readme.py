"""The README's page on the use from Python runs as it stands, on phantom scans."""

import pathlib
import re
import subprocess
import sys

import pytest

from flexunet.tools.phantom import layouts

README = pathlib.Path(__file__).resolve().parent.parent / "README.md"


def python_page() -> str:
  """Returns the code of the section "Use it from Python"."""
  text = README.read_text(encoding="utf-8")
  section = text.split("\n## Use it from Python\n")[1].split("\n## ")[0]
  return "\n".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL))


@pytest.mark.slow
def test_the_page_on_python_runs_as_it_stands(tmp_path):
  layouts.write("hippocampus_t1w", tmp_path / "RAW", subjects=6, seed=3, size=(32, 16, 32))
  scan = min((tmp_path / "RAW").rglob("HFH_*.hdr"))
  code = python_page()
  assert "max_minutes=1.0" in code and "SCAN.nii" in code
  code = code.replace("max_minutes=1.0", "epochs=2").replace('"SCAN.nii"', repr(str(scan)))
  code += (
      "\nassert label.shape == volume_shape(label), label.shape"
      "\nassert figures['test']['evaluated']['volumes'] == 1"
      "\nassert labels.shape == slices.shape[:3] and model.count_params() > 0"
  )
  check = "def volume_shape(label):\n  return (32, 16, 32)\n"
  done = subprocess.run(
      [sys.executable, "-c", check + code], cwd=tmp_path, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr[-3000:]
  assert (tmp_path / "RUN" / "report.html").is_file()


def test_import_flexunet_offers_the_public_names_and_loads_none_of_them():
  program = (
      "import sys, flexunet\n"
      "assert {'build_dataset', 'build_model', 'fit', 'load', 'losses', 'metrics', 'open_dataset',"
      " 'plan'} <= set(dir(flexunet))\n"
      "loaded = {name.split('.')[0] for name in sys.modules}\n"
      "assert not loaded & {'tensorflow', 'keras', 'tensorflow_datasets', 'matplotlib'}, loaded\n"
  )
  subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["flexunet", "keras"])
def test_keras_reads_model_keras_after_import_flexunet(tmp_path, first):
  import flexunet

  knobs = {"image_size": (20, 20), "num_layers": 3, "base_filters": 2, "num_classes": 2}
  network = flexunet.build_model(**knobs, normalization="batch", input_normalization="per_image")
  network.save(tmp_path / "model.keras")
  other = {"flexunet": "keras", "keras": "flexunet"}[first]
  program = (
      f"import {first}, {other}\n"
      f"model = keras.saving.load_model({str(tmp_path / 'model.keras')!r})\n"
      "print(model.count_params())\n"
  )
  done = subprocess.run(
      [sys.executable, "-c", program], capture_output=True, text=True, check=True
  )
  assert int(done.stdout) == network.count_params()
