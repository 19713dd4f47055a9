"""From scores of single volumes to the figures of a split: means, spreads, intervals.

A row is one volume and class: a dict with `subject`, `volume`, `class` (name), `status` (one of
`scores.STATUSES`), `dice` and any further scores. NaN means that a score is not
defined for that row: it is left out of averages and counted.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flexunet.evaluation.scores import STATUSES

Row = Mapping[str, Any]
# Stored beside the figures, so that a reader of metrics.json need not guess.
DICE_RULE = (
    "Dice = 2 |truth and prediction| / (|truth| + |prediction|), of hard labels over all pixels"
    " of a volume, per class, background left out. A class that is empty in the truth and in the"
    " prediction of a volume has no Dice there: it is left out of means and counted as n_empty."
    " Empty in only one of the two is a Dice of 0."
)
FOREGROUND_RULE = (
    "Per volume the mean Dice over its foreground classes that have one; then the mean over the"
    " volumes. Volumes in which truth and prediction are both empty in every foreground class"
    " are left out and counted as n_empty."
)
INTERVAL_RULE = (
    "95 % percentile interval of 2000 bootstrap resamples of subjects, all volumes of a subject"
    " together; null with fewer than 3 subjects."
)
PUBLISHED_RULE = (
    "Mean over slices of (2 sum(y p) + 1) / (sum(y) + sum(p) + 1), with y the one-hot truth, p the"
    " probabilities, and the sums over height, width and class, background included."
)
_RESAMPLES = 2000
_MIN_SUBJECTS = 3


def statistics(values: Sequence[float]) -> dict[str, float | int]:
  """Returns mean, median, sd (n - 1), min, max and n of the values that are not NaN."""
  finite = np.asarray([value for value in values if not np.isnan(value)], np.float64)
  if not finite.size:
    return {**dict.fromkeys(("mean", "median", "sd", "min", "max"), math.nan), "n": 0}
  return {
      "mean": float(finite.mean()),
      "median": float(np.median(finite)),
      "sd": float(finite.std(ddof=1)) if finite.size > 1 else math.nan,
      "min": float(finite.min()),
      "max": float(finite.max()),
      "n": int(finite.size),
  }


def subject_interval(
    values: Sequence[float], subjects: Sequence[str], *, seed: int = 0
) -> tuple[float, float] | None:
  """Returns the 95 % bootstrap interval of the mean of `values`, resampled by subject.

  Volumes of one person are not independent, so whole subjects are drawn. NaN values are left
  out. None where fewer than three subjects have a value: there is nothing to resample.
  """
  sums: dict[str, float] = collections.defaultdict(float)
  counts: dict[str, int] = collections.defaultdict(int)
  for value, subject in zip(values, subjects, strict=True):
    if not np.isnan(value):
      sums[subject] += value
      counts[subject] += 1
  if len(sums) < _MIN_SUBJECTS:
    return None
  names = sorted(sums)
  total = np.array([sums[name] for name in names])
  count = np.array([counts[name] for name in names])
  draws = np.random.default_rng(seed).integers(0, len(names), size=(_RESAMPLES, len(names)))
  means = total[draws].sum(axis=1) / count[draws].sum(axis=1)
  low, high = np.percentile(means, [2.5, 97.5])
  return float(low), float(high)


def foreground_dice(rows: Sequence[Row]) -> dict[tuple[str, str], float]:
  """Returns (subject, volume) -> mean Dice of its foreground classes; NaN where none has one."""
  scores: dict[tuple[str, str], list[float]] = {}
  for row in rows:
    scores.setdefault((row["subject"], row["volume"]), []).append(row["dice"])
  return {key: statistics(values)["mean"] for key, values in scores.items()}


def summarize(
    rows: Sequence[Row], class_names: Sequence[str], score_names: Sequence[str]
) -> dict[str, Any]:
  """Returns the figures of one split.

  Args:
    rows: One per volume and foreground class.
    class_names: Foreground classes, in the order of their ids.
    score_names: Columns to average per class, `dice` among them.

  Returns:
    `foreground_dice`, `per_class`, `per_subject` and `rules`; NaN where undefined. Per class also
    `presence`: in how many volumes it was found, missed, or found where there is none.
  """
  per_volume = foreground_dice(rows)
  overall = list(per_volume.values())
  return {
      "foreground_dice": {
          **statistics(overall),
          "ci95": subject_interval(overall, [subject for subject, _ in per_volume]),
          "n_empty": sum(math.isnan(value) for value in overall),
      },
      "per_class": {
          name: _of_class([row for row in rows if row["class"] == name], score_names)
          for name in class_names
      },
      "per_subject": _per_subject(rows, per_volume, class_names),
      "rules": {"dice": DICE_RULE, "foreground_dice": FOREGROUND_RULE, "ci95": INTERVAL_RULE},
  }


def _of_class(rows: Sequence[Row], score_names: Sequence[str]) -> dict[str, Any]:
  entry: dict[str, Any] = {score: statistics([row[score] for row in rows]) for score in score_names}
  dice = [row["dice"] for row in rows]
  presence = collections.Counter(dict.fromkeys(STATUSES, 0))
  presence.update(row["status"] for row in rows)
  entry["dice"]["ci95"] = subject_interval(dice, [row["subject"] for row in rows])
  entry["dice"]["n_empty"] = presence["both_empty"]
  # A single false pixel in a volume without the structure is a Dice of 0; without those volumes
  # the figure says how well the structure is outlined where there is one.
  present = [row["dice"] for row in rows if row["status"] in ("both_present", "missed")]
  entry["dice_where_present"] = statistics(present)
  entry["presence"] = dict(presence)
  return entry


def _per_subject(
    rows: Sequence[Row], per_volume: Mapping[tuple[str, str], float], class_names: Sequence[str]
) -> list[dict[str, Any]]:
  """Returns one entry per subject, its volumes averaged, in the order of first appearance."""
  by_subject: dict[str, list[Row]] = {}
  for row in rows:
    by_subject.setdefault(row["subject"], []).append(row)
  entries = []
  for subject, own in by_subject.items():
    scores = [value for (owner, _), value in per_volume.items() if owner == subject]
    entries.append({
        "subject": subject,
        "volumes": len(scores),
        "foreground_dice": statistics(scores)["mean"],
        "dice": {
            name: statistics([row["dice"] for row in own if row["class"] == name])["mean"]
            for name in class_names
        },
    })
  return entries


def strict(values: Any) -> Any:
  """Returns nested plain values as strict JSON allows them: numbers not finite become None."""
  if isinstance(values, Mapping):
    return {str(key): strict(value) for key, value in values.items()}
  if isinstance(values, (list, tuple)):
    return [strict(value) for value in values]
  if isinstance(values, (float, np.floating)):
    return float(values) if np.isfinite(values) else None
  if isinstance(values, np.integer):
    return int(values)
  return values
