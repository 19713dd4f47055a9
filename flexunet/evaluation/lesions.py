"""Scores of lesions: which of them are found, and which of those found are real.

A lesion is a connected component of the truth (26 neighbours in 3-D, 8 in 2-D), a predicted one of
the prediction. A true lesion is found where the prediction overlaps it; a predicted one is false
where the truth does not overlap it. One voxel of overlap is enough by default; with an overlap of
0 < t <= 1 at least the share t of the lesion's own voxels must be overlapped. The other side counts
as a whole: a lesion that two predicted ones cover together is found, and each of these is judged by
itself; a predicted one that covers two lesions finds both and is one predicted lesion.

Sensitivity is found / true lesions, precision is (predicted - false) / predicted, F1 is their
harmonic mean. Rules for what is not defined, as in `scores`:

| true lesions | predicted | sensitivity | precision | F1  |
|--------------|-----------|-------------|-----------|-----|
| some         | some      | given       | given     | given; 0 where both are 0 |
| some         | none      | 0           | NaN       | 0   |
| none         | some      | NaN         | 0         | 0   |
| none         | none      | NaN         | NaN       | NaN |

Counts are 0 where there is nothing: false positives per volume are a mean over all volumes.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from flexunet.core.errors import InputError
from flexunet.imaging import components
from flexunet.imaging.components import Components, bounding_box, components_of

RATIO_NAMES = ("lesion_sensitivity", "lesion_precision", "lesion_f1")
COUNT_NAMES = (
    "lesions_reference", "lesions_predicted", "lesions_missed", "lesions_false_positive",
)  # fmt: skip
NAMES = (*RATIO_NAMES, *COUNT_NAMES)


@dataclasses.dataclass(frozen=True)
class LesionCounts:
  """Numbers of lesions, of one mask or added over several.

  Attributes:
    reference: True lesions.
    predicted: Predicted lesions.
    missed: True lesions that are not found.
    false_positive: Predicted lesions that are false.
  """

  reference: int = 0
  predicted: int = 0
  missed: int = 0
  false_positive: int = 0

  def __add__(self, other: LesionCounts) -> LesionCounts:
    return LesionCounts(*(
        own + more
        for own, more in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
    ))

  def scores(self) -> dict[str, float | int]:
    """Returns the entries of `NAMES`; ratios are NaN where they are not defined."""
    sensitivity = _share(self.reference - self.missed, self.reference)
    precision = _share(self.predicted - self.false_positive, self.predicted)
    if not self.reference and not self.predicted:
      harmonic = math.nan
    elif not self.reference or not self.predicted or not sensitivity + precision:
      harmonic = 0.0
    else:
      harmonic = 2 * sensitivity * precision / (sensitivity + precision)
    ratios = (sensitivity, precision, harmonic)
    return dict(zip(NAMES, (*ratios, *dataclasses.astuple(self)), strict=True))


def checked_overlap(overlap: float) -> float:
  """Returns the share of a lesion that must be overlapped.

  Raises:
    InputError: It is not within 0..1.
  """
  if not 0 <= overlap <= 1:
    raise InputError(
        "--lesion_overlap must be a share of a lesion, 0 to 1; 0 stands for one voxel. Got:"
        f" {overlap:g}."
    )
  return float(overlap)


def rule(overlap: float) -> str:
  """Returns in words how lesions are matched, for metrics.json."""
  part = f"at least {overlap:.0%} of its voxels" if overlap else "at least one of its voxels"
  return (
      f"A lesion is a connected component ({components.RULE}): in 3-D where the slices of a volume"
      " are of one size and none is missing between them, else within slices. A true lesion is"
      f" found where {part} is predicted as the class; a predicted one is false unless {part} is"
      " truly of the class. Whatever else overlaps counts together, so lesions that are split or"
      " merged are not lost. F1 is the harmonic mean of lesion sensitivity and precision. Without"
      " true and predicted lesions nothing is defined; with only one of them F1 is 0."
  )


def count_lesions(
    reference: np.ndarray, prediction: np.ndarray, overlap: float = 0.0
) -> LesionCounts:
  """Returns the numbers of lesions of two boolean masks of one shape, two or three axes.

  Args:
    reference: Truth.
    prediction: Of the same shape.
    overlap: Share of a lesion that must be overlapped; 0: one voxel.
  """
  box = bounding_box(reference | prediction)
  reference, prediction = reference[box], prediction[box]
  true, claimed = components_of(reference), components_of(prediction)
  return LesionCounts(
      reference=true.sizes.size,
      predicted=claimed.sizes.size,
      missed=int(np.count_nonzero(~_overlapped(true, prediction, overlap))),
      false_positive=int(np.count_nonzero(~_overlapped(claimed, reference, overlap))),
  )


def _overlapped(found: Components, other: np.ndarray, overlap: float) -> np.ndarray:
  """Returns bool [components], whether enough of each lies in the other mask."""
  shared = np.bincount(found.numbers[other[found.box]], minlength=found.sizes.size + 1)[1:]
  # A margin for rounding: 3 of 10 voxels are a share of 0.3.
  return (shared > 0) & (shared >= overlap * found.sizes - 1e-9)


def _share(part: int, whole: int) -> float:
  return part / whole if whole else math.nan
