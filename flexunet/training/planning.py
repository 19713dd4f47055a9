"""Fills in what the user left open, from the data and the device, with a reason for each choice.

The network that suits the slices (stages, width, input size), the batch, how examples are drawn,
how long the run will be (counted where epochs are given, estimated where time ends it), and the
settings of the training that follow from it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, TypeVar

import numpy as np

from flexunet import config
from flexunet.core.errors import InputError
from flexunet.network import architecture, cost, step_time
from flexunet.objectives import loss_settings
from flexunet.pipelines.augmentation.config import AugmentationConfig
from flexunet.presets import budgets, recipe
from flexunet.training import forecast, patch_plan
from flexunet.training.forecast import Facts

_Config = TypeVar("_Config", config.ModelConfig, config.DataConfig, config.TrainingConfig)

_FROM_START = (
    "base_filters", "base_kernels", "num_layers", "normalization", "stem", "decoder_convolutions",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Plan:
  """Complete configs and the reason for each value the user did not give."""

  model: config.ModelConfig
  data: config.DataConfig
  training: config.TrainingConfig
  augmentation: AugmentationConfig
  reasons: dict[str, str]


def plan(
    model: config.ModelConfig,
    data: config.DataConfig,
    training: config.TrainingConfig,
    augmentation: AugmentationConfig,
    facts: Facts,
) -> Plan:
  """Returns the configs with every None replaced.

  Raises:
    InputError: A given value cannot be had, e.g. balanced class weights without a record table.
  """
  usual = _planned(model, data, training, augmentation, facts)
  if few := _few_steps(usual, facts):
    return _planned(model, data, training, augmentation, facts, few)
  return usual


def _few_steps(usual: Plan, facts: Facts) -> str:
  """Returns why a lighter network is taken: time leaves the usual one few steps; "" elsewhere."""
  apart = facts.device != "cpu" or usual.model.stem != "full" or facts.start is not None
  if apart or not usual.training.max_minutes:
    return ""
  steps = forecast.expected_steps(usual.model, usual.data, usual.training, facts)
  if steps >= recipe.FEW_STEPS:
    return ""
  return f"about {steps:.2g} steps of the usual network: in so few a lighter one learns more"


def _planned(
    model: config.ModelConfig,
    data: config.DataConfig,
    training: config.TrainingConfig,
    augmentation: AugmentationConfig,
    facts: Facts,
    few_steps: str = "",
) -> Plan:
  """Returns the plan, with a lighter network for the reason in `few_steps`."""
  made = Choices(model=model, data=data, training=training)
  plan_network(made, facts, few_steps)
  made.data, reasons = patch_plan.complete(made.model, made.data, facts.train)
  made.reasons |= reasons
  _plan_drawing(made, facts)
  plan_batch(made, facts)
  _plan_budget(made, facts)
  _plan_epoch(made, facts)
  _plan_training(made, facts)
  _plan_optimizer(made, facts)
  resolved = _plan_augmentation(made, augmentation, facts)
  every, why = _validation_epochs(made.model, made.data, made.training, facts)
  made.choose_training("validation_epochs", every, why)
  return Plan(
      model=made.model,
      data=made.data,
      training=made.training,
      augmentation=resolved,
      reasons=made.reasons,
  )


def _plan_drawing(made: Choices, facts: Facts) -> None:
  table = facts.train
  share = len(table.foreground) / max(1, len(table))
  fraction, why = 0.0, f"{100 * share:.0f} % of the training slices hold foreground"
  if table.pixels is None:
    why = "the dataset has no record table to find foreground in"
  elif 0 < share < recipe.MUCH_FOREGROUND:
    fraction = recipe.FOREGROUND_FRACTION
  elif made.data.class_balance and share:
    fraction, why = recipe.FOREGROUND_FRACTION, "--class_balance balances a share of each batch"
  if share and made.data.patch_hw:
    fraction = made.data.patch_foreground_share
    why = "the patches around foreground come from slices that hold some"
  made.choose_data("foreground_fraction", fraction, why)
  rare, why = _rarest_class(facts)
  drawn = made.data.foreground_fraction > 0
  if made.data.class_balance and not drawn:
    raise InputError(
        "--class_balance needs --foreground_fraction above 0: the classes take turns in that"
        f" share of each batch. Got: {made.data.foreground_fraction:g}."
    )
  if not rare and made.data.patch_hw and len(facts.class_names) > 2:
    rare, why = True, "a patch lies around one class at no cost"
  made.choose_data("class_balance", rare and drawn, why if drawn else "no share of a batch is drawn"
  )


def _rarest_class(facts: Facts) -> tuple[bool, str]:
  """Returns whether some foreground class is in far fewer slices than another, and which."""
  pixels = facts.train.pixels
  if pixels is None or pixels.shape[1] < 3:
    return False, "one foreground class"
  slices = (pixels[:, 1:] > 0).sum(axis=0)
  there = np.flatnonzero(slices)
  if len(there) < 2:
    return False, "one foreground class"
  least = there[slices[there].argmin()]
  counted = f"{facts.class_names[least + 1]} is in {slices[least]} slices, the commonest class in"
  return bool(slices[least] < recipe.RARE_CLASS * slices.max()), f"{counted} {slices.max()}"


def _plan_budget(made: Choices, facts: Facts) -> None:
  """Sets the time limit of --budget, unless a length is given."""
  settings = made.training
  if settings.budget is None or settings.max_minutes or settings.epochs is not None:
    return
  seen = made.data.step_model(made.model)
  step_s = step_time.step_seconds(seen, settings.batch_size, facts.machine)
  part, _ = forecast.passes_per_step(made.model, made.data, settings, facts)
  minutes, why = budgets.minutes_of(budgets.BUDGETS[settings.budget], step_s / part)
  made.training = dataclasses.replace(settings, max_minutes=minutes)
  made.reasons["max_minutes"] = f"--budget={settings.budget}: {why}"


def _plan_epoch(made: Choices, facts: Facts) -> None:
  training = made.training
  once = forecast.steps_per_pass(training, made.data, facts)
  if training.epochs is not None:
    passes, why = 1, "--epochs counts passes over the training slices"
  else:
    passes = math.ceil(recipe.EPOCH_STEPS / once)
    why = f"a pass over the training slices takes {once} steps"
  made.choose_data("epoch_passes", passes, why)


def _plan_training(made: Choices, facts: Facts) -> None:
  timed = bool(made.training.max_minutes)

  def choose(name: str, value: Any, why: str) -> None:
    made.choose_training(name, value, why)

  choose(
      "epochs", recipe.ENDLESS_EPOCHS if timed else recipe.EPOCHS,
      "--max_minutes ends the run" if timed else "enough for a few dozen subjects",
  )
  steps = forecast.expected_steps(made.model, made.data, made.training, facts)
  warmup = min(recipe.WARMUP_STEPS, math.ceil(recipe.WARMUP_SHARE * steps))
  choose("warmup_steps", warmup, "the first steps of Adam are noisy")
  choose("loss", recipe.LOSS, "Dice for small structures, cross-entropy for smoothness")
  choose(
      "early_stopping_patience", 0 if timed else recipe.PATIENCE,
      "the schedule is fitted to the time" if timed else "stops when nothing is gained",
  )
  choose("reduce_lr_patience", 0, "the schedule lowers the learning rate by itself")
  if made.training.class_weights == "balanced":
    weights = loss_settings.balanced(facts.train.pixels)
    made.training = dataclasses.replace(made.training, class_weights=weights)
    made.reasons["class_weights"] = "balanced: inverse to the shares of the training pixels"


def _plan_optimizer(made: Choices, facts: Facts) -> None:
  normalized = made.model.normalization != "none"

  def choose(name: str, value: Any, why: str) -> None:
    made.choose_training(name, value, why)

  choose("optimizer", recipe.OPTIMIZER, "decoupled weight decay")
  optimizer = made.training.optimizer
  steps = forecast.expected_steps(made.model, made.data, made.training, facts)
  long = steps >= recipe.LONG_RUN
  if normalized or optimizer == "sgd":
    why = f"about {steps:.2g} steps: best of those tried with adamw"
    if optimizer not in ("adam", "adamw"):
      why = f"usual for {optimizer}; not tried by us"
    choose("learning_rate", recipe.LEARNING_RATES[optimizer][long], why)
  else:
    why = "careful, since nothing normalizes the activations"
    choose("learning_rate", recipe.UNNORMALIZED_LEARNING_RATE, why)
  for name, usual in (("weight_decay", recipe.WEIGHT_DECAY), ("momentum", recipe.MOMENTUM)):
    owners = " or ".join(usual)
    if getattr(made.training, name) and optimizer not in usual:
      raise InputError(f"--{name} is of --optimizer={owners}. Got: --optimizer={optimizer}.")
    why = f"usual for {optimizer}" if optimizer in usual else f"only {owners} has it"
    choose(name, usual.get(optimizer, 0.0), why)
  _plan_average(made, steps)
  clipnorm = made.training.clipnorm
  choose(
      "clipvalue", 0.0 if clipnorm else recipe.CLIPVALUE,
      "--clipnorm clips already" if clipnorm else "a rare large gradient cannot throw the weights",
  )
  if clipnorm and made.training.clipvalue:
    raise InputError("--clipvalue and --clipnorm cannot both be above 0. Set one of them to 0.")


def _plan_average(made: Choices, steps: float) -> None:
  """Decides which average of the weights is kept, at most one, and the schedule that suits it."""
  settings = made.training
  kinds = {
      "--optimizer=schedule_free": settings.optimizer == "schedule_free",
      "--weight_average": bool(settings.weight_average),
      "--ema_momentum": bool(settings.ema_momentum),
  }
  named = [name for name, given in kinds.items() if given]
  if len(named) > 1:
    raise InputError(f"A run keeps one average of its weights. Got: {' and '.join(named)}.")
  free = settings.optimizer == "schedule_free"
  if free and settings.schedule not in (None, "constant"):
    raise InputError(
        "--optimizer=schedule_free has a constant learning rate: its average takes the place of a"
        f" schedule. Got: --schedule={settings.schedule}. Leave --schedule out."
    )
  calm = "ends at zero, so the last weights are calm"
  schedule = ("constant", "schedule_free has none") if free else (recipe.SCHEDULE, calm)
  made.choose_training("schedule", *schedule)
  long = steps >= recipe.LONG_RUN
  why = "calmer than the last weights" if long else "the first weights would still count"
  why = f"{named[0]} keeps another average" if named else f"about {steps:.2g} steps: {why}"
  averaged = long and not named
  tail = settings.ema_momentum is None and recipe.WEIGHT_AVERAGE
  made.choose_training("weight_average", tail if averaged and tail else 0.0, why)
  averaged = averaged and not made.training.weight_average
  made.choose_training("ema_momentum", recipe.EMA_MOMENTUM if averaged else 0.0, why)


def _plan_augmentation(
    made: Choices, augmentation: AugmentationConfig, facts: Facts
) -> AugmentationConfig:
  augmentation, why = _preset(made, augmentation, facts)
  if not facts.laterality.mirroring:
    why += f"; no mirror images, since {facts.laterality.reason}"
  made.reasons["augmentation"] = why
  return augmentation.resolve(mirroring=facts.laterality.mirroring)


def _preset(
    made: Choices, augmentation: AugmentationConfig, facts: Facts
) -> tuple[AugmentationConfig, str]:
  """Decides what "auto" stands for, and why."""
  if augmentation.augmentation != "auto":
    return augmentation, f"preset {augmentation.augmentation}"
  passes, basis = forecast.expected_passes(made.model, made.data, made.training, facts)
  few = passes < recipe.FEW_PASSES and not augmentation.given
  name = "none" if few else "default"
  why = f"preset {name}: {basis}"
  if few:
    why += ", too few to learn slices by heart"
  return dataclasses.replace(augmentation, augmentation=name), why


def _validation_epochs(
    model: config.ModelConfig,
    data: config.DataConfig,
    training: config.TrainingConfig,
    facts: Facts,
) -> tuple[int, str]:
  """Validates as often as costs at most about a twentieth of the time."""
  share = forecast.validation_share(model, training, data, facts)
  every = max(1, math.ceil(share / recipe.VALIDATION_SHARE))
  return every, f"a validation costs about {100 * share:.0f} % of an epoch"


class Choices:
  """Configs being planned: `choose_...` fills in a field that is None and notes why."""

  def __init__(
      self,
      model: config.ModelConfig,
      data: config.DataConfig,
      training: config.TrainingConfig,
  ):
    self.model, self.data, self.training = model, data, training
    self.reasons: dict[str, str] = {}

  def choose_model(self, name: str, value: Any, why: str) -> None:
    """Fills in a field of the network's config."""
    self.model = self._chosen(self.model, name, value, why)

  def choose_data(self, name: str, value: Any, why: str) -> None:
    """Fills in a field of the data's config."""
    self.data = self._chosen(self.data, name, value, why)

  def choose_training(self, name: str, value: Any, why: str) -> None:
    """Fills in a field of the training's config."""
    self.training = self._chosen(self.training, name, value, why)

  def _chosen(self, part: _Config, name: str, value: Any, why: str) -> _Config:
    if getattr(part, name) is not None:
      self.reasons.setdefault(name, "given")
      return part
    self.reasons[name] = why
    return dataclasses.replace(part, **{name: value})  # type: ignore[type-var]


