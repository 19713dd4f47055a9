"""Whose scans a run has seen, and which of these people a split holds.

A run keeps in its manifest the subjects that it was trained and validated on, and those of the
networks that it started from: the dataset may later be built again with other splits.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from flexunet import run_folder
from flexunet.core import progress
from flexunet.core.errors import InputError

# The entry of the manifest.
KEY = "subjects_seen"
_SHOWN = 10
# How the warning of subjects that chose the best checkpoint begins.
CHOSE = "it chose the best checkpoint, so its figures are optimistic:"


@dataclasses.dataclass(frozen=True)
class SubjectsSeen:
  """The subjects that one training has seen.

  Attributes:
    dataset: dataset/config/version; None for a network of which no more is known.
    train: Those whose slices were learnt from; empty where the dataset names none.
    validation: Those whose slices chose the best model.
  """

  dataset: str | None
  train: frozenset[str] = frozenset()
  validation: frozenset[str] = frozenset()

  def to_json(self) -> dict[str, Any]:
    """Returns an entry of the manifest."""
    return {
        "dataset": self.dataset,
        "train": sorted(self.train),
        "validation": sorted(self.validation),
    }

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> SubjectsSeen:
    """Reads what `to_json` wrote; TypeError or KeyError where it is something else."""
    found = cls(
        values["dataset"], frozenset(values["train"]), frozenset(values["validation"])
    )
    if not all(isinstance(name, str) for name in (*found.train, *found.validation)):
      raise TypeError("names of subjects must be texts")
    if not isinstance(found.dataset, (str, type(None))):
      raise TypeError("the name of a dataset must be a text")
    return found


def names_of(subjects: Iterable[str]) -> frozenset[str]:
  """Returns the subjects of a column of a record table; nothing for those without a name."""
  return frozenset(str(name) for name in subjects) - {""}


def of_run(run: run_folder.RunFolder) -> list[SubjectsSeen] | None:
  """Returns whom a run has seen, itself first, then the networks it started from.

  None for a run of a version that did not keep it.

  Raises:
    InputError: The manifest is damaged.
  """
  stored = run_folder.read_manifest(run.manifest_json).get(KEY)
  if stored is None:
    return None
  try:
    return [SubjectsSeen.from_json(entry) for entry in stored]
  except (KeyError, TypeError) as error:
    raise InputError(
        f"{run.manifest_json}: {KEY} must be as the run wrote it. Put the file of the run back."
    ) from error


def of_start(init_from: str | None) -> list[SubjectsSeen]:
  """Returns whom the network of `--init_from` has seen; nothing without one.

  A file that is no run's own network, or a run that does not say so, is one unknown training.
  """
  if not init_from:
    return []
  given = pathlib.Path(init_from).expanduser()
  run = run_folder.RunFolder(given if given.is_dir() else given.parent)
  own = given.is_dir() or given == run.model_keras
  return (of_run(run) if own else None) or [SubjectsSeen(None)]


@dataclasses.dataclass(frozen=True)
class Overlap:
  """Which subjects of a split a run has seen.

  Attributes:
    subjects: All of the split that have a name.
    trained: Those that were trained on.
    validated: Those of the others that chose the best model.
    elsewhere: Name of another dataset -> subjects whose names it shares, trained on there.
    unknown: Whether the run started from a network whose subjects are not known.
  """

  subjects: frozenset[str]
  trained: frozenset[str]
  validated: frozenset[str]
  elsewhere: dict[str, frozenset[str]]
  unknown: bool

  def to_json(self) -> dict[str, Any]:
    """Returns the entries of `metrics.json`; None where the split names no subjects."""
    if not self.subjects:
      return dict.fromkeys(("subjects_also_trained_on", "subjects_also_validated_on"))
    return {
        "subjects_also_trained_on": sorted(self.trained),
        "subjects_also_validated_on": sorted(self.validated),
    }

  def warnings(self) -> list[str]:
    """Returns what the overlap means for scores of the split, one sentence each."""
    found = []
    if self.trained and self.trained == self.subjects:
      found.append(
          "the network was trained on it: all its subjects were trained on. Its figures say nothing"
          " about new people."
      )
    elif self.trained:
      found.append(
          f"{self._some(self.trained)} trained on too. Its figures say little about new people:"
          " build the dataset with a split by subject, and train again."
      )
    if self.validated:
      found.append(
          f"{CHOSE} {self._some(self.validated)} validated on."
      )
    for dataset, shared in self.elsewhere.items():
      found.append(
          f"{self._some(shared)} trained on under the same name with the dataset {dataset}. Unless"
          " the names agree by chance, they are the same people."
      )
    if self.unknown:
      found.append(
          "the run started from a network of which is not known whom it was trained on: these"
          " subjects may be among them."
      )
    return found

  def _some(self, names: Collection[str]) -> str:
    if len(names) == len(self.subjects):
      return "all its subjects were"
    count = f"{len(names)} of {progress.count(len(self.subjects), 'subject')}"
    more = len(names) - _SHOWN
    shown = ", ".join(sorted(names)[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
    return f"{count} ({shown}) {'was' if len(names) == 1 else 'were'}"


def overlap(subjects: Iterable[str], dataset: str, seen: Sequence[SubjectsSeen]) -> Overlap:
  """Compares the subjects of a split with those that were seen.

  Subjects are the same where dataset and name are: its config and version do not matter.

  Args:
    subjects: A column of a record table.
    dataset: dataset/config/version of the split.
    seen: From `of_run` or `of_start`.
  """
  names = names_of(subjects)
  own = [one for one in seen if one.dataset and _builder(one.dataset) == _builder(dataset)]
  trained = frozenset().union(*(one.train for one in own)) & names
  elsewhere = {
      one.dataset: shared for one in seen
      if one.dataset and one not in own and (shared := one.train & names - trained)
  }  # fmt: skip
  return Overlap(
      subjects=names,
      trained=trained,
      validated=(frozenset().union(*(one.validation for one in own)) & names) - trained,
      elsewhere=elsewhere,
      unknown=any(one.dataset is None for one in seen),
  )


def _builder(dataset: str) -> str:
  return dataset.partition("/")[0]
