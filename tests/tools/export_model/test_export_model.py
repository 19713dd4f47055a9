"""The exporting program, started as users start it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from flexunet.network import export, model
from flexunet.tools.export_model import __main__ as export_model


def started(*arguments: str) -> subprocess.CompletedProcess:
  return subprocess.run(
      [sys.executable, "-m", "flexunet.tools.export_model", *arguments],
      capture_output=True, text=True, check=False,
  )  # fmt: skip


def test_the_formats_of_the_flag_are_those_that_can_be_written():
  assert set(export_model.FORMATS_KNOWN) == set(export.FORMATS)


def save_small_model(path):
  network = model.build_model(
      image_size=(12, 20), image_channels=1, num_classes=3, base_filters=4, base_kernels=3,
      num_layers=2,
  )
  network.save(path)


@pytest.mark.needs_extra("export")
@pytest.mark.slow
def test_every_format_is_written_without_the_noise_of_its_packages(tmp_path):
  save_small_model(tmp_path / "model.keras")
  done = started(f"--model={tmp_path / 'model.keras'}", f"--output_dir={tmp_path / 'out'}",
                 f"--formats={','.join(export.FORMATS)}")  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert done.stderr == "Loading TensorFlow ...\n"
  facts = json.loads((tmp_path / "out" / "export.json").read_text())
  assert [entry["format"] for entry in facts["exports"]] == list(export.FORMATS)
  assert all(entry["max_difference"] < export.MAX_DIFFERENCE for entry in facts["exports"])


@pytest.mark.slow
def test_a_model_file_becomes_a_folder_that_tells_its_checks(tmp_path):
  save_small_model(tmp_path / "model.keras")
  done = started(f"--model={tmp_path / 'model.keras'}", f"--output_dir={tmp_path / 'out'}",
                 "--formats=weights,saved_model")  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert done.stderr == "Loading TensorFlow ...\n"
  assert all(len(line) <= 80 or str(tmp_path) in line for line in done.stdout.splitlines())
  facts = json.loads((tmp_path / "out" / "export.json").read_text())
  assert [entry["format"] for entry in facts["exports"]] == ["weights", "saved_model"]
  assert facts["image_size"] == [12, 20]
  assert sorted(path.name for path in tmp_path.iterdir()) == ["model.keras", "out"]
  as_json = started(f"--model={tmp_path / 'model.keras'}", f"--output_dir={tmp_path / 'more'}",
                    "--formats=weights", "--json")  # fmt: skip
  printed = json.loads(as_json.stdout)
  assert printed["output_dir"] == str(tmp_path / "more")
  written = json.loads((tmp_path / "more" / "export.json").read_text())
  assert printed["exports"] == written["exports"]
  shutil.rmtree(tmp_path / "more")
  again = started(f"--model={tmp_path / 'model.keras'}", f"--output_dir={tmp_path / 'out'}")
  assert again.returncode == 1 and "must be new or empty" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "either --run_dir or --model"),
        (["--model=m.keras", "--run_dir=r"], "either --run_dir or --model"),
        (["--run_dir=/no/such/run"], "does not exist"),
        (["--model=/no/such/m.keras"], "does not exist"),
        (["--model=m.keras", "--image_size=x"], "--image_size must be"),
        (["--model=m.keras", "--formats="], "--formats must name"),
        (["--model={model}", "--output=labels"], "--output=labels needs --run_dir"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_one(arguments, said, tmp_path):
  there = tmp_path / "there.keras"
  there.touch()
  words = [word.format(model=there) for word in arguments]
  done = started(f"--output_dir={tmp_path / 'out'}", *words)
  assert done.returncode == 1
  assert said in done.stderr and done.stderr.startswith("error: ")
  assert list(tmp_path.iterdir()) == [there]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--formats=tflite"], "Did you mean 'litert'?"), ([], "must be a model saved as .keras")],
)
def test_bad_input_found_late_leaves_nothing(arguments, said, tmp_path):
  damaged = tmp_path / "model.keras"
  damaged.write_bytes(b"no archive")
  done = started(f"--output_dir={tmp_path / 'out'}", f"--model={damaged}", *arguments)
  assert done.returncode == 1
  assert said in done.stderr and "Traceback" not in done.stderr
  assert list(tmp_path.iterdir()) == [damaged]
