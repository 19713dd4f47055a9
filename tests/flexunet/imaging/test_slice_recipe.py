"""One recipe cuts volumes into 8-bit slices and puts labels back."""

import numpy as np
import pytest

from flexunet.core.errors import InputError
from flexunet.imaging.intensity import IntensityWindow
from flexunet.imaging.slice_recipe import SliceRecipe
from flexunet.imaging.slicing import PLANES, SlicePlan
from flexunet.imaging.volume import Volume

WINDOW = IntensityWindow("window", -20, 100)


def stored(shape=(4, 3, 5), dtype=np.int16, spacing=(1.0, 2.0, 3.0)):
  voxels = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
  return Volume(voxels, np.diag([*spacing, 1.0]), oriented=True)


def test_slope_and_intercept_come_before_the_window():
  # Stored 0..59 with slope 2 and intercept -20 is -20..98 HU: (HU + 20) * 255 / 120, halves up.
  cut = SliceRecipe(SlicePlan("RAS", "axial"), WINDOW).cut(stored(), 2.0, -20.0)
  expected = np.floor(np.arange(60) * 2 * 255 / 120 + 0.5)
  assert sorted(cut.slices.pixels.ravel()) == sorted(expected.astype(np.uint8))


@pytest.mark.parametrize("plane", PLANES)
def test_labels_go_back_to_where_they_came_from(plane):
  volume = stored()
  label = (volume.voxels % 3).astype(np.uint8)
  recipe = SliceRecipe(SlicePlan("LAS", plane), WINDOW)
  cut = recipe.cut(volume, label=label)
  np.testing.assert_array_equal(recipe.restore(cut.label, volume), label)


def test_labels_on_resampled_slices_go_back_to_the_grid_of_the_scan():
  # 1 x 2 x 3 mm: at 1 mm each voxel becomes 1 x 2 x 3 voxels with its label.
  volume = stored()
  label = (volume.voxels % 3).astype(np.uint8)
  recipe = SliceRecipe(SlicePlan("RAS", "axial"), WINDOW, isotropic_mm=1.0)
  cut = recipe.cut(volume, label=label, name="scan.nii")
  assert cut.slices.pixels.shape == (6, 4, 15) and cut.native.pixels.shape == (3, 4, 5)
  assert cut.slices.pixels.dtype == np.uint8
  np.testing.assert_array_equal(recipe.restore(cut.label, volume), label)


def test_a_better_known_spacing_is_that_of_the_slices():
  recipe = SliceRecipe(SlicePlan("RAS", "axial"), WINDOW)
  cut = recipe.cut(stored(), spacing_mm=np.array([np.nan, np.nan, 5.0]))
  assert np.isnan(cut.slices.spacing_mm).all() and cut.slices.slice_spacing_mm == 5.0


def test_resampling_needs_a_known_spacing():
  recipe = SliceRecipe(SlicePlan("RAS", "axial"), WINDOW, isotropic_mm=1.0)
  with pytest.raises(InputError, match="scan.nii: isotropic_mm needs"):
    recipe.cut(stored(), spacing_mm=np.array([np.nan, np.nan, 5.0]), name="scan.nii")


def test_a_record_of_whole_volumes_is_cut_in_the_dtype_of_its_file():
  # A dataset of int16 and float64 files stores all of them as float64.
  file = stored(dtype=np.int16)
  record = {
      "image": file.voxels.astype(np.float64), "source_dtype": b"int16", "affine": file.affine,
      "oriented": True, "scale_slope": 0.37, "scale_inter": -11.1, "spacing_mm": file.spacing_mm,
      "label": np.zeros(file.voxels.shape, np.uint8),
  }  # fmt: skip
  recipe = SliceRecipe(SlicePlan("RAS", "axial"), IntensityWindow("percentile", 0.5, 99.5))
  expected = recipe.cut(file, 0.37, -11.1)
  np.testing.assert_array_equal(recipe.cut_record(record).slices.pixels, expected.slices.pixels)


def test_it_survives_json_and_a_build_report():
  recipe = SliceRecipe(SlicePlan("LAS", "coronal"), WINDOW, isotropic_mm=0.5)
  assert SliceRecipe.from_json(recipe.to_json()) == recipe
  plan, window = recipe.to_json()["slice_plan"], recipe.to_json()["intensity"]
  report = {"slice_plan": plan, "intensity": window, "options": {"isotropic_mm": 0.5}}
  assert SliceRecipe.of_report(report) == recipe
  assert SliceRecipe.of_report({"slice_plan": None, "intensity": window}) is None


def test_a_bias_correction_is_read_from_a_report_and_an_unknown_one_refused():
  window = {"kind": "percentile", "low": 0.5, "high": 99.5}
  report = {"slice_plan": {"axes": "LAS", "plane": "axial"}, "intensity": window,
            "options": {"bias_correction": "n4"}}  # fmt: skip
  recipe = SliceRecipe.of_report(report)
  assert recipe.bias_correction == "n4"
  assert SliceRecipe.from_json(recipe.to_json()) == recipe
  assert SliceRecipe.of_report({**report, "options": {}}).bias_correction == "none"
  with pytest.raises(InputError, match="Did you mean 'n4'"):
    SliceRecipe(SlicePlan("RAS", "axial"), WINDOW, bias_correction="n3")
