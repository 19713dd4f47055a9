"""Reads the first sheet of an .xlsx file as rows of text, with the standard library alone."""

from __future__ import annotations

import pathlib
import re
import zipfile
import zlib
from xml.etree import ElementTree

from flexunet.core.errors import InputError

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
    column = _column(reference[0]) if reference else len(cells)
    if column >= _MAX_COLUMNS:
      raise ValueError(f"more than {_MAX_COLUMNS} columns")
    cells.extend([""] * (column + 1 - len(cells)))
    cells[column] = _value(cell, texts)
  return cells


def _column(letters: str) -> int:
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
