"""Writes phantom slices as images: the CT datasets, also as volumes in HU, and ready-made folders.

Sizes are (edge, slices): images of edge x edge pixels, slices from the skull base up.
"""

from __future__ import annotations

import csv
import dataclasses
import pathlib
from collections.abc import Container, Iterable, Sequence

import nibabel as nib
import numpy as np
from PIL import Image

from flexunet.datasets import published_palettes
from flexunet.datasets.brain_ich_ct import ct_ich_patients
from flexunet.tools.phantom import anatomy, appearance

Size = tuple[int, ...]
CT_SIZE = (650, 16)
CT_NIFTI_SIZE = (512, 16)
STROKE_SIZE = (512, 16)
_FIELD_MM = 230.0
_LOWEST_MM, _HIGHEST_MM = -32.0, 78.0
_BRAIN_WINDOW = (40.0, 120.0)
_BONE_WINDOW = (700.0, 3200.0)
_ICH_ROOT = (
    "computed-tomography-images-for-intracranial-hemorrhage-detection-and-segmentation-1.0.0"
)
_STROKE_TREE = ("NEW-DATASET", "REAL-TIME STROKE DETECTION IN MRI, CT, PET IMAGES", "CT Images",
                "data")  # fmt: skip
_CSV_COLUMNS = ("PatientNumber", "SliceNumber", *appearance.SUBTYPES, "No_Hemorrhage",
                "Fracture_Yes_No")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class CtScan:
  """One drawn CT.

  Attributes:
    hu: float32 [i, j, k], axes left, anterior, superior.
    lesions: subtype -> bool [i, j, k]; empty for a healthy head.
    spacing_mm: Edge of a voxel along each axis.
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
  field_mm = (_FIELD_MM, _FIELD_MM, _HIGHEST_MM - _LOWEST_MM)
  centre = (0.0, 0.0, (_HIGHEST_MM + _LOWEST_MM) / 2)
  grid = anatomy.Grid.covering(field_mm, (edge, edge, slices), "LAS", centre)
  head = anatomy.draw_head(rng)
  coordinates = grid.coordinates()
  tissue, _ = anatomy.tissue_map(head, grid)
  masks = {}
  for name in lesions:
    if name == "Ischemic":
      masks[name] = appearance.infarct(coordinates, tissue, rng)
    else:
      masks[name] = appearance.bleeding(name, head, coordinates, tissue, rng)
  for name, mask in masks.items():
    ischemic = name == "Ischemic"
    tissue[mask] = appearance.CT_INFARCT if ischemic else appearance.LESION
  return CtScan(appearance.ct_hu(tissue, rng), masks, grid.spacing_mm)


def upright(voxels: np.ndarray) -> np.ndarray:
  """Returns [i, j, k] in axes L, A, S as [rows, columns, k] with anterior up."""
  return np.rot90(voxels)


def jpeg(pixels: np.ndarray, path: pathlib.Path, quality: int = 90) -> None:
  """Writes uint8 [H, W] as JPEG."""
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.ascontiguousarray(pixels)).save(path, quality=quality)


def png(pixels: np.ndarray, path: pathlib.Path) -> None:
  """Writes uint8 [H, W] as PNG."""
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.ascontiguousarray(pixels)).save(path)


def bleeding_patients(absent: Container[int] = ()) -> list[int]:
  """Returns patients with a haemorrhage by the published list, so that phantoms agree with it.

  The first falls into train, the next into validation, test, train, train, and so on.
  """
  return _by_split([n for n in ct_ich_patients.HEMORRHAGE_PATIENTS if n not in absent])


def _by_split(numbers: Iterable[int]) -> list[int]:
  split_of = ct_ich_patients.splits()
  waiting: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
  for number in sorted(numbers):
    waiting[split_of[ct_ich_patients.subject_name(number)]].append(number)
  order = []
  while any(waiting.values()):
    for split in ("train", "validation", "test", "train", "train"):
      if waiting[split]:
        order.append(waiting[split].pop(0))
  return order


def ich_patients(count: int, absent: Container[int] = ()) -> list[int]:
  """Returns the first `count` phantom patients: every third one is without haemorrhage."""
  every = range(ct_ich_patients.FIRST_PATIENT, ct_ich_patients.LAST_PATIENT + 1)
  bleeding = iter(bleeding_patients(absent))
  others = set(every) - ct_ich_patients.HEMORRHAGE_PATIENTS
  healthy = iter(_by_split(n for n in others if n not in absent))
  return [next(healthy if index % 3 == 2 else bleeding) for index in range(count)]


def ich_lesions(index: int, rng: np.random.Generator) -> tuple[str, ...]:
  """Returns subtypes in turn; every third subject has none, every second of the others two."""
  if index % 3 == 2:
    return ()
  first = appearance.SUBTYPES[(index + 1) % 5]
  other = appearance.SUBTYPES[int(rng.integers(5))]
  return (first, other) if index % 2 == 1 and other != first else (first,)


def write_ich(
    out: pathlib.Path, patient: int, index: int, rng: np.random.Generator, size: Size
) -> None:
  """Writes a CT-ICH patient of v1.0.0: brain and bone windows, masks of positive slices, rows.

  The quirks: masks carry JPEG noise; the first positive slice of every third subject has no mask
  (the CSV alone knows it bleeds), and the eighth, seventeenth, ... has no masks at all; one bone
  image of the first subject is missing.
  """
  scan = draw_ct(rng, size, ich_lesions(index, rng))
  folder = out / _ICH_ROOT / "Patients_CT" / f"{patient:03d}"
  brain = upright(appearance.window(scan.hu, *_BRAIN_WINDOW))
  bone = upright(appearance.window(scan.hu, *_BONE_WINDOW))
  mask = upright(scan.mask)
  # A slice counts as positive when one could see it: at least 4 pixels in 10,000.
  enough = max(4, size[0] ** 2 // 2500)
  positive = [k for k in range(size[1]) if mask[..., k].sum() >= enough]
  masked = positive[1:] if index % 3 == 1 and len(positive) > 2 else positive
  if index % 9 == 7:
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
            for name in appearance.SUBTYPES]  # fmt: skip
    rows.append([patient, number, *seen, int(not bleeds), int(index % 5 == 0 and k < 2)])
  _append_rows(out / _ICH_ROOT / "hemorrhage_diagnosis.csv", _CSV_COLUMNS, rows)


def _append_rows(
    path: pathlib.Path, columns: Sequence[str], rows: Sequence[Sequence[int]]
) -> None:
  new = not path.exists()
  # The published table opens with a byte order mark and ends its lines with CR LF.
  with path.open("a", newline="", encoding="utf-8-sig" if new else "utf-8") as stream:
    writer = csv.writer(stream, lineterminator="\r\n")
    if new:
      writer.writerow(columns)
    writer.writerows(rows)


def write_ich_nifti(
    out: pathlib.Path, patient: int, index: int, rng: np.random.Generator, size: Size
) -> None:
  """Writes one CT-ICH patient of v1.3.1: HU and a 0/255 mask with rounding noise, axes L, A, S."""
  scan = draw_ct(rng, size, ich_lesions(index, rng))
  affine = np.diag([-scan.spacing_mm[0], *scan.spacing_mm[1:], 1.0])
  # The mask was resampled by the publisher, so its values are near 0 and 255, not equal to them.
  noisy = scan.mask * 255.0 + rng.uniform(-3, 3, scan.mask.shape)
  for folder, voxels in (("ct_scans", scan.hu), ("masks", noisy.clip(0, 255))):
    path = out / folder / f"{patient:03d}.nii"
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels.round().astype(np.int16), affine), path)
  rows = []
  for k in range(size[1]):
    seen = [int(scan.lesions[name][..., k].any()) if name in scan.lesions else 0
            for name in appearance.SUBTYPES]  # fmt: skip
    rows.append([patient, k + 1, *seen, int(not any(seen)), 0])
  _append_rows(out / "hemorrhage_diagnosis_raw_ct.csv", _CSV_COLUMNS, rows)


def write_stroke(
    out: pathlib.Path, patient: int, index: int, rng: np.random.Generator, size: Size
) -> None:
  """Writes one subject of the stroke set: even ones bleed, odd ones have an infarct.

  The quirks: one bleeding subject in four has no mask folder; of the others every second calls its
  masks `N_HGE_Seg.jpg`; infarct masks hold 0/255, 0..5, or 0 and 251..255, in turn.
  """
  ischemic = index % 2 == 1
  number = index // 2
  lesions = ("Ischemic",) if ischemic else (appearance.SUBTYPES[number % 5],)
  scan = draw_ct(rng, size, lesions)
  brain = upright(appearance.window(scan.hu, *_BRAIN_WINDOW))
  mask = upright(scan.mask)
  subject = f"{539000 + 7 * number:07d}" if ischemic else f"{patient:03d}"
  part = "Testing" if number % 4 == 3 else "Training"
  root = out.joinpath(*_STROKE_TREE, part, "Ischemic" if ischemic else "Hemorrhagic")
  without_masks = not ischemic and number % 4 == 2
  for k in np.flatnonzero(mask.any(axis=(0, 1))):
    name = f"{k + 1:03d}" if ischemic else f"{k + 1}"
    png(brain[..., k], root / "images" / subject / f"{name}.png")
    if without_masks:
      continue
    if not ischemic and number % 2 == 1:
      jpeg(mask[..., k] * np.uint8(255), root / "mask" / subject / f"{name}_HGE_Seg.jpg", 75)
      continue
    values = mask[..., k] * np.uint8(255)
    if ischemic and number % 3 == 1:
      values = mask[..., k] * rng.choice(np.array([1, 2, 3, 5], np.uint8), mask.shape[:2])
    elif ischemic and number % 3 == 2:
      values = mask[..., k] * rng.integers(251, 256, mask.shape[:2], dtype=np.uint8)
    png(values, root / "mask" / subject / f"{name}.png")


IMAGE_SIZE = (256, 8)  # Edge in pixels, and slices per subject, of a ready-made folder.
_SLICE_FIELD_MM = 230.0


def split_of(index: int) -> str:
  """Returns the published split of a subject: of each five, three train, one valid, one test."""
  return ("train", "valid", "test", "train", "train")[index % 5]


def write_subject(out: pathlib.Path, index: int, rng: np.random.Generator, size: Size) -> None:
  """Writes all slices of one subject, named `<1001 + index>_<slice>`.

  Images are grey, stored as RGB; every second subject has JPEG images beside PNG masks.
  Masks are RGB in the palette of the published full-head masks and, as those, were enlarged with
  interpolation: colours between those of the palette run along every edge.
  """
  edge, slices = size
  coarse = max(8, edge * 4 // 5)
  field_mm = (_SLICE_FIELD_MM, _SLICE_FIELD_MM, 110.0)
  shape = (coarse, coarse, slices)
  grid = anatomy.Grid.covering(field_mm, shape, "LAS", (0.0, 0.0, 15.0))
  tissue, _ = anatomy.tissue_map(anatomy.draw_head(rng), grid)
  image = (appearance.mri(tissue, "t1", rng, bias=0.15) * 1.6).clip(0, 255).astype(np.uint8)
  mask = published_palettes.FULL_HEAD.palette[tissue]
  folder = out / split_of(index)
  for kind in ("images", "masks"):
    (folder / kind).mkdir(parents=True, exist_ok=True)
  for k in range(slices):
    stem = f"{1001 + index}_{10 * (k + 1)}"
    shown = Image.fromarray(np.ascontiguousarray(np.rot90(image[..., k])))
    colors = Image.fromarray(np.ascontiguousarray(np.rot90(mask[..., k, :])))
    suffix = "jpg" if index % 2 == 1 else "png"
    shown = shown.resize((edge, edge), Image.Resampling.BILINEAR).convert("RGB")
    shown.save(folder / "images" / f"{stem}.{suffix}")
    colors = colors.resize((edge, edge), Image.Resampling.BILINEAR)
    colors.save(folder / "masks" / f"{stem}.png")
