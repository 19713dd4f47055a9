"""Which split and which fold each case of a build gets, and by what.

What the publisher fixed comes first (`Case.split`, `Case.fold`), then what the user says by name
(--splits_file, --holdout), then that subjects with the same images stand together; the others are
dealt by shares (`subject_splits`). Subjects of cross-validation are those of train and validation:
the folds are balanced over them. A subject of the test split has a fold only where its publisher
gave it one.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from flexunet.core import errors
from flexunet.core.errors import InputError
from flexunet.datasets import subject_splits
from flexunet.datasets.builder.raw_folder import Case
from flexunet.datasets.builder.record_options import SplitOptions
from flexunet.datasets.builder.splits_file import Place, SplitsFile
from flexunet.datasets.subject_splits import FOLDED, NO_FOLD, SPLITS, UNLABELED

PUBLISHER, FILE, HOLDOUT, JOINED, SHARES = (
    "publisher", "splits_file", "holdout", "identical images", "shares"
)  # fmt: skip
_LOADS = ("little", "some", "much")
_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class CaseSplits:
  """The splits and folds of a build.

  Attributes:
    splits: {labelled subject: split}; where the publisher divided a subject, the last of its
      splits.
    folds: {labelled subject: fold}; -1: takes no part in cross-validation.
    strata: {labelled subject: stratum}.
    reasons: {labelled subject: what decided its split}.
    settings: Salt, seed, number of folds and shares, as `splits.json` has them.
    absent: {name: place} of the splits file's subjects that have no labelled case.
    warnings: Lines for the report and the user.
    notices: Lines for the user alone, with names as they stand in a list of the user.
  """

  splits: Mapping[str, str]
  folds: Mapping[str, int]
  strata: Mapping[str, str]
  reasons: Mapping[str, str]
  settings: Mapping[str, Any]
  absent: Mapping[str, Place]
  warnings: Sequence[str]
  notices: Sequence[str]

  def split_of(self, case: Case) -> str:
    """Returns the split of a case."""
    return (case.split or self.splits[case.subject]) if case.labelled else UNLABELED

  def fold_of(self, case: Case) -> int:
    """Returns the fold of a case: that of its subject, -1 beside those of cross-validation."""
    if case.fold is not None:
      return case.fold
    return self.folds[case.subject] if self.split_of(case) in FOLDED else NO_FOLD

  def entries(self, name_of: Callable[[str], str]) -> dict[str, dict[str, Any]]:
    """Returns {subject as `name_of` calls it: its entry in `splits.json`}."""
    return {
        name_of(subject): {
            "split": split,
            "fold": self.folds[subject],
            "stratum": self.strata[subject],
            "by": self.reasons[subject],
        }
        for subject, split in self.splits.items()
    }

  def why_empty(self, split: str) -> str:
    """Returns why a split has no records, and what to do; "" where none was asked for."""
    count = len(self.splits)
    text = f"Split {split} is empty"
    if split in self.splits.values():
      return f"{text}: the options left out all slices of its subjects."
    if SHARES not in self.reasons.values():
      decided = " and ".join(self.counts())
      return f"{text}: none of the {count} subjects here falls to it, by {decided}."
    if not self.settings["shares"][split]:
      return ""
    subjects = "1 subject is" if count == 1 else f"{count} subjects are"
    return f"{text}: {subjects} too few for it. Add subjects{self._other_way(split)}."

  def _other_way(self, split: str) -> str:
    """Returns what else can be done about an empty split."""
    last_fold = max(self.folds.values())
    if split == "test" and last_fold > 0:
      return (
          ", or score by cross-validation, in which each subject is validated once: train with"
          f" --fold=0 to --fold={last_fold}, and evaluate each run with --split=validation"
      )
    return ", or name fewer in --holdout" if HOLDOUT in self.reasons.values() else ""

  def fold_sizes(self) -> list[int]:
    """Returns how many subjects of cross-validation each fold holds."""
    part = [self.folds[subject] for subject, split in self.splits.items() if split in FOLDED]
    return [part.count(fold) for fold in range(self.settings["num_folds"])]

  def counts(self) -> dict[str, int]:
    """Returns {what decided: number of subjects}."""
    return dict(sorted(collections.Counter(self.reasons.values()).items()))


def decide(
    cases: Sequence[Case],
    salt: str,
    options: SplitOptions | None = None,
    name_of: Callable[[str], str] = str,
    joined: Iterable[Collection[str]] = (),
    loads: Mapping[str, float] | None = None,
) -> CaseSplits:
  """Returns which split and fold each case of a build gets.

  Args:
    cases: All of the build.
    salt: That of the dataset.
    options: Shares, seed, and who stands where by name.
    name_of: Returns the name of a subject in the records; files may call it by that name, by its
      name in the raw folder, or by one of its scans.
    joined: Groups of subjects that must stand on one side.
    loads: {subject: share of its pixels that is labelled}; thirds of it are strata of their own.

  Raises:
    InputError: The options contradict the publisher, each other, or the raw folder.
  """
  options = options or SplitOptions()
  decision = _Decision([case for case in cases if case.labelled], name_of)
  if loads is not None:
    decision.divide_strata(loads)
  if options.given:
    decision.follow(options.given)
  if options.held_out:
    decision.hold_out(options.held_out, options.holdout)
  if decision.problems:
    raise errors.from_problems(decision.problems, "Nothing was built.")
  groups = [[one for one in group if one in decision.strata] for group in joined]
  decision.join(groups)
  shares, seed = options.shares(), options.seed()
  decision.refuse_idle(options)
  seeded = f"{salt}:{seed}" if seed else salt
  decision.deal(seeded, shares, groups)
  num_folds = options.given.num_folds if options.given else subject_splits.NUM_FOLDS
  return CaseSplits(
      splits=decision.splits,
      folds=decision.deal_folds(seeded, num_folds, groups),
      strata=decision.strata,
      reasons=decision.reasons,
      settings={"salt": salt, "seed": seed, "num_folds": num_folds, "shares": shares},
      absent=decision.absent,
      warnings=decision.warnings,
      notices=decision.notices,
  )


class _Decision:
  """The places of the subjects as they are settled, one rule after the other.

  Attributes:
    strata, splits, reasons: As in `CaseSplits`; `splits` and `reasons` grow.
    divided: Subjects that their publisher put on several sides.
    folds: {subject: fold} where the publisher or the splits file fixed it.
    absent, warnings, notices: As in `CaseSplits`.
    problems: One line each; a single one prevents the build.
  """

  def __init__(self, labelled: Sequence[Case], name_of: Callable[[str], str]):
    self.strata = {case.subject: case.stratum for case in labelled}
    self.absent: dict[str, Place] = {}
    self.warnings: list[str] = []
    self.notices: list[str] = []
    self.problems: list[str] = []
    # Later entries win: names of records, then of the raw folder, then of scans.
    self._subject_of = {name: case.subject for case in labelled for name in (case.key, case.volume)}
    self._subject_of |= {subject: subject for subject in self.strata}
    self._subject_of |= {name_of(subject): subject for subject in self.strata}
    self._name_of = name_of
    published: dict[str, set[str]] = {}
    for case in labelled:
      if case.split is not None:
        published.setdefault(case.subject, set()).add(case.split)
    self.divided = {subject for subject, sides in published.items() if len(sides) > 1}
    self.splits = {s: max(sides, key=SPLITS.index) for s, sides in published.items()}
    self.reasons = dict.fromkeys(published, PUBLISHER)
    self.folds = {case.subject: case.fold for case in labelled if case.fold is not None}
    self._published_folds = frozenset(self.folds)

  def divide_strata(self, loads: Mapping[str, float]) -> None:
    """Divides each stratum by how much is labelled: nothing, or a third of the others each."""
    labelled = sorted((load, subject) for subject, load in loads.items() if load > 0)
    third = {
        subject: _LOADS[position * len(_LOADS) // len(labelled)]
        for position, (_, subject) in enumerate(labelled)
    }
    self.strata = {
        subject: f"{stratum} {third.get(subject, 'nothing')}".strip()
        for subject, stratum in self.strata.items()
    }

  def follow(self, file: SplitsFile) -> None:
    """Puts the subjects of a splits file where it says."""
    named: dict[str, str] = {}
    absent: dict[str, Place] = {}
    for name, place in file.places.items():
      subject = self._subject_of.get(name)
      if subject is None:
        absent[name] = place
        continue
      first = named.setdefault(subject, name)
      if (place.split, place.fold) != (file.places[first].split, file.places[first].fold):
        other = file.places[first]
        self.problems.append(
            f"{file.path}: a subject must have one place. {name} is in {place.split}, fold"
            f" {place.fold}, and {first}, the same subject, in {other.split}, fold {other.fold}."
        )
      self._settle(subject, place.split, FILE, file.path)
      if place.fold is not None and subject not in self._published_folds:
        self.folds[subject] = place.fold
    if not named:
      self.problems.append(
          f"{file.path}: none of its {len(file.places)} subjects is in the raw folder, which holds"
          f" {_listed(map(self._name_of, self.strata))}. Is it of this dataset?"
      )
    elif absent:
      text = f"Subjects of the splits file without a labelled scan here: {_listed(absent)}."
      if file.of_build:
        self.absent = absent
        self.warnings.append(f"{text} Their places are kept in the new splits.json.")
      else:  # The user's names may be those of persons: they enter nothing that is built.
        self.notices.append(f"{text} Keep {file.path} for the day they come.")

  def hold_out(self, names: Sequence[str], path: str) -> None:
    """Makes the named subjects the test split."""
    unknown = [name for name in names if name not in self._subject_of]
    if unknown:
      self.problems.append(
          f"{path}: must name subjects of the raw folder, which holds"
          f" {_listed(map(self._name_of, self.strata))}. Unknown: {_listed(unknown)}."
      )
    for name in names:
      if name in self._subject_of:
        self._settle(self._subject_of[name], "test", HOLDOUT, path)

  def _settle(self, subject: str, split: str, reason: str, path: str) -> None:
    """Gives a subject its split, unless an earlier rule gave it another one."""
    earlier = self.reasons.get(subject)
    if earlier is None:
      self.splits[subject], self.reasons[subject] = split, reason
    elif self.splits[subject] != split and subject not in self.divided:
      self.problems.append(
          f"{path}: puts {self._name_of(subject)} into {split}; by the {earlier} it is in"
          f" {self.splits[subject]}. Take it out of the file."
      )

  def join(self, groups: Iterable[Collection[str]]) -> None:
    """Puts subjects beside one of their group that has a place, the test split before others."""
    for group in groups:
      sides = {self.splits[one] for one in group if one in self.splits}
      for subject in group if sides else ():
        if subject not in self.splits:
          self.splits[subject] = max(sides, key=SPLITS.index)
          self.reasons[subject] = JOINED

  def refuse_idle(self, options: SplitOptions) -> None:
    """Raises InputError where shares or a seed were given, and nobody is left to be dealt."""
    given = [f"--{name}" for name in ("split_shares", "split_seed")
             if getattr(options, name) is not None]  # fmt: skip
    if given and self.strata and set(self.reasons.values()) == {PUBLISHER} and (
        len(self.reasons) == len(self.strata)
    ):  # fmt: skip
      raise InputError(
          f"{' and '.join(given)} cannot be followed: the publisher fixed the split of every"
          " subject. Leave this out (image_mask: --split=subject splits its folders again)."
      )

  def deal(
      self, salt: str, shares: Mapping[str, float], groups: Iterable[Collection[str]]
  ) -> None:
    """Deals the subjects that have no place yet; those of a file count, published ones do not."""
    if HOLDOUT in self.reasons.values():
      rest = 1 - shares["test"]
      shares = {split: share / rest for split, share in shares.items()} | {"test": 0.0}
    own = {subject: stratum for subject, stratum in self.strata.items()
           if self.reasons.get(subject) not in (PUBLISHER, HOLDOUT)}  # fmt: skip
    fixed = {subject: self.splits[subject] for subject in own if subject in self.splits}
    for subject, split in subject_splits.assign(own, salt, shares, fixed, groups).items():
      self.splits.setdefault(subject, split)
      self.reasons.setdefault(subject, SHARES)

  def deal_folds(
      self, salt: str, num_folds: int, groups: Iterable[Collection[str]]
  ) -> dict[str, int]:
    """Returns {subject: fold}, balanced over those that take part."""
    part = {
        subject: stratum
        for subject, stratum in self.strata.items()
        if (self.splits[subject] in FOLDED or subject in self.divided)
        and self.folds.get(subject) != NO_FOLD
    }
    fixed = {subject: fold for subject, fold in self.folds.items() if subject in part}
    num_folds = max([num_folds, *(fold + 1 for fold in fixed.values())])
    dealt = subject_splits.folds(part, salt, num_folds, fixed, groups)
    published = {subject: self.folds[subject] for subject in self._published_folds}
    return dict.fromkeys(self.splits, NO_FOLD) | published | dealt


def _listed(names: Iterable[str]) -> str:
  """Returns some names for a message, with how many there are."""
  found = sorted(names)
  shown = ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
  return f"{shown} ({len(found)})"
