"""Tables for the terminal."""

from flexunet.core import progress


def test_texts_stand_on_the_left_and_numbers_on_the_right():
  rows = [("class", "Dice", "interval"), ("a", "0.5", "0.4 .. 0.6"), ("long name", "-", "")]
  assert progress.table(rows) == (
      "class      Dice  interval\n"
      "a           0.5  0.4 .. 0.6\n"
      "long name     -"
  )


def test_the_longest_text_is_cut_in_the_middle_where_a_line_would_be_too_long():
  rows = [("file", "value"), ("abcdefghijklmnop", "12")]
  lines = progress.table(rows, columns=17).splitlines()
  # 17 columns less 2 between and 5 for the values leave 10 for the name.
  assert lines == ["file        value", "abcd~lmnop     12"]


def test_a_table_fits_the_terminal(monkeypatch):
  monkeypatch.setenv("COLUMNS", "40")
  rows = [("case", "file"), ("x" * 50, "y" * 50)]
  assert max(map(len, progress.table(rows).splitlines())) == 40


def test_a_count_agrees_with_its_noun():
  assert progress.count(1, "slice") == "1 slice" and progress.count(1200, "slice") == "1,200 slices"


def test_a_heading_alone_is_a_line():
  assert progress.table([("a", "b")]) == "a  b"
