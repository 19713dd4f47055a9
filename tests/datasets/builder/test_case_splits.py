"""Which split and which fold each case of a build gets."""

import collections
import json

import pytest

from flexunet.core.errors import InputError
from flexunet.datasets import subject_splits
from flexunet.datasets.builder import case_splits, splits_file
from flexunet.datasets.builder.raw_folder import Case
from flexunet.datasets.builder.record_options import SplitOptions

FOLDS = range(5)


def case(subject, key=None, **fields):
  return Case(key=key or subject, subject=subject, volume=key or subject, files={}, **fields)


def people(count, **fields):
  return [case(f"p{number:03d}", **fields) for number in range(count)]


@pytest.mark.parametrize("count", [5, 6, 7, 8, 16, 23, 40, 101])
def test_folds_are_balanced_over_train_and_validation(count):
  # Folds over all subjects, from which the test subjects then leave: 5 left one fold empty, and 16
  # made folds of 4, 1, 3, 3, 3.
  assigned = case_splits.decide(people(count), "salt")
  part = [s for s, split in assigned.splits.items() if split in ("train", "validation")]
  assert sum(assigned.fold_sizes()) == len(part)
  assert max(assigned.fold_sizes()) - min(assigned.fold_sizes()) <= 1
  assert min(assigned.fold_sizes()) > 0 or len(part) < 5
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
  # 17 of the 20 and b take part; a, of the test split, does not, though its publisher gave a fold.
  assert sorted(assigned.fold_sizes()) == [3, 3, 4, 4, 4]


def test_a_subject_that_its_publisher_divided_stays_divided():
  sides = [case("a", "a_train", split="train"), case("a", "a_test", split="test")]
  assigned = case_splits.decide([*sides, *people(5)], "salt")
  assert [assigned.split_of(one) for one in sides] == ["train", "test"]
  # What is validated on is never of the test split.
  assert assigned.fold_of(sides[0]) in FOLDS and assigned.fold_of(sides[1]) == -1


def options_of(folder, assigned=None, subjects=None, folds=None, **changes):
  """Returns options with a splits file: of a decision, of {subject: place}, or of nnU-Net."""
  path = folder / "list.json"
  if folds is not None:
    path.write_text(json.dumps(folds))
  elif subjects is not None:
    path.write_text(json.dumps({"form": 1, "subjects": subjects}))
  else:
    splits_file.write(folder, assigned.settings, assigned.entries(str), assigned.absent)
    path = folder / "splits.json"
  return SplitOptions(splits_file=str(path), **changes)


@pytest.mark.parametrize("seed", range(4))
def test_with_a_splits_file_subjects_can_be_added_one_by_one_and_nobody_moves(tmp_path, seed):
  # In an order of their own; without a file, one more moves 14 to 28 % of the others.
  names = sorted(range(1, 41), key=lambda n: subject_splits.salted_hash(f"{seed}", str(n)))
  cases, before = [], None
  for count, number in enumerate(names, start=1):
    cases.append(case(f"p{number:03d}", stratum="few" if number % 4 == 0 else "many"))
    options = before and options_of(tmp_path, before)
    now = case_splits.decide(cases, "salt", options)
    for subject in before.splits if before else ():
      place = now.splits[subject], now.folds[subject]
      assert place == (before.splits[subject], before.folds[subject])
    found = collections.Counter(now.splits.values())
    assert found == +collections.Counter(subject_splits.split_sizes(count))
    for split, share in subject_splits.RATIOS.items():
      # With three subjects no split is empty, which is 1.1 fewer in train than its share.
      assert abs(found[split] - share * count) < (1 if count > 3 else 1.2)
    assert max(now.fold_sizes()) - min(now.fold_sizes()) <= 1
    before = now


def test_subjects_added_together_are_spread_by_stratum(tmp_path):
  first = case_splits.decide(people(20, stratum="many"), "salt")
  added = [case(f"q{number:03d}", stratum="few") for number in range(20)]
  both = case_splits.decide([*people(20, stratum="many"), *added], "salt",
                            options_of(tmp_path, first))  # fmt: skip
  found = collections.Counter(both.splits[one.subject] for one in added)
  assert found == {"train": 14, "validation": 3, "test": 3}
  assert both.counts() == {"shares": 20, "splits_file": 20}


