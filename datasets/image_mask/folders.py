"""Finds the images and masks of a ready-made folder, pairs them by stem, and reads whose they are.

The subject and the slice of an image are read from its file name, by rules.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import subprocess
import sys

from flexunet.core.errors import InputError
from flexunet.datasets.builder import raw_folder
from flexunet.datasets.builder.raw_folder import Findings
from flexunet.imaging import pictures

_SPLITS = {
    "train": ("train", "training"),
    "validation": ("valid", "val", "validation"),
    "test": ("test", "testing"),
}
_IMAGES = ("images", "image", "imgs")
_MASKS = ("masks", "mask", "labels")
_SEARCH_DEPTH = 2
# A hundred thousand names take a useful pattern a second; one that backtracks takes years.
_MATCH_SECONDS = 10.0
# Reads {"pattern", "stems"} and prints the groups of each stem as a line: its lines are counted
# when it has to be stopped, which a matching thread of this process could not be.
_MATCHER = """
import json, re, sys
asked = json.load(sys.stdin)
rule = re.compile(asked["pattern"])
for stem in asked["stems"]:
  found = rule.search(stem)
  print(json.dumps(found and found.groupdict()), flush=True)
"""


@dataclasses.dataclass(frozen=True)
class Pair:
  """An image and its mask; `split` is "" for folders without splits."""

  stem: str
  split: str
  image: pathlib.Path
  mask: pathlib.Path


def find_pairs(findings: Findings) -> list[Pair]:
  """Returns all pairs below the root; what is wrong becomes a problem."""
  roots = _roots(findings.root)
  if len(roots) > 1:
    names = ", ".join(findings.relative(root) for root in roots[:5])
    findings.problem(f"{findings.root}: holds {len(roots)} datasets: {names}. Name one of them.")
  if len(roots) != 1:
    return []
  pairs = []
  for split, folder in _splits(roots[0]).items():
    pairs += _pairs_of(findings, split, folder)
  return pairs


def _roots(root: pathlib.Path) -> list[pathlib.Path]:
  """Returns the folders nearest to `root` that have splits, or images and masks."""
  level = [root]
  for _ in range(_SEARCH_DEPTH + 1):
    if found := [folder for folder in level if _splits(folder)]:
      return found
    level = [path for folder in level for path in raw_folder.children(folder) if path.is_dir()]
  return []


def _splits(root: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns {split: folder with images and masks}; {"": root} for a plain folder."""
  if _has_both(root):
    return {"": root}
  folders = {split: raw_folder.child(root, *names) for split, names in _SPLITS.items()}
  return {split: folder for split, folder in folders.items() if folder and _has_both(folder)}


def _has_both(folder: pathlib.Path) -> bool:
  if not folder.is_dir():
    return False
  images, masks = raw_folder.child(folder, *_IMAGES), raw_folder.child(folder, *_MASKS)
  return images is not None and masks is not None and images.is_dir() and masks.is_dir()


def _pairs_of(findings: Findings, split: str, folder: pathlib.Path) -> list[Pair]:
  images = _by_stem(findings, raw_folder.child(folder, *_IMAGES))
  masks = _by_stem(findings, raw_folder.child(folder, *_MASKS))
  raw_folder.unpaired(
      findings, [images[s] for s in sorted(images.keys() - masks.keys())], "mask of its name"
  )
  raw_folder.unpaired(
      findings, [masks[s] for s in sorted(masks.keys() - images.keys())], "image of its name"
  )
  pairs = []
  for stem in sorted(images.keys() & masks.keys()):
    if _same_size(findings, images[stem], masks[stem]):
      pairs.append(Pair(stem, split, images[stem], masks[stem]))
  return pairs


def _by_stem(findings: Findings, folder: pathlib.Path | None) -> dict[str, pathlib.Path]:
  found: dict[str, pathlib.Path] = {}
  for path in raw_folder.children(folder) if folder else ():
    if not pictures.is_picture(path):
      findings.leave_out(path, f"not an image ({', '.join(pictures.SUFFIXES)})")
    elif path.stem in found:
      first = findings.relative(found[path.stem])
      findings.problem(f"{findings.relative(path)}: duplicate of {first}; keep one of them.")
    else:
      found[path.stem] = path
  return found


def _same_size(findings: Findings, image: pathlib.Path, mask: pathlib.Path) -> bool:
  sizes = []
  for path, entry in ((image, "image"), (mask, "mask")):
    try:
      header = pictures.read_header(path, entry)
      sizes.append((header.height, header.width))
    except InputError as error:
      findings.problem(str(error))
  if len(sizes) == 2 and sizes[0] != sizes[1]:
    findings.problem(
        f"{findings.relative(mask)}: a mask has the size of its image {sizes[0]}, got {sizes[1]}."
    )
    return False
  return len(sizes) == 2


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
  except (re.error, OverflowError, RecursionError) as error:
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
      return _slice_name(found.groupdict())
  return SliceName(None, None)


def parse_all(stems: list[str], pattern: str) -> dict[str, SliceName]:
  """Returns {stem: what it states}.

  Raises:
    InputError: The pattern is none, or does not come to an end.
  """
  rules = compile_rules(pattern)
  if not pattern:
    return {stem: parse(stem, rules) for stem in stems}
  groups = _search_all(pattern, stems)
  return {
      stem: _slice_name(found) if found else SliceName(None, None)
      for stem, found in zip(stems, groups, strict=True)
  }


def _slice_name(groups: dict[str, str | None]) -> SliceName:
  position = groups.get("slice") or ""
  return SliceName(groups["subject"] or None, int(position) if position.isdecimal() else None)


def _search_all(pattern: str, stems: list[str]) -> list[dict[str, str | None] | None]:
  """Returns the groups of the pattern in each stem; None where it does not match.

  A pattern of the user, such as (a+)+b, may need longer than the age of the world: a process of
  its own matches it, and is ended.
  """
  asked = json.dumps({"pattern": pattern, "stems": stems})
  command = [sys.executable, "-I", "-S", "-c", _MATCHER]
  try:
    done = subprocess.run(
        command, input=asked.encode(), capture_output=True, timeout=_MATCH_SECONDS, check=True
    )
  except subprocess.TimeoutExpired as error:
    stuck = stems[min((error.stdout or b"").count(b"\n"), len(stems) - 1)]
    raise InputError(
        f"subject_pattern {pattern!r} must match at once, but after {_MATCH_SECONDS:g} s it was"
        f" still trying the file name {stuck!r}. Write it without a repetition within a"
        " repetition, such as (a+)+."
    ) from error
  return [json.loads(line) for line in done.stdout.splitlines()]


def natural(stem: str) -> list[tuple[int, int, str]]:
  """Returns a sort key by which 9 comes before 10."""
  parts = re.split(r"(\d+)", stem)
  return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]


def rule_problem(pattern: str, unmatched: list[str]) -> str:
  """Returns the line about names that a given pattern does not match."""
  shown = ", ".join(unmatched[:5])
  return (
      f"subject_pattern {pattern!r} must match every file name; it does not match {len(unmatched)},"
      f" such as {shown}."
  )
