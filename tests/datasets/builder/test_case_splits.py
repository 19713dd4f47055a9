"""Which split and which fold each case of a build gets."""

import collections

import pytest

from flexunet.datasets.builder import case_splits
from flexunet.datasets.builder.raw_folder import Case

FOLDS = range(5)


def case(subject, key=None, **fields):
  return Case(key=key or subject, subject=subject, volume=key or subject, files={}, **fields)


def people(count, **fields):
  return [case(f"p{number:03d}", **fields) for number in range(count)]


def sizes(assigned):
  """Returns how many subjects each fold holds."""
  found = collections.Counter(assigned.folds.values())
  return [found[fold] for fold in FOLDS]


@pytest.mark.parametrize("count", [5, 6, 7, 8, 16, 23, 40, 101])
def test_folds_are_balanced_over_train_and_validation(count):
  # Folds over all subjects, from which the test subjects then leave: 5 left one fold empty, and 16
  # made folds of 4, 1, 3, 3, 3.
  assigned = case_splits.decide(people(count), "salt")
  part = [s for s, split in assigned.splits.items() if split in ("train", "validation")]
  assert sum(sizes(assigned)) == len(part)
  assert max(sizes(assigned)) - min(sizes(assigned)) <= 1
  assert min(sizes(assigned)) > 0 or len(part) < 5
  held_out = {s for s, split in assigned.splits.items() if split == "test"}
  assert held_out and {assigned.folds[subject] for subject in held_out} == {-1}


def test_folds_spread_the_strata():
  cases = [case(f"p{n:03d}", stratum="many" if n < 28 else "few") for n in range(40)]
  assigned = case_splits.decide(cases, "salt")
  for stratum in ("many", "few"):
    found = collections.Counter(
        assigned.folds[s] for s in assigned.strata
        if assigned.strata[s] == stratum and assigned.folds[s] >= 0
    )  # fmt: skip
    assert max(found[fold] for fold in FOLDS) - min(found[fold] for fold in FOLDS) <= 1


def test_unlabelled_cases_have_a_split_of_their_own_and_no_fold():
  scan = case("nobody", labelled=False)
  assigned = case_splits.decide([*people(5), scan], "salt")
  assert assigned.split_of(scan) == "unlabeled" and assigned.fold_of(scan) == -1
  assert "nobody" not in assigned.splits


def test_published_splits_and_folds_are_kept_and_the_others_dealt_without_them():
  listed = [case("a", split="test", fold=3), case("b", split="train", fold=1)]
  others = people(20)
  assigned = case_splits.decide([*listed, *others], "salt")
  assert [assigned.split_of(one) for one in listed] == ["test", "train"]
  assert [assigned.fold_of(one) for one in listed] == [3, 1]
  alone = case_splits.decide(others, "salt")
  assert {s: assigned.splits[s] for s in alone.splits} == alone.splits
  assert assigned.reasons["a"] == "publisher" and assigned.reasons["p000"] == "shares"
  # 17 of the 20 and b take part, in 18 = 4 + 4 + 4 + 3 + 3; the published fold of a adds to fold 3.
  assert sorted(sizes(assigned)) in ([3, 4, 4, 4, 4], [3, 3, 4, 4, 5])


def test_a_subject_that_its_publisher_divided_stays_divided():
  sides = [case("a", "a_train", split="train"), case("a", "a_test", split="test")]
  assigned = case_splits.decide([*sides, *people(5)], "salt")
  assert [assigned.split_of(one) for one in sides] == ["train", "test"]
  # What is validated on is never of the test split.
  assert assigned.fold_of(sides[0]) in FOLDS and assigned.fold_of(sides[1]) == -1
