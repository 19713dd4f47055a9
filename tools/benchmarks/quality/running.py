"""Runs one training of a benchmark of quality: our trainer, or a peer, as a program of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import flexunet
from flexunet import run_folder
from flexunet.config import TrainingConfig
from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.pipelines import dataset_source
from flexunet.reporting import report, training_section
from flexunet.tools.benchmarks.quality.jobs import FOLDS, PLANES, SPLITS, Job

_PEER_PACKAGES = ("nnunetv2", "monai", "torch", "einops")
_REQUIREMENTS = pathlib.Path(__file__).with_name("peers.txt")
# How long an interrupted program may need to save and end.
_PATIENCE_S = 60.0
# What of a run's plan stands in its result.
_MODEL = ("image_size", "base_filters", "num_layers")
_TRAINING = ("batch_size", "learning_rate", "precision")


class JobError(Exception):
  """A system has failed; the text is its last line."""


@dataclasses.dataclass(frozen=True)
class Places:
  """Where a training reads and writes.

  Attributes:
    data: The exported set; of our trainer: unused.
    work: Folder of this training alone.
    shared: Folder of all trainings on the set.
    log: What the programs say.
  """

  data: pathlib.Path
  work: pathlib.Path
  shared: pathlib.Path
  log: pathlib.Path

  @property
  def predictions(self) -> pathlib.Path:
    """Folder of the predicted labels of the test split."""
    return self.work / "predictions"

  @property
  def run_dir(self) -> pathlib.Path:
    """The run folder of our trainer."""
    return self.work / "run"


@dataclasses.dataclass(frozen=True)
class Member:
  """A network of ours: one of an ensemble, or all there is.

  Attributes:
    dataset, data_dir: What it is trained on.
    flags: Of its own.
    places: Where; each has a run folder and a log.
  """

  dataset: str | None
  data_dir: str
  flags: tuple[str, ...]
  places: Places


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a training took.

  Attributes:
    training_s: Seconds from its first step to the end of training.
    with_setup_s: Those, and what comes before (imports, planning, preprocessing) and after
      (saving, but not predicting).
    steps: Training steps.
    details: Choices of the system, as JSON.
    versions: Of its packages.
    validation_dice: Of the network that is kept, on the validation split at the network's size, as
      our trainer reports it. Choices are made by it, so that the test split stays unseen. None: of
      a peer, and of several networks.
  """

  training_s: float
  with_setup_s: float
  steps: int
  details: dict[str, Any]
  versions: dict[str, str]
  validation_dice: float | None = None


def members(job: Job, places: Places) -> list[Member]:
  """Returns the networks that a system of ours trains, one after the other.

  Raises:
    InputError: The dataset has one fold, where there must be more.
  """
  data = job.data
  parts: list[tuple[str | None, str, tuple[str, ...]]] = [(data.dataset, data.data_dir, ())]
  if job.system.ensemble == PLANES:
    parts += [(*one, ()) for one in data.planes]
  elif job.system.ensemble == FOLDS:
    folds = dataset_source.folds_of(data.dataset, data.data_dir, SPLITS[:2])
    parts = [(data.dataset, data.data_dir, (f"--fold={fold}",)) for fold in folds]
  if not job.system.ensemble:
    return [Member(*parts[0], places)]
  return [
      Member(*part, dataclasses.replace(
          places, work=places.work / f"member_{number}",
          log=places.log.with_name(f"{places.log.stem}__member_{number}.txt"),
      ))
      for number, part in enumerate(parts)
  ]  # fmt: skip


def train_flexunet(job: Job, networks: Sequence[Member], patience_minutes: float) -> Outcome:
  """Trains by `flexunet train`; each run is left in its own `places.run_dir`.

  Args:
    job: Of our trainer.
    networks: Those of the system, which share the minutes evenly.
    patience_minutes: How long the set-up of each may take.

  Raises:
    JobError: One has failed.
  """
  found = [_train_one(job, one, job.minutes / len(networks), patience_minutes) for one in networks]
  first = found[0]
  if len(found) == 1:
    return first
  return dataclasses.replace(
      first,
      training_s=sum(one.training_s for one in found),
      with_setup_s=sum(one.with_setup_s for one in found),
      steps=sum(one.steps for one in found),
      details={**first.details, "networks": len(found)},
      validation_dice=None,
  )


def _train_one(job: Job, one: Member, minutes: float, patience_minutes: float) -> Outcome:
  dataset = [f"--dataset={one.dataset}"] if one.dataset else []
  command = [
      sys.executable, "-m", "flexunet", "train", *dataset, f"--data_dir={one.data_dir}",
      f"--run_dir={one.places.run_dir}", f"--max_minutes={minutes:g}", f"--seed={job.seed}",
      *one.flags, *job.system.options,
  ]  # fmt: skip
  whole_s = run_program(command, one.places, minutes + patience_minutes)
  run = run_folder.RunFolder.open(one.places.run_dir)
  history = report.read_history(run)
  config, manifest = run.read_config(), files.read_json(run.manifest_json)
  details = {
      **{name: getattr(config.model, name) for name in _MODEL},
      **{name: getattr(config.training, name) for name in _TRAINING},
      "mirroring": config.laterality.mirroring,
  }
  versions = {"flexunet": flexunet.__version__, "revision": str(manifest.get("revision"))}
  versions["tensorflow"] = importlib.metadata.version("tensorflow")
  return Outcome(
      training_s=history[-1]["seconds"],
      with_setup_s=whole_s,
      steps=int(history[-1]["step"]),
      details=details,
      versions=versions,
      validation_dice=_validation_dice(history, config.training),
  )


