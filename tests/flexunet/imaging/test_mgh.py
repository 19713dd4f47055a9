"""FreeSurfer volumes: read as nibabel reads them, refused where they cannot be, labels written."""

import gzip

import nibabel as nib
import numpy as np
import pytest

from flexunet.core.errors import InputError
from flexunet.imaging import mgh, scan_files

SHAPE = (3, 5, 7)  # No two axes alike, so that a transposition cannot pass.
AFFINE = np.array([[0, -2.0, 0, 10], [1.5, 0, 0, -20], [0, 0, 3.0, 5], [0, 0, 0, 1]])
VOXELS = np.random.default_rng(0).integers(-900, 900, SHAPE).astype(np.int16)


def save(path, voxels=VOXELS):
  nib.MGHImage(voxels, AFFINE).to_filename(path)
  return path


@pytest.mark.parametrize("name", ["a.mgz", "a.mgh"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
def test_a_volume_is_what_nibabel_reads(tmp_path, name, dtype):
  path = save(tmp_path / name, VOXELS.astype(dtype))
  stored, slope, inter = scan_files.read_stored(path)
  np.testing.assert_array_equal(stored.voxels, np.asanyarray(nib.load(path).dataobj))
  assert stored.voxels.dtype == dtype and stored.voxels.dtype.isnative
  assert (slope, inter, stored.oriented, stored.axis_codes) == (1, 0, True, "ALS")
  np.testing.assert_allclose(stored.affine, AFFINE, atol=1e-5)
  header = scan_files.read_header(path)
  assert (header.shape, header.dtype) == (SHAPE, dtype)
  np.testing.assert_allclose(header.spacing_mm, [1.5, 2, 3])
  np.testing.assert_array_equal(header.affine, stored.affine)


def test_a_header_without_geometry_states_no_orientation_and_no_spacing(tmp_path):
  path = save(tmp_path / "a.mgh")
  content = bytearray(path.read_bytes())
  content[28:30] = bytes(2)  # goodRASFlag
  path.write_bytes(content)
  header = mgh.read_header(path)
  assert not header.oriented and np.isnan(header.spacing_mm).all()


def edited(folder, position, value, dtype):
  path = save(folder / "a.mgh")
  content = bytearray(path.read_bytes())
  raw = np.array(value, dtype).tobytes()
  content[position : position + len(raw)] = raw
  path.write_bytes(content)
  return path


def cut(folder, num_bytes, name="a.mgh"):
  path = save(folder / name)
  path.write_bytes(path.read_bytes()[:-num_bytes])
  return path


def break_crc(folder):
  path = save(folder / "a.mgz")
  content = bytearray(path.read_bytes())
  content[-6] ^= 1  # The last 8 bytes are checksum and length.
  path.write_bytes(content)
  return path


def of_frames(folder):
  nib.MGHImage(np.stack([VOXELS, VOXELS], -1), AFFINE).to_filename(folder / "a.mgz")
  return folder / "a.mgz"


def short(folder):
  (folder / "a.mgz").write_bytes(gzip.compress(b"abc"))
  return folder / "a.mgz"


@pytest.mark.parametrize(
    ("make", "message"), [
        (break_crc, "CRC"),
        # nibabel writes 20 bytes after the 210 bytes of voxels; one voxel byte more is missing.
        (lambda d: cut(d, 21), "truncated.*promises 210 bytes.*209"),
        (lambda d: cut(d, 9, "a.mgz"), "truncated"),
        (lambda d: edited(d, 0, 2, ">i4"), "version must be 1, got 2"),
        (lambda d: edited(d, 4, [2000, 2000, 1000], ">i4"), "declares 8000000000 bytes"),
        (lambda d: edited(d, 4, [3, -5, 7], ">i4"), "holds no voxel"),
        (lambda d: edited(d, 20, 7, ">i4"), "type of MGH .* got 7"),
        (lambda d: edited(d, 42, np.zeros(9), ">f4"), "singular"),
        (lambda d: edited(d, 30, 1e30, ">f4"), "edges of a voxel"),
        (lambda d: save(d / "a.mgz", np.full(SHAPE, np.nan, np.float32)), "all its voxels are NaN"),
        (lambda d: save(d / "a.mgz", np.ones(SHAPE, np.uint8)), "the same number, 1"),
        (of_frames, r"three axes.*\(3, 5, 7, 2\)"),
        (short, "truncated: expected 284 bytes, found 3"),
        (lambda d: d / "a.mgz", "no such file"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_right_is_refused_in_one_line(tmp_path, make, message):
  path = make(tmp_path)
  with pytest.raises(InputError, match=message) as caught:
    scan_files.read_stored(path)
  assert path.name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["out.mgz", "out.mgh", "out.nii.gz"])
def test_a_label_lies_on_the_grid_of_its_scan_and_carries_none_of_its_text(tmp_path, name):
  scan = save(tmp_path / "a.mgh")
  scan.write_bytes(scan.read_bytes() + b"mri_convert /home/SMITH")
  label = (VOXELS > 0).astype(np.uint8)
  scan_files.write_label_like(scan, label, tmp_path / name)
  written = nib.load(tmp_path / name)
  np.testing.assert_array_equal(np.asanyarray(written.dataobj), label)
  np.testing.assert_allclose(written.affine, nib.load(scan).affine, atol=1e-5)
  content = (tmp_path / name).read_bytes()
  assert b"SMITH" not in (gzip.decompress(content) if name.endswith("z") else content)
