"""What file names state is read in bounded time, whatever pattern the user gives."""

import time

import pytest

from flexunet.core.errors import InputError
from flexunet.datasets.image_mask import folders
from flexunet.datasets.image_mask.folders import SliceName

# Each further letter doubles its time: 40 letters take hours.
ENDLESS = r"(?P<subject>(a+)+)b"


def test_a_pattern_that_backtracks_for_ever_is_stopped_and_named(monkeypatch):
  monkeypatch.setattr(folders, "_MATCH_SECONDS", 1.0)
  began = time.monotonic()
  with pytest.raises(InputError) as caught:
    folders.parse_all(["ab", "aab", "a" * 40, "aaab"], ENDLESS)
  assert time.monotonic() - began < 10
  message = str(caught.value)
  assert "\n" not in message and repr("a" * 40) in message and "(a+)+)b" in message


def test_a_given_pattern_states_subject_and_slice():
  found = folders.parse_all(
      ["p1_007", "é_12", "bad\udce9_1", "other"], r"^(?P<subject>[^_]+)_(?P<slice>\d+)"
  )
  assert found == {
      "p1_007": SliceName("p1", 7),
      "é_12": SliceName("é", 12),
      "bad\udce9_1": SliceName("bad\udce9", 1),  # A name that is no UTF-8; refused later by name.
      "other": SliceName(None, None),
  }


def test_a_thousand_names_are_matched_in_order():
  stems = [f"s{number}_{number}" for number in range(1000)]
  found = folders.parse_all(stems, r"(?P<subject>s\d+)_(?P<slice>\d+)")
  assert list(found) == stems
  assert found["s999_999"] == SliceName("s999", 999)


@pytest.mark.parametrize("pattern", ["(" * 5000 + ")" * 5000, "(?P<subject>a{99999999999})"])
def test_a_pattern_too_large_to_compile_is_one_line(pattern):
  with pytest.raises(InputError, match="must be a regular expression"):
    folders.compile_rules(pattern)


def test_a_superscript_is_a_letter_of_a_name():
  assert folders.parse_all(["a_²"], r"(?P<subject>a)_(?P<slice>.)") == {"a_²": SliceName("a", None)}
  assert sorted(["10", "9²", "9"], key=folders.natural) == ["9", "9²", "10"]
