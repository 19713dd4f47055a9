"""Fills in what the user left open, from the data, with a reason for each choice."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from flexunet import config
from flexunet.datasets.errors import InputError
from flexunet.pipelines.augmentation.config import AugmentationConfig
from flexunet.training import loss_settings, network_plan, run_length
from flexunet.training.network_plan import Choices, Facts

_ENDLESS_EPOCHS = 10_000  # With --max_minutes the time decides.
# A foreground class in fewer slices than this share of the commonest one is drawn in turns.
_RARE_CLASS = 0.2
# Seen less often, slices cannot be learnt by heart, and augmentation costs more than it gives.
_FEW_PASSES = 5
# Steps. In a shorter run a moving average would still remember the first weights, and a small
# learning rate does not get far.
_LONG_RUN = 300
# Validating and saving after fewer steps would take much of the time.
_EPOCH_STEPS = 50


@dataclasses.dataclass(frozen=True)
class Planned:
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
) -> Planned:
  """Returns the configs with every None replaced.

  Raises:
    InputError: A given value cannot be had, e.g. balanced class weights without a record table.
  """
  made = Choices(model=model, data=data, training=training)
  network_plan.plan_network(made, facts)
  _plan_drawing(made, facts)
  network_plan.plan_batch(made, facts)
  _plan_epoch(made, facts)
  _plan_training(made, facts)
  _plan_optimizer(made, facts)
  resolved = _plan_augmentation(made, augmentation, facts)
  every, why = _validation_epochs(made.parts["training"], made.parts["data"], facts)
  made.choose("training", "validation_epochs", every, why)
  return Planned(**made.parts, augmentation=resolved, reasons=made.reasons)


def _plan_drawing(made: Choices, facts: Facts) -> None:
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


def _plan_epoch(made: Choices, facts: Facts) -> None:
  training = made.parts["training"]
  once = run_length.steps_per_pass(training, made.parts["data"], facts)
  if training.epochs is not None:
    passes, why = 1, "--epochs counts passes over the training slices"
  else:
    passes = math.ceil(_EPOCH_STEPS / once)
    why = f"a pass over the training slices takes {once} steps"
  made.choose("data", "epoch_passes", passes, why)


def _parts(made: Choices) -> tuple[config.ModelConfig, config.DataConfig, config.TrainingConfig]:
  return made.parts["model"], made.parts["data"], made.parts["training"]


def _plan_training(made: Choices, facts: Facts) -> None:
  timed = bool(made.parts["training"].max_minutes)

  def choose(name: str, value: Any, why: str) -> None:
    made.choose("training", name, value, why)

  choose(
      "epochs", _ENDLESS_EPOCHS if timed else 50,
      "--max_minutes ends the run" if timed else "enough for a few dozen subjects",
  )
  choose("schedule", "cosine", "ends at zero, so the last weights are calm")
  # A short run must not end before the learning rate has risen.
  steps = run_length.expected_steps(*_parts(made), facts)
  choose("warmup_steps", min(50, math.ceil(steps / 10)), "the first steps of Adam are noisy")
  long = steps >= _LONG_RUN
  why = "calmer than the last weights" if long else "the first weights would still count"
  choose("ema_momentum", 0.98 if long else 0.0, f"about {steps:.2g} steps: {why}")
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


def _plan_optimizer(made: Choices, facts: Facts) -> None:
  normalized = made.parts["model"].normalization != "none"

  def choose(name: str, value: Any, why: str) -> None:
    made.choose("training", name, value, why)

  choose("optimizer", "adamw", "decoupled weight decay")
  optimizer = made.parts["training"].optimizer
  if optimizer == "sgd":
    choose("learning_rate", 0.01, "usual for sgd with momentum; not tried by us")
  elif normalized:
    steps = run_length.expected_steps(*_parts(made), facts)
    long = steps >= _LONG_RUN
    why = "better than 0.006 on tissue classes" if long else "better than 0.002 in 200 steps"
    choose("learning_rate", 3e-3 if long else 6e-3, f"about {steps:.2g} steps: {why}")
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
    made: Choices, augmentation: AugmentationConfig, facts: Facts
) -> AugmentationConfig:
  augmentation, why = _preset(made, augmentation, facts)
  resolved, unmirrored = augmentation.resolve_for(
      facts.class_names, facts.plane, facts.one_sided
  )
  made.reasons["augmentation"] = f"{why}; {unmirrored}" if unmirrored else why
  return resolved


def _preset(
    made: Choices, augmentation: AugmentationConfig, facts: Facts
) -> tuple[AugmentationConfig, str]:
  """Decides what "auto" stands for, and why."""
  if augmentation.augmentation != "auto":
    return augmentation, f"preset {augmentation.augmentation}"
  passes, told = run_length.expected_passes(*_parts(made), facts)
  few = passes < _FEW_PASSES and not augmentation.given
  name = "none" if few else "default"
  why = f"preset {name}: {told}"
  if few:
    why += ", too few to learn slices by heart"
  return dataclasses.replace(augmentation, augmentation=name), why


def _validation_epochs(
    training: config.TrainingConfig, data: config.DataConfig, facts: Facts
) -> tuple[int, str]:
  """Validates as often as costs at most about a tenth of the time."""
  steps = data.epoch_passes * run_length.steps_per_pass(training, data, facts)
  # A training step costs about three forward passes.
  share = len(facts.validation) / max(1, 3 * steps * training.batch_size)
  every = max(1, math.ceil(share / 0.15))
  return every, f"a validation costs about {100 * share:.0f} % of an epoch"
