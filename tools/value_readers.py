"""Readers of single values of a published config: a literal becomes flags, or a sentence.

A reader takes (value, where it stands) and gives {flag: value}, or, where no flag is needed, the
sentence that tells why. A value of another kind is an InputError.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable
from typing import Any

from flexunet.datasets.errors import InputError

Outcome = dict[str, Any] | str
Reader = Callable[[Any, str], Outcome]


def whole(flag: str) -> Reader:
  def read(value: Any, where: str) -> Outcome:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
      raise InputError(f"{where} must be a whole number. Got: {value!r}.")
    return {flag: value}

  return read


def number(flag: str) -> Reader:
  def read(value: Any, where: str) -> Outcome:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
      raise InputError(f"{where} must be a number of at least 0. Got: {value!r}.")
    return {flag: format(value, "g")}

  return read


def edge(flag: str) -> Reader:
  """Published kernels and dilations are pairs of equal numbers."""

  def read(value: Any, where: str) -> Outcome:
    pair = value if isinstance(value, (tuple, list)) else (value,)
    whole_numbers = all(type(number) is int for number in pair)
    if not pair or not whole_numbers or any(number != pair[0] for number in pair):
      raise InputError(
          f"{where} must be a pair of equal whole numbers, e.g. (11,11). Got: {value!r}."
      )
    return {flag: pair[0]}

  return read


def switch(on: Outcome, off: Outcome) -> Reader:
  def read(value: Any, where: str) -> Outcome:
    if not isinstance(value, bool):
      raise InputError(f"{where} must be True or False. Got: {value!r}.")
    return on if value else off

  return read


def choice(flag: str, known: dict[str, str]) -> Reader:
  lowered = {name.lower(): mine for name, mine in known.items()}

  def read(value: Any, where: str) -> Outcome:
    found = lowered.get(value.lower()) if isinstance(value, str) else None
    if found is None:
      near = difflib.get_close_matches(str(value).lower(), lowered, n=1)
      hint = f" The nearest is {near[0]!r}." if near else ""
      raise InputError(f"{where} must be one of {', '.join(known)}. Got: {value!r}.{hint}")
    return {flag: found}

  return read


def noted(sentence: str) -> Reader:
  return lambda value, where: sentence


def held(name: str) -> Reader:
  """Keeps the value under `_name`, for what more than one key decides."""

  def read(value: Any, where: str) -> Outcome:
    return {f"_{name}": (value, where)}

  return read


def literal(text: str, where: str) -> Any:
  try:
    return ast.literal_eval(text.strip())
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    raise InputError(
        f'{where} must be a Python literal such as 0.5, True, "text" or (3,3). Got: {text!r}.'
    ) from None
