"""Whose slice an image is, read from its file name.

A rule is a regular expression with a group `subject` and, where the name states it, `slice`.
"""

from __future__ import annotations

import dataclasses
import re

from flexunet.core.errors import InputError

# The names the published preparations gave, the most specific first. An augmented copy, such as
# barrdistorted_1001_0.3_0.3_Hemorrhagic_075_16, belongs to the subject of its original. A number
# alone (10185) counts slices over all subjects: it names nobody.
PUBLISHED_RULES = (
    r"(?:^|_)(?P<slice>\d+)_(?P<subject>HFH_\d+)$",  # 10040_HFH_017, axial_10084_HFH_010
    r"(?:^|_)(?P<subject>(?:Hemorrhagic|Ischemic)_\d+)_(?P<slice>\d+)$",
    r"^(?P<subject>[A-Za-z]*\d+)_(?P<slice>\d+)$",  # 1001_130, 100003_128, GU001_77
)


@dataclasses.dataclass(frozen=True)
class SliceName:
  """What a file name states: subject and position; None where it does not."""

  subject: str | None
  slice_index: int | None


def compile_rules(pattern: str) -> list[re.Pattern[str]]:
  """Returns the built-in rules for an empty pattern, else that pattern alone."""
  if not pattern:
    return [re.compile(rule) for rule in PUBLISHED_RULES]
  try:
    rule = re.compile(pattern)
  except re.error as error:
    raise InputError(
        f"subject_pattern must be a regular expression, such as '(?P<subject>[^_]+)_'. Got"
        f" {pattern!r}: {error}."
    ) from error
  if "subject" not in rule.groupindex:
    raise InputError(
        "subject_pattern must hold a group named subject, such as '(?P<subject>[^_]+)_(?P<slice>"
        f"\\d+)'. Got: {pattern!r}."
    )
  return [rule]


def parse(stem: str, rules: list[re.Pattern[str]]) -> SliceName:
  """Applies the first rule that matches anywhere in `stem`."""
  for rule in rules:
    if found := rule.search(stem):
      groups = found.groupdict()
      position = groups.get("slice") or ""
      return SliceName(groups["subject"] or None, int(position) if position.isdigit() else None)
  return SliceName(None, None)


def parse_all(stems: list[str], pattern: str) -> dict[str, SliceName]:
  """Returns {stem: what it states}."""
  rules = compile_rules(pattern)
  return {stem: parse(stem, rules) for stem in stems}


def natural(stem: str) -> list[tuple[int, int, str]]:
  """Returns a sort key by which 9 comes before 10."""
  parts = re.split(r"(\d+)", stem)
  return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]


def rule_problem(pattern: str, unmatched: list[str]) -> str:
  """Returns the line about names that a given pattern does not match."""
  shown = ", ".join(unmatched[:5])
  return (
      f"subject_pattern {pattern!r} must match every file name; it does not match {len(unmatched)},"
      f" such as {shown}."
  )
