"""The flags of a program: defined one by one or from a config's fields, parsed by absl, explained.

A program owns its flags, so its help shows these alone, and two programs can be imported into one
process. The fields of a config dataclass are the one source of a flag's name, default, help and
check.
"""

from __future__ import annotations

import builtins
import dataclasses
import shutil
import sys
import textwrap
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from absl import flags as absl_flags

from flexunet.core import config_fields
from flexunet.core.errors import InputError

_HELP_WORDS = ("--help", "-h", "-help", "--helpshort", "--helpfull")
# Of absl itself; --flagfile is read by absl before any flag is parsed.
_GENERAL = {"verbosity": "Log messages of the libraries: -1 warnings, 0 infos, 1 all."}
_HELP_COLUMNS = 96
_TEXT_COLUMN = 26  # Where the explanation of a flag begins.

FlagHolder = absl_flags.FlagHolder


class Program:
  """What a program is given on its command line, and the help that explains it.

  Attributes:
    usage: How it is called, in one line; "" where the docstring says it.
    values: Its flags as absl keeps them.
    groups: Heading -> names of the flags under it.
  """

  def __init__(self, doc: str | None, usage: str = "", first: Collection[str] = ()):
    """Starts with no flags.

    Args:
      doc: Docstring of the program's module; it stands above the flags in the help.
      usage: How a program that takes words is called, e.g. "flexunet build DATASET [flags]".
      first: Flags that the help lists before all groups, as "Most used".
    """
    self.doc, self.usage, self._first = doc or "", usage, tuple(first)
    self.values = absl_flags.FlagValues()
    self.values.set_gnu_getopt(True)
    self.groups: dict[str, list[str]] = {}
    self._helps: dict[str, str] = {}
    self._choices: dict[str, Collection[str]] = {}
    self._unset: dict[str, str] = {}  # What the default of None means.
    self._required: list[str] = []
    self._one_of: list[str] = []
    self._bare: list[str] = []

  def string(self, name: str, default: str | None, help: str, **options: Any) -> FlagHolder:
    """Defines a flag of text; `options` are `group` and `required`."""
    return self._add(absl_flags.DEFINE_string, name, default, help=help, **options)

  def word(self, name: str, bare: str, help: str, **options: Any) -> FlagHolder:
    """Defines a flag of text that may stand alone: --name is --name=bare, its absence ""."""
    self._bare.append(name)

    def define(name: str, default: str, help: str, flag_values: absl_flags.FlagValues) -> Any:
      holder = absl_flags.DEFINE(_BareParser(bare), name, default, help, flag_values)
      flag_values[name].boolean = True  # So that absl does not take the next word for its value.
      return holder

    return self._add(define, name, "", help=help, **options)

  def integer(self, name: str, default: int | None, help: str, **options: Any) -> FlagHolder:
    """Defines a flag of a whole number; `options` also `lower_bound` and `upper_bound`."""
    return self._add(absl_flags.DEFINE_integer, name, default, help=help, **options)

  def float(self, name: str, default: Any, help: str, **options: Any) -> FlagHolder:
    """Defines a flag of a number; `options` also `lower_bound` and `upper_bound`."""
    return self._add(absl_flags.DEFINE_float, name, default, help=help, **options)

  def boolean(self, name: str, default: bool | None, help: str, **options: Any) -> FlagHolder:
    """Defines a switch: --name, --noname or --name=true."""
    return self._add(absl_flags.DEFINE_boolean, name, default, help=help, **options)

  def list(
      self, name: str, default: Any, help: str, choices: Collection[str] = (), **options: Any
  ) -> FlagHolder:
    """Defines a flag of words separated by commas; `choices` are shown, and checked elsewhere."""
    self._choices[name] = choices
    return self._add(absl_flags.DEFINE_list, name, default, help=help, **options)

  def enum(
      self, name: str, default: str | None, choices: Collection[str], help: str, **options: Any
  ) -> FlagHolder:
    """Defines a flag whose value is one of `choices`; a mapping also says what each means."""
    self._choices[name] = choices
    self._one_of.append(name)
    return self._add(absl_flags.DEFINE_string, name, default, help=help, **options)

  def fields(
      self,
      cls: type,
      group: str = "",
      skip: Collection[str] = (),
      defaults: Mapping[str, Any] | None = None,
  ) -> dict[str, FlagHolder]:
    """Defines one flag per field of a config dataclass.

    Args:
      cls: Its fields are made by `config_fields.knob`.
      group: Heading of the flags whose field names none.
      skip: Fields that get no flag.
      defaults: Name -> default, instead of those of the fields.

    Returns:
      field name -> holder, for `read`.
    """
    hints = typing.get_type_hints(cls)
    return {
        field.name: self._field(
            field, hints[field.name], group, (defaults or {}).get(field.name, field.default)
        )
        for field in dataclasses.fields(cls)
        if field.name not in skip
    }

  def parse(self, argv: Sequence[str]) -> builtins.list[str]:
    """Parses a command line, `argv[0]` being the program, and returns the words that are no flags.

    Prints the help and exits with 0 where it is asked for.

    Raises:
      InputError: An unknown flag, a wrong value, or a required flag that is missing.
    """
    words = argv[1 : argv.index("--")] if "--" in argv else argv[1:]
    if any(word in _HELP_WORDS for word in words):
      print(self.help())
      sys.exit(0)
    for name in self._helps:
      self.values[name].unparse()  # What an earlier command line of this process said is over.
    for name in _GENERAL:
      if name in absl_flags.FLAGS and name not in self.values:
        self.values[name] = absl_flags.FLAGS[name]
    try:
      rest = self.values(list(argv))
    except absl_flags.Error as error:
      raise InputError(f"{str(error).rstrip(' .')}. --help shows all flags.") from error
    absl_flags.FLAGS.mark_as_parsed()
    for name in self._one_of:
      if (value := self.values[name].value) is not None:
        config_fields.check_choice(f"--{name}", value, self._choices[name])
    missing = [name for name in self._required if self.values[name].value in (None, "")]
    if missing:
      named = " and ".join(f"--{name}" for name in missing)
      raise InputError(f"{named} must be given: {self._helps[missing[0]]} --help shows all flags.")
    return rest

  def given(self, name: str) -> bool:
    """Returns whether the flag stood on the command line."""
    return bool(self.values[name].present)

  def help(self) -> str:
    """Returns what --help prints: what the program does, then its flags in groups."""
    columns = min(_HELP_COLUMNS, shutil.get_terminal_size().columns)
    parts = [_reflowed(self.doc, columns)] if self.doc else []
    if self.usage:
      parts.append(f"Usage: {self.usage}")
    groups = {"Most used": list(self._first)} if self._first else {}
    for group, names in self.groups.items():
      groups[group or "Flags"] = [name for name in names if name not in self._first]
    for group, names in groups.items():
      if names:
        parts.append("\n".join([f"{group}:", *(self._explained(n, columns) for n in names)]))
    general = [_entry(f"--{name}", text, columns) for name, text in _GENERAL.items()]
    general.append(_entry("--flagfile=FILE", "Reads flags from a file, one per line.", columns))
    parts.append("\n".join(["General:", *general]))
    return "\n\n".join(parts)

  def _add(self, define: Any, name: str, *arguments: Any, help: str, **options: Any) -> FlagHolder:
    group, required = options.pop("group", ""), options.pop("required", False)
    self.groups.setdefault(group, []).append(name)
    self._helps[name] = help
    if required:
      self._required.append(name)
    return define(name, *arguments, help, flag_values=self.values, **options)

  def _field(self, field: dataclasses.Field, hint: Any, group: str, default: Any) -> FlagHolder:
    base, _ = config_fields.optional_base(hint)
    text = field.metadata.get("help", "")
    options: dict[str, Any] = {"group": field.metadata.get("group") or group}
    choices = field.metadata.get("choices") or ()
    if default is None:
      self._unset[field.name] = field.metadata.get("unset") or ""
    if typing.get_origin(base) is tuple:
      default = None if default is None else [str(part) for part in default]
      return self.list(field.name, default, text, choices, **options)
    if base is bool:
      return self.boolean(field.name, default, text, **options)
    if choices:
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
    if name in self._bare:
      head = f"--{name}[=...]"
    choices = self._choices.get(name, ())
    lines: list[str] = []
    if isinstance(choices, Mapping):
      lines = [f"{each}: {meaning}" for each, meaning in choices.items()]
    parts = [self._helps[name]]
    if choices and not lines:
      parts.append(f"One of: {', '.join(choices)}.")
    if name in self._required:
      parts.append("(required)")
    elif default := self._default(name):
      parts.append(f"(default: {default})")
    entry = _entry(head, " ".join(parts), columns)
    return "\n".join([entry, *(_choice(line, columns) for line in lines)])

  def _default(self, name: str) -> str:
    """Returns the default of a flag as the help shows it; "" where it need not be said."""
    flag = self.values[name]
    if flag.default is None:
      return self._unset.get(name, "")
    if flag.boolean:
      return "on" if flag.default else ""
    if isinstance(flag.default, (list, tuple)):
      return ",".join(flag.default)
    return f"{flag.default:g}" if isinstance(flag.default, float) else str(flag.default)


