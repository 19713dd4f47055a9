"""absl flags made from the knobs of a config dataclass: one source for name, default and help."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Collection
from typing import Any

from absl import flags

from flexunet.datasets import checked
from flexunet.datasets.errors import InputError


def define(
    cls: type, *, skip: Collection[str] = (), flag_values: flags.FlagValues = flags.FLAGS
) -> dict[str, flags.FlagHolder]:
  """Defines one flag per field of `cls`, except `skip`; to be called by files one runs.

  Returns:
    field name -> holder, for `read`.
  """
  hints = typing.get_type_hints(cls)
  return {
      field.name: _define_one(field, hints[field.name], flag_values)
      for field in dataclasses.fields(cls)
      if field.name not in skip
  }


def read(cls: type, holders: dict[str, flags.FlagHolder], **extra: Any) -> Any:
  """Builds `cls` from the flags' values and `extra`."""
  values = {name: holder.value for name, holder in holders.items()}
  if "image_size" in values and values["image_size"] is not None:
    values["image_size"] = _sizes(values["image_size"])
  return checked.from_mapping(cls, {**values, **extra})


def _define_one(
    field: dataclasses.Field, hint: Any, flag_values: flags.FlagValues
) -> flags.FlagHolder:
  base, _ = checked.optional_base(hint)
  default: Any = field.default
  text = field.metadata.get("help", "")
  if default is None and (unset := field.metadata.get("unset")):
    text += f" Default: {unset}."
  if typing.get_origin(base) is tuple:
    words = None if default is None else list(default)
    return flags.DEFINE_list(field.name, words, text, flag_values=flag_values)
  if base is bool:
    return flags.DEFINE_boolean(field.name, default, text, flag_values=flag_values)
  if choices := field.metadata.get("choices"):
    return flags.DEFINE_enum(field.name, default, choices, text, flag_values=flag_values)
  limits: dict[str, Any] = {
      "flag_values": flag_values,
      "lower_bound": field.metadata.get("minimum"),
      "upper_bound": field.metadata.get("maximum"),
  }
  if base is int:
    return flags.DEFINE_integer(field.name, default, text, **limits)
  if base is float:
    return flags.DEFINE_float(field.name, default, text, **limits)
  return flags.DEFINE_string(field.name, default, text, flag_values=flag_values)


def _sizes(parts: list[str]) -> tuple[int, ...]:
  try:
    return tuple(int(part) for part in parts)
  except ValueError:
    raise InputError(
        f"--image_size must be one or two whole numbers such as 256 or 512,512. Got: {parts}."
    ) from None
