"""What programs show: the one progress bar, messages, and tables that fit the terminal."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

import tqdm

_TERMINAL_SECONDS, _LOG_SECONDS = 0.3, 30.0
_quiet = False
_LINE_UP = "\x1b[A"  # By which tqdm returns from the line of a second bar.
_MOST_COLUMNS = 120
_SHORTEST_CELL = 8
_NUMBER = re.compile(r"[-+]?[\d.,]+(e[-+]\d+)?( ?(%|px|MB|GB|GiB|ml|mm))?|-|nan")


class _LogLines:
  """Writes each state of a bar as a line of its own, since a log file cannot be rewound."""

  def __init__(self, stream: TextIO):
    self._stream = stream

  def write(self, text: str) -> None:
    """Writes what is visible of a text."""
    if visible := text.replace(_LINE_UP, "").strip():
      self._stream.write(f"{visible}\n")

  def flush(self) -> None:
    """Passes everything on."""
    self._stream.flush()


def bar(iterable: Iterable | None = None, **options: Any) -> tqdm.tqdm:
  """Returns a `tqdm.tqdm` on standard error: alive in a terminal, a line now and then in a log.

  Args:
    iterable: What is gone through; None where `total` is given and `update` is called.
    **options: Those of tqdm.
  """
  if _quiet:
    return tqdm.tqdm(iterable, **{**options, "disable": True})
  if sys.stderr.isatty():
    settings = {"file": sys.stderr, "dynamic_ncols": True, "mininterval": _TERMINAL_SECONDS}
  else:
    settings = {"file": _LogLines(sys.stderr), "mininterval": _LOG_SECONDS}
  return tqdm.tqdm(iterable, **{**settings, **options})


def be_quiet() -> None:
  """Leaves messages and bars out from now on, in a process beside which another one speaks."""
  global _quiet
  _quiet = True


def set_log_interval(seconds: float) -> None:
  """Sets how often a bar writes into a log, in a process whose lines another program shows."""
  global _LOG_SECONDS
  _LOG_SECONDS = seconds


def say(text: str) -> None:
  """Shows the user a message on a line of its own, above a bar that is alive."""
  if _quiet:
    return
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


def count(number: int, noun: str) -> str:
  """Returns e.g. "1 slice" or "2 slices"."""
  return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _cut(text: str, width: int) -> str:
  if len(text) <= width:
    return text
  head = (width - 1) // 2
  return f"{text[:head]}~{text[len(text) - (width - 1 - head):]}"
