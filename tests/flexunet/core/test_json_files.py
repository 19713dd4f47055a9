"""JSON is read in one place: whatever a file holds, a bad one ends in one line that names it."""

import pathlib
import zipfile

import pytest
import run_samples

from flexunet import run_folder
from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.datasets import built_dataset
from flexunet.datasets.builder import case_records, croissant
from flexunet.datasets.image_mask import masks
from flexunet.network import cost
from flexunet.reporting import report
from flexunet.training import checkpoints

# Python's reader of JSON gives up at some thousand brackets within brackets.
NESTED = "[" * 200_000 + "]" * 200_000


@pytest.mark.parametrize(
    "data, reason",
    [
        (NESTED.encode(), "nested too deep"),
        (b'{"a": ' * 200_000, "nested too deep"),
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"\xff\xfe", "utf-8"),
        (b"9" * 5000, "4300 digits"),
    ],
    ids=["lists", "mappings", "empty", "cut", "no UTF-8", "a number without end"],
)
def test_a_bad_file_is_one_line_that_names_it(tmp_path, data, reason):
  (tmp_path / "bad.json").write_bytes(data)
  with pytest.raises(InputError, match="bad.json must be readable JSON") as caught:
    files.read_json(tmp_path / "bad.json")
  assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_cannot_be_opened_is_one_line(tmp_path):
  with pytest.raises(InputError, match="gone.json must be a JSON file .*No such file"):
    files.read_json(tmp_path / "gone.json")
  with pytest.raises(InputError, match="must be a JSON file .*Is a directory"):
    files.read_json(tmp_path)


def read_config(folder):
  run_folder.RunFolder(folder).read_config()


def read_keras(folder):
  with zipfile.ZipFile(folder / "model.keras", "w") as archive:
    archive.write(folder / "config.json", "config.json")
  cost.config_of_keras_file(folder / "model.keras")


def read_checkpoint(folder):
  (folder / "000001_step_4").mkdir()
  (folder / "state.json").rename(folder / "000001_step_4" / "manifest.json")
  checkpoints.CheckpointStore(folder).read()


@pytest.mark.parametrize(
    "name, read",
    [
        ("config.json", read_config),
        ("config.json", read_keras),
        ("manifest.json", lambda folder: run_folder.read_manifest(folder / "manifest.json")),
        ("state.json", read_checkpoint),
        ("build_report.json", built_dataset.read_report),
        ("dataset_info.json", built_dataset.read_summary),
        ("dataset_info.json", built_dataset.read_info),
        ("croissant.json", croissant.read_prose),
        ("palette.json", lambda folder: masks.palette_scheme(str(folder / "palette.json"))),
    ],
)
def test_every_reader_refuses_brackets_without_end(tmp_path, name, read):
  (tmp_path / name).write_text(NESTED)
  with pytest.raises(InputError) as caught:
    read(tmp_path)
  assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_report_of_a_run_refuses_brackets_without_end(tmp_path):
  run = run_samples.evaluated_run(tmp_path / "run")
  run.metrics_json.write_text(NESTED)
  with pytest.raises(InputError, match="metrics.json must be readable JSON"):
    report.write_report(run)


@pytest.mark.parametrize("text", [NESTED, "[]", "{}", '{"bytes": 1}'])
def test_a_damaged_work_file_of_a_build_is_an_unfinished_case(tmp_path, text):
  (tmp_path / "case.json").write_text(text)
  (tmp_path / "case.records").write_bytes(b"x")
  assert not case_records.is_finished(pathlib.Path(tmp_path / "case"))
