"""What the outputs of a network mean: probabilities, their logarithms, and class ids.

A softmax in float32 rounds to 1 at a logit margin of 17, and 1 - p is then 0: logarithms taken of
it, and their gradients, are lost. From logits all of them are exact at any margin.

One rule makes class ids of probabilities (`class_ids`), for training metrics, previews,
prediction, evaluation and exports: the most probable class wins, the lower id of equal ones. So a
foreground probability must be above 0.5.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from keras import ops

# A softmax in float32 gives down to 1e-38; with this floor the logarithm's gradient stays exact
# far beyond the 1e-7 of Keras, and finite at 0.
_SMALLEST_PROBABILITY = 1e-30
# One minus a float32 sigmoid near 1 has a granularity of 6e-8.
_SMALLEST_COMPLEMENT = 1e-7
# Stands for a logit that does not count; minus infinity would make gradients NaN.
_NO_LOGIT = -1e30


class ClassProbabilities:
  """What a network claims of each pixel, each form computed when it is first asked for.

  From probabilities the logarithms of a softmax hold up to a margin of 69 between logits, those of
  a sigmoid from -69 to 16, beyond which float32 knows no number below 1.
  """

  def __init__(self, values: Any, *, from_logits: bool):
    """Takes float32 [batch, height, width, channels]; one channel is a sigmoid, more a softmax.

    Args:
      values: Logits, or probabilities that sum to 1.
      from_logits: Whether they are logits.
    """
    self._values = values
    self._from_logits = from_logits
    self._single = values.shape[-1] == 1

  @functools.cached_property
  def probability(self) -> Any:
    """The probability of each channel, float32 [batch, height, width, channels]."""
    return to_probability(self._values) if self._from_logits else self._values

  @functools.cached_property
  def log_probability(self) -> Any:
    """log(p) of each channel, of the same shape."""
    if not self._from_logits:
      return ops.log(ops.maximum(self._values, _SMALLEST_PROBABILITY))
    return ops.log_sigmoid(self._values) if self._single else ops.log_softmax(self._values, axis=-1)

  @functools.cached_property
  def log_complement(self) -> Any:
    """log(1 - p) of each channel, of the same shape."""
    if self._single:
      if self._from_logits:
        return ops.log_sigmoid(-self._values)
      return ops.log(ops.maximum(1.0 - self._values, _SMALLEST_COMPLEMENT))
    # Only the largest of probabilities that sum to 1 can be near 1. Its complement is the sum of
    # the others, which float32 knows down to 1e-38.
    channels = self._values.shape[-1]
    largest = ops.one_hot(ops.argmax(self._values, axis=-1), channels, dtype="bool")
    complement = 1.0 - ops.where(largest, 0.0, self.probability)
    log_small = ops.log(ops.maximum(complement, _SMALLEST_COMPLEMENT))
    return ops.where(largest, self._log_of_the_others(largest), log_small)

  def _log_of_the_others(self, largest: Any) -> Any:
    """Returns log(sum of all p but the largest), float32 [batch, height, width, 1]."""
    if not self._from_logits:
      rest = ops.sum(ops.where(largest, 0.0, self._values), axis=-1, keepdims=True)
      return ops.log(ops.maximum(rest, _SMALLEST_PROBABILITY))
    without = ops.where(largest, _NO_LOGIT, self._values)
    rest = ops.logsumexp(without, axis=-1, keepdims=True)
    return rest - ops.logsumexp(self._values, axis=-1, keepdims=True)

  def log_own(self, one_hot: Any) -> Any:
    """Returns log(p of the pixel's own class), float32 [batch, height, width].

    Args:
      one_hot: float32 [batch, height, width, channels].
    """
    return self._of_own(one_hot, self.log_probability, self.log_complement)

  def log_miss(self, one_hot: Any) -> Any:
    """Returns log(1 - p of the pixel's own class), as `log_own`."""
    return self._of_own(one_hot, self.log_complement, self.log_probability)

  def _of_own(self, one_hot: Any, of_foreground: Any, of_background: Any) -> Any:
    if self._single:
      return (one_hot * of_foreground + (1.0 - one_hot) * of_background)[..., 0]
    return ops.sum(one_hot * of_foreground, axis=-1)


def to_probability(logits: Any) -> Any:
  """Returns the sigmoid of one channel, the softmax of several."""
  return ops.sigmoid(logits) if logits.shape[-1] == 1 else ops.softmax(logits, axis=-1)


def class_ids(probability: Any, numbers: Any = np) -> Any:
  """Returns class ids [...] of probabilities [..., classes], or [..., 1] of the foreground alone.

  Args:
    probability: An array, or a tensor of the Keras backend.
    numbers: What computes with it: NumPy, or `keras.ops`.
  """
  if probability.shape[-1] == 1:
    return numbers.where(probability[..., 0] > 0.5, 1, 0)
  return numbers.argmax(probability, axis=-1)


def tempered(probability: Any, temperature: float, numbers: Any = np) -> Any:
  """Returns probabilities as the logits divided by a temperature give them: softmax(log p / T).

  Guo et al. 2017, https://arxiv.org/abs/1706.04599. Class ids stay as they are: where the classes
  differ by so little that rounding would make another one win, so do the probabilities.

  Args:
    probability: Sum to 1 over the last axis, two classes or more; arrays, or tensors.
    temperature: Above 1 makes them less certain, below 1 more; 1 returns them themselves.
    numbers: What computes with them: NumPy, `keras.ops`, or `tf.experimental.numpy`.

  Raises:
    ValueError: The temperature is not above 0.
  """
  if not temperature > 0:
    raise ValueError(f"A temperature must be above 0. Got: {temperature}.")
  if temperature == 1.0:
    return probability
  logits = numbers.log(numbers.maximum(probability, _SMALLEST_PROBABILITY)) / temperature
  powers = numbers.exp(logits - numbers.max(logits, axis=-1, keepdims=True))
  scaled = powers / numbers.sum(powers, axis=-1, keepdims=True)
  same = class_ids(scaled, numbers) == class_ids(probability, numbers)
  return numbers.where(same[..., None], scaled, probability)


def entropy(probability: np.ndarray) -> np.ndarray:
  """Returns the entropy in nats, float32 [...], of probabilities [..., classes]."""
  return -(probability * np.log(np.maximum(probability, _SMALLEST_PROBABILITY))).sum(axis=-1)
