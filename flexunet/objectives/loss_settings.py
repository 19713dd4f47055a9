"""Turns the flags of the loss into its options: `name=value` pairs and class weights."""

from __future__ import annotations

import ast
from typing import Any

import numpy as np

from flexunet import config
from flexunet.core.errors import InputError
from flexunet.objectives import losses

# Published for one structure against its background; of several classes each would be judged as
# if the others were not there, while a softmax ties them together.
_BINARY = ("bce_dice", "bce_iou", "basnet_hybrid")


def options(settings: config.TrainingConfig) -> dict[str, Any]:
  """Returns the keyword options of `losses.make`.

  Raises:
    InputError: A pair is no `name=number`, or a weight is no number.
  """
  parsed: dict[str, Any] = dict(_pair(text) for text in settings.loss_options)
  if len(parsed) < len(settings.loss_options):
    raise InputError(f"--loss_options names an option twice: {','.join(settings.loss_options)}.")
  if "class_weights" in parsed:
    raise InputError("--loss_options cannot set class_weights. Pass --class_weights.")
  if settings.label_smoothing:
    _add_smoothing(parsed, settings)
  if (weights := class_weights(settings.class_weights)) is not None:
    parsed["class_weights"] = weights
  return parsed


def _add_smoothing(parsed: dict[str, Any], settings: config.TrainingConfig) -> None:
  """Adds `--label_smoothing` to the options of a loss that has cross-entropy."""
  if settings.loss not in losses.SMOOTHED:
    raise InputError(
        f"--label_smoothing is of losses with cross-entropy: {', '.join(losses.SMOOTHED)}. Got:"
        f" --loss={settings.loss}."
    )
  if "label_smoothing" in parsed:
    raise InputError("Give --label_smoothing or that name in --loss_options, not both.")
  parsed["label_smoothing"] = settings.label_smoothing


def _pair(text: str) -> tuple[str, float | bool]:
  name, equals, value = (part.strip() for part in text.partition("="))
  literal = {"true": "True", "false": "False"}.get(value.lower(), value)
  try:
    parsed = ast.literal_eval(literal)
  except (ValueError, SyntaxError):
    parsed = None
  if not equals or not name or not isinstance(parsed, (bool, int, float)):
    raise InputError(
        "--loss_options must be name=number or name=true pairs, e.g. alpha=0.3,beta=0.7. Got:"
        f" {text!r}."
    )
  return name, parsed


def class_weights(text: str) -> list[float] | None:
  """Returns the numbers of `--class_weights`; None for "none"."""
  if text == "none":
    return None
  try:
    weights = [float(part) for part in text.split(",")]
  except ValueError:
    weights = []
  if not weights or not np.isfinite(weights).all():
    raise InputError(
        "--class_weights must be 'none', 'balanced' or one number per class, background first,"
        f" e.g. 0.2,1,1. Got: {text!r}."
    )
  return weights


def balanced(pixels: np.ndarray | None) -> str:
  """Returns weights inverse to the pixel counts [slices, classes], as `--class_weights` takes them.

  They are scaled so that a class of average share weighs 1; a class without a pixel weighs 0.
  """
  if pixels is None:
    raise InputError(
        "--class_weights=balanced needs the pixels of each class, which only a dataset with"
        " records.csv lists. Pass numbers instead."
    )
  counts = pixels.sum(axis=0, dtype=np.float64)
  share = counts / counts.sum()
  weights = np.divide(1.0, share * len(share), out=np.zeros_like(share), where=share > 0)
  return ",".join(f"{weight:.6g}" for weight in weights)


def check(settings: config.TrainingConfig, num_classes: int) -> None:
  """Raises InputError for a loss that cannot work, or not with so many classes."""
  losses.check(settings.loss, num_classes, **options(settings))
  if settings.loss in _BINARY and num_classes > 2:
    raise InputError(
        f"--loss={settings.loss} is for one structure and its background, so --num_classes must be"
        f" 1 or 2. Got: {num_classes}. Use --loss=dice_cross_entropy, or iou."
    )
