"""Checked configuration: frozen dataclasses whose fields state their limits.

A field made by `knob` carries help, choices and bounds: the check of a value and the flag that sets
it come from one place. Unknown names fail with the nearest spelling, and nothing is evaluated.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any

from flexunet.core.errors import InputError, unknown_name

_LARGEST = 2**63 - 1  # NumPy and TensorFlow hold no larger whole numbers.


def knob(
    default: Any,
    help: str,
    *,
    choices: Collection[str] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    unset: str = "planned",
    group: str = "",
) -> Any:
  """Returns a dataclass field that also carries what a flag needs to be made from it.

  Args:
    default: Its value when nothing is given.
    help: One or two sentences for the user.
    choices: The allowed values, of each entry where the field is a list of names; a mapping
      also says what each means.
    minimum, maximum: The allowed range.
    unset: What a default of None means, for the help text; empty where it means nothing.
    group: Heading under which the help lists its flag; by default that of its dataclass.
  """
  metadata = {
      "help": help, "choices": choices, "minimum": minimum, "maximum": maximum, "unset": unset,
      "group": group,
  }  # fmt: skip
  return dataclasses.field(default=default, metadata=metadata)


class Checked:
  """Checks each field against its knob, so that a flag, a file and a caller get the same error."""

  def __post_init__(self):
    hints = typing.get_type_hints(type(self))
    for field in dataclasses.fields(self):
      object.__setattr__(
          self, field.name, _checked_value(field, hints[field.name], getattr(self, field.name))
      )


T = typing.TypeVar("T")


def from_mapping(cls: type[T], values: Mapping[str, Any]) -> T:
  """Builds a dataclass from names and values, each of the type of its field.

  Raises:
    InputError: An unknown name, with the nearest one, a missing name or a wrong value.
  """
  if not isinstance(values, Mapping):
    raise InputError(f"{cls.__name__} must be names with their values. Got: {values!r:.99}.")
  fields = dataclasses.fields(cls)  # type: ignore[arg-type]
  refuse_unknown(values, [field.name for field in fields], cls.__name__)
  needed = [field.name for field in fields if field.default is dataclasses.MISSING]
  if missing := [name for name in needed if name not in values]:
    raise InputError(f"{cls.__name__} must hold {', '.join(needed)}. Missing: {missing}.")
  if issubclass(cls, Checked):  # It checks itself.
    return cls(**values)
  hints = typing.get_type_hints(cls)
  return cls(**{
      field.name: _checked_value(field, hints[field.name], values[field.name])
      for field in fields
      if field.name in values
  })


def refuse_unknown(values: Mapping[str, Any], known: list[str], where: str) -> None:
  """Raises InputError for the first of `values` that is not `known`, with its nearest spelling."""
  for name in values:
    if name not in known:
      raise unknown_name(f"entry of {where}", name, known)


def optional_base(hint: Any) -> tuple[Any, bool]:
  """Returns (type without None, whether None was allowed)."""
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    inner = [part for part in typing.get_args(hint) if part is not type(None)]
    return inner[0], True
  return hint, False


def _checked_value(field: dataclasses.Field, hint: Any, value: Any) -> Any:
  base, optional = optional_base(hint)
  if value is None:
    # A default of None is a value that is planned later; then it has the type it is annotated with.
    if optional or field.default is None:
      return None
    raise InputError(f"{field.name} must be given.")
  if typing.get_origin(base) is tuple:
    if typing.get_args(base)[-1] is Ellipsis:
      return _checked_names(field, value)
    if typing.get_args(base)[0] is float:
      return _checked_pair(field.name, value)
    return _checked_size(field.name, value)
  if base is int and not isinstance(value, bool) and hasattr(value, "__index__"):
    value = int(value)  # NumPy's integers are none of Python's.
  wanted = (int, float) if base is float else base
  if not isinstance(value, wanted) or (isinstance(value, bool) and base is not bool):
    raise InputError(f"{field.name} must be of type {base.__name__}. Got: {value!r:.99}.")
  if base is float:
    value = _finite(field.name, value)
  if base is int and abs(value) > _LARGEST:
    raise InputError(f"{field.name} must be a number of at most 63 bits. Got: {value!r:.99}.")
  limits = field.metadata
  if choices := limits.get("choices"):
    check_choice(field.name, value, choices)
  low, high = limits.get("minimum"), limits.get("maximum")
  if (low is not None and value < low) or (high is not None and value > high):
    bounds = f">= {low}" if high is None else f"from {low} to {high}"
    raise InputError(f"{field.name} must be {bounds}. Got: {value!r}.")
  return value


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
  """Raises InputError unless `value` is among `choices`, with its nearest spelling."""
  if value not in choices:
    near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
    nearest = f" Did you mean {near[0]!r}?" if near else ""
    raise InputError(f"{name} must be one of {', '.join(choices)}. Got: {value!r}.{nearest}")


def _checked_names(field: dataclasses.Field, value: Any) -> tuple[str, ...]:
  names = (value,) if isinstance(value, str) else value
  if not isinstance(names, (tuple, list)):
    raise InputError(f"{field.name} must be a list of names. Got: {value!r:.99}.")
  for name in names:
    if not isinstance(name, str):
      raise InputError(f"{field.name} must be a list of names. Got: {value!r:.99}.")
    if choices := field.metadata.get("choices"):
      check_choice(field.name, name, choices)
  return tuple(names)


def _checked_size(name: str, value: Any) -> tuple[int, int]:
  edges = (value,) if hasattr(value, "__index__") or not hasattr(value, "__iter__") else value
  size = tuple(edges)
  size = size * 2 if len(size) == 1 else size
  whole = all(hasattr(edge, "__index__") and not isinstance(edge, bool) for edge in size)
  if len(size) != 2 or not whole or min(size) < 1 or max(size) > _LARGEST:
    raise InputError(f"{name} must be one or two positive whole numbers. Got: {value!r:.99}.")
  return int(size[0]), int(size[1])


def _checked_pair(name: str, value: Any) -> tuple[float, float]:
  pair = tuple(value) if isinstance(value, (tuple, list)) else ()
  if len(pair) != 2 or not all(isinstance(number, (int, float)) for number in pair):
    raise InputError(f"{name} must be two numbers. Got: {value!r:.99}.")
  return _finite(name, pair[0]), _finite(name, pair[1])


def _finite(name: str, value: Any) -> float:
  """Returns a number as a float; JSON has neither NaN nor infinity, nor what overflows."""
  number = float(value) if abs(value) <= sys.float_info.max else math.inf
  if not math.isfinite(number):
    raise InputError(f"{name} must be a finite number. Got: {value!r:.99}.")
  return number
