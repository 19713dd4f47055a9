"""Prints the table of the fuzz program after its tests."""

import os
import pathlib

import fuzz_judge


def pytest_terminal_summary(terminalreporter):
  if not fuzz_judge.CATEGORIES:
    return
  terminalreporter.section("fuzz")
  for line in fuzz_judge.table():
    terminalreporter.write_line(line)
  if path := os.environ.get("FLEXUNET_FUZZ_JSON"):
    pathlib.Path(path).write_text(fuzz_judge.as_json())
