"""Fills in what the user left open, from the data, with a reason for each choice."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flexunet import config
from flexunet.datasets.errors import InputError
from flexunet.network import inspection, knobs
from flexunet.pipelines.augmentation.config import AugmentationConfig, names_sides
from flexunet.pipelines.record_table import RecordTable
from flexunet.training import loss_settings

# Above this edge a slice is scaled down: on a CPU a step at 512x512 takes over a second.
_LARGEST_EDGE = {"cpu": 256, "gpu": 512}
_ENDLESS_EPOCHS = 10_000  # With --max_minutes the time decides.
_BATCH_SIZE = 8
_SMALLEST_BOTTLENECK = 4  # Pixels along the shorter edge; fewer hold no shape.
# Besides the estimate: work space of convolutions, the framework itself, other programs.
_MEMORY_SHARE = 0.6
# A foreground class in fewer slices than this share of the commonest one is drawn in turns.
_RARE_CLASS = 0.2
_FROM_START = ("base_filters", "base_kernels", "num_layers", "normalization")


@dataclasses.dataclass(frozen=True)
class Facts:
  """What planning knows of the data and the machine.

  Attributes:
    train, validation: Records of the two splits.
    class_names: Of the dataset, background first.
    device: "cpu" or "gpu".
    memory_bytes: Free memory of the device; None where unknown.
    spacing_mm: Median (row, column) spacing of the slices; None where unknown.
    plane: Of the slices; None for pictures.
    start: The network that training starts from, if any.
  """

  train: RecordTable
  validation: RecordTable
  class_names: Sequence[str]
  device: str = "cpu"
  memory_bytes: int | None = None
  spacing_mm: Sequence[float] | None = None
  plane: str | None = None
  start: knobs.Knobs | None = None


@dataclasses.dataclass(frozen=True)
class Planned:
  """Complete configs and the reason for each value the user did not give."""

  model: config.ModelConfig
  data: config.DataConfig
  training: config.TrainingConfig
  augmentation: AugmentationConfig
  reasons: dict[str, str]


class _Choices:
  """Configs in the making: `choose` fills in a field that is None and notes why."""

  def __init__(self, **parts):
    self.parts = parts
    self.reasons: dict[str, str] = {}

  def choose(self, part: str, name: str, value: Any, why: str) -> None:
    if getattr(self.parts[part], name) is not None:
      self.reasons[name] = "given"
      return
    self.reasons[name] = why
    self.parts[part] = dataclasses.replace(self.parts[part], **{name: value})


def plan(
    model: config.ModelConfig,
    data: config.DataConfig,
    training: config.TrainingConfig,
    augmentation: AugmentationConfig,
    facts: Facts,
) -> Planned:
  """Returns the configs with every None replaced.

  Raises:
    InputError: A given value cannot be had, e.g. balanced class weights without a record table.
  """
  made = _Choices(model=model, data=data, training=training)
  _plan_network(made, facts)
  _plan_drawing(made, facts)
  _plan_batch(made, facts)
  _plan_training(made, facts)
  _plan_optimizer(made)
  resolved = _plan_augmentation(made, augmentation, facts)
  every, why = _validation_epochs(made.parts["training"], made.parts["data"], facts)
  made.choose("training", "validation_epochs", every, why)
  return Planned(**made.parts, augmentation=resolved, reasons=made.reasons)


def _plan_network(made: _Choices, facts: Facts) -> None:
  device = facts.device
  made.choose(
      "model", "num_classes", len(facts.class_names), "classes of the dataset, background included"
  )
  if facts.start is not None:
    for name in _FROM_START:
      made.choose("model", name, getattr(facts.start, name), "as in the network to start from")
  layers, why = _num_layers(made.parts["model"], facts)
  made.choose("model", "num_layers", layers, why)
  made.choose(
      "model", "base_filters", 16 if device == "cpu" else 32, f"affordable on a {device}"
  )
  made.choose("model", "base_kernels", 3, "two 3x3 convolutions a stage: best per second")
  made.choose("model", "dropout_rate", 0.02, "light: patients, not pixels, are scarce")
  made.choose("model", "normalization", "batch", "converges fastest in our trials")
  _plan_size(made, facts)


def _largest_slice(facts: Facts) -> tuple[int, int] | None:
  heights = np.concatenate([facts.train.height, facts.validation.height])
  widths = np.concatenate([facts.train.width, facts.validation.width])
  known = len(heights) and heights.max() > 0
  return (int(heights.max()), int(widths.max())) if known else None


def _num_layers(model: config.ModelConfig, facts: Facts) -> tuple[int, str]:
  largest = _LARGEST_EDGE[facts.device]
  height, width = model.image_size or _largest_slice(facts) or (largest, largest)
  scale = 1.0 if model.image_size else min(1.0, largest / max(height, width))
  edge = scale * min(height, width)
  layers = 1 + int(math.log2(max(1.0, edge / _SMALLEST_BOTTLENECK)))
  if layers < 5:
    return max(2, layers), f"more stages would leave nothing of an edge of {round(edge)} pixels"
  shape = dataclasses.replace(
      knobs.Knobs(base_kernels=model.base_kernels or 3, dilation=model.dilation, num_layers=5),
      dropout_rate=0.0,
  )
  seen = inspection.receptive_fields(shape)[0].decoder
  return 5, f"five stages see {seen} pixels around each pixel"


def _plan_size(made: _Choices, facts: Facts) -> None:
  multiple = 2 ** (made.parts["model"].num_layers - 1)
  largest = _LARGEST_EDGE[facts.device]
  height, width = _largest_slice(facts) or (largest, largest)
  known = _largest_slice(facts) is not None
  if known and max(height, width) <= largest:
    size = tuple(math.ceil(edge / multiple) * multiple for edge in (height, width))
    why = f"holds the largest slice, {height}x{width}, as it is; multiple of {multiple}"
  else:
    scale = largest / max(height, width)
    size = tuple(math.ceil(edge * scale / multiple) * multiple for edge in (height, width))
    why = f"slices up to {height}x{width}, scaled to at most {largest}"
    why += f" (affordable on a {facts.device})"
    if facts.spacing_mm is not None and known:
      coarse = max(facts.spacing_mm)
      why += f", a pixel of {coarse:.2f} mm becoming {coarse / scale:.2f}"
  made.choose("model", "image_size", size, why)
  image_size = made.parts["model"].image_size
  holds = known and height <= image_size[0] and width <= image_size[1]
  made.choose(
      "data", "resize_mode", "pad" if holds else "fit",
      "every slice fits as it is" if holds else "slices are larger than the input; aspect kept",
  )


def _plan_drawing(made: _Choices, facts: Facts) -> None:
  table = facts.train
  share = len(table.foreground) / max(1, len(table))
  fraction, why = 0.0, f"{100 * share:.0f} % of the training slices hold foreground"
  if table.pixels is None:
    why = "the dataset has no record table to find foreground in"
  elif 0 < share < 0.5:
    fraction = 0.5
  elif made.parts["data"].class_balance and share:
    fraction, why = 0.5, "--class_balance balances a share of each batch"
  made.choose("data", "foreground_fraction", fraction, why)
  rare, why = _rarest_class(facts)
  drawn = made.parts["data"].foreground_fraction > 0
  if made.parts["data"].class_balance and not drawn:
    raise InputError(
        "--class_balance needs --foreground_fraction above 0: the classes take turns in that"
        f" share of each batch. Got: {made.parts['data'].foreground_fraction:g}."
    )
  made.choose(
      "data", "class_balance", rare and drawn, why if drawn else "no share of a batch is drawn"
  )


def _rarest_class(facts: Facts) -> tuple[bool, str]:
  """Tells whether some foreground class is in far fewer slices than another, and which."""
  pixels = facts.train.pixels
  if pixels is None or pixels.shape[1] < 3:
    return False, "one foreground class"
  slices = (pixels[:, 1:] > 0).sum(axis=0)
  there = np.flatnonzero(slices)
  if len(there) < 2:
    return False, "one foreground class"
  least = there[slices[there].argmin()]
  told = f"{facts.class_names[least + 1]} is in {slices[least]} slices, the commonest class in"
  return bool(slices[least] < _RARE_CLASS * slices.max()), f"{told} {slices.max()}"


def _plan_training(made: _Choices, facts: Facts) -> None:
  timed = bool(made.parts["training"].max_minutes)

  def choose(name: str, value: Any, why: str) -> None:
    made.choose("training", name, value, why)

  choose(
      "epochs", _ENDLESS_EPOCHS if timed else 50,
      "--max_minutes ends the run" if timed else "enough for a few dozen subjects",
  )
  choose("schedule", "cosine", "ends at zero, so the last weights are calm")
  # A short run must not end before the learning rate has risen.
  size = made.parts["training"].batch_size
  steps = made.parts["training"].epochs * math.ceil(len(facts.train) / size)
  choose("warmup_steps", min(50, math.ceil(steps / 10)), "the first steps of Adam are noisy")
  choose("loss", "dice_cross_entropy", "Dice for small structures, cross-entropy for smoothness")
  choose(
      "early_stopping_patience", 0 if timed else 15,
      "the schedule is fitted to the time" if timed else "stops when nothing is gained",
  )
  choose("reduce_lr_patience", 0, "the schedule lowers the learning rate by itself")
  if made.parts["training"].class_weights == "balanced":
    weights = loss_settings.balanced(facts.train.pixels)
    made.parts["training"] = dataclasses.replace(made.parts["training"], class_weights=weights)
    made.reasons["class_weights"] = "balanced: inverse to the shares of the training pixels"


def _plan_optimizer(made: _Choices) -> None:
  normalized = made.parts["model"].normalization != "none"

  def choose(name: str, value: Any, why: str) -> None:
    made.choose("training", name, value, why)

  choose("optimizer", "adamw", "decoupled weight decay")
  optimizer = made.parts["training"].optimizer
  if optimizer == "sgd":
    choose("learning_rate", 0.01, "usual for sgd with momentum; not tried by us")
  elif normalized:
    choose("learning_rate", 6e-3, "tried with adamw and batch normalization")
  else:
    choose("learning_rate", 3e-4, "careful, since nothing normalizes the activations")
  for name, owner, value in (("weight_decay", "adamw", 1e-4), ("momentum", "sgd", 0.99)):
    given = getattr(made.parts["training"], name)
    if given and optimizer != owner:
      raise InputError(f"--{name} is of --optimizer={owner}. Got: --optimizer={optimizer}.")
    used = optimizer == owner
    choose(name, value if used else 0.0, f"usual for {owner}" if used else f"only {owner} has it")
  clipnorm = made.parts["training"].clipnorm
  choose(
      "clipvalue", 0.0 if clipnorm else 0.5,
      "--clipnorm clips already" if clipnorm else "a rare large gradient cannot throw the weights",
  )
  if clipnorm and made.parts["training"].clipvalue:
    raise InputError("--clipvalue and --clipnorm cannot both be above 0. Set one of them to 0.")


def _plan_augmentation(
    made: _Choices, augmentation: AugmentationConfig, facts: Facts
) -> AugmentationConfig:
  sided = names_sides(facts.class_names)
  why = f"preset {augmentation.augmentation}"
  if sided:
    why += "; no mirror images, since the classes tell sides"
  elif facts.plane == "sagittal" and augmentation.flip_horizontal_probability is None:
    # Across a sagittal slice lie front and back, which no body has the other way round.
    augmentation = dataclasses.replace(augmentation, flip_horizontal_probability=0.0)
    why += "; no mirror images, since slices are sagittal"
  made.reasons["augmentation"] = why
  return augmentation.resolve(sided=sided)


def _plan_batch(made: _Choices, facts: Facts) -> None:
  shape = knobs.Knobs(**dataclasses.asdict(made.parts["model"]))
  size, why = _BATCH_SIZE, "smooth gradients at an affordable step"
  if facts.memory_bytes is not None:
    while size > 1 and inspection.training_bytes(shape, size) > _MEMORY_SHARE * facts.memory_bytes:
      size //= 2
    if size < _BATCH_SIZE:
      needed, there = inspection.training_bytes(shape, 2 * size) / 1e9, facts.memory_bytes / 1e9
      why = f"{2 * size} would need about {needed:.1f} GB, and {there:.1f} GB are free"
  made.choose("training", "batch_size", size, why)


def _validation_epochs(
    training: config.TrainingConfig, data: config.DataConfig, facts: Facts
) -> tuple[int, str]:
  """Validates as often as costs at most about a tenth of the time."""
  size = training.batch_size
  uniform = max(1, size - round(size * data.foreground_fraction))
  trained = math.ceil(len(facts.train) / uniform) * size
  # A training step costs about three forward passes.
  share = len(facts.validation) / max(1, 3 * trained)
  every = max(1, math.ceil(share / 0.15))
  return every, f"a validation costs about {100 * share:.0f} % of an epoch"
