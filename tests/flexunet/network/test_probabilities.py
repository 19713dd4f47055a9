"""One rule for the class of a pixel, wherever it is asked for."""

import numpy as np
from keras import ops

from flexunet.network import probabilities
from flexunet.objectives import metrics
from flexunet.prediction import predictor
from flexunet.training import monitoring

# The smallest float32 above one half, one half, and the largest below.
SIGMOID = np.array([[np.nextafter(np.float32(0.5), np.float32(1)), 0.5, 0.49999997]], np.float32)
TIES = np.array([[[0.5, 0.5, 0.0], [0.2, 0.4, 0.4], [0.3, 0.3, 0.4]]], np.float32)


class Answering:
  """Stands for a network that gives these probabilities."""

  def __init__(self, probability):
    self.probability = probability

  def predict_on_batch(self, images):
    return self.probability


def test_one_half_is_background_and_a_tie_goes_to_the_lower_id():
  assert probabilities.class_ids(SIGMOID[..., None]).tolist() == [[1, 0, 0]]
  assert probabilities.class_ids(TIES).tolist() == [[0, 1, 2]]
  assert ops.convert_to_numpy(probabilities.class_ids(TIES, ops)).tolist() == [[0, 1, 2]]


def test_training_metrics_previews_and_prediction_agree_on_ties():
  one_output = SIGMOID[None, ..., None]
  both = np.concatenate([1 - one_output, one_output], axis=-1)  # As a `Predictor` gives it.
  for probability, seen, expected in (
      (one_output, both, [[1, 0, 0]]), (TIES[None], TIES[None], [[0, 1, 2]]),
  ):  # fmt: skip
    assert predictor.to_label(seen[0]).tolist() == expected
    (previewed,) = monitoring.predict_labels(Answering(probability), [np.zeros((1, 3, 1))])
    assert previewed.tolist() == expected
    metric = metrics.ConfusionMetrics(probability.shape[-1], per_class=["dice"])
    metric.update_state(np.array([expected]), probability)
    assert float(metric.result()["dice_1"]) == 1


def test_a_temperature_divides_the_logits():
  logits = np.array([[[2.0, 0.0, -1.0]]])
  softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  halved = np.exp(logits / 2) / np.exp(logits / 2).sum(-1, keepdims=True)
  found = probabilities.tempered(softmax.astype(np.float32), 2.0)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, halved, atol=1e-6)
  assert probabilities.tempered(found, 1.0) is found


def test_a_temperature_changes_no_label_not_even_by_rounding():
  random = np.random.default_rng(0)
  probability = random.dirichlet([0.3] * 3, 20_000).astype(np.float32)
  near = np.float32(1 / 3) + random.integers(-2, 3, (20_000, 3)).astype(np.float32) * 2.0**-25
  probability = np.concatenate([probability, near.astype(np.float32), TIES[0]])
  for temperature in (0.05, 0.7, 3.0, 20.0):
    scaled = probabilities.tempered(probability, temperature)
    assert np.array_equal(
        probabilities.class_ids(scaled), probabilities.class_ids(probability)
    )
    np.testing.assert_allclose(scaled.sum(axis=-1), 1, atol=1e-5)
