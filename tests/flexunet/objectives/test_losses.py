"""Losses against arithmetic on maps of a few pixels; weights, extremes, saving."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest

from flexunet.core.errors import InputError
from flexunet.objectives import losses, segmentation_losses

# Two 1 x 4 images, three classes; class 2 is absent from the second image.
LABEL = np.array([[[0, 1, 1, 2]], [[0, 0, 1, 0]]])
PROBABILITY = np.array(
    [
        [[[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.5, 0.3, 0.2], [0.1, 0.3, 0.6]]],
        [[[0.9, 0.1, 0.0], [0.6, 0.2, 0.2], [0.3, 0.5, 0.2], [1.0, 0.0, 0.0]]],
    ],
    np.float32,
)
OWN = [0.8, 0.7, 0.3, 0.6, 0.9, 0.6, 0.5, 1.0]


def value(loss, *args, **kwargs) -> float:
  return float(loss(*args, **kwargs))


def test_cross_entropy_is_the_mean_log_of_the_own_class():
  expected = -sum(math.log(p) for p in OWN) / 8
  assert value(losses.make("cross_entropy", 3), LABEL, PROBABILITY) == pytest.approx(expected)


def test_class_weights_give_a_weighted_mean():
  weights = [1, 2, 4]
  each = [weights[c] for c in LABEL.ravel()]
  expected = -sum(w * math.log(p) for w, p in zip(each, OWN, strict=True)) / sum(each)
  loss = losses.make("cross_entropy", 3, class_weights=weights)
  assert value(loss, LABEL, PROBABILITY) == pytest.approx(expected)


def test_label_smoothing_mixes_in_the_mean_over_classes():
  probability = np.array([[[[0.5, 0.25, 0.25]]]], np.float32)
  own, mean = -math.log(0.5), -(math.log(0.5) + 2 * math.log(0.25)) / 3
  loss = losses.make("cross_entropy", 3, label_smoothing=0.1)
  assert value(loss, np.zeros((1, 1, 1)), probability) == pytest.approx(0.9 * own + 0.1 * mean)


def test_a_pixel_of_weight_zero_is_not_smoothed_either():
  # The second pixel is ignored, so its mean over classes must not enter; the third counts half.
  probability = np.array([[[[0.5, 0.25, 0.25], [0.01, 0.01, 0.98], [0.2, 0.2, 0.6]]]], np.float32)
  label, weight = np.array([[[0, 0, 2]]]), np.array([[[1.0, 0.0, 0.5]]], np.float32)
  first = 0.8 * -math.log(0.5) + 0.2 * -(math.log(0.5) + 2 * math.log(0.25)) / 3
  third = 0.8 * -math.log(0.6) + 0.2 * -(2 * math.log(0.2) + math.log(0.6)) / 3
  loss = losses.make("cross_entropy", 3, label_smoothing=0.2)
  found = value(loss, label, probability, sample_weight=weight)
  assert found == pytest.approx((first + 0.5 * third) / 1.5)


def test_only_the_cross_entropy_beside_dice_is_smoothed():
  loss = losses.make("dice_cross_entropy", 3, label_smoothing=0.3)
  dice = value(losses.make("dice", 3), LABEL, PROBABILITY)
  entropy = value(losses.make("cross_entropy", 3, label_smoothing=0.3), LABEL, PROBABILITY)
  assert value(loss, LABEL, PROBABILITY) == pytest.approx(dice + entropy)


def test_the_losses_with_smoothing_are_those_named():
  takes = [name for name in losses.LOSSES if "label_smoothing" in losses._option_names(name)]
  assert tuple(takes) == losses.SMOOTHED


def test_focal_fades_easy_pixels():
  expected = -sum((1 - p) ** 2 * math.log(p) for p in OWN) / 8
  assert value(losses.make("focal", 3, gamma=2.0), LABEL, PROBABILITY) == pytest.approx(expected)


def test_batch_dice_sums_over_the_batch_before_the_ratio():
  # Class 1: overlap 0.7 + 0.3 + 0.5, 3 label pixels, claims 0.1+0.7+0.3+0.3 + 0.1+0.2+0.5+0.
  one = (2 * 1.5 + 1) / (3 + 2.2 + 1)
  # Class 2: overlap 0.6, 1 label pixel, claims 0.1+0.1+0.2+0.6 + 0+0.2+0.2+0.
  two = (2 * 0.6 + 1) / (1 + 1.4 + 1)
  expected = 1 - (one + two) / 2
  assert value(losses.make("dice", 3), LABEL, PROBABILITY) == pytest.approx(expected)


def test_dice_per_case_takes_one_ratio_per_image():
  first = [(2 * 1.0 + 1) / (2 + 1.4 + 1), (2 * 0.6 + 1) / (1 + 1.0 + 1)]
  second = [(2 * 0.5 + 1) / (1 + 0.8 + 1), (0 + 1) / (0 + 0.4 + 1)]
  expected = 1 - (sum(first) + sum(second)) / 4
  loss = losses.make("dice", 3, per_case=True)
  assert value(loss, LABEL, PROBABILITY) == pytest.approx(expected)


def test_dice_with_background_and_class_weights():
  # Background: overlap 0.8 + 0.9 + 0.6 + 1, 4 label pixels, claims 1.6 + 2.8.
  zero = (2 * 3.3 + 1) / (4 + 4.4 + 1)
  one = (2 * 1.5 + 1) / (3 + 2.2 + 1)
  loss = losses.make("dice", 3, include_background=True, class_weights=[1, 3, 0])
  assert value(loss, LABEL, PROBABILITY) == pytest.approx(1 - (1 * zero + 3 * one) / 4)


def test_iou_and_tversky():
  one, two = (1.5 + 1) / (3 + 2.2 - 1.5 + 1), (0.6 + 1) / (1 + 1.4 - 0.6 + 1)
  assert value(losses.make("iou", 3), LABEL, PROBABILITY) == pytest.approx(1 - (one + two) / 2)
  # Class 1: 1.5 right, 0.7 invented, 1.5 missed; class 2: 0.6, 0.8, 0.4.
  one = (1.5 + 1) / (1.5 + 0.3 * 0.7 + 0.7 * 1.5 + 1)
  two = (0.6 + 1) / (0.6 + 0.3 * 0.8 + 0.7 * 0.4 + 1)
  assert value(losses.make("tversky", 3), LABEL, PROBABILITY) == pytest.approx(1 - (one + two) / 2)
  loss = losses.make("tversky", 3, gamma=0.75)
  expected = ((1 - one) ** 0.75 + (1 - two) ** 0.75) / 2
  assert value(loss, LABEL, PROBABILITY) == pytest.approx(expected)


def test_tversky_of_equal_prices_is_dice():
  loss = losses.make("tversky", 3, alpha=0.5, beta=0.5, smoothing=0.5)
  dice = losses.make("dice", 3, smoothing=1.0)
  assert value(loss, LABEL, PROBABILITY) == pytest.approx(value(dice, LABEL, PROBABILITY))


def test_dice_cross_entropy_is_the_sum_of_its_parts():
  loss = losses.make("dice_cross_entropy", 3, dice_weight=2.0, cross_entropy_weight=0.5)
  dice = value(losses.make("dice", 3), LABEL, PROBABILITY)
  entropy = value(losses.make("cross_entropy", 3), LABEL, PROBABILITY)
  assert value(loss, LABEL, PROBABILITY) == pytest.approx(2 * dice + 0.5 * entropy)


def test_one_class_is_binary():
  label = np.array([[[1, 0]]])
  probability = np.array([[[[0.75], [0.25]]]], np.float32)
  loss = losses.make("cross_entropy", 1)
  assert value(loss, label, probability) == pytest.approx(-math.log(0.75))
  loss = losses.make("dice", 1)
  assert value(loss, label, probability) == pytest.approx(1 - (2 * 0.75 + 1) / (1 + 1 + 1))
  loss = losses.make("bce_dice", 1)
  assert value(loss, label, probability) == pytest.approx(-math.log(0.75) + 1 - 2.5 / 3)
  weighted = losses.make("cross_entropy", 1, class_weights=[1, 3])
  skewed = np.array([[[[0.5], [0.25]]]], np.float32)
  expected = -(3 * math.log(0.5) + math.log(0.75)) / 4
  assert value(weighted, label, skewed) == pytest.approx(expected)


def test_ssim_of_equal_maps_is_one_and_of_constants_follows_the_formula():
  loss = segmentation_losses.StructuralSimilarity(1)
  label = np.zeros((1, 24, 30), int)
  label[0, 5:17, 8:20] = 1
  assert value(loss, label, label[..., None].astype("float32")) == pytest.approx(0, abs=1e-6)
  # A label of zeros against a constant 0.5, away from the border: no variance, no covariance.
  centre = np.zeros((1, 24, 30))
  centre[0, 12, 15] = 1
  constant = np.full((1, 24, 30, 1), 0.5, np.float32)
  similarity = 0.01**2 / (0.5**2 + 0.01**2)
  found = value(loss, np.zeros((1, 24, 30), int), constant, sample_weight=centre + 1e-12)
  assert found == pytest.approx(1 - similarity, rel=1e-5)


@pytest.mark.parametrize("name", sorted(losses.LOSSES))
@pytest.mark.parametrize("num_classes", [1, 2, 3])
def test_weight_zero_is_as_if_the_example_or_pixel_were_not_there(name, num_classes):
  random = np.random.default_rng(3)
  label = random.integers(0, max(num_classes, 2), (3, 12, 14))
  probability = random.uniform(0.05, 1, (3, 12, 14, num_classes)).astype("float32")
  if num_classes > 1:
    probability /= probability.sum(-1, keepdims=True)
  loss = losses.make(name, num_classes)
  without = value(loss, label[:2], probability[:2])
  weight = np.array([1.0, 1.0, 0.0], np.float32)
  assert value(loss, label, probability, sample_weight=weight) == pytest.approx(without, rel=1e-5)
  pixels = np.ones((3, 12, 14), np.float32) * weight[:, None, None]
  pixels[:2, 10:] = 0
  changed = label.copy()
  changed[:, 10:] = 0
  found = value(loss, label, probability, sample_weight=pixels)
  assert found == pytest.approx(value(loss, changed, probability, sample_weight=pixels), rel=1e-5)
  assert value(loss, label, probability, sample_weight=0 * weight) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", sorted(losses.LOSSES))
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_extremes_stay_finite_and_perfect_beats_wrong(name, dtype):
  import tensorflow as tf

  label = np.zeros((2, 12, 12), int)
  label[0, 2:5, 3:9] = 1
  perfect = np.eye(3, dtype=dtype)[label]
  wrong = np.eye(3, dtype=dtype)[(label + 1) % 3]
  loss = losses.make(name, 3)
  costs = []
  for probability in (perfect, wrong):
    tensor = tf.constant(probability)
    with tf.GradientTape() as tape:
      tape.watch(tensor)
      cost = loss(label, tensor)
    assert cost.dtype == tf.float32
    assert np.isfinite(cost.numpy())
    assert np.isfinite(tape.gradient(cost, tensor).numpy()).all()
    costs.append(float(cost))
  assert costs[0] < 0.01 < costs[1]


def test_a_confidently_wrong_pixel_still_learns():
  import tensorflow as tf

  logits = tf.Variable([[[[40.0, 0.0]]]])
  with tf.GradientTape() as tape:
    cost = losses.make("cross_entropy", 2)(np.ones((1, 1, 1)), tf.nn.softmax(logits))
  assert float(cost) == pytest.approx(40, rel=1e-4)
  # The exact gradient of softmax and logarithm: probability minus label.
  np.testing.assert_allclose(tape.gradient(cost, logits).numpy().ravel(), [1, -1], rtol=1e-4)


def gradient_of(loss, label, logits, activation=None):
  """Returns the cost and its gradient by the logits, given as a nested list."""
  import tensorflow as tf

  variable = tf.Variable(np.array(logits, np.float32))
  with tf.GradientTape() as tape:
    cost = loss(np.array(label), (activation or tf.identity)(variable))
  return float(cost), tape.gradient(cost, variable).numpy()


# Those with a logarithm; the slope of an overlap fades where probabilities do.
WITH_LOGARITHM = ["cross_entropy", "dice_cross_entropy", "focal", "bce_dice", "bce_iou",
                  "basnet_hybrid"]  # fmt: skip


@pytest.mark.parametrize("name", WITH_LOGARITHM)
@pytest.mark.parametrize("margin", [10.0, 20.0, 90.0, 1000.0])
@pytest.mark.parametrize("num_classes", [1, 2, 3])
@pytest.mark.parametrize("truth", [0, 1])
def test_from_logits_a_wrong_pixel_learns_at_any_margin(name, margin, num_classes, truth):
  loss = losses.make(name, num_classes, from_logits=True)
  wrong = 1 - truth
  logits = np.zeros((1, 12, 12, num_classes))
  if num_classes == 1:
    logits[:] = -margin if truth else margin
  else:
    logits[..., wrong] = margin
  cost, gradient = gradient_of(loss, np.full((1, 12, 12), truth), logits)
  per_pixel = gradient[0, 6, 6] * 144  # The mean over 12 x 12 pixels.
  # Of a wrong class the derivative by its own logit is 1, by the true one -1; a binary
  # cross-entropy takes the mean over channels.
  least = 0.3 / max(num_classes, 1)
  assert np.isfinite(gradient).all() and cost > 0.3 * margin
  if num_classes == 1:
    assert (1 if truth else -1) * per_pixel[0] < -least
  else:
    assert per_pixel[wrong] > least and per_pixel[truth] < -least / 2


def test_from_logits_costs_are_those_of_exact_arithmetic():
  # One output, label 0: log(1 + e^x) = x beyond a margin of 17; with label 1: log(1 + e^-x).
  entropy = losses.make("cross_entropy", 1, from_logits=True)
  cost, gradient = gradient_of(entropy, [[[0, 1]]], [[[[40.0], [40.0]]]])
  assert cost == pytest.approx((40 + math.exp(-40)) / 2)
  np.testing.assert_allclose(gradient.ravel(), [0.5, -0.5 * math.exp(-40)], rtol=1e-4)
  # Three channels of logits 40, 0, 0 and label 1: -log p1 = 40, and -log(1 - p0) = 40 - log 2;
  # -log(1 - p2) = e^-40, next to nothing.
  binary = segmentation_losses.BinaryCrossEntropy(3, from_logits=True)
  cost, gradient = gradient_of(binary, [[[1]]], [[[[40.0, 0.0, 0.0]]]])
  assert cost == pytest.approx((40 + 40 - math.log(2)) / 3, rel=1e-6)
  # By logit 0: 1 of -log p1, 1 of -log(1 - p0); by logit 1: -1 and -1/2; by logit 2: -1/2.
  np.testing.assert_allclose(gradient.ravel(), np.array([2, -1.5, -0.5]) / 3, atol=1e-6)


@pytest.mark.parametrize("name", sorted(losses.LOSSES))
@pytest.mark.parametrize("num_classes", [1, 2, 3])
def test_logits_and_their_probabilities_cost_the_same(name, num_classes):
  random = np.random.default_rng(5)
  label = random.integers(0, max(num_classes, 2), (2, 12, 14))
  logits = random.normal(0, 3, (2, 12, 14, num_classes)).astype("float32")
  activation = keras.ops.sigmoid if num_classes == 1 else keras.ops.softmax
  costs = [
      gradient_of(losses.make(name, num_classes, from_logits=True), label, logits),
      gradient_of(losses.make(name, num_classes), label, logits, activation),
  ]
  assert costs[0][0] == pytest.approx(costs[1][0], rel=1e-5)
  np.testing.assert_allclose(costs[0][1], costs[1][1], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("name", WITH_LOGARITHM)
@pytest.mark.parametrize("margin", [20.0, 40.0, 60.0])
def test_softmax_probabilities_learn_far_beyond_the_rounding_of_float32(name, margin):
  logits = np.zeros((1, 12, 12, 2))
  logits[..., 1] = margin
  label = np.zeros((1, 12, 12), int)
  _, gradient = gradient_of(losses.make(name, 2), label, logits, keras.ops.softmax)
  np.testing.assert_array_less(0.3, 144 * gradient[0, 6, 6, 1])


def test_a_sigmoid_near_zero_learns_where_one_minus_it_would_be_lost():
  _, gradient = gradient_of(
      losses.make("cross_entropy", 1), [[[1]]], [[[[-40.0]]]], keras.ops.sigmoid
  )
  assert gradient.item() == pytest.approx(-1)


@pytest.mark.parametrize("gamma", [0.1, 0.75])
@pytest.mark.parametrize("smoothing", [1.0, 1e-9])
@pytest.mark.parametrize("per_case", [False, True])
def test_a_batch_of_weight_zero_costs_nothing_at_all(gamma, smoothing, per_case):
  loss = losses.make("tversky", 3, gamma=gamma, smoothing=smoothing, per_case=per_case)
  assert value(loss, LABEL, PROBABILITY, sample_weight=np.zeros(2)) == 0


def test_whether_a_loss_takes_logits_is_saved_and_no_option_of_the_user():
  loss = losses.make("dice_cross_entropy", 3, from_logits=True)
  again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
  assert again.from_logits and not losses.make("dice_cross_entropy", 3).from_logits
  with pytest.raises(InputError, match="no option 'from_logits'"):
    losses.check("dice", 3, from_logits=True)


@pytest.mark.parametrize("name", sorted(losses.LOSSES))
def test_a_loss_survives_saving(name):
  loss = losses.make(name, 3, class_weights=[0.5, 1.0, 2.0])
  again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
  assert value(again, LABEL, PROBABILITY) == value(loss, LABEL, PROBABILITY)
  assert again.name == loss.name


def test_labels_may_carry_a_channel_axis():
  loss = losses.make("dice_cross_entropy", 3)
  with_axis = LABEL[..., None].astype("uint8")
  assert value(loss, with_axis, PROBABILITY) == value(loss, LABEL, PROBABILITY)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (dict(loss_name="dise", num_classes=3), "Did you mean 'dice'"),
        (dict(loss_name="dice", num_classes=0), "at least 1"),
        (dict(loss_name="dice", num_classes=3, class_weights=[1, 2]), "3 for 3 classes"),
        (dict(loss_name="dice", num_classes=1, class_weights=[1]), "2 for 1 classes"),
        (dict(loss_name="focal", num_classes=3, class_weights=[1, -1, 1]), "negative"),
        (dict(loss_name="dice", num_classes=2, class_weights=[1, 0]), "above 0"),
        (dict(loss_name="dice", num_classes=3, gamma=2), "no option 'gamma'"),
        (dict(loss_name="dice", num_classes=3, smoothing=0), "smoothing"),
    ],
)
def test_impossible_combinations_are_refused(arguments, said):
  with pytest.raises(InputError, match=said):
    losses.check(**arguments)


def test_options_of_base_classes_are_known():
  losses.check("tversky", 3, alpha=0.2, per_case=True, class_weights=[1, 1, 1])
