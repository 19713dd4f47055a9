"""How every program of the package starts and how it ends on bad input."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from absl import app, logging

from flexunet.datasets.errors import InputError


def run(main: Callable[[Sequence[str]], None]) -> None:
  """Runs `main` under absl; bad input ends in one `error: ...` line and exit code 1.

  Only `InputError` is caught. Anything else is a fault of the program and keeps its trace.
  """
  # Progress of the libraries is noise beside our own; absl would print each info line.
  logging.set_verbosity(logging.WARNING)
  logging.set_stderrthreshold("warning")
  app.run(lambda argv: _report_bad_input(main, argv))


def _report_bad_input(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> None:
  try:
    main(argv)
  except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)
