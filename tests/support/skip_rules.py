"""Which tests may be skipped: none in CI (FLEXUNET_NO_SKIP=1), but for missing real scans.

`tests/conftest.py` takes the hooks from here, so that a test can try them on tests of its own.
"""

from __future__ import annotations

import configparser
import functools
import importlib.metadata
import os
import pathlib
import re

import pytest

_CHECKOUT = pathlib.Path(__file__).resolve().parents[2]


def realdata_folder() -> pathlib.Path | None:
  """Returns the folder of real scans, None where there is none."""
  default = _CHECKOUT.parent / "shared" / "realdata"
  folder = pathlib.Path(os.environ.get("FLEXUNET_REALDATA", default))
  return folder if (folder / "lay_out.py").is_file() else None


@functools.cache
def missing_packages(extra: str) -> tuple[str, ...]:
  """Returns which packages of an extra of setup.cfg are not installed."""
  setup = configparser.ConfigParser()
  setup.read(_CHECKOUT / "setup.cfg", encoding="utf-8")
  requirements = setup["options.extras_require"][extra].split("\n")
  stated = [line for line in requirements if line and not line.startswith("#")]
  packages = [re.split(r"[^\w-]", line, maxsplit=1)[0] for line in stated]
  return tuple(name for name in packages if not _is_installed(name))


def _is_installed(package: str) -> bool:
  try:
    importlib.metadata.distribution(package)
  except importlib.metadata.PackageNotFoundError:
    return False
  return True


def pytest_collection_modifyitems(config, items):
  """Deselects the context manager `test_session` of TensorFlow's test cases: it is no test."""
  no_tests = [item for item in items if item.name == "test_session"]
  items[:] = [item for item in items if item not in no_tests]
  config.hook.pytest_deselected(items=no_tests)


def pytest_runtest_setup(item):
  """Skips a test marked `needs_extra(NAME)` where packages of that extra are missing."""
  for marker in item.iter_markers("needs_extra"):
    if missing := missing_packages(*marker.args):
      pytest.skip(
          f"needs {', '.join(missing)}: pip install -c constraints.txt -e '.[{marker.args[0]}]'"
      )


def _refuse(report) -> None:
  """Turns a report of a skip into one of a failure."""
  reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
  report.outcome = "failed"
  report.longrepr = f"{report.nodeid}: FLEXUNET_NO_SKIP is set, and this was skipped: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
  report = yield
  skipped = report.skipped and not hasattr(report, "wasxfail")
  scans_missing = item.get_closest_marker("realdata") and realdata_folder() is None
  if skipped and not scans_missing and os.environ.get("FLEXUNET_NO_SKIP"):
    _refuse(report)
  return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
  report = yield
  if os.environ.get("FLEXUNET_NO_SKIP") and report.skipped:
    _refuse(report)
  return report
