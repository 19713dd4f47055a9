"""Flipped bits and worse in scans of the formats that optional packages read."""

import dicom_samples
import fuzz_damage
import fuzz_inputs
import fuzz_judge
import numpy as np
import pytest
from fuzz_judge import Seen

from flexunet.imaging import scan_files

pytestmark = pytest.mark.fuzz

_REASON = "MetaImage, NRRD and DICOM hold no checksum; headers that cannot be are refused"


def content(path):
  header = scan_files.read_header(path)
  stored, slope, inter = scan_files.read_stored(path)
  return stored.voxels, stored.affine, stored.oriented, slope, inter, header.axis_codes


def equal(one, other):
  return all(np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f")
             for a, b in zip(one, other, strict=True))  # fmt: skip


def attack(name, path, files, names):
  """Damages one of the files of a scan over and over."""
  reference = content(path)
  category = fuzz_judge.category(name, _REASON)
  rng = fuzz_judge.generator(name)
  for number in range(fuzz_judge.trials(600)):
    file = files[rng.integers(len(files))]
    whole = file.read_bytes()
    kind = list(fuzz_damage.BYTES)[number // 6 % len(fuzz_damage.BYTES)] if number % 6 == 0 else ""
    if kind:
      what, damaged = kind, fuzz_damage.BYTES[kind](whole, rng)
    elif rng.random() < 0.5:  # The header, which is short beside the voxels.
      what, head = fuzz_damage.flip(whole[:600], rng)
      damaged = head + whole[600:]
    else:
      what, damaged = fuzz_damage.flip(whole, rng)
    file.write_bytes(damaged)
    category.judge(
        f"{file.name}: {what}",
        lambda: Seen(content(path)),
        lambda result: equal(result, reference),
        names,
        checked=False,
    )
    file.write_bytes(whole)
  category.check()


@pytest.mark.needs_extra("itk")
@pytest.mark.parametrize("ending", [".mha", ".nrrd", ".mhd", ".nhdr"])
def test_itk(tmp_path, ending):
  # Part of the extra that the marker names.
  import SimpleITK

  path = tmp_path / f"scan{ending}"
  image = SimpleITK.GetImageFromArray(fuzz_inputs.voxels())
  image.SetSpacing((1.0, 1.5, 3.0))
  SimpleITK.WriteImage(image, str(path), ending in (".nrrd", ".nhdr"))
  files = sorted(tmp_path.iterdir())
  attack(f"scan {ending}", path, files, [file.stem for file in files])


@pytest.mark.needs_extra("dicom")
def test_dicom(tmp_path):
  files = dicom_samples.write_series(tmp_path / "series", fuzz_inputs.voxels()[..., :5])
  attack("scan .dcm", files[0], files, [str(tmp_path / "series")])
