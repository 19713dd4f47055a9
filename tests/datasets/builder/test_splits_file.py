"""The list of who stands where: read with distrust, one line for each thing that is wrong."""

import json

import pytest

from flexunet.core.errors import InputError
from flexunet.datasets.builder import splits_file
from flexunet.datasets.builder.splits_file import Place


def written(folder, values):
  path = folder / "list.json"
  path.write_text(values if isinstance(values, str) else json.dumps(values))
  return str(path)


def listing(**subjects):
  return {"form": 1, "subjects": subjects}


def test_what_is_written_is_read_back(tmp_path):
  shares = {"train": 0.6, "validation": 0.2, "test": 0.2}
  subjects = {"é1": {"split": "test", "fold": -1, "stratum": "few", "by": "shares"}}
  splits_file.write(
      tmp_path, {"salt": "s", "seed": 3, "num_folds": 4, "shares": shares}, subjects,
      {"gone": Place("train", 2)},
  )  # fmt: skip
  found = splits_file.read(str(tmp_path / "splits.json"))
  assert found.places == {"é1": Place("test", -1, "few"), "gone": Place("train", 2)}
  assert (found.shares, found.seed, found.num_folds) == (shares, 3, 4)


def test_a_split_is_enough(tmp_path):
  found = splits_file.read(written(tmp_path, listing(a={"split": "train"})))
  assert found.places == {"a": Place("train")}
  assert (found.shares, found.seed, found.num_folds) == (None, 0, 5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("{", "must be JSON"),
        ("[" * 100_000, "must be JSON"),
        ('{"form": 1, "subjects": {"a": {"split": "test"}, "a": {"split": "train"}}}',
         "'a' stands there twice"),
        ('{"form": 1, "subjects": {"\\ud800": {"split": "train"}}}', "must be JSON"),
        (5, "must be a splits.json that a build wrote"),
        ({"splits": {}}, "must be a splits.json that a build wrote"),
        ({"form": 2, "subjects": {}}, "must be of form 1. Got: 2"),
        (listing(a={"split": "training"}), "subject a: split must be one of.*Got: 'training'"),
        (listing(a="test"), "subject a: split must be one of"),
        (listing(a={"split": "test", "fold": 5}), "subject a: fold must be -1..4. Got: 5"),
        (listing(a={"split": "test", "fold": True}), "subject a: fold must be"),
        ({**listing(), "shares": {"train": 1}}, "shares must be those of"),
        ({**listing(), "seed": "x"}, "seed a whole number"),
        ([{"train": ["a"], "val": "b"}], "fold 0 must be"),
        ([], "must be a splits.json that a build wrote"),
        ([{"train": ["a"], "val": ["a"]}], "fold 0 trains and validates on a"),
        ([{"train": ["b"], "val": ["a"]}, {"train": ["b"], "val": ["a"]}],
         "a is validated on in fold 0 and in 1"),
    ],
)  # fmt: skip
def test_a_bad_file_gets_a_line(tmp_path, values, message):
  path = written(tmp_path, values)
  with pytest.raises(InputError, match=message) as caught:
    splits_file.read(path)
  assert str(caught.value).startswith(path) and "\n" not in str(caught.value)


def test_what_is_no_file_gets_a_line(tmp_path):
  (tmp_path / "latin.json").write_bytes(b'{"\xe9": 1}')
  (tmp_path / "folder").mkdir()
  for name, message in (
      ("none.json", "there is no such file"), ("latin.json", "UTF-8"),
      ("folder", r"cannot be read \(Is a directory\)"),
  ):  # fmt: skip
    with pytest.raises(InputError, match=message):
      splits_file.read(str(tmp_path / name))


def test_folds_of_nnunet_are_places_outside_the_test_split(tmp_path):
  folds = [{"train": ["b", "c", "d"], "val": ["a"]}, {"train": ["a", "d"], "val": ["b", "c"]}]
  found = splits_file.read(written(tmp_path, folds))
  assert found.num_folds == 2
  assert found.places == {
      "a": Place("validation", 0), "b": Place("train", 1), "c": Place("train", 1),
      "d": Place("train", -1),  # No fold validates on it.
  }  # fmt: skip


def test_names_stand_one_a_line_and_comments_do_not_count(tmp_path):
  path = tmp_path / "names.txt"
  path.write_text("# held out\n p01 \n\np02 # twice\np02\n")
  assert splits_file.read_names(str(path)) == ("p01", "p02")
  path.write_text("# nobody\n")
  with pytest.raises(InputError, match="must list subjects"):
    splits_file.read_names(str(path))


def test_the_file_of_a_dataset_that_a_killed_build_had_put_aside_is_found(tmp_path):
  aside = tmp_path / ".replaced-1.0.0"
  aside.mkdir()
  (aside / "splits.json").write_text(json.dumps(listing(a={"split": "train"})))
  found = splits_file.read(str(tmp_path / "1.0.0" / "splits.json"))
  assert found.places == {"a": Place("train")}
