"""Writes phantom subjects as the volume files their publishers ship: ANALYZE and NIfTI.

Each writer makes the files of one subject; `index` counts subjects from 0 and, with the random
generator it is given, decides everything about them. Sizes are voxels of the stored array.

Writes the smallest spreadsheet (.xlsx) a reader accepts: one sheet of numbers and texts.
"""

from __future__ import annotations

import json
import pathlib
import zipfile
from collections.abc import Sequence
from xml.sax import saxutils

import nibabel as nib
import numpy as np

from flexunet.tools.phantom import anatomy, appearance

Size = tuple[int, ...]
HIPPOCAMPUS_SIZE = (96, 40, 96)
# Millimetres that the default grid covers; other sizes cover the same with other voxels.
_HIPPOCAMPUS_FIELD_MM = (200.0, 80.0, 200.0)
_HIPPOCAMPUS_CENTRE_MM = (0.0, -15.0, -4.0)
# Spots of a two-channel phantom, a third each in T1, in FLAIR and in both, and where they may lie.
_SPOTS, _SPOT_REACH_MM = 18, (45.0, 36.0, 45.0)
FULL_HEAD_SIZE = (88, 104, 96)
_FULL_HEAD_FIELD_MM = (176.0, 208.0, 192.0)
MS_SIZE = (112, 96, 20)  # Rows run to posterior, columns to the right.
_MS_FIELD_MM = (208.0, 176.0, 100.0)
_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_TYPE = "application/vnd.openxmlformats-officedocument.spreadsheetml"
_PARTS = {
    "[Content_Types].xml": (
        f'<Types xmlns="{_PACKAGE}/content-types">'
        '<Default Extension="rels" ContentType='
        '"application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{_TYPE}.sheet.main+xml"/>'
        f'<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{_TYPE}.worksheet+xml"/>'
        "</Types>"
    ),
    "_rels/.rels": (
        f'<Relationships xmlns="{_PACKAGE}/relationships"><Relationship Id="rId1"'
        f' Type="{_OFFICE}/officeDocument" Target="xl/workbook.xml"/></Relationships>'
    ),
    "xl/workbook.xml": (
        f'<workbook xmlns="{_MAIN}" xmlns:r="{_OFFICE}"><sheets>'
        '<sheet name="Sheet1" sheetId="1" r:id="rId1"/></sheets></workbook>'
    ),
    "xl/_rels/workbook.xml.rels": (
        f'<Relationships xmlns="{_PACKAGE}/relationships"><Relationship Id="rId1"'
        f' Type="{_OFFICE}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>'
    ),
}
_PROLOGUE = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>'
# A fixed date: the same rows give the same bytes.
_DATE = (1980, 1, 1, 0, 0, 0)


def _analyze(voxels: np.ndarray, spacing_mm, byte_order: str, path: pathlib.Path) -> None:
  """Writes an ANALYZE 7.5 pair of an int16 [i, j, k] array, with the trailing axis of length 1."""
  header = nib.AnalyzeHeader(endianness=byte_order)
  header.set_data_dtype(np.int16)
  header.set_data_shape((*voxels.shape, 1))
  header.set_zooms((*spacing_mm, 1.0))
  path.parent.mkdir(parents=True, exist_ok=True)
  image = nib.AnalyzeImage(voxels.astype(np.int16)[..., None], None, header)
  image.to_filename(path)


def write_hippocampus(
    out: pathlib.Path, index: int, labelled: bool, rng: np.random.Generator, size: Size
) -> None:
  """Writes one HFH subject: coronal slices on axis 1, axes left, anterior, superior.

  As in the published files there are two in-plane matrices: subjects 4, 5, 9, 10, ... have 4/3 of
  the given edge on voxels of 3/4 the size. Every second subject is big-endian.
  """
  finer = 4 / 3 if index % 5 >= 3 else 1.0
  shape = (round(size[0] * finer), size[1], round(size[2] * finer))
  field_mm, centre_mm = _HIPPOCAMPUS_FIELD_MM, _HIPPOCAMPUS_CENTRE_MM
  grid = anatomy.Grid.covering(field_mm, shape, "LAS", centre_mm)
  tissue, hippocampus = anatomy.tissue_map(anatomy.draw_head(rng), grid)
  image = appearance.mri(tissue, "t1", rng) * rng.uniform(4, 12)
  name = f"HFH_{index + 1:03d}"
  byte_order = "<" if index % 2 == 0 else ">"
  half = "Train" if labelled else "Test"
  _analyze(image, grid.spacing_mm, byte_order, out / half / f"{name}.hdr")
  if labelled:
    label_path = out / "Train" / "Labels" / f"{name}_Hipp_Labels.hdr"
    _analyze(hippocampus, grid.spacing_mm, byte_order, label_path)


