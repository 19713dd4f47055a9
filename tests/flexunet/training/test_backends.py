"""The same weights, losses and metrics give the same numbers on every Keras backend."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys

import pytest

# The backends of Keras beside TensorFlow, each an extra of setup.cfg.
OTHER_BACKENDS = [
    pytest.param(name, marks=pytest.mark.needs_extra(name)) for name in ("jax", "torch")
]
# A free size that needs padding, every kind of our own layer, one step of training.
_PROGRAM = """
import json, sys
import keras, numpy as np
from flexunet.network import model
from flexunet.objectives import losses, metrics

random = np.random.default_rng(0)
images = random.integers(0, 256, (2, 13, 18, 1)).astype("float32")
label = random.integers(0, 3, (2, 13, 18))
network = model.build_model(
      image_size=None, image_channels=1, num_classes=3, base_filters=4, base_kernels=5,
      num_layers=2, dropout_rate=0.0, normalization=sys.argv[1],
    input_normalization="per_image", activation="mish",
)
# Kernels as they start, the rest positive: a running variance has to be.
network.set_weights([
    random.normal(0, 1, w.shape) * (2 / np.prod(w.shape[:-1])) ** 0.5 if w.ndim > 1
    else random.uniform(0.5, 1, w.shape) for w in network.get_weights()
])
probability = network.predict(images, verbose=0)
weight = np.array([1.0, 0.5], "float32")
found = {"probability": float(probability[1, 12, 17, 2]), "mean": float((probability**2).mean())}
def costs(*batch):
  return {name: losses.make(name, 3)(*batch) for name in losses.LOSSES}
if keras.config.backend() == "jax":  # Otherwise it would compile each operation by itself.
  import jax
  costs = jax.jit(costs)
found |= {name: float(value) for name, value in costs(label, probability, weight).items()}
confusion = metrics.ConfusionMetrics(3)
confusion.update_state(label, probability, weight)
found |= {name: float(value) for name, value in confusion.result().items()}
network.compile(
    keras.optimizers.SGD(0.05), losses.make("basnet_hybrid", 3),
    weighted_metrics=metrics.training_metrics(["dice_coef_multiclass", "dice"], 3),
)
options = {"sample_weight": weight, "epochs": 3, "batch_size": 2, "verbose": 0}
history = network.fit(images, label, **options).history
found |= {f"fit_{name}": values[-1] for name, values in history.items()}
print(json.dumps(found))
"""


@functools.lru_cache
def numbers(
    backend: str, normalization: str, variables: tuple[tuple[str, str], ...]
) -> dict[str, float]:
  done = subprocess.run(
      [sys.executable, "-c", _PROGRAM, normalization],
      env={**os.environ, **dict(variables), "KERAS_BACKEND": backend},
      capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("backend", OTHER_BACKENDS)
@pytest.mark.parametrize("normalization", ["batch", "group"])
def test_numbers_agree_with_tensorflow(backend, normalization, jax_cache):
  variables = tuple(jax_cache.items())
  expected = numbers("tensorflow", normalization, variables)
  found = numbers(backend, normalization, variables)
  assert found == pytest.approx(expected, rel=2e-4, abs=2e-5)
  # The training step did something.
  assert found["fit_loss"] != pytest.approx(found["basnet_hybrid"], rel=1e-3)


@pytest.mark.slow
def test_a_compiled_step_gives_the_same_loss_and_scores():
  import keras
  import numpy as np

  from flexunet.network import model
  from flexunet.objectives import losses, metrics

  random = np.random.default_rng(0)
  images, label = random.integers(0, 256, (2, 13, 18, 1)), random.integers(0, 3, (2, 13, 18))
  logs = []
  for compiled in (False, True):
    keras.utils.set_random_seed(0)
    network = model.build_model(
      image_size=None, image_channels=1, num_classes=3, base_filters=4, base_kernels=5,
      num_layers=3, dropout_rate=0.0, normalization="batch")
    network.compile(
        "sgd", losses.make("dice_cross_entropy", 3), jit_compile=compiled,
        weighted_metrics=metrics.training_metrics(["dice_coef_multiclass", "dice"], 3),
    )  # fmt: skip
    for _ in range(2):
      found = network.train_on_batch(images, label, np.array([1.0, 0.0]), return_dict=True)
    logs.append(found)
  assert logs[0] == pytest.approx(logs[1], rel=1e-4, nan_ok=True)


_REPLICAS = """
import json
import keras, numpy as np, tensorflow as tf
from flexunet.network import model
from flexunet.objectives import losses, metrics

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
random = np.random.default_rng(0)
images, label = random.integers(0, 256, (8, 16, 24, 1)), random.integers(0, 3, (8, 16, 24))
logs = []
for strategy in (tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
  keras.utils.set_random_seed(0)
  with strategy.scope():
    network = model.build_model(
      image_size=(16, 24), image_channels=1, num_classes=3, base_filters=4, base_kernels=5,
      num_layers=3, dropout_rate=0.0)
    watched = metrics.training_metrics(["dice_coef_multiclass", "dice"], 3)
    network.compile("sgd", losses.make("cross_entropy", 3), weighted_metrics=watched)
  data = tf.data.Dataset.from_tensor_slices((images, label, np.ones(8, "float32"))).batch(4)
  logs.append({name: v[-1] for name, v in network.fit(data, epochs=3, verbose=0).history.items()})
print(json.dumps(logs))
"""


@pytest.mark.slow
def test_two_replicas_give_the_loss_and_scores_of_one():
  done = subprocess.run(
      [sys.executable, "-c", _REPLICAS], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr[-2000:]
  one, two = json.loads(done.stdout.strip().splitlines()[-1])
  assert two == pytest.approx(one, rel=1e-4)
