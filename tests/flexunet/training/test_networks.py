"""The network in training gives logits, the one that is kept their probabilities."""

import flagged
import keras
import numpy as np
import pytest

from flexunet.network import model
from flexunet.objectives import losses
from flexunet.training import devices, networks

# A margin at which a softmax in float32 is 1 for one class and exactly 0 for the others.
MARGIN = 120.0


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return flagged.write_dataset(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("beside", [(), ("--deep_supervision", "--num_layers=3")])
def test_a_network_that_is_sure_of_the_wrong_class_still_learns(data_dir, precision, beside):
  run = flagged.setup(
      data_dir, f"--precision={precision}", "--optimizer=sgd", "--clipvalue=0", "--momentum=0",
      "--schedule=constant", "--warmup_steps=0", "--learning_rate=0.5", "--class_prior=false",
      *beside,
  )  # fmt: skip
  network, kept = run.network, run.kept
  image, label = run.first_batch()
  bias = run.layer("head").bias
  bias.assign([0.0, 0.0, MARGIN])
  assert np.asarray(kept(image)).min() == 0
  network.train_on_batch(image, np.zeros_like(label))
  # By its logit a wrong class has the derivative 1, the true one -1; half of it at this rate, or
  # two thirds of that, the share of the main output among two.
  moved = np.array(bias) - [0, 0, MARGIN]
  assert moved[2] == pytest.approx(-0.5 * (2 / 3 if beside else 1), abs=0.02)
  assert moved[0] == pytest.approx(0.5 * (2 / 3 if beside else 1), abs=0.02)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("truth", [0, 1])
def test_one_output_learns_on_both_sides_of_its_sigmoid(precision, truth):
  with devices.precision(precision):
    twin = model.logits_twin(model.build_model(
        image_size=(8, 8), image_channels=1, num_classes=1, base_filters=2, base_kernels=3,
        num_layers=2, dropout_rate=0.0,
    ))  # fmt: skip
  network = networks.TrainingNetwork(twin.input, twin.outputs[0])
  network.compile(
      keras.optimizers.SGD(0.5), loss=losses.make("cross_entropy", 1, from_logits=True)
  )
  bias = network.get_layer("head").bias
  start = -MARGIN if truth else MARGIN
  bias.assign([start])
  label = np.full((2, 8, 8), truth)
  cost = network.train_on_batch(np.zeros((2, 8, 8, 1)), label)
  assert float(cost) == pytest.approx(MARGIN)
  assert np.array(bias) - start == pytest.approx(0.5 if truth else -0.5, abs=1e-3)


def test_scores_in_training_are_those_of_the_kept_network(data_dir):
  run = flagged.setup(data_dir, "--dropout_rate=0", "--metrics=dice_coef_multiclass")
  image, label = run.first_batch()
  first = run.network.test_on_batch(image, label, return_dict=True)
  target = {"label": label, "volume": np.zeros(len(label), np.int32)}
  second = run.kept.test_on_batch(image, target, return_dict=True)
  # All slices are of one volume: its Dice is that of all pixels together.
  assert first == pytest.approx({name: second[name] for name in first}, rel=1e-5, nan_ok=True)
  assert second["pooled_foreground_dice"] == pytest.approx(first["foreground_dice"], rel=1e-5)
  assert {"loss", "foreground_dice", "dice_coef_multiclass"} <= first.keys()
