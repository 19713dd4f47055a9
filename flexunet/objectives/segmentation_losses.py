"""The training losses, and what all of them share.

Labels become one-hot, weights reach every pixel, sums are float32. Some losses judge each pixel by
itself (cross-entropy, focal), others the overlap of whole regions (Dice, Tversky, IoU), one the
structure of the image. Where several devices share a batch, each sums over all of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from flexunet.network import replicas
from flexunet.network.probabilities import ClassProbabilities


class SegmentationLoss(keras.losses.Loss):
  """Base of the losses: subclasses implement `_cost`.

  Attributes:
    num_classes: Channels of `y_pred`.
    class_weights: One number per label value, or None for equal weights.
    from_logits: Whether `y_pred` is what a network gives before its softmax or sigmoid; training
      does so, because a saturated probability has no gradient (see `ClassProbabilities`).
  """

  def __init__(
      self,
      num_classes: int,
      class_weights: Sequence[float] | None = None,
      name: str | None = None,
      from_logits: bool = False,
      **kwargs,
  ):
    super().__init__(name=name, **kwargs)
    self.num_classes = num_classes
    self.from_logits = from_logits
    self.class_weights = None if class_weights is None else [float(w) for w in class_weights]

  def __call__(self, y_true, y_pred, sample_weight=None):
    # Keras multiplies weights onto finished losses; an overlap needs them inside its sums. They
    # travel with the labels through Keras' own call, which scales by the number of replicas.
    label = label_map(y_true)
    return super().__call__((label, pixel_weight(sample_weight, label)), y_pred)

  def call(self, y_true, y_pred):
    label, weight = y_true
    one_hot = one_hot_channels(ops.cast(label, "int32"), self.num_classes)
    claim = ClassProbabilities(ops.cast(y_pred, "float32"), from_logits=self.from_logits)
    # Keras passes scalars through as they are, without that scaling: hence one axis.
    return ops.reshape(self._cost(one_hot, claim, weight), (1,))

  def _cost(self, one_hot: Any, claim: ClassProbabilities, weight: Any) -> Any:
    """Returns the loss, a float32 scalar.

    Args:
      one_hot: float32 [batch, height, width, channels]; channels as in `claim`.
      claim: What the network gives each pixel.
      weight: float32 [batch, height, width].
    """
    raise NotImplementedError

  def get_config(self):
    return {
        **super().get_config(),
        "num_classes": self.num_classes,
        "class_weights": self.class_weights,
        "from_logits": self.from_logits,
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
  """Returns sum(weight * values) / sum(weight), a float32 scalar; 0 if all weights are 0.

  Both sums go over all devices that share the batch.
  """
  part, whole = replicas.total([ops.sum(weight * values), ops.sum(weight)])
  return part / ops.where(whole > 0, whole, 1.0)


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

  def _cost(self, one_hot, claim, weight):
    weight = weight * label_weight(one_hot, self.class_weights)
    own = -claim.log_own(one_hot)
    if self.label_smoothing:
      if self.num_classes == 1:
        mean = 0.5 * (own - claim.log_miss(one_hot))
      else:
        mean = -ops.mean(claim.log_probability, axis=-1)
      own = (1.0 - self.label_smoothing) * own + self.label_smoothing * mean
    return weighted_mean(own, weight)

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

  def _cost(self, one_hot, claim, weight):
    weight = weight * label_weight(one_hot, self.class_weights)
    # (1 - p) ** gamma by its logarithm, whose slope is finite also where 1 - p is 0.
    fade = ops.exp(self.gamma * claim.log_miss(one_hot))
    return weighted_mean(-fade * claim.log_own(one_hot), weight)

  def get_config(self):
    return {**super().get_config(), "gamma": self.gamma}


@_register
class BinaryCrossEntropy(SegmentationLoss):
  """Mean over pixels and channels of the binary cross-entropy of each channel against the rest."""

  def __init__(self, num_classes, class_weights=None, name="binary_cross_entropy", **kwargs):
    super().__init__(num_classes, class_weights, name, **kwargs)

  def _cost(self, one_hot, claim, weight):
    weight = weight * label_weight(one_hot, self.class_weights)
    costs = -(one_hot * claim.log_probability + (1.0 - one_hot) * claim.log_complement)
    return weighted_mean(ops.mean(costs, axis=-1), weight)


# One minus a float32 ratio near 1 has a granularity of 6e-8.
_SMALLEST_MISS = 1e-7


def _share(part: Any, whole: Any) -> Any:
  """Returns part / whole; 1 where the whole is 0 and so nothing can be missed."""
  return ops.where(whole > 0, part / ops.where(whole > 0, whole, 1.0), 1.0)


class _Overlap(SegmentationLoss):
  """Base of the overlap losses.

  Attributes:
    per_case: False sums each class over the whole batch before the ratio is taken, so a slice
      without the class does not flip the loss between 0 and 1 by a few pixels, and every pixel
      of a small structure counts alike in whichever slice it lies (nnU-Net's batch Dice,
      Isensee et al., doi 10.1038/s41592-020-01008-z). True takes one ratio per image.
    include_background: Whether class 0 counts too.
    smoothing: In pixels; added to both parts of the ratio.
  """

  def __init__(
      self,
      num_classes,
      class_weights=None,
      per_case=False,
      include_background=False,
      smoothing=1.0,
      name=None,
      **kwargs,
  ):
    super().__init__(num_classes, class_weights, name, **kwargs)
    self.per_case = per_case
    self.include_background = include_background
    self.smoothing = smoothing

  def _cost(self, one_hot, claim, weight):
    skipped = 0 if self.include_background or self.num_classes == 1 else 1
    one_hot, probability = one_hot[..., skipped:], claim.probability[..., skipped:]
    axes = (1, 2) if self.per_case else (0, 1, 2)
    masks = ops.expand_dims(weight, -1)
    weighted = one_hot * masks
    overlap = ops.sum(weighted * probability, axis=axes)  # [(batch,) classes]
    truth = ops.sum(weighted, axis=axes)
    claimed = ops.sum(masks * probability, axis=axes)
    if not self.per_case:  # The batch is that of all devices.
      overlap, truth, claimed = replicas.total([overlap, truth, claimed])
    missed = 1.0 - self._ratio(overlap, truth - overlap, claimed - overlap)
    return self._mean_over_classes(missed, weight, skipped)

  def _ratio(self, overlap, missed, invented):
    """Returns the soft overlap ratio from pixel sums of shape [classes] or [batch, classes]."""
    raise NotImplementedError

  def _mean_over_classes(self, costs, weight, skipped):
    weights = 1.0
    if self.class_weights is not None:
      chosen = self.class_weights[1:] if self.num_classes == 1 else self.class_weights[skipped:]
      weights = ops.convert_to_tensor([w / sum(chosen) for w in chosen], dtype="float32")
      costs = ops.sum(costs * weights, axis=-1)
    else:
      costs = ops.mean(costs, axis=-1)
    if self.per_case:
      # An example left out must not count as a perfect one.
      counts = ops.cast(ops.max(weight, axis=(1, 2)) > 0, "float32")
      return weighted_mean(costs, counts)
    return costs

  def get_config(self):
    return {
        **super().get_config(),
        "per_case": self.per_case,
        "include_background": self.include_background,
        "smoothing": self.smoothing,
    }


@_register
class Dice(_Overlap):
  """1 - mean over classes of (2 sum(y p) + s) / (sum(y) + sum(p) + s) (V-Net, 1606.04797)."""

  def __init__(self, num_classes, *args, name="dice", **kwargs):
    super().__init__(num_classes, *args, name=name, **kwargs)

  def _ratio(self, overlap, missed, invented):
    both = 2.0 * overlap + self.smoothing
    return _share(both, both + missed + invented)


@_register
class IoU(_Overlap):
  """1 - mean over classes of (sum(y p) + s) / (sum(y) + sum(p) - sum(y p) + s)."""

  def __init__(self, num_classes, *args, name="iou", **kwargs):
    super().__init__(num_classes, *args, name=name, **kwargs)

  def _ratio(self, overlap, missed, invented):
    both = overlap + self.smoothing
    return _share(both, both + missed + invented)


@_register
class Tversky(_Overlap):
  """1 - mean over classes of TP / (TP + alpha FP + beta FN), to the power gamma (1706.05721).

  Attributes:
    alpha: Price of an invented pixel; with alpha = beta = 0.5 this is the Dice loss.
    beta: Price of a missed pixel; above alpha it favours sensitivity, for small lesions.
    gamma: 1 for Tversky; below 1 the focal Tversky loss (1810.07842), with (1 - ratio) ** gamma.
  """

  def __init__(
      self, num_classes, *args, alpha=0.3, beta=0.7, gamma=1.0, name="tversky", **kwargs
  ):
    super().__init__(num_classes, *args, name=name, **kwargs)
    self.alpha = alpha
    self.beta = beta
    self.gamma = gamma

  def _ratio(self, overlap, missed, invented):
    both = overlap + self.smoothing
    ratio = _share(both, both + self.alpha * invented + self.beta * missed)
    if self.gamma == 1.0:
      return ratio
    # The slope of a power below 1 is infinite at 0, where a class is perfect or absent: there the
    # cost is 0, without a slope.
    miss = 1.0 - ratio
    power = ops.power(ops.maximum(miss, _SMALLEST_MISS), self.gamma)
    return 1.0 - ops.where(miss > _SMALLEST_MISS, power, 0.0)

  def get_config(self):
    return {**super().get_config(), "alpha": self.alpha, "beta": self.beta, "gamma": self.gamma}


@_register
class StructuralSimilarity(SegmentationLoss):
  """1 - mean SSIM of probability and label maps (Wang et al., doi 10.1109/TIP.2003.819861).

  Gaussian windows of 11 x 11 pixels, sigma 1.5, constants 0.01^2 and 0.03^2, foreground channels
  only. It weighs pixels by their neighbourhood, hence sharpens boundaries (BASNet).
  """

  def __init__(
      self, num_classes, class_weights=None, window=11, sigma=1.5,
      name="structural_similarity", **kwargs
  ):
    super().__init__(num_classes, class_weights, name, **kwargs)
    self.window = window
    self.sigma = sigma

  def _cost(self, one_hot, claim, weight):
    probability = claim.probability
    if self.num_classes > 1:
      one_hot, probability = one_hot[..., 1:], probability[..., 1:]
    # What is left out must not show through the windows of its neighbours.
    mask = ops.expand_dims(ops.cast(weight > 0, "float32"), -1)
    y, p = one_hot * mask, probability * mask
    mean_y, mean_p = self._blur(y), self._blur(p)
    variance_y = self._blur(y * y) - mean_y * mean_y
    variance_p = self._blur(p * p) - mean_p * mean_p
    covariance = self._blur(y * p) - mean_y * mean_p
    c1, c2 = 0.01**2, 0.03**2
    similarity = ((2.0 * mean_y * mean_p + c1) * (2.0 * covariance + c2)) / (
        (mean_y * mean_y + mean_p * mean_p + c1) * (variance_y + variance_p + c2)
    )
    return weighted_mean(1.0 - ops.mean(similarity, axis=-1), weight)

  def _blur(self, maps):
    """Returns the Gaussian mean around each pixel; two 1-D passes cost 22 taps, not 121."""
    half = (self.window - 1) / 2
    taps = [math.exp(-((i - half) ** 2) / (2 * self.sigma**2)) for i in range(self.window)]
    taps = ops.convert_to_tensor([tap / sum(taps) for tap in taps], dtype="float32")
    channels = maps.shape[-1]
    for shape in ((self.window, 1, 1, 1), (1, self.window, 1, 1)):
      kernel = ops.tile(ops.reshape(taps, shape), (1, 1, channels, 1))
      maps = ops.depthwise_conv(maps, kernel, padding="same", data_format="channels_last")
    return maps

  def get_config(self):
    return {**super().get_config(), "window": self.window, "sigma": self.sigma}
