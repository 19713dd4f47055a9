"""TIFF: one page is an image, several are a volume."""

import numpy as np
import pytest
from PIL import Image

from flexunet.core.errors import InputError
from flexunet.imaging import pictures, scan_files

VOXELS = np.random.default_rng(0).integers(0, 60000, (5, 3, 4)).astype(np.uint16)


def save(path, voxels=VOXELS, **options):
  pages = [Image.fromarray(np.ascontiguousarray(page.T)) for page in np.moveaxis(voxels, 2, 0)]
  pages[0].save(path, save_all=True, append_images=pages[1:], **options)
  return path


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("compression", [None, "tiff_adobe_deflate"])
def test_pages_are_the_slices_of_a_volume_of_which_nothing_else_is_known(
    tmp_path, dtype, compression
):
  voxels = (VOXELS % 251).astype(dtype)
  path = save(tmp_path / "a.TIF", voxels, format="TIFF", compression=compression)
  assert scan_files.is_scan(path)
  stored, slope, inter = scan_files.read_stored(path)
  np.testing.assert_array_equal(stored.voxels, voxels)
  assert (stored.voxels.dtype, slope, inter) == (dtype, 1, 0)
  assert not stored.oriented and np.isnan(stored.spacing_mm).all()
  assert scan_files.read_header(path).shape == (5, 3, 4)


def test_one_page_is_an_image_and_no_scan(tmp_path):
  path = save(tmp_path / "a.tiff", (VOXELS[:, :, :1] % 256).astype(np.uint8))
  assert not scan_files.is_scan(path)
  np.testing.assert_array_equal(pictures.read_gray(path), VOXELS[:, :, 0].T % 256)
  with pytest.raises(InputError, match="single image, got 4 frames"):
    pictures.read_gray(save(tmp_path / "b.tif", (VOXELS % 256).astype(np.uint8)))


def test_a_label_is_a_stack_too(tmp_path):
  path = save(tmp_path / "a.tif")
  label = (VOXELS % 3).astype(np.uint8)
  assert scan_files.label_ending(".tif") == ".tif"
  scan_files.write_label_like(path, label, tmp_path / "label.tif")
  np.testing.assert_array_equal(scan_files.read(tmp_path / "label.tif").voxels, label)
  scan_files.write_label_like(path, label, tmp_path / "label.nii.gz")
  np.testing.assert_array_equal(scan_files.read(tmp_path / "label.nii.gz").voxels, label)
  found = scan_files.gather([path])
  assert [(scan.stem, scan.ending) for scan in found.scans] == [("a", ".tif")]


def of_two_sizes(folder):
  Image.fromarray(VOXELS[:, :, 0].T.copy()).save(
      folder / "a.tif", save_all=True, append_images=[Image.fromarray(VOXELS[:4, :, 0].T.copy())]
  )
  return folder / "a.tif"


def of_colour(folder):
  page = Image.new("RGB", (5, 3))
  page.save(folder / "a.tif", save_all=True, append_images=[page])
  return folder / "a.tif"


def cut(folder):
  path = save(folder / "a.tif", compression="tiff_adobe_deflate")
  content = bytearray(path.read_bytes())
  content[8:40] = bytes(32)  # Where the first page's pixels are.
  path.write_bytes(content)
  return path


@pytest.mark.parametrize(
    ("make", "message"),
    [(of_two_sizes, r"must be alike; page 2 is \(4, 3\)"), (of_colour, "must be grey"),
     (cut, "damaged")],
)  # fmt: skip
def test_a_stack_that_is_no_volume_is_refused_in_one_line(tmp_path, make, message):
  path = make(tmp_path)
  with pytest.raises(InputError, match=message) as caught:
    scan_files.read_stored(path)
  assert path.name in str(caught.value) and "\n" not in str(caught.value)
