"""A comparison as a whole: who was compared, what differs in settings, in scores, what to know."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from flexunet.core import progress
from flexunet.evaluation import summary
from flexunet.tools.compare import paired, runs, stress_table
from flexunet.tools.compare.paired import PairedResult
from flexunet.tools.compare.runs import ScoredRun

_TESTS = {
    "permutation": "p: permutation of signs of the differences by subject (exact up to 16 subjects,"
                   " 99,999 draws beyond), two-sided.",
    "wilcoxon": "p: Wilcoxon's signed ranks of the differences by subject, two-sided; subjects"
                " without a difference are left out.",
}  # fmt: skip


_SURFACE_DICE = "surface_dice_"
_TITLES = {
    "dice": "Dice", "lesion_f1": "Lesion F1", "hd95_mm": "HD95 (mm)", "hd95_px": "HD95 (pixels)",
    "hd95_2d_mm": "HD95 in slices (mm)", "hd95_2d_px": "HD95 in slices (pixels)",
    "volume_error_ml": "Volume error (ml)",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
  """Runs compared on the volumes that all of them have scored.

  Attributes:
    scored: The runs.
    common: (subject, volume) of what counts.
    split, test: As asked for.
    score_names: What was compared.
    settings: (name, its value in each run) of those that differ.
    warnings: To be read before the figures, one sentence each.
    results: Of every score, pair and class.
    notes: How to read the figures, one sentence each.
  """

  scored: Sequence[ScoredRun]
  common: set[tuple[str, str]]
  split: str
  test: str
  score_names: list[str]
  settings: list[tuple[str, list[Any]]]
  warnings: list[str]
  results: list[PairedResult]
  notes: list[str]

  @property
  def names(self) -> list[str]:
    """Of the runs."""
    return [run.name for run in self.scored]

  @property
  def class_names(self) -> tuple[str, ...]:
    """Foreground classes, by id."""
    return self.scored[0].class_names

  @property
  def subjects(self) -> int:
    """How many subjects count."""
    return len({subject for subject, _ in self.common})

  @property
  def volumes(self) -> int:
    """How many volumes count."""
    return len(self.common)

  def subject_means(self, class_name: str, score: str) -> dict[str, list[float]]:
    """Returns subject -> its mean in each run, of subjects whose volumes have it in every run."""
    own = [_chosen(run, class_name, score, self.common) for run in self.scored]
    found: dict[str, list[list[float]]] = {}
    for key in sorted(self.common):
      values = [scores[key] for scores in own]
      if all(value == value for value in values):
        found.setdefault(key[0], []).append(values)
    return {
        subject: [sum(column) / len(column) for column in zip(*rows, strict=True)]
        for subject, rows in found.items()
    }

  def to_json(self) -> dict[str, Any]:
    """Returns the comparison as strict JSON."""
    return summary.strict({
        "runs": [
            {"name": run.name, "dataset": run.dataset, "fingerprint": run.fingerprint}
            for run in self.scored
        ],
        "split": self.split,
        "test": self.test,
        "subjects": sorted({subject for subject, _ in self.common}),
        "volumes": self.volumes,
        "settings": [{"name": name, "values": values} for name, values in self.settings],
        "warnings": self.warnings,
        "results": [dataclasses.asdict(one) for one in self.results],
        "stress": stress_table.common(self.scored),
        "notes": self.notes,
    })


def compare(paths: Sequence[pathlib.Path], split: str, test: str) -> Comparison:
  """Compares runs and cross-validations.

  Args:
    paths: Their folders.
    split: Whose scores.
    test: One of `paired.TESTS`.

  Raises:
    InputError: They cannot be compared; see `runs.read`.
  """
  scored = runs.read(paths, split)
  common = runs.common_volumes(scored)
  score_names = runs.common_scores(scored)
  results = paired.compare_all(
      [run.name for run in scored], scored[0].class_names, score_names,
      lambda number, class_name, score: _chosen(scored[number], class_name, score, common), test,
  )  # fmt: skip
  return Comparison(
      scored, common, split, test, score_names, runs.setting_differences(scored),
      runs.warnings(scored, common), results, _notes(results, common, test),
  )  # fmt: skip


def _chosen(
    run: ScoredRun, class_name: str, score: str, common: set[tuple[str, str]]
) -> dict[tuple[str, str], float]:
  own = run.scores.get((class_name, score), {})
  return {key: own.get(key, float("nan")) for key in sorted(common)}


def _notes(
    results: Sequence[PairedResult], common: set[tuple[str, str]], test: str
) -> list[str]:
  subjects = len({subject for subject, _ in common})
  lines = [
      "Differences are second minus first, over the volumes in which both runs have the score; a"
      " subject is won where the second run is better. Of distances and errors of volume"
      " (their size) less is better.",
      _TESTS[test] + " Holm: corrected for all classes and pairs of the score.",
      "95 %: interval of the difference over new subjects, Student's t by subject, corrected for"
      f" skewness; none with fewer than {summary.MIN_SUBJECTS} subjects or where all differ alike.",
  ]
  if subjects < paired.FEWEST_FOR_5_PERCENT:
    lines.append(
        f"{progress.count(subjects, 'subject')}: too few for a verdict. No p value of this test can"
        f" be below {2 / 2**subjects:.3g}, whatever the difference."
    )
  for one in results:
    if one.one_sided:
      lines.append(
          f"{one.score} of {one.class_name}, {one.first} and {one.second}:"
          f" {progress.count(one.one_sided, 'volume')} left out, where only one of the two has it."
      )
  return lines


def title_of(score: str) -> str:
  """Returns the name of a score in words, with its unit."""
  if score.startswith(_SURFACE_DICE):
    tolerance = score.removeprefix(_SURFACE_DICE)
    flat = tolerance.startswith("2d_")
    millimetres = tolerance.removeprefix("2d_").removesuffix("mm")
    return f"Surface Dice at {millimetres} mm" + (", in slices" if flat else "")
  return _TITLES.get(score, score)


def shown(value: Any) -> str:
  """Returns the value of a setting as text."""
  return value if isinstance(value, str) else json.dumps(value)
