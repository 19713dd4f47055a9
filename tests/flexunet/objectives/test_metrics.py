"""Training metrics against counts made by hand."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from flexunet.core.errors import InputError
from flexunet.evaluation import scores, summary
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


def slices_of_volumes(generator, sizes):
  """Returns labels, probabilities and volume numbers of slices in mixed order, of 3 classes."""
  number = generator.permutation(np.repeat(np.arange(len(sizes)), sizes))
  label = generator.integers(0, 3, (len(number), 5, 6))
  label[number == 1] = 0  # A volume without any class; it is not empty in the prediction.
  label[number == 2] = np.minimum(label[number == 2], 1)
  probability = generator.uniform(size=(*label.shape, 3)).astype(np.float32)
  probability[number == 2, ..., 2] = 0  # A class that is in neither.
  probability[number == 3, ..., 1] = 0  # A class that is missed.
  empty = number == 4
  label[empty], probability[empty] = 0, [1, 0, 0]
  return label, probability, number


def test_scores_of_volumes_are_those_that_evaluation_reports():
  label, probability, number = slices_of_volumes(np.random.default_rng(5), [4, 1, 3, 2, 2, 5])
  metric = metrics.VolumeScores(3, 6, ["air", "grey", "white"], metrics.SCORES)
  for rows in np.array_split(np.arange(len(number)), 4):
    metric.update_state({"label": label[rows], "volume": number[rows]}, probability[rows])
  found, claim = results(metric), probability.argmax(axis=-1)
  rows = []
  for volume in range(6):
    own = number == volume
    scored = scores.label_scores(label[own], claim[own], ["air", "grey", "white"], [np.nan] * 3)
    rows += [{"subject": "", "volume": volume, "distances": "none", "slices_missed": 0,
              "slices_false_alarm": 0, **row} for row in scored]  # fmt: skip
  wanted = summary.summarize(rows, ["grey", "white"], metrics.SCORES)
  assert found["foreground_dice"] == pytest.approx(wanted["foreground_dice"]["mean"])
  assert wanted["foreground_dice"]["n"] == 5  # Volume 4 is empty in truth and prediction.
  for name in ("grey", "white"):
    assert found[f"dice_{name}"] == pytest.approx(wanted["per_class"][name]["dice"]["mean"])
  for score in ("iou", "sensitivity", "specificity", "precision"):
    of_volumes = [
        np.nanmean(values) for volume in range(6)
        if not np.isnan(values := [row[score] for row in rows if row["volume"] == volume]).all()
    ]  # fmt: skip
    assert found[f"foreground_{score}"] == pytest.approx(np.mean(of_volumes)), score
  pooled = metrics.ConfusionMetrics(3)
  pooled.update_state(label, probability)
  assert found["pooled_foreground_dice"] == pytest.approx(results(pooled)["foreground_dice"])


def test_one_large_structure_does_not_hide_the_small_ones_that_are_missed():
  label = np.zeros((3, 10, 10), int)
  label[0, :8], label[1:, 0, 0] = 1, 1  # 80 pixels in one volume, 1 in each of two others.
  claim = np.zeros((3, 10, 10, 2), np.float32)
  claim[0, :8, :, 1] = 1  # Found; the others are missed.
  metric = metrics.VolumeScores(2, 3)
  metric.update_state({"label": label, "volume": np.arange(3)}, claim)
  found = results(metric)
  assert found["foreground_dice"] == pytest.approx((1 + 0 + 0) / 3)
  assert found["pooled_foreground_dice"] == pytest.approx(2 * 80 / (2 * 80 + 2))


def test_volumes_not_seen_and_slices_of_weight_zero_do_not_count():
  metric = metrics.VolumeScores(3, 9)
  assert np.isnan(results(metric)["foreground_dice"])
  truth = {"label": LABEL, "volume": np.array([7, 7])}
  metric.update_state(truth, PROBABILITY, sample_weight=np.array([0.0, 1.0]))
  # Of the second slice alone: class 1 is found in one of one pixel, and in one too many.
  assert results(metric)["foreground_dice"] == pytest.approx(2 / 3)
  assert np.isnan(results(metric)["dice_2"])


def test_a_sigmoid_is_scored_by_volume_too():
  metric = metrics.VolumeScores(1, 1, ["background", "lesion"])
  truth = {"label": np.array([[[1, 0, 1, 0]]]), "volume": np.array([0])}
  metric.update_state(truth, np.array([[[[0.6], [0.5], [0.3], [0.9]]]], np.float32))
  assert results(metric)["dice_lesion"] == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))


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
    [
        metrics.DiceCoefMulticlass(3),
        metrics.ConfusionMetrics(3, list("abc"), ["dice"], []),
        metrics.VolumeScores(3, 5, list("abc"), ["iou"]),
    ],
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
