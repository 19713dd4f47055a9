"""Writes phantom subjects of the CT datasets: slices as JPEG or PNG, and volumes in HU.

Sizes are (edge, slices): pictures of edge x edge pixels, slices from the skull base up.
"""

from __future__ import annotations

import csv
import dataclasses
import pathlib

import numpy as np
from PIL import Image

from flexunet.tools import phantom_anatomy
from flexunet.tools import phantom_contrast
from flexunet.tools import phantom_lesions

Size = tuple[int, ...]

CT_SIZE = (650, 16)
_FIELD_MM = 230.0
_LOWEST_MM, _HIGHEST_MM = -32.0, 78.0
_BRAIN_WINDOW = (40.0, 120.0)
_BONE_WINDOW = (700.0, 3200.0)
_ICH_ROOT = "computed-tomography-images-for-intracranial-hemorrhage-detection-and-segmentation-1.0.0"
_CSV_COLUMNS = ("PatientNumber", "SliceNumber", *phantom_lesions.SUBTYPES, "No_Hemorrhage",
                "Fracture_Yes_No")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class CtScan:
  """One drawn CT.

  Attributes:
    hu: float32 [i, j, k], axes left, anterior, superior.
    lesions: subtype -> bool [i, j, k]; empty for a healthy head.
    spacing_mm: Of the three axes.
  """

  hu: np.ndarray
  lesions: dict[str, np.ndarray]
  spacing_mm: tuple[float, float, float]

  @property
  def mask(self) -> np.ndarray:
    """bool [i, j, k]: all lesions together."""
    return np.any([np.zeros(self.hu.shape, bool), *self.lesions.values()], axis=0)


def draw_ct(rng: np.random.Generator, size: Size, lesions: tuple[str, ...]) -> CtScan:
  """Draws a head with lesions: subtypes of bleeding, or "Ischemic"."""
  edge, slices = size
  spacing_mm = (_FIELD_MM / edge, _FIELD_MM / edge, (_HIGHEST_MM - _LOWEST_MM) / slices)
  centre = (0.0, 0.0, (_HIGHEST_MM + _LOWEST_MM) / 2)
  grid = phantom_anatomy.Grid((edge, edge, slices), spacing_mm, "LAS", centre)
  head = phantom_anatomy.draw_head(rng)
  coordinates = grid.coordinates()
  tissue, _ = phantom_anatomy.tissue_map(head, grid)
  masks = {}
  for name in lesions:
    if name == "Ischemic":
      masks[name] = phantom_lesions.infarct(coordinates, tissue, rng)
    else:
      masks[name] = phantom_lesions.bleeding(name, head, coordinates, tissue, rng)
  for mask in masks.values():
    tissue[mask] = phantom_contrast.LESION
  hu = phantom_contrast.ct_hu(tissue, rng)
  if "Ischemic" in masks:
    hu[masks["Ischemic"]] -= phantom_contrast.CT_HU[phantom_contrast.LESION] - 17
  return CtScan(hu, masks, spacing_mm)


def upright(voxels: np.ndarray) -> np.ndarray:
  """[i, j, k] in axes L, A, S -> [rows, columns, k] with anterior up."""
  return np.rot90(voxels)


def jpeg(pixels: np.ndarray, path: pathlib.Path, quality: int = 90) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.ascontiguousarray(pixels)).save(path, quality=quality)


def ich_lesions(index: int, rng: np.random.Generator) -> tuple[str, ...]:
  """Two of three subjects bleed: one subtype each in turn, every second one with another."""
  if index % 3 == 2:
    return ()
  first = phantom_lesions.SUBTYPES[(index + 1) % 5]
  other = phantom_lesions.SUBTYPES[int(rng.integers(5))]
  return (first, other) if index % 2 == 1 and other != first else (first,)


def write_ich(
    out: pathlib.Path, patient: int, index: int, rng: np.random.Generator, size: Size
) -> None:
  """One CT-ICH patient of v1.0.0: brain and bone windows, masks on positive slices, CSV rows.

  The quirks: masks carry JPEG noise; the first positive slice of every third subject has no mask
  (the CSV alone knows it bleeds), and the ninth, nineteenth, ... subject has no masks at all; one
  bone picture of the first subject is missing.
  """
  scan = draw_ct(rng, size, ich_lesions(index, rng))
  folder = out / _ICH_ROOT / "Patients_CT" / f"{patient:03d}"
  brain = upright(phantom_contrast.window(scan.hu, *_BRAIN_WINDOW))
  bone = upright(phantom_contrast.window(scan.hu, *_BONE_WINDOW))
  mask = upright(scan.mask)
  # A slice counts as positive when one could see it: at least 4 pixels in 10,000.
  enough = max(4, size[0] ** 2 // 2500)
  positive = [k for k in range(size[1]) if mask[..., k].sum() >= enough]
  masked = positive[1:] if index % 3 == 1 and len(positive) > 2 else positive
  if index % 10 == 8:
    masked = []
  rows = []
  for k in range(size[1]):
    number = k + 1
    jpeg(brain[..., k], folder / "brain" / f"{number}.jpg")
    if not (index == 0 and number == size[1] // 2):
      jpeg(bone[..., k], folder / "bone" / f"{number}.jpg")
    if k in masked:
      noisy = mask[..., k].astype(np.uint8) * np.uint8(255)
      jpeg(noisy, folder / "brain" / f"{number}_HGE_Seg.jpg", quality=75)
    bleeds = k in positive
    seen = [int(bleeds and name in scan.lesions and scan.lesions[name][..., k].any())
            for name in phantom_lesions.SUBTYPES]  # fmt: skip
    rows.append([patient, number, *seen, int(not bleeds), int(index % 5 == 0 and k < 2)])
  _append_rows(out / _ICH_ROOT / "hemorrhage_diagnosis.csv", _CSV_COLUMNS, rows)


def _append_rows(path: pathlib.Path, columns, rows) -> None:
  new = not path.exists()
  # The published table opens with a byte order mark and ends its lines with CR LF.
  with path.open("a", newline="", encoding="utf-8-sig" if new else "utf-8") as stream:
    writer = csv.writer(stream, lineterminator="\r\n")
    if new:
      writer.writerow(columns)
    writer.writerows(rows)
