"""Scores of one volume or image: overlaps, volumes in ml, surface distances in mm.

Labels and masks have two or three axes in any order; `spacing_mm` has one entry per axis, in the
same order, NaN where the source has none.

Rules for what is not defined; NaN is never averaged, and `status` says why:

| status       | reference | prediction | dice, iou | sensitivity | precision | nsd | hd95, assd |
|--------------|-----------|------------|-----------|-------------|-----------|-----|------------|
| both_present | voxels    | voxels     | value     | value       | value     | value | value    |
| missed       | voxels    | none       | 0         | 0           | NaN       | 0   | NaN        |
| false_alarm  | none      | voxels     | 0         | NaN         | 0         | 0   | NaN        |
| both_empty   | none      | none       | NaN       | NaN         | NaN       | NaN | NaN        |

Two empty masks agree on nothing: 1 would reward datasets for empty volumes. A missed structure has
no distance: infinity would spoil every mean, and any finite substitute would be arbitrary. So a
mean of distances must be read beside the count of missed structures; Dice and NSD count them as 0.
With an unknown spacing the scores in mm and ml are NaN whatever the status.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flexunet.core.errors import InputError
from flexunet.evaluation import surface_distance

_NAN = float("nan")
STATUSES = ("both_present", "missed", "false_alarm", "both_empty")
# Every number in a row of `mask_scores`, in the order of its columns.
SCORE_NAMES = (
    "dice", "iou", "sensitivity", "specificity", "precision", "hd95_mm", "assd_mm", "nsd",
    "reference_ml", "predicted_ml",
)
# Contours that two experts draw of brain structures on 1 mm scans differ by about 1 mm.
DEFAULT_TOLERANCE_MM = 1.0


def mask_scores(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: Sequence[float] | np.ndarray,
    tolerance_mm: float = DEFAULT_TOLERANCE_MM,
) -> dict[str, Any]:
  """Returns the scores of one boolean mask against another of the same shape.

  Keys: `status`, `reference_pixels`, `predicted_pixels` and those of `SCORE_NAMES`. `nsd` is the
  normalized surface Dice at `tolerance_mm`; volumes in ml need three axes.

  Raises:
    InputError: Shapes, spacing or tolerance do not fit.
  """
  reference, prediction = np.asarray(reference, bool), np.asarray(prediction, bool)
  spacing = surface_distance.checked_spacing(spacing_mm, reference, prediction)
  if not tolerance_mm > 0:
    raise InputError(f"tolerance_mm must be above 0. Got: {tolerance_mm!r}.")
  truth, claim = int(np.count_nonzero(reference)), int(np.count_nonzero(prediction))
  overlap = int(np.count_nonzero(reference & prediction))
  scores = {
      **count_scores(truth, claim, overlap, reference.size),
      **_surface_scores(reference, prediction, spacing, tolerance_mm),
  }
  voxel_ml = float(np.prod(spacing)) / 1000.0 if spacing.size == 3 else _NAN
  scores["reference_ml"] = truth * voxel_ml
  scores["predicted_ml"] = claim * voxel_ml
  return scores


def count_scores(truth: int, claim: int, overlap: int, total: int) -> dict[str, Any]:
  """Returns status, voxel counts and the overlap scores from numbers of voxels.

  Args:
    truth: Voxels of the reference.
    claim: Voxels of the prediction.
    overlap: Voxels of both.
    total: Voxels of the whole array.
  """
  return {
      "status": case_status(truth, claim),
      "reference_pixels": truth,
      "predicted_pixels": claim,
      "dice": _ratio(2 * overlap, truth + claim),
      "iou": _ratio(overlap, truth + claim - overlap),
      "sensitivity": _ratio(overlap, truth),
      "specificity": _ratio(total - truth - claim + overlap, total - truth),
      "precision": _ratio(overlap, claim),
  }


def case_status(truth: int, claim: int) -> str:
  """Returns which of `STATUSES` holds for these numbers of voxels."""
  if truth:
    return "both_present" if claim else "missed"
  return "false_alarm" if claim else "both_empty"


def label_scores(
    reference: np.ndarray,
    prediction: np.ndarray,
    class_names: Sequence[str],
    spacing_mm: Sequence[float] | np.ndarray,
    tolerance_mm: float = DEFAULT_TOLERANCE_MM,
) -> list[dict[str, Any]]:
  """Returns one row per foreground class: `class` (its name) and the keys of `mask_scores`.

  Args:
    reference: Class ids, integers of two or three axes.
    prediction: Class ids of the same shape.
    class_names: Names by id, background first.
    spacing_mm: One number per axis.
    tolerance_mm: Distance up to which two surfaces agree, for the normalized surface Dice.

  Raises:
    InputError: Shapes or spacing do not fit, or an id has no name.
  """
  reference, prediction = np.asarray(reference), np.asarray(prediction)
  surface_distance.checked_spacing(spacing_mm, reference, prediction)
  for side, ids in (("Reference", reference), ("Prediction", prediction)):
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < len(class_names):
      raise InputError(
          f"{side} ids must lie in 0..{len(class_names) - 1}, the ids of {list(class_names)}."
          f" Got {ids.min()}..{ids.max()}."
      )
  return [
      {"class": name, **mask_scores(reference == i, prediction == i, spacing_mm, tolerance_mm)}
      for i, name in enumerate(class_names)
      if i
  ]


def _surface_scores(
    reference: np.ndarray, prediction: np.ndarray, spacing: np.ndarray, tolerance_mm: float
) -> dict[str, float]:
  if not np.isfinite(spacing).all():
    return {"hd95_mm": _NAN, "assd_mm": _NAN, "nsd": _NAN}
  distances = surface_distance.surface_distances(reference, prediction, spacing)
  if distances.defined:
    nsd = distances.surface_dice(tolerance_mm)
  else:  # A surface without a counterpart agrees nowhere; without any surface nothing is defined.
    nsd = 0.0 if reference.any() or prediction.any() else _NAN
  return {"hd95_mm": distances.hausdorff(95.0), "assd_mm": distances.average(), "nsd": nsd}


def _ratio(part: int, whole: int) -> float:
  return part / whole if whole else _NAN
