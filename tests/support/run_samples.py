"""Run folders made up for tests: a complete one with two evaluated volumes, or a bare one."""

import csv
import dataclasses
import json

import numpy as np
import tensorflow as tf

from flexunet import config, run_folder
from flexunet.core import files
from flexunet.dataset_facts import DatasetFacts
from flexunet.evaluation import examples, summary
from flexunet.evaluation.scores import case_status
from flexunet.imaging.intensity import IntensityWindow
from flexunet.imaging.label_scheme import LabelScheme
from flexunet.imaging.slicing import SlicePlan
from flexunet.network import architecture

CLASSES = [
    {"name": "background", "color": [0, 0, 0]},
    {"name": "grey_matter", "color": [128, 128, 128]},
    {"name": "lesion <b>", "color": [255, 0, 0]},
]
SCHEME = LabelScheme.from_json(CLASSES)
NAMES = SCHEME.names[1:]


def published(**changes) -> architecture.ModelConfig:
  """Returns the published network with some knobs changed."""
  return dataclasses.replace(architecture.PUBLISHED, **changes)


def run_config(
    image_size=(32, 32), resize_mode="pad", context_slices=0, **model
) -> config.RunConfig:
  """Returns a config of the smallest useful run, with three classes."""
  knobs = {
      "image_channels": 1,
      "num_classes": 3,
      "base_filters": 4,
      "base_kernels": 3,
      "num_layers": 2,
      "dropout_rate": 0.0,
      "normalization": "none",
      "stem": "full",
      "decoder_convolutions": 2,
      **model,
  }
  return config.RunConfig(
      model=config.ModelConfig(image_size=image_size, **knobs),
      data=config.DataConfig(
          dataset="blobs",
          data_dir="/secret/place",
          resize_mode=resize_mode,
          context_slices=context_slices,
          foreground_fraction=0.5,
      ),
      training=config.TrainingConfig(
          batch_size=4, epochs=3, learning_rate=1e-3, loss="dice", optimizer="adam", clipvalue=0.5,
          weight_decay=0.0, momentum=0.0, ema_momentum=0.0, weight_average=0.0,
      ),
      dataset_facts=DatasetFacts(
          name="blobs/slices/1.0.0",
          fingerprint="f" * 16,
          label_scheme=SCHEME,
          slice_plan=SlicePlan("LAS", "axial"),
          intensity=IntensityWindow("percentile", 1.0, 99.0),
          spacing_mm=(1.0, 1.0),
      ),
      reasons={"foreground_fraction": "31 % of the training slices hold foreground"},
  )


def row(subject: str, class_name: str, dice: float, truth: int = 9, found: int = 9) -> dict:
  """Returns the scores of one volume and class; the volume is named after its subject."""
  return {
      "subject": subject,
      "volume": f"{subject}_scan",
      "class": class_name,
      "dice": dice,
      "hd95_mm": 2.0,
      "surface_dice_1mm": 0.75,
      "reference_pixels": truth,
      "predicted_pixels": found,
      "reference_ml": 0.01 * truth,
      "predicted_ml": 0.01 * found,
      "distances": "3d",
      "distances_px": "none",
      "slices_missed": 0,
      "slices_false_alarm": 0,
      "status": case_status(truth, found),
  }


