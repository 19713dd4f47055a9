"""Splits and folds by subject: exact ratios, even over strata, the same on every machine.

Subjects are put in the order of a salted hash within their stratum and dealt out in turn, so that
each split gets its exact number and each stratum is spread over the splits by their ratios. A
record never decides anything: all records of a subject follow it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping

from flexunet.core.errors import InputError

RATIOS: Mapping[str, float] = {"train": 0.70, "validation": 0.15, "test": 0.15}
NUM_FOLDS = 5
UNLABELED = "unlabeled"


def salted_hash(salt: str, name: str) -> str:
  """Returns the hex digest that orders names; it has nothing to do with their spelling."""
  return hashlib.sha256(f"{salt}:{name}".encode()).hexdigest()


def split_sizes(count: int, ratios: Mapping[str, float] = RATIOS) -> dict[str, int]:
  """Returns how many of `count` subjects each split gets: largest remainders, none left empty.

  With fewer subjects than splits the first splits get one each.
  """
  exact = {split: count * ratio for split, ratio in ratios.items()}
  sizes = {split: math.floor(share + 1e-9) for split, share in exact.items()}
  by_remainder = sorted(ratios, key=lambda split: (-(exact[split] - sizes[split]), -ratios[split]))
  for split in by_remainder[: count - sum(sizes.values())]:
    sizes[split] += 1
  for split in ratios:
    largest = max(sizes, key=lambda name: sizes[name])
    if sizes[split] == 0 and sizes[largest] > 1:
      sizes[split] += 1
      sizes[largest] -= 1
  return sizes


def assign(
    strata: Mapping[str, str], salt: str, ratios: Mapping[str, float] = RATIOS
) -> dict[str, str]:
  """Returns {subject: split}.

  Args:
    strata: {subject: stratum}.
    salt: Another salt, another split.
    ratios: {split: share}, summing to 1.
  """
  if abs(sum(ratios.values()) - 1) > 1e-6 or min(ratios.values()) < 0:
    raise InputError(f"Split ratios must be shares that sum to 1, got {dict(ratios)}.")
  subjects = _ordered(strata, salt)
  sizes = split_sizes(len(subjects), ratios)
  given = dict.fromkeys(sizes, 0)
  assigned = {}
  for position, subject in enumerate(subjects, start=1):
    # The split that lags most behind its share of the subjects dealt so far.
    open_splits = [split for split in sizes if given[split] < sizes[split]]
    split = max(open_splits, key=lambda s: position * sizes[s] / len(subjects) - given[s])
    given[split] += 1
    assigned[subject] = split
  return assigned


def folds(strata: Mapping[str, str], salt: str, num_folds: int = NUM_FOLDS) -> dict[str, int]:
  """Returns {subject: fold}, folds of equal size (within one), each stratum spread evenly."""
  subjects = _ordered(strata, f"{salt}:fold")
  return {subject: position % num_folds for position, subject in enumerate(subjects)}


def subjects_in_two_splits(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
  """Returns {subject: its splits} of the subjects with more than one; empty when all is well.

  Args:
    pairs: A (subject, split) per record.
  """
  splits: dict[str, set[str]] = {}
  for subject, split in pairs:
    splits.setdefault(subject, set()).add(split)
  return {subject: sorted(found) for subject, found in sorted(splits.items()) if len(found) > 1}


def _ordered(strata: Mapping[str, str], salt: str) -> list[str]:
  return sorted(strata, key=lambda subject: (strata[subject], salted_hash(salt, subject)))
