"""The one exception for bad input: a file, a folder or a flag value that cannot be used."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence

_SHOWN_IN_FULL = 10


class InputError(ValueError):
  """Bad input; its message says what must hold, what came, where, and what to do.

  `flexunet.command_line.run` prints it as `error: ...` without a trace and exits 1.
  """


class UnfinishedError(InputError):
  """Work that ended early through no fault of its input; what is done is kept."""


def from_problems(problems: Sequence[str], advice: str) -> InputError:
  """Returns one error for all problems of a folder, the first ten in full.

  Args:
    problems: One line each, naming the file; at least one.
    advice: What to do about them.
  """
  if len(problems) == 1:
    return InputError(f"{problems[0]} {advice}".strip())
  shown = "".join(f"\n  - {problem}" for problem in problems[:_SHOWN_IN_FULL])
  hidden = len(problems) - _SHOWN_IN_FULL
  more = f"\n  - and {hidden} more" if hidden > 0 else ""
  return InputError(f"{len(problems)} problems were found. {advice}{shown}{more}")


def missing_file(path: str | os.PathLike) -> InputError:
  """Returns the error for a file that is not there, or a link to one."""
  if os.path.islink(path):
    return InputError(f"{path}: the link leads to no file. Put the file itself there.")
  return InputError(f"{path}: there is no such file.")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
  """Returns the error for a name that is not among `known`, with its nearest spellings."""
  known = sorted(known)
  near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
  hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
  return InputError(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(known)}.")
