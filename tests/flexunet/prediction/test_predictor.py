"""Slices of any size go through a network and come back on their own grid."""

import dataclasses

import numpy as np
import pytest
import run_samples

from flexunet import run_folder
from flexunet.core.errors import InputError
from flexunet.prediction import compiled_step
from flexunet.prediction.predictor import Predictor, load_model, to_label
from flexunet.prediction.test_time import ViewOptions

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
  network = run_samples.BrightnessNetwork()
  chosen = predictor(network, image_size=(16, 16), resize_mode="pad")
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


def trained_at(low_mm, median_mm=None, high_mm=None, **options):
  """Returns the config of a run whose input had pixels of these sizes, the same on both axes."""
  sizes = [low_mm, median_mm or low_mm, high_mm or low_mm]
  names = ("low_mm", "median_mm", "high_mm")
  facts = {"pixel_sizes": {name: [size] * 2 for name, size in zip(names, sizes, strict=True)}}
  return run_samples.with_facts(run_samples.run_config(**options), **facts)


class Measuring(run_samples.BrightnessNetwork):
  """Also keeps how many rows and columns of the first slice are not border."""

  def predict_on_batch(self, batch):
    seen = batch[0].max(axis=-1)
    self.seen_hw = (int(seen.any(axis=1).sum()), int(seen.any(axis=0).sum()))
    return super().predict_on_batch(batch)


@pytest.mark.parametrize(
    ("spacing_mm", "seen_hw"),
    [
        ((1.0, 1.0), (20, 24)),
        ((1.6, 1.0), (32, 24)),  # 20 rows of 1.6 mm are 32 of 1 mm.
        ((0.5, 0.5), (10, 12)),
        ((1.04, 0.96), (20, 24)),
        ((np.nan, np.nan), (20, 24)),
        ((9.0, 9.0), (20, 24)),  # Not believed.
    ],
)
def test_the_network_sees_pixels_of_the_size_of_its_training(spacing_mm, seen_hw):
  network = Measuring()
  truth = np.repeat(np.array([[0], [1], [2], [1]]), 24, axis=1).repeat(5, axis=0)
  chosen = Predictor(network, trained_at(1.0, image_size=(40, 40)))
  (found,) = chosen.labels([GREYS[truth]], spacing_mm)
  assert network.seen_hw == seen_hw
  # On the slice's own grid, and right but for the rows where two classes meet.
  assert found.shape == truth.shape
  assert np.array_equal(found[2::5], truth[2::5])


def test_within_the_range_of_training_nothing_is_interpolated():
  network = Measuring()
  truth = checkered(20, 24, 3)
  chosen = Predictor(network, trained_at(0.5, 0.8, 2.0, image_size=(40, 40)))
  assert np.array_equal(np.stack(chosen.labels(GREYS[truth], (1.9, 0.6))), truth)
  assert network.seen_hw == (20, 24)


def test_a_scaling_network_sees_pixels_of_its_training_whatever_the_field_of_view():
  # Training scaled slices of 64 x 64 mm to 32 x 32: pixels of 2 mm. A slice of 128 x 128 mm would
  # be squeezed into the same frame at 4 mm; it needs 64 x 64 pixels.
  network = Measuring()
  chosen = Predictor(network, trained_at(2.0, image_size=(32, 32), resize_mode="fit"))
  pixels = np.full((128, 128), 120, np.uint8)
  assert (chosen.labels([pixels], (0.5, 0.5))[0] == 1).all()
  assert network.seen_hw == (32, 32)
  assert (chosen.labels([pixels], (1.0, 1.0))[0] == 1).all()
  assert network.seen_hw == (64, 64)


def test_a_larger_frame_gets_fewer_slices_in_a_step():
  network = run_samples.BrightnessNetwork()
  chosen = Predictor(network, trained_at(1.0, image_size=(32, 32)), batch_size=8)
  assert len(chosen.labels(np.full((8, 32, 32), 120, np.uint8), (2.0, 2.0))) == 8
  # Four times the pixels: a quarter of the batch.
  assert network.shapes == [(2, 64, 64, 1)] * 4


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
  class Sigmoid(run_samples.NumpyNetwork):
    num_classes = 1

    def predict_on_batch(self, batch):
      return np.asarray(batch, np.float32) / 255

  chosen = Predictor(Sigmoid(), run_samples.run_config(num_classes=1))
  image = np.array([[0, 127], [128, 255]], np.uint8)
  (probability,) = chosen.probabilities([image])
  assert probability.shape == (2, 2, 2)
  assert to_label(probability).tolist() == [[0, 0], [1, 1]]


def test_mirroring_averages_with_the_mirrored_answer():
  class LeftBlind(run_samples.NumpyNetwork):
    """Sees nothing in the left half of its input."""

    def predict_on_batch(self, batch):
      answer = run_samples.BrightnessNetwork().predict_on_batch(batch)
      answer[:, :, : batch.shape[2] // 2] = (1.0, 0.0, 0.0)
      return answer

  image = np.full((32, 32), 120, np.uint8)
  (probability,) = predictor(LeftBlind(), views=ViewOptions.of("mirror")).probabilities([image])
  # Each side is seen by one of the two answers: (0.1 + 1) / 2 and (0.8 + 0) / 2.
  assert np.allclose(probability[..., 0], 0.55) and np.allclose(probability[..., 1], 0.4)


def test_neighbours_become_channels_and_ends_repeat():
  class Middle(run_samples.BrightnessNetwork):
    def predict_on_batch(self, batch):
      self.batch = batch
      return super().predict_on_batch(batch[..., 1:2])

  network = Middle()
  chosen = Predictor(network, run_samples.run_config(image_channels=3, context_slices=1))
  slices = np.stack([np.full((32, 32), grey, np.uint8) for grey in GREYS])
  assert [label[0, 0] for label in chosen.labels(slices)] == [0, 1, 2]
  assert network.batch[:3, 0, 0].tolist() == [[10, 10, 120], [10, 120, 240], [120, 240, 240]]


@pytest.mark.parametrize("context", [0, 1])
def test_scans_of_many_sizes_are_traced_once(monkeypatch, context):
  traced = []
  bring = compiled_step.frame_image
  monkeypatch.setattr(
      compiled_step, "frame_image", lambda *given: traced.append(given) or bring(*given)
  )

  class Middle(run_samples.BrightnessNetwork):
    def predict_on_batch(self, batch):
      return super().predict_on_batch(batch[..., context : context + 1])

  chosen = Predictor(
      Middle(), run_samples.run_config(image_channels=1 + 2 * context, context_slices=context),
      batch_size=4,
  )  # fmt: skip
  for height, width, count in ((20, 24, 6), (12, 31, 1), (32, 32, 3)):
    truth = checkered(height, width, count)
    assert np.array_equal(np.stack(chosen.labels(GREYS[truth])), truth)
  assert len(traced) == 1
  for edge in (40, 50):  # Frames that grow share a graph too.
    truth = checkered(edge, 20, 2)
    assert np.array_equal(np.stack(chosen.labels(GREYS[truth])), truth)
  assert len(traced) == 2


def test_a_temperature_flattens_the_answer():
  (probability,) = predictor(temperature=2.0).probabilities([np.full((4, 4), 120, np.uint8)])
  # Square roots of 0.1, 0.8, 0.1, brought to a sum of 1.
  expected = np.sqrt([0.1, 0.8, 0.1]) / np.sqrt([0.1, 0.8, 0.1]).sum()
  assert np.allclose(probability, expected, atol=1e-6)


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
