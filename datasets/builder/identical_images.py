"""One scan under two names: finds images that two subjects share, by a hash of their pixels.

What is hashed is the image as read, not its file: a scan packed otherwise, in another data type or
with its axes in another order gives the same slices. An image that shows next to nothing (air, a
black frame) is the same in everybody and hashes to nothing. Where more subjects share an image than
would copy a scan by mistake, it is a title page or the like, unless it is most of what they have.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from flexunet.core import progress
from flexunet.datasets.builder.case_splits import CaseSplits
from flexunet.datasets.builder.raw_folder import Case
from flexunet.datasets.subject_splits import FOLDED, SPLITS, UNLABELED

# Share of the pixels of an image that must differ from its commonest value.
_LEAST_CONTENT = 0.01
_SAMPLED_EDGE = 64  # Pixels a row and a column in which the commonest value is looked for.
# An image in more than a quarter of the subjects, and in more than these, is common property.
_FEW_SUBJECTS, _COMMON_SHARE = 3, 0.25
_DIGEST_DIGITS = 24
_SHOWN = 5

_Holder = tuple[str, str | None]  # (subject, side that its publisher gave).


def digests_of(planes: Iterable[np.ndarray]) -> tuple[str, ...]:
  """Returns a digest of each image [H, W] or [H, W, C] that shows something; NaN counts as 0."""
  found = []
  for plane in planes:
    pixels = np.nan_to_num(plane) if plane.dtype.kind == "f" else plane
    if _shows_something(pixels):
      # CPUs compute no other good hash faster: 0.2 of 0.3 ms that a slice costs here.
      digest = hashlib.sha256(f"{pixels.shape}{pixels.dtype}".encode())
      digest.update(np.ascontiguousarray(pixels).data)
      found.append(digest.hexdigest()[:_DIGEST_DIGITS])
  return tuple(found)


def digests_of_volume(voxels: np.ndarray, slope: float, inter: float) -> tuple[str, ...]:
  """Returns the digests of a volume [i, j, k] plane by plane, of its intensities as float32."""
  # Slices of the last axis, one at a time: a scan needs no copy of its own size.
  return digests_of(
      (voxels[..., k] * np.float64(slope) + inter).astype(np.float32)
      for k in range(voxels.shape[-1])
  )


def _shows_something(pixels: np.ndarray) -> bool:
  if pixels.ndim == 3:
    return any(_shows_something(pixels[..., channel]) for channel in range(pixels.shape[2]))
  steps = [max(1, size // _SAMPLED_EDGE) for size in pixels.shape]
  sample = pixels[:: steps[0], :: steps[1]]
  if not sample.size:
    return False
  if sample.dtype == np.uint8:
    commonest = np.bincount(sample.ravel()).argmax()
  else:
    values, counts = np.unique(sample, return_counts=True)
    commonest = values[counts.argmax()]
  return bool(np.count_nonzero(pixels != commonest) >= _LEAST_CONTENT * pixels.size)


@dataclasses.dataclass(frozen=True)
class CaseImages:
  """What one case holds: the digests of the images of each record, in the order of its rows."""

  case: Case
  records: Sequence[tuple[str, ...]]

  @property
  def digests(self) -> set[str]:
    """All of the case."""
    return {digest for record in self.records for digest in record}


@dataclasses.dataclass(frozen=True)
class Group:
  """Cases that share images: those of several subjects, or of one on several published sides.

  Attributes:
    cases: In the order of the build.
    num_images: How many images at least two of them share.
  """

  cases: Sequence[Case]
  num_images: int

  @property
  def subjects(self) -> list[str]:
    """Whose cases they are."""
    return list(dict.fromkeys(case.subject for case in self.cases))


@dataclasses.dataclass(frozen=True)
class IdenticalImages:
  """What `find` found.

  Attributes:
    groups: Who shares images.
    digests: Of the images that say so.
  """

  groups: Sequence[Group]
  digests: frozenset[str]

  @property
  def joined(self) -> list[list[str]]:
    """The groups of several subjects, which must stand on one side."""
    return [group.subjects for group in self.groups if len(group.subjects) > 1]

  def report(
      self, assigned: CaseSplits, name_of: Callable[[str], str]
  ) -> list[dict[str, Any]]:
    """Returns an entry of the build report for each group."""
    return [
        {
            "subjects": sorted(map(name_of, group.subjects)),
            "images": group.num_images,
            "splits": _splits_of(group, assigned),
        }
        for group in self.groups
    ]

  def warnings(self, assigned: CaseSplits, name_of: Callable[[str], str]) -> list[str]:
    """Returns a line for each group; those that stand on several sides come first."""
    calm, loud = [], []
    for group in self.groups:
      names = sorted(map(name_of, group.subjects))
      shown = ", ".join(names[:_SHOWN]) + (f", ... ({len(names)})" if len(names) > _SHOWN else "")
      splits = _splits_of(group, assigned)
      folds = {assigned.fold_of(case) for case in group.cases if case.labelled}
      who = f"Subjects {shown} share" if len(names) > 1 else f"Subject {shown} has"
      what = f"{who} {progress.count(group.num_images, 'identical image')}"
      if len([split for split in splits if split in SPLITS]) > 1:
        loud.append(
            f"LEAK: {what} in {' and '.join(splits)}, where their sides are fixed. Copies are left"
            " out of train, then of validation; mend the source."
        )
      elif len(folds) > 1 and splits[0] in FOLDED:
        loud.append(f"LEAK: {what} in {splits[0]}, in several folds that are fixed.")
      else:
        calm.append(f"{what}: they count as one, in {' and '.join(splits)}.")
    return [*loud, *calm]

  def copies(
      self, images: Iterable[CaseImages], assigned: CaseSplits
  ) -> dict[str, dict[int, str]]:
    """Returns {case: {record: split in which its image stands too}} of what is to be left out.

    A record is left out where half of its images or more stand in the test split too, or, in train,
    in the validation split; all of a case where that holds for half of the images of the case.
    """
    images = list(images)
    best: dict[str, int] = {}
    for one in images:
      for digest in one.digests & self.digests if one.case.labelled else ():
        rank = SPLITS.index(assigned.split_of(one.case))
        best[digest] = max(best.get(digest, 0), rank)
    found = {}
    for one in images:
      if not one.case.labelled:
        continue
      rank = SPLITS.index(assigned.split_of(one.case))
      split_of = {d: SPLITS[best[d]] for d in one.digests if best.get(d, rank) > rank}
      if not split_of:
        continue
      whole = 2 * len(split_of) >= len(one.digests)
      found[one.case.key] = {
          number: split_of[next((d for d in record if d in split_of), next(iter(split_of)))]
          for number, record in enumerate(one.records)
          if whole or (record and 2 * sum(d in split_of for d in record) >= len(record))
      }
    return found


def find(images: Iterable[CaseImages]) -> IdenticalImages:
  """Returns who shares images that show something, and which images say so."""
  # A side that the publisher gave divides a subject: its images may then stand on both.
  held: dict[_Holder, set[str]] = collections.defaultdict(set)
  cases: dict[_Holder, list[Case]] = collections.defaultdict(list)
  for one in images:
    holder = (one.case.subject, one.case.split)
    held[holder] |= one.digests
    cases[holder].append(one.case)
  owners = _shared(held)
  group_of = {holder: [holder] for pair in owners.values() for holder in pair}
  for pair in owners.values():
    for other in pair[1:]:
      first, second = group_of[pair[0]], group_of[other]
      if first is not second:
        first += second
        group_of |= dict.fromkeys(second, first)
  counts = collections.Counter(id(group_of[pair[0]]) for pair in owners.values())
  groups = {id(group): group for group in group_of.values()}
  made = [
      Group([case for holder in sorted(group, key=str) for case in cases[holder]], counts[number])
      for number, group in groups.items()
  ]
  return IdenticalImages(sorted(made, key=lambda one: one.cases[0].key), frozenset(owners))


def _splits_of(group: Group, assigned: CaseSplits) -> list[str]:
  """Returns the splits in which a group stands, in the usual order."""
  found = {assigned.split_of(case) for case in group.cases}
  return [split for split in (*SPLITS, UNLABELED) if split in found]


def _shared(held: Mapping[_Holder, set[str]]) -> dict[str, list[_Holder]]:
  """Returns {digest: its holders, at least two} of the images that mean one scan."""
  holders: dict[str, list[_Holder]] = collections.defaultdict(list)
  for holder, digests in held.items():
    for digest in digests:
      holders[digest].append(holder)
  shared = {digest: owners for digest, owners in holders.items() if len(owners) > 1}
  limit = max(_FEW_SUBJECTS, _COMMON_SHARE * len(held))
  common = {digest for digest, owners in shared.items() if len(owners) > limit}
  for digest in common:
    # They are one scan where common images are most of what they have.
    shared[digest] = [
        one for one in shared[digest] if 2 * len(held[one] & common) >= len(held[one])
    ]
  return {digest: owners for digest, owners in shared.items() if len(owners) > 1}
