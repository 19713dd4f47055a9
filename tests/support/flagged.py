"""Runs as their flags make them, on a tiny dataset: what the tests of the flags share."""

import dataclasses
import functools
import pathlib

import dataset_samples
import keras
import numpy as np

from flexunet import config
from flexunet.core import flags
from flexunet.network import weights
from flexunet.pipelines.augmentation.config import AugmentationConfig
from flexunet.training import devices, input_pipeline, networks, run_setup, trainer

PARTS = {
    "model": config.ModelConfig,
    "data": config.DataConfig,
    "training": config.TrainingConfig,
    "augmentation": AugmentationConfig,
}
# Fields whose effect is a refusal, in test_flag_conflicts.py.
REFUSED = {"num_classes", "num_devices"}
# Fields whose effect shows while a run trains, in test_flag_runs.py.
SEEN_IN_RUNS = {
    "epochs", "max_minutes", "schedule", "warmup_steps", "reduce_lr_factor", "reduce_lr_patience",
    "early_stopping_patience", "monitor", "save_best", "ema_momentum", "init_from",
    "validation_epochs", "previews", "tensorboard_graph", "checkpoint_steps", "keep_checkpoints",
}  # fmt: skip
# Small and fast where a test says nothing else.
# Rounding must not depend on the CPU: "auto" is bfloat16 where there is a matrix unit for it.
BASE = ("--num_layers=2", "--base_filters=4", "--batch_size=4", "--epochs=2", "--previews=0",
        "--augmentation=none", "--precision=float32")  # fmt: skip
SIZE = (20, 28)


def records(subjects: str, first_seed: int, bright: bool = True) -> list[dict]:
  """Returns four slices of 20x28 pixels a subject; without `bright` the second class is absent."""
  made = []
  for number, subject in enumerate(subjects):
    for index in range(4):
      image, label = dataset_samples.blob_slice(*SIZE, first_seed + len(made))
      if not bright and index:
        label = label * (label < 2)
      made.append({"image": image, "label": label, "subject": subject, "volume": subject,
                   "slice_index": index, "fold": number % 3})  # fmt: skip
  return made


def write_dataset(folder: pathlib.Path) -> pathlib.Path:
  """Returns the version folder of blobs: subjects a to c train, d validates, e tests."""
  splits = {"train": records("abc", 0), "validation": records("d", 100), "test": records("e", 200)}
  return dataset_samples.write_dataset(folder, splits)


def parse(*given: str) -> dict:
  """Returns part -> config as the trainer reads them from a command line."""
  program = flags.Program("")
  holders = {name: program.fields(part) for name, part in PARTS.items()}
  program.parse(["train", *given])
  return {name: flags.read(part, holders[name]) for name, part in PARTS.items()}


@dataclasses.dataclass(frozen=True)
class Setup:
  """A run before its first step; each thing is made when it is asked for."""

  config: config.RunConfig
  data: input_pipeline.TrainingData

  @functools.cached_property
  def prepared(self) -> trainer.TrainingSetup:
    return trainer.prepare(self.config, self.data)

  @functools.cached_property
  def streams(self) -> input_pipeline.Streams:
    return input_pipeline.make_streams(self.config, self.data)

  @functools.cached_property
  def order(self):
    return input_pipeline.make_order(self.config, self.data.train)

  @functools.cached_property
  def network(self):
    """The network in training as `training.prepare` makes it, without opening the data."""
    settings = self.config.training
    with devices.precision(settings.precision):
      made = networks.build(self.config)
      weights.set_from_seed(made, settings.seed)
      shares = input_pipeline.drawn_pixel_shares(self.data.train, self.order)
      networks.set_first_weights(made, self.config, shares)
      networks.compile_model(made, self.config)
    return made

  @functools.cached_property
  def kept(self):
    return networks.evaluation_network(self.network, self.config, len(self.data.validation))

  @property
  def optimizer(self):
    return self.network.optimizer

  def layer(self, name: str):
    return self.network.get_layer(name)

  def first_batch(self):
    """Returns (image, label) of the first training step."""
    batch = next(iter(self.streams.training(self.order, 0, 1)))
    image, label, _ = self.streams.finished(batch)
    return image.numpy(), label.numpy()


def setup(data_dir: pathlib.Path, *given: str) -> Setup:
  """Returns the run of the flags; those given win over BASE."""
  parts = parse(f"--data_dir={data_dir}", *BASE, *given)
  opened = input_pipeline.open_data(parts["data"])
  complete = run_setup.complete(
      parts["model"], parts["data"], parts["training"], opened, parts["augmentation"]
  )
  return Setup(complete, opened)


def finished(run: Setup, steps: int = 4) -> list[tuple[np.ndarray, np.ndarray]]:
  """Returns (image, label) of the first steps as the network sees them; every pixel counts."""
  made = []
  for batch in run.streams.training(run.order, 0, steps):
    image, label, weight = run.streams.finished(batch)
    assert (weight.numpy() == 1).all()
    made.append((image.numpy(), label.numpy()))
  return made


def losses(run: Setup, steps: int = 4) -> list[float]:
  """Trains some steps and returns the loss of each."""
  prepared, noted = run.prepared, []

  class Note(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
      noted.append(logs["loss"])

  prepared.network.fit(
      prepared.batches.training(prepared.epoch_order, 0, steps), verbose=0, callbacks=[Note()],
      shuffle=False,
  )  # fmt: skip
  return noted
