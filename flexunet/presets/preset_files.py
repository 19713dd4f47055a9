"""Recipes by name: `--preset=published/hippocampus_t1w` is the flagfile of that name in presets/.

It works from a wheel too, and what stands on the command line wins wherever it stands.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from flexunet.core.errors import InputError, unknown_name

_FOLDER = pathlib.Path(__file__).resolve().parent
_SUFFIX = ".flags"


def names() -> list[str]:
  """Returns the known presets, e.g. "published/hippocampus_t1w"."""
  files = _FOLDER.rglob(f"*{_SUFFIX}")
  return sorted(file.relative_to(_FOLDER).with_suffix("").as_posix() for file in files)


def path_of(name: str) -> pathlib.Path:
  """Returns the flagfile of a preset; InputError for an unknown one."""
  known = names()
  if name not in known:
    raise unknown_name("--preset", name, known)
  return _FOLDER / f"{name}{_SUFFIX}"


def expand(argv: Sequence[str]) -> list[str]:
  """Returns the command line with the flags of its `--preset` put before all others.

  absl lets the last value win, so flags given beside the preset change it.
  """
  found = _value_of(argv)
  if not found:
    return list(argv)
  return [argv[0], f"--flagfile={path_of(found)}", *argv[1:]]


def _value_of(argv: Sequence[str]) -> str | None:
  value = None
  for place, word in enumerate(argv[1:], start=1):
    if word == "--":
      break
    name, equals, after = word.partition("=")
    if name not in ("--preset", "-preset"):
      continue
    if not equals and place + 1 == len(argv):
      raise InputError(f"--preset must be one of {', '.join(names())}. Got nothing.")
    value = after if equals else argv[place + 1]
  return value
