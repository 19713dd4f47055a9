"""The run folder loses nothing and leaves no half files."""

import json

import pytest

from flexunet import run_folder
from flexunet.core import files
from flexunet.core.errors import InputError


def test_a_folder_with_files_is_refused(tmp_path):
  (tmp_path / "old.txt").write_text("kept")
  with pytest.raises(InputError, match="new or empty"):
    run_folder.RunFolder.create(tmp_path)
  assert (tmp_path / "old.txt").read_text() == "kept"


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
  (tmp_path / "run").write_text("")
  with pytest.raises(InputError, match="must be a folder"):
    run_folder.RunFolder.create(tmp_path / "run")


@pytest.mark.parametrize("make", [True, False])
def test_a_folder_that_is_no_run_is_refused(tmp_path, make):
  folder = tmp_path / "none"
  if make:
    folder.mkdir()
  with pytest.raises(InputError, match="config.json" if make else "does not exist"):
    run_folder.RunFolder.open(folder)


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
  target = tmp_path / "values.json"
  files.write_json(target, {"a": 1})
  with pytest.raises(ValueError):
    files.write_json(target, {"a": float("nan")})
  with pytest.raises(TypeError):
    files.write_bytes(target, "text")
  assert json.loads(target.read_text()) == {"a": 1}
  assert [p.name for p in tmp_path.iterdir()] == ["values.json"]


def test_what_a_killed_process_was_writing_is_removed_and_nothing_else(tmp_path):
  run = run_folder.RunFolder(tmp_path)
  run.previews.mkdir()
  halves = [tmp_path / ".history.csv.ab12", run.previews / ".epoch_0001.png.x",
            tmp_path / ".model.partial.keras"]  # fmt: skip
  kept = [run.history_csv, tmp_path / ".mine", run.preview_png(0)]
  for path in (*halves, *kept):
    path.write_text("")
  run.remove_partial()
  assert not any(path.exists() for path in halves) and all(path.exists() for path in kept)
