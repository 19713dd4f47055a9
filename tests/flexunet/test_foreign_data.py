"""Datasets built elsewhere: other feature names, no class names, no build report, and folds."""

import json

import dataset_samples
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from flexunet import config, dataset_access
from flexunet import evaluate as evaluate_program
from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.evaluation import evaluate
from flexunet.training import input_pipeline, run_setup, trainer


def slices(subjects, first_seed):
  made = []
  for subject in subjects:
    for index in range(3):
      image, label = dataset_samples.blob_slice(20, 28, first_seed + len(made))
      made.append({"image": image, "label": label, "subject": subject, "volume": subject,
                   "slice_index": index, "fold": subjects.index(subject)})  # fmt: skip
  return made


def run(data_dir, folder, model=None, **data):
  parts = (
      config.ModelConfig(num_layers=2, base_filters=4, **(model or {})),
      config.DataConfig(data_dir=str(data_dir), cache="none", **data),
      config.TrainingConfig(epochs=1, batch_size=4, previews=0),
  )
  opened = input_pipeline.open_data(parts[1])
  return trainer.fit(run_setup.complete(*parts, opened), folder, opened)[0]


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
  features = tfds.features.FeaturesDict({
      "scan": tfds.features.Image(shape=(None, None, 3)),
      "mask": tfds.features.Image(shape=(None, None, 1)),
  })

  def as_dataset(seed):
    def generate():
      for record in slices("ab", seed):
        scan = np.repeat(record["image"][..., None], 3, axis=-1)
        yield {"scan": scan, "mask": record["label"][..., None]}

    signature = {
        "scan": tf.TensorSpec((None, None, 3), tf.uint8),
        "mask": tf.TensorSpec((None, None, 1), tf.uint8),
    }
    return tf.data.Dataset.from_generator(generate, output_signature=signature)

  builder = tfds.dataset_builders.store_as_tfds_dataset(
      name="pictures", version="1.0.0", data_dir=tmp_path_factory.mktemp("foreign"),
      features=features,
      split_datasets={"train": as_dataset(0), "validation": as_dataset(50)},
  )  # fmt: skip
  return builder.data_dir


KEYS = {"image_key": "scan", "label_key": "mask"}


@pytest.mark.slow
def test_another_dataset_trains_and_is_scored_under_its_own_names(foreign, tmp_path):
  model = {"num_classes": 3, "image_size": (24, 32), "image_channels": 3}
  made = run(foreign, tmp_path / "run", model, resize_mode="pad", **KEYS)
  names = made.read_config().dataset_facts.label_scheme.names
  assert names == ["background", "class_1", "class_2"]
  figures = evaluate.evaluate(made, ["validation"], tolerances_mm=[1.0], show_progress=False)
  assert figures["validation"]["evaluated"]["volumes"] == 6  # Every record is one alone.
  assert json.loads(made.metrics_json.read_text())["validation"]["foreground_dice"] is not None


def test_classes_without_names_are_numbered_by_what_the_labels_hold(foreign, tmp_path, capsys):
  with pytest.raises(InputError, match=r"--num_classes must be 3 .* hold 0, 1, 2\. Got: 5"):
    run(foreign, tmp_path / "run", {"num_classes": 5})
  # The features are found by their names, too.
  config_of_run = run(foreign, tmp_path / "run").read_config()
  assert config_of_run.model.num_classes == 3
  assert (config_of_run.data.image_key, config_of_run.data.label_key) == ("scan", "mask")
  assert "image 'scan', label 'mask'" in capsys.readouterr().err


@pytest.mark.slow
def test_slices_never_count_as_subjects_without_a_word(foreign, tmp_path, capsys):
  made = run(foreign, tmp_path / "run", {"image_size": (24, 32)}, resize_mode="pad")
  capsys.readouterr()
  figures = evaluate.evaluate(made, ["validation"], tolerances_mm=[1.0], show_progress=False)
  evaluated = figures["validation"]["evaluated"]
  assert evaluated["counted_by"] == "slice"
  assert any("every slice counts as a subject" in line for line in evaluated["warnings"])
  printed = evaluate_program.scores_text("validation", figures["validation"])
  assert printed.splitlines()[1] == "validation: 6 slices, 6 volumes"


