"""Training metrics against counts made by hand."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from flexunet.core.errors import InputError
from flexunet.objectives import losses, metrics

LABEL = np.array([[[0, 1, 1, 2]], [[0, 0, 1, 0]]])
# Claims, pixel by pixel: 0 1 0 2 / 1 0 1 0.
PROBABILITY = np.array(
    [
        [[[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.5, 0.3, 0.2], [0.1, 0.3, 0.6]]],
        [[[0.4, 0.6, 0.0], [0.6, 0.2, 0.2], [0.3, 0.5, 0.2], [1.0, 0.0, 0.0]]],
    ],
    np.float32,
)


def results(metric):
  return {name: float(value) for name, value in metric.result().items()}


def test_published_dice_sums_over_height_width_and_class():
  metric = metrics.DiceCoefMulticlass(3)
  metric.update_state(LABEL, PROBABILITY)
  # Overlaps 0.8+0.7+0.3+0.6 and 0.4+0.6+0.5+1.0; four label and four probability sums each.
  expected = ((2 * 2.4 + 1) / (4 + 4 + 1) + (2 * 2.5 + 1) / (4 + 4 + 1)) / 2
  assert float(metric.result()) == pytest.approx(expected)


def test_hard_scores_of_counts_over_batches():
  metric = metrics.ConfusionMetrics(3, ["air", "grey", "white"], per_class=metrics.SCORES)
  for index in range(2):
    metric.update_state(LABEL[index : index + 1], PROBABILITY[index : index + 1])
  found = results(metric)
  # Grey: 2 right, 1 invented, 1 missed, 4 rightly left; white: 1 right, 7 rightly left.
  assert found["dice_grey"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
  assert found["iou_grey"] == pytest.approx(2 / (2 + 1 + 1))
  assert found["sensitivity_grey"] == pytest.approx(2 / 3)
  assert found["precision_grey"] == pytest.approx(2 / 3)
  assert found["specificity_grey"] == pytest.approx(4 / 5)
  assert found["dice_white"] == 1
  assert found["foreground_dice"] == pytest.approx((2 / 3 + 1) / 2)
  assert found["foreground_specificity"] == pytest.approx((4 / 5 + 1) / 2)
  assert not any("air" in name for name in found)


def test_a_class_nowhere_is_nan_and_not_averaged():
  metric = metrics.ConfusionMetrics(3)
  metric.update_state(LABEL[1:], PROBABILITY[1:])
  found = results(metric)
  assert np.isnan(found["dice_2"])
  assert found["foreground_dice"] == found["dice_1"] == pytest.approx(2 / 3)


def test_an_unseen_metric_is_nan_not_perfect():
  assert np.isnan(results(metrics.ConfusionMetrics(3))["foreground_dice"])


def test_weight_zero_leaves_out_examples_and_pixels():
  plain, weighted = metrics.ConfusionMetrics(3), metrics.ConfusionMetrics(3)
  published, published_weighted = metrics.DiceCoefMulticlass(3), metrics.DiceCoefMulticlass(3)
  plain.update_state(LABEL[:1], PROBABILITY[:1])
  published.update_state(LABEL[:1], PROBABILITY[:1])
  weighted.update_state(LABEL, PROBABILITY, sample_weight=np.array([1.0, 0.0]))
  published_weighted.update_state(LABEL, PROBABILITY, sample_weight=np.array([1.0, 0.0]))
  assert np.array_equal(plain.matrix.numpy(), weighted.matrix.numpy())
  assert float(published.result()) == float(published_weighted.result())
  pixels = np.ones((2, 1, 4))
  pixels[0, 0, 2] = 0  # The missed grey pixel.
  weighted.reset_state()
  weighted.update_state(LABEL, PROBABILITY, sample_weight=pixels)
  assert results(weighted)["foreground_sensitivity"] == 1


def test_one_class_is_cut_above_one_half():
  metric = metrics.ConfusionMetrics(1, ["background", "lesion"])
  metric.update_state([[[1, 0, 1, 0]]], np.array([[[[0.6], [0.5], [0.3], [0.9]]]]))
  assert results(metric)["dice_lesion"] == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))


def test_fit_logs_every_score_under_its_name():
  model = keras.Sequential([keras.Input((4, 6, 1)), keras.layers.Conv2D(3, 1),
                            keras.layers.Softmax()])
  model.compile(
      "sgd",
      losses.make("dice_cross_entropy", 3),
      weighted_metrics=metrics.training_metrics(
          ["dice_coef_multiclass", "dice", "iou"], 3, ["none", "left", "right"]
      ),
  )
  x = np.random.default_rng(0).uniform(size=(4, 4, 6, 1))
  y = np.random.default_rng(1).integers(0, 3, (4, 4, 6))
  history = model.fit(
      x, y, sample_weight=np.ones(4), validation_data=(x, y), batch_size=2, verbose=0
  ).history
  expected = {"dice_coef_multiclass", "foreground_dice", "foreground_iou", "dice_left",
              "dice_right"}
  assert expected | {f"val_{name}" for name in expected} <= history.keys()
  assert all(isinstance(history[name][0], float) for name in expected)


@pytest.mark.parametrize(
    "metric",
    [metrics.DiceCoefMulticlass(3), metrics.ConfusionMetrics(3, list("abc"), ["dice"], [])],
)
def test_a_metric_survives_saving(metric):
  again = type(metric).from_config(metric.get_config())
  assert again.get_config() == metric.get_config()


def test_a_misspelt_metric_names_the_nearest():
  with pytest.raises(InputError, match="Did you mean 'specificity'"):
    metrics.training_metrics(["specifity"], 3)


def test_wrong_number_of_names_is_refused():
  with pytest.raises(InputError, match="3 label values"):
    metrics.ConfusionMetrics(3, ["a", "b"])
