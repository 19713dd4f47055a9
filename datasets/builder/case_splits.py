"""Which split and which fold each case of a build gets, and by what.

What the publisher fixed comes first (`Case.split`, `Case.fold`); the rest is dealt by shares
(`subject_splits`). Subjects of cross-validation are those of train and validation: the folds are
balanced over them. A subject of the test split has a fold only where its publisher gave it one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

from flexunet.datasets import subject_splits
from flexunet.datasets.builder.raw_folder import Case
from flexunet.datasets.subject_splits import FOLDED, NO_FOLD, SPLITS, UNLABELED

PUBLISHER, SHARES = "publisher", "shares"


@dataclasses.dataclass(frozen=True)
class CaseSplits:
  """The splits and folds of a build.

  Attributes:
    splits: {labelled subject: split}; where the publisher divided a subject, the last of its
      splits.
    folds: {labelled subject: fold}; -1: takes no part in cross-validation.
    strata: {labelled subject: stratum}.
    reasons: {labelled subject: what decided its split}.
  """

  splits: Mapping[str, str]
  folds: Mapping[str, int]
  strata: Mapping[str, str]
  reasons: Mapping[str, str]

  def split_of(self, case: Case) -> str:
    """Returns the split of a case."""
    return (case.split or self.splits[case.subject]) if case.labelled else UNLABELED

  def fold_of(self, case: Case) -> int:
    """Returns the fold of a case: that of its subject, -1 beside those of cross-validation."""
    if case.fold is not None:
      return case.fold
    return self.folds[case.subject] if self.split_of(case) in FOLDED else NO_FOLD


def decide(cases: Sequence[Case], salt: str) -> CaseSplits:
  """Returns which split and fold each case of a build gets.

  Args:
    cases: All of the build.
    salt: That of the dataset.
  """
  labelled = [case for case in cases if case.labelled]
  strata = {case.subject: case.stratum for case in labelled}
  published = _published(labelled)
  splits = {subject: max(sides, key=SPLITS.index) for subject, sides in published.items()}
  own = {subject: stratum for subject, stratum in strata.items() if subject not in splits}
  splits |= subject_splits.assign(own, salt)
  reasons = {subject: PUBLISHER if subject in published else SHARES for subject in strata}
  divided = {subject for subject, sides in published.items() if len(sides) > 1}
  return CaseSplits(splits, _folds(labelled, splits, divided, strata, salt), strata, reasons)


def _published(labelled: Sequence[Case]) -> dict[str, set[str]]:
  """Returns {subject: its splits} of those that the publisher put somewhere."""
  published: dict[str, set[str]] = {}
  for case in labelled:
    if case.split is not None:
      published.setdefault(case.subject, set()).add(case.split)
  return published


def _folds(
    labelled: Sequence[Case],
    splits: Mapping[str, str],
    divided: Collection[str],
    strata: Mapping[str, str],
    salt: str,
) -> dict[str, int]:
  """Returns {subject: fold}, balanced over those that take part."""
  fixed = {case.subject: case.fold for case in labelled if case.fold is not None}
  part = {subject: stratum for subject, stratum in strata.items()
          if splits[subject] in FOLDED or subject in divided}  # fmt: skip
  dealt = subject_splits.folds(
      part, salt, fixed={subject: fold for subject, fold in fixed.items() if subject in part}
  )
  return dict.fromkeys(splits, NO_FOLD) | fixed | dealt
