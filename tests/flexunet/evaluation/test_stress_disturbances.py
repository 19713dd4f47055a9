"""Disturbances do what their definition says, by NumPy and by hand."""

import math

import numpy as np
import pytest
import stress_samples

from flexunet.core.errors import InputError
from flexunet.evaluation import stress_base, stress_disturbances, stress_grey_values
from flexunet.evaluation.stress_disturbances import DISTURBANCES, NAMES, Request
from flexunet.evaluation.stress_grey_values import BiasField, Blur, Brighter, Darker, Noise
from flexunet.evaluation.stress_positions import (
    Flip,
    InPlaneSpacing,
    MissingSlices,
    Rotation,
    SliceThickness,
    other_sides,
)


@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize(
    "one", [one for one in DISTURBANCES if not isinstance(one, Flip)], ids=lambda one: one.name
)
def test_the_neutral_strength_changes_nothing(one, windowed):
  volume, setting = stress_samples.volume(), stress_samples.setting(windowed=(windowed,))
  found = one.apply(volume, one.neutral_strength(setting), setting)
  assert all(np.array_equal(a, b) for a, b in zip(found.images, volume.images, strict=True))
  assert found.spacing_mm == (1.0, 1.0, 2.0)
  truth = found.geometry.truth(volume.labels, 3)
  back = found.geometry.labels(truth, lambda p: p.argmax(axis=-1).astype(np.uint8))
  assert all(np.array_equal(a, b) for a, b in zip(back, volume.labels, strict=True))


@pytest.mark.parametrize("one", DISTURBANCES, ids=lambda one: one.name)
def test_strengths_run_from_mild_to_strong_and_change_something(one):
  volume, setting = stress_samples.volume(count=30), stress_samples.setting()
  grades = one.grades(setting)
  far = [abs(grade - one.neutral_strength(setting)) for grade in grades]
  assert far == sorted(far) and far[0] > 0
  assert isinstance(one, Flip) or len(grades) == 6
  found = one.apply(volume, grades[-1], setting).images
  assert len(found) != len(volume.images) or any(
      not np.array_equal(a, b) for a, b in zip(found, volume.images, strict=True)
  )


def test_a_bias_field_is_a_smooth_gain_whose_range_is_the_strength():
  volume = stress_samples.volume()
  field = stress_grey_values.field(volume)
  everywhere = np.stack(field)
  assert everywhere.min() == pytest.approx(-0.5) and everywhere.max() == pytest.approx(0.5)
  # Smooth: a polynomial of degree 3 has no fourth differences.
  assert np.abs(np.diff(everywhere, 4, axis=2)).max() < 1e-5
  found = BiasField().apply(volume, 0.4, stress_samples.setting()).images[2][..., 0]
  expected = volume.images[2][..., 0] * (1 + 0.4 * field[2])
  assert np.array_equal(found, np.clip(np.rint(expected), 0, 255).astype(np.uint8))


def test_air_does_not_decide_the_range_of_a_bias_field():
  volume = stress_samples.volume(width=40)
  for image in volume.images:
    image[:, 20:] = 0
  field = np.stack(stress_grey_values.field(volume))
  inside = field[:, :, :20]
  assert inside.min() == pytest.approx(-0.5) and inside.max() == pytest.approx(0.5)


def test_channels_that_are_scans_have_fields_of_their_own_and_colours_share_one():
  volume = stress_samples.volume(channels=2)
  for image in volume.images:
    image[..., 1] = image[..., 0]
  for separate in (True, False):
    setting = stress_samples.setting(separate_channels=separate)
    image = BiasField().apply(volume, 0.8, setting).images[0]
    assert np.array_equal(image[..., 0], image[..., 1]) is not separate


def test_noise_has_the_deviation_of_its_strength_and_that_of_magnitudes_is_rician():
  flat = stress_samples.volume(count=20, height=60, width=60)
  flat.images = [np.full_like(image, 120) for image in flat.images]
  gaussian = np.stack(Noise().apply(flat, 0.08, stress_samples.setting()).images).astype(float)
  assert gaussian.std() == pytest.approx(0.08 * 255, rel=0.01)
  assert gaussian.mean() == pytest.approx(120, abs=0.3)
  flat.images = [np.zeros_like(image) for image in flat.images]
  setting = stress_samples.setting(windowed=(True,))
  air = np.stack(Noise().apply(flat, 0.08, setting).images).astype(float)
  assert air.mean() == pytest.approx(0.08 * 255 * math.sqrt(math.pi / 2), rel=0.01)


