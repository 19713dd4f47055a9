"""A run remembers its subjects, and those of the networks it started from."""

import flagged
import pytest

from flexunet import run_folder, seen_subjects
from flexunet.core import files
from flexunet.seen_subjects import SubjectsSeen
from flexunet.training import trainer


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return flagged.write_dataset(tmp_path_factory.mktemp("data"))


def train(data_dir, folder, *flags):
  made = flagged.setup(data_dir, "--epochs=1", *flags)
  return trainer.fit(made.config, folder, made.data)[0]


@pytest.mark.slow
def test_a_run_keeps_its_subjects_and_those_of_its_start_through_a_chain(
    data_dir, tmp_path, capsys
):
  # Of a to d, fold 0 are a and d: subjects have the folds 0, 1, 2 in turn in each split.
  first = train(data_dir, tmp_path / "first", "--fold=0")
  assert "--init_from was trained on" not in capsys.readouterr().err
  name = "blobs/slices/1.0.0"
  own = SubjectsSeen(name, frozenset("bc"), frozenset("ad"))
  assert seen_subjects.of_run(first) == [own]
  second = train(data_dir, tmp_path / "second", "--fold=1", f"--init_from={first.path}")
  assert "trained on 1 of the 1 subjects of the validation split" in capsys.readouterr().err
  next_own = SubjectsSeen(name, frozenset("acd"), frozenset("b"))
  assert seen_subjects.of_run(second) == [next_own, own]
  # The file of a run is that of the run; one that lies elsewhere is of unknown origin.
  assert seen_subjects.of_start(str(second.model_keras)) == [next_own, own]
  moved = tmp_path / "moved.keras"
  moved.write_bytes(second.model_keras.read_bytes())
  assert seen_subjects.of_start(str(moved)) == [SubjectsSeen(None)]


def test_a_start_that_does_not_say_whom_it_saw_is_unknown(tmp_path):
  run = run_folder.RunFolder.create(tmp_path / "run")
  assert seen_subjects.of_start(str(run.path)) == [SubjectsSeen(None)]
  files.write_json(run.manifest_json, {"command": []})
  assert seen_subjects.of_start(str(run.path)) == [SubjectsSeen(None)]
  assert seen_subjects.of_start(None) == []


def test_subjects_without_a_name_are_not_compared():
  seen = [SubjectsSeen("a/b/1.0.0", frozenset(), frozenset())]
  found = seen_subjects.overlap(["", ""], "a/b/1.0.0", seen)
  assert found.warnings() == []
  assert found.to_json() == {"subjects_also_trained_on": None, "subjects_also_validated_on": None}


def test_many_names_are_shortened():
  names = {f"s{number:02d}" for number in range(14)}
  seen = [SubjectsSeen("a/b/1.0.0", frozenset(sorted(names)[:12]))]
  (warning,) = seen_subjects.overlap(names, "a/c/1.0.0", seen).warnings()
  assert warning.startswith("12 of 14 subjects (s00, s01, s02,") and "s09 and 2 more)" in warning
