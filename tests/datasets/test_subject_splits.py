"""Splits by subject."""

import collections

import pytest

from flexunet.core.errors import InputError
from flexunet.datasets import subject_splits
from flexunet.datasets.brain_ich_ct import ct_ich_patients


def people(count, stratum=""):
  return {f"{stratum}p{number:03d}": stratum for number in range(count)}


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(100, (70, 15, 15)), (20, (14, 3, 3)), (25, (17, 4, 4)), (10, (7, 2, 1)), (5, (3, 1, 1)),
     (3, (1, 1, 1)), (2, (1, 1, 0)), (1, (1, 0, 0))],
)
def test_ratios_are_exact_and_no_split_is_empty_from_three_subjects_on(count, sizes):
  assigned = subject_splits.assign(people(count), "salt")
  found = collections.Counter(assigned.values())
  assert tuple(found[name] for name in ("train", "validation", "test")) == sizes
  assert sum(sizes) == count


def test_each_stratum_is_spread_by_the_ratios():
  strata = people(40, "a") | people(20, "b")
  assigned = subject_splits.assign(strata, "salt")
  for stratum, count in (("a", 40), ("b", 20)):
    sides = [side for subject, side in assigned.items() if strata[subject] == stratum]
    assert abs(sides.count("test") - 0.15 * count) <= 1
    assert abs(sides.count("train") - 0.70 * count) <= 1


def test_the_order_in_which_subjects_come_does_not_matter_but_the_salt_does():
  strata = people(30)
  backwards = dict(reversed(strata.items()))
  assert subject_splits.assign(strata, "a") == subject_splits.assign(backwards, "a")
  assert subject_splits.assign(strata, "a") != subject_splits.assign(strata, "b")


def test_folds_have_equal_sizes():
  folds = subject_splits.folds(people(23), "salt")
  assert sorted(collections.Counter(folds.values()).values()) == [4, 4, 5, 5, 5]
  assert set(folds.values()) == set(range(5))


def test_a_subject_on_two_sides_is_named():
  sides = [("a", "train"), ("b", "test"), ("a", "train"), ("b", "train")]
  assert subject_splits.subjects_in_two_splits(sides) == {"b": ["test", "train"]}


def test_ratios_that_do_not_sum_to_one_are_refused():
  with pytest.raises(InputError):
    subject_splits.assign(people(5), "salt", {"train": 0.5, "test": 0.4})


def test_the_published_patients_are_82_of_whom_36_bleed():
  patients = range(49, 131)
  assert sum(ct_ich_patients.is_patient(number) for number in range(200)) == len(patients) == 82
  assert len(ct_ich_patients.HEMORRHAGE_PATIENTS) == 36
  found = collections.Counter(ct_ich_patients.splits().values())
  assert found == {"train": 58, "validation": 12, "test": 12}
  bleeding = collections.Counter(
      ct_ich_patients.splits()[ct_ich_patients.subject_name(patient)]
      for patient in ct_ich_patients.HEMORRHAGE_PATIENTS
  )
  assert bleeding == {"train": 26, "validation": 5, "test": 5}


def test_the_authors_folds_hold_16_patients_and_the_last_the_rest():
  folds = collections.Counter(ct_ich_patients.fold(patient) for patient in range(49, 131))
  assert folds == {0: 16, 1: 16, 2: 16, 3: 16, 4: 18}
  assert ct_ich_patients.fold(31 + 49) == 0 and ct_ich_patients.fold(11 + 49) == 4
