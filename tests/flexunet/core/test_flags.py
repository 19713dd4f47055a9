"""A program's flags: defined from fields, parsed, explained."""

import dataclasses

import pytest

from flexunet.core import flags
from flexunet.core.config_fields import Checked, knob
from flexunet.core.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Oven(Checked):
  """A config with a field of each kind."""

  degrees: int = knob(None, "How hot.", minimum=20, maximum=300, group="Heat")
  minutes: float = knob(0.5, "How long.", minimum=0.0, group="Heat")
  fan: bool = knob(True, "Moves the air.", group="Heat")
  dish: str = knob("pie", "What is baked.", choices={"pie": "a closed one", "tart": "an open one"})
  spices: tuple[str, ...] = knob(("salt",), "What is added.", choices=("salt", "mint"))
  tray: tuple[int, int] = knob(None, "Rows and columns.", unset="")


def program(**options) -> flags.Program:
  made = flags.Program("Bakes.\n\n  bake --degrees=200\n", **options)
  made.string("name", None, "Whose oven.", required=True)
  return made


def test_the_help_lists_what_is_used_most_then_the_groups_with_defaults(monkeypatch):
  monkeypatch.setenv("COLUMNS", "60")
  made = program(usage="bake [flags]", first=("name", "minutes"))
  made.fields(Oven, group="Dish")
  assert made.help() == """\
Bakes.

  bake --degrees=200

Usage: bake [flags]

Most used:
  --name                  Whose oven. (required)
  --minutes               How long. (default: 0.5)

Heat:
  --degrees               How hot. (default: planned)
  --[no]fan               Moves the air. (default: on)

Dish:
  --dish                  What is baked. (default: pie)
                          - pie: a closed one
                          - tart: an open one
  --spices                What is added. One of: salt, mint.
                          (default: salt)
  --tray                  Rows and columns.

General:
  --verbosity             Log messages of the libraries: -1
                          warnings, 0 infos, 1 all.
  --flagfile=FILE         Reads flags from a file, one per
                          line."""


def test_flags_become_the_config_they_say():
  made = program()
  holders = made.fields(Oven)
  rest = made.parse(["bake", "--name=a", "--degrees=200", "--nofan", "--tray=2", "now"])
  assert rest == ["bake", "now"]
  assert flags.read(Oven, holders) == Oven(degrees=200, fan=False, tray=(2, 2))
  assert made.given("degrees") and not made.given("minutes")


def test_a_second_command_line_of_a_process_begins_with_the_defaults():
  made = program()
  holders = made.fields(Oven)
  made.parse(["bake", "--name=a", "--degrees=200"])
  made.parse(["bake", "--name=a"])
  assert flags.read(Oven, holders).degrees is None and not made.given("degrees")


def test_defaults_may_be_others_than_those_of_the_fields():
  made = program()
  holders = made.fields(Oven, skip=("spices",), defaults={"degrees": 90, "tray": (3, 4)})
  made.parse(["bake", "--name=a"])
  assert flags.read(Oven, holders) == Oven(degrees=90, tray=(3, 4))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--degree=3", "Did you mean: degrees"),
        ("--degrees=hot", "degrees"),
        ("--degrees=900", "upper bound|300"),
        ("--dish=soup", "--dish must be one of pie, tart. Got: 'soup'."),
        ("--dish=tar", "Did you mean 'tart'"),
        ("--name=", "--name must be given: Whose oven."),
        ("--flagfile=none", "none"),
    ],
)
def test_a_wrong_flag_is_bad_input(word, message):
  made = program()
  made.fields(Oven)
  with pytest.raises(InputError, match=message):
    made.parse(["bake", "--name=a", word])


def test_two_programs_of_a_process_do_not_share_flags():
  one, two = program(), program()
  one.parse(["bake", "--name=a"])
  assert two.values["name"].value is None


@pytest.mark.parametrize("word", ["--help", "-h", "--helpfull", "--helpshort"])
def test_every_way_to_ask_for_help_exits_with_0(word, capsys):
  made = program()
  with pytest.raises(SystemExit) as caught:
    made.parse(["bake", word])
  assert caught.value.code == 0 and capsys.readouterr().out == f"{made.help()}\n"


def test_numbers_of_another_kind_are_bad_input():
  assert flags.numbers("window", ["-20", "1.5"], float) == (-20.0, 1.5)
  with pytest.raises(InputError, match="--size must be whole numbers such as .* Got: 1.5"):
    flags.numbers("size", ["1.5"], int)
