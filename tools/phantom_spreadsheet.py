"""Writes the smallest spreadsheet (.xlsx) a reader accepts: one sheet of numbers and texts."""

from __future__ import annotations

import pathlib
import zipfile
from collections.abc import Sequence
from xml.sax import saxutils

_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_TYPE = "application/vnd.openxmlformats-officedocument.spreadsheetml"
_PARTS = {
    "[Content_Types].xml": (
        f'<Types xmlns="{_PACKAGE}/content-types">'
        '<Default Extension="rels" ContentType='
        '"application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{_TYPE}.sheet.main+xml"/>'
        f'<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{_TYPE}.worksheet+xml"/>'
        "</Types>"
    ),
    "_rels/.rels": (
        f'<Relationships xmlns="{_PACKAGE}/relationships"><Relationship Id="rId1"'
        f' Type="{_OFFICE}/officeDocument" Target="xl/workbook.xml"/></Relationships>'
    ),
    "xl/workbook.xml": (
        f'<workbook xmlns="{_MAIN}" xmlns:r="{_OFFICE}"><sheets>'
        '<sheet name="Sheet1" sheetId="1" r:id="rId1"/></sheets></workbook>'
    ),
    "xl/_rels/workbook.xml.rels": (
        f'<Relationships xmlns="{_PACKAGE}/relationships"><Relationship Id="rId1"'
        f' Type="{_OFFICE}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>'
    ),
}
_PROLOGUE = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>'
# A fixed date: the same rows give the same bytes.
_DATE = (1980, 1, 1, 0, 0, 0)


def _column(index: int) -> str:
  name = ""
  while index >= 0:
    index, letter = divmod(index, 26)
    name, index = chr(ord("A") + letter) + name, index - 1
  return name


def _cell(value: float | str | None, reference: str) -> str:
  if value is None:
    return ""
  if isinstance(value, str):
    return f'<c r="{reference}" t="inlineStr"><is><t>{saxutils.escape(value)}</t></is></c>'
  return f'<c r="{reference}"><v>{value}</v></c>'


def write(path: pathlib.Path, rows: Sequence[Sequence[float | str | None]]) -> None:
  """Writes `rows`; None leaves a cell out, as spreadsheet programs do."""
  lines = []
  for number, row in enumerate(rows, start=1):
    cells = "".join(_cell(value, f"{_column(n)}{number}") for n, value in enumerate(row))
    lines.append(f'<row r="{number}">{cells}</row>')
  sheet = f'<worksheet xmlns="{_MAIN}"><sheetData>{"".join(lines)}</sheetData></worksheet>'
  path.parent.mkdir(parents=True, exist_ok=True)
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, text in {**_PARTS, "xl/worksheets/sheet1.xml": sheet}.items():
      archive.writestr(zipfile.ZipInfo(name, _DATE), _PROLOGUE + text)
