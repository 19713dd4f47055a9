"""`splits.json`, where each subject of a built dataset stands, and lists that a user may give.

{"form": 1, "salt": "...", "seed": 0, "num_folds": 5,
 "shares": {"train": 0.7, "validation": 0.15, "test": 0.15},
 "subjects": {"p01": {"split": "train", "fold": 2, "stratum": "", "by": "shares"}, ...},
 "absent": {...}}

`by` says what decided. `absent` holds, in the same form, subjects of the file that the build was
given which its raw folder does not hold: they get their places back when they return. A file that
is given needs `form` and `subjects` alone, and of a subject its split.

`splits_final.json` of nnU-Net is read as well: a list of {"train": [...], "val": [...]}, one per
fold, over which no test split is made. Names of its cases stand for their subjects.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from flexunet.core import errors
from flexunet.core.errors import InputError
from flexunet.datasets import dataset_folders
from flexunet.datasets.subject_splits import NO_FOLD, NUM_FOLDS, RATIOS, SPLITS

NAME = "splits.json"
_FORM = 1
_WANTED = (
    f"a {NAME} that a build wrote, or a splits_final.json of nnU-Net, a list of"
    ' {"train": [...], "val": [...]}'
)
_MOST_FOLDS = 100


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a subject stands; `fold` is None where the file says nothing of it."""

  split: str
  fold: int | None = None
  stratum: str = ""


@dataclasses.dataclass(frozen=True)
class SplitsFile:
  """A list of subjects and their places.

  Attributes:
    path: The file, for messages; it stays out of all that a build writes.
    places: {name as the file has it: place}.
    shares: {split: share} of the build that wrote it; None where the file states none.
    seed: That of the build that wrote it.
    num_folds: How many folds it has.
    digest: Stands for its content in the build report.
    of_build: Whether a build wrote it, whose names may stand in what is built.
  """

  path: str
  places: Mapping[str, Place]
  shares: Mapping[str, float] | None
  seed: int
  num_folds: int
  digest: str
  of_build: bool


def read(path: str) -> SplitsFile:
  """Reads a `splits.json`, or a `splits_final.json` of nnU-Net.

  Raises:
    InputError: It is neither, or damaged; all problems at once.
  """
  content = _content_of(path)
  try:
    values = json.loads(content, object_pairs_hook=_without_repeats)
    json.dumps(values, ensure_ascii=False).encode()  # Names must be text that can be written.
  except (ValueError, RecursionError) as error:
    raise InputError(f"{path}: must be JSON ({_first_line(error)}): {_WANTED}.") from error
  digest = hashlib.sha256(content.encode()).hexdigest()[:16]
  if isinstance(values, list):
    return SplitsFile(path, _folds_of_nnunet(path, values), None, 0, len(values), digest, False)
  if not isinstance(values, dict) or not isinstance(values.get("subjects"), dict):
    raise InputError(f"{path}: must be {_WANTED}.")
  if values.get("form") != _FORM:
    raise InputError(
        f"{path}: must be of form {_FORM}. Got: {values.get('form')!r:.40}. It comes from another"
        " version of this program."
    )
  num_folds, seed = values.get("num_folds", NUM_FOLDS), values.get("seed", 0)
  if not _is_whole(num_folds, 1, _MOST_FOLDS) or not _is_whole(seed, 0, 2**63 - 1):
    raise InputError(f"{path}: num_folds must be 1..{_MOST_FOLDS} and seed a whole number.")
  absent = values.get("absent", {})
  listed = {**(absent if isinstance(absent, dict) else {}), **values["subjects"]}
  problems: list[str] = []
  places = {name: _place(path, name, entry, num_folds, problems)
            for name, entry in listed.items()}  # fmt: skip
  if problems:
    raise errors.from_problems(problems, "")
  shares = _shares(path, values.get("shares"))
  return SplitsFile(path, places, shares, seed, num_folds, digest, "salt" in values)


def read_names(path: str) -> tuple[str, ...]:
  """Returns the subjects that a text file lists, one a line; # begins a comment.

  Raises:
    InputError: It cannot be read, or lists nobody.
  """
  lines = [line.partition("#")[0].strip() for line in _content_of(path).splitlines()]
  names = tuple(dict.fromkeys(line for line in lines if line))
  if not names:
    raise InputError(f"{path}: must list subjects, one a line. It lists none.")
  return names


