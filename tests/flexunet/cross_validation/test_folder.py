"""What a cross-validation was started with, and whether the command still agrees with it."""

import dataclasses

import pytest

from flexunet import config
from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.cross_validation import folder as folders
from flexunet.pipelines.augmentation.config import AugmentationConfig


def plan(**changes) -> folders.Plan:
  values = {"dataset": "blobs/slices/1.0.0", "fingerprint": "f", "validation_split": "validation",
            "folds": (0, 1, 2), "given": {"epochs": 3, "base_filters": 4},
            "trained": {"fold_0": "a" * 64}}  # fmt: skip
  return folders.Plan(**{**values, **changes})


def test_a_plan_reads_as_it_was_written_and_names_its_runs(tmp_path):
  folder = folders.CrossValidationFolder(tmp_path)
  assert folder.read_plan() is None
  folder.write(plan(), {"pooled": {}})
  assert folder.read_plan() == plan()
  stored = files.read_json(folder.summary_json)
  assert stored["runs"] == ["fold_0", "fold_1", "fold_2"] and stored["pooled"] == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [("form", 0), ("folds", ["a"]), ("folds", []), ("given", 3), ("trained", None), ("dataset", 0)],
)
def test_a_damaged_plan_is_one_line_that_names_the_file(tmp_path, name, value):
  folder = folders.CrossValidationFolder(tmp_path)
  folder.write(plan(), {name: value} if name != "dataset" else {})
  if name == "dataset":
    values = files.read_json(folder.summary_json)
    del values["dataset"]
    files.write_json(folder.summary_json, values)
  with pytest.raises(InputError, match="cross_validation.json must be as"):
    folder.read_plan()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "other"}, "the dataset was blobs/slices/1.0.0, now it is other"),
        ({"fingerprint": "g"}, "the data fingerprint was f, now it is g"),
        ({"given": {"epochs": 3}}, "--base_filters was 4, now it is left out"),
        ({"given": {"base_filters": 4, "seed": 2}}, "--seed was left out, now it is 2"),
        ({"folds": (1, 2)}, "--folds had 0 too"),
    ],
)
def test_a_command_with_other_flags_or_data_is_refused(changes, message):
  with pytest.raises(InputError, match=message):
    plan().continued_by(plan(**changes))


def test_more_folds_and_other_caches_continue_and_more_epochs_train_every_fold_further():
  more = plan().continued_by(plan(folds=(0, 1, 2, 3), trained={}))
  assert more.folds == (0, 1, 2, 3) and more.trained == plan().trained
  given = {**plan().given, "cache": "none"}
  assert plan().continued_by(plan(given=given, trained={})).trained == plan().trained
  longer = plan().continued_by(plan(given={**plan().given, "epochs": 5}, trained={}))
  assert longer.trained == {} and longer.given["epochs"] == 5


def test_only_what_is_not_at_its_default_counts_as_given_and_paths_name_nobody(tmp_path):
  parts = [
      config.ModelConfig(image_size=(16, 24)),
      config.DataConfig(data_dir=str(tmp_path / "data")),
      config.TrainingConfig(epochs=2, seed=1),  # 1 is the default.
      AugmentationConfig(),
  ]
  given = folders.given_settings(parts)
  assert given == {"image_size": [16, 24], "data_dir": str(tmp_path / "data"), "epochs": 2}
  stored = folders.stored_settings(given, tmp_path / "cv")
  assert stored == {**given, "data_dir": "../data"}


def test_a_fold_that_was_trained_is_added_in_the_order_of_the_folds():
  one = dataclasses.replace(plan(), trained={}).with_trained(2, "c").with_trained(0, "a")
  assert list(one.to_json()["trained"].items()) == [("fold_0", "a"), ("fold_2", "c")]
