"""The folder of a cross-validation: its files, what it was started with, which folds are trained.

`cross_validation.json` is written when the first fold starts, after each fold that is trained, and
with the results at the end. It holds no path of the machine and no time: the same command gives the
same figures, however often it was interrupted. Only the hashes of the networks differ between two
runs: Keras writes the time into the files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flexunet
from flexunet import config, run_folder
from flexunet.core import files, private_paths
from flexunet.core.errors import InputError

_FORM = 1
_PATHS = ("data_dir", "cache_dir", "init_from")
# With other values of these a trained fold may have more to train.
_LENGTHS = ("epochs", "max_minutes")


@dataclasses.dataclass(frozen=True)
class CrossValidationFolder:
  """Names the files of a cross-validation; nothing else spells them."""

  path: pathlib.Path

  @property
  def summary_json(self) -> pathlib.Path:
    """What it was started with, its runs and, at the end, the pooled scores."""
    return self.path / "cross_validation.json"

  @property
  def cases_csv(self) -> pathlib.Path:
    """Scores of each held-out volume and class, those of all folds."""
    return self.path / "cases.csv"

  @property
  def report_html(self) -> pathlib.Path:
    """The report over all folds."""
    return self.path / "report.html"

  def run(self, fold: int) -> run_folder.RunFolder:
    """Returns the run folder of a fold, which need not exist."""
    return run_folder.RunFolder(self.path / f"fold_{fold}")

  def read_plan(self) -> Plan | None:
    """Returns what the cross-validation in this folder was started with; None where none was.

    Raises:
      InputError: The file is damaged.
    """
    if not self.summary_json.is_file():
      return None
    return Plan.from_json(files.read_json(self.summary_json), self.summary_json)

  def write(self, plan: Plan, results: Mapping[str, Any] | None = None) -> None:
    """Replaces `cross_validation.json` in one step.

    Args:
      plan: What it was started with, and how far it is.
      results: Those of all folds, at the end.
    """
    files.write_json(self.summary_json, {**plan.to_json(), **(results or {})})

  def remove_results(self) -> None:
    """Removes what says something of folds that have changed since."""
    for path in (self.cases_csv, self.report_html):
      path.unlink(missing_ok=True)

  def remove_partial(self) -> None:
    """Removes files that a killed process was still writing."""
    for file in (self.summary_json, self.cases_csv, self.report_html):
      for path in self.path.glob(f".{file.name}.*"):
        path.unlink()
    with contextlib.suppress(OSError):  # Where nothing else is in it, the folder is a new one.
      self.path.rmdir()


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a cross-validation was started with, and which of its folds are trained.

  Attributes:
    dataset: dataset/config/version.
    fingerprint: Digest of its records.
    validation_split: The split whose name the held-out subjects of a fold go by.
    folds: Those that are run, in rising order.
    given: Name of a setting -> value as JSON, of those that are not at their default; paths as
      `private_paths.stored` writes them.
    trained: Name of a run -> sha256 of its network when its training had ended.
  """

  dataset: str
  fingerprint: str | None
  validation_split: str
  folds: tuple[int, ...]
  given: dict[str, Any]
  trained: dict[str, str] = dataclasses.field(default_factory=dict)

  @property
  def runs(self) -> list[str]:
    """Names of the run folders, in the order of the folds."""
    return [f"fold_{fold}" for fold in self.folds]

  def to_json(self) -> dict[str, Any]:
    """Returns the first entries of `cross_validation.json`."""
    return {
        "form": _FORM,
        "flexunet": flexunet.__version__,
        **dataclasses.asdict(self),
        "folds": list(self.folds),
        "runs": self.runs,
        "trained": {name: self.trained[name] for name in self.runs if name in self.trained},
    }

  @classmethod
  def from_json(cls, values: Any, path: pathlib.Path) -> Plan:
    """Reads what `to_json` wrote; InputError where it is something else."""
    try:
      if values["form"] != _FORM:
        raise ValueError(f"its form is {values['form']!r}, this version reads {_FORM}")
      fields = {field.name: values[field.name] for field in dataclasses.fields(cls)}
      folds = tuple(fields.pop("folds"))
      if not folds or not all(type(fold) is int for fold in folds):
        raise ValueError(f"its folds must be numbers, not {folds}")
      for name in ("given", "trained"):
        fields[name] = dict(fields[name].items())
      return cls(folds=folds, **fields)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
      raise InputError(
          f"{path} must be as flexunet cross_validate wrote it: {error}. Put the file back, or"
          " start in another --run_dir."
      ) from error

  def continued_by(self, now: Plan) -> Plan:
    """Returns the plan of the same command with --resume.

    Args:
      now: What the command gives; its folds may be more than those of the start.

    Raises:
      InputError: It gives something else than the start, or other data.
    """
    for name, what in (("dataset", "dataset"), ("fingerprint", "data fingerprint")):
      if getattr(self, name) != getattr(now, name):
        raise InputError(
            f"--resume needs the data of the start: the {what} was {getattr(self, name)}, now it is"
            f" {getattr(now, name)}. Point --data_dir at the same data, or start in another"
            " --run_dir."
        )
    changed = [
        f"--{name} was {self._shown(name)}, now it is {now._shown(name)}"
        for name in sorted({*self.given, *now.given})
        if self.given.get(name) != now.given.get(name)
        and name not in (*config.MAY_CHANGE, "init_from")
    ]
    if left_out := sorted(set(self.folds) - set(now.folds)):
      changed.append(f"--folds had {', '.join(map(str, left_out))} too")
    if changed:
      raise InputError(
          f"--resume continues with the same flags, but {'; '.join(changed)}. Give the values of"
          " the start, or start in another --run_dir."
      )
    longer = any(self.given.get(name) != now.given.get(name) for name in _LENGTHS)
    return dataclasses.replace(now, trained={} if longer else self.trained)

  def with_trained(self, fold: int, digest: str) -> Plan:
    """Returns the plan with one more fold whose training has ended."""
    return dataclasses.replace(self, trained={**self.trained, f"fold_{fold}": digest})

  def _shown(self, name: str) -> str:
    value = self.given.get(name, "left out")
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def given_settings(parts: Sequence[Any]) -> dict[str, Any]:
  """Returns name -> value, as JSON holds it, of all settings that are not at their default.

  Args:
    parts: Config dataclasses with open fields, as flags or keywords gave them.
  """
  found = {}
  for part in parts:
    for field in dataclasses.fields(part):
      value = getattr(part, field.name)
      if value != field.default:
        found[field.name] = list(value) if isinstance(value, tuple) else value
  return found


def stored_settings(given: Mapping[str, Any], folder: pathlib.Path) -> dict[str, Any]:
  """Returns settings with their paths as a file in `folder` stores them."""
  return {
      name: private_paths.stored(os.path.expanduser(value), folder) if name in _PATHS else value
      for name, value in given.items()
  }
