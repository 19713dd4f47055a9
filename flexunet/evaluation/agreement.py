"""Agreement of predicted with true volumes: errors, bias, limits of agreement.

After Bland and Altman (1986), Lancet 327:307. The error is predicted - true; all volumes of a
subject are averaged first, since the two of one person are not independent. Bias is the mean over
subjects, the limits bias -+ 1.96 sd are those between which the error of 95 % of new subjects is
expected, where errors are normally distributed. Both have 95 % intervals: of the bias Student's t,
of the limits the exact one by the noncentral t distribution (Carkeet 2015, Optom. Vis. Sci.
92:e71).
"""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

RULE = (
    "Errors are predicted - true volume, of each subject the mean over its volumes; volumes in"
    " which truth and prediction are both empty are left out. Bias is their mean over subjects,"
    " limits of agreement are bias -+ 1.96 standard deviations (Bland and Altman 1986), with 95 %"
    " intervals by Student's t and, of the limits, the noncentral t (Carkeet 2015); none with fewer"
    " than 5 subjects. Relative errors are shares of the true volume, of subjects that have one."
    " Where no volume is known the unit is mm2 of the slices, or pixels."
)
MIN_SUBJECTS = 5
_LEVEL = 0.95
_WIDTH = 1.96
# From the best to the last resort: the columns of truth and prediction in each unit.
COLUMNS = {
    "ml": ("reference_ml", "predicted_ml"),
    "mm2": ("reference_mm2", "predicted_mm2"),
    "pixels": ("reference_pixels", "predicted_pixels"),
}


def volume_agreement(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns how the volumes of a class agree.

  Args:
    rows: One per volume of one class, as `volume_scores.score_volume` gives them.

  Returns:
    `unit`, that of most volumes: "ml", "mm2" or "pixels", which ends the names that follow; `n`
    subjects and `volumes`; `volumes_left_out` of another unit; `bias_ml`, `sd_ml`, the limits
    `low_ml` and `high_ml`, `mean_absolute_ml`; likewise `relative_n`, `relative_bias`,
    `relative_sd`, `relative_low`, `relative_high`, `relative_mean_absolute`; intervals {low, high,
    level} as `bias_ci95`, `low_ci95`, `high_ci95` and `relative_...`, None with few subjects.
  """
  counted = [row for row in rows if row["status"] != "both_empty"]
  units = collections.Counter(_unit(row) for row in counted)
  unit = max(COLUMNS, key=lambda name: units[name]) if counted else "ml"
  own = [row for row in counted if _unit(row) == unit]
  true_name, found_name = COLUMNS[unit]
  errors, relative = [], []
  subjects = [row["subject"] for row in own]
  for row in own:
    true, found = float(row[true_name]), float(row[found_name])
    errors.append(found - true)
    relative.append((found - true) / true if true else math.nan)
  shares = limits_of_agreement(by_subject(relative, subjects))
  return {
      "unit": unit,
      "volumes": len(own),
      "volumes_left_out": len(counted) - len(own),
      **{
          _with_unit(name, unit): value
          for name, value in limits_of_agreement(by_subject(errors, subjects)).items()
      },
      **{f"relative_{name}": value for name, value in shares.items()},
  }


def by_subject(values: Sequence[float], subjects: Sequence[str]) -> np.ndarray:
  """Returns the mean of each subject's values that are not NaN, float64 [subjects with one]."""
  own: dict[str, list[float]] = {}
  for value, subject in zip(values, subjects, strict=True):
    if not math.isnan(value):
      own.setdefault(subject, []).append(value)
  return np.array([np.mean(each) for each in own.values()], np.float64)


def limits_of_agreement(errors: np.ndarray) -> dict[str, Any]:
  """Returns bias and limits of agreement of errors, one per subject.

  Args:
    errors: float64 [subjects].

  Returns:
    `n`, `bias`, `sd` (n - 1), `low`, `high`, `mean_absolute`, NaN where undefined; `bias_ci95`,
    `low_ci95`, `high_ci95`: {low, high, level}, or None with fewer than `MIN_SUBJECTS`.
  """
  n = errors.size
  bias = float(errors.mean()) if n else math.nan
  sd = float(errors.std(ddof=1)) if n > 1 else math.nan
  of_bias = of_low = of_high = None
  if n >= MIN_SUBJECTS:
    tail, root = (1 - _LEVEL) / 2, math.sqrt(n)
    wide = float(special.stdtrit(n - 1, 1 - tail)) * sd / root
    of_bias = _interval(bias - wide, bias + wide)
    # (high - bias) sqrt(n) / sd of the true high follows the noncentral t with 1.96 sqrt(n).
    near, far = (
        float(special.nctdtrit(n - 1, _WIDTH * root, q)) * sd / root for q in (tail, 1 - tail)
    )
    of_low, of_high = _interval(bias - far, bias - near), _interval(bias + near, bias + far)
  return {
      "n": n,
      "bias": bias,
      "bias_ci95": of_bias,
      "sd": sd,
      "low": bias - _WIDTH * sd,
      "low_ci95": of_low,
      "high": bias + _WIDTH * sd,
      "high_ci95": of_high,
      "mean_absolute": float(np.abs(errors).mean()) if n else math.nan,
  }


def _unit(row: Mapping[str, Any]) -> str:
  """Returns the best unit in which the volume of a row is known."""
  known = [
      unit for unit, names in COLUMNS.items() if not math.isnan(row.get(names[0], math.nan))
  ]
  return known[0]


def _with_unit(name: str, unit: str) -> str:
  return name if name == "n" or name.endswith("_ci95") else f"{name}_{unit}"


def _interval(low: float, high: float) -> dict[str, float]:
  return {"low": low, "high": high, "level": _LEVEL}
