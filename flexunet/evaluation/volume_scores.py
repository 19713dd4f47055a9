"""Scores of one volume that lies in slices: overlaps, and surfaces in 3-D or within its slices.

Surfaces of a volume are compared in 3-D when its slices are gapless, of one size, more than one,
and their spacing is known; otherwise within slices, in scores of their own names. Without a pixel
spacing they are not compared. Overlaps always count all pixels of the volume.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flexunet.evaluation import surface_distance
from flexunet.evaluation.labelled_volumes import LabelledVolume
from flexunet.evaluation.scores import in_slices, label_scores, score_names, surface_names


def score_volume(
    volume: LabelledVolume,
    predictions: Sequence[np.ndarray],
    class_names: Sequence[str],
    tolerances_mm: Sequence[float],
) -> list[dict[str, Any]]:
  """Returns one row per foreground class; see `scores` for what is in it.

  Args:
    volume: Truth.
    predictions: uint8 [H, W] of each slice.
    class_names: By id, background first.
    tolerances_mm: Distances up to which two surfaces agree, one surface Dice each.
  """
  kind = volume.distances
  spacing: tuple[float, ...]
  if kind == "3d":
    truth, found = np.stack(volume.labels), np.stack(predictions)
    spacing = (volume.slice_spacing_mm, *volume.spacing_mm)
  else:  # Slices may differ in size: overlaps need no more than the pixels in a row.
    truth = np.concatenate([label.ravel() for label in volume.labels])[None]
    found = np.concatenate([label.ravel() for label in predictions])[None]
    spacing = (np.nan, np.nan)
  rows = label_scores(truth, found, class_names, spacing, tolerances_mm)
  for class_id, row in enumerate(rows, start=1):
    row.update(_scores_in_slices(volume, predictions, class_id, tolerances_mm, kind == "2d"))
  return [
      {
          "subject": volume.subject,
          "volume": volume.volume,
          "class": row["class"],
          **{name: row[name] for name in volume_score_names(tolerances_mm)},
          **row,
          "slices": len(volume.labels),
          "distances": kind,
      }
      for row in rows
  ]


def volume_score_names(tolerances_mm: Sequence[float]) -> tuple[str, ...]:
  """Returns the name of every score in a row of `score_volume`, in the order of its columns."""
  return (*score_names(tolerances_mm), *map(in_slices, surface_names(tolerances_mm)))


def _scores_in_slices(
    volume: LabelledVolume,
    predictions: Sequence[np.ndarray],
    class_id: int,
    tolerances_mm: Sequence[float],
    compared: bool,
) -> dict[str, Any]:
  """Returns the scores of the surfaces within each slice, pooled over the slices of the volume.

  Also how many slices have the class in the truth only (`slices_missed`) and in the prediction only
  (`slices_false_alarm`). In such a slice a surface agrees nowhere and has no distance: then neither
  has the volume, for that of its other slices would be better than the volume deserves.

  Args:
    volume: Truth.
    predictions: uint8 [H, W] of each slice.
    class_id: The class.
    tolerances_mm: Distances up to which two surfaces agree.
    compared: Whether surfaces are compared within slices; otherwise the scores are NaN.
  """
  slices = [
      (label == class_id, prediction == class_id)
      for label, prediction in zip(volume.labels, predictions, strict=True)
  ]
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
  hausdorff = average = math.nan
  if not any(counts.values()):
    each = [surface_distance.surface_distances(*masks, spacing_mm) for masks in slices]
    pooled = surface_distance.SurfaceDistances(
        np.concatenate([one.from_reference for one in each]),
        np.concatenate([one.from_prediction for one in each]),
    )
    hausdorff, average = pooled.hausdorff(95.0), pooled.average()
  values = (hausdorff, average, *agreement.surface_dice().tolist())
  return {**dict(zip(names, values, strict=True)), **counts}