@pytest.mark.slow
def test_sizes_are_measured_and_the_plan_follows_them(tmp_path):
  def as_dataset(seed):
    made = [dataset_samples.blob_slice(35, 51, seed + n) for n in range(3)]
    return tf.data.Dataset.from_generator(
        lambda: ({"image": i[..., None], "segmentation_mask": m[..., None]} for i, m in made),
        output_signature={name: tf.TensorSpec((35, 51, 1), tf.uint8)
                          for name in ("image", "segmentation_mask")},
    )  # fmt: skip

  pixels = tfds.features.Image(shape=(None, None, 1))
  builder = tfds.dataset_builders.store_as_tfds_dataset(
      name="small", version="1.0.0", data_dir=tmp_path / "data",
      features=tfds.features.FeaturesDict({"image": pixels, "segmentation_mask": pixels}),
      split_datasets={"train": as_dataset(0), "validation": as_dataset(9)},
  )  # fmt: skip
  height, width = run(builder.data_dir, tmp_path / "run").read_config().model.image_size
  # As small as holds 35 x 51 and divides by the two stages of the network; it was 256 x 256.
  assert 35 <= height <= 64 and 51 <= width <= 64


def test_neighbours_need_volumes_and_places(foreign, tmp_path):
  with pytest.raises(InputError, match="--context_slices needs volume and place of every slice"):
    run(foreign, tmp_path / "run", {"image_channels": 3}, context_slices=1)


def test_such_a_dataset_opens_in_python_under_its_own_names(foreign):
  opened = dataset_access.open_dataset(data_dir=foreign, label_values=(0, 1, 2))
  assert opened.class_names == ["background", "class_1", "class_2"]
  first = next(opened.volumes("train"))
  assert first.labels[0].shape == (20, 28) and first.images[0].shape == (20, 28, 3)
  batch = next(iter(opened.batches("train", image_size=32, batch_size=2, image_channels=3)))
  assert batch["image"].shape == (2, 32, 32, 3) and batch["label"].numpy().max() == 2
  with pytest.raises(InputError, match="Did you mean 'subject_key'"):
    dataset_access.open_dataset(data_dir=foreign, subject_keys="a")


def test_a_wrong_feature_lists_the_right_ones(foreign, tmp_path):
  with pytest.raises(InputError, match=r"scan"):
    run(foreign, tmp_path / "run", {"num_classes": 3}, image_key="scans", label_key="mask")


@pytest.mark.slow
def test_a_run_on_a_fold_is_scored_on_the_subjects_of_that_fold(tmp_path):
  folder = dataset_samples.write_dataset(
      tmp_path / "data", {"train": slices("abc", 0), "validation": slices("de", 40)}
  )
  made = run(folder, tmp_path / "run", fold=1)
  figures = evaluate.evaluate(made, ["validation"], tolerances_mm=[1.0], show_progress=False)
  # Fold 1 holds b of the first split and e of the second.
  assert {row["subject"] for row in figures["validation"]["per_subject"]} == {"b", "e"}
  evaluated = figures["validation"]["evaluated"]
  assert evaluated["subjects_also_trained_on"] == []
  assert evaluated["subjects_also_validated_on"] == ["b", "e"]
  # Of five subjects three are left to train on.
  people = {name: counts["subjects"] for name, counts in evaluated["dataset_splits"].items()}
  assert people == {"train": 3, "validation": 2}
  assert files.read_json(made.manifest_json)["splits"] == evaluated["dataset_splits"]
  text = made.report_html.read_text(encoding="utf-8")
  assert "Results on validation (held out as fold 1)" in text
  assert "validation above is the 2 subjects that this fold held out: b, e." in text
