"""One table of faults for all builders: each is one line that names the file; nothing is built."""

import errno
import gzip
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys

import build_samples
import numpy as np
import pytest
from PIL import Image

from flexunet.core.errors import InputError
from flexunet.datasets import catalog
from flexunet.tools import build as build_program
from flexunet.tools.phantom import layouts

# dataset: (phantom layout, size, suffix of its scans, config to build).
VOLUMES = {
    "full_head_t1w": ((16, 20, 12), "T1-Weighted MRI/*.nii", "full_head_t1w"),
    "hippocampus_t1w": ((16, 8, 12), "Train/*.img", "hippocampus_t1w"),
    "ms_lesion_mri": ((28, 21, 8), "*-T2.nii", "ms_lesion_mri"),
}
PICTURES = {
    "brain_ich_ct": ((40, 4), "brain/[0-9].jpg", "brain_ich_ct"),
    "brain_stroke_ct": ((64, 8), "images/*/*.png", "brain_stroke_ct"),
    "image_mask": ((48, 3), "images/*.png", "image_mask/full_head_t1w"),
}
ALL = {**VOLUMES, **PICTURES}


def raw_and_scan(dataset: str, tmp_path) -> tuple[pathlib.Path, pathlib.Path]:
  """Returns a phantom folder and the first scan or picture of it."""
  size, pattern, _ = ALL[dataset]
  raw = layouts.write(dataset, tmp_path / "raw", subjects=3, seed=0, size=size)
  return raw, sorted(raw.rglob(pattern))[0]


def refusal(dataset: str, raw, tmp_path) -> str:
  """Builds, expects one line of error and nothing on disk; returns the line."""
  with pytest.raises(InputError) as error:
    build_samples.build(ALL[dataset][2], raw, tmp_path / "out")
  written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
  # TFDS itself notes the name of the default config.
  assert {path.name for path in written} <= {"metadata.json"}
  return str(error.value)


@pytest.mark.parametrize("dataset", ALL)
def test_a_folder_without_the_dataset_is_refused(dataset, tmp_path):
  (tmp_path / "raw").mkdir()
  (tmp_path / "raw" / "notes.txt").write_text("nothing here")
  message = refusal(dataset, tmp_path / "raw", tmp_path)
  assert "nothing of this dataset was found" in message and "Expected layout" in message


@pytest.mark.parametrize("dataset", ALL)
def test_the_folder_of_another_dataset_is_refused(dataset, tmp_path):
  other = "image_mask" if dataset == "hippocampus_t1w" else "hippocampus_t1w"
  layouts.write(other, tmp_path / "raw", subjects=1, seed=0, size=ALL[other][0])
  assert "nothing of this dataset was found" in refusal(dataset, tmp_path / "raw", tmp_path)


@pytest.mark.parametrize("dataset", ALL)
def test_a_link_out_of_the_folder_is_refused(dataset, tmp_path):
  raw, scan = raw_and_scan(dataset, tmp_path)
  outside = tmp_path / f"elsewhere{scan.suffix}"
  shutil.move(scan, outside)
  scan.symlink_to(outside)
  message = refusal(dataset, raw, tmp_path)
  assert scan.name in message and "leads out of the folder" in message


@pytest.mark.parametrize("dataset", ALL)
@pytest.mark.parametrize("target", ["nowhere", "itself"])
def test_a_link_that_leads_nowhere_is_refused(dataset, tmp_path, target):
  raw, scan = raw_and_scan(dataset, tmp_path)
  scan.unlink()
  scan.symlink_to(scan.name if target == "itself" else "nowhere")
  message = refusal(dataset, raw, tmp_path)
  assert scan.name in message and "the link leads to no file" in message


@pytest.mark.parametrize("dataset", ALL)
def test_links_inside_the_folder_are_followed_and_reported(dataset, tmp_path):
  raw, scan = raw_and_scan(dataset, tmp_path)
  real = scan.rename(scan.with_name(f"{scan.name}.real"))
  scan.symlink_to(real.name)
  (raw / "gone").symlink_to("nowhere")
  (raw / "round").symlink_to(raw)
  findings = catalog.builder(ALL[dataset][2], tmp_path / "out").inspect_source(raw)
  name = scan.relative_to(raw).as_posix()
  assert f"Links to files inside the folder were followed: 1, such as {name}." in findings.warnings
  assert findings.left_out["gone"] == "a link that leads nowhere"
  assert findings.left_out["round"] == "a link to a folder, which is not searched"


