"""Which runs --run_dir names, their weights, and the file that keeps both."""

import json
import shutil

import pytest
import run_samples

from flexunet import ensemble_folder, run_folder
from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.ensemble_folder import EnsembleFolder, RunSet


def run(path, **facts):
  made = run_folder.RunFolder.create(path)
  made.write_config(run_samples.with_facts(run_samples.run_config(), **facts))
  made.model_keras.write_bytes(path.name.encode())
  return made


@pytest.fixture
def folds(tmp_path):
  for number in (0, 1, 10, 2):
    run(tmp_path / "cv" / f"fold_{number}")
  (tmp_path / "cv" / "evaluation").mkdir()
  return tmp_path / "cv"


def test_one_run_stays_a_run_even_with_a_comma_in_its_name(tmp_path):
  made = run(tmp_path / "a,b")
  assert ensemble_folder.open_runs(str(made.path)) == made
  assert ensemble_folder.open_for_prediction(made.path) == made
  with pytest.raises(InputError, match="--weights is for several runs"):
    ensemble_folder.open_for_prediction(made.path, "equal")
  # A folder with a single run is an ensemble of one.
  assert ensemble_folder.open_runs(tmp_path).names == ["a,b"]
  (tmp_path / "empty").mkdir()
  with pytest.raises(InputError, match="has no config.json"):
    ensemble_folder.open_runs(tmp_path / "empty")


def test_a_folder_of_runs_is_an_ensemble_in_the_order_of_their_numbers(folds):
  found = ensemble_folder.open_runs(str(folds))
  assert found.names == ["fold_0", "fold_1", "fold_2", "fold_10"]
  assert found.weights == (0.25,) * 4 and found.kind == "equal"
  assert ensemble_folder.output_folder(found, None) == EnsembleFolder(folds)


def test_a_cross_validation_says_which_of_its_subfolders_are_runs(folds):
  files.write_json(folds / "cross_validation.json", {"runs": ["fold_2", "fold_0"]})
  assert ensemble_folder.open_runs(folds).names == ["fold_2", "fold_0"]
  files.write_json(folds / "cross_validation.json", {"runs": ["fold_2", "fold_7"]})
  with pytest.raises(InputError, match="fold_7, which is not there"):
    ensemble_folder.open_runs(folds)
  files.write_json(folds / "cross_validation.json", {"runs": 5})
  with pytest.raises(InputError, match="must list its runs"):
    ensemble_folder.open_runs(folds)


def test_runs_named_one_by_one_need_a_folder_of_their_own_for_scores(folds, tmp_path):
  named = f"{folds / 'fold_1'}, {folds / 'fold_0'}"
  found = ensemble_folder.open_runs(named)
  assert found.names == ["fold_1", "fold_0"]
  assert ensemble_folder.open_runs([folds / "fold_1", folds / "fold_0"]) == found
  with pytest.raises(InputError, match="--output_dir must name a folder"):
    ensemble_folder.output_folder(found, None)
  with pytest.raises(InputError, match="must not be the folder of a run"):
    ensemble_folder.output_folder(found, folds / "fold_0")
  same_name = run(tmp_path / "other" / "fold_0")
  both = ensemble_folder.open_runs([folds / "fold_0", same_name.path])
  assert both.names == ["cv/fold_0", "other/fold_0"]


def test_a_run_without_a_network_is_one_line(folds):
  (folds / "fold_2" / "model.keras").unlink()
  with pytest.raises(InputError, match="fold_2/model.keras must hold the trained network"):
    ensemble_folder.open_runs(folds)


@pytest.mark.parametrize(("facts", "message"), [
    ({"label_scheme": [{"name": n, "color": [1, 1, 1]} for n in ("background", "x", "y")]},
     "must have the same classes. .*/a has .'background', 'grey.*/b has .'background', 'x'"),
    ({"channel_names": ["T1", "T2"], "other_intensities": [{"kind": "none"}]},
     "the same channels"),
    ({"slice_plan": None, "intensity": None}, "the same kind of scans"),
])  # fmt: skip
def test_runs_that_cannot_answer_together_are_named_with_their_difference(
    tmp_path, facts, message
):
  run(tmp_path / "a")
  run(tmp_path / "b", **facts)
  with pytest.raises(InputError, match=message):
    ensemble_folder.open_runs([tmp_path / "a", tmp_path / "b"]).configs()


