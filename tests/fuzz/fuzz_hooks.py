"""Prints the table of the fuzz program after its tests, of whichever processes ran them.

`tests/conftest.py` takes the hooks from here: the process that prints collects no tests itself.
"""

from __future__ import annotations

import os
import pathlib
import sys

import pytest

_KEY = "fuzz_categories"


def pytest_sessionfinish(session):
  """Sends the verdicts of a process of pytest-xdist to the one that prints."""
  told = getattr(session.config, "workeroutput", None)
  judge = sys.modules.get("fuzz_judge")
  if told is not None and judge:
    told[_KEY] = [
        (one.name, one.unchecked, dict(one.counts), one.details)
        for one in judge.CATEGORIES.values()
    ]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
  """Takes the verdicts of a process that has ended; one that was killed sends none."""
  for name, unchecked, counts, details in getattr(node, "workeroutput", {}).get(_KEY, ()):
    # Heavy for those who run other tests: NumPy.
    import fuzz_judge

    fuzz_judge.add(name, unchecked, counts, details)


def pytest_terminal_summary(terminalreporter):
  judge = sys.modules.get("fuzz_judge")
  if judge is None or not judge.CATEGORIES:
    return
  terminalreporter.section("fuzz")
  for line in judge.table():
    terminalreporter.write_line(line)
  if path := os.environ.get("FLEXUNET_FUZZ_JSON"):
    pathlib.Path(path).write_text(judge.as_json())
