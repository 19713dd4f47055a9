"""The inspecting program, started as users start it, and its drawing."""

from __future__ import annotations

import json

import forked
import pytest
import run_samples

from flexunet.core.errors import InputError
from flexunet.tools import inspect_model


@pytest.mark.slow
def test_json_tells_the_published_network():
  done = forked.command("inspect", "--json", "--batch_sizes=2,4")
  assert done.returncode == 0, done.stderr
  facts = json.loads(done.stdout)
  assert facts["parameters"] == 126_809_303
  assert [entry["batch_size"] for entry in facts["training_memory_bytes"]] == [2, 4]
  assert len(facts["stages"]) == 8


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--base_kernels=4"], "base_kernels must be odd"),
        (["--model=a.keras", "--num_layers=3"], "Drop --num_layers"),
        (["--model=a.keras", "--run_dir=b"], "either --run_dir or --model"),
        (["--batch_sizes=0"], "--batch_sizes must be"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_one(arguments, said):
  done = forked.command("inspect", *arguments)
  assert done.returncode == 1
  assert done.stdout == ""
  assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
  assert said in done.stderr


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_drawing_is_of_the_format_asked_for(suffix, tmp_path):
  path = tmp_path / f"network.{suffix}"
  inspect_model.draw(run_samples.published(num_layers=3), path)
  start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix]
  assert path.read_bytes().startswith(start)


def test_the_drawing_names_every_stage(tmp_path):
  shape = run_samples.published(image_size=(100, 60), num_layers=3, base_filters=6)
  inspect_model.draw(shape, tmp_path / "network.svg")
  text = (tmp_path / "network.svg").read_text()
  # Text is drawn as paths; Matplotlib keeps the words as comments. 100 is padded to 100, 60 to 60.
  for caption in ("100x60x6", "50x30x12", "25x15x24"):
    assert f"<!-- {caption}" in text


def test_an_unknown_format_is_refused(tmp_path):
  with pytest.raises(InputError, match=".png, .svg, .pdf"):
    inspect_model.draw(run_samples.published(num_layers=2), tmp_path / "network.bmp")
