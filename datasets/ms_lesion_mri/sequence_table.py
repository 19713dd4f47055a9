"""Slice spacing of the MS scans: the volumes do not state it, a published spreadsheet does.

The table has two header rows, in which the modality and the quantity stand above each other; only
the columns on spacing are read.
"""

from __future__ import annotations

import pathlib
import re

from flexunet.core.errors import InputError
from flexunet.datasets.builder import raw_folder
from flexunet.datasets.builder.raw_folder import Findings
from flexunet.datasets.ms_lesion_mri import spreadsheet

_NAME = re.compile(r"supplementary table 2\b.*\.xlsx", re.IGNORECASE)
_HEADER_ROWS_TRIED = 4
# Outside of this a number is no spacing of slices of a head.
_LEAST_MM, _MOST_MM = 0.3, 20.0


def find(root: pathlib.Path) -> pathlib.Path | None:
  """Returns the table's file; its published name has stray spaces."""
  level = [root]
  for _ in range(3):
    for folder in level:
      for path in raw_folder.children(folder):
        if path.is_file() and _NAME.fullmatch(path.name):
          return path
    level = [path for folder in level for path in raw_folder.children(folder) if path.is_dir()]
  return None


def slice_spacing_mm(findings: Findings, modality: str) -> dict[int, float]:
  """Returns {patient: distance of neighbouring slices}; empty, with a warning, where unknown."""
  path = find(findings.root)
  if path is None:
    findings.warn("Supplementary Table 2 was not found: the spacing of slices is unknown (NaN).")
    return {}
  try:
    spacing = parse(spreadsheet.read_rows(path), modality)
  except InputError as error:
    findings.warn(f"{findings.relative(path)}: cannot be read, so the spacing of slices is unknown"
                  f" (NaN): {str(error).removeprefix(str(path)).lstrip(': ')}")  # fmt: skip
    return {}
  if not spacing:
    findings.warn(f"{findings.relative(path)}: holds no column of spacing between slices of"
                  f" {modality}: it is unknown (NaN).")  # fmt: skip
  return spacing


def parse(rows: list[list[str]], modality: str) -> dict[int, float]:
  """Finds the column of the modality's spacing under two header rows, and the patients' numbers."""
  for top in range(min(_HEADER_ROWS_TRIED, len(rows) - 1)):
    below = rows[top + 1]
    above = _fill(rows[top], len(below))
    for column, text in enumerate(below):
      joined = f"{above[column]} {text}".lower()
      if "spacing" in joined and _modality_of(joined) == modality.lower():
        return _column(rows[top + 2 :], column)
  return {}


def _fill(row: list[str], length: int) -> list[str]:
  """Repeats a merged header cell, which only its first column holds."""
  filled, last = [], ""
  for column in range(length):
    last = (row[column] if column < len(row) else "") or last
    filled.append(last)
  return filled


def _modality_of(header: str) -> str:
  # "T2-FLAIR" is FLAIR.
  return next((name for name in ("flair", "t1", "t2") if name in header), "")


def _column(rows: list[list[str]], column: int) -> dict[int, float]:
  found = {}
  for row in rows:
    patient = re.search(r"\d+", row[0]) if row else None
    try:
      mm = float(row[column])
    except (IndexError, ValueError):
      continue
    if patient and _LEAST_MM <= mm <= _MOST_MM:
      found[int(patient[0])] = mm
  return found
