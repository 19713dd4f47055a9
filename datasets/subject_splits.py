"""Splits and folds by subject: exact ratios, even over strata, the same on every machine.

Subjects are put in the order of a salted hash within their stratum and dealt out in turn, so that
each side gets its exact number and each stratum is spread over the sides by their ratios. A record
never decides anything: all records of a subject follow it.

Which side a subject gets depends on all others. It has to: let one more subject raise the number of
train alone, whoever it is, and a second one that of validation. Of two subjects added in either
order the first would go to train and the second to validation, so each would have to stand on both
sides. Exact ratios that depend on nothing but who is there, and subjects that never move when
others are added, exclude each other. What fixes subjects is a list of their sides (`fixed`), such
as the `splits.json` that each build writes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Hashable, Iterable, Mapping
from typing import TypeVar

from flexunet.core.errors import InputError

RATIOS: Mapping[str, float] = {"train": 0.70, "validation": 0.15, "test": 0.15}
SPLITS = tuple(RATIOS)
# The splits that cross-validation puts together and cuts again.
FOLDED = ("train", "validation")
NUM_FOLDS = 5
NO_FOLD = -1
UNLABELED = "unlabeled"

Side = TypeVar("Side", bound=Hashable)


def salted_hash(salt: str, name: str) -> str:
  """Returns the hex digest that orders names; it has nothing to do with their spelling."""
  return hashlib.sha256(f"{salt}:{name}".encode()).hexdigest()


def split_sizes(count: int, ratios: Mapping[str, float] = RATIOS) -> dict[str, int]:
  """Returns how many of `count` subjects each split gets: largest remainders, none left empty.

  With fewer subjects than splits the first splits get one each. A share of 0 gets none.
  """
  exact = {split: count * ratio for split, ratio in ratios.items()}
  sizes = {split: math.floor(share + 1e-9) for split, share in exact.items()}
  by_remainder = sorted(ratios, key=lambda split: (-(exact[split] - sizes[split]), -ratios[split]))
  for split in by_remainder[: count - sum(sizes.values())]:
    sizes[split] += 1
  for split in ratios:
    largest = max(sizes, key=lambda name: sizes[name])
    if sizes[split] == 0 < ratios[split] and sizes[largest] > 1:
      sizes[split] += 1
      sizes[largest] -= 1
  return sizes


def assign(
    strata: Mapping[str, str],
    salt: str,
    ratios: Mapping[str, float] = RATIOS,
    fixed: Mapping[str, str] | None = None,
    joined: Iterable[Collection[str]] = (),
) -> dict[str, str]:
  """Returns {subject: split}.

  Args:
    strata: {subject: stratum}.
    salt: Another salt, another split.
    ratios: {split: share}, summing to 1.
    fixed: {subject: split} of those that stay where they are; the others go to the splits that lack
      most of their number.
    joined: Groups of subjects that stand on one side.
  """
  if abs(sum(ratios.values()) - 1) > 1e-6 or min(ratios.values()) < 0:
    raise InputError(f"Split ratios must be shares that sum to 1, got {dict(ratios)}.")
  return _deal(strata, salt, split_sizes(len(strata), ratios), fixed or {}, joined)


def folds(
    strata: Mapping[str, str],
    salt: str,
    num_folds: int = NUM_FOLDS,
    fixed: Mapping[str, int] | None = None,
    joined: Iterable[Collection[str]] = (),
) -> dict[str, int]:
  """Returns {subject: fold}, folds of equal size (within one), each stratum spread evenly.

  Args:
    strata: {subject: stratum} of the subjects that take part in cross-validation, no others.
    salt: Another salt, other folds.
    num_folds: How many.
    fixed: {subject: fold} of those whose fold is known.
    joined: Groups of subjects that share a fold.
  """
  each, more = divmod(len(strata), num_folds)
  sizes = {fold: each + (fold < more) for fold in range(num_folds)}
  return _deal(strata, f"{salt}:fold", sizes, fixed or {}, joined)


def _deal(
    strata: Mapping[str, str],
    salt: str,
    sizes: Mapping[Side, int],
    fixed: Mapping[str, Side],
    joined: Iterable[Collection[str]],
) -> dict[str, Side]:
  """Deals subjects, or groups of them, to the side that lags most behind its share.

  Args:
    strata: {subject: stratum}.
    salt: Orders the subjects of a stratum.
    sizes: {side: how many it is to get}; together as many as there are subjects.
    fixed: {subject: its side}, which all of its group share.
    joined: Groups; a subject is in one at most.
  """
  group_of = {subject: group for group in joined for subject in group}
  given = dict.fromkeys(sizes, 0)
  reserved = dict.fromkeys(sizes, 0)  # For subjects of a fixed side whose turn is yet to come.
  for subject in strata.keys() & fixed.keys():
    reserved[fixed[subject]] = reserved.get(fixed[subject], 0) + 1
  dealt: dict[str, Side] = {}
  for subject in sorted(strata, key=lambda name: (strata[name], salted_hash(salt, name))):
    if subject in dealt:
      continue
    group = [one for one in group_of.get(subject, (subject,)) if one in strata]
    sides = {one: fixed[one] for one in group if one in fixed}
    for side in sides.values():
      reserved[side] -= 1
    if len(sides) < len(group):
      together = sorted(sides.values(), key=list(sizes).index)
      other = together[-1] if together else _lagging(
          sizes, given, reserved, len(dealt) + len(group), len(group), len(strata)
      )  # fmt: skip
      sides = {one: sides.get(one, other) for one in group}
    for one, side in sides.items():
      given[side] = given.get(side, 0) + 1
      dealt[one] = side
  return dealt


def _lagging(
    sizes: Mapping[Side, int],
    given: Mapping[Side, int],
    reserved: Mapping[Side, int],
    position: int,
    weight: int,
    total: int,
) -> Side:
  """Returns the side that a group of `weight` subjects goes to, which fills places to `position`.

  It is the one that lags most behind its share of the subjects dealt so far, among those with room
  for the group; the one with most room where none has enough.
  """
  room = {side: size - given[side] - reserved[side] for side, size in sizes.items()}
  wide = [side for side in sizes if room[side] >= weight]
  if not wide:
    return max(room, key=lambda side: room[side])
  return max(wide, key=lambda side: position * sizes[side] / total - given[side])


def subjects_in_two_splits(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
  """Returns {subject: its splits} of the subjects with more than one; empty when all is well.

  Args:
    pairs: A (subject, split) per record.
  """
  splits: dict[str, set[str]] = {}
  for subject, split in pairs:
    splits.setdefault(subject, set()).add(split)
  return {subject: sorted(found) for subject, found in sorted(splits.items()) if len(found) > 1}
