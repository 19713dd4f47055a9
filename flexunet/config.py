"""What a run is: dataclasses, read from flags, written to `config.json`, read by every program.

A field whose default is None is planned from the data (`flexunet.training.planning`); in a run
folder every field has its value. Nothing is evaluated and unknown keys fail.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from flexunet.datasets.checked import Checked, from_mapping, knob, refuse_unknown
from flexunet.datasets.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Checked):
  """Shape of a FlexUNet; the names are those of `flexunet.build_model` and of the flags."""

  image_size: tuple[int, int] | None = knob(
      None, "Height and width of the network's input, e.g. 512,512; one number means a square."
  )
  image_channels: int = knob(
      1, "Channels of the input; 3 repeats grey images as the published recipes do.", minimum=1
  )
  num_classes: int | None = knob(None, "Classes, background included.", minimum=1)
  base_filters: int | None = knob(
      None, "Channels of the first stage; they double at each stage below.", minimum=1
  )
  base_kernels: int | None = knob(
      None, "Odd kernel edge of the first stage; shrinks by 2 per stage, down to 3.", minimum=1
  )
  num_layers: int | None = knob(None, "Stages, the bottleneck included.", minimum=1, maximum=12)
  dropout_rate: float | None = knob(
      None, "Dropout at stage n (from 0) is n times this rate.", minimum=0.0, maximum=0.9
  )
  dilation: int = knob(1, "Dilation of the first stage; shrinks by 1 per stage, to 1.", minimum=1)
  normalization: str | None = knob(
      None,
      "Layer after each convolution.",
      choices=("none", "batch", "group", "instance", "layer"),
  )
  activation: str = knob(
      "relu",
      "Activation after each convolution.",
      choices=("relu", "leaky_relu", "elu", "selu", "gelu", "silu", "mish"),
  )
  input_normalization: str = knob(
      "unit",
      "How 0..255 enters the network: times 1/255, or zero mean and unit deviation per image.",
      choices=("unit", "per_image"),
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Checked):
  """Which records are read, and how they become batches."""

  dataset: str | None = knob(
      None,
      "Built dataset as name[/config[/version]] below --data_dir, e.g. hippocampus_t1w/left_right;"
      " not needed when --data_dir is the version folder itself.",
  )
  data_dir: str = knob(
      "~/tensorflow_datasets", "Folder of built datasets, or the version folder of one."
  )
  train_split: str = knob("train", "Split that is trained on.")
  validation_split: str = knob("validation", "Split that picks the best checkpoint.")
  fold: int = knob(
      -1,
      "Cross-validation: puts both splits together, validates on the subjects of this fold and"
      " trains on the others; the test split stays out. -1: the splits as they are.",
      minimum=-1,
  )
  image_key: str = knob("image", "Feature of the image, for datasets built elsewhere.")
  label_key: str = knob("label", "Feature of the label, for datasets built elsewhere.")
  resize_mode: str | None = knob(
      None,
      "How images come to --image_size: 'pad' keeps the resolution and adds a border, 'fit' scales"
      " with the aspect kept and adds a border, 'stretch' scales each axis (the published way).",
      choices=("pad", "fit", "stretch"),
  )
  context_slices: int = knob(
      0,
      "Neighbour slices on each side that become channels (2.5-D); --image_channels must then be"
      " twice that and one.",
      minimum=0,
      maximum=8,
  )
  foreground_fraction: float | None = knob(
      None,
      "Share of each batch drawn from slices with foreground; the rest covers every slice once an"
      " epoch. 0 draws uniformly.",
      minimum=0.0,
      maximum=1.0,
  )
  class_balance: bool = knob(
      False, "The foreground classes take turns in that share, so that a rare one is seen as often."
  )
  cache: str = knob(
      "auto",
      "Where decoded slices are kept after the first pass; 'auto' takes what fits and says why.",
      choices=("auto", "device", "ram", "disk", "none"),
  )
  cache_dir: str | None = knob(None, "Folder of --cache=disk; the user's cache folder by default.")
  skip_corrupt: int = knob(
      0,
      "Reads all records first and leaves out at most so many that cannot be read, naming them.",
      minimum=0,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig(Checked):
  """How the weights are found."""

  batch_size: int | None = knob(None, "Slices per step.", minimum=1)
  epochs: int | None = knob(None, "At most so many passes over the training split.", minimum=1)
  max_minutes: float | None = knob(
      0.0,
      "Ends training cleanly after that time, with the learning-rate schedule fitted to it. 0: no"
      " limit.",
      minimum=0.0,
  )
  learning_rate: float | None = knob(None, "Initial learning rate.", minimum=0.0)
  optimizer: str | None = knob(None, "Optimizer.", choices=("adam", "adamw", "sgd"))
  weight_decay: float = knob(1e-4, "Decoupled weight decay of adamw.", minimum=0.0)
  clipvalue: float = knob(0.5, "Gradients are clipped to +- this value; 0: not.", minimum=0.0)
  schedule: str | None = knob(
      None,
      "Learning rate over the run: 'constant', 'cosine' or 'poly' (power 0.9) down to zero.",
      choices=("constant", "cosine", "poly"),
  )
  warmup_steps: int | None = knob(
      None, "Steps over which the learning rate rises from 0 linearly.", minimum=0
  )
  loss: str | None = knob(None, "Training loss, by its name in flexunet/objectives/losses.py.")
  early_stopping_patience: int | None = knob(
      None, "Stops after so many epochs without a better validation score; 0: never.", minimum=0
  )
  reduce_lr_factor: float = knob(
      0.5, "Factor of the learning-rate reduction on a plateau.", minimum=0.01, maximum=0.99
  )
  reduce_lr_patience: int | None = knob(
      None,
      "Epochs without a better validation loss before the learning rate is reduced; 0: never.",
      minimum=0,
  )
  validation_epochs: int | None = knob(None, "Validates every so many epochs.", minimum=1)
  previews: int = knob(4, "Validation slices drawn after each epoch; 0: none.", minimum=0)
  seed: int = knob(1, "Seed of weights, order, dropout and augmentation.", minimum=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetFacts:
  """What a run remembers of the dataset it was trained on, enough to predict without it.

  Attributes:
    name: dataset/config/version.
    fingerprint: Of the records, from the build report; None for datasets built elsewhere.
    label_scheme: [{"name": str, "color": [r, g, b]}], position is the class id.
    slice_plan: {"axes", "plane"} of `SlicePlan`, or None for pictures.
    intensity: {"kind", "low", "high"} of `IntensityWindow`, or None for pictures.
    spacing_mm: Median (row, column) spacing of the training slices, None where unknown.
    isotropic_mm: Spacing the volumes were resampled to when the dataset was built; None: not.
  """

  name: str
  fingerprint: str | None
  label_scheme: list[dict[str, Any]]
  slice_plan: dict[str, Any] | None
  intensity: dict[str, Any] | None
  spacing_mm: list[float] | None = None
  isotropic_mm: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
  """Everything a run folder's `config.json` holds."""

  model: ModelConfig
  data: DataConfig
  training: TrainingConfig
  dataset_facts: DatasetFacts
  reasons: dict[str, str]

  def to_json(self) -> dict[str, Any]:
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> RunConfig:
    """Reads what `to_json` wrote; unknown and missing names are an InputError."""
    parts = {"model": ModelConfig, "data": DataConfig, "training": TrainingConfig}
    known = [*parts, "dataset_facts", "reasons"]
    refuse_unknown(values, known, "config.json")
    if missing := [name for name in known if name not in values]:
      raise InputError(f"config.json must hold {known}. Missing: {missing}.")
    built = {name: from_mapping(part, values[name]) for name, part in parts.items()}
    return cls(
        **built,
        dataset_facts=from_mapping(DatasetFacts, values["dataset_facts"]),
        reasons=dict(values["reasons"]),
    )
