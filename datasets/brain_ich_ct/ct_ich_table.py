"""Reads the slice labels of CT-ICH: `hemorrhage_diagnosis.csv` and its raw CT variant."""

from __future__ import annotations

import csv
import dataclasses
import pathlib

from flexunet.core.errors import InputError

SUBTYPES = ("intraventricular", "intraparenchymal", "subarachnoid", "epidural", "subdural")
UNKNOWN = -1
_COLUMNS = ("PatientNumber", "SliceNumber", *(name.capitalize() for name in SUBTYPES))


@dataclasses.dataclass(frozen=True)
class SliceRow:
  """What the readers found in one slice.

  Attributes:
    subtypes: 0 or 1 per entry of `SUBTYPES`; a slice may show several.
    hemorrhage: Whether they called it a haemorrhage.
    fracture: 0 or 1; `UNKNOWN` where the table has no such column.
  """

  subtypes: tuple[int, ...]
  hemorrhage: bool
  fracture: int

  def plain(self) -> list:
    """Returns it as lists and numbers, for `Case.details`."""
    return [list(self.subtypes), self.hemorrhage, self.fracture]

  @classmethod
  def from_plain(cls, values: list) -> SliceRow:
    """Reads what `plain` wrote."""
    subtypes, hemorrhage, fracture = values
    return cls(tuple(subtypes), hemorrhage, fracture)


def read(path: pathlib.Path) -> dict[tuple[int, int], SliceRow]:
  """Returns {(patient number, slice number): row}.

  Raises:
    InputError: When columns are missing, a number is none, or a slice is listed twice.
  """
  rows: dict[tuple[int, int], SliceRow] = {}
  try:
    # The published file begins with a byte order mark, which plain utf-8 would put into the name
    # of the first column.
    with open(path, newline="", encoding="utf-8-sig") as stream:
      reader = csv.DictReader(stream)
      names = {name.strip().lower(): name for name in reader.fieldnames or []}
      if missing := [name for name in _COLUMNS if name.lower() not in names]:
        raise InputError(
            f"{path}: needs the columns {', '.join(missing)}, has {', '.join(names) or 'none'}."
            " Fetch the file again."
        )
      for line, row in enumerate(reader, start=2):
        key, found = _parse(path, line, {plain: row[name] for plain, name in names.items()})
        if key in rows:
          raise InputError(f"{path}: line {line} lists slice {key[1]} of patient {key[0]} again.")
        rows[key] = found
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise InputError(f"{path}: cannot be read as a table ({error}). Fetch it again.") from error
  return rows


def _parse(path: pathlib.Path, line: int, row: dict) -> tuple[tuple[int, int], SliceRow]:
  try:
    key = int(row["patientnumber"]), int(row["slicenumber"])
    subtypes = tuple(int(row[name]) for name in SUBTYPES)
    negative = int(row.get("no_hemorrhage", not any(subtypes)))
    fracture = int(row.get("fracture_yes_no", UNKNOWN))
  except (TypeError, ValueError) as error:
    raise InputError(f"{path}: line {line} holds no whole numbers ({error}).") from error
  return key, SliceRow(subtypes, any(subtypes) or not negative, fracture)
