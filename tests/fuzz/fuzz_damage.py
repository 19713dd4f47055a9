"""Ways to damage bytes, JSON and tables; each returns what was done and the damaged input."""

from __future__ import annotations

import copy
import csv
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np

Rng = np.random.Generator


def flip(data: bytes, rng: Rng) -> tuple[str, bytes]:
  """Flips one bit."""
  place, bit = int(rng.integers(len(data))), int(rng.integers(8))
  changed = bytearray(data)
  changed[place] ^= 1 << bit
  return f"bit {bit} of byte {place} of {len(data)} flipped", bytes(changed)


def _block(data: bytes, rng: Rng) -> tuple[int, int]:
  start = int(rng.integers(max(1, len(data))))
  return start, start + int(rng.integers(1, max(2, len(data) // 4)))


def _truncated(data: bytes, rng: Rng) -> bytes:
  return data[: int(rng.integers(max(1, len(data))))]


def _zeros(data: bytes, rng: Rng) -> bytes:
  start, stop = _block(data, rng)
  return data[:start] + bytes(len(data[start:stop])) + data[stop:]


def _noise(data: bytes, rng: Rng) -> bytes:
  start, stop = _block(data, rng)
  return data[:start] + rng.bytes(len(data[start:stop])) + data[stop:]


def _without(data: bytes, rng: Rng) -> bytes:
  start, stop = _block(data, rng)
  return data[:start] + data[stop:]


def _doubled(data: bytes, rng: Rng) -> bytes:
  start, stop = _block(data, rng)
  return data[:stop] + data[start:stop] + data[stop:]


# Of a whole file; the last four leave nothing of it.
BYTES: dict[str, Callable[[bytes, Rng], bytes]] = {
    "flipped": lambda data, rng: flip(data, rng)[1],
    "truncated": _truncated,
    "zeros in it": _zeros,
    "noise in it": _noise,
    "a piece missing": _without,
    "a piece twice": _doubled,
    "empty": lambda data, rng: b"",
    "all noise": lambda data, rng: rng.bytes(len(data)),
    "all zeros": lambda data, rng: bytes(len(data)),
    "a text": lambda data, rng: b"<html><body>404 Not Found</body></html>\n",
}


def _places(values: Any, path: tuple = ()) -> list[tuple]:
  """Returns the path of every entry in nested dicts and lists."""
  entries = values.items() if isinstance(values, dict) else enumerate(values)
  found = []
  for key, value in entries:
    found.append((*path, key))
    if isinstance(value, (dict, list)):
      found += _places(value, (*path, key))
  return found


def _other_value(value: Any, rng: Rng) -> Any:
  """Returns a value that is not `value`, mostly of its kind."""
  odd: list[Any] = [None, [], {}, "", "x" * 300, -1, 1e308, float("nan"), True, [[[]]]]
  if isinstance(value, bool):
    return not value
  if isinstance(value, (int, float)) and rng.random() < 0.6:
    return [value + 1, value - 1, -value - 1, value * 1000 + 7, 0.5 + value][rng.integers(5)]
  if isinstance(value, str) and value and rng.random() < 0.6:
    place = int(rng.integers(len(value)))
    letter = "abc019_"[rng.integers(7)]
    changed = value[:place] + letter + value[place + 1 :]
    return changed if changed != value else value + "z"
  while True:
    new = odd[rng.integers(len(odd))]
    if new != value or type(new) is not type(value):
      return new


def edit_json(text: str, rng: Rng) -> tuple[str, str]:
  """Changes one thing in a JSON file: a value, a name, an entry too many or too few."""
  values = json.loads(text)
  places = _places(values)
  path = places[rng.integers(len(places))]
  parent = values
  for key in path[:-1]:
    parent = parent[key]
  key = path[-1]
  shown = ".".join(map(str, path))
  kind = rng.integers(6)
  if kind <= 2:
    old, parent[key] = parent[key], _other_value(copy.deepcopy(parent[key]), rng)
    what = f"{shown}: {old!r:.60} became {parent[key]!r:.60}"
  elif kind == 3:
    del parent[key]
    what = f"{shown} removed"
  elif kind == 4 and isinstance(parent, dict):
    parent[f"{key}x"] = parent.pop(key)
    what = f"{shown} renamed"
  elif isinstance(parent, list):
    parent.insert(int(rng.integers(len(parent) + 1)), copy.deepcopy(parent[key]))
    what = f"{shown} twice"
  else:
    parent["extra"] = 1
    what = f"an entry too many beside {shown}"
  return what, json.dumps(values, indent=2)


def edit_table(text: str, rng: Rng) -> tuple[str, str]:
  """Changes one thing in a CSV file: a cell, a row, a column."""
  rows = list(csv.reader(io.StringIO(text)))
  row = int(rng.integers(1, len(rows)))
  column = int(rng.integers(len(rows[0])))
  name = rows[0][column]
  kind = int(rng.integers(9))
  if kind <= 2:
    old = rows[row][column]
    number = old.lstrip("-").isdigit()
    new = [str(int(old) + int(rng.integers(1, 9))) if number else f"{old}x", "", "-7", "abc"]
    rows[row][column] = new[rng.integers(4)] if kind else new[0]
    if rows[row][column] == old:
      rows[row][column] = f"{old}1"
    what = f"row {row}, {name}: {old!r} became {rows[row][column]!r}"
  elif kind == 3:
    del rows[row]
    what = f"row {row} removed"
  elif kind == 4:
    rows.insert(row, list(rows[row]))
    what = f"row {row} twice"
  elif kind == 5:
    other = int(rng.integers(1, len(rows)))
    other = other if other != row else max(1, (row + 1) % len(rows))
    rows[row], rows[other] = rows[other], rows[row]
    what = f"rows {row} and {other} exchanged"
  elif kind == 6:
    rows = [cells[:column] + cells[column + 1 :] for cells in rows]
    what = f"column {name} removed"
  elif kind == 7:
    rows[0][column] = f"{name}x"
    what = f"column {name} renamed"
  else:
    other = int(rng.integers(1, len(rows)))
    rows[row][column], rows[other][column] = rows[other][column], rows[row][column]
    what = f"{name} of rows {row} and {other} exchanged"
  out = io.StringIO()
  csv.writer(out, lineterminator="\r\n" if "\r\n" in text else "\n").writerows(rows)
  return what, out.getvalue()
