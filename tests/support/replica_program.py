"""Trains and validates tiny networks on one device and on two, parts of the CPU; prints JSON.

python replica_program.py curves NAMES OPTIONS SETTINGS SHAPE (JSON), or: validation
"""

import json
import sys

import numpy as np


def _curves(names, options, settings, shape):
  """Returns for each loss its 20 values and the last Dice, and the weights, by one device and two.

  The halves of a batch differ: the first holds the structures and the second next to nothing.
  """
  import tensorflow as tf

  from flexunet import config
  from flexunet.training import devices

  random = np.random.default_rng(0)
  label = np.zeros((4, 16, 16), np.uint8)
  label[0, 3:9, 3:12], label[1, 5:12, 6:9], label[2, 4, 4] = 1, 1, 1
  image = np.clip(random.normal(60, 20, (4, 16, 16, 1)) + 90 * label[..., None], 0, 255)
  weight = np.array([1.0, 1.0, 0.5, 1.0], np.float32)
  data = tf.data.Dataset.from_tensors((image.astype("uint8"), label, weight)).repeat(20).unbatch()
  data = data.batch(4, drop_remainder=True).apply(tf.data.experimental.assert_cardinality(20))
  found = {}
  for name in names:
    for count in (1, 2):
      curve, weights = _train(
          name, options, config.TrainingConfig(**settings), shape, data, devices.strategy(count, 4)
      )
      found.setdefault(name, []).append(curve)
      found.setdefault(f"{name} weights", []).append(weights)
  return found


def _train(loss, options, settings, shape, data, strategy):
  import keras

  from flexunet.network import model
  from flexunet.objectives import losses, metrics
  from flexunet.optimizers import run_optimizer
  from flexunet.training import devices, networks

  keras.utils.set_random_seed(0)
  with devices.scope(strategy):
    twin = model.logits_twin(
        model.build_model(
            image_size=(16, 16), image_channels=1, num_classes=2, base_filters=4, base_kernels=3,
            num_layers=2, dropout_rate=0.0, **shape,
        )
    )  # fmt: skip
    network = networks.TrainingNetwork(twin.input, twin.outputs[0])
    network.compile(
        run_optimizer.make(settings), losses.make(loss, 2, from_logits=True, **options),
        weighted_metrics=metrics.training_metrics(["dice"], 2),
    )  # fmt: skip
  curve = []

  def note(batch, logs):
    curve.append(float(logs["loss"]))

  history = network.fit(
      data, epochs=1, verbose=0, shuffle=False,
      callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=note)],
  ).history  # fmt: skip
  curve.append(history["foreground_dice"][-1])
  return curve, [float(w) for w in np.concatenate([np.ravel(w) for w in network.get_weights()])]


def _validation():
  """Returns the scores of three volumes' slices, by one device and by two.

  The last two slices only fill up: the second device has none of its own in the last batch.
  """
  import keras
  import run_samples
  import tensorflow as tf

  from flexunet.training import devices, networks

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
  return found


def main() -> None:
  import tensorflow as tf

  kind, *words = sys.argv[1:]
  cpu = tf.config.list_physical_devices("CPU")[0]
  tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
  program = {"curves": _curves, "validation": _validation}[kind]
  print(json.dumps(program(*map(json.loads, words))))


if __name__ == "__main__":
  main()