def test_shares_and_seed_of_the_file_go_on_unless_others_are_given(tmp_path):
  asked = SplitOptions(split_shares=(50, 25, 25), split_seed=7)
  first = case_splits.decide(people(8), "salt", asked)
  assert collections.Counter(first.splits.values()) == {"train": 4, "validation": 2, "test": 2}
  grown = case_splits.decide(people(12), "salt", options_of(tmp_path, first))
  assert collections.Counter(grown.splits.values()) == {"train": 6, "validation": 3, "test": 3}
  assert grown.settings["seed"] == 7
  other = case_splits.decide(
      people(12), "salt", options_of(tmp_path, first, split_shares=(70, 30, 0))
  )
  assert collections.Counter(other.splits.values())["test"] == 2  # Those of the file alone.


def test_another_seed_gives_other_splits_of_the_same_sizes():
  one = case_splits.decide(people(40), "salt").splits
  other = case_splits.decide(people(40), "salt", SplitOptions(split_seed=1)).splits
  assert one != other
  assert collections.Counter(one.values()) == collections.Counter(other.values())
  assert case_splits.decide(people(40), "salt", SplitOptions(split_seed=0)).splits == one


def test_a_file_may_use_the_names_of_the_records_of_the_raw_folder_or_of_a_scan(tmp_path):
  cases = [case("ann", "ann_1"), case("ann", "ann_2"), case("bob"), case("eve"), case("max")]
  options = options_of(tmp_path, subjects={
      "x_ann": {"split": "test"}, "bob": {"split": "validation"}, "gone": {"split": "test"}})
  assigned = case_splits.decide(cases, "salt", options, lambda subject: f"x_{subject}")
  assert (assigned.splits["ann"], assigned.splits["bob"]) == ("test", "validation")
  # The names of a user's own list are for the user alone.
  assert assigned.absent == {} and not assigned.warnings
  assert "gone (1)" in assigned.notices[0]
  by_scan = options_of(tmp_path, folds=[{"train": ["bob"], "val": ["ann_1", "ann_2"]},
                                        {"train": ["ann_1", "ann_2"], "val": ["bob"]}])
  found = case_splits.decide(cases[:3], "salt", by_scan)
  assert found.splits == {"ann": "validation", "bob": "train"}
  assert found.folds == {"ann": 0, "bob": 1}


def test_an_absent_subject_gets_its_place_back(tmp_path):
  first = case_splits.decide(people(20), "salt")
  fewer = case_splits.decide(people(20)[5:], "salt", options_of(tmp_path, first))
  assert len(fewer.absent) == 5 and "p000, p001" in fewer.warnings[0]
  again = case_splits.decide(people(20), "salt", options_of(tmp_path, fewer))
  assert again.splits == first.splits and again.folds == first.folds


def test_a_copy_of_a_listed_subject_goes_where_that_one_is(tmp_path):
  first = case_splits.decide(people(20), "salt")
  listed = next(s for s, split in sorted(first.splits.items()) if split == "validation")
  cases = [*people(20), *(case(f"q{number}") for number in range(3))]
  grown = case_splits.decide(
      cases, "salt", options_of(tmp_path, first), joined=[[listed, "q0"], ["q1", "q2"]]
  )
  assert grown.splits["q0"] == "validation" and grown.reasons["q0"] == "identical images"
  assert grown.folds["q0"] == first.folds[listed] == grown.folds[listed]
  assert grown.splits["q1"] == grown.splits["q2"]
  assert {s: grown.splits[s] for s in first.splits} == first.splits


def test_copies_on_two_sides_of_the_file_stay_there(tmp_path):
  options = options_of(tmp_path, subjects={
      "p000": {"split": "train"}, "p001": {"split": "test"}})
  assigned = case_splits.decide(people(9), "salt", options, joined=[["p000", "p001", "p002"]])
  assert assigned.splits["p000"] == "train"
  # Nobody moves; what the file does not name keeps out of train and of the choice of the model.
  assert assigned.splits["p001"] == assigned.splits["p002"] == "test"


