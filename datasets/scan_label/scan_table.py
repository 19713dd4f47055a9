"""A table of scans, for folders of any other form.

  subject,image,label
  anna,anna/t1.nii.gz,anna/lesions.nii.gz

Columns: subject, image, image2 to image8 (channels), label (empty: unlabelled), split, fold.
Paths begin at the raw folder.
"""

from __future__ import annotations

import csv
import pathlib
import re
from collections.abc import Mapping

from flexunet.core.errors import InputError, unknown_name
from flexunet.datasets.builder.raw_folder import Findings
from flexunet.datasets.scan_label import raw_scans
from flexunet.datasets.scan_label.options import MOST_CHANNELS
from flexunet.datasets.scan_label.raw_scans import Layout, RawScan
from flexunet.imaging import scan_files

NAME = "scans.csv"
_FORM = "a header subject,image[,image2 ...],label[,split][,fold] and a row for each scan"
_IMAGE = re.compile(r"image_?([2-9]?)")
_OTHERS = ("subject", "label", "split", "fold")


def find(root: pathlib.Path, findings: Findings, given: str) -> Layout | None:
  """Returns the scans that a table in the raw folder lists; None where there is no table.

  Args:
    root: The raw folder.
    findings: Takes rows that cannot be used as problems.
    given: Place of the table as the user named it; "" looks for `scans.csv` in the raw folder.
  """
  path = pathlib.Path(given).expanduser() if given else root / NAME
  if not path.is_file():
    if given:
      raise InputError(f"--table={given}: there is no such file. It must have {_FORM}.")
    return None
  rows = _read(path)
  images = sorted((c for c in rows[0] if _IMAGE.fullmatch(c)), key=_channel_number)
  count = {row["subject"]: 0 for row in rows}
  for row in rows:
    count[row["subject"]] += 1
  scans = []
  for number, row in enumerate(rows, start=2):
    try:
      scans.append(_scan(root, row, images, count[row["subject"]] > 1, findings.series))
    except InputError as error:
      findings.problem(f"{path.name}, line {number}: {error}")
  _check_sides(path, rows)
  if path.is_relative_to(root):
    findings.leave_out(path, "read: it lists the scans")
  return Layout("table", f"{path.name}, {len(rows)} rows", scans, channels=images)


def _channel_number(column: str) -> int:
  match = _IMAGE.fullmatch(column)
  return int(match[1] or 1) if match else 0


def _read(path: pathlib.Path) -> list[dict[str, str]]:
  """Returns the rows, their columns in lower case, values without spaces around them."""
  try:
    text = path.read_text(encoding="utf-8-sig")
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f"{path}: must be a CSV file in UTF-8 ({error}).") from error
  header = text.splitlines()[0] if text.strip() else ""
  delimiter = max(",;\t", key=header.count)
  rows = [
      {(name or "").strip().lower(): (value or "").strip() for name, value in row.items()
       if isinstance(value, (str, type(None)))}
      for row in csv.DictReader(text.splitlines(), delimiter=delimiter)
  ]  # fmt: skip
  if not rows or not {"subject", "image"} <= rows[0].keys():
    raise InputError(f"{path}: must have {_FORM}. Its first line is {header[:80]!r}.")
  for column in rows[0]:
    if column and column not in _OTHERS and not _IMAGE.fullmatch(column):
      known = [*_OTHERS, "image", *(f"image{n}" for n in range(2, MOST_CHANNELS + 1))]
      raise InputError(f"{path}: {unknown_name('column', column, known)}")
  return rows


def _scan(
    root: pathlib.Path, row: Mapping[str, str], images: list[str], several: bool, series: str
) -> RawScan:
  if not row["subject"]:
    raise InputError("subject is empty; name the person, by a pseudonym.")
  channels = {column: _file(root, row[column], column, series) for column in images}
  label = _file(root, row["label"], "label", "") if row.get("label") else None
  subject = raw_scans.plain_name(row["subject"])
  stem = raw_scans.plain_name(scan_files.stem_of(channels[images[0]]))
  return RawScan(
      subject=subject,
      name=f"{subject}_{stem}" if several else subject,
      images=channels,
      label=label,
      side=_side(row.get("split", "")) if label is not None else "",
      fold=_fold(row.get("fold", "")) if label is not None else None,
  )


def _file(root: pathlib.Path, text: str, column: str, series: str) -> pathlib.Path:
  if not text:
    raise InputError(f"{column} is empty; every scan has the same channels.")
  path = root / text  # An absolute path stays what it is.
  if not path.is_relative_to(root) or ".." in path.parts:
    raise InputError(f"{column} {text} must lie in the raw folder.")
  if path.is_dir():  # Of a DICOM series.
    return scan_files.resolve(path, series)
  if not path.is_file():
    raise InputError(f"{column} {text}: there is no such file in the raw folder.")
  return path


def _side(text: str) -> str:
  if not text:
    return ""
  for split, names in raw_scans.SIDES.items():
    if text.lower() in names:
      return split
  raise InputError(f"split must be train, validation or test. Got: {text}.")


def _fold(text: str) -> int | None:
  if not text:
    return None
  if not text.isdigit():
    raise InputError(f"fold must be a number from 0. Got: {text}.")
  return int(text)


def _check_sides(path: pathlib.Path, rows: list[dict[str, str]]) -> None:
  stated = [bool(row.get("split")) for row in rows if row.get("label")]
  if any(stated) and not all(stated):
    raise InputError(
        f"{path}: split must be filled in every labelled row, or in none. {stated.count(False)} are"
        " empty."
    )
