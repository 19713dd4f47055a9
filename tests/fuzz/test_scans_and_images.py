"""Flipped bits and worse in single scans and images."""

import fuzz_damage
import fuzz_inputs
import fuzz_judge
import numpy as np
import pytest
from fuzz_judge import Seen

from flexunet.imaging import pictures, scan_files

pytestmark = pytest.mark.fuzz

NO_CHECKSUM = {
    ".nii": "an uncompressed scan holds no checksum; headers that cannot be are refused",
    ".hdr": "an uncompressed scan holds no checksum; headers that cannot be are refused",
    ".img": "an uncompressed scan holds no checksum; headers that cannot be are refused",
    ".jpg": "JPEG holds no checksum of its pixels; streams that cannot be decoded are refused",
    ".bmp": "BMP holds no checksum",
}


def scan_content(path, folder):
  """Reads a scan and writes a label on its grid, as a prediction does."""
  header = scan_files.read_header(path)
  stored, slope, inter = scan_files.read_stored(path)
  label = np.ones(stored.voxels.shape, np.uint8)
  target = folder / f"label{scan_files.ending_of(path)}"
  scan_files.write_label_like(path, label, target)
  back = scan_files.read(target)
  assert back.voxels.shape == label.shape and back.voxels.min() == 1
  return stored.voxels, stored.affine, stored.oriented, slope, inter, header.axis_codes


def image_content(path):
  """Reads an image in the three ways that builders do."""
  indexed = pictures.read_indexed(path)
  header = pictures.read_header(path)
  found = [pictures.read_rgb(path), (header.height, header.width)]
  return [*found, indexed.indices, indexed.palette] if indexed else found


def equal(one, other):
  return len(one) == len(other) and all(
      np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f")
      for a, b in zip(one, other, strict=True)
  )


def attack(name, path, read, flips, others):
  """Damages one file over and over; it is whole again afterwards."""
  whole, reference = path.read_bytes(), read(path)
  reason = NO_CHECKSUM.get(path.suffix, "")
  category = fuzz_judge.category(name, reason)
  rng = fuzz_judge.generator(name)
  kinds = ["flip"] * fuzz_judge.trials(flips)
  kinds += [list(fuzz_damage.BYTES)[n % len(fuzz_damage.BYTES)]
            for n in range(fuzz_judge.trials(others))]  # fmt: skip
  for kind in kinds:
    if kind == "flip":
      what, damaged = fuzz_damage.flip(whole, rng)
    else:
      what, damaged = kind, fuzz_damage.BYTES[kind](whole, rng)
    path.write_bytes(damaged)
    category.judge(
        what,
        lambda: Seen(read(path)),
        lambda result: equal(result, reference),
        [path.stem],
        checked=not reason,
    )
  path.write_bytes(whole)
  category.check()


@pytest.mark.parametrize(
    "kind", [".nii", ".nii.gz", ".mgz", "ANALYZE .hdr", "ANALYZE .img", "NIfTI .hdr"]
)
def test_scans(tmp_path, kind):
  path = fuzz_inputs.write_scans(tmp_path)[kind]
  attack(f"scan {kind}", path, lambda one: scan_content(one, tmp_path), 500, 100)


@pytest.mark.parametrize("kind", ["PNG grey", "PNG colour", "PNG palette", "JPEG", "BMP"])
def test_images(tmp_path, kind):
  path = fuzz_inputs.write_pictures(tmp_path)[kind]
  attack(f"image {kind}", path, image_content, 500, 100)