class _BareParser(absl_flags.ArgumentParser):
  """Reads a text; what absl makes of a flag without one becomes `bare`, of --noname ""."""

  def __init__(self, bare: str):
    super().__init__()
    self._bare = bare

  def parse(self, argument: str) -> str:
    """Returns the value of a word of the command line."""
    return {"true": self._bare, "false": ""}.get(argument, argument)


def read(cls: type, holders: dict[str, FlagHolder], **extra: Any) -> Any:
  """Builds a config dataclass from the values of its flags and `extra`."""
  values = {name: holder.value for name, holder in holders.items()}
  hints = typing.get_type_hints(cls)
  for name, value in values.items():
    base, _ = config_fields.optional_base(hints[name])
    inner = typing.get_args(base)
    if value is not None and typing.get_origin(base) is tuple and inner[0] in (int, float):
      values[name] = numbers(name, value, inner[0])
  return config_fields.from_mapping(cls, {**values, **extra})


def numbers(name: str, words: Sequence[str], kind: type) -> tuple:
  """Returns the numbers of a flag of the form 1,2,3.

  Args:
    name: The flag, for the error.
    words: Its value.
    kind: int or float.

  Raises:
    InputError: A word is no number of that kind.
  """
  try:
    return tuple(kind(word) for word in words)
  except ValueError:
    wanted = "whole numbers such as 256 or 512,512" if kind is int else "numbers such as -20,100"
    raise InputError(f"--{name} must be {wanted}. Got: {','.join(words)}.") from None


def _entry(head: str, text: str, columns: int) -> str:
  """Returns the name of a flag with its explanation in a column beside it."""
  head = f"  {head}  "
  alone = len(head) > _TEXT_COLUMN
  body = textwrap.fill(
      " ".join(text.split()),
      columns,
      initial_indent=" " * _TEXT_COLUMN if alone else head.ljust(_TEXT_COLUMN),
      subsequent_indent=" " * _TEXT_COLUMN,
      break_long_words=False,
      break_on_hyphens=False,
  )
  return f"{head.rstrip()}\n{body}" if alone else body


def _choice(text: str, columns: int) -> str:
  indent = " " * _TEXT_COLUMN
  return textwrap.fill(
      text, columns, initial_indent=f"{indent}- ", subsequent_indent=f"{indent}  "
  )


def _reflowed(doc: str, columns: int) -> str:
  """Returns a docstring with its paragraphs wrapped; indented lines stay as they are."""
  paragraphs = []
  for paragraph in textwrap.dedent(doc).strip().split("\n\n"):
    plain = not any(line.startswith((" ", "- ")) for line in paragraph.splitlines())
    paragraphs.append(textwrap.fill(paragraph, columns) if plain else paragraph)
  return "\n\n".join(paragraphs)
