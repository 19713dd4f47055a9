"""Opening scans by their kind, the table of endings, and labels in the order of their scans."""

import itertools

import nibabel as nib
import numpy as np
import pytest

from flexunet.core.errors import InputError
from flexunet.imaging import pictures, scan_files

SHAPE = (3, 5, 7)
AFFINE = np.array([[-1.5, 0, 0, 10], [0, 2, 0, -20], [0, 0, 3.0, 5], [0, 0, 0, 1]])  # LAS
VOXELS = np.random.default_rng(0).integers(-900, 900, SHAPE).astype(np.int16)


def save(path, voxels=VOXELS, affine=AFFINE):
  kind = nib.Nifti1Pair if path.suffix in (".hdr", ".img") else nib.Nifti1Image
  kind(voxels, affine).to_filename(path)
  return path


@pytest.mark.parametrize(
    ("name", "ending", "stem"), [
        ("a.b.NII.GZ", ".nii.gz", "a.b"),
        ("a.nii", ".nii", "a"),
        ("T1.mgz", ".mgz", "T1"),
        ("T1.mgh.gz", ".mgh.gz", "T1"),
        ("a.img.gz", ".img.gz", "a"),
        (".nii", "", ".nii"),
        ("notes.txt", "", "notes"),
    ],
)  # fmt: skip
def test_endings_are_known_in_any_case(name, ending, stem):
  assert scan_files.ending_of(name) == ending
  assert scan_files.stem_of(name) == stem
  assert scan_files.is_scan(name) == bool(ending)


def test_no_format_is_both_read_and_unread():
  readable = [*scan_files.ENDINGS, *pictures.SUFFIXES]
  assert [ending for ending in readable if scan_files.unread_ending(f"a{ending}")] == []


def test_no_ending_hides_a_longer_one():
  for first, second in itertools.combinations(scan_files.ENDINGS, 2):
    assert not second.endswith(first)


@pytest.mark.parametrize(
    ("name", "reason"), [
        ("a.mnc", "a MINC scan, which is not read; mnc2nii (MINC tools) converts it"),
        ("a+orig.HEAD", "an AFNI scan, which is not read; 3dAFNItoNIFTI (AFNI) converts it"),
        ("a.mif.gz", "an MRtrix scan, which is not read; mrconvert (MRtrix3) converts it"),
        ("all.tar.gz", "an archive, which is not read; tar -xf unpacks it"),
        ("notes.txt", "not a scan"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_read_is_named_with_what_converts_it(name, reason):
  assert scan_files.reason_unread(name) == reason


def test_opening_a_file_that_is_not_read_says_what_converts_it(tmp_path):
  with pytest.raises(InputError, match=r"not a volume, but a MINC scan.*mnc2nii.*\.nii\.gz"):
    scan_files.read_stored(tmp_path / "a.mnc")


def test_files_are_grouped_into_scans_and_the_rest_is_named(tmp_path):
  save(tmp_path / "b.nii.gz")
  save(tmp_path / "a.hdr")  # And a.img.
  nib.MGHImage(VOXELS, AFFINE).to_filename(tmp_path / "c.mgz")
  (tmp_path / "d.mnc").write_bytes(b"")
  (tmp_path / "e.txt").write_bytes(b"")
  (tmp_path / "lonely.img").write_bytes(b"")
  found = scan_files.gather(tmp_path.iterdir())
  assert [(scan.path.name, scan.stem, scan.ending) for scan in found.scans] == [
      ("a.hdr", "a", ".hdr"), ("b.nii.gz", "b", ".nii.gz"), ("c.mgz", "c", ".mgz"),
      ("lonely.img", "lonely", ".img"),
  ]  # fmt: skip
  assert [file.name for file in found.scans[0].files] == ["a.hdr", "a.img"]
  assert {path.name: reason[:6] for path, reason in found.not_read.items()} == {
      "d.mnc": "a MINC", "e.txt": "not a ",
  }  # fmt: skip


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSL", "IRA", "SAR"])
def test_a_label_is_turned_to_the_voxel_order_of_its_scan(tmp_path, codes):
  label = nib.Nifti1Image((VOXELS > 0).astype(np.uint8), AFFINE)
  turn = nib.orientations.ornt_transform(
      nib.orientations.io_orientation(AFFINE), nib.orientations.axcodes2ornt(codes)
  )
  label.as_reoriented(turn).to_filename(tmp_path / "label.nii.gz")
  scan = scan_files.read(save(tmp_path / "scan.nii.gz"))
  found, names = scan_files.read_label(tmp_path / "label.nii.gz", scan)
  np.testing.assert_array_equal(found.voxels, VOXELS > 0)
  np.testing.assert_allclose(found.affine, scan.affine, atol=1e-5)
  assert names == {}


def test_a_label_without_orientation_stays_as_stored(tmp_path):
  label = nib.Nifti1Image((VOXELS > 0).astype(np.uint8), None)
  label.to_filename(tmp_path / "label.nii.gz")
  scan = scan_files.read(save(tmp_path / "scan.nii.gz"))
  found, _ = scan_files.read_label(tmp_path / "label.nii.gz", scan)
  np.testing.assert_array_equal(found.voxels, VOXELS > 0)
  assert not found.oriented


def test_a_label_keeps_the_format_of_its_scan_or_becomes_nifti():
  assert scan_files.label_ending(".NII") == ".NII"
  assert scan_files.label_ending(".hdr", "nifti") == ".hdr"
  assert scan_files.label_ending(".mgz") == ".mgz"
  assert scan_files.label_ending(".mgz", "nifti") == ".nii.gz"


def test_a_label_off_the_grid_or_of_another_format_is_refused(tmp_path):
  nib.MGHImage(VOXELS, AFFINE).to_filename(tmp_path / "a.mgz")
  with pytest.raises(InputError, match="grid"):
    scan_files.write_label_like(tmp_path / "a.mgz", np.zeros((5, 3, 7)), tmp_path / "b.mgz")
  with pytest.raises(InputError, match=r"must end in .nii, .nii.gz or as the source does"):
    scan_files.write_label_like(tmp_path / "a.mgz", np.zeros(SHAPE), tmp_path / "b.hdr")
  assert [path.name for path in tmp_path.iterdir()] == ["a.mgz"]