def write(
    folder: pathlib.Path,
    settings: Mapping[str, Any],
    subjects: Mapping[str, Mapping[str, Any]],
    absent: Mapping[str, Place],
) -> None:
  """Writes `splits.json` into a version folder.

  Args:
    folder: The version folder.
    settings: Salt, seed, shares and num_folds.
    subjects: {subject as the records name it: split, fold, stratum and by}.
    absent: Subjects without a labelled scan here.
  """
  values = {
      "form": _FORM,
      **settings,
      "subjects": dict(sorted(subjects.items())),
      "absent": {name: dataclasses.asdict(place) for name, place in sorted(absent.items())},
  }
  text = json.dumps(values, indent=1, ensure_ascii=False)
  (folder / NAME).write_text(text + "\n", encoding="utf-8")


def _content_of(path: str) -> str:
  file = pathlib.Path(path).expanduser()
  aside = dataset_folders.set_aside(file.parent) / file.name
  if not file.exists() and aside.is_file():
    file = aside  # A build that was killed had put the dataset aside.
  if not file.exists():
    raise errors.missing_file(file)
  try:
    return file.read_text(encoding="utf-8-sig")
  except UnicodeDecodeError as error:
    raise InputError(f"{path}: must be a text file in UTF-8 ({error.reason}).") from error
  except OSError as error:
    raise InputError(f"{path}: cannot be read ({error.strerror}). Name a file.") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise ValueError(f"{twice!r} stands there twice")
  return found


def _place(path: str, name: str, entry: Any, num_folds: int, problems: list[str]) -> Place:
  split = entry.get("split") if isinstance(entry, dict) else None
  if not isinstance(entry, dict) or split not in SPLITS:
    problems.append(
        f"{path}: subject {name}: split must be one of {', '.join(SPLITS)}. Got: {split!r:.40}."
    )
    return Place(SPLITS[0])
  fold, stratum = entry.get("fold"), entry.get("stratum", "")
  if fold is not None and not _is_whole(fold, NO_FOLD, num_folds - 1):
    problems.append(
        f"{path}: subject {name}: fold must be {NO_FOLD}..{num_folds - 1}. Got: {fold!r:.40}."
    )
    fold = None
  return Place(split, fold, stratum if isinstance(stratum, str) else "")


def _shares(path: str, values: Any) -> dict[str, float] | None:
  if values is None:
    return None
  known = isinstance(values, dict) and values.keys() == RATIOS.keys()
  if not known or not all(_is_share(share) for share in values.values()) or (
      abs(sum(values.values()) - 1) > 1e-6
  ):  # fmt: skip
    raise InputError(f"{path}: shares must be those of {', '.join(SPLITS)}, summing to 1.")
  return {split: float(values[split]) for split in RATIOS}


def _folds_of_nnunet(path: str, values: list[Any]) -> dict[str, Place]:
  """Returns the places of the cases: fold i is what the i-th entry validates on."""
  if not 1 <= len(values) <= _MOST_FOLDS:
    raise InputError(f"{path}: must be {_WANTED}.")
  fold_of: dict[str, int] = {}
  names: set[str] = set()
  problems = []
  for fold, entry in enumerate(values):
    train, val = _names_of(entry, "train"), _names_of(entry, "val")
    if train is None or val is None:
      raise InputError(f"{path}: fold {fold} must be {{'train': [...], 'val': [...]}}, of names.")
    if both := sorted(set(train) & set(val)):
      problems.append(f"{path}: fold {fold} trains and validates on {both[0]}.")
    for name in val:
      if fold_of.setdefault(name, fold) != fold:
        problems.append(f"{path}: {name} is validated on in fold {fold_of[name]} and in {fold}.")
    names.update(train, val)
  if problems:
    raise errors.from_problems(problems, "")
  # Without --fold a run is that of fold 0.
  return {
      name: Place("validation" if fold_of.get(name) == 0 else "train", fold_of.get(name, NO_FOLD))
      for name in sorted(names)
  }


def _names_of(entry: Any, side: str) -> list[str] | None:
  names = entry.get(side) if isinstance(entry, dict) else None
  is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
  return names if is_list else None


def _is_whole(value: Any, low: int, high: int) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_share(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def _first_line(error: BaseException) -> str:
  return (str(error).splitlines() or [type(error).__name__])[0]
