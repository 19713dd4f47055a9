"""The runs of an ensemble: named one by one or by a folder, their weights, and `ensemble.json`.

`ensemble.json` lies in the folder into which an ensemble is evaluated:
  form          1
  runs          [{"path": relative to the folder, "model_sha256", "weight"}, ...]
  weights       "equal", "given" or "learnt"
  learnt_on     null, or what the weights were learnt on: split, subjects, dataset, fingerprint, ...
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from flexunet import config
from flexunet.core import files, private_paths
from flexunet.core.errors import InputError, unknown_name
from flexunet.run_folder import RunFolder

_FORM = 1
_FILE = "ensemble.json"
_CROSS_VALIDATION = "cross_validation.json"
WEIGHTS = ("equal", "given", "learnt")
_ADVICE = "Name the runs themselves, as in --run_dir=A,B,C."


@dataclasses.dataclass(frozen=True)
class EnsembleFolder(RunFolder):
  """Names the files of an evaluated ensemble: those of a run, as far as it has them."""

  @property
  def ensemble_json(self) -> pathlib.Path:
    """Its runs and their weights."""
    return self.path / _FILE

  @property
  def report_html(self) -> pathlib.Path:
    """The report; that of a cross-validation in the same folder is another one."""
    return self.path / "ensemble.html"

  def read_config(self) -> config.RunConfig:
    """Returns the config of the first run, which decides what all runs share."""
    return self.read().runs[0].read_config()

  def read(self) -> RunSet:
    """Returns the runs and weights of `ensemble.json`.

    Raises:
      InputError: It is damaged, a run is not where it was, or has another network now.
    """
    values = files.read_json(self.ensemble_json)
    try:
      if values["form"] != _FORM or values["weights"] not in WEIGHTS or not values["runs"]:
        raise ValueError("a form of this version, a known kind of weights, and runs")
      paths = [private_paths.located(entry["path"], self.path) for entry in values["runs"]]
      hashes = [str(entry["model_sha256"]) for entry in values["runs"]]
      found = RunSet(
          runs=tuple(_open_member(path, self.ensemble_json) for path in paths),
          weights=_convex([float(entry["weight"]) for entry in values["runs"]]),
          kind=values["weights"],
          learnt_on=values["learnt_on"],
          folder=self.path,
      )
    except InputError:
      raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
      raise InputError(
          f"{self.ensemble_json} must be as flexunet evaluate wrote it: {error!r}. Put it back, or"
          " remove it and evaluate the ensemble again."
      ) from error
    found.check_trained()
    for run, known in zip(found.runs, hashes, strict=True):
      if found.kind != "equal" and files.sha256_of(run.model_keras) != known:
        raise InputError(
            f"{self.ensemble_json} must be of the networks that there are, but {run.model_keras} is"
            " another one than when it was written: its weights mean nothing. Remove the file, and"
            " evaluate the ensemble again."
        )
    return found


@dataclasses.dataclass(frozen=True)
class RunSet:
  """The runs of an ensemble.

  Attributes:
    runs: At least one, the first decides the plane in which slices are evaluated and shown.
    weights: One per run, at least 0; their sum is 1.
    kind: How they came: one of `WEIGHTS`.
    learnt_on: What learnt weights were learnt on, as JSON; None for others.
    folder: The folder that named them all; None where they were named one by one.
  """

  runs: tuple[RunFolder, ...]
  weights: tuple[float, ...]
  kind: str = "equal"
  learnt_on: dict[str, Any] | None = None
  folder: pathlib.Path | None = None

  @property
  def names(self) -> list[str]:
    """Short names of the runs: the last parts of their paths, as many as tell them apart."""
    parts = [run.path.absolute().parts for run in self.runs]
    for length in range(1, max(map(len, parts))):
      names = ["/".join(one[-length:]) for one in parts]
      if len(set(names)) == len(set(parts)):
        return names
    return [run.path.name for run in self.runs]

  @property
  def weighed_on(self) -> frozenset[str]:
    """Subjects on whom the weights were learnt."""
    return frozenset((self.learnt_on or {}).get("subjects", ()))

  def weighted(self, weights: Sequence[float], kind: str, learnt_on: Any = None) -> RunSet:
    """Returns the runs with other weights, scaled to the sum 1."""
    return dataclasses.replace(self, weights=_convex(weights), kind=kind, learnt_on=learnt_on)

  def check_trained(self) -> None:
    """Raises InputError unless each run has a network."""
    for run in self.runs:
      run.check_trained()

  def configs(self) -> list[config.RunConfig]:
    """Returns the config of each run.

    Raises:
      InputError: They cannot answer together: their classes, channels or kinds of scans differ.
    """
    configs = [run.read_config() for run in self.runs]
    first = _shared(configs[0])
    for run, other in zip(self.runs[1:], configs[1:], strict=True):
      for what, value in _shared(other).items():
        if value != first[what]:
          raise InputError(
              f"The runs of an ensemble must have the same {what}. {self.runs[0].path} has"
              f" {first[what]}, {run.path} has {value}. Leave one of the two out."
          )
    return configs

  def digest(self) -> str:
    """Returns a hash of the networks and their weights, which identifies what was evaluated."""
    entries = [(files.sha256_of(run.model_keras), weight) for run, weight in self._pairs()]
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()

  def write(self, folder: EnsembleFolder) -> None:
    """Replaces `ensemble.json` in one step."""
    entries = [
        {
            "path": private_paths.stored(run.path, folder.path),
            "model_sha256": files.sha256_of(run.model_keras),
            "weight": weight,
        }
        for run, weight in self._pairs()
    ]
    files.write_json(folder.ensemble_json, {
        "form": _FORM, "runs": entries, "weights": self.kind, "learnt_on": self.learnt_on
    })  # fmt: skip

  def _pairs(self) -> list[tuple[RunFolder, float]]:
    return list(zip(self.runs, self.weights, strict=True))


def open_runs(named: str | os.PathLike | Sequence[str | os.PathLike]) -> RunFolder | RunSet:
  """Opens what --run_dir names.

  Args:
    named: A run; several, as a list or separated by commas; or a folder of an ensemble: one with
      `ensemble.json`, a cross-validation, or any whose subfolders are runs.

  Raises:
    InputError: A folder is neither.
  """
  paths = _paths(named)
  if len(paths) > 1:
    runs = tuple(RunFolder.open(path) for path in paths)
    found = RunSet(runs, _convex([1.0] * len(runs)))
    found.check_trained()
    return found
  folder = EnsembleFolder(paths[0])
  if folder.config_json.is_file():
    return RunFolder.open(paths[0])
  below = _runs_below(folder.path)
  if folder.ensemble_json.is_file():
    return _stored(folder, below)
  if not below:
    return RunFolder.open(paths[0])  # Says what is wrong.
  found = RunSet(below, _convex([1.0] * len(below)), folder=folder.path)
  found.check_trained()
  return found


def open_for_prediction(
    named: str | os.PathLike | Sequence[str | os.PathLike], weights: str = ""
) -> RunFolder | RunSet:
  """Opens the trained runs that --run_dir names, with the weights of --weights.

  Raises:
    InputError: As of `open_runs` and `chosen`, a run has no network, or weights are given for one.
  """
  found = open_runs(named)
  if isinstance(found, RunSet):
    return chosen(found, weights)
  check_no_weights(weights)
  found.check_trained()
  return found


def check_no_weights(weights: str) -> None:
  """Refuses weights where --run_dir names a single run."""
  if weights.strip():
    raise InputError(
        f"--weights is for several runs, as in --run_dir=A,B,C. Got one run and the weights"
        f" {weights}."
    )


def _paths(named: str | os.PathLike | Sequence[str | os.PathLike]) -> list[pathlib.Path]:
  if isinstance(named, str):
    # A comma may be part of a name.
    whole = pathlib.Path(named).expanduser()
    words: list[Any] = [whole] if whole.exists() else [one.strip() for one in named.split(",")]
  else:
    words = [named] if isinstance(named, os.PathLike) else list(named)
  paths = [pathlib.Path(one).expanduser() for one in words if os.fspath(one)]
  if not paths:
    raise InputError(f"--run_dir must name a run, or several. Got: {named!r}.")
  return paths


def _stored(folder: EnsembleFolder, below: tuple[RunFolder, ...]) -> RunSet:
  """Returns the runs of `ensemble.json`, which must be those that lie in the folder today."""
  found = folder.read()
  inside = {os.path.realpath(run.path) for run in below}
  if not inside or {os.path.realpath(run.path) for run in found.runs} == inside:
    return found
  if found.kind == "equal":
    found = RunSet(below, _convex([1.0] * len(below)), folder=folder.path)
    found.check_trained()
    return found
  raise InputError(
      f"{folder.ensemble_json} has weights of {len(found.runs)} runs, but {folder.path} holds"
      f" {len(below)}. Remove the file, and evaluate the ensemble again."
  )


def _runs_below(folder: pathlib.Path) -> tuple[RunFolder, ...]:
  """Returns the runs of a cross-validation, else those in the subfolders, sorted by name."""
  about = folder / _CROSS_VALIDATION
  if about.is_file():
    values = files.read_json(about)
    names = values.get("runs") if isinstance(values, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
      raise InputError(
          f"{about} must list its runs, as flexunet cross_validate wrote it. Put the file back."
      )
    return tuple(_open_member(folder / name, about) for name in names)
  found = [path.parent for path in folder.glob(f"*/{RunFolder(folder).config_json.name}")]
  return tuple(RunFolder(path) for path in sorted(found, key=_by_number))


def _by_number(path: pathlib.Path) -> tuple[str, int, str]:
  """Sorts fold_2 before fold_10."""
  stem = path.name.rstrip("0123456789")
  return stem, int(path.name[len(stem) :] or -1), path.name


def _open_member(path: str | os.PathLike, source: pathlib.Path) -> RunFolder:
  run = RunFolder(pathlib.Path(path).expanduser())
  if not run.config_json.is_file():
    raise InputError(f"{source} names the run {path}, which is not there. {_ADVICE}")
  return run


def chosen(found: RunSet, weights: str) -> RunSet:
  """Returns the runs with the weights of the flag --weights.

  Args:
    found: The runs, with the weights of `ensemble.json` or equal ones.
    weights: "" keeps these; "equal"; "learnt" those of `ensemble.json`; or numbers, as in 2,1,1.

  Raises:
    InputError: There are no learnt ones, or numbers that are no weights of these runs.
  """
  words = [word.strip() for word in weights.split(",") if word.strip()]
  if not words:
    return found
  if words == ["equal"]:
    return found.weighted([1.0] * len(found.runs), "equal")
  if words == ["learnt"]:
    if found.kind == "learnt":
      return found
    raise InputError(
        "--weights=learnt needs an ensemble whose weights were learnt: run flexunet evaluate"
        " --weights=learnt with these runs first, and name the folder that it writes as --run_dir."
    )
  try:
    numbers = [float(word) for word in words]
  except ValueError:
    if len(words) == 1:
      raise unknown_name("weights", words[0], ("equal", "learnt")) from None
    raise InputError(f"--weights must be numbers, equal or learnt. Got: {weights}.") from None
  if len(numbers) != len(found.runs):
    raise InputError(
        f"--weights must hold a number for each of the {len(found.runs)} runs"
        f" ({', '.join(found.names)}). Got: {len(numbers)}."
    )
  if not all(math.isfinite(one) and one >= 0 for one in numbers) or not sum(numbers):
    raise InputError(f"--weights must be at least 0, and one above it. Got: {weights}.")
  return found.weighted(numbers, "given")


def output_folder(
    runs: RunSet, output_dir: str | os.PathLike | None
) -> EnsembleFolder:
  """Returns the folder into which an ensemble is evaluated.

  Args:
    runs: The ensemble.
    output_dir: None: the folder that named the runs.

  Raises:
    InputError: There is none, it is the folder of a run, or cannot be written.
  """
  if output_dir is None and runs.folder is None:
    raise InputError(
        f"--output_dir must name a folder for the scores of the ensemble {', '.join(runs.names)}:"
        " each run keeps its own in its folder."
    )
  folder = EnsembleFolder(pathlib.Path(output_dir or runs.folder or "").expanduser())
  if folder.config_json.is_file():
    raise InputError(
        f"--output_dir {folder.path} must not be the folder of a run, whose scores would be lost."
        " Name another folder."
    )
  files.check_writable(folder.evaluation, "--output_dir")
  files.check_unlocked(folder.evaluation, "--output_dir")
  return folder


def _convex(weights: Sequence[float]) -> tuple[float, ...]:
  total = math.fsum(weights)
  if not (math.isfinite(total) and total > 0 and min(weights) >= 0):
    raise ValueError(f"weights must be at least 0, and one above it: {list(weights)}")
  return tuple(weight / total for weight in weights)


def _shared(run_config: config.RunConfig) -> dict[str, Any]:
  """Returns what the runs of an ensemble must have in common, by its name for the user."""
  facts, network = run_config.dataset_facts, run_config.model
  of_volumes = facts.recipe is not None
  shared: dict[str, Any] = {
      "classes": list(facts.label_scheme.names),
      "channels": list(facts.channel_names) or ["image"],
      "way of bringing channels onto one grid": (
          "resampling" if facts.resample_channels else "none"
      ),
      "kind of scans": "volumes" if of_volumes else "images",
  }
  if not of_volumes:
    per_image = network.image_channels // (2 * run_config.data.context_slices + 1)
    shared["colours"] = "colour" if per_image == 3 and len(shared["channels"]) == 1 else "grey"
  return shared