@pytest.mark.parametrize("dataset", ["ms_lesion_mri", "brain_stroke_ct"])
def test_a_stray_name_that_is_no_utf8_is_escaped_and_no_part_of_the_report(dataset, tmp_path):
  raw, scan = raw_and_scan(dataset, tmp_path)
  for folder in (raw, scan.parent):
    (folder / os.fsdecode(b"caf\xe9.txt")).write_text("x")
  findings = catalog.builder(ALL[dataset][2], tmp_path / "none").inspect_source(raw)
  assert sum(name.endswith("caf\\xe9.txt") for name in findings.left_out) == 2
  builder = build_samples.build(ALL[dataset][2], raw, tmp_path / "out")
  names = [entry["file"] for entry in build_samples.report_of(builder)["left_out"]]
  assert sum(re.fullmatch(r"file_\d{4}\.txt", name) is not None for name in names) >= 2


@pytest.mark.parametrize("dataset", ["full_head_t1w", "image_mask"])
def test_a_scan_whose_name_is_no_utf8_is_refused(dataset, tmp_path):
  raw, scan = raw_and_scan(dataset, tmp_path)
  for path in sorted(raw.rglob(f"{scan.stem}.*")):  # The mask of an image has its name.
    path.rename(path.with_name(os.fsdecode(b"caf\xe9") + path.suffix))
  message = refusal(dataset, raw, tmp_path)
  assert f"caf\\xe9{scan.suffix}: a file name must be UTF-8. Rename it." in message


@pytest.mark.parametrize("dataset", VOLUMES)
def test_a_scan_beside_its_compressed_self_is_refused(dataset, tmp_path):
  raw, scan = raw_and_scan(dataset, tmp_path)
  twin = scan.with_name(f"{scan.name}.gz")
  twin.write_bytes(gzip.compress(scan.read_bytes()))
  assert f"{twin.name}: duplicate of" in refusal(dataset, raw, tmp_path)


@pytest.mark.parametrize("dataset", ALL)
def test_a_folder_that_may_not_be_read_is_named(dataset, tmp_path, monkeypatch):
  raw, scan = raw_and_scan(dataset, tmp_path)
  iterdir = pathlib.Path.iterdir

  def refuse(folder):
    if folder == scan.parent:
      raise PermissionError(errno.EACCES, "Permission denied", str(folder))
    return iterdir(folder)

  monkeypatch.setattr(pathlib.Path, "iterdir", refuse)
  message = refusal(dataset, raw, tmp_path)
  assert message.startswith(f"{scan.parent}: cannot be read (Permission denied).")


