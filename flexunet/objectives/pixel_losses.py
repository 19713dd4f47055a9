"""Losses that judge each pixel by itself: cross-entropy, focal, binary cross-entropy.

Call arguments, shapes and weights: see `loss_base`.
"""

from __future__ import annotations

import keras
from keras import ops

from flexunet.objectives import loss_base
from flexunet.objectives.loss_base import SegmentationLoss

_register = keras.saving.register_keras_serializable(package="flexunet")


@_register
class CrossEntropy(SegmentationLoss):
  """Mean of -log(probability of the pixel's own class).

  With class weights it is the weighted mean: each pixel counts by the weight of its own class,
  and the sum is divided by the sum of the weights.

  Attributes:
    label_smoothing: This share of each label is spread evenly over all classes.
  """

  def __init__(
      self, num_classes, class_weights=None, label_smoothing=0.0, name="cross_entropy", **kwargs
  ):
    super().__init__(num_classes, class_weights, name, **kwargs)
    self.label_smoothing = label_smoothing

  def cost(self, one_hot, probability, weight):
    weight = weight * loss_base.label_weight(one_hot, self.class_weights)
    own = -loss_base.safe_log(loss_base.true_class_probability(one_hot, probability))
    if self.label_smoothing:
      if self.num_classes == 1:
        other = -loss_base.safe_log(loss_base.true_class_probability(1.0 - one_hot, probability))
        mean = 0.5 * (own + other)
      else:
        mean = -ops.mean(loss_base.safe_log(probability), axis=-1)
      own = (1.0 - self.label_smoothing) * own + self.label_smoothing * mean
    return loss_base.weighted_mean(own, weight)

  def get_config(self):
    return {**super().get_config(), "label_smoothing": self.label_smoothing}


@_register
class Focal(SegmentationLoss):
  """Cross-entropy times (1 - p) ** gamma, so that easy pixels fade (Lin et al., 1708.02002).

  The mean is over pixels (weighted by class weights, if any), not over what gamma leaves.
  """

  def __init__(self, num_classes, class_weights=None, gamma=2.0, name="focal", **kwargs):
    super().__init__(num_classes, class_weights, name, **kwargs)
    self.gamma = gamma

  def cost(self, one_hot, probability, weight):
    weight = weight * loss_base.label_weight(one_hot, self.class_weights)
    own = loss_base.true_class_probability(one_hot, probability)
    # float16 probabilities can add up to more than 1; a power of a negative number is NaN. And
    # with gamma < 1 the power has an infinite slope at 0.
    miss = ops.clip(1.0 - own, 1e-7, 1.0)
    return loss_base.weighted_mean(-ops.power(miss, self.gamma) * loss_base.safe_log(own), weight)

  def get_config(self):
    return {**super().get_config(), "gamma": self.gamma}


@_register
class BinaryCrossEntropy(SegmentationLoss):
  """Mean over pixels and channels of the binary cross-entropy of each channel against the rest."""

  def __init__(self, num_classes, class_weights=None, name="binary_cross_entropy", **kwargs):
    super().__init__(num_classes, class_weights, name, **kwargs)

  def cost(self, one_hot, probability, weight):
    weight = weight * loss_base.label_weight(one_hot, self.class_weights)
    costs = loss_base.binary_cross_entropy(one_hot, probability)
    return loss_base.weighted_mean(ops.mean(costs, axis=-1), weight)