def plan_network(made: Choices, facts: Facts, few_steps: str = "") -> None:
  """Chooses the shape of the network, its input size and the resize mode."""
  device = facts.device
  if len(facts.channel_names) > 1:
    _plan_channels(made, facts)
  made.choose_model(
      "num_classes", len(facts.class_names), "classes of the dataset, background included"
  )
  if facts.start is not None:
    for name in _FROM_START:
      made.choose_model(name, getattr(facts.start, name), "as in the network to start from")
  made.choose_model("stem", *_stem(made.model, facts))
  _plan_depth(made, facts, few_steps)
  size, why = budgets.chosen_size(made.training.network_size)
  filters = budgets.filters_of(size, device)
  made.choose_model("base_filters", filters, f"{why}, on a {device}")
  made.choose_model(
      "base_kernels", recipe.BASE_KERNELS, "the usual small kernel; others were not compared"
  )
  made.choose_model(
      "normalization", recipe.NORMALIZATION, "usual for batches; others were not compared"
  )
  _plan_size(made, facts)


def _plan_depth(made: Choices, facts: Facts, few_steps: str) -> None:
  """Chooses stages, convolutions of the decoder and dropout."""
  convolutions, why = recipe.DECODER_CONVOLUTIONS, "the usual two; one won in shorter runs alone"
  if few_steps:
    convolutions, why = recipe.HURRIED_DECODER_CONVOLUTIONS, few_steps
  made.choose_model("decoder_convolutions", convolutions, why)
  layers, why = _num_layers(made.model, facts)
  if few_steps and layers > recipe.HURRIED_LAYERS:
    layers, why = recipe.HURRIED_LAYERS, few_steps
  made.choose_model("num_layers", layers, why)
  dropout, why = recipe.DROPOUT_RATE, "light: patients, not pixels, are scarce"
  if few_steps:
    dropout, why = recipe.HURRIED_DROPOUT_RATE, few_steps
  made.choose_model("dropout_rate", dropout, why)