def write_full_head(out: pathlib.Path, index: int, rng: np.random.Generator, size: Size) -> None:
  """Writes one subject of the full-head set: T1 as int16, the seven classes as float32.

  Every fifth subject is a control (no `_deface` in its names); the label of every fourth is 4-D,
  that of every third is stored as uint8.
  """
  grid = anatomy.Grid.covering(_FULL_HEAD_FIELD_MM, size, "LAS", (0.0, 0.0, -2.0))
  tissue, _ = anatomy.tissue_map(anatomy.draw_head(rng), grid)
  image = (appearance.mri(tissue, "t1", rng, noise=4.0, bias=0.15) * 4).astype(np.int16)
  label = tissue.astype(np.uint8 if index % 3 == 2 else np.float32)
  control = index % 5 == 4
  subject = f"{'NC' if control else ('GU', 'NYU')[index % 2]}{index + 1:03d}"
  suffix = "" if control else "_deface"
  root = out / "Data" / ("Control_Subjects" if control else "Anonymized_Subjects")
  for folder, name, voxels in (
      ("T1-Weighted MRI", f"{subject}{suffix}.nii", image),
      ("Full-Head Segmentation", f"{subject}_label{suffix}.nii",
       label[..., None] if index % 4 == 1 else label),
  ):  # fmt: skip
    (root / folder).mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, grid.affine), root / folder / name)
  metadata = out / "Data" / "Metadata.csv"
  if not metadata.exists():
    metadata.write_text("\ufeffSubject,Group\r\n", encoding="utf-8", newline="")
  with metadata.open("a", encoding="utf-8", newline="") as stream:
    stream.write(f"{subject},{'control' if control else 'stroke'}\r\n")


def write_pair(out: pathlib.Path, index: int, rng: np.random.Generator, size: Size) -> None:
  """Writes one subject as images/NAME + labels/NAME: T1, the two hippocampi as 1 and 2."""
  grid = anatomy.Grid.covering(_HIPPOCAMPUS_FIELD_MM, size, "LAS", _HIPPOCAMPUS_CENTRE_MM)
  tissue, hippocampus = anatomy.tissue_map(anatomy.draw_head(rng), grid)
  image = (appearance.mri(tissue, "t1", rng) * rng.uniform(4, 12)).astype(np.int16)
  for folder, voxels in (("images", image), ("labels", hippocampus.astype(np.uint8))):
    (out / folder).mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, grid.affine), out / folder / f"head_{index + 1:03d}.nii")


def write_two_channels(
    out: pathlib.Path, index: int, rng: np.random.Generator, size: Size
) -> None:
  """Writes one subject of an nnU-Net folder: T1 and FLAIR, of which neither alone suffices.

  Spots are bright in T1, in FLAIR or in both; only those in both are lesions.
  """
  grid = anatomy.Grid.covering(_HIPPOCAMPUS_FIELD_MM, size, "LAS", _HIPPOCAMPUS_CENTRE_MM)
  tissue, _ = anatomy.tissue_map(anatomy.draw_head(rng), grid)
  bright = np.zeros((2, *tissue.shape), bool)
  for number in range(_SPOTS):
    centre = [rng.uniform(-1, 1) * reach for reach in _SPOT_REACH_MM]
    spot = anatomy.ellipsoid(grid.coordinates(), centre, rng.uniform(6, 11, 3)) < 1
    for channel in ((0,), (1,), (0, 1))[number % 3]:
      bright[channel] |= spot
  for channel, contrast in enumerate(("t1", "flair")):
    image = appearance.mri(tissue, contrast, rng) + 70 * bright[channel]
    name = f"head_{index + 1:03d}_{channel:04d}.nii"
    (out / "imagesTr").mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(image.astype(np.int16), grid.affine), out / "imagesTr" / name)
  (out / "labelsTr").mkdir(exist_ok=True)
  label = nib.Nifti1Image(bright.all(axis=0).astype(np.uint8), grid.affine)
  nib.save(label, out / "labelsTr" / f"head_{index + 1:03d}.nii")


