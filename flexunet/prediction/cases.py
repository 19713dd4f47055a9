"""Joins the files of one case: the channels that a run was trained on, by number or by name.

Numbers are those of nnU-Net, CASE_0000, CASE_0001; what they stand for is read from the
`dataset.json` beside or above the scans, else they are the run's channels in order. Names are those
of the run's channels at the end of a file's name (`sub-01_FLAIR`, `2-T1`, as in BIDS), or the whole
name in a folder of its own for each case (`Patient1/T1.nii`).

A file of four axes is a case of its own where its volumes are the channels of the run.

A run of one channel takes every scan, except where a layout names others beside its own.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping, Sequence

_NUMBERED = re.compile(r"(?P<base>.+)_(?P<number>\d{4})")
_NNUNET_FOLDER = re.compile(r"images(tr|ts|va|val)", re.IGNORECASE)
_BIDS_NAME = re.compile(r"sub-.+_(?P<suffix>[A-Za-z0-9]+)")
_SEPARATORS = "_-. "


@dataclasses.dataclass(frozen=True)
class ScanName:
  """What of a file decides to which case it belongs.

  Attributes:
    path: The file.
    folder: Where it lies below the input folder.
    stem: Its name without the ending.
  """

  path: pathlib.Path
  folder: pathlib.PurePath
  stem: str


@dataclasses.dataclass(frozen=True)
class Case:
  """The files of one case.

  Attributes:
    stem: Its name, after which outputs are named.
    files: Positions among the files that were joined, one per channel, in order.
  """

  stem: str
  files: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class CaseList:
  """What the files of a folder are, case by case.

  Attributes:
    cases: In the order of their first channels.
    problems: One line for each case that cannot be predicted.
    skipped: How many files are channels that the run does not know.
  """

  cases: list[Case]
  problems: list[str] = dataclasses.field(default_factory=list)
  skipped: int = 0


def join(files: Sequence[ScanName], channel_names: Sequence[str]) -> CaseList:
  """Returns the cases among files.

  Args:
    files: Scans, or images, each on its own.
    channel_names: Those of the run, in order; none or one: a case is one file.
  """
  if len(channel_names) > 1:
    return _several_channels(files, channel_names)
  return _one_channel(files, channel_names[0] if channel_names else "")


def _several_channels(files: Sequence[ScanName], names: Sequence[str]) -> CaseList:
  found: dict[tuple[pathlib.PurePath, str], dict[int, list[int]]] = {}
  stated = _StatedNames()
  skipped = 0
  for position, file in enumerate(files):
    base, channel = _channel_of(file, names, stated)
    if channel is None:
      skipped += 1
    else:
      found.setdefault((file.folder, base), {}).setdefault(channel, []).append(position)
  cases, problems = [], []
  for (folder, base), channels in found.items():
    paths = {channel: [files[one].path for one in own] for channel, own in channels.items()}
    if problem := _problem(folder / base, paths, names):
      problems.append(problem)
    else:
      cases.append(Case(base, tuple(channels[channel][0] for channel in range(len(names)))))
  return CaseList(sorted(cases, key=lambda case: case.files), problems, skipped)


def components(
    path: pathlib.Path, count: int, channel_names: Sequence[str]
) -> tuple[int, ...]:
  """Returns which volumes along the fourth axis of a file are the channels of a run, in its order.

  They go by their names where a `dataset.json` beside or above the file knows one of the run's, or
  the run itself has them from a file without names; else they are the run's channels in order. ()
  where the file does not hold them.

  Args:
    path: The file.
    count: Its volumes.
    channel_names: Those of the run, in order.
  """
  there = _StatedNames().beside(path)
  # As names of channels are written in a dataset.
  stated = [re.sub(r"[^\w.-]+", "_", there[n].strip()).strip("_") for n in sorted(there)]
  stated = stated or [f"channel_{number}" for number in range(1, count + 1)]
  wanted = [name.lower() for name in channel_names]
  if set(wanted) & set(stated):
    whole = len(stated) == len(set(stated)) == count and set(wanted) <= set(stated)
    return tuple(stated.index(name) for name in wanted) if whole else ()
  return tuple(range(count)) if count == len(wanted) else ()


def _problem(
    case: pathlib.PurePath, paths: Mapping[int, Sequence[pathlib.Path]], names: Sequence[str]
) -> str | None:
  """Returns why a case cannot be predicted, if so."""
  for channel, own in paths.items():
    if len(own) > 1:
      return (
          f"{own[0]} and {own[1]} are both the channel {names[channel]} of the case {case}. Leave"
          " one of them out."
      )
  missing = [
      f"{name} (number {channel:04d})"
      for channel, name in enumerate(names)
      if channel not in paths
  ]
  if not missing:
    return None
  return (
      f"{case}: a case must have the channels {', '.join(names)} of the training. Missing:"
      f" {', '.join(missing)}. Put them beside {paths[min(paths)][0]}."
  )


def _channel_of(
    file: ScanName, names: Sequence[str], stated: _StatedNames
) -> tuple[str, int | None]:
  """Returns the name of the case that a file belongs to, and which channel it is, if any."""
  lower = [name.lower() for name in names]
  if match := _NUMBERED.fullmatch(file.stem):
    number, there = int(match["number"]), stated.beside(file.path)
    if set(lower) & set(there.values()):
      name = there.get(number, "")
      return match["base"], lower.index(name) if name in lower else None
    # No names, or none that the run knows: numbers are those of its channels.
    return match["base"], number if number < len(names) else None
  stem = file.stem.lower()
  if stem in lower:
    return file.path.parent.name, lower.index(stem)
  for name in sorted(lower, key=len, reverse=True):
    base = file.stem[: -len(name)]
    if stem.endswith(name) and base[-1:] in _SEPARATORS and base.rstrip(_SEPARATORS):
      return base.rstrip(_SEPARATORS), lower.index(name)
  return file.stem, None


def _one_channel(files: Sequence[ScanName], name: str) -> CaseList:
  """Returns a case for each file, without those that a layout names as other channels.

  Args:
    files: Scans, or images.
    name: Channel of the run; "" where it is not known.
  """
  numbers: dict[pathlib.Path, set[str]] = {}
  suffixes = set()
  for file in files:
    match, bids = _NUMBERED.fullmatch(file.stem), _BIDS_NAME.fullmatch(file.stem)
    numbers.setdefault(file.path.parent, set()).add(match["number"] if match else "")
    suffixes.add(bids["suffix"].lower() if bids else "")
  stated, cases = _StatedNames(), []
  for position, file in enumerate(files):
    match, bids = _NUMBERED.fullmatch(file.stem), _BIDS_NAME.fullmatch(file.stem)
    there, beside = stated.beside(file.path), numbers[file.path.parent]
    laid_out = bool(there) or bool(_NNUNET_FOLDER.fullmatch(file.path.parent.name))
    if match and laid_out and "" not in beside:
      own = {f"{number:04d}" for number, one in there.items() if one == name.lower()}
      own = own or (beside if len(beside) == 1 else set())
      # Of several channels it is not known which the run was trained on: then each is a scan.
      if not own or match["number"] in own:
        cases.append(Case(match["base"] if own else file.stem, (position,)))
    elif not bids or name.lower() not in suffixes or bids["suffix"].lower() == name.lower():
      cases.append(Case(file.stem, (position,)))
  return CaseList(cases, skipped=len(files) - len(cases))


class _StatedNames:
  """Reads each `dataset.json` of nnU-Net once."""

  def __init__(self) -> None:
    self._known: dict[pathlib.Path, dict[int, str]] = {}

  def beside(self, path: pathlib.Path) -> dict[int, str]:
    """Returns number -> name in lower case of the channels; empty where nothing states them."""
    folder = path.absolute().parent
    if folder not in self._known:
      self._known[folder] = _read_names(folder) or _read_names(folder.parent)
    return self._known[folder]


def _read_names(folder: pathlib.Path) -> dict[int, str]:
  try:
    about = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    named = about.get("channel_names") or about.get("modality") or {}
    return {int(number): str(name).lower() for number, name in named.items()}
  except (OSError, ValueError, AttributeError, RecursionError):
    return {}  # It is no part of the input: what it does not say is taken from the files' names.
