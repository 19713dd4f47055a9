"""The one progress bar: alive in a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

_SECONDS_BETWEEN = {True: 0.3, False: 30.0}


def bar(iterable: Iterable | None = None, **options: Any):
  """Returns a `tqdm.tqdm` on standard error; `options` are its own."""
  import tqdm

  settings = {
      "file": sys.stderr,
      "dynamic_ncols": True,
      "mininterval": _SECONDS_BETWEEN[sys.stderr.isatty()],
      **options,
  }
  return tqdm.tqdm(iterable, **settings)


def say(text: str) -> None:
  """Tells the user one line beside the progress bar."""
  print(text, file=sys.stderr, flush=True)
