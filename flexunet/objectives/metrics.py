"""Streaming metrics of training, computed on the device batch by batch.

They take what the losses take: integer labels [batch, height, width],
probabilities [batch, height, width, classes], and weights of which 0 leaves out an example or a
pixel. Pass them as `weighted_metrics` to `compile`: Keras gives weights to no others.

In training the hard scores are ratios of pixel counts over all images since the last reset, so a
slice without the class is no special case. In validation they are means over volumes
(`VolumeScores`), by the rules of the evaluation (`flexunet.evaluation.scores`).
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import ops

from flexunet.core.errors import InputError, unknown_name
from flexunet.network import probabilities
from flexunet.objectives import names, segmentation_losses

# Ratios of true positives, false positives, false negatives and true negatives of one class.
_SCORES = {
    "dice": lambda tp, fp, fn, tn: (2.0 * tp, 2.0 * tp + fp + fn),
    "iou": lambda tp, fp, fn, tn: (tp, tp + fp + fn),
    "sensitivity": lambda tp, fp, fn, tn: (tp, tp + fn),
    "specificity": lambda tp, fp, fn, tn: (tn, tn + fp),
    "precision": lambda tp, fp, fn, tn: (tp, tp + fp),
}
SCORES = tuple(_SCORES)


@keras.saving.register_keras_serializable(package="flexunet")
class DiceCoefMulticlass(keras.metrics.Metric):
  """The published score: mean over images of (2 sum(y p) + 1) / (sum(y) + sum(p) + 1).

  The sums run over height, width and class, background included, with soft probabilities. For a
  softmax both sum(y) and sum(p) are the number of pixels, so it is close to pixel accuracy and
  says little about small structures: it is here for comparison with published figures alone.
  """

  def __init__(self, num_classes: int, name: str = "dice_coef_multiclass", **kwargs):
    super().__init__(name=name, **kwargs)
    self.num_classes = num_classes
    self.total = self.add_variable((), "zeros", dtype="float32", name="total")
    self.images = self.add_variable((), "zeros", dtype="float32", name="images")

  def update_state(self, y_true, y_pred, sample_weight=None):
    label = segmentation_losses.label_map(y_true)
    one_hot = segmentation_losses.one_hot_channels(label, self.num_classes)
    probability = ops.cast(ops.convert_to_tensor(y_pred), "float32")
    weight = segmentation_losses.pixel_weight(sample_weight, label)
    inside = ops.expand_dims(weight, -1)
    axes = (1, 2, 3)
    overlap = ops.sum(inside * one_hot * probability, axis=axes)
    mass = ops.sum(inside * (one_hot + probability), axis=axes)
    counts = ops.cast(ops.max(weight, axis=(1, 2)) > 0, "float32")
    self.total.assign_add(ops.sum(counts * (2.0 * overlap + 1.0) / (mass + 1.0)))
    self.images.assign_add(ops.sum(counts))

  def result(self):
    return self.total / ops.maximum(self.images, 1.0)

  def get_config(self):
    return {**super().get_config(), "num_classes": self.num_classes}


@keras.saving.register_keras_serializable(package="flexunet")
class ConfusionMetrics(keras.metrics.Metric):
  """Hard scores of every class out of one confusion matrix; `result` is a dict.

  For each score there is "foreground_<score>", the mean over the foreground classes, and for each
  score in `per_class` also "<score>_<class>". A ratio of nothing (a class that no label and no
  prediction has) is NaN and is left out of the mean.

  Attributes:
    num_classes: Channels of the prediction; 1 means a foreground probability.
    class_names: One per label value, background first; "0", "1", ... when None.
    scores: Which of `SCORES` are averaged over the foreground.
    per_class: Which of `SCORES` are also given class by class.
  """

  def __init__(
      self,
      num_classes: int,
      class_names: Sequence[str] | None = None,
      scores: Sequence[str] = ("dice", "iou", "sensitivity", "specificity"),
      per_class: Sequence[str] = ("dice",),
      name: str = "confusion",
      **kwargs,
  ):
    super().__init__(name=name, **kwargs)
    self.num_classes = num_classes
    self.num_labels = max(num_classes, 2)
    self.class_names = list(class_names or map(str, range(self.num_labels)))
    if len(self.class_names) != self.num_labels:
      raise InputError(
          f"class_names must name {self.num_labels} label values, background first."
          f" Got {len(self.class_names)}: {self.class_names}."
      )
    self.scores = list(scores)
    self.per_class = list(per_class)
    # float32 counts a class to 16.7 million exactly and stays within 1e-6 beyond.
    self.matrix = self.add_variable(
        (self.num_labels, self.num_labels), "zeros", dtype="float32", name="matrix"
    )

  def update_state(self, y_true, y_pred, sample_weight=None):
    label = segmentation_losses.label_map(y_true)
    weight = segmentation_losses.pixel_weight(sample_weight, label)
    # A product of one-hot matrices: a scatter into few bins is slow on accelerators.
    truth = ops.one_hot(label, self.num_labels, dtype="float32") * ops.expand_dims(weight, -1)
    ids = probabilities.class_ids(ops.convert_to_tensor(y_pred), ops)
    claim = ops.one_hot(ids, self.num_labels, dtype="float32")
    flat = (-1, self.num_labels)
    counts = ops.matmul(ops.transpose(ops.reshape(truth, flat)), ops.reshape(claim, flat))
    self.matrix.assign_add(counts)

  def result(self):
    matrix = ops.convert_to_tensor(self.matrix)
    true_positive = ops.diagonal(matrix)
    false_positive = ops.sum(matrix, axis=0) - true_positive
    false_negative = ops.sum(matrix, axis=1) - true_positive
    true_negative = ops.sum(matrix) - true_positive - false_positive - false_negative
    results = {}
    for score in dict.fromkeys([*self.scores, *self.per_class]):
      part, whole = _SCORES[score](true_positive, false_positive, false_negative, true_negative)
      known = ops.cast(whole > 0, "float32")
      ratio = part / ops.maximum(whole, 1.0)
      if score in self.scores:
        total, count = ops.sum((ratio * known)[1:]), ops.sum(known[1:])
        results[f"foreground_{score}"] = _or_nan(total, count)
      if score in self.per_class:
        for index, class_name in enumerate(self.class_names):
          if index:
            results[f"{score}_{class_name}"] = _or_nan((ratio * known)[index], known[index])
    return results

  def get_config(self):
    return {
        **super().get_config(),
        "num_classes": self.num_classes,
        "class_names": self.class_names,
        "scores": self.scores,
        "per_class": self.per_class,
    }


@keras.saving.register_keras_serializable(package="flexunet")
class VolumeScores(keras.metrics.Metric):
  """Hard scores of every volume, averaged over the volumes; `result` is a dict.

  Pixels of a volume are counted over all of its slices seen, in any order. A ratio of nothing is
  left out, as in the evaluation: a class that a volume has in neither label nor prediction. For
  each score there is "foreground_<score>": per volume the mean over its foreground classes, then
  the mean over the volumes; and "dice_<class>", the mean over the volumes. Beside them stands
  "pooled_foreground_dice", the Dice of all volumes counted together, the mean over the classes.

  Attributes:
    num_classes: Channels of the prediction; 1 means a foreground probability.
    num_volumes: Volumes are numbered below this.
    class_names: One per label value, background first; "0", "1", ... when None.
    scores: Which of `SCORES` are given; "dice" is among them.
  """

  def __init__(
      self,
      num_classes: int,
      num_volumes: int,
      class_names: Sequence[str] | None = None,
      scores: Sequence[str] = ("dice",),
      name: str = "volume_scores",
      **kwargs,
  ):
    super().__init__(name=name, **kwargs)
    self.num_classes, self.num_volumes = num_classes, num_volumes
    self.num_labels = max(num_classes, 2)
    self.class_names = list(class_names or map(str, range(self.num_labels)))
    self.scores = list(dict.fromkeys(["dice", *scores]))
    # Pixels of a class that are true and predicted, true, predicted, and all of the volume. Some
    # bytes a volume; float32 counts to 16.7 million exactly and stays within 1e-6 beyond.
    self.counts = self.add_variable(
        (num_volumes, self.num_labels, 4), "zeros", dtype="float32", name="counts"
    )

  def update_state(self, y_true, y_pred, sample_weight=None):
    """Takes {"label": [batch, height, width], "volume": integers [batch]} as truth."""
    label = segmentation_losses.label_map(y_true["label"])
    weight = ops.expand_dims(segmentation_losses.pixel_weight(sample_weight, label), -1)
    ids = probabilities.class_ids(ops.convert_to_tensor(y_pred), ops)
    truth = ops.one_hot(label, self.num_labels, dtype="float32") * weight
    claim = ops.one_hot(ids, self.num_labels, dtype="float32") * weight
    both = truth * ops.cast(claim > 0, "float32")
    counts = [ops.sum(part, axis=(1, 2)) for part in (both, truth, claim)]
    counts.append(ops.repeat(ops.sum(weight, axis=(1, 2)), self.num_labels, axis=-1))
    # No product of matrices: a GPU may round its factors to 10 bits.
    volume = ops.reshape(ops.cast(y_true["volume"], "int32"), (-1,))
    self.counts.assign_add(
        ops.segment_sum(ops.stack(counts, axis=-1), volume, num_segments=self.num_volumes)
    )

  def result(self):
    counts = ops.convert_to_tensor(self.counts)
    results = {}
    for score in self.scores:
      ratio, known = self._ratios(counts, score)
      per_volume = ops.sum(ratio, axis=1) / ops.maximum(ops.sum(known, axis=1), 1.0)
      has_one = ops.cast(ops.sum(known, axis=1) > 0, "float32")
      results[f"foreground_{score}"] = _or_nan(ops.sum(per_volume), ops.sum(has_one))
      if score == "dice":
        totals, numbers = ops.sum(ratio, axis=0), ops.sum(known, axis=0)
        for index, class_name in enumerate(self.class_names[1:]):
          results[f"dice_{class_name}"] = _or_nan(totals[index], numbers[index])
    pooled, known = self._ratios(ops.sum(counts, axis=0, keepdims=True), "dice")
    results["pooled_foreground_dice"] = _or_nan(ops.sum(pooled), ops.sum(known))
    return results

  def _ratios(self, counts, score):
    """Returns a score and whether there is one, float32 [volumes, foreground classes] each.

    Both are 0 where there is none.
    """
    both, truth, claim, pixels = (counts[:, 1:, part] for part in range(4))
    part, whole = _SCORES[score](both, claim - both, truth - both, pixels - truth - claim + both)
    known = ops.cast(whole > 0, "float32")
    return known * part / ops.maximum(whole, 1.0), known

  def get_config(self):
    return {
        **super().get_config(),
        "num_classes": self.num_classes,
        "num_volumes": self.num_volumes,
        "class_names": self.class_names,
        "scores": self.scores,
    }


def _or_nan(total, count):
  """Returns total / count, NaN where count is 0."""
  return ops.where(count > 0, total / ops.maximum(count, 1.0), float("nan"))


def hard_scores(chosen: Sequence[str]) -> list[str]:
  """Returns those of the chosen metrics that are ratios of pixel counts, each once."""
  return [name for name in dict.fromkeys(chosen) if name in _SCORES]


def training_metrics(
    chosen: Sequence[str], num_classes: int, class_names: Sequence[str] | None = None
) -> list[keras.metrics.Metric]:
  """Returns fresh metrics; the hard scores share one matrix, Dice is also given class by class.

  Args:
    chosen: Keys of `names.METRICS`.
    num_classes: Channels of the prediction; 1 means a foreground probability.
    class_names: One per label value, background first; "0", "1", ... when None.

  Raises:
    InputError: A name that is unknown.
  """
  for name in chosen:
    if name not in names.METRICS:
      raise unknown_name("metric", str(name), names.METRICS)
  metrics: list[keras.metrics.Metric] = []
  if "dice_coef_multiclass" in chosen:
    metrics.append(DiceCoefMulticlass(num_classes))
  if scores := hard_scores(chosen):
    per_class = [score for score in scores if score == "dice"]
    metrics.append(ConfusionMetrics(num_classes, class_names, scores, per_class))
  return metrics