def evaluated_run(path, subjects: int = 4, first: int = 0) -> run_folder.RunFolder:
  """Writes a run folder with a history and an evaluated split `test`; the model is missing.

  Its subjects are numbered from `first` on.
  """
  run = run_folder.RunFolder.create(path)
  run.write_config(run_config())
  history = ["epoch,seconds,learning_rate,loss,val_loss,foreground_dice,val_foreground_dice"]
  history += [
      f"{epoch},{20 * epoch},{0.002 * (1 - epoch / 12)},{1 / epoch},"
      + (f"{1.2 / epoch},{1 - 0.7 / epoch},{1 - 0.9 / epoch}" if epoch % 2 else ",,")
      for epoch in range(1, 12)
  ]
  files.write_bytes(run.history_csv, "\n".join(history).encode())
  files.write_json(run.manifest_json, {"command": ["--data_dir=/secret/place"]})
  rows, keeper = [], examples.ExampleKeeper()
  generator = np.random.default_rng(3)
  for index in range(first, first + subjects):
    own = [row(f"S{index:02d}", name, float(generator.uniform(0.6, 0.95))) for name in NAMES]
    if index == 1:
      own[1].update(dice=float("nan"), hd95_mm=float("nan"), status="both_empty")
    rows += own
    keeper.offer(_example(own, generator))
  figures = summary.summarize(rows, NAMES, ["dice", "hd95_mm", "surface_dice_1mm"])
  figures["published"] = {"dice_coef_multiclass": 0.9987, "pixel_accuracy": 0.9979}
  figures["evaluated"] = {
      "split": "test", "subjects": subjects, "volumes": subjects, "slices": 31 * subjects,
      "fingerprint": "f" * 16, "model_sha256": "0" * 64, "surface_tolerances_mm": [1.0],
      "warnings": ["surface Dice at 1 mm: the tolerance is below the voxel size"],
      "subjects_also_trained_on": [], "subjects_also_validated_on": [],
      "volumes_with_2d_distances": 0, "volumes_without_spacing": 1,
      "volumes_without_some_slices": 0, "volumes_on_resampled_grid": 0,
      "dataset_splits": {"test": {"subjects": subjects, "volumes": subjects, "slices": 124}},
  }  # fmt: skip
  files.write_json(run.metrics_json, summary.strict({"test": figures}))
  with open(run.cases_csv, "w", newline="", encoding="utf-8") as stream:
    writer = csv.DictWriter(stream, ["split", *rows[0]])
    writer.writeheader()
    writer.writerows({"split": "test", **entry} for entry in rows)
  examples.write(examples.path_of(run, "test"), keeper.chosen())
  return run


def _example(rows: list[dict], generator: np.random.Generator) -> examples.Example:
  """Returns two slices of a grey disc with a lesion in it, found some pixels off."""
  y, x = np.mgrid[:160, :120]
  head = (y - 80) ** 2 / 4900 + (x - 60) ** 2 / 2900 < 1
  image = (head * 120 + generator.integers(0, 40, head.shape)).astype(np.uint8)
  truth = np.zeros(head.shape, np.uint8)
  truth[60:84, 50:66] = 1
  truth[70:76, 58:75] = 2
  dice = {entry["class"]: entry["dice"] for entry in rows}
  key = (rows[0]["subject"], rows[0]["volume"])
  shown = [
      examples.ExampleSlice(
          image=image,
          truth=truth,
          prediction=np.roll(truth, (shift, 1), (0, 1)),
          slice_index=17 + shift,
          most_truth=shift == 2,
          most_error=shift == 3,
      )
      for shift in (2, 3)
  ]
  return examples.Example(
      slices=tuple(shown),
      subject=rows[0]["subject"],
      volume=rows[0]["volume"],
      foreground_dice=summary.foreground_dice(rows)[key],
      dice={name: None if value != value else value for name, value in dice.items()},
      aspect=1.2,
  )


def write_json(path, values) -> None:
  path.write_text(json.dumps(values), encoding="utf-8")


def with_facts(run_config: config.RunConfig, **facts) -> config.RunConfig:
  """Returns the config with some of its dataset facts replaced, given as JSON holds them."""
  replaced = DatasetFacts.from_json({**run_config.dataset_facts.to_json(), **facts})
  return dataclasses.replace(run_config, dataset_facts=replaced)


class NumpyNetwork:
  """Stands in for a trained network of any size: `predict_on_batch` answers, in NumPy."""

  num_classes = 3

  def __call__(self, images: tf.Tensor) -> tf.Tensor:
    answer = tf.numpy_function(self._answer, [images], tf.float32)
    answer.set_shape([*images.shape[:3], self.num_classes])
    return answer

  def _answer(self, batch: np.ndarray) -> np.ndarray:
    return np.asarray(self.predict_on_batch(batch), np.float32)

  def predict_on_batch(self, batch: np.ndarray) -> np.ndarray:
    raise NotImplementedError


class BrightnessNetwork(NumpyNetwork):
  """Stands in for a trained network: below 60 background, below 180 class 1, above it class 2.

  Answers with certainty 0.8, so that probabilities are no labels. Counts its batches by shape.
  """

  def __init__(self):
    self.shapes: list[tuple[int, ...]] = []

  def predict_on_batch(self, batch: np.ndarray) -> np.ndarray:
    self.shapes.append(batch.shape)
    label = np.digitize(np.asarray(batch, np.float32).mean(axis=-1), [60, 180])
    return np.where(np.eye(3, dtype=bool)[label], 0.8, 0.1).astype(np.float32)
