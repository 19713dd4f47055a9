"""A changed bit of a header must not take the orientation or a part of the voxels away."""

import gzip

import nibabel as nib
import numpy as np
import pytest

from flexunet.core.errors import InputError
from flexunet.imaging import nifti

VOXELS = np.random.default_rng(0).integers(-900, 900, (30, 20, 16)).astype(np.int16)
AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])


def read_all(path):
  data = path.read_bytes()
  return gzip.decompress(data) if path.suffix == ".gz" else data


@pytest.mark.parametrize("code", [-1, 6, 34, 16386])
@pytest.mark.parametrize("name", ["qform_code", "sform_code"])
@pytest.mark.parametrize("file", ["a.nii", "a.nii.gz", "a.hdr"])
def test_a_code_that_there_is_none_of_is_refused(tmp_path, file, name, code):
  image = (nib.Nifti1Pair if file == "a.hdr" else nib.Nifti1Image)(VOXELS, AFFINE)
  nib.save(image, tmp_path / file)
  assert nifti.read_header(tmp_path / file).oriented
  data = bytearray(read_all(tmp_path / file))
  offset = {"qform_code": 252, "sform_code": 254}[name]
  data[offset : offset + 2] = code.to_bytes(2, "little", signed=True)
  path = tmp_path / file.removesuffix(".gz")
  path.write_bytes(data)
  with pytest.raises(InputError, match=f"its {name} must be 0 to 5, got {code}"):
    nifti.read_header(path)


@pytest.mark.parametrize("bit", range(32))
def test_a_pair_whose_magic_letters_are_damaged_is_not_taken_for_analyze(tmp_path, bit):
  nib.save(nib.Nifti1Pair(VOXELS, AFFINE), tmp_path / "a.hdr")
  data = bytearray((tmp_path / "a.hdr").read_bytes())
  data[344 + bit // 8] ^= 1 << bit % 8
  (tmp_path / "a.hdr").write_bytes(data)
  with pytest.raises(InputError, match=r"a\.hdr: the magic letters of NIfTI are damaged"):
    nifti.read(tmp_path / "a.hdr")


def test_analyze_is_still_read(tmp_path):
  nib.save(nib.AnalyzeImage(VOXELS, AFFINE), tmp_path / "a.hdr")
  np.testing.assert_array_equal(nifti.read(tmp_path / "a.hdr").voxels, VOXELS)


@pytest.mark.parametrize("file", ["a.nii", "a.nii.gz", "a.hdr"])
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_a_shape_that_leaves_voxels_over_is_refused(tmp_path, file, axis):
  image = (nib.Nifti1Pair if file == "a.hdr" else nib.Nifti1Image)(VOXELS, AFFINE)
  nib.save(image, tmp_path / file)
  data = bytearray(read_all(tmp_path / file))
  data[40 + 2 * axis] //= 2  # dim[axis], little endian.
  (tmp_path / file).write_bytes(gzip.compress(data) if file.endswith(".gz") else data)
  with pytest.raises(InputError, match="bytes follow the last voxel"):
    nifti.read(tmp_path / file)


def test_padding_behind_the_last_voxel_is_allowed(tmp_path):
  nib.save(nib.Nifti1Image(VOXELS, AFFINE), tmp_path / "a.nii")
  with open(tmp_path / "a.nii", "ab") as stream:
    stream.write(bytes(512))
  np.testing.assert_array_equal(nifti.read(tmp_path / "a.nii").voxels, VOXELS)
