"""The one progress bar, alive in a terminal, a line now and then in a log file; and messages."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO

import tqdm

_TERMINAL_SECONDS, _LOG_SECONDS = 0.3, 30.0
_LINE_UP = "\x1b[A"  # By which tqdm returns from the line of a second bar.


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
  """Returns a `tqdm.tqdm` on standard error; `options` are its own."""
  if sys.stderr.isatty():
    settings = {"file": sys.stderr, "dynamic_ncols": True, "mininterval": _TERMINAL_SECONDS}
  else:
    settings = {"file": _LogLines(sys.stderr), "mininterval": _LOG_SECONDS}
  return tqdm.tqdm(iterable, **{**settings, **options})


def say(text: str) -> None:
  """Shows the user a message on a line of its own, above a bar that is alive."""
  if sys.stderr.isatty():
    tqdm.tqdm.write(text, file=sys.stderr)
  else:
    print(text, file=sys.stderr, flush=True)
