"""Names every file of a raw folder that no record comes from: nothing is left out silently."""

from __future__ import annotations

import pathlib

from flexunet.datasets import integrity
from flexunet.datasets.cases import Findings


def note(findings: Findings, reason: str = "no part of the dataset's layout") -> None:
  """Leaves out, with a reason, all files that neither a case nor a line accounts for."""
  used = {path for case in findings.cases for path in case.files.values()}
  _walk(findings, findings.root, used, reason)


def _walk(findings: Findings, folder: pathlib.Path, used: set[pathlib.Path], reason: str) -> None:
  for path in integrity.children(folder):
    if findings.relative(path) in findings.left_out:
      continue
    # A linked folder may lead in circles; linked files are looked at where they are used.
    if path.is_dir() and not path.is_symlink():
      _walk(findings, path, used, reason)
    elif path not in used:
      findings.leave_out(path, reason)
