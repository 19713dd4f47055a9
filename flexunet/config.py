"""What a run is: dataclasses, read from flags, written to `config.json`, read by every program.

What it reads (`DataConfig`), how it trains (`TrainingConfig`), its network (`ModelConfig`) and what
it remembers of its dataset (`DatasetFacts`). A field whose default is None is planned from the data
(`flexunet.training.planning`); in a run folder every field has its value. Nothing is evaluated and
unknown keys fail.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from flexunet.core import remote_folder
from flexunet.core.config_fields import Checked, from_mapping, knob, refuse_unknown
from flexunet.core.errors import InputError, unknown_name
from flexunet.core.service_address import ServiceFlags
from flexunet.dataset_facts import DatasetFacts
from flexunet.network.architecture import ModelConfig
from flexunet.objectives import names
from flexunet.pipelines.augmentation.config import AugmentationConfig
from flexunet.pipelines.feature_keys import FeatureFlags
from flexunet.pipelines.laterality import Laterality
from flexunet.presets import budgets

# May change when a run is resumed: how long it lasts, where the data lie, what is shown and kept.
MAY_CHANGE = (
    "epochs", "max_minutes", "dataset", "data_dir", "cache", "cache_dir", "previews", "log_to",
    "shown_channel", "tensorboard_graph", "checkpoint_steps", "keep_checkpoints", "data_service",
    "data_service_timeout_s",
)  # fmt: skip

# Headings of the help, under which flags stand together.
_OPTIMIZER = "Optimizer and schedule"
_LOSS = "Loss"
_VALIDATION = "Validation and stopping"
_OUTPUT = "Checkpoints and output"
_DEVICES = "Devices and precision"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(FeatureFlags, ServiceFlags):
  """Which records are read, and how they become batches."""

  dataset: str | None = knob(
      None,
      "Built dataset as name[/config[/version]], e.g. hippocampus_t1w/left_right; not needed when"
      " --data_dir is the version folder itself.",
      unset="",
  )
  data_dir: str = knob(
      "~/tensorflow_datasets",
      "Folder of built datasets, or the version folder of one; or an address, e.g. gs://BUCKET/DATA,"
      " from which the dataset is copied once.",
  )
  train_split: str = knob("train", "Split that is trained on.")
  validation_split: str = knob("validation", "Split that picks the best checkpoint.")
  fold: int = knob(
      -1,
      "Cross-validation: joins both splits, validates on the subjects of this fold (0..4) and"
      " trains on the others; the test split stays out. -1: the splits as they are.",
      minimum=-1,
  )
  resize_mode: str = knob(
      None,
      "How images are brought to --image_size: 'pad' keeps the resolution and adds a border (larger"
      " slices are trained on in tiles of a given --image_size), 'fit' scales at equal aspect and"
      " adds a border, 'stretch' scales each axis (as published).",
      choices=("pad", "fit", "stretch"),
  )
  crop_foreground: bool = knob(
      False,
      "Cuts the empty air around head or body away before an image is brought to --image_size."
      " The box is found from the images alone, one per volume. Evaluation and prediction do the"
      " same and answer on the full frame. Costs one more pass over the records at the start.",
  )
  context_slices: int = knob(
      0,
      "Neighbouring slices on each side that become channels (2.5-D); --image_channels must then be"
      " twice this plus one.",
      minimum=0,
      maximum=8,
  )
  foreground_fraction: float = knob(
      None,
      "Share of each batch drawn from slices with foreground; the rest covers every slice once per"
      " epoch. 0: all slices alike.",
      minimum=0.0,
      maximum=1.0,
  )
  class_balance: bool = knob(
      None,
      "Lets the foreground classes take turns in that share, so that a rare one is seen as often.",
  )
  patch_size: str = knob(
      "auto",
      "Height and width of the patches that are trained on, e.g. 96,96 (one number means a square);"
      " 'none': whole slices. 'auto': patches where they are at most half of a slice. Validation,"
      " prediction and model.keras keep --image_size.",
  )
  patch_foreground_share: float = knob(
      None,
      "Share of each batch's patches that are centred around foreground, the classes taking turns"
      " as with --class_balance; the others lie anywhere in their slice.",
      minimum=0.0,
      maximum=1.0,
  )
  epoch_passes: int = knob(
      None,
      "Passes over the training slices that make an epoch, after which a run validates and saves."
      " 1 with --epochs.",
      minimum=1,
  )
  cache: str = knob(
      "auto",
      "Where decoded slices are kept: 'ram', 'disk', 'device' (the memory of the GPU, so that only"
      " row numbers travel), or 'none' to decode them again each epoch. 'auto' takes what fits;"
      " RUN/manifest.json says why.",
      choices=("auto", "device", "ram", "disk", "none"),
  )
  cache_dir: str | None = knob(None, "Folder of --cache=disk. Default: the user's.", unset="")
  skip_corrupt: int = knob(
      0,
      "Reads all records first and leaves out unreadable ones, at most this many; each is named.",
      minimum=0,
  )

  def __post_init__(self):
    super().__post_init__()
    if self.patch_size not in ("auto", "none"):
      object.__setattr__(self, "patch_size", ",".join(map(str, _edges(self.patch_size))))

  @property
  def patch_hw(self) -> tuple[int, int] | None:
    """(height, width) of the patches trained on; None: whole slices, as before planning."""
    return None if self.patch_size in ("auto", "none") else _edges(self.patch_size)

  def step_model(self, model: ModelConfig) -> ModelConfig:
    """Returns the network as a training step sees it, of the size of the patches."""
    return dataclasses.replace(model, image_size=self.patch_hw) if self.patch_hw else model

  def share_of_slice(self, model: ModelConfig) -> float:
    """Returns the pixels that a step sees of a slice, as a share of all of the input's."""
    seen, whole = self.patch_hw, model.image_size
    return math.prod(seen) / math.prod(whole) if seen and whole else 1.0


