"""Slice spacing of the MS scans: the volumes do not state it, a published spreadsheet does.

The first sheet of the .xlsx file is read as rows of text with the standard library alone.
"""

from __future__ import annotations

import pathlib
import re
import zipfile
import zlib
from xml.etree import ElementTree

from flexunet.core.errors import InputError
from flexunet.datasets.builder import raw_folder
from flexunet.datasets.builder.raw_folder import Findings

_SPACE = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_SHEET = "xl/worksheets/sheet1.xml"
_TEXTS = "xl/sharedStrings.xml"
_MAX_BYTES = 16 << 20  # A table of a few hundred patients has 100 kB.
_MAX_COLUMNS = 1024
_ERRORS = (OSError, zipfile.BadZipFile, zlib.error, ElementTree.ParseError, ValueError, KeyError,
           IndexError, NotImplementedError, RuntimeError)  # fmt: skip


def read_rows(path: pathlib.Path) -> list[list[str]]:
  """Returns the rows as written; empty cells are "".

  Raises:
    InputError: When the file is no readable spreadsheet.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      names = set(archive.namelist())
      texts = []
      if _TEXTS in names:
        root = _parse(archive, _TEXTS)
        texts = ["".join(t.text or "" for t in item.iter(f"{_SPACE}t")) for item in root]
      return [_row(row, texts) for row in _parse(archive, _SHEET).iter(f"{_SPACE}row")]
  except _ERRORS as error:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise InputError(f"{path}: must be a readable .xlsx spreadsheet: {reason}.") from error


def _parse(archive: zipfile.ZipFile, name: str) -> ElementTree.Element:
  # The size in the directory may lie: read one byte more than allowed, not what it promises.
  with archive.open(name) as stream:
    content = stream.read(_MAX_BYTES + 1)
  if len(content) > _MAX_BYTES:
    raise ValueError(f"{name} is larger than {_MAX_BYTES} bytes")
  # No spreadsheet declares entities, and only through them can XML of this size explode.
  if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
    raise ValueError(f"{name} declares a document type")
  return ElementTree.fromstring(content)  # noqa: S314


def _row(row: ElementTree.Element, texts: list[str]) -> list[str]:
  cells: list[str] = []
  for cell in row.iter(f"{_SPACE}c"):
    reference = re.match(r"[A-Z]+", cell.get("r", ""))
    column = _column_number(reference[0]) if reference else len(cells)
    if column >= _MAX_COLUMNS:
      raise ValueError(f"more than {_MAX_COLUMNS} columns")
    cells.extend([""] * (column + 1 - len(cells)))
    cells[column] = _value(cell, texts)
  return cells


def _column_number(letters: str) -> int:
  number = 0
  for letter in letters:
    number = number * 26 + ord(letter) - ord("A") + 1
  return number - 1


def _value(cell: ElementTree.Element, texts: list[str]) -> str:
  if cell.get("t") == "inlineStr":
    return "".join(t.text or "" for t in cell.iter(f"{_SPACE}t"))
  value = cell.find(f"{_SPACE}v")
  text = "" if value is None or value.text is None else value.text
  return texts[int(text)] if cell.get("t") == "s" else text


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
    spacing = parse(read_rows(path), modality)
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