def test_draws_are_of_the_scan_alone_and_shared_by_all_strengths():
  volume, setting = stress_samples.volume(), stress_samples.setting()
  first = Noise().apply(volume, 0.04, setting)
  BiasField().apply(volume, 0.4, setting)
  again = Noise().apply(volume, 0.04, setting)
  assert np.array_equal(first.images, again.images)
  other = Noise().apply(stress_samples.volume(subject="B"), 0.04, setting)
  assert not np.array_equal(first.images, other.images)
  inside = np.stack(volume.images) < 200  # Where nothing is clipped.
  mild, strong = (
      (np.stack(Noise().apply(volume, share, setting).images).astype(float)
       - np.stack(volume.images))[inside]
      for share in (0.02, 0.04)
  )  # fmt: skip
  assert np.abs(strong - 2 * mild).max() <= 2  # Rounded to whole grey values.


def test_a_blurred_point_has_half_its_height_at_half_the_width():
  volume = stress_samples.volume(count=2, height=41, width=41, spacing_mm=(0.5, 0.5))
  for image in volume.images:
    image[:] = 0
    image[20, :] = 250
  found = Blur().apply(volume, 4.0, stress_samples.setting(pixel_mm=0.5)).images[0][:, 20, 0]
  # 4 mm are 8 pixels of 0.5 mm: half the height 4 pixels away.
  assert found[24] / found[20] == pytest.approx(0.5, abs=0.03)


def test_a_disturbed_scan_is_windowed_anew_where_the_window_follows_the_scan():
  volume = stress_samples.volume()
  half = [image * np.float32(0.5) for image in volume.images]
  assert np.array_equal(stress_base.in_eight_bits(half, volume.images, (True,)), volume.images)
  kept = stress_base.in_eight_bits(half, volume.images, (False,))
  assert max(int(image.max()) for image in kept) == 128


def test_gamma_is_a_power_of_the_share_of_the_window():
  volume, setting = stress_samples.volume(), stress_samples.setting()
  image = volume.images[0]
  for one, power in ((Darker(), 1.5), (Brighter(), 0.67)):
    expected = np.rint(255 * (image / 255) ** power)
    assert np.array_equal(one.apply(volume, power, setting).images[0], expected.astype(np.uint8))


def test_larger_pixels_state_their_spacing_and_are_means():
  volume = stress_samples.volume()
  found = InPlaneSpacing().apply(volume, 2.0, stress_samples.setting())
  assert found.spacing_mm == (2.0, 2.0, 2.0) and found.images[0].shape == (10, 12, 1)
  blocks = volume.images[3][..., 0].reshape(10, 2, 12, 2).mean(axis=(1, 3))
  assert np.array_equal(found.images[3][..., 0], np.rint(blocks).astype(np.uint8))


def test_strengths_of_spacing_are_multiples_of_that_of_the_dataset_in_its_unit():
  setting = stress_samples.setting(pixel_mm=0.5, slice_mm=None)
  assert InPlaneSpacing().grades(setting) == [0.75, 1.0, 1.25, 1.5, 2.0, 3.0]
  assert InPlaneSpacing().unit(setting) == "mm" and SliceThickness().unit(setting) == "slices"
  unknown = stress_samples.volume(spacing_mm=(math.nan, math.nan), slice_mm=math.nan)
  setting = stress_samples.setting(pixel_mm=None, slice_mm=None)
  found = InPlaneSpacing().apply(unknown, 2.0, setting)
  assert found.images[0].shape == (10, 12, 1) and np.isnan(found.spacing_mm).all()


