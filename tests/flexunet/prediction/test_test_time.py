"""Views of a slice and the way back, and which runs may have them."""

import dataclasses

import numpy as np
import pytest
import run_samples
import tensorflow as tf

from flexunet.core.errors import InputError
from flexunet.imaging.slicing import SlicePlan
from flexunet.pipelines.augmentation.config import AugmentationConfig
from flexunet.pipelines.laterality import Laterality
from flexunet.prediction import test_time
from flexunet.prediction.predictor import Predictor
from flexunet.prediction.test_time import View, ViewOptions

EXACT = [View(turns, mirrored) for mirrored in (False, True) for turns in range(4)]
FREE = Laterality()
NAMED = Laterality(False, "the class names tell left from right")
SAGITTAL = Laterality(False, "slices are sagittal, and no body has front and back exchanged")


@pytest.mark.parametrize("view", EXACT, ids=str)
def test_the_inverse_of_a_mirrored_or_turned_view_is_exact(view):
  frames = tf.constant(np.random.default_rng(0).integers(0, 256, (2, 5, 8, 3), np.uint8))
  shown = view.forward(frames)
  assert shown.shape == (2, 8, 5, 3) if view.turns % 2 else (2, 5, 8, 3)
  assert np.array_equal(view.inverse(tf.cast(shown, tf.float32), (5, 8)), frames)


def test_the_eight_exact_views_are_all_different():
  frame = tf.reshape(tf.range(9), (1, 3, 3, 1))
  assert len({view.forward(frame).numpy().tobytes() for view in EXACT}) == 8


@pytest.mark.parametrize("scale", [0.5, 0.8, 1.25, 2.0])
def test_a_scaled_view_comes_back_to_its_size_with_a_ramp_unchanged(scale):
  ramp = np.broadcast_to(np.arange(40, 200, 4, dtype=np.uint8), (1, 30, 40))[..., None]
  ramp = tf.constant(ramp)
  view = View(scale=scale)
  shown = view.forward(ramp)
  assert shown.shape[1:3] == (round(30 * scale), round(40 * scale))
  back = view.inverse(tf.cast(shown, tf.float32), (30, 40)).numpy()
  assert back.shape == (1, 30, 40, 1)
  # Linear in the middle; at the ends half a pixel of the coarser grid is not known.
  assert np.abs(back - ramp.numpy())[:, 3:-3, 4:-4].max() <= 1.5


def test_a_network_of_single_pixels_gives_the_same_answer_to_all_exact_views():
  def network(frames):
    share = tf.cast(frames[..., 0], tf.float32) / 255
    return tf.stack([share, 1 - share], -1)

  frames = tf.constant(np.random.default_rng(1).integers(0, 256, (2, 6, 9, 1), np.uint8))
  assert np.allclose(test_time.mean_answer(network, frames, EXACT), network(frames), atol=1e-6)
  one = test_time.mean_answer(network, frames, (View(),))
  assert np.array_equal(one, network(frames))


def test_the_mean_over_the_eight_views_of_any_network_turns_with_the_image():
  def network(frames):  # Knows its place: brighter to the right and below.
    _, height, width, _ = frames.shape
    place = np.linspace(0, 1, width) + 2 * np.linspace(0, 1, height)[:, None]
    return tf.cast(frames, tf.float32) * tf.constant(place[..., None], tf.float32)

  frames = tf.constant(np.random.default_rng(2).integers(0, 256, (1, 7, 7, 1), np.uint8))
  mean = test_time.mean_answer(network, frames, EXACT)
  for view in EXACT:
    turned = test_time.mean_answer(network, view.forward(frames), EXACT)
    assert np.allclose(view.inverse(turned, (7, 7)), mean, rtol=1e-5)


@pytest.mark.parametrize(
    ("tta", "laterality", "plane", "names"),
    [
        ("none", NAMED, None, ["as it is"]),
        ("mirror", FREE, "axial", ["as it is", "mirrored"]),
        ("rotations", FREE, None,
         ["as it is", *(f"turned by {angle} degrees" for angle in (90, 180, 270))]),
        # A turn within a sagittal slice moves nothing from left to right.
        ("rotations", SAGITTAL, "sagittal",
         ["as it is", *(f"turned by {angle} degrees" for angle in (90, 180, 270))]),
        ("scales", NAMED, "axial", ["as it is", "scale 0.8", "scale 1.25"]),
        ("all", NAMED, "coronal", ["as it is", "scale 0.8", "scale 1.25"]),
        ("mirror,scales", FREE, None, ["as it is", "mirrored", "scale 0.8", "scale 1.25"]),
    ],
)  # fmt: skip
def test_the_kinds_of_views_that_a_run_allows(tta, laterality, plane, names):
  assert [str(view) for view in ViewOptions.of(tta).views(laterality, plane)] == names


