"""What became of damaged input, counted by category, and the table of it.

caught     one line of error, or a line that the user gets, names the file
harmless   the result is the same: what changed is not read
unchecked  another result without a word, by changed bytes of a format that has no checksum
silent     another result without a word
traceback  anything else, a hang included

The last two must be 0.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import signal
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flexunet.core.errors import InputError

CAUGHT, HARMLESS, UNCHECKED = "caught", "harmless", "unchecked"
SILENT, TRACEBACK = "silent", "traceback"
VERDICTS = (CAUGHT, HARMLESS, UNCHECKED, SILENT, TRACEBACK)
SEED = int(os.environ.get("FLEXUNET_FUZZ_SEED", "0"))
FULL = os.environ.get("FLEXUNET_FUZZ_SCALE", "short") == "full"
# What a short run tries of the full number.
_SHORT_SHARE = 0.25
_SECONDS = 60
_SHOWN = 12


def trials(full: int) -> int:
  """Returns how many damaged inputs to try: `full`, or a quarter in a short run."""
  return full if FULL else max(10, round(full * _SHORT_SHARE))


def generator(category: str) -> np.random.Generator:
  """Returns the random numbers of a category, equal for equal seeds."""
  return np.random.default_rng([SEED, zlib.crc32(category.encode())])


@dataclasses.dataclass(frozen=True)
class Seen:
  """What a reader made of damaged input.

  Attributes:
    result: Compared with that of the whole input.
    said: Lines that the user gets: warnings, files left out, problems.
  """

  result: Any
  said: Sequence[str] = ()


@dataclasses.dataclass
class Category:
  """The trials of one kind of input.

  Attributes:
    name: As in the table.
    unchecked: Why changed bytes cannot be seen, for a format without a checksum; else "".
    counts: Verdict -> trials.
    details: (verdict, what was done, what came of it) of the bad ones.
  """

  name: str
  unchecked: str = ""
  counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  details: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)

  def judge(
      self,
      what: str,
      read: Callable[[], Seen],
      same: Callable[[Any], bool],
      names: Sequence[str],
      *,
      checked: bool = True,
      lines: bool = False,
  ) -> str:
    """Tries one damaged input and notes its verdict.

    Args:
      what: What was done to it.
      read: Reads it as a program would.
      same: Whether a result is that of the whole input.
      names: Any of them must stand in the error, or in a line that the user gets.
      checked: False where no reader could see the change: the format has no checksum.
      lines: An error may list several problems.
    """
    verdict, came = self._verdict(read, same, names, checked, lines)
    self.counts[verdict] += 1
    if verdict in (SILENT, TRACEBACK):
      self.details.append((verdict, what, came))
    return verdict

  def _verdict(self, read, same, names, checked, lines) -> tuple[str, str]:
    clock = _Clock()
    try:
      with clock:
        seen = read()
    except InputError as error:
      if clock.rang:  # Readers turn any exception into theirs, that of the clock too.
        return TRACEBACK, f"no end after {_SECONDS} s"
      message = str(error)
      if "\n" in message and not lines:
        return TRACEBACK, f"several lines: {message[:300]}"
      named = any(name in message for name in names)
      return (CAUGHT, "") if named else (TRACEBACK, f"names no file: {message[:300]}")
    except Exception as error:
      return TRACEBACK, f"{type(error).__name__}: {str(error)[:300]}"
    if same(seen.result):
      return HARMLESS, ""
    if any(name in line for line in seen.said for name in names):
      return CAUGHT, ""
    return (SILENT, f"{seen.result!r:.200}") if checked else (UNCHECKED, "")

  @property
  def bad(self) -> list[str]:
    """One line for each trial that was silent or ended in a traceback."""
    return [f"{self.name}: {verdict}: {what} -> {came}" for verdict, what, came in self.details]

  def check(self) -> None:
    """Fails the test where a trial was silent or ended in a traceback, or too few were caught."""
    shown = "\n".join(self.bad[:_SHOWN])
    assert not self.bad, f"{len(self.bad)} of {sum(self.counts.values())} (seed {SEED}):\n{shown}"
    assert self.counts[CAUGHT], f"{self.name}: nothing was caught, so nothing was tried"


CATEGORIES: dict[str, Category] = {}


def category(name: str, unchecked: str = "") -> Category:
  """Returns a new category, which the table at the end will hold."""
  CATEGORIES[name] = Category(name, unchecked)
  return CATEGORIES[name]


def add(
    name: str, unchecked: str, counts: Mapping[str, int], details: Sequence[tuple[str, str, str]]
) -> None:
  """Counts what another process has tried of a category."""
  found = CATEGORIES.setdefault(name, Category(name, unchecked))
  found.counts.update(counts)
  found.details += details


class _Clock:
  """Raises TimeoutError in the block when it takes too long."""

  rang = False

  def _ring(self, number: int, frame: Any) -> None:
    self.rang = True
    raise TimeoutError(f"no end after {_SECONDS} s")

  def __enter__(self) -> None:
    self._before = signal.signal(signal.SIGALRM, self._ring)
    signal.setitimer(signal.ITIMER_REAL, _SECONDS)

  def __exit__(self, *_: Any) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, self._before)


def table() -> Iterator[str]:
  """Yields the lines of the table of all categories."""
  width = max(len(name) for name in CATEGORIES)
  heads = ("tried", *VERDICTS)
  yield f"seed {SEED}, {'full' if FULL else 'short'} scale"
  yield "  ".join([f"{'category':{width}}", *(f"{head:>9}" for head in heads)])
  for _, one in sorted(CATEGORIES.items()):
    numbers = (sum(one.counts.values()), *(one.counts[verdict] for verdict in VERDICTS))
    yield "  ".join([f"{one.name:{width}}", *(f"{number:9}" for number in numbers)])
  reasons = {one.unchecked: one.name for one in CATEGORIES.values() if one.unchecked}
  if reasons:
    yield "unchecked, where no reader can see a changed byte:"
  for reason in reasons:
    names = [one.name for one in CATEGORIES.values() if one.unchecked == reason]
    yield f"  {', '.join(names)}: {reason}"


def as_json() -> str:
  """Returns the table, and what was wrong, as JSON."""
  rows = {
      one.name: {
          "tried": sum(one.counts.values()),
          **{verdict: one.counts[verdict] for verdict in VERDICTS},
          "unchecked_because": one.unchecked,
          "details": one.bad,
      }
      for _, one in sorted(CATEGORIES.items())
  }
  return json.dumps({"seed": SEED, "full": FULL, "categories": rows}, indent=1)