def test_thicker_slices_are_means_of_neighbours():
  volume = stress_samples.volume()
  found = SliceThickness().apply(volume, 4.0, stress_samples.setting())
  assert len(found.images) == 3 and found.spacing_mm == (1.0, 1.0, 4.0)
  mean = np.rint(np.mean([volume.images[2], volume.images[3]], axis=0, dtype=np.float32))
  assert np.array_equal(found.images[1], mean.astype(np.uint8))


def test_missing_slices_are_nested_gaps_that_spare_the_ends():
  volume, one = stress_samples.volume(count=60), MissingSlices()
  before = set(range(60))
  for share in one.strengths:
    kept = set(one.kept(volume, share).tolist())
    assert kept <= before and {0, 59} <= kept
    assert 60 - len(kept) == pytest.approx(60 * share, abs=3)
    before = kept
  found = one.apply(volume, 0.3, stress_samples.setting())
  assert len(found.images) == len(one.kept(volume, 0.3))
  assert np.array_equal(found.images[1], volume.images[one.kept(volume, 0.3)[1]])


def test_a_flip_exchanges_the_sides_wherever_they_lie():
  volume = stress_samples.volume()
  axial = Flip().apply(volume, 1.0, stress_samples.setting())
  assert np.array_equal(axial.images[0], volume.images[0][:, ::-1])
  sagittal = Flip().apply(volume, 1.0, stress_samples.setting(plane="sagittal"))
  assert np.array_equal(sagittal.images[0], volume.images[-1])
  images = Flip().apply(volume, 1.0, stress_samples.setting(plan=None))
  assert np.array_equal(images.images[0], volume.images[0][:, ::-1])


def test_classes_of_the_two_sides_are_known_by_name():
  assert other_sides(["background", "left_part", "right_part", "stem"]).tolist() == [0, 2, 1, 3]
  assert other_sides(["background", "LH cortex", "RH cortex"]).tolist() == [0, 2, 1]
  assert other_sides(["background", "part_l", "part_r", "left_only"]).tolist() == [0, 2, 1, 3]
  assert other_sides(["background", "bright", "cleft"]).tolist() == [0, 1, 2]


def test_a_rotation_turns_each_scan_to_one_side_whatever_the_strength():
  volume, setting = stress_samples.volume(height=24), stress_samples.setting()
  mild, strong = (Rotation().apply(volume, degrees, setting) for degrees in (5.0, 45.0))
  truth = list(strong.geometry.truth(volume.labels, 2))
  assert truth[0].shape == (24, 24, 2) and mild.images[0].dtype == np.uint8
  sizes = [float(one[..., 1].sum()) for one in truth]
  assert sizes == pytest.approx([96] * 6, rel=0.02)


def test_what_makes_no_sense_is_refused_with_its_reason():
  ct = stress_samples.setting(is_ct=True)
  assert all("CT" in one.against(ct) for one in (BiasField(), Darker(), Brighter()))
  assert not Noise().against(ct)
  flat = stress_samples.setting(has_solid=False)
  assert SliceThickness().against(flat) and MissingSlices().against(flat)
  planes = stress_samples.setting(whole_volumes=True)
  assert "whole volumes" in MissingSlices().against(planes) and not SliceThickness().against(planes)


def test_the_flag_takes_levels_names_and_groups():
  assert Request.of("") is None
  assert Request.of("quick") == Request(NAMES, full=False)
  assert Request.of("full") == Request(NAMES, full=True)
  assert Request.of("noise, bias") == Request(("bias", "noise"), full=True)
  assert Request.of(["quick", "gamma"]) == Request(("gamma_dark", "gamma_bright"), full=False)
  assert Request.of("spacing").names == ("spacing_in_plane", "spacing_through")
  with pytest.raises(InputError, match="Did you mean 'noise'"):
    Request.of("nois")
  with pytest.raises(InputError, match="not both"):
    Request.of("quick,full")


def test_quick_takes_every_second_strength():
  assert Request.of("quick").strengths([1, 2, 3, 4, 5, 6]) == [2, 4, 6]
  assert Request.of("full").strengths([1, 2, 3]) == [1, 2, 3]
  assert Request.of("quick").strengths([1]) == [1]
  assert len({one.name for one in stress_disturbances.DISTURBANCES}) == len(DISTURBANCES)
