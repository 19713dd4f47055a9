"""N4 takes out the field that was put in, and leaves the rest."""

import sys

import numpy as np
import pytest

from flexunet.core.errors import InputError
from flexunet.imaging import bias_correction
from flexunet.imaging.intensity import IntensityWindow
from flexunet.imaging.slice_recipe import SliceRecipe, StoredChannel
from flexunet.imaging.slicing import SlicePlan
from flexunet.imaging.volume import Volume

SHAPE = (40, 48, 36)
MRI = IntensityWindow("percentile", 0.5, 99.5)


def head(air: float = 0.0):
  """Returns (tissue of two greys [i, j, k], where it is, a smooth field of 0.6 to 1.5)."""
  places = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
  radius = np.sqrt((places**2).sum(axis=0))
  inside = radius < 0.9
  noise = np.random.default_rng(0).normal(0, 8, SHAPE)
  around = air + np.abs(noise) * (air > 0)
  tissue = np.where(inside, np.where(radius < 0.55, 600, 400) + noise, around)
  field = np.exp(0.35 * places[0] - 0.25 * places[1] * places[2])
  return tissue, inside, field


def correlation(found, true, inside):
  return np.corrcoef(np.log(found[inside]), np.log(true[inside]))[0, 1]


@pytest.mark.needs_extra("itk")
@pytest.mark.parametrize("air", [0.0, 20.0], ids=["stripped", "with air"])
def test_it_finds_the_field_that_was_put_in(air):
  tissue, inside, field = head(air)
  found = bias_correction.field((tissue * field).astype(np.float32))
  assert found.dtype == np.float32 and found.shape == SHAPE
  assert correlation(found, field, inside) > 0.95
  assert np.log(found[inside]).mean() == pytest.approx(0, abs=0.05)
  corrected = bias_correction.removed((tissue * field).astype(np.float32), "n4")
  spread = [one[inside & (tissue > 500)] for one in (tissue * field, corrected)]
  assert spread[1].std() / spread[1].mean() < 0.4 * spread[0].std() / spread[0].mean()


@pytest.mark.needs_extra("itk")
def test_it_gives_the_same_bits_again_and_leaves_air_at_zero():
  tissue, inside, field = head()
  scan = (tissue * field).astype(np.int16)
  first, again = (bias_correction.removed(scan, "n4") for _ in range(2))
  np.testing.assert_array_equal(first, again)
  assert (first[~inside] == 0).all()


def test_without_it_the_voxels_are_those_of_the_scan():
  voxels = np.arange(8).reshape(2, 2, 2)
  assert bias_correction.removed(voxels, "none") is voxels


@pytest.mark.needs_extra("itk")
@pytest.mark.parametrize("shape", [(40, 48, 2), (6, 6, 6)], ids=str)
def test_a_scan_that_is_too_small_is_refused_by_name(shape):
  with pytest.raises(InputError, match=r"scan\.nii: bias_correction=n4 needs at least 4 voxels"):
    bias_correction.removed(np.ones(shape), "n4", "scan.nii")


def test_without_simpleitk_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "SimpleITK", None)
  with pytest.raises(InputError, match=r"pip install \"flexunet\[itk\]\""):
    bias_correction.require()


@pytest.mark.needs_extra("itk")
def test_every_plane_and_every_channel_is_cut_from_the_corrected_scan():
  tissue, _, field = head()
  scan = Volume((tissue * field).astype(np.int16), np.eye(4), oriented=True)
  cuts = [
      SliceRecipe(
          SlicePlan("LAS", plane), MRI, other_intensities=(MRI,), bias_correction="n4"
      ).cut(scan, others=[StoredChannel(scan)])
      for plane in ("axial", "coronal")
  ]
  expected = MRI.to_uint8(bias_correction.removed(scan.voxels.astype(np.float32), "n4"))
  plain = SliceRecipe(SlicePlan("LAS", "axial"), MRI).cut(scan)
  for cut in cuts:
    np.testing.assert_array_equal(np.sort(cut.slices.pixels.ravel()), np.sort(expected.ravel()))
    np.testing.assert_array_equal(cut.others[0], cut.slices.pixels)
  assert (cuts[0].slices.pixels != plain.slices.pixels).any()
  np.testing.assert_array_equal(cuts[0].slices.spacing_mm, plain.slices.spacing_mm)
