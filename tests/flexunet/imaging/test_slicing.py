"""Cutting volumes into upright slices, and putting them back."""

import itertools

import nibabel as nib
import numpy as np
import pytest

from flexunet.core.errors import InputError
from flexunet.imaging.slicing import PLANES, SlicePlan
from flexunet.imaging.volume import Volume

SHAPE = (2, 3, 4)
SPACING = np.array([0.5, 2.0, 3.0])
VOXELS = np.arange(24).reshape(SHAPE)


def oriented(codes: str) -> Volume:
  """A volume whose stored axes point to `codes`."""
  axes = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
  affine = np.eye(4)
  affine[:3, :3] = 0
  for axis, code in enumerate(codes):
    row, sign = axes[code]
    affine[row, axis] = sign * SPACING[axis]
  return Volume(VOXELS, affine, oriented=True)


def unoriented() -> Volume:
  return Volume(VOXELS, np.diag([*SPACING, 1.0]), oriented=False)


def all_codes():
  for pairs in itertools.permutations(("LR", "PA", "IS")):
    yield from ("".join(codes) for codes in itertools.product(*pairs))


def test_full_head_axial_slices_are_the_stored_ones_turned_by_90_degrees():
  cut = SlicePlan("RAS", "axial").extract(oriented("RAS"))
  for k in range(4):
    np.testing.assert_array_equal(cut.pixels[:, :, k], np.rot90(VOXELS[:, :, k]))
  assert cut.spacing_mm == (2.0, 0.5) and cut.slice_spacing_mm == 3.0


def test_hippocampus_coronal_slices_are_the_stored_ones_turned_by_90_degrees():
  cut = SlicePlan("LAS", "coronal").extract(unoriented())
  for j in range(3):
    np.testing.assert_array_equal(cut.pixels[:, :, j], np.rot90(VOXELS[:, j, :]))
  assert cut.spacing_mm == (3.0, 0.5) and cut.slice_spacing_mm == 2.0


def test_multiple_sclerosis_slices_stay_as_stored():
  cut = SlicePlan("PRS", "axial").extract(unoriented())
  np.testing.assert_array_equal(cut.pixels, VOXELS)


def test_sagittal_slices_have_superior_up_and_the_stored_front():
  cut = SlicePlan("RAS", "sagittal").extract(unoriented())
  for i in range(2):
    np.testing.assert_array_equal(cut.pixels[:, :, i], np.rot90(VOXELS[i]))


@pytest.mark.parametrize("plane", PLANES)
def test_restore_undoes_extract_for_every_orientation(plane):
  for codes in all_codes():
    plan = SlicePlan("LAS", plane)
    volume = oriented(codes)
    assert volume.axis_codes == codes
    cut = plan.extract(volume)
    np.testing.assert_array_equal(plan.restore(cut.pixels, volume), VOXELS)
  for codes in all_codes():
    plan = SlicePlan(codes, plane)
    cut = plan.extract(unoriented())
    np.testing.assert_array_equal(plan.restore(cut.pixels, unoriented()), VOXELS)


@pytest.mark.parametrize("plane", PLANES)
def test_one_anatomy_gives_one_picture_however_it_is_stored(plane):
  reference = oriented("LAS")
  plan = SlicePlan("LAS", plane)
  image = nib.Nifti1Image(VOXELS.astype(np.int16), reference.affine)
  for codes in all_codes():
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(reference.affine), nib.orientations.axcodes2ornt(codes))
    other = image.as_reoriented(turn)
    volume = Volume(np.asanyarray(other.dataobj), other.affine, oriented=True)
    cut, expected = plan.extract(volume), plan.extract(reference)
    np.testing.assert_array_equal(cut.pixels, expected.pixels)
    assert cut.spacing_mm == expected.spacing_mm


def test_slices_of_another_grid_cannot_be_restored():
  with pytest.raises(ValueError, match=r"\(4, 2, 3\)"):
    SlicePlan("LAS", "coronal").restore(np.zeros((2, 4, 3)), unoriented())


@pytest.mark.parametrize("axes", ["LA", "LAA", "LRS", "xyz", "LASS"])
def test_axes_that_are_no_axes_are_refused(axes):
  with pytest.raises(InputError, match="axes must name"):
    SlicePlan(axes, "axial")


def test_an_unknown_plane_gets_the_nearest_spelling():
  with pytest.raises(InputError, match="coronal"):
    SlicePlan("LAS", "coronl")
