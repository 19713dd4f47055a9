"""What all losses share: labels become one-hot, weights reach every pixel, sums are float32.

Tensors are those of the Keras backend in use, which have no common type: hence `Any`.

Call arguments of every loss:
  y_true: Integer labels [batch, height, width], or with a trailing axis of 1.
  y_pred: Probabilities [batch, height, width, classes] of any float type; with one class the
    probability of the foreground, and labels are 0 or 1.
  sample_weight: None, [batch], [batch, height, width], or the latter with a trailing axis of 1.
    Weight 0 leaves an example or a pixel out of every sum, as if it were not there.

Every loss returns one float32 number. A batch of weight 0 costs 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

# Softmax in float32 gives down to 1e-38; with this floor log's gradient stays exact far beyond
# the 1e-7 of Keras, so that a confidently wrong pixel still learns.
_SMALLEST_PROBABILITY = 1e-30
# One minus a float32 sigmoid near 1 has a granularity of 6e-8.
_SMALLEST_COMPLEMENT = 1e-7


class SegmentationLoss(keras.losses.Loss):
  """Base of the losses: subclasses implement `_cost`.

  Attributes:
    num_classes: Channels of `y_pred`.
    class_weights: One number per label value, or None for equal weights.
  """

  def __init__(
      self,
      num_classes: int,
      class_weights: Sequence[float] | None = None,
      name: str | None = None,
      **kwargs,
  ):
    super().__init__(name=name, **kwargs)
    self.num_classes = num_classes
    self.class_weights = None if class_weights is None else [float(w) for w in class_weights]

  def __call__(self, y_true, y_pred, sample_weight=None):
    # Keras multiplies weights onto finished losses; an overlap needs them inside its sums. They
    # travel with the labels through Keras' own call, which scales by the number of replicas.
    label = label_map(y_true)
    return super().__call__((label, pixel_weight(sample_weight, label)), y_pred)

  def call(self, y_true, y_pred):
    label, weight = y_true
    one_hot = one_hot_channels(ops.cast(label, "int32"), self.num_classes)
    # Keras passes scalars through as they are, without that scaling: hence one axis.
    return ops.reshape(self._cost(one_hot, ops.cast(y_pred, "float32"), weight), (1,))

  def _cost(self, one_hot: Any, probability: Any, weight: Any) -> Any:
    """Returns the loss, a float32 scalar.

    Args:
      one_hot: float32 [batch, height, width, channels]; channels as in `probability`.
      probability: float32 of the same shape.
      weight: float32 [batch, height, width].
    """
    raise NotImplementedError

  def get_config(self):
    return {
        **super().get_config(),
        "num_classes": self.num_classes,
        "class_weights": self.class_weights,
    }


def label_map(y_true: Any) -> Any:
  """Returns labels as int32 [batch, height, width]; a trailing axis of 1 is dropped."""
  label = ops.cast(ops.convert_to_tensor(y_true), "int32")
  return ops.squeeze(label, axis=-1) if len(label.shape) == 4 else label


def one_hot_channels(label: Any, num_classes: int) -> Any:
  """Returns float32 [batch, height, width, num_classes]; one class has the foreground alone."""
  if num_classes == 1:
    return ops.cast(ops.expand_dims(label, -1), "float32")
  return ops.one_hot(label, num_classes, dtype="float32")


def pixel_weight(sample_weight: Any, label: Any) -> Any:
  """Returns float32 weights [batch, height, width]; ones where none are given."""
  ones = ops.ones_like(label, dtype="float32")
  if sample_weight is None:
    return ones
  weight = ops.cast(ops.convert_to_tensor(sample_weight), "float32")
  if len(weight.shape) == 4:
    weight = ops.squeeze(weight, axis=-1)
  if len(weight.shape) == 2:  # [batch, 1], into which Keras turns [batch].
    weight = ops.squeeze(weight, axis=-1)
  if len(weight.shape) == 1:
    weight = ops.reshape(weight, (-1, 1, 1))
  return ones * weight


def label_weight(one_hot: Any, class_weights: Sequence[float] | None) -> Any:
  """Returns the weight of each pixel's own class, float32 [batch, height, width], or 1."""
  if class_weights is None:
    return 1.0
  weights = ops.convert_to_tensor(class_weights, dtype="float32")
  if one_hot.shape[-1] == 1:  # Weights of background and foreground.
    return weights[0] + (weights[1] - weights[0]) * one_hot[..., 0]
  return ops.sum(one_hot * weights, axis=-1)


def weighted_mean(values: Any, weight: Any) -> Any:
  """Returns sum(weight * values) / sum(weight), a float32 scalar; 0 if all weights are 0."""
  total = ops.sum(weight)
  return ops.sum(weight * values) / ops.where(total > 0, total, 1.0)


def safe_log(probability: Any) -> Any:
  """Returns the logarithm of a probability, finite and with a finite gradient also at 0."""
  return ops.log(ops.maximum(probability, _SMALLEST_PROBABILITY))


def true_class_probability(one_hot: Any, probability: Any) -> Any:
  """Returns the probability given to the pixel's own class, float32 [batch, height, width]."""
  if probability.shape[-1] == 1:
    bounded = ops.clip(probability, _SMALLEST_COMPLEMENT, 1.0 - _SMALLEST_COMPLEMENT)
    return (one_hot * bounded + (1.0 - one_hot) * (1.0 - bounded))[..., 0]
  return ops.sum(one_hot * probability, axis=-1)


def binary_cross_entropy(one_hot: Any, probability: Any) -> Any:
  """Returns each channel's binary cross-entropy, float32 [batch, height, width, channels]."""
  bounded = ops.clip(probability, _SMALLEST_COMPLEMENT, 1.0 - _SMALLEST_COMPLEMENT)
  return -(one_hot * ops.log(bounded) + (1.0 - one_hot) * ops.log(1.0 - bounded))
