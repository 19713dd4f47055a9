"""Training losses by name.

`LOSSES[name](num_classes, **options)` gives a `keras.losses.Loss` for integer labels
[batch, height, width] and probabilities [batch, height, width, classes], or logits with
`make(..., from_logits=True)`; a weight of 0 leaves out an example or a pixel. `check` refuses what
cannot work before anything trains.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import keras

from flexunet.core.errors import InputError, unknown_name
from flexunet.objectives.segmentation_losses import (
  BinaryCrossEntropy,
  CrossEntropy,
  Dice,
  Focal,
  IoU,
  SegmentationLoss,
  StructuralSimilarity,
  Tversky,
)


@keras.saving.register_keras_serializable(package="flexunet")
class WeightedSum(SegmentationLoss):
  """Sum of losses, each times its factor.

  Attributes:
    parts: The losses; all of the same number of classes.
    factors: One number per loss.
  """

  def __init__(self, num_classes, parts, factors, class_weights=None, name="sum", **kwargs):
    super().__init__(num_classes, class_weights, name, **kwargs)
    self.parts = [
        part if isinstance(part, SegmentationLoss) else keras.saving.deserialize_keras_object(part)
        for part in parts
    ]
    self.factors = [float(factor) for factor in factors]

  def _cost(self, one_hot, claim, weight):
    costs = [part._cost(one_hot, claim, weight) for part in self.parts]
    return sum(factor * cost for factor, cost in zip(self.factors, costs, strict=True))

  def get_config(self):
    parts = [keras.saving.serialize_keras_object(part) for part in self.parts]
    return {**super().get_config(), "parts": parts, "factors": self.factors}


def dice_cross_entropy(
    num_classes: int,
    class_weights: Sequence[float] | None = None,
    dice_weight: float = 1.0,
    cross_entropy_weight: float = 1.0,
    per_case: bool = False,
    include_background: bool = False,
    smoothing: float = 1.0,
    label_smoothing: float = 0.0,
) -> WeightedSum:
  """Batch Dice of the foreground plus cross-entropy: the first choice for small structures.

  Dice makes a structure of 50 pixels weigh as much as one of 5,000; cross-entropy gives every
  pixel a gradient, also where a class is absent from the batch.
  """
  parts = [
      Dice(
          num_classes, class_weights, per_case=per_case, include_background=include_background,
          smoothing=smoothing,
      ),
      CrossEntropy(num_classes, class_weights, label_smoothing=label_smoothing),
  ]
  factors = [dice_weight, cross_entropy_weight]
  return WeightedSum(num_classes, parts, factors, name="dice_cross_entropy")


def bce_dice(
    num_classes: int, class_weights: Sequence[float] | None = None, per_case: bool = False
) -> WeightedSum:
  """Binary cross-entropy per channel plus Dice, with equal weights."""
  parts = [
      BinaryCrossEntropy(num_classes, class_weights),
      Dice(num_classes, class_weights, per_case=per_case),
  ]
  return WeightedSum(num_classes, parts, [1.0, 1.0], name="bce_dice")


def bce_iou(
    num_classes: int, class_weights: Sequence[float] | None = None, per_case: bool = False
) -> WeightedSum:
  """Binary cross-entropy per channel plus IoU, with equal weights."""
  parts = [
      BinaryCrossEntropy(num_classes, class_weights),
      IoU(num_classes, class_weights, per_case=per_case),
  ]
  return WeightedSum(num_classes, parts, [1.0, 1.0], name="bce_iou")


def basnet_hybrid(
    num_classes: int, class_weights: Sequence[float] | None = None, per_case: bool = True
) -> WeightedSum:
  """Pixel, patch and map: binary cross-entropy + SSIM + IoU (BASNet, 2101.04704).

  The IoU is per image, as in the paper.
  """
  parts = [
      BinaryCrossEntropy(num_classes, class_weights),
      StructuralSimilarity(num_classes, class_weights),
      IoU(num_classes, class_weights, per_case=per_case),
  ]
  return WeightedSum(num_classes, parts, [1.0, 1.0, 1.0], name="basnet_hybrid")


LOSSES: dict[str, Callable[..., keras.losses.Loss]] = {
    "cross_entropy": CrossEntropy,
    "dice": Dice,
    "dice_cross_entropy": dice_cross_entropy,
    "focal": Focal,
    "tversky": Tversky,
    "iou": IoU,
    "bce_dice": bce_dice,
    "bce_iou": bce_iou,
    "basnet_hybrid": basnet_hybrid,
}

# Those with an option label_smoothing.
SMOOTHED = ("cross_entropy", "dice_cross_entropy")


def check(loss_name: str, num_classes: int, **options: Any) -> None:
  """Raises InputError unless `LOSSES[loss_name](num_classes, **options)` makes sense."""
  if loss_name not in LOSSES:
    raise unknown_name("loss", str(loss_name), LOSSES)
  if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
    raise InputError(f"num_classes must be a whole number of at least 1. Got: {num_classes!r}.")
  known = _option_names(loss_name)
  if unknown := sorted(options.keys() - known):
    raise InputError(
        f"loss {loss_name} has no option {unknown[0]!r}. Its options: {', '.join(sorted(known))}."
    )
  if not options.get("smoothing", 1.0) > 0:
    raise InputError(
        "smoothing must be above 0 pixels, so that an absent class costs nothing. Got:"
        f" {options['smoothing']!r}."
    )
  weights = options.get("class_weights")
  labels = max(num_classes, 2)  # One class still means two label values.
  if weights is not None:
    if len(weights) != labels:
      raise InputError(
          f"class_weights must hold one number per label value, {labels} for"
          f" {num_classes} classes. Got {len(weights)}: {list(weights)}."
      )
    if min(weights) < 0 or not max(weights[1:]) > 0:
      raise InputError(
          "class_weights must not be negative, and that of one foreground class must be above 0."
          f" Got: {list(weights)}."
      )


def make(
    loss_name: str, num_classes: int, *, from_logits: bool = False, **options: Any
) -> keras.losses.Loss:
  """Returns the loss of that name, checked.

  Args:
    loss_name: A key of `LOSSES`.
    num_classes: Channels of the prediction; 1 means a foreground probability.
    from_logits: For what a network gives before its softmax or sigmoid (`model.logits_twin`).
      Then no pixel is too wrong to learn from; probabilities lose their gradient where float32
      rounds them (`probabilities`).
    **options: As in the factory's signature.
  """
  check(loss_name, num_classes, **options)
  loss = LOSSES[loss_name](num_classes, **options)
  loss.from_logits = from_logits
  return loss


def _option_names(loss_name: str) -> set[str]:
  """Returns the keyword options of a factory, those of its base classes included."""
  factory = LOSSES[loss_name]
  owners = factory.__mro__ if inspect.isclass(factory) else [factory]
  names: set[str] = set()
  for owner in owners:
    function = owner.__dict__.get("__init__") if inspect.isclass(owner) else owner
    if function is None or owner is keras.losses.Loss:
      break
    for parameter in inspect.signature(function).parameters.values():
      if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
        names.add(parameter.name)
  return names - {"self", "num_classes", "name", "reduction", "from_logits"}