@pytest.mark.parametrize("dataset", ALL)
def test_an_unreadable_scan_is_refused_by_name(dataset, tmp_path):
  raw, scan = raw_and_scan(dataset, tmp_path)
  scan.write_bytes(scan.read_bytes()[: scan.stat().st_size // 3])
  assert scan.stem in refusal(dataset, raw, tmp_path)


@pytest.mark.parametrize("dataset", ALL)
def test_names_in_capitals_are_the_same_names(dataset, tmp_path):
  raw, _ = raw_and_scan(dataset, tmp_path)
  expected = len(catalog.builder(ALL[dataset][2], tmp_path).inspect_source(raw).cases)
  for path in sorted(raw.rglob("*"), key=lambda p: -len(p.parts)):
    if path.suffix == ".csv":
      continue
    name = path.stem.upper() + path.suffix.upper() if path.is_file() else path.name.upper()
    path.rename(path.with_name(name))
  findings = catalog.builder(ALL[dataset][2], tmp_path).inspect_source(raw)
  assert len(findings.cases) == expected > 0


@pytest.mark.parametrize("dataset", VOLUMES)
def test_a_header_that_declares_eight_gigabytes_is_refused_before_they_are_taken(dataset, tmp_path):
  raw, scan = raw_and_scan(dataset, tmp_path)
  header = scan.with_suffix(".hdr") if scan.suffix == ".img" else scan
  data = bytearray(header.read_bytes())
  order = "<" if data[:4] == struct.pack("<i", 348) else ">"
  data[40:48] = struct.pack(f"{order}4h", 3, 2000, 2000, 2000)
  header.write_bytes(data)
  assert scan.stem in refusal(dataset, raw, tmp_path)


@pytest.mark.parametrize("dataset", VOLUMES)
def test_a_scan_of_nothing_but_zero_is_refused_by_name(dataset, tmp_path):
  raw, _ = raw_and_scan(dataset, tmp_path)
  [scan, *_] = sorted(p for p in raw.rglob(ALL[dataset][1]) if "LesionSeg" not in p.name)
  data = bytearray(scan.read_bytes())
  start = 352 if scan.suffix == ".nii" else 0  # Where the voxels begin.
  data[start:] = bytes(len(data) - start)
  scan.write_bytes(data)
  message = refusal(dataset, raw, tmp_path)
  assert scan.name in message and "all its voxels are zero" in message


@pytest.mark.parametrize("dataset", ["brain_ich_ct", "brain_stroke_ct"])
def test_an_image_that_is_shown_turned_is_refused_by_name(dataset, tmp_path):
  raw, scan = raw_and_scan(dataset, tmp_path)
  exif = Image.Exif()
  exif[0x0112] = 6  # Turned by a quarter.
  with Image.open(scan) as image:
    image.copy().save(scan, exif=exif)
  message = refusal(dataset, raw, tmp_path)
  assert scan.name in message and "EXIF orientation" in message


@pytest.mark.parametrize("dataset", PICTURES)
@pytest.mark.parametrize(
    ("pixels", "what"),
    [
        (np.zeros((64, 64), np.uint16), "8-bit"),
        (np.zeros((64, 64, 4), np.uint8), "without transparency"),
    ],
)
def test_sixteen_bit_and_transparent_pictures_are_refused(dataset, tmp_path, pixels, what):
  raw, scan = raw_and_scan(dataset, tmp_path)
  Image.fromarray(pixels).save(scan, format="PNG")  # A PNG inside, whatever the name says.
  message = refusal(dataset, raw, tmp_path)
  assert scan.name in message and what in message


@pytest.mark.parametrize("dataset", PICTURES)
def test_a_picture_bomb_is_refused(dataset, tmp_path):
  raw, scan = raw_and_scan(dataset, tmp_path)
  Image.new("1", (8300, 8300)).save(scan, format="PNG")  # Just above the limit.
  message = refusal(dataset, raw, tmp_path)
  assert scan.name in message and "pixels" in message


@pytest.mark.parametrize("dataset", PICTURES)
def test_a_mask_of_another_size_is_refused(dataset, tmp_path):
  raw, _ = raw_and_scan(dataset, tmp_path)
  mask = sorted([*raw.rglob("*_HGE_Seg.jpg"), *raw.rglob("mask*/**/*.png")])[0]
  Image.new("L", (10, 12)).save(mask)
  assert mask.name in refusal(dataset, raw, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["full_head_t1w", "ms_lesion_mri", "brain_stroke_ct"])
def test_the_command_ends_with_one_line_and_code_1(dataset, tmp_path):
  raw, scan = raw_and_scan(dataset, tmp_path)
  scan.write_bytes(b"spoilt")
  command = [sys.executable, "-m", "flexunet.tools.build", ALL[dataset][2],
             f"--manual_dir={raw}", f"--data_dir={tmp_path / 'out'}"]  # fmt: skip
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 1 and not (tmp_path / "out").exists()
  assert done.stderr.startswith("error: ") and scan.name in done.stderr
  assert "Traceback" not in done.stderr


@pytest.mark.parametrize("dataset", ["full_head_t1w", "ms_lesion_mri", "image_mask"])
def test_scans_in_a_format_that_is_not_read_are_named_by_it(dataset, tmp_path):
  raw, scan = raw_and_scan(dataset, tmp_path)
  (scan.parent / "other.mif").write_bytes(b"x")
  findings = catalog.builder(ALL[dataset][2], tmp_path / "out").inspect_source(raw)
  [reason] = [why for name, why in findings.left_out.items() if name.endswith("other.mif")]
  assert reason.startswith(".mif: an MRtrix scan, which is not read")


@pytest.mark.parametrize("dataset", ["full_head_t1w", "image_mask"])
def test_a_folder_of_formats_that_are_not_read_is_named_so(dataset, tmp_path):
  (tmp_path / "raw").mkdir()
  for name in ("a.mif", "b.mif"):
    (tmp_path / "raw" / name).write_bytes(b"x")
  assert "It holds 2 .mif (an MRtrix scan" in refusal(dataset, tmp_path / "raw", tmp_path)


def test_the_terminal_names_files_as_the_raw_folder_does(tmp_path, capsys):
  raw, scan = raw_and_scan("full_head_t1w", tmp_path)
  scan.unlink()
  arguments = [f"--manual_dir={raw}", f"--data_dir={tmp_path / 'out'}", "--num_workers=1"]
  build_program.main(build_program._PROGRAM.parse(["build", "full_head_t1w", *arguments]))
  [label] = raw.rglob(f"{scan.stem.removesuffix('_deface')}_label*")
  assert f"{label.relative_to(raw)}: has no scan; left out." in capsys.readouterr().err
