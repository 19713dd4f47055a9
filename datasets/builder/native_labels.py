"""Labels on a scan's own grid, kept in the records of slices that were resampled.

A network sees the resampled slices, but scores must be of the truth as it was drawn. So the record
of a resampled slice also holds the labels of those slices of the scan to which it is the nearest:
an evaluation brings its predictions back slice by slice, and no volume is stored twice as a whole.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from flexunet.datasets.builder import case_records
from flexunet.imaging import slice_recipe
from flexunet.imaging.slice_recipe import CutVolume

LABEL, SLICE_INDEX, SPACING_MM = "native_label", "native_slice_index", "native_spacing_mm"


@dataclasses.dataclass(frozen=True, eq=False)
class NativeSlices:
  """The slices of a scan to which one resampled slice is the nearest.

  Attributes:
    labels: Class ids uint8 [H, W] each, in order; often one, maybe none or several.
    slice_index: Position of the first of them in the scan; -1 where there is none.
    spacing_mm: (row, column, slice) of the scan.
  """

  labels: list[np.ndarray]
  slice_index: int
  spacing_mm: tuple[float, float, float]


def features() -> dict[str, Any]:
  """Returns the features that a record of a resampled slice has beside the others."""
  return {
      LABEL: tfds.features.Tensor(
          shape=(None,), dtype=np.str_,
          doc="PNG of the class ids of each slice of the scan's own grid nearest to this one.",
      ),
      SLICE_INDEX: tfds.features.Scalar(
          np.int32, doc="Position of the first of them in the scan; -1 where there is none."
      ),
      SPACING_MM: tfds.features.Tensor(
          shape=(3,), dtype=np.float32, doc="Row, column and slice distance in the scan."
      ),
  }  # fmt: skip


def of_slices(cut: CutVolume) -> Iterator[dict[str, Any]]:
  """Yields the values of `features` for each resampled slice of a volume, in order."""
  spacing_mm = np.array([*cut.native.spacing_mm, cut.native.slice_spacing_mm], np.float32)
  count = cut.slices.pixels.shape[2]
  nearest = slice_recipe.nearest(count, cut.native.pixels.shape[2])
  for index in range(count):
    own = np.flatnonzero(nearest == index)
    label = cut.native_label
    kept = [] if label is None else [np.ascontiguousarray(label[:, :, k]) for k in own]
    yield {
        LABEL: np.array([case_records.encode_png(one) for one in kept], object),
        SLICE_INDEX: int(own[0]) if kept else -1,
        SPACING_MM: spacing_mm,
    }


def decode(record: Mapping[str, Any]) -> NativeSlices | None:
  """Returns what a record holds, decoded to NumPy; None where it has no such features."""
  if LABEL not in record:
    return None
  row_mm, column_mm, slice_mm = map(float, record[SPACING_MM])
  return NativeSlices(
      labels=[np.asarray(Image.open(io.BytesIO(png)), np.uint8) for png in record[LABEL]],
      slice_index=int(record[SLICE_INDEX]),
      spacing_mm=(row_mm, column_mm, slice_mm),
  )
