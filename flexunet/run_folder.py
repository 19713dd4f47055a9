"""The run folder: where everything of one run lies, written so that a kill leaves no half file."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from flexunet import config
from flexunet.core import files, private_paths
from flexunet.core.errors import InputError
from flexunet.network import cost

# Entries of the manifest that tie the run's files together.
_FIXED, _MODEL_SHA256 = "started_with", "model_sha256"
_NO_MODEL = "none"
LOG_NAME = "log.txt"
# Fields of the config that are paths: (part, name).
_PATHS = (("data", "data_dir"), ("data", "cache_dir"), ("training", "init_from"))


@dataclasses.dataclass(frozen=True)
class RunFolder:
  """Names the files of a run; nothing else spells them."""

  path: pathlib.Path

  @property
  def config_json(self) -> pathlib.Path:
    """Everything that was given and planned (`config.RunConfig`)."""
    return self.path / "config.json"

  @property
  def manifest_json(self) -> pathlib.Path:
    """Versions, data fingerprint, command, machine."""
    return self.path / "manifest.json"

  @property
  def checkpoints(self) -> pathlib.Path:
    """Folder of checkpoints."""
    return self.path / "checkpoints"

  @property
  def model_keras(self) -> pathlib.Path:
    """The kept network."""
    return self.path / "model.keras"

  @property
  def calibration_json(self) -> pathlib.Path:
    """What the run has learnt from subjects that were held out (`run_calibration`)."""
    return self.path / "calibration.json"

  @property
  def history_csv(self) -> pathlib.Path:
    """One row per epoch."""
    return self.path / "history.csv"

  @property
  def curves_png(self) -> pathlib.Path:
    """The history as a chart."""
    return self.path / "curves.png"

  @property
  def previews(self) -> pathlib.Path:
    """Folder of sheets of validation slices."""
    return self.path / "previews"

  def preview_png(self, epoch: int) -> pathlib.Path:
    """Returns where the sheet of an epoch, counted from 0, is drawn."""
    return self.previews / f"epoch_{epoch + 1:04d}.png"

  @property
  def tensorboard(self) -> pathlib.Path:
    """Folder of TensorBoard events."""
    return self.path / "tensorboard"

  @property
  def evaluation(self) -> pathlib.Path:
    """Folder of scores."""
    return self.path / "evaluation"

  @property
  def metrics_json(self) -> pathlib.Path:
    """Scores of each split."""
    return self.evaluation / "metrics.json"

  @property
  def cases_csv(self) -> pathlib.Path:
    """Scores of each volume and class."""
    return self.evaluation / "cases.csv"

  @property
  def report_html(self) -> pathlib.Path:
    """The report."""
    return self.path / "report.html"

  @property
  def log_txt(self) -> pathlib.Path:
    """What the run said, where another program started it."""
    return self.path / LOG_NAME

  @classmethod
  def create(cls, path: str | os.PathLike) -> RunFolder:
    """Creates the folder; refuses one that already holds files."""
    path = check_new(path)
    path.mkdir(parents=True, exist_ok=True)
    return cls(path)

  @classmethod
  def open(cls, path: str | os.PathLike) -> RunFolder:
    """Opens the folder of an existing run; InputError when it is none."""
    run = cls(pathlib.Path(path).expanduser())
    if not run.config_json.is_file():
      what = "has no config.json" if run.path.is_dir() else "does not exist"
      raise InputError(
          f"--run_dir {run.path} must be the folder of a run made by flexunet train; it {what}."
      )
    return run

  def check_trained(self) -> None:
    """Raises InputError unless the run has a network."""
    if not self.model_keras.is_file():
      raise InputError(
          f"{self.model_keras} must hold the trained network. There is none: the run has not"
          " reached its first validation. Continue it with --resume, or name another --run_dir."
      )

  def check_model(self) -> None:
    """Raises InputError unless `model.keras` is the network that the run wrote.

    The manifest holds its sha256, and `config.json` its shape.
    """
    self.check_trained()
    known = read_manifest(self.manifest_json).get(_MODEL_SHA256)
    digest = files.sha256_of(self.model_keras)
    if known is not None and digest not in known:
      raise InputError(
          f"{self.model_keras} must be the network that the run wrote, with the sha256"
          f" {known[-1][:12]}... of manifest.json. Got: {digest[:12]}... It was replaced or"
          " damaged: put the file of the run back, or name another --run_dir."
      )
    wanted = _shape_of(self.read_config().model)
    found = _shape_of(cost.config_of_keras_file(self.model_keras))
    for name, value in wanted.items():
      if found[name] != value:
        raise InputError(
            f"{self.model_keras} must be the network of config.json, whose {name} is {value}. Got:"
            f" {found[name]}. Put the file of the run back, or name another --run_dir."
        )

  def model_hashes(self) -> list[str]:
    """Returns the sha256 by which the manifest knows `model.keras`; else that of the file.

    `check_model` compares the file with these.
    """
    known = read_manifest(self.manifest_json).get(_MODEL_SHA256)
    return known or [files.sha256_of(self.model_keras)]

  def check_model_kept(self) -> None:
    """Raises InputError where the network that the run wrote is another one now, or gone."""
    known = read_manifest(self.manifest_json).get(_MODEL_SHA256, [_NO_MODEL])
    if self.model_keras.is_file():
      self.check_model()
    elif _NO_MODEL not in known:
      raise InputError(
          f"{self.model_keras} must be there: the run has written it, and keeps it until a better"
          " one is found. Put it back, or start a new run in another --run_dir."
      )

  def replace_model(self, partial: pathlib.Path) -> None:
    """Puts a written network in place of `model.keras`, and its hash into the manifest.

    Its hash stands there before the network, beside that of the one before: whenever the program
    is killed, the hash of the network that is there is known.
    """
    entries = read_manifest(self.manifest_json)
    digest = files.sha256_of(partial)
    known = entries.get(_MODEL_SHA256, [_NO_MODEL])
    files.write_json(self.manifest_json, {**entries, _MODEL_SHA256: [*known, digest]})
    partial.replace(self.model_keras)
    files.write_json(self.manifest_json, {**entries, _MODEL_SHA256: [digest]})

  def remove_partial(self) -> None:
    """Removes files that a killed process was still writing; only while no other one writes."""
    for entry in (self.config_json, self.manifest_json, self.history_csv, self.curves_png,
                  self.report_html, self.checkpoints / "current"):  # fmt: skip
      for path in entry.parent.glob(f".{entry.name}.*"):
        path.unlink(missing_ok=True)
    for path in (*self.previews.glob(".epoch_*"), *self.path.glob(".model.partial*")):
      path.unlink(missing_ok=True)

  def read_config(self) -> config.RunConfig:
    """Returns the config of the run, its paths for the folder as it lies today.

    Raises:
      InputError: It cannot be read, or is not that of the start.
    """
    values = files.read_json(self.config_json)
    try:
      read = config.RunConfig.from_json(values)
      read.check_network()
    except InputError as error:
      raise InputError(
          f"{self.config_json} must be as the run wrote it. {error} Put the file of the run back."
      ) from error
    self._check_fixed(values)
    return _with_paths(read, lambda path: private_paths.located(path, self.path))

  def _check_fixed(self, values: Mapping[str, Any]) -> None:
    """Refuses a config whose fixed fields are not those that the run was started with."""
    started = read_manifest(self.manifest_json).get(_FIXED)
    if started is None:  # Killed before it was written, or a run of an older version.
      return
    now = fixed_fields(values)
    for name in [*started, *now]:
      if name not in started or name not in now or started[name] != now[name]:
        raise InputError(
            f"{self.config_json} must hold what the run was started with: {name} was"
            f" {_shown(started, name)}, now it is {_shown(now, name)}. Put the file of the run"
            " back, or start a new run in another --run_dir."
        )

  def write_config(self, run_config: config.RunConfig) -> None:
    """Replaces `config.json` in one step; its paths say nothing of the user and the machine."""
    portable = _with_paths(run_config, lambda path: private_paths.stored(path, self.path))
    # An address names a machine, and is of the command alone.
    data = dataclasses.replace(portable.data, data_service=None)
    portable = dataclasses.replace(portable, data=data)
    files.write_json(self.config_json, portable.to_json())


def read_manifest(path: pathlib.Path) -> dict[str, Any]:
  """Returns `manifest.json`; empty where it is not written yet.

  Raises:
    InputError: It is damaged.
  """
  if not path.is_file():
    return {}
  values = files.read_json(path)
  hashes = values.get(_MODEL_SHA256, [""]) if isinstance(values, dict) else None
  texts = isinstance(hashes, list) and hashes and all(isinstance(one, str) for one in hashes)
  if not texts or not isinstance(values.get(_FIXED, {}), dict):
    raise InputError(f"{path} must be as the run wrote it. Put the file of the run back.")
  return values


def fixed_fields(values: Mapping[str, Any]) -> dict[str, Any]:
  """Returns {"part.name": value} of a config as JSON, without what may change at a resume.

  Nor with `init_from`, a path that is used up when the run has started.
  """
  return {
      f"{part}.{name}": value
      for part, fields in values.items()
      if part != "reasons"
      for name, value in fields.items()
      if name not in (*config.MAY_CHANGE, "init_from")
  }


def started_with(run_config: config.RunConfig) -> dict[str, Any]:
  """Returns the entry of the manifest that `read_config` compares with."""
  return {_FIXED: fixed_fields(run_config.to_json())}


def _with_paths(
    run_config: config.RunConfig, change: Callable[[str], str]
) -> config.RunConfig:
  """Returns a config whose paths are changed, those that are given."""
  for part, name in _PATHS:
    fields = getattr(run_config, part)
    if path := getattr(fields, name):
      changed = dataclasses.replace(fields, **{name: change(path)})
      run_config = dataclasses.replace(run_config, **{part: changed})
  return run_config


def _shape_of(network: config.ModelConfig) -> dict[str, int | str]:
  """Returns what decides the layers and the shapes of their weights."""
  first, last = network.stages()[0], network.stages()[-1]
  decoder: dict[str, int | str] = {}
  if network.num_layers > 1:  # A single stage has none.
    decoder["upsampling"] = network.upsampling
    decoder["decoder_convolutions"] = network.decoder_convolutions
  return {
      "image_channels": network.image_channels,
      "num_classes": network.num_classes,
      "num_layers": network.num_layers,
      "base_filters": first.filters,
      "base_kernels": first.kernel,
      "dilation": first.dilation,
      "stem": network.stem,
      "block": network.block,
      "encoder_blocks": last.encoder_blocks,
      "max_filters": last.filters,
      **decoder,
  }


def _shown(fields: Mapping[str, Any], name: str) -> str:
  return f"{json.dumps(fields[name]):.60}" if name in fields else "not there"


def check_new(path: str | os.PathLike) -> pathlib.Path:
  """Refuses a path at which a new run could overwrite something."""
  path = pathlib.Path(path).expanduser()
  if path.exists() and not path.is_dir():
    raise InputError(f"--run_dir {path} must be a folder. Got a file.")
  held = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
  if found := held - {files.LOCK_NAME, LOG_NAME}:
    raise InputError(
        f"--run_dir {path} must be new or empty, so that no earlier run is lost. It holds"
        f" {len(found)} entries. Pass a new folder, or --resume to continue the run"
        " in it."
    )
  return path


def network_file(path: str | os.PathLike, flag: str) -> pathlib.Path:
  """Returns the .keras file at a path: itself, or that of the run folder it is.

  Args:
    path: A run folder or a .keras file.
    flag: What named it, for the error.

  Raises:
    InputError: There is neither.
  """
  given = pathlib.Path(path).expanduser()
  if not given.exists():
    raise InputError(f"{flag} {given} must be a run folder or a .keras file; it is not there.")
  if not given.is_dir():
    return given
  run = RunFolder(given)
  if not run.config_json.is_file() or not run.model_keras.is_file():
    raise InputError(
        f"{flag} {given} must be the folder of a trained run, with config.json and model.keras."
    )
  run.check_model()
  return run.model_keras