def test_mirror_and_rotations_together_are_the_eight_views():
  found = ViewOptions.of(["mirror", "rotations"]).views(FREE, "axial")
  assert found == tuple(EXACT)
  assert len(ViewOptions.of("all").views(FREE, None, trained_degrees=180)) == 10
  # A network that has never seen turned slices gives wrong answers to them: not unasked.
  assert len(ViewOptions.of("all").views(FREE, None, trained_degrees=15)) == 4


@pytest.mark.parametrize(
    ("tta", "laterality", "plane"),
    [("mirror", NAMED, None), ("mirror", SAGITTAL, "sagittal"), ("rotations", NAMED, "axial"),
     ("scales,rotations", NAMED, None)],
)  # fmt: skip
def test_views_are_refused_where_labels_could_change_sides(tta, laterality, plane):
  with pytest.raises(InputError, match=f"ruled out for this run: {laterality.reason}"):
    ViewOptions.of(tta).views(laterality, plane)


def test_what_the_user_has_overruled_is_not_refused():
  overruled = Laterality(True, "the class names tell left from right")
  assert len(ViewOptions.of("mirror,rotations").views(overruled, "axial")) == 8


@pytest.mark.parametrize(
    ("tta", "scales", "message"),
    [
        ("mirrors", None, "tta must be one of .* Did you mean 'mirror'"),
        ("none,mirror", None, "--tta=none stands alone"),
        ("mirror", [0.9], "--tta_scales is of --tta=scales or all"),
        ("scales", [3], "numbers from 0.5 to 2, not 1 alone. Got: 3"),
        ("scales", [1.0], "not 1 alone"),
        ("all", ["wide"], "numbers from 0.5 to 2"),
    ],
)
def test_bad_options_are_refused(tta, scales, message):
  with pytest.raises(InputError, match=message):
    ViewOptions.of(tta, scales)


def test_scales_are_those_that_are_named_without_one():
  assert ViewOptions.of("scales", [0.9, 1.0, 1.1, 0.9]).scales() == (0.9, 1.1)


def with_plane(plane: str, laterality: Laterality):
  made = run_samples.run_config()
  facts = dataclasses.replace(made.dataset_facts, slice_plan=SlicePlan("LAS", plane))
  return dataclasses.replace(made, dataset_facts=facts, laterality=laterality)


def test_a_run_that_never_turned_its_slices_says_so_where_rotations_are_asked_for():
  made = run_samples.run_config()
  rotations = ViewOptions.of("rotations")
  line = Predictor(None, made, views=rotations).pass_lines()[0]
  assert "turned by 270 degrees; training turned slices by 0 degrees at most" in line
  turning = AugmentationConfig(
      augmentation="default", rotation_degrees=180.0, rotation_probability=0.5
  ).resolve(mirroring=True)
  made = dataclasses.replace(made, augmentation=turning)
  assert "at most" not in Predictor(None, made, views=rotations).pass_lines()[0]


def test_a_predictor_refuses_by_the_plane_of_its_run():
  rotations = ViewOptions.of("rotations")
  with pytest.raises(InputError, match="--tta=rotations is ruled out"):
    Predictor(None, with_plane("axial", NAMED), views=rotations)
  assert Predictor(None, with_plane("sagittal", SAGITTAL), views=rotations).num_classes == 3


@pytest.mark.parametrize("tta", ["mirror", "rotations", "all"])
def test_a_predictor_averages_over_views_of_slices_that_are_not_square(tta):
  truth = np.zeros((24, 30), np.uint8)
  truth[4:12, 6:26], truth[14:20, 3:11] = 1, 2
  network = run_samples.BrightnessNetwork()
  chosen = Predictor(network, run_samples.run_config((24, 32)), views=ViewOptions.of(tta))
  chosen._any_size_model = network
  (probability,) = chosen.probabilities([np.array([10, 120, 240], np.uint8)[truth]])
  assert probability.shape == (24, 30, 3)
  assert np.allclose(probability.sum(axis=-1), 1, atol=1e-5)
  found = probability.argmax(axis=-1)
  if tta == "all":  # Scales blur edges: the middle of each region stands.
    assert found[8, 16] == 1 and found[17, 7] == 2 and found[2, 2] == 0
    assert (found != truth).mean() < 0.1
  else:
    assert np.array_equal(found, truth)