def _plan_channels(made: Choices, facts: Facts) -> None:
  """Gives the network an input for each channel of the dataset."""
  count, given = len(facts.channel_names), made.model.image_channels
  names = ", ".join(facts.channel_names)
  if given not in (1, count):
    raise InputError(f"--image_channels must be {count}, the channels {names}. Got: {given}.")
  if made.data.context_slices:
    raise InputError(
        f"--context_slices is of datasets of one channel; this one has {names}. Leave it out."
    )
  made.model = dataclasses.replace(made.model, image_channels=count)
  made.reasons["image_channels"] = f"the channels of the dataset: {names}"


def _largest_slice(facts: Facts) -> tuple[int, int] | None:
  heights = np.concatenate([facts.train.height, facts.validation.height])
  widths = np.concatenate([facts.train.width, facts.validation.width])
  known = len(heights) and heights.max() > 0
  return (int(heights.max()), int(widths.max())) if known else None


def _num_layers(model: config.ModelConfig, facts: Facts) -> tuple[int, str]:
  largest = recipe.LARGEST_EDGE[facts.device]
  height, width = model.image_size or _largest_slice(facts) or (largest, largest)
  scale = 1.0 if model.image_size else min(1.0, largest / max(height, width))
  edge = scale * min(height, width) / model.first_scale  # Of the first stage.
  layers = 1 + int(math.log2(max(1.0, edge / recipe.SMALLEST_BOTTLENECK)))
  most = recipe.MOST_LAYERS
  if layers < most:
    return max(2, layers), f"more stages would leave nothing of an edge of {round(edge)} pixels"
  shape = dataclasses.replace(
      architecture.PUBLISHED,
      base_kernels=model.base_kernels or recipe.BASE_KERNELS,
      dilation=model.dilation,
      num_layers=most,
      dropout_rate=0.0,
      stem=model.stem,
      encoder_blocks=model.encoder_blocks,
      decoder_convolutions=model.decoder_convolutions,
  )
  seen = cost.output_field(shape)
  return most, f"{most} stages see {seen} pixels around each pixel"


