"""The parts of a benchmark of quality, as the user names them: sets, systems, minutes, seeds."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import pathlib
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from flexunet.core import files
from flexunet.core.errors import InputError, unknown_name

_NNUNET, _MONAI = "nnunet_peer.py", "monai_peer.py"
# Ours too: several networks in the minutes of one, which then predict together.
FOLDS, PLANES = "flexunet_folds", "flexunet_planes"
# Name -> (program beside this file, None: our trainer; its options; what the help says).
SYSTEMS: Mapping[str, tuple[str | None, tuple[str, ...], str]] = {
    "flexunet": (None, (), "our trainer"),
    FOLDS: (None, (), "ours, a network for each fold of the dataset, the minutes divided by them"),
    PLANES: (None, (), "ours, a network for each plane that the set names, likewise"),
    "nnunet_2d": (_NNUNET, ("--configuration=2d",), "nnU-Net 2d as it plans for 8 GB"),
    "nnunet_2d_small": (
        _NNUNET, ("--configuration=2d", "--memory_gb=1"), "nnU-Net 2d as it plans for 1 GB",
    ),
    "nnunet_3d": (
        _NNUNET, ("--configuration=3d_fullres", "--memory_gb=1", "--base_features=16"),
        "nnU-Net 3d_fullres as it plans for 1 GB, with half the features",
    ),
    "monai_unet": (_MONAI, ("--network=unet",), "MONAI UNet on slices"),
    "monai_unet_3d": (_MONAI, ("--network=unet", "--dimensions=3"), "MONAI UNet on volumes"),
    "monai_dynunet": (_MONAI, ("--network=dynunet",), "MONAI DynUNet on slices"),
    "monai_dynunet_3d": (
        _MONAI, ("--network=dynunet", "--dimensions=3"), "MONAI DynUNet on volumes",
    ),
    "monai_swinunetr": (_MONAI, ("--network=swinunetr",), "MONAI SwinUNETR on slices"),
    "monai_swinunetr_3d": (
        _MONAI, ("--network=swinunetr", "--dimensions=3"), "MONAI SwinUNETR on volumes",
    ),
}  # fmt: skip
# A program of the user's own, which reads and writes what peer_task.py describes.
PROGRAM = "program"
# What a set must have: systems learn from the first, may look at the second, and are scored on the
# last.
SPLITS = ("train", "validation", "test")
_NAME = re.compile(r"[\w.+-]+")


@dataclasses.dataclass(frozen=True)
class BenchSet:
  """A built dataset under a name of its own.

  Attributes:
    name: In tables and images.
    dataset: name[/config[/version]] below `data_dir`; None where that is the version folder.
    data_dir: Folder of built datasets.
    title: What images and tables call it.
    planes: (dataset, data_dir) of the same scans cut in other planes.
  """

  name: str
  dataset: str | None
  data_dir: str
  title: str = ""
  planes: tuple[tuple[str | None, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class System:
  """What is trained.

  Attributes:
    name: In tables and images.
    program: File that is run in the environment of the peers; None: our trainer.
    options: Words of its command line.
    ensemble: FOLDS or PLANES: what the networks of our trainer differ in; "": there is one.
  """

  name: str
  program: pathlib.Path | None
  options: tuple[str, ...] = ()
  ensemble: str = ""

  @property
  def needs_peers_env(self) -> bool:
    """Whether its packages are those of the environment of the peers."""
    return self.program is not None and self.program.parent == pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Job:
  """One training: a system on a set, for some minutes, with a seed."""

  data: BenchSet
  system: System
  minutes: float
  seed: int

  @property
  def key(self) -> str:
    """Name of its files; differs between jobs."""
    system = re.sub(r"[^A-Za-z0-9.]+", "-", self.system.name).strip("-")
    if system != self.system.name:
      system += "-" + hashlib.sha256(self.system.name.encode()).hexdigest()[:6]
    return f"{self.data.name}__{system}__{self.minutes:g}min__seed{self.seed}"

  def settings(self, identity: str, processors: int) -> dict[str, Any]:
    """Returns what must be equal for a result to be one of this job.

    Args:
      identity: Digest of the records of the set.
      processors: How many the system may use.
    """
    program = self.system.program
    own: dict[str, Any] = {}
    if self.system.ensemble:
      own["ensemble"] = self.system.ensemble
    if self.system.ensemble == PLANES:
      own["planes"] = [dataset for dataset, _ in self.data.planes]
    return {
        "set": self.data.name,
        "records": identity,
        "system": self.system.name,
        "program": program.name if program else "flexunet",
        "options": list(self.system.options),
        "minutes": self.minutes,
        "seed": self.seed,
        "processors": processors,
        **own,
    }


def parse_sets(text: str) -> list[BenchSet]:
  """Returns the sets of `--sets`.

  Args:
    text: NAME=DATA_DIR:DATASET, with commas between several, or a JSON file of the form
      {NAME: "DATA_DIR:DATASET"} or {NAME: {"data_dir": ..., "dataset": ..., "title": ...,
      "planes": ["DATA_DIR:DATASET", ...]}}, whose relative folders count from where it lies.

  Raises:
    InputError: It is neither, or a name stands twice.
  """
  if text.endswith(".json"):
    found = _sets_of_file(pathlib.Path(text).expanduser())
  else:
    pairs = [word.partition("=") for word in text.split(",") if word.strip()]
    found = [_set_of(name.strip(), place.strip(), pathlib.Path()) for name, _, place in pairs]
  names = [one.name for one in found]
  twice = sorted({name for name in names if names.count(name) > 1})
  if not found or twice:
    raise InputError(f"--sets must name sets, each once. Got: {text}.")
  return found


def _sets_of_file(path: pathlib.Path) -> list[BenchSet]:
  values = files.read_json(path)
  if not isinstance(values, dict):
    raise InputError(f"{path} must hold an object of NAME: DATA_DIR:DATASET. Got: {values!r}.")
  return [_set_of(name, place, path.parent) for name, place in values.items()]


def _set_of(name: str, place: Any, base: pathlib.Path) -> BenchSet:
  if isinstance(place, str):
    place = dict(zip(("dataset", "data_dir"), _place_of(place), strict=True))
  known = {"data_dir", "dataset", "title", "planes"}
  right = isinstance(place, dict) and set(place) <= known and place.get("data_dir")
  planes = place.get("planes", []) if right else []
  named = isinstance(planes, list) and all(isinstance(one, str) and one for one in planes)
  if not right or not named or not _NAME.fullmatch(name):
    raise InputError(
        "A set must be NAME=DATA_DIR:DATASET[/CONFIG], its name of letters, digits, '_', '.', '+'"
        f" and '-'. Got: {name}={json.dumps(place)}."
    )

  def absolute(folder: str) -> str:
    return str((base / pathlib.Path(folder).expanduser()).absolute())

  return BenchSet(
      name,
      place.get("dataset"),
      absolute(place["data_dir"]),
      place.get("title") or name,
      tuple((dataset, absolute(folder)) for dataset, folder in map(_place_of, planes)),
  )


def _place_of(text: str) -> tuple[str | None, str]:
  """Returns (dataset, data_dir) of DATA_DIR:DATASET, or of a version folder."""
  folder, _, dataset = text.rpartition(":")
  return (dataset, folder) if folder else (None, dataset)


def parse_systems(text: str) -> list[System]:
  """Returns the systems of `--systems`.

  Args:
    text: NAME or NAME:OPTIONS, with commas between several, where OPTIONS are words of the
      command line of that system and may hold commas; LABEL=NAME:OPTIONS gives it a label.

  Raises:
    InputError: A system is unknown, or a label stands twice.
  """
  known = "|".join(map(re.escape, [*SYSTEMS, PROGRAM]))
  words = re.split(rf",\s*(?=(?:{_NAME.pattern}=)?(?:{known})(?:[:,]|\s*$))", text.strip())
  found = [_system_of(word.strip()) for word in words if word.strip()]
  names = [one.name for one in found]
  if not found or len(set(names)) < len(names):
    raise InputError(f"--systems must name systems, each once. Got: {text}.")
  return found


def _system_of(word: str) -> System:
  named, _, options = word.partition(":")
  label, _, kind = named.rpartition("=")
  try:
    given = tuple(shlex.split(options))
  except ValueError as error:
    raise InputError(f"--systems: the options of {word} must be words: {error}.") from error
  if kind == PROGRAM:
    path = pathlib.Path(given[0]).expanduser().absolute() if given else None
    if path is None or not path.is_file():
      raise InputError(f"--systems={PROGRAM}:FILE must name a Python file. Got: {word}.")
    return System(label or path.stem, path, given[1:])
  if kind not in SYSTEMS:
    raise unknown_name("system", kind, [*SYSTEMS, PROGRAM])
  program, own, _ = SYSTEMS[kind]
  place = pathlib.Path(__file__).with_name(program) if program else None
  ensemble = kind if kind in (FOLDS, PLANES) else ""
  return System(label or (word if given else kind), place, (*own, *given), ensemble)


def parse_minutes(words: Sequence[str]) -> list[float]:
  """Returns the minutes of `--minutes`, distinct and in rising order.

  Raises:
    InputError: One is no number above 0.
  """
  try:
    minutes = sorted({float(word) for word in words})
  except ValueError:
    minutes = []
  if not minutes or not all(0 < value < math.inf for value in minutes):
    raise InputError(f"--minutes must be numbers above 0, such as 1,5,20. Got: {','.join(words)}.")
  return minutes


def all_jobs(
    sets: Sequence[BenchSet],
    systems: Sequence[System],
    minutes: Sequence[float],
    seeds: Sequence[int],
) -> list[Job]:
  """Returns every combination; short ones first, so that an early end leaves whole comparisons.

  Raises:
    InputError: A set names no other planes, and a system needs them.
  """
  alone = [data.name for data in sets if not data.planes]
  if alone and any(system.ensemble == PLANES for system in systems):
    raise InputError(
        f"--systems={PLANES} needs sets of a JSON file that name the same scans in other planes,"
        f' {{NAME: {{..., "planes": ["DATA_DIR:DATASET", ...]}}}}. Got none of {", ".join(alone)}.'
    )
  return [
      Job(data, system, budget, seed)
      for budget in minutes
      for seed in seeds
      for data in sets
      for system in systems
  ]
