"""Scores of one volume or image: overlaps, volumes in ml, surface distances in mm or in pixels.

Labels and masks have two or three axes in any order; `spacing_mm` has one entry per axis, in the
same order, NaN where the source has none.

Rules for what is not defined; NaN is never averaged, and `status` says why:

| status       | reference | prediction | overlap, surface Dice | sensitivity | precision | mm, px |
|--------------|-----------|------------|-----------------------|-------------|-----------|--------|
| both_present | voxels    | voxels     | given                 | given       | given     | given  |
| missed       | voxels    | none       | 0                     | 0           | NaN       | NaN    |
| false_alarm  | none      | voxels     | 0                     | NaN         | 0         | NaN    |
| both_empty   | none      | none       | NaN                   | NaN         | NaN       | NaN    |

| status       | volume error (ml) | relative | lesion sensitivity, precision, F1 |
|--------------|-------------------|----------|-----------------------------------|
| both_present | given             | given    | see `lesions`                     |
| missed       | -reference        | -1       | 0, NaN, 0                         |
| false_alarm  | +prediction       | NaN      | NaN, 0, 0                         |
| both_empty   | NaN               | NaN      | NaN, NaN, NaN                     |

Two empty masks agree on nothing: 1 would reward datasets for empty volumes. A missed structure has
no distance: infinity would spoil every mean, and any finite substitute would be arbitrary. So a
mean of distances must be read beside the count of missed structures, which Dice and surface Dice
count as 0. Two empty masks have no volume error for the same reason as no Dice.

Distances run between voxel centres, the surface Dice counts area: see `surface_distance`. HD95 and
HD100 are the larger of the two directed 95th percentiles and maxima. ASSD is the mean over all
surface voxels of both masks, so the larger surface weighs more; MASD is the mean of the two
directed means, so both directions weigh alike. Scores of surfaces that were compared within slices
have names of their own (`in_slices`), so that they are never averaged with those in 3-D; a slice
with the class in only one of reference and prediction has no distance, nor has its volume.

With an unknown spacing the scores in mm and ml are NaN whatever the status. Distances are then in
pixels, in scores of their own (`hd95_px`): each axis counts voxels, slices included, so they
compare networks on the same images and nothing else. There is no surface Dice in pixels: its
tolerance is how far experts disagree, in mm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flexunet.core.errors import InputError
from flexunet.evaluation import surface_distance

_NAN = float("nan")
STATUSES = ("both_present", "missed", "false_alarm", "both_empty")
OVERLAP_NAMES = ("dice", "iou", "sensitivity", "specificity", "precision")
DISTANCE_NAMES = ("hd95_mm", "assd_mm", "hd100_mm", "masd_mm")
VOLUME_NAMES = ("reference_ml", "predicted_ml")
VOLUME_ERROR_NAMES = ("volume_error_ml", "volume_error_relative")
_DISTANCE_STEMS = tuple(name.removesuffix("mm") for name in DISTANCE_NAMES)
# Contours that two experts draw of brain structures on 1 mm scans differ by about 1 mm.
DEFAULT_TOLERANCES_MM = (1.0,)


def checked_tolerances(tolerances_mm: Sequence[float | str]) -> tuple[float, ...]:
  """Returns the tolerances as distinct numbers, in rising order.

  Raises:
    InputError: One is no positive number, or there is none.
  """
  try:
    tolerances = tuple(sorted({float(tolerance) for tolerance in tolerances_mm}))
  except ValueError:
    tolerances = ()
  if not tolerances or not all(0 < tolerance < math.inf for tolerance in tolerances):
    raise InputError(
        "--surface_tolerance_mm must be numbers and must be above 0, with commas between several."
        f" Got: {','.join(map(str, tolerances_mm))!r}."
    )
  return tolerances


def surface_dice_name(tolerance_mm: float) -> str:
  """Returns the name of the surface Dice at a tolerance: `surface_dice_1mm`."""
  return f"surface_dice_{tolerance_mm:g}mm"


def surface_names(tolerances_mm: Sequence[float]) -> tuple[str, ...]:
  """Returns the names of the scores of surfaces: distances, and a surface Dice per tolerance."""
  return (*DISTANCE_NAMES, *map(surface_dice_name, tolerances_mm))


def score_names(tolerances_mm: Sequence[float]) -> tuple[str, ...]:
  """Returns the name of every score in a row of `mask_scores`, in the order of its columns."""
  return (
      *OVERLAP_NAMES, *surface_names(tolerances_mm), *VOLUME_NAMES, *VOLUME_ERROR_NAMES
  )  # fmt: skip


def in_pixels(distance_name: str) -> str:
  """Returns the name of a distance in pixels: `hd95_px`."""
  return distance_name.removesuffix("mm") + "px"


def in_slices(surface_name: str) -> str:
  """Returns the name of a score of surfaces compared within slices: `hd95_2d_mm`."""
  stem, tolerance_and_unit = surface_name.rsplit("_", 1)
  return f"{stem}_2d_{tolerance_and_unit}"


def is_in_slices(score_name: str) -> bool:
  """Returns whether a score is one of surfaces compared within slices."""
  return "_2d_" in score_name


def is_surface(score_name: str) -> bool:
  """Returns whether a score is one of surfaces, in 3-D or within slices."""
  return is_distance(score_name) or score_name.startswith("surface_dice_")


def is_distance(score_name: str) -> bool:
  """Returns whether a score is a distance, in mm or pixels, which no number bounds."""
  return score_name.removesuffix("mm").removesuffix("px").replace("_2d_", "_") in _DISTANCE_STEMS


def is_in_pixels(score_name: str) -> bool:
  """Returns whether a score is a distance in pixels."""
  return is_distance(score_name) and score_name.endswith("_px")


def mask_scores(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: Sequence[float] | np.ndarray,
    tolerances_mm: Sequence[float] = DEFAULT_TOLERANCES_MM,
) -> dict[str, Any]:
  """Returns the scores of one boolean mask against another of the same shape.

  Keys: `status`, `reference_pixels`, `predicted_pixels` and those of `score_names`. Volumes in ml
  need three axes.

  Args:
    reference: Truth.
    prediction: Of the same shape.
    spacing_mm: One number per axis.
    tolerances_mm: Distances up to which two surfaces agree, one surface Dice each.

  Raises:
    InputError: Shapes, spacing or tolerances do not fit.
  """
  reference, prediction = np.asarray(reference, bool), np.asarray(prediction, bool)
  spacing = surface_distance.checked_spacing(spacing_mm, reference, prediction)
  tolerances = checked_tolerances(tolerances_mm)
  truth, claim = int(np.count_nonzero(reference)), int(np.count_nonzero(prediction))
  overlap = int(np.count_nonzero(reference & prediction))
  scores = {
      **count_scores(truth, claim, overlap, reference.size),
      **_surface_scores(reference, prediction, spacing, tolerances),
  }
  voxel_ml = float(np.prod(spacing)) / 1000.0 if spacing.size == 3 else _NAN
  scores["reference_ml"] = truth * voxel_ml
  scores["predicted_ml"] = claim * voxel_ml
  scores["volume_error_ml"] = (claim - truth) * voxel_ml if truth or claim else _NAN
  scores["volume_error_relative"] = _ratio(claim - truth, truth)
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
    tolerances_mm: Sequence[float] = DEFAULT_TOLERANCES_MM,
) -> list[dict[str, Any]]:
  """Returns one row per foreground class: `class` (its name) and the keys of `mask_scores`.

  Args:
    reference: Class ids, integers of two or three axes.
    prediction: Class ids of the same shape.
    class_names: Names by id, background first.
    spacing_mm: One number per axis.
    tolerances_mm: Distances up to which two surfaces agree, one surface Dice each.

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
      {"class": name, **mask_scores(reference == i, prediction == i, spacing_mm, tolerances_mm)}
      for i, name in enumerate(class_names)
      if i
  ]


def _surface_scores(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing: np.ndarray,
    tolerances: tuple[float, ...],
) -> dict[str, float]:
  names = surface_names(tolerances)
  if not np.isfinite(spacing).all():
    return dict.fromkeys(names, _NAN)
  distances = surface_distance.surface_distances(reference, prediction, spacing)
  agreement = surface_distance.surface_agreement(reference, prediction, spacing, tolerances)
  values = (*distance_values(distances), *agreement.surface_dice().tolist())
  return dict(zip(names, values, strict=True))


def distance_values(distances: surface_distance.SurfaceDistances) -> tuple[float, ...]:
  """Returns the distances in the order of `DISTANCE_NAMES`."""
  return (
      distances.hausdorff(95.0), distances.average(), distances.hausdorff(100.0),
      distances.mean_of_directions(),
  )  # fmt: skip


def _ratio(part: int, whole: int) -> float:
  return part / whole if whole else _NAN
