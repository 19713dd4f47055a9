"""Frames larger than a network's are answered in tiles as if they were answered whole."""

import dataclasses

import numpy as np
import pytest
import run_samples

from flexunet.core.errors import InputError
from flexunet.network import cost
from flexunet.prediction import tiles
from flexunet.prediction.predictor import Predictor
from flexunet.prediction.tiles import TileOptions, Tiler

# Two stages of 3x3 kernels.
SHAPE = run_samples.published(
    image_size=(64, 64), image_channels=1, num_classes=3, base_filters=4, base_kernels=3,
    num_layers=2, dropout_rate=0.0,
)  # fmt: skip


def tiler(tile="auto", overlap=None, free_bytes=None, **shape) -> Tiler:
  model = dataclasses.replace(SHAPE, **shape)
  return Tiler(model, TileOptions.of(tile, overlap), free_bytes)


@pytest.mark.parametrize(
    ("length", "size", "overlap", "multiple"),
    [(200, 64, 16, 8), (208, 64, 63 - 8, 8), (72, 64, 32, 8), (1000, 512, 64, 1), (96, 32, 0, 16),
     (640, 128, 90, 128 // 4)],
)  # fmt: skip
def test_weights_sum_to_one_and_tiles_reach_from_end_to_end(length, size, overlap, multiple):
  axis = tiles.axis_of(length, size, overlap, multiple, radius=5)
  total = np.zeros(length)
  for start, weight in zip(axis.starts, axis.weights, strict=True):
    assert start % multiple == 0 and weight.shape == (size,)
    total[start : start + size] += weight
  assert np.abs(total - 1).max() < 1e-6
  assert axis.starts[0] == 0 and axis.starts[-1] == length - size
  assert min(np.diff(axis.starts)) > 0
  assert max(np.diff(axis.starts)) <= size - overlap
  # At the border of the frame there is one tile, and it counts.
  assert axis.weights[0][0] == 1 and axis.weights[-1][-1] == 1


def test_weights_fall_off_over_the_overlap_and_are_zero_in_its_outermost_quarter():
  axis = tiles.axis_of(112, 64, 16, 8, radius=100)
  (first, second), own = axis.weights, slice(48, 64)  # The overlap, 16 pixels.
  assert axis.starts == [0, 48]
  assert first[:52].tolist() == [1] * 52  # 4 margin pixels of the second tile are not used.
  assert first[60:].tolist() == [0] * 4 and second[:4].tolist() == [0] * 4
  assert (np.diff(first[51:61]) < 0).all() and first[52] > 0.98 and first[59] < 0.02
  assert np.allclose(first[own] + second[:16], 1)


def real_network(**shape):
  import keras

  from flexunet.network import model

  keras.utils.set_random_seed(4)
  knobs = {**dataclasses.asdict(SHAPE), "image_size": None, **shape}
  made = model.build_model(**knobs)
  return lambda batch: np.asarray(made(batch, training=False), np.float32)


@pytest.fixture(scope="module")
def network():
  return real_network()


def noise(*shape: int) -> np.ndarray:
  return np.random.default_rng(5).integers(0, 256, shape, np.uint8)


def exact(cut: tiles.Tiling, radius: int) -> np.ndarray:
  """Returns where every tile that counts reaches `radius` further, or to the border."""
  masks = []
  for length, axis in zip(cut.frame_hw, (cut.rows, cut.columns), strict=True):
    good = np.ones(axis.starts[-1] + axis.size, bool)
    for start, weight in zip(axis.starts, axis.weights, strict=True):
      stop = start + axis.size
      places = np.arange(start, stop)
      near = (places < start + radius) & (start > 0)
      near |= (places >= stop - radius) & (stop < len(good))
      good[places[near & (weight > 0)]] = False
    masks.append(good[:length])
  return masks[0][:, None] & masks[1]


@pytest.mark.parametrize("height, width", [(200, 171), (130, 60), (65, 300)])
def test_tiles_answer_as_the_whole_frame_away_from_seams(network, height, width):
  cutter = tiler((64, 64), 24)
  cut = cutter.tiling((height, width))
  frames = noise(2, height, width, 1)
  found = tiles.answer(network, frames, cut, batch_size=5)
  difference = np.abs(found - network(frames)).max(axis=(0, -1))
  away = exact(cut, cutter.radius)
  assert found.shape == (2, height, width, 3)
  assert 0.2 < away.mean() < 1
  assert difference[away].max() < 1e-5 < difference.max()


def test_an_overlap_of_four_radii_leaves_no_seam_at_all(network):
  cutter = tiler(128, 64)
  assert 4 * cutter.radius <= 64  # So that the margin holds what a tile's edge has changed.
  frames = noise(1, 301, 260, 1)
  found = tiles.answer(network, frames, cutter.tiling((301, 260)), batch_size=4)
  assert np.abs(found - network(frames)).max() < 1e-5


def test_a_constant_image_shows_no_seam(network):
  frames = np.full((1, 300, 300, 1), 130, np.uint8)
  cutter = tiler(128, 64)
  found = tiles.answer(network, frames, cutter.tiling((300, 300)), batch_size=4)
  inside = found[0, cutter.radius : -cutter.radius, cutter.radius : -cutter.radius]
  # The answer repeats with the pooling grid, by 2 pixels, from end to end.
  assert np.abs(inside[2:] - inside[:-2]).max() < 1e-6
  assert np.abs(inside[:, 2:] - inside[:, :-2]).max() < 1e-6
  # However the network answers: weights alone add nothing.
  flat = tiles.answer(lambda one: np.full((*one.shape[:3], 2), 0.3), frames,
                      tiler(64, 20).tiling((300, 300)), 7)  # fmt: skip
  assert np.abs(flat - 0.3).max() < 1e-6


@pytest.mark.parametrize("shape", [{"num_layers": 3}, {"base_kernels": 7, "dilation": 2}])
def test_the_radius_holds_for_deeper_and_wider_networks(shape):
  other = real_network(**shape)
  cutter = tiler(256, 192, **shape)
  frames = noise(1, 400, 300, 1)
  cut = cutter.tiling((400, 300))
  difference = np.abs(tiles.answer(other, frames, cut, 2) - other(frames)).max(axis=(0, -1))
  away = exact(cut, cutter.radius)
  assert away.mean() > 0.2 and difference[away].max() < 1e-5


def test_a_frame_that_fits_is_not_cut_and_a_long_one_only_along_its_length():
  assert tiler(64).tiling((64, 64)) is None and tiler(64).tiling((50, 60)) is None
  assert tiler("none").tiling((9000, 9000)) is None
  cut = tiler(64, 16).tiling((40, 200))
  assert cut.tile_hw == (40, 64) and len(cut.rows.starts) == 1 and len(cut.columns.starts) == 4
  assert str(cut) == (
      "slices of 40x200 pixels in 1 x 4 tiles of 40x64 that overlap by 16 (--tile)"
  )


def test_tiles_are_multiples_of_the_coarsest_grid_and_overlap_at_most_by_half_by_default():
  cut = tiler(50, num_layers=4).tiling((300, 300))
  assert cut.tile_hw == (56, 56) and cut.overlap == 28
  assert tiler(512).tiling((600, 600)).overlap == 64


def test_auto_cuts_what_would_take_too_much_memory_into_the_largest_tiles_that_do_not():
  # 4 * (6 * 4 filters + 2 * 3 classes + 2 * 1 channels) bytes a pixel.
  assert cost.prediction_bytes(SHAPE, (100, 200)) == 128 * 100 * 200
  limit = 128 * 256 * 256
  cutter = tiler(free_bytes=4 * limit)  # A quarter of what is free may be taken.
  assert cutter.tiling((256, 256)) is None
  cut = cutter.tiling((300, 1000))
  assert cost.prediction_bytes(SHAPE, cut.tile_hw) <= limit
  # 256 pixels, advancing by 192, need 2 and 5 tiles; so many of 182 and 252 are enough.
  assert cut.num_tiles == 2 * 5 and cut.tile_hw == (182, 252)
  assert "whole they would take 0.0 GB, by --tile=auto" in str(cut)
  # A short axis stays whole, and the long one has what that leaves.
  flat = cutter.tiling((64, 5000))
  assert flat.tile_hw[0] == 64 and 800 < flat.tile_hw[1] <= 1024
  # Never below the size of the training, which the device has borne.
  assert min(tiler(free_bytes=1000).tiling((300, 1000)).tile_hw) >= 64
  # With memory enough the bound is the same on all machines: 2 GiB are 4096 x 4096 pixels.
  assert tiler(free_bytes=2**40).tiling((4096, 4096)) is None
  assert tiler().tiling((4096, 4098)).num_tiles == 2


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [
        ("large", None, "--tile must be auto, none, or one or two numbers"),
        ("64,64,64", None, "--tile must be auto"),
        ("0", None, "from 1 to"),
        (64, 64, "--overlap must be smaller than --tile, 64x64"),
        ("none", 8, "--tile=none excludes"),
        ((64, 32), 32, "smaller than --tile, 64x32"),
        ("auto", -1, "overlap must be >= 0"),
    ],
)
def test_options_that_make_no_tiles_are_refused(tile, overlap, message):
  with pytest.raises(InputError, match=message):
    TileOptions.of(tile, overlap)


def test_an_overlap_that_leaves_no_step_is_refused():
  with pytest.raises(InputError, match="at most 56 with --tile=64x64.*multiples of 8"):
    tiler(64, 60, num_layers=4)


class Recording(run_samples.BrightnessNetwork):
  """Also answers by the first channel alone, as tests of several channels need."""


def predictor(tile, overlap=None, network=None, **options) -> tuple[Predictor, Recording]:
  network = network or Recording()
  batch_size = options.pop("batch_size", 8)
  found = Predictor(
      network, run_samples.run_config(**options), tiles=TileOptions.of(tile, overlap),
      batch_size=batch_size,
  )  # fmt: skip
  return found, network


GREYS = np.array([10, 120, 240], np.uint8)


def test_a_large_slice_comes_back_pixel_by_pixel_from_tiles_of_the_trained_size():
  truth = np.random.default_rng(1).integers(0, 3, (2, 100, 45)).astype(np.uint8)
  chosen, network = predictor(32, 8, image_size=(32, 32), batch_size=4)
  assert np.array_equal(np.stack(chosen.labels(GREYS[truth])), truth)
  assert {shape[1:3] for shape in network.shapes} == {(32, 32)}
  assert max(shape[0] for shape in network.shapes) == 4
  (line,) = chosen.pass_lines()
  assert line.startswith("Predicted slices of 100x45 pixels in 4 x 2 tiles of 32x32")


def test_tiles_see_neighbouring_slices_and_the_box_of_the_volume():
  class Middle(Recording):
    def predict_on_batch(self, batch):
      assert batch.shape[-1] == 3
      return super().predict_on_batch(batch[..., 1:2])

  truth = np.zeros((3, 80, 90), np.uint8)
  truth[:, 10:70, 20:85] = 1
  truth[1, 30:50, 40:60] = 2
  chosen, network = predictor(
      32, 8, Middle(), image_size=(32, 32), image_channels=3, context_slices=1
  )
  chosen._crops = True
  assert np.array_equal(np.stack(chosen.labels(GREYS[truth])), truth)
  assert {shape[1:3] for shape in network.shapes} == {(32, 32)}


def test_finer_pixels_than_in_training_are_scaled_first_and_then_cut():
  network = Recording()
  run_config = run_samples.with_facts(
      run_samples.run_config(image_size=(32, 32)),
      pixel_sizes={name: [1.0, 1.0] for name in ("low_mm", "median_mm", "high_mm")},
  )
  chosen = Predictor(network, run_config, tiles=TileOptions.of(32, 8))
  truth = np.repeat(np.array([[0], [1], [2], [1]]), 30, axis=1).repeat(8, axis=0)
  (found,) = chosen.labels([GREYS[truth]], (2.0, 2.0))
  assert "slices of 64x60 pixels" in chosen.pass_lines()[0]
  assert np.array_equal(found[4::8], truth[4::8])
  assert {shape[1:3] for shape in network.shapes} == {(32, 32)}


def of_images(resize_mode: str, input_scale=None):
  """Returns the config of a run on images of unknown pixel size, scaled to 32 x 32."""
  return run_samples.with_facts(
      run_samples.run_config((32, 32), resize_mode), input_scale=input_scale, pixel_sizes=None
  )


@pytest.mark.parametrize("mode", ["fit", "stretch"])
def test_a_run_that_scales_its_images_gives_tiles_their_own_resolution(mode):
  # The published tiledinfer: a network of 32 x 32, an image of 100 x 45, tiles of 32.
  truth = np.random.default_rng(1).integers(0, 3, (1, 100, 45)).astype(np.uint8)
  network = Recording()
  chosen = Predictor(network, of_images(mode), tiles=TileOptions.of(32, 8))
  assert np.array_equal(chosen.labels(GREYS[truth])[0], truth[0])
  assert {shape[1:3] for shape in network.shapes} == {(32, 32)}
  assert "slices of 100x45 pixels in 4 x 2 tiles" in chosen.pass_lines()[0]
  # Without tiles of a given size the image is scaled to the network's input, as in training.
  whole = Predictor(Recording(), of_images(mode))
  whole.labels(GREYS[truth])
  assert whole.pass_lines() == []


def test_tiles_of_a_run_that_scaled_its_images_have_the_scale_of_the_training():
  truth = np.zeros((200, 120), np.uint8)
  truth[40:120, 20:100] = 1
  chosen = Predictor(Recording(), of_images("fit", (0.5, 0.5)), tiles=TileOptions.of(32, 8))
  (found,) = chosen.labels([GREYS[truth]])
  assert "slices of 100x60 pixels" in chosen.pass_lines()[0]
  assert (found != truth).mean() < 0.01


def test_tiles_leave_the_pixel_size_of_the_training_in_charge_where_it_is_known():
  run_config = run_samples.with_facts(
      run_samples.run_config((32, 32), "fit"),
      pixel_sizes={name: [2.0, 2.0] for name in ("low_mm", "median_mm", "high_mm")},
  )
  chosen = Predictor(Recording(), run_config, tiles=TileOptions.of(32, 8))
  chosen.labels([np.full((128, 128), 120, np.uint8)], (0.5, 0.5))
  assert chosen.pass_lines() == []  # 64 x 64 mm are 32 x 32 pixels, as in training.
  chosen.labels([np.full((128, 128), 120, np.uint8)], (1.0, 1.0))
  assert "slices of 64x64 pixels" in chosen.pass_lines()[0]


def test_sizes_beyond_three_are_counted():
  cutter = tiler(64, 16)
  for edge in (100, 110, 120, 130, 140):
    cutter.tiling((edge, edge))
  assert cutter.lines()[3] == "slices of 2 more sizes in tiles" and len(cutter.lines()) == 4
