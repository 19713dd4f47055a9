"""What programs show in a terminal: the one progress bar, single lines, and tables."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import tqdm

_SECONDS_BETWEEN = {True: 0.3, False: 30.0}
_MOST_COLUMNS = 120
_SHORTEST_CELL = 8
_NUMBER = re.compile(r"[-+]?[\d.,]+( ?(%|px|MB|GB|GiB|ml|mm))?|-|nan")


def bar(iterable: Iterable | None = None, **options: Any) -> tqdm.tqdm:
  """Returns a `tqdm.tqdm` on standard error: alive in a terminal, a line now and then in a log.

  Args:
    iterable: What is gone through; None where `total` is given and `update` is called.
    **options: Those of tqdm.
  """
  settings = {
      "file": sys.stderr,
      "dynamic_ncols": True,
      "mininterval": _SECONDS_BETWEEN[sys.stderr.isatty()],
      **options,
  }
  return tqdm.tqdm(iterable, **settings)


def say(text: str) -> None:
  """Prints a message for people on standard error, on a line of its own beside a live bar."""
  if sys.stderr.isatty():
    tqdm.tqdm.write(text, file=sys.stderr)
  else:
    print(text, file=sys.stderr, flush=True)


def table(rows: Sequence[Sequence[str]], columns: int | None = None) -> str:
  """Returns rows as text in columns that fit the terminal; numbers stand on the right.

  Args:
    rows: Of equal length; the first one is the heading.
    columns: Characters of a line; those of the terminal, or 80 where there is none, by default.
      The longest texts are cut in the middle where a line would be longer.
  """
  columns = columns or min(shutil.get_terminal_size().columns, _MOST_COLUMNS)
  body = [list(row) for row in rows]
  widths = [max(len(row[place]) for row in body) for place in range(len(body[0]))]
  room = columns - 2 * (len(widths) - 1)
  while sum(widths) > room and max(widths) > _SHORTEST_CELL:
    widths[widths.index(max(widths))] -= 1
  right = [
      all(_NUMBER.fullmatch(row[place]) or not row[place] for row in body[1:])
      and any(row[place] for row in body[1:])
      for place in range(len(widths))
  ]
  lines = []
  for row in body:
    cells = [_cut(text, width) for text, width in zip(row, widths, strict=True)]
    aligned = [
        text.rjust(width) if number else text.ljust(width)
        for text, width, number in zip(cells, widths, right, strict=True)
    ]
    lines.append("  ".join(aligned).rstrip())
  return "\n".join(lines)


def _cut(text: str, width: int) -> str:
  if len(text) <= width:
    return text
  head = (width - 1) // 2
  return f"{text[:head]}~{text[len(text) - (width - 1 - head):]}"
