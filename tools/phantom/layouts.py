"""Writes phantom raw data: synthetic heads in the file layout of a real dataset.

    python -m flexunet.tools.phantom hippocampus_t1w OUT --subjects=12 --seed=0

The heads are drawn from formulas, no person is behind them. They let demo and tests run without a
download, and give a model something it can learn. The same seed gives the same files, and subject
n does not depend on how many subjects are asked for.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from flexunet.core import errors
from flexunet.datasets import published_palettes
from flexunet.tools.phantom import anatomy, appearance, ct, volumes

IMAGE_SIZE = (256, 8)  # Edge in pixels, and slices per subject, of the folder of images and masks.
_FIELD_MM = 230.0
# So few patients of the published list never bled: one phantom of three takes their numbers.
_MOST_CT_SUBJECTS = 54


@dataclasses.dataclass(frozen=True)
class Layout:
  """How one dataset is written.

  Attributes:
    default_size: Used where the caller gives none; a shorter size takes the missing end from it.
    most_subjects: As many as the layout has names for.
    write: Called with (out, subjects, seed, size).
  """

  default_size: tuple[int, ...]
  most_subjects: int
  write: Callable[[pathlib.Path, int, int, tuple[int, ...]], None]


def _generator(seed: int, index: int) -> np.random.Generator:
  return np.random.default_rng([seed, index])


def _hippocampus(out: pathlib.Path, subjects: int, seed: int, size: tuple[int, ...]) -> None:
  """`subjects` in Train/ with labels, and a tenth of that (at least one) in Test/ without."""
  for index in range(subjects + max(1, subjects // 10)):
    volumes.write_hippocampus(
        out, index, index < subjects, _generator(seed, index), size
    )


def _brain_ich_ct(out: pathlib.Path, subjects: int, seed: int, size: tuple[int, ...]) -> None:
  for index, patient in enumerate(ct.ich_patients(subjects)):
    ct.write_ich(out, patient, index, _generator(seed, index), size)


def _brain_ich_ct_nifti(out: pathlib.Path, subjects: int, seed: int, size: tuple[int, ...]) -> None:
  # Version 1.3.1, the NIfTI form, has no patients 059 to 065.
  for index, patient in enumerate(ct.ich_patients(subjects, absent=range(59, 66))):
    ct.write_ich_nifti(out, patient, index, _generator(seed, index), size)


def _brain_stroke_ct(out: pathlib.Path, subjects: int, seed: int, size: tuple[int, ...]) -> None:
  bleeding = ct.bleeding_patients()
  for index in range(subjects):
    patient = bleeding[index // 2]
    ct.write_stroke(out, patient, index, _generator(seed, index), size)


def _full_head(out: pathlib.Path, subjects: int, seed: int, size: tuple[int, ...]) -> None:
  for index in range(subjects):
    volumes.write_full_head(out, index, _generator(seed, index), size)


def _ms(out: pathlib.Path, subjects: int, seed: int, size: tuple[int, ...]) -> None:
  for index in range(subjects):
    volumes.write_ms(out, index, _generator(seed, index), size)
  volumes.write_ms_tables(out, subjects, size)


def _image_mask(out: pathlib.Path, subjects: int, seed: int, size: tuple[int, ...]) -> None:
  for index in range(subjects):
    _write_images(out, index, _generator(seed, index), size)


def _write_images(
    out: pathlib.Path, index: int, rng: np.random.Generator, size: tuple[int, ...]
) -> None:
  """Writes all slices of one subject, named `<1001 + index>_<slice>`.

  Images are grey, stored as RGB; every second subject has JPEG images beside PNG masks. Masks are
  RGB in the palette of the published full-head masks and, as those, were enlarged with
  interpolation: colours between those of the palette run along every edge.
  """
  edge, slices = size
  coarse = max(8, edge * 4 // 5)
  field_mm = (_FIELD_MM, _FIELD_MM, 110.0)
  shape = (coarse, coarse, slices)
  grid = anatomy.Grid.covering(field_mm, shape, "LAS", (0.0, 0.0, 15.0))
  tissue, _ = anatomy.tissue_map(anatomy.draw_head(rng), grid)
  voxels = (appearance.mri(tissue, "t1", rng, bias=0.15) * 1.6).clip(0, 255).astype(np.uint8)
  painted = published_palettes.FULL_HEAD.palette[tissue]
  folder = out / ("train", "valid", "test", "train", "train")[index % 5]
  for kind in ("images", "masks"):
    (folder / kind).mkdir(parents=True, exist_ok=True)
  for k in range(slices):
    stem = f"{1001 + index}_{10 * (k + 1)}"
    image = Image.fromarray(np.ascontiguousarray(np.rot90(voxels[..., k])))
    mask = Image.fromarray(np.ascontiguousarray(np.rot90(painted[..., k, :])))
    suffix = "jpg" if index % 2 == 1 else "png"
    image = image.resize((edge, edge), Image.Resampling.BILINEAR).convert("RGB")
    image.save(folder / "images" / f"{stem}.{suffix}")
    mask = mask.resize((edge, edge), Image.Resampling.BILINEAR)
    mask.save(folder / "masks" / f"{stem}.png")


LAYOUTS: dict[str, Layout] = {
    "brain_ich_ct": Layout(ct.CT_SIZE, _MOST_CT_SUBJECTS, _brain_ich_ct),
    "brain_ich_ct/nifti": Layout(
        ct.CT_NIFTI_SIZE, _MOST_CT_SUBJECTS, _brain_ich_ct_nifti
    ),
    "brain_stroke_ct": Layout(ct.STROKE_SIZE, _MOST_CT_SUBJECTS, _brain_stroke_ct),
    "full_head_t1w": Layout(volumes.FULL_HEAD_SIZE, 900, _full_head),
    "hippocampus_t1w": Layout(volumes.HIPPOCAMPUS_SIZE, 800, _hippocampus),
    "image_mask": Layout(IMAGE_SIZE, 900, _image_mask),
    "ms_lesion_mri": Layout(volumes.MS_SIZE, 900, _ms),
}


def write(
    dataset: str,
    out_dir: str | pathlib.Path,
    subjects: int = 12,
    seed: int = 0,
    size: Sequence[int] | None = None,
) -> pathlib.Path:
  """Writes phantom raw data of `dataset` into a new or empty folder and returns it.

  Args:
    dataset: A key of `LAYOUTS`.
    out_dir: Created when missing; a folder with anything in it is refused.
    subjects: Labelled subjects; a layout with an unlabelled part gets some more.
    seed: Decides everything about them, together with the number of the subject.
    size: Voxels per stored axis, or (edge, slices) of images; see `Layout.default_size`.
  """
  if dataset not in LAYOUTS:
    raise errors.unknown_name("phantom dataset", dataset, LAYOUTS)
  layout, out = LAYOUTS[dataset], pathlib.Path(out_dir)
  if not 1 <= subjects <= layout.most_subjects:
    raise errors.InputError(
        f"Phantoms of {dataset}: subjects must be 1 to {layout.most_subjects}. Got: {subjects}."
    )
  given = tuple(size or ())
  if len(given) > len(layout.default_size) or any(edge < 2 for edge in given):
    raise errors.InputError(
        f"Phantoms of {dataset}: size must be up to {len(layout.default_size)} numbers of at least"
        f" 2, as in {layout.default_size}. Got: {given}."
    )
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise errors.InputError(f"{out}: phantoms go into a new or an empty folder. Name another one.")
  out.mkdir(parents=True, exist_ok=True)
  layout.write(out, subjects, seed, given + layout.default_size[len(given) :])
  return out
