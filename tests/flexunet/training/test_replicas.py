"""Two devices that share a batch train what one device trains: every loss, clipping, averages."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

# Each loss over 20 steps on one device and on two, whose halves of a batch differ: the first half
# holds the structures and the second next to nothing.
_PROGRAM = """
import json, sys
import keras, numpy as np, tensorflow as tf
from flexunet import config
from flexunet.network import model
from flexunet.objectives import losses, metrics
from flexunet.optimizers import run_optimizer
from flexunet.training import devices, networks

names, options, settings, shape = map(json.loads, sys.argv[1:])
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
random = np.random.default_rng(0)
label = np.zeros((4, 16, 16), np.uint8)
label[0, 3:9, 3:12], label[1, 5:12, 6:9], label[2, 4, 4] = 1, 1, 1
image = np.clip(random.normal(60, 20, (4, 16, 16, 1)) + 90 * label[..., None], 0, 255)
weight = np.array([1.0, 1.0, 0.5, 1.0], np.float32)
data = tf.data.Dataset.from_tensors((image.astype("uint8"), label, weight)).repeat(20).unbatch()
data = data.batch(4, drop_remainder=True).apply(tf.data.experimental.assert_cardinality(20))
settings = config.TrainingConfig(**settings)
found = {}
for name in names:
  for count in (1, 2):
    strategy = devices.strategy(count, 4)
    keras.utils.set_random_seed(0)
    with devices.scope(strategy):
      twin = model.logits_twin(model.build_model(
          image_size=(16, 16), image_channels=1, num_classes=2, base_filters=4, base_kernels=3,
          num_layers=2, dropout_rate=0.0, **shape))
      network = networks.TrainingNetwork(twin.input, twin.outputs[0])
      network.compile(
          run_optimizer.make(settings), losses.make(name, 2, from_logits=True, **options),
          weighted_metrics=metrics.training_metrics(["dice"], 2))
    curve = []
    def note(batch, logs):
      curve.append(float(logs["loss"]))
    history = network.fit(
        data, epochs=1, verbose=0, shuffle=False,
        callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=note)]).history
    curve.append(history["foreground_dice"][-1])
    found.setdefault(name, []).append(curve)
    weights = np.concatenate([np.ravel(w) for w in network.get_weights()])
    found.setdefault(name + " weights", []).append([float(w) for w in weights])
print(json.dumps(found))
"""
# Validates on one device and on two: slices of three volumes. The last two only fill up, so that
# the second device has none of its own in the last batch.
_VALIDATION = """
import json
import keras, numpy as np, run_samples, tensorflow as tf
from flexunet.training import devices, networks

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
random = np.random.default_rng(0)
image = random.integers(0, 256, (8, 32, 32, 1)).astype("uint8")
target = {"label": image[..., 0] // 90, "volume": np.array([2, 0, 1, 0, 2, 2, 1, 1], np.int32)}
weight = np.array([1.0] * 6 + [0.0] * 2, np.float32)
data = tf.data.Dataset.from_tensor_slices((image, target, weight)).batch(4, drop_remainder=True)
found = []
for count in (1, 2):
  keras.utils.set_random_seed(0)
  with devices.scope(devices.strategy(count, 4)):
    run_config = run_samples.run_config()
    network = networks.build(run_config)
    networks.compile_model(network, run_config)
    kept = networks.evaluation_network(network, run_config, 3)
  for _ in range(2):  # The second one begins at zero.
    scores = kept.evaluate(data, verbose=0, return_dict=True)
  found.append({name: float(value) for name, value in scores.items()})
  found[-1]["pixels"] = [float(n) for n in np.array(kept.volume_scores.counts)[:, 1, 3]]
print(json.dumps(found))
"""
SGD = {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9, "clipvalue": 0.0}
ALL = ["cross_entropy", "dice", "dice_cross_entropy", "focal", "tversky", "iou", "bce_dice",
       "bce_iou", "basnet_hybrid"]  # fmt: skip


def curves(names, options=None, settings=SGD, shape=None):
  arguments = [names, options or {}, settings, shape or {"normalization": "none"}]
  done = subprocess.run(
      [sys.executable, "-c", _PROGRAM, *map(json.dumps, arguments)],
      capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.strip().splitlines()[-1])


def assert_equal(found, tolerance=1e-5):
  for name, (one, two) in found.items():
    np.testing.assert_allclose(two, one, atol=tolerance, rtol=tolerance, err_msg=name)
    if not name.endswith("weights"):
      assert len(one) == 21 and abs(one[19] - one[0]) > 1e-3, name  # It learns.


@pytest.mark.slow
def test_a_validation_scores_each_volume_as_on_one_device():
  done = subprocess.run(
      [sys.executable, "-c", _VALIDATION], capture_output=True, text=True, check=False,
      env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-3000:]
  one, two = json.loads(done.stdout.strip().splitlines()[-1])
  assert one.pop("pixels") == [2 * 32 * 32, 1 * 32 * 32, 3 * 32 * 32]
  assert one["foreground_dice"] > 0 and one["foreground_dice"] != one["pooled_foreground_dice"]
  assert {name: two[name] for name in one} == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
def test_every_loss_is_that_of_one_device_over_20_steps():
  assert_equal(curves(ALL))


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
