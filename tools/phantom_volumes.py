"""Writes phantom subjects as the volume files their publishers ship: ANALYZE and NIfTI.

Each writer makes the files of one subject; `index` counts subjects from 0 and, with the random
generator it is given, decides everything about them. Sizes are voxels of the stored array.
"""

from __future__ import annotations

import pathlib

import nibabel as nib
import numpy as np

from flexunet.tools import phantom_anatomy
from flexunet.tools import phantom_contrast

Size = tuple[int, ...]

HIPPOCAMPUS_SIZE = (96, 40, 96)
# Millimetres that the default grid covers; other sizes cover the same with other voxels.
_HIPPOCAMPUS_FIELD_MM = (200.0, 80.0, 200.0)
_HIPPOCAMPUS_CENTRE_MM = (0.0, -15.0, -4.0)


def _analyze(voxels: np.ndarray, spacing_mm, byte_order: str, path: pathlib.Path) -> None:
  """ANALYZE 7.5 pair of an int16 [i, j, k] array, with the trailing axis of length 1."""
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
  """One HFH subject: coronal slices on axis 1, axes left, anterior, superior.

  As in the published files there are two in-plane matrices: subjects 4, 5, 9, 10, ... have 4/3 of
  the given edge on voxels of 3/4 the size. Every second subject is big-endian.
  """
  finer = 4 / 3 if index % 5 >= 3 else 1.0
  shape = (round(size[0] * finer), size[1], round(size[2] * finer))
  spacing_mm = tuple(
      field / count for field, count in zip(_HIPPOCAMPUS_FIELD_MM, shape, strict=True)
  )
  grid = phantom_anatomy.Grid(shape, spacing_mm, "LAS", _HIPPOCAMPUS_CENTRE_MM)
  tissue, hippocampus = phantom_anatomy.tissue_map(phantom_anatomy.draw_head(rng), grid)
  image = phantom_contrast.mri(tissue, "t1", rng) * rng.uniform(4, 12)
  name = f"HFH_{index + 1:03d}"
  byte_order = "<" if index % 2 == 0 else ">"
  _analyze(image, spacing_mm, byte_order, out / ("Train" if labelled else "Test") / f"{name}.hdr")
  if labelled:
    label_path = out / "Train" / "Labels" / f"{name}_Hipp_Labels.hdr"
    _analyze(hippocampus, spacing_mm, byte_order, label_path)