def _edges(text: str) -> tuple[int, int]:
  words = text.split(",")
  if len(words) not in (1, 2) or not all(word.isdecimal() and int(word) > 0 for word in words):
    must = "auto, none, or one or two whole numbers above 0 such as 96,96"
    raise InputError(f"--patch_size must be {must}. Got: {text:.99}.")
  return int(words[0]), int(words[-1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig(Checked):
  """How the weights are found."""

  budget: str | None = knob(
      None,
      "For those who do not know what to ask for: sets --max_minutes, more or less by the size of"
      " the data and the speed of the machine. What is given beside it wins.",
      choices=budgets.BUDGET_HELP,
      unset="",
      group=_OPTIMIZER,
  )
  network_size: str | None = knob(
      None,
      "Width of the network; --base_filters wins over it.",
      choices=budgets.NETWORK_SIZES,
      unset="M",
      group="Network",
  )
  batch_size: int = knob(None, "Slices or patches per step.", minimum=1, group=_OPTIMIZER)
  epochs: int = knob(
      None,
      "Largest number of epochs; with it, an epoch is one pass over the training split.",
      minimum=1,
      group=_OPTIMIZER,
  )
  max_minutes: float = knob(
      0.0,
      "Ends training cleanly after this time, and fits the learning-rate schedule to it; 0: never.",
      minimum=0.0,
      group=_OPTIMIZER,
  )
  learning_rate: float = knob(None, "Initial learning rate.", minimum=0.0, group=_OPTIMIZER)
  optimizer: str = knob(
      None,
      "How gradients change the weights: 'muon' makes the momentum of each kernel orthogonal (head,"
      " biases and normalization have Adam); 'schedule_free' is AdamW at a constant learning rate"
      " that validates and saves the mean of its steps.",
      choices=("adam", "adamw", "sgd", "muon", "schedule_free"),
      group=_OPTIMIZER,
  )
  weight_decay: float = knob(
      None, "Decoupled weight decay of adamw, muon and schedule_free.", minimum=0.0,
      unset="1e-4 with these", group=_OPTIMIZER,
  )
  momentum: float = knob(
      None, "Nesterov momentum of sgd and muon.", minimum=0.0, maximum=0.9999,
      unset="0.99 with sgd, 0.95 with muon", group=_OPTIMIZER,
  )
  clipvalue: float = knob(
      None,
      "Clips each entry of a gradient to +- this value; 0: off.",
      minimum=0.0,
      unset="0.5, or 0 with --clipnorm",
      group=_OPTIMIZER,
  )
  clipnorm: float = knob(
      0.0, "Scales each gradient down to at most this norm; 0: off.", minimum=0.0,
      group=_OPTIMIZER,
  )
  gradient_accumulation: int = knob(
      1, "Batches whose mean gradient makes one update of the weights.", minimum=1,
      group=_OPTIMIZER,
  )
  ema_momentum: float = knob(
      None,
      "Validates and saves a moving average of the weights that keeps this share of itself at each"
      " step, e.g. 0.99; 0: the weights themselves.",
      minimum=0.0,
      maximum=0.99999,
      group=_OPTIMIZER,
  )
  weight_average: float = knob(
      None,
      "Validates and saves the mean of the weights over this last share of the run, e.g. 0.25"
      " (stochastic weight averaging), and the weights themselves before; 0: no such mean.",
      minimum=0.0,
      maximum=1.0,
      group=_OPTIMIZER,
  )
  schedule: str = knob(
      None,
      "Learning rate over the run: 'constant', 'cosine' or 'poly' (power 0.9) down to zero.",
      choices=("constant", "cosine", "poly"),
      group=_OPTIMIZER,
  )
  warmup_steps: int = knob(
      None, "Steps over which the learning rate rises from 0 linearly.", minimum=0,
      group=_OPTIMIZER,
  )
  loss: str = knob(None, "What training lowers.", choices=names.LOSSES, group=_LOSS)
  loss_options: tuple[str, ...] = knob(
      (),
      "Options of the loss as name=value, e.g. gamma=2 (focal), alpha=0.3,beta=0.7 (tversky),"
      " per_case=true. A wrong name lists the options of the loss.",
      group=_LOSS,
  )
  label_smoothing: float = knob(
      0.0,
      "Share of each label that cross-entropy spreads evenly over all classes, e.g. 0.05; 0: none.",
      minimum=0.0,
      maximum=0.5,
      group=_LOSS,
  )
  class_weights: str = knob(
      "none",
      "Weights of the classes in the loss, background first, e.g. 0.2,1,1; 'balanced': inverse to"
      " their share of the training pixels; 'none': all equal.",
      group=_LOSS,
  )
  class_prior: bool = knob(
      True, "Starts the biases of the head from the shares of the classes in the batches.",
      group=_LOSS,
  )
  metrics: tuple[str, ...] = knob(
      ("dice_coef_multiclass", "dice"),
      "Scores of training, where the pixels of all slices of an epoch count together, and of"
      " validation, where they are means over volumes; Dice is always computed.",
      choices=names.METRICS,
      group=_VALIDATION,
  )
  monitor: str = knob(
      "dice",
      "Validation score that picks the best model and stops early: 'dice' is the mean over the"
      " held-out volumes of the mean Dice of their classes, as evaluation reports it, but at the"
      " network's size; or 'loss'.",
      choices=("dice", "loss"),
      group=_VALIDATION,
  )
  save_best: bool = knob(
      True, "Keeps the best model by --monitor as model.keras; off: that of the last validation.",
      group=_VALIDATION,
  )
  init_from: str | None = knob(
      None,
      "Run folder or .keras file whose weights training starts from; a head of other classes is"
      " reinitialized.",
      unset="",
      group=_OPTIMIZER,
  )
  early_stopping_patience: int = knob(
      None,
      "Epochs without a better validation score after which training stops; 0: never.",
      minimum=0,
      group=_VALIDATION,
  )
  reduce_lr_factor: float = knob(
      0.5, "Factor of the learning-rate reduction on a plateau.", minimum=0.01, maximum=0.99,
      group=_OPTIMIZER,
  )
  reduce_lr_patience: int = knob(
      None,
      "Epochs without a better validation loss before the learning rate is reduced; 0: never.",
      minimum=0,
      group=_OPTIMIZER,
  )
  validation_epochs: int = knob(
      None, "Epochs from one validation to the next.", minimum=1, group=_VALIDATION,
  )
  previews: int = knob(
      4, "Validation slices drawn into RUN/previews after each validation; 0: none.", minimum=0,
      group=_OUTPUT,
  )
  shown_channel: str | None = knob(
      None,
      "Channel that previews and overlays show, by its name, of a dataset of several.",
      unset="the first",
      group=_OUTPUT,
  )
  tensorboard_graph: bool = knob(
      False, "Also writes the graph of the network into RUN/tensorboard (TensorFlow only).",
      group=_OUTPUT,
  )
  log_to: tuple[str, ...] = knob(
      (),
      "Where a run is followed beside RUN/tensorboard: 'mlflow' writes settings, the figures of"
      " each epoch, report and config into the store that MLFLOW_TRACKING_URI names, by default"
      " the folder mlruns beside RUN (needs the extra mlflow).",
      choices=("mlflow",),
      group=_OUTPUT,
  )
  seed: int = knob(
      1, "Seed of weights, order, dropout and augmentation.", minimum=0, group=_OPTIMIZER
  )
  checkpoint_steps: int = knob(
      0, "Steps from one checkpoint to the next; 0: one at the end of each epoch only.", minimum=0,
      group=_OUTPUT,
  )
  keep_checkpoints: int = knob(
      2,
      "Checkpoints to keep; if the newest is damaged, a run resumes from the one before.",
      minimum=1,
      group=_OUTPUT,
  )
  deterministic: bool = knob(
      None,
      "The same command on the same machine gives the same weights, at some cost on a GPU.",
      unset="on for a CPU",
      group=_DEVICES,
  )
  precision: str = knob(
      "auto",
      "Number format of the layers' arithmetic; variables stay float32.",
      choices=("auto", "float32", "mixed_bfloat16", "mixed_float16"),
      group=_DEVICES,
  )
  jit_compile: str = knob(
      "auto",
      "Compiles the training step with XLA (TensorFlow only).",
      choices=("auto", "on", "off"),
      group=_DEVICES,
  )
  steps_per_execution: int = knob(
      None,
      "Steps executed together without returning to Python; the learning rate, checkpoints and"
      " progress are then updated once per execution.",
      minimum=1,
      unset="1 on a CPU, 4 on a GPU",
      group=_DEVICES,
  )
  augment_on: str = knob(
      "auto",
      "Where examples are augmented: 'host', one by one in the threads of the input pipeline;"
      " 'device', the whole batch inside the compiled step. Both give the same examples up to"
      " rounding. 'auto': 'device' where a GPU trains on TensorFlow.",
      choices=("auto", "host", "device"),
      group=_DEVICES,
  )
  num_devices: int = knob(
      0,
      "Devices that share each batch; 0: all GPUs, or the CPU. Several need TensorFlow; without a"
      " GPU they are parts of the CPU, which trains alike, but not faster.",
      minimum=0,
      group=_DEVICES,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
  """Everything a run folder's `config.json` holds; `augmentation` is resolved there.

  Attributes:
    model, data, training, augmentation: Complete configs.
    dataset_facts: What the run remembers of its dataset.
    laterality: Whether images may be mirrored, in training and in prediction.
    reasons: Field name -> why it has its value.
  """

  model: ModelConfig
  data: DataConfig
  training: TrainingConfig
  dataset_facts: DatasetFacts
  reasons: dict[str, str]
  augmentation: AugmentationConfig = dataclasses.field(
      default_factory=lambda: AugmentationConfig(augmentation="none")
  )
  laterality: Laterality = dataclasses.field(default_factory=Laterality)

  @property
  def held_out_batch_size(self) -> int:
    """Whole slices per batch of a validation: about as many pixels as a training step has."""
    size = self.training.batch_size
    return min(size, max(1, round(size * self.data.share_of_slice(self.model))))

  @property
  def shown_channel(self) -> int | None:
    """Which of several channels is shown; None: the images have one, or are shown whole."""
    names, name = self.dataset_facts.channel_names, self.training.shown_channel
    if len(names) < 2:
      return None
    return names.index(name) if name in names else 0

  def check_shown_channel(self) -> None:
    """Raises InputError where the dataset has no channel of the name that was given."""
    names, name = self.dataset_facts.channel_names, self.training.shown_channel
    if name is not None and (len(names) < 2 or name not in names):
      raise unknown_name("channel of --shown_channel", name, names)

  def to_json(self) -> dict[str, Any]:
    """Returns the config as JSON holds it."""
    return {**dataclasses.asdict(self), "dataset_facts": self.dataset_facts.to_json()}

  def dataset_in(self, data_dir: str | os.PathLike | None) -> tuple[str | None, pathlib.Path]:
    """Returns (dataset, folder) of the run's dataset as `dataset_source.open_dataset` takes them.

    Args:
      data_dir: Where it lies; as in training where None.

    Raises:
      InputError: It is no longer where it lay in training.
    """
    folder = pathlib.Path(data_dir or self.data.data_dir).expanduser()
    if remote_folder.address_of(folder):
      return self.data.dataset, folder
    if not data_dir and not folder.is_dir():
      raise InputError(
          f"--data_dir must name the folder that holds {self.dataset_facts.name}, the dataset of"
          f" the run. By its config.json it lies in {folder}, which is not there."
      )
    dataset = self.data.dataset
    if dataset is None and not (folder / "dataset_info.json").is_file():
      dataset = self.dataset_facts.name
    return dataset, folder

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> RunConfig:
    """Reads what `to_json` wrote; unknown and missing names are an InputError."""
    parts = {
        "model": ModelConfig,
        "data": DataConfig,
        "training": TrainingConfig,
        "augmentation": AugmentationConfig,
        "laterality": Laterality,
    }
    known = [*parts, "dataset_facts", "reasons"]
    if not isinstance(values, Mapping):
      raise InputError(f"config.json must hold {known}. Got: {values!r:.99}.")
    refuse_unknown(values, known, "config.json")
    if missing := [name for name in known if name not in values]:
      raise InputError(f"config.json must hold {known}. Missing: {missing}.")
    reasons = values["reasons"]
    texts = isinstance(reasons, Mapping) and all(isinstance(one, str) for one in reasons.values())
    if not texts:
      raise InputError(f"reasons must be names with a text each. Got: {reasons!r:.99}.")
    built: dict[str, Any] = {name: from_mapping(part, values[name]) for name, part in parts.items()}
    built["model"] = built["model"].of_run()
    built["augmentation"] = AugmentationConfig.of_run(values["augmentation"])
    facts = DatasetFacts.from_json(values["dataset_facts"])
    return cls(**built, dataset_facts=facts, reasons=dict(reasons))

  def check_network(self) -> None:
    """Raises InputError unless the network is complete and answers with the dataset's classes."""
    self.model.require_complete()
    if self.model.image_size is None:
      raise InputError("model.image_size must be two positive whole numbers. Got: null.")
    classes, named = max(2, self.model.num_classes), self.dataset_facts.label_scheme.num_classes
    if classes != named:
      raise InputError(
          f"model.num_classes must be that of dataset_facts.label_scheme, {named}. Got:"
          f" {self.model.num_classes}."
      )