def test_the_holdout_is_the_test_split_it_alone(tmp_path):
  path = tmp_path / "subjects.txt"
  path.write_text("p003\np007\n")
  assigned = case_splits.decide(people(19), "salt", SplitOptions(holdout=str(path)))
  assert {s for s, split in assigned.splits.items() if split == "test"} == {"p003", "p007"}
  # The other 17 as 70 to 15: 14 and 3.
  assert collections.Counter(assigned.splits.values()) == {"train": 14, "validation": 3, "test": 2}


@pytest.mark.parametrize(
    ("subjects", "message"),
    [
        ({"p000": {"split": "test"}}, "puts p000 into test; by the publisher it is in train"),
        ({"one": {"split": "test"}, "two": {"split": "train"}}, "a subject must have one place"),
        ({"nobody": {"split": "test"}}, "none of its 1 subjects is in the raw folder"),
    ],
)
def test_a_file_that_contradicts_itself_the_publisher_or_the_folder_is_refused(
    tmp_path, subjects, message
):
  cases = [*people(3, split="train"), case("pair", "one"), case("pair", "two")]
  with pytest.raises(InputError, match=message):
    case_splits.decide(cases, "salt", options_of(tmp_path, subjects=subjects))


def test_a_holdout_of_unknown_or_trained_on_subjects_is_refused(tmp_path):
  path = tmp_path / "subjects.txt"
  path.write_text("p001\np999\n")
  with pytest.raises(InputError, match=r"Unknown: p999 \(1\)"):
    case_splits.decide(people(5), "salt", SplitOptions(holdout=str(path)))
  path.write_text("p001\n")
  with pytest.raises(InputError, match="puts p001 into test; by the publisher it is in train"):
    case_splits.decide(people(5, split="train"), "salt", SplitOptions(holdout=str(path)))
  both = options_of(tmp_path, subjects={"p001": {"split": "train"}}, holdout=str(path))
  with pytest.raises(InputError, match="puts p001 into test; by the splits_file it is in train"):
    case_splits.decide(people(5), "salt", both)


def test_shares_that_decide_nothing_are_refused():
  with pytest.raises(InputError, match="--split_shares cannot be followed"):
    case_splits.decide(people(5, split="train"), "salt", SplitOptions(split_shares=(80, 10, 10)))


@pytest.mark.parametrize(
    "shares",
    [("70", "30"), (70, 20, 20), (0, 50, 50), ("a", "b", "c"), (110, -5, -5), ("nan",) * 3],
)
def test_shares_that_make_no_sense_are_refused(shares):
  with pytest.raises(InputError, match="split_shares must be"):
    SplitOptions(split_shares=shares)


def test_an_empty_split_says_why_and_what_to_do(tmp_path):
  two = case_splits.decide(people(2), "salt")
  assert two.why_empty("test") == (
      "Split test is empty: 2 subjects are too few for it. Add subjects, or score by"
      " cross-validation, in which each subject is validated once: train with --fold=0 to --fold=1,"
      " and evaluate each run with --split=validation."
  )
  one = case_splits.decide(people(1), "salt")
  assert one.why_empty("validation").endswith("1 subject is too few for it. Add subjects.")
  none_asked = case_splits.decide(people(9), "salt", SplitOptions(split_shares=(80, 20, 0)))
  assert none_asked.why_empty("test") == ""
  published = case_splits.decide(people(9, split="train"), "salt")
  assert published.why_empty("test") == (
      "Split test is empty: none of the 9 subjects here falls to it, by publisher."
  )
  path = tmp_path / "subjects.txt"
  path.write_text("p000\np001\n")
  rest = case_splits.decide(people(3), "salt", SplitOptions(holdout=str(path)))
  assert rest.why_empty("validation").endswith("Add subjects, or name fewer in --holdout.")


def test_how_much_is_labelled_can_be_spread_evenly():
  loads = {f"p{number:03d}": max(0, number - 20) / 100 for number in range(80)}
  assigned = case_splits.decide(people(80), "salt", loads=loads)
  assert collections.Counter(assigned.strata.values()) == {
      "nothing": 21, "little": 20, "some": 20, "much": 19}
  assert assigned.strata["p021"] == "little" and assigned.strata["p079"] == "much"
  for stratum in ("nothing", "little", "some", "much"):
    found = collections.Counter(
        assigned.splits[s] for s in assigned.splits if assigned.strata[s] == stratum)
    assert found["train"] in (13, 14, 15) and min(found["test"], found["validation"]) >= 2
