"""From scores of single volumes to the figures of a split: means, spreads, intervals.

A row is one volume and class: a dict with `subject`, `volume`, `class` (name), `dice`,
`reference_pixels`, `predicted_pixels` and any further scores. NaN means that a score is not
defined for that row: it is left out of averages and counted.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Row = Mapping[str, Any]

# Texts that travel with the figures, so that a reader of metrics.json need not guess.
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
_RESAMPLES = 2000
_MIN_SUBJECTS = 3


def statistics(values: Sequence[float]) -> dict[str, float | int]:
  """Returns mean, median, sd (n - 1), min, max and n of the values that are not NaN."""
  finite = np.asarray([value for value in values if not np.isnan(value)], np.float64)
  if not finite.size:
    nothing = float("nan")
    return {
        "mean": nothing, "median": nothing, "sd": nothing, "min": nothing, "max": nothing, "n": 0,
    }  # fmt: skip
  return {
      "mean": float(finite.mean()),
      "median": float(np.median(finite)),
      "sd": float(finite.std(ddof=1)) if finite.size > 1 else float("nan"),
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


def foreground_dice(rows: Sequence[Row]) -> dict[str, float]:
  """Returns volume -> mean Dice over its foreground classes; NaN where none has one."""
  scores: dict[str, list[float]] = {}
  for row in rows:
    scores.setdefault(row["volume"], []).append(row["dice"])
  return {volume: statistics(values)["mean"] for volume, values in scores.items()}


def summarize(
    rows: Sequence[Row], class_names: Sequence[str], score_names: Sequence[str]
) -> dict[str, Any]:
  """Returns the figures of one split.

  Args:
    rows: One a volume and foreground class.
    class_names: Foreground classes, in the order of their ids.
    score_names: Columns to average per class, `dice` among them.

  Returns:
    `foreground_dice`, `per_class`, `per_subject` and `presence` (how often a volume's class was
    found, missed, or found where there is none), plain numbers, NaN where undefined.
  """
  subject_of = {row["volume"]: row["subject"] for row in rows}
  per_volume = foreground_dice(rows)
  volumes = list(per_volume)
  overall = statistics(list(per_volume.values()))
  interval = subject_interval(
      list(per_volume.values()), [subject_of[volume] for volume in volumes]
  )
  per_class = {}
  for name in class_names:
    chosen = [row for row in rows if row["class"] == name]
    entry = {score: statistics([row[score] for row in chosen]) for score in score_names}
    subjects = [row["subject"] for row in chosen]
    ci95 = subject_interval([row["dice"] for row in chosen], subjects)
    per_class[name] = {
        **entry,
        "dice": {
            **entry["dice"],
            "ci95": list(ci95) if ci95 else None,
            "n_empty": sum(_presence(row) == "both_empty" for row in chosen),
        },
        "presence": dict(
            {kind: 0 for kind in ("both_present", "missed", "false_alarm", "both_empty")},
            **collections.Counter(_presence(row) for row in chosen),
        ),
    }
  return {
      "foreground_dice": {
          **overall,
          "ci95": list(interval) if interval else None,
          "n_empty": sum(np.isnan(value) for value in per_volume.values()),
          "rule": FOREGROUND_RULE,
      },
      "per_class": per_class,
      "per_subject": _per_subject(rows, per_volume, class_names),
      "rules": {"dice": DICE_RULE, "ci95": INTERVAL_RULE},
  }


def _presence(row: Row) -> str:
  truth, found = row["reference_pixels"] > 0, row["predicted_pixels"] > 0
  if truth:
    return "both_present" if found else "missed"
  return "false_alarm" if found else "both_empty"


def _per_subject(
    rows: Sequence[Row], per_volume: Mapping[str, float], class_names: Sequence[str]
) -> list[dict[str, Any]]:
  """Returns one entry a subject, its volumes averaged, in the order of first appearance."""
  by_subject: dict[str, list[Row]] = {}
  for row in rows:
    by_subject.setdefault(row["subject"], []).append(row)
  entries = []
  for subject, own in by_subject.items():
    volumes = list(dict.fromkeys(row["volume"] for row in own))
    entries.append({
        "subject": subject,
        "volumes": len(volumes),
        "foreground_dice": statistics([per_volume[volume] for volume in volumes])["mean"],
        "dice": {
            name: statistics([row["dice"] for row in own if row["class"] == name])["mean"]
            for name in class_names
        },
    })
  return entries
