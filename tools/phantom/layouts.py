"""Writes phantom raw data: made-up heads in the file layout of a real dataset.

    flexunet phantom hippocampus_t1w OUT --subjects=12 --seed=0

The heads are drawn from formulas, no person is behind them. They let demo and tests run without a
download, and give a model something it can learn. The same seed gives the same files, and subject
n does not depend on how many subjects are asked for.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from flexunet.core import errors
from flexunet.tools.phantom import images, volumes

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
  for index, patient in enumerate(images.ich_patients(subjects)):
    images.write_ich(out, patient, index, _generator(seed, index), size)


def _brain_ich_ct_nifti(out: pathlib.Path, subjects: int, seed: int, size: tuple[int, ...]) -> None:
  # Version 1.3.1, the NIfTI form, has no patients 059 to 065.
  for index, patient in enumerate(images.ich_patients(subjects, absent=range(59, 66))):
    images.write_ich_nifti(out, patient, index, _generator(seed, index), size)


def _brain_stroke_ct(out: pathlib.Path, subjects: int, seed: int, size: tuple[int, ...]) -> None:
  bleeding = images.bleeding_patients()
  for index in range(subjects):
    patient = bleeding[index // 2]
    images.write_stroke(out, patient, index, _generator(seed, index), size)


def _full_head(out: pathlib.Path, subjects: int, seed: int, size: tuple[int, ...]) -> None:
  for index in range(subjects):
    volumes.write_full_head(out, index, _generator(seed, index), size)


def _ms(out: pathlib.Path, subjects: int, seed: int, size: tuple[int, ...]) -> None:
  for index in range(subjects):
    volumes.write_ms(out, index, _generator(seed, index), size)
  volumes.write_ms_tables(out, subjects, size)


def _image_mask(out: pathlib.Path, subjects: int, seed: int, size: tuple[int, ...]) -> None:
  for index in range(subjects):
    images.write_subject(out, index, _generator(seed, index), size)


def _pairs(out: pathlib.Path, subjects: int, seed: int, size: tuple[int, ...]) -> None:
  for index in range(subjects):
    volumes.write_pair(out, index, _generator(seed, index), size)


def _two_channels(out: pathlib.Path, subjects: int, seed: int, size: tuple[int, ...]) -> None:
  for index in range(subjects):
    volumes.write_two_channels(out, index, _generator(seed, index), size)
  volumes.write_dataset_json(out, subjects)


LAYOUTS: dict[str, Layout] = {
    "brain_ich_ct": Layout(images.CT_SIZE, _MOST_CT_SUBJECTS, _brain_ich_ct),
    "brain_ich_ct/nifti": Layout(
        images.CT_NIFTI_SIZE, _MOST_CT_SUBJECTS, _brain_ich_ct_nifti
    ),
    "brain_stroke_ct": Layout(images.STROKE_SIZE, _MOST_CT_SUBJECTS, _brain_stroke_ct),
    "full_head_t1w": Layout(volumes.FULL_HEAD_SIZE, 900, _full_head),
    "hippocampus_t1w": Layout(volumes.HIPPOCAMPUS_SIZE, 800, _hippocampus),
    "image_mask": Layout(images.IMAGE_SIZE, 900, _image_mask),
    "ms_lesion_mri": Layout(volumes.MS_SIZE, 900, _ms),
    "scan_label": Layout(volumes.HIPPOCAMPUS_SIZE, 900, _pairs),
    "scan_label/two_channels": Layout(volumes.HIPPOCAMPUS_SIZE, 900, _two_channels),
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
