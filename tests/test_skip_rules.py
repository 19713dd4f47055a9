"""CI counts a skipped test as a failed one, unless it needs real scans that are not there."""

import os
import pathlib
import subprocess
import sys

import pytest

_SUPPORT = pathlib.Path(__file__).resolve().parent / "support"
_INI = """
[pytest]
markers =
    realdata:
    needs_extra:
"""
_TESTS = {
    "skipped": "def test_one():\n  pytest.skip('no time')\n",
    "skipped_if": "@pytest.mark.skipif(True, reason='no time')\ndef test_one(): pass\n",
    "not_collected": "pytest.importorskip('no_such_package')\n",
    "without_extra": "@pytest.mark.needs_extra('no_such_extra')\ndef test_one(): pass\n",
    "realdata": "@pytest.mark.realdata\ndef test_one():\n  pytest.skip('no scans')\n",
    "expected_failure": "@pytest.mark.xfail\ndef test_one(): assert False\n",
}


def outcome(folder: pathlib.Path, name: str, **environment: str) -> str:
  """Returns the last line of pytest on one of _TESTS under the rules."""
  (folder / "pytest.ini").write_text(_INI)
  (folder / "conftest.py").write_text(
      "import skip_rules\nfrom skip_rules import *\n"
      "skip_rules.missing_packages = lambda extra: ('no_such_package',)\n"
  )
  (folder / "test_it.py").write_text(f"import pytest\n{_TESTS[name]}")
  result = subprocess.run(
      [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."],
      cwd=folder, capture_output=True, text=True, check=False,
      env={**os.environ, "PYTHONPATH": str(_SUPPORT), "FLEXUNET_NO_SKIP": "", **environment},
  )  # fmt: skip
  return result.stdout.splitlines()[-1]


@pytest.mark.parametrize("name", ["skipped", "skipped_if", "not_collected", "without_extra"])
def test_a_skip_is_a_failure_in_ci_and_nowhere_else(name, tmp_path):
  assert "1 skipped" in outcome(tmp_path, name)
  refused = outcome(tmp_path, name, FLEXUNET_NO_SKIP="1")
  assert "skipped" not in refused and ("1 failed" in refused or "1 error" in refused)


def test_missing_scans_skip_in_ci_and_scans_that_are_there_do_not(tmp_path):
  missing = {"FLEXUNET_NO_SKIP": "1", "FLEXUNET_REALDATA": str(tmp_path / "none")}
  assert "1 skipped" in outcome(tmp_path, "realdata", **missing)
  (tmp_path / "lay_out.py").touch()
  there = {"FLEXUNET_NO_SKIP": "1", "FLEXUNET_REALDATA": str(tmp_path)}
  assert "1 failed" in outcome(tmp_path, "realdata", **there)


def test_an_expected_failure_is_no_skip(tmp_path):
  assert "1 xfailed" in outcome(tmp_path, "expected_failure", FLEXUNET_NO_SKIP="1")
