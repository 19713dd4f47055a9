"""From scores of single volumes to the figures of a split: means, spreads, intervals.

A row is one volume and class: a dict with `subject`, `volume`, `class` (name), `status` (one of
`scores.STATUSES`), `distances` ("3d", "2d" or "none": how surfaces were compared), `slices_missed`,
`slices_false_alarm`, `dice` and any further scores. NaN means that a score is not
defined for that row: it is left out of averages and counted.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from flexunet.evaluation.scores import STATUSES, is_distance, is_in_slices, is_surface

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
# The coverages are those that tests/flexunet/evaluation/test_interval_coverage.py measures.
INTERVAL_RULE = (
    "95 % interval of the mean over new subjects: Student's t, corrected for skewness after Hall"
    " (1992), of the subjects, all volumes of a subject together. Simulated coverage where Dice is"
    " skewed (beta distribution with parameters 6 and 1.2): 94 % with 5 subjects, 95 % with 10,"
    " 95 % with 20. Where besides 1 subject in 20 has a Dice of 0: 92 % with 5 subjects, 92 % with"
    " 10, 91 % with 20, for few subjects may not show a failure that others have. No interval with"
    " fewer than 5 subjects (coverage 91 % with 3), nor where all subjects are alike."
)
PUBLISHED_RULE = (
    "Mean over slices of (2 sum(y p) + 1) / (sum(y) + sum(p) + 1), with y the one-hot truth, p the"
    " probabilities, and the sums over height, width and class, background included."
)
# The form of an entry in metrics.json; raised whenever its keys change their meaning.
FORM = 4
LEVEL = 0.95
MIN_SUBJECTS = 5
MIN_EFFECTIVE = 3.0
METHOD = "Student t by subject, corrected for skewness (Hall 1992)"


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
    values: Sequence[float], subjects: Sequence[str], upper: float = 1.0
) -> dict[str, Any] | None:
  """Returns the 95 % interval of the mean of `values`, as it varies with the choice of subjects.

  Volumes of one person are not independent, so all of a subject count as one observation.

  Args:
    values: One per volume; NaN values are left out.
    subjects: Whose volume each is.
    upper: The greatest possible value; the least is 0.

  Returns:
    `low`, `high`, `level`, `method` and `n`, the number of subjects with a value. None where these
    are fewer than `MIN_SUBJECTS`, where few of them have nearly all volumes, and where all are
    alike: then nothing is known of the spread.
  """
  sums: dict[str, float] = collections.defaultdict(float)
  counts: dict[str, int] = collections.defaultdict(int)
  for value, subject in zip(values, subjects, strict=True):
    if not np.isnan(value):
      sums[subject] += value
      counts[subject] += 1
  volumes = np.array(list(counts.values()))
  if len(sums) < MIN_SUBJECTS or effective_number(volumes) < MIN_EFFECTIVE:
    return None
  low, high = mean_interval(np.array(list(sums.values())), volumes)
  if not low < high:
    return None
  return {
      "low": max(low, 0.0),
      "high": min(high, upper),
      "level": LEVEL,
      "method": METHOD,
      "n": len(sums),
  }


def effective_number(counts: np.ndarray) -> float:
  """Returns as how many subjects of equally many volumes these count (Kish)."""
  return float(counts.sum() ** 2 / np.sum(counts**2))


def mean_interval(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
  """Returns the ends of the interval of the mean over volumes, sum(sums) / sum(counts).

  The cubic transformation of Hall (1992, J. R. Stat. Soc. B 54:221) of Student's t, which removes
  its skewness; of each subject's sum what the mean would give is taken off (linearization). Where
  subjects have unequally many volumes it has as many degrees of freedom as `effective_number` says:
  with 1 to 4 each the coverage of skewed scores is 92 % with 5 and 10 subjects, 94 % with 20.

  Args:
    sums: float64 [subjects], at least three, of the values of each subject's volumes.
    counts: int [subjects], of those volumes.
  """
  subjects = sums.size
  mean = sums.sum() / counts.sum()
  residuals = (sums - mean * counts) / counts.mean()
  sd = math.sqrt(np.sum(residuals**2) / (subjects - 1))
  if sd <= 1e-9 * abs(mean):
    return float(mean), float(mean)
  third = np.sum(residuals**3) * subjects / ((subjects - 1) * (subjects - 2))
  skewness = third / sd**3 / math.sqrt(subjects)

  def student(t: float) -> float:
    if abs(skewness) < 1e-6:
      return t
    return 3 / skewness * (float(np.cbrt(1 + skewness * (t - skewness / 6))) - 1)

  limit = float(special.stdtrit(effective_number(counts) - 1, (1 + LEVEL) / 2))
  error = sd / math.sqrt(subjects)
  return float(mean - error * student(limit)), float(mean - error * student(-limit))


def is_current(entry: Any) -> bool:
  """Returns whether an entry of metrics.json has the form that `summarize` writes."""
  return isinstance(entry, Mapping) and entry.get("form") == FORM


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
    `form`, `foreground_dice`, `per_class`, `per_subject` and `rules`; NaN where undefined. Of each
    class also `presence`: in how many volumes it was found, missed, or found where there is none;
    and `slices_missed` and `slices_false_alarm` of volumes whose surfaces are compared in slices.
    Each score has its `ci95` (see `subject_interval`) and `n_undefined`, the volumes without one;
    of scores of surfaces only volumes count that are compared in this way, in 3-D or in slices.
  """
  per_volume = foreground_dice(rows)
  overall = list(per_volume.values())
  return {
      "form": FORM,
      "foreground_dice": {
          **statistics(overall),
          "ci95": subject_interval(overall, [subject for subject, _ in per_volume]),
          "n_undefined": sum(math.isnan(value) for value in overall),
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
  flat = [row for row in rows if row["distances"] == "2d"]
  others = [row for row in rows if row["distances"] != "2d"]
  entry: dict[str, Any] = {}
  for score in score_names:
    if is_in_slices(score):
      entry[score] = _spread(flat, score)
    else:
      entry[score] = _spread(others if is_surface(score) else rows, score)
  presence = collections.Counter(dict.fromkeys(STATUSES, 0))
  presence.update(row["status"] for row in rows)
  entry["dice"]["n_empty"] = presence["both_empty"]
  # A single false pixel in a volume without the structure is a Dice of 0; without those volumes
  # the figure says how well the structure is outlined where there is one.
  present = [row for row in rows if row["status"] in ("both_present", "missed")]
  entry["dice_where_present"] = _spread(present, "dice")
  entry["presence"] = dict(presence)
  for count in ("slices_missed", "slices_false_alarm"):
    entry[count] = sum(row[count] for row in flat)
  return entry


def _spread(rows: Sequence[Row], score: str) -> dict[str, Any]:
  """Returns statistics and interval of a score, and how many volumes have none."""
  values = [row[score] for row in rows]
  upper = math.inf if is_distance(score) else 1.0
  return {
      **statistics(values),
      "ci95": subject_interval(values, [row["subject"] for row in rows], upper),
      "n_undefined": sum(math.isnan(value) for value in values),
  }


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
