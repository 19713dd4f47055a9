"""Scores of one volume that lies in slices: overlaps, surfaces in 3-D or within slices, lesions.

Surfaces of a volume are compared in 3-D when its slices are gapless, of one size, more than one,
and their spacing is known; otherwise within slices, in scores of their own names. Without a pixel
spacing they are compared in pixels, in 3-D or within slices alike. Overlaps always count all
pixels of the volume. Lesions are components in 3-D wherever the slices are gapless and of one size,
for that needs no spacing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flexunet.evaluation import lesions, scores, surface_distance
from flexunet.evaluation.labelled_volumes import LabelledVolume
from flexunet.evaluation.lesions import LesionCounts, count_lesions
from flexunet.evaluation.scores import (
    DISTANCE_NAMES,
    in_pixels,
    in_slices,
    label_scores,
    score_names,
    surface_names,
)

AREA_NAMES = ("reference_mm2", "predicted_mm2")


def score_volume(
    volume: LabelledVolume,
    predictions: Sequence[np.ndarray],
    class_names: Sequence[str],
    tolerances_mm: Sequence[float],
    lesion_overlap: float | None = None,
) -> list[dict[str, Any]]:
  """Returns one row per foreground class; see `scores` and `lesions` for what is in it.

  A row has distances in pixels only where the spacing is unknown, `AREA_NAMES` only where surfaces
  are compared within slices in mm.

  Args:
    volume: Truth.
    predictions: uint8 [H, W] of each slice.
    class_names: By id, background first.
    tolerances_mm: Distances up to which two surfaces agree, one surface Dice each.
    lesion_overlap: Share of a lesion that must be overlapped; None: lesions are not scored.
  """
  kind, solid = volume.distances, volume.is_solid
  if solid:
    truth, found = np.stack(volume.labels), np.stack(predictions)
    spacing: tuple[float, ...] = (volume.slice_spacing_mm, *volume.spacing_mm)
  else:  # Slices may differ in size: overlaps need no more than the pixels in a row.
    truth = np.concatenate([label.ravel() for label in volume.labels])[None]
    found = np.concatenate([label.ravel() for label in predictions])[None]
    spacing = (np.nan, np.nan)
  rows = label_scores(truth, found, class_names, spacing, tolerances_mm)
  for class_id, row in enumerate(rows, start=1):
    slices = [
        (label == class_id, prediction == class_id)
        for label, prediction in zip(volume.labels, predictions, strict=True)
    ]
    whole = [(truth == class_id, found == class_id)] if solid else slices
    row.update(_scores_in_slices(volume, slices, tolerances_mm, kind == "2d"))
    if kind == "none":
      row.update(_in_pixels(whole, solid))
    if kind == "2d":
      area = math.prod(volume.spacing_mm)
      counted = (row["reference_pixels"], row["predicted_pixels"])
      row.update({name: n * area for name, n in zip(AREA_NAMES, counted, strict=True)})
    if lesion_overlap is not None:
      counts = (count_lesions(*masks, lesion_overlap) for masks in whole)
      row.update(sum(counts, LesionCounts()).scores())
  names = volume_score_names(tolerances_mm, kind == "none", lesion_overlap is not None)
  return [
      {
          "subject": volume.subject,
          "volume": volume.volume,
          "class": row["class"],
          **{name: row.get(name, math.nan) for name in names},
          **row,
          "slices": len(volume.labels),
          "distances": kind,
          "distances_px": ("3d" if solid else "2d") if kind == "none" else "none",
      }
      for row in rows
  ]


def volume_score_names(
    tolerances_mm: Sequence[float], pixels: bool = False, with_lesions: bool = False
) -> tuple[str, ...]:
  """Returns the name of every score in a row of `score_volume`, in the order of its columns.

  Args:
    tolerances_mm: Of the surface Dice.
    pixels: Whether there are distances in pixels.
    with_lesions: Whether lesions are scored.
  """
  distances = [in_pixels(name) for name in (*DISTANCE_NAMES, *map(in_slices, DISTANCE_NAMES))]
  return (
      *score_names(tolerances_mm),
      *map(in_slices, surface_names(tolerances_mm)),
      *(distances if pixels else ()),
      *(lesions.NAMES if with_lesions else ()),
  )


def _in_pixels(masks: Sequence[tuple[np.ndarray, np.ndarray]], solid: bool) -> dict[str, float]:
  """Returns the distances in pixels, of a volume or pooled over its slices."""
  names = [in_pixels(name if solid else in_slices(name)) for name in DISTANCE_NAMES]
  if any(truth.any() != found.any() for truth, found in masks):
    return dict.fromkeys(names, math.nan)
  pooled = _pooled(masks, (1.0,) * masks[0][0].ndim)
  return dict(zip(names, scores.distance_values(pooled), strict=True))


def _scores_in_slices(
    volume: LabelledVolume,
    slices: Sequence[tuple[np.ndarray, np.ndarray]],
    tolerances_mm: Sequence[float],
    compared: bool,
) -> dict[str, Any]:
  """Returns the scores of the surfaces within each slice, pooled over the slices of the volume.

  Also how many slices have the class in the truth only (`slices_missed`) and in the prediction only
  (`slices_false_alarm`). In such a slice a surface agrees nowhere and has no distance: then neither
  has the volume, for that of its other slices would be better than the volume deserves.

  Args:
    volume: Truth.
    slices: Masks bool [H, W] of truth and prediction in each slice.
    tolerances_mm: Distances up to which two surfaces agree.
    compared: Whether surfaces are compared within slices; otherwise the scores are NaN.
  """
  present = [(bool(truth.any()), bool(found.any())) for truth, found in slices]
  counts = {
      "slices_missed": present.count((True, False)),
      "slices_false_alarm": present.count((False, True)),
  }
  names = [in_slices(name) for name in surface_names(tolerances_mm)]
  if not compared:
    return {**dict.fromkeys(names, math.nan), **counts}
  spacing_mm = volume.spacing_mm
  agreement = surface_distance.SurfaceAgreement(np.zeros(len(tolerances_mm)), 0.0)
  for masks in slices:
    agreement += surface_distance.surface_agreement(*masks, spacing_mm, tolerances_mm)
  distances = (math.nan,) * len(DISTANCE_NAMES)
  if not any(counts.values()):
    distances = scores.distance_values(_pooled(slices, spacing_mm))
  values = (*distances, *agreement.surface_dice().tolist())
  return {**dict(zip(names, values, strict=True)), **counts}


def _pooled(
    masks: Sequence[tuple[np.ndarray, np.ndarray]], spacing_mm: Sequence[float]
) -> surface_distance.SurfaceDistances:
  """Returns the distances of all surface voxels of several pairs of masks."""
  each = [surface_distance.surface_distances(*pair, spacing_mm) for pair in masks]
  return surface_distance.SurfaceDistances(
      np.concatenate([one.from_reference for one in each]),
      np.concatenate([one.from_prediction for one in each]),
  )