@pytest.mark.parametrize(("weights", "expected"), [
    ("", (0.25,) * 4), ("equal", (0.25,) * 4), ("1,1,0,2", (0.25, 0.25, 0.0, 0.5)),
])  # fmt: skip
def test_weights_are_scaled_to_one(folds, weights, expected):
  assert ensemble_folder.open_for_prediction(folds, weights).weights == expected


@pytest.mark.parametrize(("weights", "message"), [
    ("1,2", r"a number for each of the 4 runs \(fold_0, fold_1, fold_2, fold_10\). Got: 2"),
    ("1,1,1,-1", "must be at least 0"), ("0,0,0,0", "must be at least 0"),
    ("1,1,1,nan", "must be at least 0"), ("equl", "Did you mean 'equal'"),
    ("a,b,c,d", "must be numbers, equal or learnt"), ("learnt", "run flexunet evaluate"),
])  # fmt: skip
def test_weights_that_are_none_are_refused(folds, weights, message):
  with pytest.raises(InputError, match=message):
    ensemble_folder.open_for_prediction(folds, weights)


def test_the_file_keeps_runs_and_weights_by_relative_paths(folds, tmp_path):
  found = ensemble_folder.open_runs([folds / "fold_0", folds / "fold_1"])
  learnt = found.weighted([3.0, 1.0], "learnt", {"split": "validation", "subjects": ["a"]})
  folder = EnsembleFolder(tmp_path / "both")
  learnt.write(folder)
  stored = json.loads(folder.ensemble_json.read_text())
  assert [entry["path"] for entry in stored["runs"]] == ["../cv/fold_0", "../cv/fold_1"]
  shutil.move(tmp_path / "cv", tmp_path / "elsewhere")
  with pytest.raises(InputError, match="which is not there. Name the runs themselves"):
    ensemble_folder.open_runs(folder.path)
  shutil.move(tmp_path / "elsewhere", tmp_path / "cv")
  again = ensemble_folder.open_for_prediction(folder.path, "learnt")
  assert again.weights == (0.75, 0.25) and again.learnt_on == learnt.learnt_on
  assert again.digest() == learnt.digest() != found.digest()
  assert folder.read_config() == found.runs[0].read_config()
  (folds / "fold_1" / "model.keras").write_bytes(b"trained again")
  with pytest.raises(InputError, match="fold_1/model.keras is another one"):
    ensemble_folder.open_runs(folder.path)


def test_weights_of_a_folder_that_has_got_more_runs_are_refused_unless_equal(folds):
  folder = EnsembleFolder(folds)
  equal = ensemble_folder.open_runs(folds)
  equal.write(folder)
  run(folds / "fold_3")
  assert len(ensemble_folder.open_runs(folds).runs) == 5
  equal.weighted([1.0, 2.0, 3.0, 4.0], "given").write(folder)
  with pytest.raises(InputError, match="has weights of 4 runs, but .* holds 5"):
    ensemble_folder.open_runs(folds)


@pytest.mark.parametrize("change", [
    {"form": 9}, {"runs": []}, {"runs": [{}]}, {"weights": "x"}, {"runs": 3},
])  # fmt: skip
def test_a_damaged_file_is_one_line(folds, change):
  folder = EnsembleFolder(folds)
  ensemble_folder.open_runs(folds).write(folder)
  files.write_json(folder.ensemble_json, {**files.read_json(folder.ensemble_json), **change})
  with pytest.raises(InputError, match="must be as flexunet evaluate wrote it"):
    ensemble_folder.open_runs(folds)


def test_the_same_run_twice_counts_twice(folds):
  found = ensemble_folder.open_runs([folds / "fold_0"] * 2)
  assert isinstance(found, RunSet) and found.weights == (0.5, 0.5)
