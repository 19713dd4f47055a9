"""Whether a face can be seen: heads drawn from ellipsoids, and real scans."""

import pathlib

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from flexunet.tools.publish import faces

MM = (3.0, 3.0, 3.0)
UNKNOWN_MM = (float("nan"),) * 3


def head(skin: bool = True, face: bool = True, bone: int = 20) -> np.ndarray:
  """Returns uint8 [slice, row, column] of 3 mm, display axes "PLS": a brain of 120, with 9 mm of
  bone and 6 mm of skin of 200 around it, and a face 8 to 16 cm below the crown."""
  levels_mm = 200
  size = round(levels_mm / 3)
  z, y, x = np.mgrid[:size, :80, :64].astype(np.float32) * 3
  # The crown is 10 mm below the top, the brain's centre 65 mm below the crown; y runs backwards.
  x, y, z = x - 95, y - 120, z - (levels_mm - 75)
  flat = np.where(z < 0, 1.8 * z, z)  # The base of the skull is near the centre.

  def ellipsoid(grow: float) -> np.ndarray:
    return (x / (60 + grow)) ** 2 + (y / (78 + grow)) ** 2 + (flat / (50 + grow)) ** 2 < 1

  image = np.zeros(x.shape, np.uint8)
  if skin:
    # Jaw and neck: a cylinder below the middle of the brain, as far forwards as the forehead.
    below = (z < 0) & (z > -110) & ((x / 55) ** 2 + ((y + 8) / (85 if face else 20)) ** 2 < 1)
    image[ellipsoid(15) | below] = 200
    image[ellipsoid(9)] = bone
  image[ellipsoid(0)] = 120
  return image


@pytest.mark.parametrize("bone", [20, 255])
def test_a_whole_head_shows_its_face_in_mri_and_ct(bone):
  assert faces.judge(head(bone=bone), "PLS", MM) == faces.FACE


def test_a_brain_alone_shows_none():
  assert faces.judge(head(skin=False), "PLS", MM) == faces.SKULL_STRIPPED
  assert faces.judge(head(skin=False), None, UNKNOWN_MM) == faces.SKULL_STRIPPED


def test_a_head_without_its_front_shows_none():
  assert faces.judge(head(face=False), "PLS", MM) == faces.REMOVED


def test_sulci_are_no_skull():
  """Dark gaps of a brain that neighbouring directions do not share."""
  brain = head(skin=False)
  rows, columns = np.mgrid[:80, :64]
  angle = np.arctan2(rows - 40, columns - 32)
  brain[:, (np.sin(40 * angle) > 0.6)] //= 6
  assert faces.judge(brain, "PLS", MM) == faces.SKULL_STRIPPED


def test_the_upper_part_of_a_head_shows_no_face():
  """80 mm below the crown there is neither eye nor nose; without the crown nobody knows."""
  whole = head()
  assert faces.judge(whole[-round(90 / 3) :], "PLS", MM) == faces.NOT_IN_VIEW
  assert faces.judge(whole[-round(75 / 3) : -round(40 / 3)], "PLS", MM) == faces.UNKNOWN


def test_skin_without_orientation_or_spacing_is_to_be_looked_at():
  assert faces.judge(head(), None, MM) == faces.UNKNOWN
  assert faces.judge(head(), "PLS", UNKNOWN_MM) == faces.UNKNOWN
  assert faces.UNKNOWN not in faces.ALLOWED


def test_it_is_the_same_in_every_plane_and_direction():
  whole, cut = head(), head(face=False)
  # [slice, row, column] of axes "PLS" -> sagittal slices "IPL", and coronal ones, flipped.
  for image, wanted in ((whole, faces.FACE), (cut, faces.REMOVED)):
    sagittal = image.transpose(2, 0, 1)[:, ::-1]
    coronal = image.transpose(1, 0, 2)[:, ::-1]
    assert faces.judge(sagittal, "IPL", MM) == wanted
    assert faces.judge(coronal[::-1], "ILA", MM) == wanted


def test_images_of_a_few_pixels_say_nothing():
  assert faces.judge(np.zeros((4, 20, 40), np.uint8), "PLS", MM) == faces.TOO_SMALL


def windowed(path: pathlib.Path) -> np.ndarray:
  """Returns a scan as axial slices "PLS", 8 bits between its percentiles, uint8 [slice, H, W]."""
  scan = nib.as_closest_canonical(nib.load(path))
  voxels = np.asarray(scan.dataobj, np.float32)
  low, high = np.percentile(voxels, (0.5, 99.5))
  eight = (np.clip((voxels - low) / (high - low), 0, 1) * 255).astype(np.uint8)
  return eight[::-1, ::-1].transpose(2, 1, 0)  # [x, y, z] of RAS.


@pytest.mark.realdata
@pytest.mark.parametrize(
    "pattern", ["oasis_t1/*1000*_t1w", "ms_t2/*-T1", "ms_t2/*-T2", "ms_t2/*-F*"]
)
def test_real_skull_stripped_scans_pass(realdata, pattern):
  paths = sorted(realdata.glob(f"{pattern}.nii.gz"))
  assert paths
  assert {faces.judge(windowed(path), "PLS", (1.0,) * 3) for path in paths} == {
      faces.SKULL_STRIPPED
  }


@pytest.mark.realdata
@pytest.mark.parametrize("patient", ["049", "054", "079"])
def test_real_ct_of_whole_heads_is_refused(realdata, patient):
  folder = realdata / "ct_ich" / "Patients_CT" / patient / "brain"
  paths = sorted((p for p in folder.glob("*.jpg") if p.stem.isdigit()), key=lambda p: int(p.stem))
  slices = np.stack([np.asarray(Image.open(path).convert("L")) for path in paths])
  assert faces.judge(slices, None, UNKNOWN_MM) == faces.UNKNOWN
  # Were the missing spacing 5 mm, eyes and nose would be in view.
  assert faces.judge(slices, "PLS", (0.33, 0.33, 5.0)) == faces.FACE