def write_dataset_json(out: pathlib.Path, subjects: int) -> None:
  """Writes the `dataset.json` of a folder of `write_two_channels`."""
  about = {
      "channel_names": {"0": "T1", "1": "FLAIR"},
      "labels": {"background": 0, "lesion": 1},
      "numTraining": subjects,
      "file_ending": ".nii",
  }
  (out / "dataset.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def write_ms(out: pathlib.Path, index: int, rng: np.random.Generator, size: Size) -> None:
  """Writes one MS patient: three modalities on grids of their own, as float64 without geometry.

  Axes are posterior, right, superior. T1 is finer by 8/7 in its plane, FLAIR has two slices more.
  """
  rows, columns, slices = size
  shapes = {
      "T2": (rows, columns, slices),
      "T1": (rows * 8 // 7, columns * 8 // 7, slices),
      "Flair": (rows, columns, slices + 2),
  }
  folder = out / f"Patient-{index + 1}"
  folder.mkdir(parents=True, exist_ok=True)
  head = anatomy.draw_head(rng)
  lesion_seed = int(rng.integers(2**31))
  for modality, shape in shapes.items():
    grid = anatomy.Grid.covering(_MS_FIELD_MM, shape, "PRS", (0.0, 0.0, 22.0))
    tissue, _ = anatomy.tissue_map(head, grid)
    # The same plaques in each modality, wherever its voxels lie.
    plaques = appearance.plaques(
        grid.coordinates(), tissue, np.random.default_rng(lesion_seed)
    )
    tissue[plaques] = appearance.LESION
    image = appearance.mri(tissue, modality.lower(), rng, noise=4.0, bias=0.15)
    _bare_nifti(image, folder / f"{index + 1}-{modality}.nii")
    _bare_nifti(plaques, folder / f"{index + 1}-LesionSeg-{modality}.nii")


def _bare_nifti(voxels: np.ndarray, path: pathlib.Path) -> None:
  """Writes a float64 NIfTI that states neither spacing nor orientation."""
  image = nib.Nifti1Image(voxels.astype(np.float64), None)
  image.header.set_data_dtype(np.float64)
  image.set_qform(None, code=0)
  image.set_sform(None, code=0)
  nib.save(image, path)


def write_ms_tables(out: pathlib.Path, subjects: int, size: Size) -> None:
  """Writes the two spreadsheets; builders read the spacing from the second one."""
  patients: list[list[float | str | None]] = [["ID"]]
  patients.extend([n + 1] for n in range(subjects))
  write(out / "Supplementary Table 1 for patient info .xlsx", patients)
  between_mm = _MS_FIELD_MM[2] / size[2]
  flair_mm = _MS_FIELD_MM[2] / (size[2] + 2)
  columns = ["Slice Thickness (mm)", "Spacing Between Slices (mm)"]
  rows: list[list[float | str | None]] = [
      ["Patient ID", "T1-Weighted", None, "T2-Weighted", None, "FLAIR", None],
      [None, *columns, *columns, *columns],
  ]
  for n in range(subjects):
    pairs = [value for mm in (between_mm, between_mm, flair_mm) for value in (0.9 * mm, mm)]
    rows.append([n + 1, *pairs])
  write(out / "Supplementary Table 2 for  sequence parameters .xlsx", rows)


def _column(index: int) -> str:
  name = ""
  while index >= 0:
    index, letter = divmod(index, 26)
    name, index = chr(ord("A") + letter) + name, index - 1
  return name


def _cell(value: float | str | None, reference: str) -> str:
  if value is None:
    return ""
  if isinstance(value, str):
    return f'<c r="{reference}" t="inlineStr"><is><t>{saxutils.escape(value)}</t></is></c>'
  return f'<c r="{reference}"><v>{value}</v></c>'


def write(path: pathlib.Path, rows: Sequence[Sequence[float | str | None]]) -> None:
  """Writes `rows`; None leaves a cell out, as spreadsheet programs do."""
  lines = []
  for number, row in enumerate(rows, start=1):
    cells = "".join(_cell(value, f"{_column(n)}{number}") for n, value in enumerate(row))
    lines.append(f'<row r="{number}">{cells}</row>')
  sheet = f'<worksheet xmlns="{_MAIN}"><sheetData>{"".join(lines)}</sheetData></worksheet>'
  path.parent.mkdir(parents=True, exist_ok=True)
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, text in {**_PARTS, "xl/worksheets/sheet1.xml": sheet}.items():
      archive.writestr(zipfile.ZipInfo(name, _DATE), _PROLOGUE + text)
