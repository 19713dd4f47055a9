"""Readers of single values of a published config: from its text to flags, or to a sentence.

The values are Python literals; they are parsed as literals, never evaluated.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any

from flexunet.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What becomes of a key.

  Attributes:
    flags: Flag -> value.
    note: Why it needs no flag, or what is done otherwise.
    held: Name -> value, for what more than one key decides.
  """

  flags: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  note: str = ""
  held: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# Takes (text of the value, where it stands); a value of another kind is an InputError.
Reader = Callable[[str, str], Outcome]
# Takes (value, where it stands) and returns the value, checked.
Check = Callable[[Any, str], Any]


def literal(text: str, where: str) -> Any:
  """Returns the Python literal that `text` is; InputError where it is none."""
  try:
    return ast.literal_eval(text.strip())
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    raise InputError(
        f'{where} must be a Python literal such as 0.5, True, "text" or (3,3). Got: {text!r}.'
    ) from None


def checked_whole(value: Any, where: str) -> int:
  """Returns a whole number of at least 0."""
  if isinstance(value, bool) or not isinstance(value, int) or value < 0:
    raise InputError(f"{where} must be a whole number. Got: {value!r}.")
  return value


def checked_number(value: Any, where: str) -> float:
  """Returns a number of at least 0."""
  if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
    raise InputError(f"{where} must be a number of at least 0. Got: {value!r}.")
  return value


def checked_signed(value: Any, where: str) -> float:
  """Returns a number of either sign."""
  return -checked_number(-value, where) if _is_negative(value) else checked_number(value, where)


def _is_negative(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool) and value < 0


def checked_switch(value: Any, where: str) -> bool:
  """Returns True or False."""
  if not isinstance(value, bool):
    raise InputError(f"{where} must be True or False. Got: {value!r}.")
  return value


def list_of(check: Check) -> Check:
  """Returns the check of a list each of whose entries `check` accepts."""

  def checked(value: Any, where: str) -> list:
    if not isinstance(value, (list, tuple)):
      raise InputError(f"{where} must be a list. Got: {value!r}.")
    return [check(entry, where) for entry in value]

  return checked


def checked_center(value: Any, where: str) -> tuple[float, float]:
  """Returns (x, y) as shares 0..1 of width and height."""
  pair = value if isinstance(value, (tuple, list)) and len(value) == 2 else ()
  if not pair or not all(0 <= checked_number(share, where) <= 1 for share in pair):
    raise InputError(f"{where} must hold pairs of shares such as (0.5, 0.5). Got: {value!r}.")
  return pair[0], pair[1]


def whole(flag: str) -> Reader:
  """Returns the reader of a whole number of at least 0 that becomes `flag`."""
  return lambda text, where: Outcome({flag: checked_whole(literal(text, where), where)})


def number(flag: str) -> Reader:
  """Returns the reader of a number of at least 0 that becomes `flag`."""

  def read(text: str, where: str) -> Outcome:
    return Outcome({flag: format(checked_number(literal(text, where), where), "g")})

  return read


def edge(flag: str) -> Reader:
  """Returns the reader of a pair of equal numbers, as published kernels and dilations are."""

  def read(text: str, where: str) -> Outcome:
    value = literal(text, where)
    pair = value if isinstance(value, (tuple, list)) else (value,)
    whole_numbers = all(type(number) is int for number in pair)
    if not pair or not whole_numbers or any(number != pair[0] for number in pair):
      raise InputError(
          f"{where} must be a pair of equal whole numbers, e.g. (11,11). Got: {value!r}."
      )
    return Outcome({flag: pair[0]})

  return read


def switch(on: Outcome, off: Outcome) -> Reader:
  """Returns the reader of True or False, which become `on` or `off`."""
  return lambda text, where: on if checked_switch(literal(text, where), where) else off


def choice(flag: str, known: Mapping[str, str]) -> Reader:
  """Returns the reader of a name among `known`, published -> ours, that becomes `flag`."""
  lowered = {name.lower(): mine for name, mine in known.items()}

  def read(text: str, where: str) -> Outcome:
    value = literal(text, where)
    found = lowered.get(value.lower()) if isinstance(value, str) else None
    if found is None:
      near = difflib.get_close_matches(str(value).lower(), lowered, n=1)
      hint = f" The nearest is {near[0]!r}." if near else ""
      raise InputError(f"{where} must be one of {', '.join(known)}. Got: {value!r}.{hint}")
    return Outcome({flag: found})

  return read


def noted(sentence: str) -> Reader:
  """Returns the reader of a value that needs no flag; `{value}` in the sentence is its text.

  The value may be no literal, such as cv2.ROTATE_90_CLOCKWISE: nothing depends on it.
  """

  def read(text: str, where: str) -> Outcome:
    del where
    return Outcome(note=sentence.replace("{value}", " ".join(text.split()).strip("\"'")))

  return read


def held(name: str, check: Check | None = None) -> Reader:
  """Returns the reader that keeps (value, where) under a name, for `conversion` to decide."""

  def read(text: str, where: str) -> Outcome:
    value = literal(text, where)
    return Outcome(held={name: (check(value, where) if check else value, where)})

  return read
