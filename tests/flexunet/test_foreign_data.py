"""Datasets built elsewhere: other feature names, no class names, no build report, and folds."""

import json

import dataset_samples
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from flexunet import config
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


def test_another_dataset_trains_and_is_scored_under_its_own_names(foreign, tmp_path):
  model = {"num_classes": 3, "image_size": (24, 32), "image_channels": 3}
  made = run(foreign, tmp_path / "run", model, resize_mode="pad", **KEYS)
  names = made.read_config().dataset_facts.label_scheme.names
  assert names == ["background", "class_1", "class_2"]
  figures = evaluate.evaluate(made, ["validation"], tolerances_mm=[1.0], show_progress=False)
  assert figures["validation"]["evaluated"]["volumes"] == 6  # Every record is one alone.
  assert json.loads(made.metrics_json.read_text())["validation"]["foreground_dice"] is not None


def test_classes_without_names_need_their_number(foreign, tmp_path):
  with pytest.raises(InputError, match="--num_classes"):
    run(foreign, tmp_path / "run", **KEYS)


def test_a_wrong_feature_lists_the_right_ones(foreign, tmp_path):
  with pytest.raises(InputError, match=r"scan"):
    run(foreign, tmp_path / "run", {"num_classes": 3}, image_key="scans", label_key="mask")


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
