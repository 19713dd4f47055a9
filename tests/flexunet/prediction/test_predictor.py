"""Slices of any size go through a network and come back on their own grid."""

import dataclasses

import numpy as np
import pytest
import run_samples

from flexunet import run_folder
from flexunet.core.errors import InputError
from flexunet.pipelines.laterality import Laterality
from flexunet.prediction.predictor import Predictor, load_model, to_label

# Grey values of the three classes, as `BrightnessNetwork` tells them apart.
GREYS = np.array([10, 120, 240], np.uint8)


def checkered(height: int, width: int, count: int, cell: int = 6) -> np.ndarray:
  """Returns labels uint8 [count, H, W] of rectangles, another pattern on each slice."""
  rows, columns = np.arange(height)[:, None] // cell, np.arange(width)[None] // cell
  return np.stack([(rows + 2 * columns + k) % 3 for k in range(count)]).astype(np.uint8)


def predictor(network=None, **options) -> Predictor:
  config_options = {k: options.pop(k) for k in ("image_size", "resize_mode") if k in options}
  return Predictor(
      network or run_samples.BrightnessNetwork(),
      run_samples.run_config(**config_options),
      **options,
  )


def test_padded_slices_come_back_pixel_by_pixel():
  truth = checkered(20, 27, 5)
  found = predictor(image_size=(32, 32), resize_mode="pad").labels(GREYS[truth])
  assert np.array_equal(np.stack(found), truth)


def test_slices_larger_than_a_padding_network_are_not_refused():
  class AnySize(run_samples.BrightnessNetwork):
    pass

  network = AnySize()
  chosen = predictor(network, image_size=(16, 16), resize_mode="pad")
  chosen._any_size_model = network  # What `accept_any_size` makes of a real model.
  truth = checkered(20, 12, 3)
  assert np.array_equal(np.stack(chosen.labels(GREYS[truth])), truth)
  assert network.shapes == [(4, 20, 16, 1)]  # Grown where needed, filled up to a power of two.


@pytest.mark.parametrize("mode", ["fit", "stretch"])
def test_scaled_slices_come_back_at_their_own_size(mode):
  truth = checkered(60, 42, 2, cell=14)
  found = np.stack(predictor(image_size=(32, 32), resize_mode=mode).labels(GREYS[truth]))
  assert found.shape == truth.shape
  inner = np.zeros(truth.shape, bool)  # Away from edges, where halving the size blurs.
  inner[:, 4::14, 4::14] = inner[:, 9::14, 9::14] = True
  assert np.array_equal(found[inner], truth[inner])


def test_batches_have_few_shapes():
  network = run_samples.BrightnessNetwork()
  predictor(network, batch_size=4).labels(GREYS[checkered(20, 20, 9)])
  assert [shape[0] for shape in network.shapes] == [4, 4, 1]


def test_slices_of_different_sizes_keep_their_order():
  truths = [checkered(10 + k, 30 - k, 1)[0] for k in range(5)]
  found = predictor(batch_size=2).labels([GREYS[truth] for truth in truths])
  assert all(np.array_equal(a, b) for a, b in zip(found, truths, strict=True))


def test_a_grey_slice_fills_all_channels_of_the_network():
  network = run_samples.BrightnessNetwork()
  run_config = run_samples.run_config(image_channels=3)
  truth = checkered(20, 20, 2)
  found = Predictor(network, run_config).labels(GREYS[truth])
  assert network.shapes == [(2, 32, 32, 3)]
  assert np.array_equal(np.stack(found), truth)


def test_one_sigmoid_output_becomes_two_classes():
  class Sigmoid:
    def predict_on_batch(self, batch):
      return np.asarray(batch, np.float32) / 255

  chosen = Predictor(Sigmoid(), run_samples.run_config(num_classes=1))
  image = np.array([[0, 127], [128, 255]], np.uint8)
  (probability,) = chosen.probabilities([image])
  assert probability.shape == (2, 2, 2)
  assert to_label(probability).tolist() == [[0, 0], [1, 1]]


def test_deep_supervision_gives_its_main_output():
  class Two(run_samples.BrightnessNetwork):
    def predict_on_batch(self, batch):
      return [super().predict_on_batch(batch), None]

  truth = checkered(8, 8, 1)
  assert np.array_equal(predictor(Two()).labels(GREYS[truth])[0], truth[0])


def test_mirroring_averages_with_the_mirrored_answer():
  class LeftBlind:
    """Sees nothing in the left half of its input."""

    def predict_on_batch(self, batch):
      answer = run_samples.BrightnessNetwork().predict_on_batch(batch)
      answer[:, :, : batch.shape[2] // 2] = (1.0, 0.0, 0.0)
      return answer

  image = np.full((32, 32), 120, np.uint8)
  (probability,) = predictor(LeftBlind(), mirror=True).probabilities([image])
  # Each side is seen by one of the two answers: (0.1 + 1) / 2 and (0.8 + 0) / 2.
  assert np.allclose(probability[..., 0], 0.55) and np.allclose(probability[..., 1], 0.4)


def test_mirroring_is_refused_where_the_run_decided_against_it():
  run_config = run_samples.run_config()
  reason = "the class names tell left from right"
  sided = dataclasses.replace(run_config, laterality=Laterality(False, reason))
  with pytest.raises(InputError, match=f"rules out: {reason}"):
    Predictor(None, sided, mirror=True)
  assert Predictor(None, sided).num_classes == 3



def test_neighbours_become_channels_and_ends_repeat():
  class Middle(run_samples.BrightnessNetwork):
    def predict_on_batch(self, batch):
      self.batch = batch
      return super().predict_on_batch(batch[..., 1:2])

  network = Middle()
  chosen = predictor(network)
  chosen._context = 1
  slices = np.stack([np.full((32, 32), grey, np.uint8) for grey in GREYS])
  assert [label[0, 0] for label in chosen.labels(slices)] == [0, 1, 2]
  assert network.batch[:3, 0, 0].tolist() == [[10, 10, 120], [10, 120, 240], [120, 240, 240]]


def test_a_run_without_a_model_says_so(tmp_path):
  with pytest.raises(InputError, match="first validation"):
    load_model(run_folder.RunFolder(tmp_path))


def test_a_damaged_model_names_its_file(tmp_path):
  run = run_folder.RunFolder(tmp_path)
  run.write_config(run_samples.run_config())
  run.model_keras.write_bytes(b"no zip")
  with pytest.raises(InputError, match=r"model\.keras must be a model"):
    load_model(run)


def test_a_size_that_is_not_set_is_refused():
  run_config = run_samples.run_config()
  model = dataclasses.replace(run_config.model, image_size=None)
  with pytest.raises(InputError, match="image_size"):
    Predictor(None, dataclasses.replace(run_config, model=model))
