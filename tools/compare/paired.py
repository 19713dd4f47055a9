"""Paired statistics of two runs on the same volumes: differences, intervals, tests, wins.

All volumes of a subject count as one observation. Differences are second minus first.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flexunet.core.errors import unknown_name
from flexunet.evaluation import summary

TESTS = ("permutation", "wilcoxon")
# Below this the exact tests cannot give a p value under 0.05, whatever the differences are.
FEWEST_FOR_5_PERCENT = 6
_DRAWS = 99_999
_SEED = 0
# Differences that only come of the order of additions.
_NOTHING = 1e-12


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedResult:
  """What two runs have to do with each other in one score of one class.

  Attributes:
    first, second: Names of the runs.
    class_name: The class.
    score: Name of the score.
    mean_first, mean_second: Over the volumes in which both have the score; NaN where none has.
    difference: Of these means, second minus first.
    interval: 95 % interval of the difference, as it varies with the choice of subjects; None with
      too few subjects, or where all differ alike.
    p: Of the test that subjects differ in either direction alike; NaN without enough subjects.
    p_holm: The same, corrected for all classes and pairs of runs of the score.
    subjects: That have a difference.
    volumes: Of these.
    wins, losses, ties: Subjects for whom the second run is better, worse, equal.
    one_sided: Volumes in which only one of the two has the score; they are left out.
  """

  first: str
  second: str
  class_name: str
  score: str
  mean_first: float
  mean_second: float
  difference: float
  interval: dict[str, Any] | None
  p: float
  p_holm: float = math.nan
  subjects: int
  volumes: int
  wins: int
  losses: int
  ties: int
  one_sided: int


def lower_is_better(score: str) -> bool:
  """Returns whether less of a score is better: distances and errors of volume."""
  return not score.startswith(("dice", "surface_dice", "lesion_f1"))


def compare(
    first: Mapping[tuple[str, str], float],
    second: Mapping[tuple[str, str], float],
    *,
    names: tuple[str, str],
    class_name: str,
    score: str,
    test: str = "permutation",
) -> PairedResult:
  """Compares one score of two runs.

  Args:
    first, second: (subject, volume) -> score; NaN where it is not defined. The same volumes.
    names: Of the two runs.
    class_name, score: What is compared.
    test: One of `TESTS`.
  """
  sums: dict[str, float] = collections.defaultdict(float)
  counts: dict[str, int] = collections.defaultdict(int)
  pairs, one_sided = [], 0
  for (subject, volume), mine in first.items():
    its = second[subject, volume]
    if math.isnan(mine) or math.isnan(its):
      one_sided += math.isnan(mine) != math.isnan(its)
      continue
    pairs.append((mine, its))
    sums[subject] += its - mine
    counts[subject] += 1
  total, volumes = np.array(list(sums.values())), np.array(list(counts.values()))
  of_subject = np.where(np.abs(total) <= _NOTHING, 0.0, total) / np.maximum(volumes, 1)
  means = np.mean(pairs, axis=0) if pairs else (math.nan, math.nan)
  worse, better = int((of_subject < 0).sum()), int((of_subject > 0).sum())
  if lower_is_better(score):
    worse, better = better, worse
  return PairedResult(
      first=names[0], second=names[1], class_name=class_name, score=score,
      mean_first=float(means[0]), mean_second=float(means[1]),
      difference=float(means[1] - means[0]), interval=difference_interval(total, volumes),
      p=p_value(of_subject, test), subjects=len(of_subject), volumes=len(pairs),
      wins=better, losses=worse, ties=len(of_subject) - better - worse, one_sided=one_sided,
  )  # fmt: skip


def difference_interval(sums: np.ndarray, counts: np.ndarray) -> dict[str, Any] | None:
  """Returns the 95 % interval of the mean difference over volumes, by subject; see `summary`.

  Args:
    sums: float64 [subjects], of the differences of each subject's volumes.
    counts: int [subjects], of these volumes.
  """
  few = len(sums) < summary.MIN_SUBJECTS
  if few or summary.effective_number(counts) < summary.MIN_EFFECTIVE:
    return None
  low, high = summary.mean_interval(sums, counts)
  if not low < high:
    return None
  return {"low": low, "high": high, "level": summary.LEVEL, "n": len(sums)}


def p_value(differences: np.ndarray, test: str) -> float:
  """Returns the two-sided p value of differences, one per subject; NaN for fewer than two.

  "permutation": of the mean, over all signs of the differences, or 99,999 drawn ones where there
  are more. "wilcoxon": signed ranks, zero differences left out.

  Raises:
    InputError: There is no such test.
  """
  if test not in TESTS:
    raise unknown_name("test", test, TESTS)
  if len(differences) < 2:
    return math.nan
  if not differences.any():
    return 1.0
  if test == "wilcoxon":
    return float(_scipy_stats().wilcoxon(differences).pvalue)
  found = _scipy_stats().permutation_test(
      (differences,), np.mean, permutation_type="samples", vectorized=True,
      n_resamples=_DRAWS, rng=np.random.default_rng(_SEED),
  )  # fmt: skip
  return float(found.pvalue)


def _scipy_stats() -> Any:
  # Takes most of a second to load: --help and wrong flags go without.
  from scipy import stats

  return stats


def holm(p_values: Sequence[float]) -> list[float]:
  """Returns p values corrected after Holm (1979) for all of them; NaN stays and does not count."""
  known = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
  corrected, largest = [math.nan] * len(p_values), 0.0
  for rank, (p, place) in enumerate(known):
    largest = max(largest, min(1.0, (len(known) - rank) * p))
    corrected[place] = largest
  return corrected


def corrected(results: Sequence[PairedResult]) -> list[PairedResult]:
  """Returns the results of one score with their corrected p values."""
  return [
      dataclasses.replace(one, p_holm=p)
      for one, p in zip(results, holm([one.p for one in results]), strict=True)
  ]


_Scores = Mapping[tuple[str, str], float]
_ScoresOf = Callable[[int, str, str], _Scores]


def compare_all(
    names: Sequence[str],
    class_names: Sequence[str],
    score_names: Sequence[str],
    scores_of: _ScoresOf,
    test: str,
) -> list[PairedResult]:
  """Compares every pair of runs in every class and score.

  Args:
    names: Of the runs.
    class_names, score_names: What is compared.
    scores_of: (number of the run, class, score) -> its scores.
    test: One of `TESTS`.
  """
  pairs = [(a, b) for a in range(len(names)) for b in range(a + 1, len(names))]
  results: list[PairedResult] = []
  for score in score_names:
    results += corrected([
        compare(
            scores_of(a, name, score), scores_of(b, name, score), test=test,
            names=(names[a], names[b]), class_name=name, score=score,
        )
        for a, b in pairs for name in class_names
    ])  # fmt: skip
  return results
