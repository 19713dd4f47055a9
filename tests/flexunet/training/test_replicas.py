"""Two devices that share a batch train what one device trains: every loss, clipping, averages."""

from __future__ import annotations

import json

import forked
import numpy as np
import pytest

SGD = {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9, "clipvalue": 0.0}
# The others are sums of these; dice_cross_entropy is in the tests below.
KINDS = ["cross_entropy", "dice", "focal", "tversky", "iou", "basnet_hybrid"]


def curves(names, options=None, settings=SGD, shape=None):
  arguments = [names, options or {}, settings, shape or {"normalization": "none"}]
  return told("curves", *map(json.dumps, arguments))


def told(*words):
  code, out, stderr = forked.run("replica_program", words)
  assert code == 0, stderr[-3000:]
  return json.loads(out.splitlines()[-1])


def assert_equal(found, tolerance=1e-5):
  for name, (one, two) in found.items():
    np.testing.assert_allclose(two, one, atol=tolerance, rtol=tolerance, err_msg=name)
    if not name.endswith("weights"):
      assert len(one) == 21 and abs(one[19] - one[0]) > 1e-3, name  # It learns.


@pytest.mark.slow
def test_a_validation_scores_each_volume_as_on_one_device():
  one, two = told("validation")
  assert one.pop("pixels") == [2 * 32 * 32, 1 * 32 * 32, 3 * 32 * 32]
  assert one["foreground_dice"] > 0 and one["foreground_dice"] != one["pooled_foreground_dice"]
  assert {name: two[name] for name in one} == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
def test_every_kind_of_loss_is_that_of_one_device_over_20_steps():
  assert_equal(curves(KINDS))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"class_weights": [0.2, 1.0]}, {"per_case": True}])
def test_weights_of_classes_and_ratios_per_image_are_those_of_one_device(options):
  assert_equal(curves(["dice_cross_entropy"], options))


@pytest.mark.slow
def test_gradients_are_clipped_once_they_are_summed():
  # Far below the size of the gradients, so that clipping decides about each step. Those near the
  # limit are rounded to either side of it.
  for limit in ({"clipvalue": 0.01}, {"clipvalue": 0.0, "clipnorm": 0.02}):
    assert_equal(curves(["dice_cross_entropy"], settings={**SGD, **limit}), tolerance=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["muon", "schedule_free"])
def test_every_optimizer_takes_the_step_of_one_device(name):
  settings = {"optimizer": name, "learning_rate": 0.01, "momentum": 0.9, "clipvalue": 0.0,
              "weight_decay": 0.01}  # fmt: skip
  # Both divide by the root of small second moments, which makes rounding grow.
  assert_equal(curves(["dice_cross_entropy"], settings=settings), tolerance=2e-3)


@pytest.mark.slow
def test_batch_normalization_takes_its_statistics_over_all_devices():
  found = curves(["dice_cross_entropy"], shape={"normalization": "batch"})
  # Sums in another order, 20 times through the statistics: rounding grows.
  assert_equal(found, tolerance=1e-4)