def _validation_dice(
    history: Sequence[Mapping[str, float]], training: TrainingConfig
) -> float | None:
  kept = training_section.kept_epoch(history, training)
  score = next((row.get(training_section.VALIDATION_SCORE, math.nan) for row in history
                if row["epoch"] == kept), math.nan)  # fmt: skip
  return score if math.isfinite(score) else None


def train_peer(
    job: Job, places: Places, python: pathlib.Path, processors: int, patience_minutes: float
) -> Outcome:
  """Trains a peer, which also writes its predictions.

  Args:
    job: Of a system with a program.
    places: Where; `data` holds the exported set.
    python: The interpreter of its environment.
    processors: How many it may use.
    patience_minutes: How long set-up and prediction may take together.

  Raises:
    JobError: It has failed.
  """
  task, answer = places.work / "task.json", places.work / "answer.json"
  files.write_json(task, {
      "data": str(places.data),
      "work": str(places.work),
      "shared": str(places.shared),
      "predictions": str(places.predictions),
      "answer": str(answer),
      "minutes": job.minutes,
      "seed": job.seed,
      "processors": processors,
      "options": list(job.system.options),
  })  # fmt: skip
  command = [str(python), str(job.system.program), str(task)]
  threads = {"OMP_NUM_THREADS": str(processors)}
  whole_s = run_program(command, places, job.minutes + patience_minutes, threads)
  try:
    given = json.loads(answer.read_text(encoding="utf-8"))
    return Outcome(
        training_s=float(given["training_s"]),
        with_setup_s=whole_s - float(given["inference_s"]) + float(given["cached_setup_s"]),
        steps=int(given["steps"]),
        details=dict(given["details"]),
        versions=dict(given["versions"]),
    )
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise JobError(f"its answer cannot be read: {type(error).__name__}: {error}") from error


def run_program(
    command: Sequence[str],
    places: Places,
    most_minutes: float,
    variables: Mapping[str, str] | None = None,
) -> float:
  """Runs a program to its end, its words in the log, and returns the seconds that it took.

  Args:
    command: Its words.
    places: Where the log lies, and the folder in which peers run.
    most_minutes: It is ended after that.
    variables: Of its environment, beside those that there are.

  Raises:
    JobError: It has failed.
  """
  environment = {**os.environ, **(variables or {})}
  environment.pop("PYTHONPATH", None)  # It would lead into another environment.
  folder: pathlib.Path | None = places.work
  if command[0] == sys.executable:
    environment["PYTHONPATH"] = os.pathsep.join(word for word in sys.path if word)
    folder = None  # Paths among the flags that the user gives count from where the user is.
  places.log.parent.mkdir(parents=True, exist_ok=True)
  started = time.monotonic()
  with open(places.log, "w", encoding="utf-8") as log:
    log.write(f"{shlex.join(command)}\n")
    log.flush()
    process = subprocess.Popen(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        env=environment, start_new_session=True,
    )  # fmt: skip
    try:
      code = process.wait(timeout=60 * most_minutes)
    except subprocess.TimeoutExpired:
      raise JobError(f"it had not ended after {most_minutes:g} minutes") from None
    finally:
      _end_group(process)
  if code:
    raise JobError(_last_line(places.log) or f"it ended with code {code}")
  return time.monotonic() - started


def _end_group(process: subprocess.Popen) -> None:
  """Ends a program and what it has started, also those that it has left behind."""
  if process.poll() is None:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(timeout=_PATIENCE_S)
  with contextlib.suppress(ProcessLookupError, PermissionError):
    os.killpg(process.pid, signal.SIGKILL)
  process.wait()


def _last_line(log: pathlib.Path) -> str:
  lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
  spoken = [line.strip() for line in lines if line.strip()]
  errors = [line for line in spoken if line.startswith("error: ")]
  return (errors or spoken or [""])[-1].removeprefix("error: ")


def peers_python(folder: str | None) -> pathlib.Path:
  """Returns the interpreter of the environment of the peers, which is made where it is missing.

  Args:
    folder: Of `--peers_env`.

  Raises:
    InputError: None is named, or it cannot be made.
  """
  if not folder:
    raise InputError(
        "--peers_env must name the folder of an environment with the packages of"
        f" {_REQUIREMENTS.name}, which is made there where it is missing (6 GB)."
    )
  root = pathlib.Path(folder).expanduser().absolute()
  python = root / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
  look = f"import importlib.metadata as m; [m.version(name) for name in {_PEER_PACKAGES}]"
  if python.is_file() and not subprocess.run([python, "-c", look], capture_output=True).returncode:
    return python
  for command in (
      [sys.executable, "-m", "venv", str(root)],
      [str(python), "-m", "pip", "install", "-r", str(_REQUIREMENTS)],
  ):
    try:
      # What pip says belongs to people, not into what is printed.
      subprocess.run(command, check=True, stdout=sys.stderr)
    except (OSError, subprocess.CalledProcessError) as error:
      raise InputError(f"--peers_env {root} could not be made: {error}.") from error
  return python
