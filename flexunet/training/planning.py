"""Fills in what the user left open, from the data, with a reason for each choice."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from flexunet import config
from flexunet.pipelines.record_table import RecordTable

# Above this edge a slice is scaled down: on a CPU a step at 512x512 takes over a second.
_LARGEST_EDGE = {"cpu": 256, "gpu": 512}
_ENDLESS_EPOCHS = 10_000  # With --max_minutes the time decides.


@dataclasses.dataclass(frozen=True)
class Planned:
  """Complete configs and the reason for each value the user did not give."""

  model: config.ModelConfig
  data: config.DataConfig
  training: config.TrainingConfig
  reasons: dict[str, str]


def plan(
    model: config.ModelConfig,
    data: config.DataConfig,
    training: config.TrainingConfig,
    *,
    num_classes: int,
    train: RecordTable,
    validation: RecordTable,
    device: str,
) -> Planned:
  """Returns the configs with every None replaced.

  Args:
    num_classes: Of the dataset, background included.
    train, validation: Records of the two splits.
    device: "cpu" or "gpu".
  """
  reasons: dict[str, str] = {}

  def choose(part, name: str, value: Any, why: str):
    if getattr(part, name) is not None:
      reasons[name] = "given"
      return part
    reasons[name] = why
    return dataclasses.replace(part, **{name: value})

  model = choose(model, "num_classes", num_classes, "classes of the dataset, background included")
  model = choose(model, "num_layers", 5, "five stages see 140 pixels around each pixel")
  model = choose(model, "base_filters", 16 if device == "cpu" else 32, f"affordable on a {device}")
  model = choose(model, "base_kernels", 3, "two 3x3 convolutions a stage: best per second")
  model = choose(model, "dropout_rate", 0.02, "light: patients, not pixels, are scarce")
  model = choose(model, "normalization", "batch", "converges fastest in our trials")
  model, data = _plan_size(model, data, train, validation, device, choose)

  foreground = len(train.foreground) / max(1, len(train))
  if train.pixels is None:
    fraction, why = 0.0, "the dataset has no record table to find foreground in"
  elif 0 < foreground < 0.5:
    fraction, why = 0.5, f"{100 * foreground:.0f} % of the training slices hold foreground"
  else:
    fraction, why = 0.0, f"{100 * foreground:.0f} % of the training slices hold foreground"
  data = choose(data, "foreground_fraction", fraction, why)

  timed = bool(training.max_minutes)
  training = choose(training, "batch_size", 8, "smooth gradients at an affordable step")
  training = choose(
      training, "epochs", _ENDLESS_EPOCHS if timed else 50,
      "--max_minutes ends the run" if timed else "enough for a few dozen subjects",
  )
  training = choose(training, "learning_rate", 6e-3, "tried with adamw and batch normalization")
  training = choose(training, "optimizer", "adamw", "decoupled weight decay")
  training = choose(training, "schedule", "cosine", "ends at zero, so the last weights are calm")
  training = choose(training, "warmup_steps", 50, "the first steps of Adam are noisy")
  training = choose(
      training, "loss", "dice_cross_entropy",
      "Dice for small structures, cross-entropy for smoothness",
  )
  training = choose(
      training, "early_stopping_patience", 0 if timed else 15,
      "the schedule is fitted to the time" if timed else "stops when nothing is gained",
  )
  training = choose(
      training, "reduce_lr_patience", 0, "the schedule lowers the learning rate by itself"
  )
  every, why = _validation_epochs(training.batch_size, data.foreground_fraction, train, validation)
  training = choose(training, "validation_epochs", every, why)
  return Planned(model=model, data=data, training=training, reasons=reasons)


def _plan_size(model, data, train: RecordTable, validation: RecordTable, device: str, choose):
  multiple = 2 ** (model.num_layers - 1)
  largest = _LARGEST_EDGE[device]
  heights = np.concatenate([train.height, validation.height])
  widths = np.concatenate([train.width, validation.width])
  known = len(heights) and heights.max() > 0
  height, width = (int(heights.max()), int(widths.max())) if known else (largest, largest)
  fits = known and max(height, width) <= largest
  if fits:
    size = tuple(math.ceil(edge / multiple) * multiple for edge in (height, width))
    why = f"holds the largest slice, {height}x{width}, as it is; multiple of {multiple}"
  else:
    scale = largest / max(height, width)
    size = tuple(math.ceil(edge * scale / multiple) * multiple for edge in (height, width))
    why = f"slices up to {height}x{width}, scaled to at most {largest} (affordable on a {device})"
  model = choose(model, "image_size", size, why)
  holds = known and height <= model.image_size[0] and width <= model.image_size[1]
  data = choose(
      data, "resize_mode", "pad" if holds else "fit",
      "every slice fits as it is" if holds else "slices are larger than the input; aspect kept",
  )
  return model, data


def _validation_epochs(
    batch_size: int, fraction: float, train: RecordTable, validation: RecordTable
) -> tuple[int, str]:
  """Validates as often as costs at most about a tenth of the time."""
  uniform = max(1, batch_size - round(batch_size * fraction))
  trained = math.ceil(len(train) / uniform) * batch_size
  # A training step costs about three forward passes.
  share = len(validation) / max(1, 3 * trained)
  every = max(1, math.ceil(share / 0.15))
  return every, f"a validation costs about {100 * share:.0f} % of an epoch"
