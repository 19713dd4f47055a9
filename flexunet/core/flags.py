"""The flags of a program: defined one by one or from a config's fields, parsed by absl, explained.

A program owns its flags, so its help shows these alone, and two programs can be imported into one
process. The fields of a config dataclass are the one source of a flag's name, default, help and
check.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import textwrap
import typing
from collections.abc import Collection, Sequence
from typing import Any

from absl import flags as absl_flags

from flexunet.core import config_fields
from flexunet.core.errors import InputError

_HELP_WORDS = ("--help", "-h", "-help", "--helpshort", "--helpfull")
# Of absl itself; --flagfile is read by absl before any flag is parsed.
_GENERAL = {"verbosity": "Log messages of the libraries: -1 warnings, 0 infos, 1 all."}
_HELP_COLUMNS = 100

FlagHolder = absl_flags.FlagHolder


class Program:
  """What a program is told on its command line, and the help that explains it."""

  def __init__(self, doc: str | None, usage: str = "", first: Collection[str] = ()):
    """Starts with no flags.

    Args:
      doc: Docstring of the program's module; it stands above the flags in the help.
      usage: Words after the program's name, e.g. "DATASET --manual_dir=RAW [flags]".
      first: Flags that the help lists before all groups, as "most used".
    """
    self.doc, self.usage, self._first = doc or "", usage, tuple(first)
    self.values = absl_flags.FlagValues()
    self.values.set_gnu_getopt(True)
    self.groups: dict[str, list[str]] = {}
    self._required: list[str] = []

  def string(self, name: str, default: str | None, help: str, **options: Any) -> FlagHolder:
    """Defines a flag of text; `options` are `group` and `required`."""
    return self._add(absl_flags.DEFINE_string, name, default, help, **options)

  def integer(self, name: str, default: int | None, help: str, **options: Any) -> FlagHolder:
    """Defines a flag of a whole number; `options` also `lower_bound` and `upper_bound`."""
    return self._add(absl_flags.DEFINE_integer, name, default, help, **options)

  def float(self, name: str, default: Any, help: str, **options: Any) -> FlagHolder:
    """Defines a flag of a number; `options` also `lower_bound` and `upper_bound`."""
    return self._add(absl_flags.DEFINE_float, name, default, help, **options)

  def boolean(self, name: str, default: bool | None, help: str, **options: Any) -> FlagHolder:
    """Defines a switch: --name, --noname or --name=true."""
    return self._add(absl_flags.DEFINE_boolean, name, default, help, **options)

  def list(self, name: str, default: Any, help: str, **options: Any) -> FlagHolder:
    """Defines a flag of words separated by commas."""
    return self._add(absl_flags.DEFINE_list, name, default, help, **options)

  def enum(
      self, name: str, default: str | None, choices: Collection[str], help: str, **options: Any
  ) -> FlagHolder:
    """Defines a flag whose value is one of `choices`."""
    return self._add(absl_flags.DEFINE_enum, name, default, list(choices), help, **options)

  def fields(
      self, cls: type, group: str = "", skip: Collection[str] = ()
  ) -> dict[str, FlagHolder]:
    """Defines one flag per field of a config dataclass, except `skip`.

    Returns:
      field name -> holder, for `read`.
    """
    hints = typing.get_type_hints(cls)
    return {
        field.name: self._field(field, hints[field.name], group)
        for field in dataclasses.fields(cls)
        if field.name not in skip
    }

  def parse(self, argv: Sequence[str]) -> list[str]:
    """Parses a command line, `argv[0]` being the program, and returns the words that are no flags.

    Prints the help and exits with 0 where it is asked for.

    Raises:
      InputError: An unknown flag, a wrong value, or a required flag that is missing.
    """
    words = argv[1 : argv.index("--")] if "--" in argv else argv[1:]
    if any(word in _HELP_WORDS for word in words):
      print(self.help())
      sys.exit(0)
    general = {name: absl_flags.FLAGS[name] for name in _GENERAL if name in absl_flags.FLAGS}
    for name, flag in general.items():
      if name not in self.values:
        self.values[name] = flag
    try:
      rest = self.values(list(argv))
    except absl_flags.Error as error:
      raise InputError(f"{error}. --help shows all flags.".replace("..", ".")) from error
    absl_flags.FLAGS.mark_as_parsed()
    missing = [name for name in self._required if self.values[name].value is None]
    if missing:
      named = ", ".join(f"--{name}" for name in missing)
      raise InputError(f"{named} must be given. {self.values[missing[0]].help} See --help.")
    return rest

  def given(self, name: str) -> bool:
    """Returns whether the flag stood on the command line."""
    return bool(self.values[name].present)

  def help(self) -> str:
    """Returns what --help prints: what the program does, then its flags in groups."""
    columns = min(_HELP_COLUMNS, shutil.get_terminal_size().columns)
    parts = [self.doc.strip()]
    if self.usage:
      parts.append(f"Usage: {self.usage}")
    groups = {"Most used": list(self._first)} if self._first else {}
    for group, names in self.groups.items():
      groups[group or "Flags"] = [name for name in names if name not in self._first]
    for group, names in groups.items():
      if names:
        lines = [self._explained(name, columns) for name in names]
        parts.append("\n".join([f"{group}:", *lines]))
    parts.append(
        "General:\n"
        + "\n".join(_entry(f"--{name}", text, columns) for name, text in _GENERAL.items())
        + "\n"
        + _entry("--flagfile=FILE", "Reads further flags from a file, one a line.", columns)
    )
    return "\n\n".join(parts)

  def _add(self, define, name: str, *arguments: Any, **options: Any) -> FlagHolder:
    group, required = options.pop("group", ""), options.pop("required", False)
    self.groups.setdefault(group, []).append(name)
    if required:
      self._required.append(name)
    return define(name, *arguments, flag_values=self.values, **options)

  def _field(self, field: dataclasses.Field, hint: Any, group: str) -> FlagHolder:
    base, _ = config_fields.optional_base(hint)
    default: Any = field.default
    text = field.metadata.get("help", "")
    options: dict[str, Any] = {"group": field.metadata.get("group") or group}
    if default is None and (unset := field.metadata.get("unset")):
      text += f" Default: {unset}."
    if typing.get_origin(base) is tuple:
      return self.list(field.name, None if default is None else list(default), text, **options)
    if base is bool:
      return self.boolean(field.name, default, text, **options)
    if choices := field.metadata.get("choices"):
      return self.enum(field.name, default, choices, text, **options)
    if base not in (int, float):
      return self.string(field.name, default, text, **options)
    options |= {
        "lower_bound": field.metadata.get("minimum"),
        "upper_bound": field.metadata.get("maximum"),
    }
    return (self.integer if base is int else self.float)(field.name, default, text, **options)

  def _explained(self, name: str, columns: int) -> str:
    flag = self.values[name]
    head = f"--[no]{name}" if flag.boolean else f"--{name}"
    text = flag.help
    if choices := getattr(flag.parser, "enum_values", None):
      text += f" One of: {', '.join(choices)}."
    if flag.default not in (None, "", []) and "Default:" not in text:
      shown = flag.serializer.serialize(flag.default) if flag.serializer else flag.default
      text += f" Default: {str(shown).lower() if flag.boolean else shown}."
    if name in self._required:
      text += " Required."
    return _entry(head, text, columns)


def read(cls: type, holders: dict[str, FlagHolder], **extra: Any) -> Any:
  """Builds a config dataclass from the values of its flags and `extra`."""
  values = {name: holder.value for name, holder in holders.items()}
  hints = typing.get_type_hints(cls)
  for name, value in values.items():
    base, _ = config_fields.optional_base(hints[name])
    inner = typing.get_args(base)
    if value is not None and typing.get_origin(base) is tuple and inner[0] in (int, float):
      values[name] = _numbers(name, value, inner[0])
  return config_fields.from_mapping(cls, {**values, **extra})


def _numbers(name: str, words: Sequence[str], kind: type) -> tuple:
  try:
    return tuple(kind(word) for word in words)
  except ValueError:
    wanted = "whole numbers such as 256 or 512,512" if kind is int else "numbers such as -20,100"
    raise InputError(f"--{name} must be {wanted}. Got: {','.join(words)}.") from None


def _entry(head: str, text: str, columns: int) -> str:
  body = textwrap.fill(
      " ".join(text.split()), columns, initial_indent=" " * 6, subsequent_indent=" " * 6
  )
  return f"  {head}\n{body}"