def _stem(model: config.ModelConfig, facts: Facts) -> tuple[str, str]:
  """Decides whether the first stage works at half the size, and why."""
  if facts.device != "cpu":
    return "full", "half the size was not compared on a GPU"
  edge = min(model.image_size or _largest_slice(facts) or (0, 0))
  if edge < recipe.QUICK_STEM_EDGE:
    return "full", f"half of an edge of {edge} pixels would be little"
  share = _foreground_share(facts)
  if share is None:
    return "full", "it is not listed how much foreground the slices hold"
  filled = f"foreground fills {100 * share:.2g} % of a slice that holds some (median)"
  if share > recipe.SMALL_FOREGROUND:
    return "full", f"{filled}: borders count for more than steps"
  return recipe.QUICK_STEM, f"{filled}: twice the steps in the same time count for more"


def _foreground_share(facts: Facts) -> float | None:
  """Returns the median share of foreground in the slices that hold some; None where unknown."""
  if facts.train.pixels is None or not len(facts.train.foreground):
    return None
  pixels = facts.train.pixels[facts.train.foreground]
  return float(np.median(pixels[:, 1:].sum(axis=1) / np.maximum(pixels.sum(axis=1), 1)))


def _plan_size(made: Choices, facts: Facts) -> None:
  multiple = made.model.multiple
  largest = recipe.LARGEST_EDGE[facts.device]
  height, width = _largest_slice(facts) or (largest, largest)
  known = _largest_slice(facts) is not None
  # Sizes in the table are then those of the boxes.
  cropped = " cropped to its foreground" if facts.train.boxes is not None else ""
  if known and max(height, width) <= largest:
    size = tuple(math.ceil(edge / multiple) * multiple for edge in (height, width))
    why = f"holds the largest slice{cropped}, {height}x{width}, as it is; multiple of {multiple}"
  else:
    scale = largest / max(height, width)
    size = tuple(math.ceil(edge * scale / multiple) * multiple for edge in (height, width))
    why = f"slices{cropped} up to {height}x{width}, scaled to at most {largest}"
    why += f" (affordable on a {facts.device})"
    if facts.spacing_mm is not None and known:
      coarse = max(facts.spacing_mm)
      why += f", a pixel of {coarse:.2f} mm becoming {coarse / scale:.2f}"
  made.choose_model("image_size", size, why)
  image_size = made.model.image_size
  holds = known and height <= image_size[0] and width <= image_size[1]
  made.choose_data("resize_mode", "pad" if holds else "fit",
      "every slice fits as it is" if holds else "slices are larger than the input; aspect kept",
  )


def plan_batch(made: Choices, facts: Facts) -> None:
  """Chooses the batch size that fits the memory."""
  wanted, why = recipe.BATCH_SIZE, "smooth gradients at an affordable step"
  if made.data.patch_hw:
    wanted, why = patch_plan.batch_size(made.data.patch_hw)
  size, seen = wanted, made.data.step_model(made.model)
  if facts.memory_bytes is not None:
    free = recipe.MEMORY_SHARE * facts.memory_bytes
    while size > 1 and cost.training_bytes(seen, size) > free:
      size //= 2
    if size < wanted:
      needed, there = cost.training_bytes(seen, 2 * size) / 1e9, facts.memory_bytes / 1e9
      why = f"{2 * size} would need about {needed:.1f} GB, and {there:.1f} GB are free"
  made.choose_training("batch_size", size, why)
