"""The run folder: where everything of one run lies, written so that a kill leaves no half file."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib

from flexunet import config
from flexunet.core import files
from flexunet.core.errors import InputError


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

  def remove_partial(self) -> None:
    """Removes files that a killed process was still writing; only while no other one writes."""
    for entry in (self.config_json, self.manifest_json, self.history_csv, self.curves_png,
                  self.report_html, self.checkpoints / "current"):  # fmt: skip
      for path in entry.parent.glob(f".{entry.name}.*"):
        path.unlink(missing_ok=True)
    for path in (*self.previews.glob(".epoch_*"), *self.path.glob(".model.partial*")):
      path.unlink(missing_ok=True)

  def read_config(self) -> config.RunConfig:
    """Returns the config of the run; InputError when it cannot be read."""
    try:
      values = json.loads(self.config_json.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
      raise InputError(f"{self.config_json} must be readable JSON: {error}.") from error
    return config.RunConfig.from_json(values)

  def write_config(self, run_config: config.RunConfig) -> None:
    """Replaces `config.json` in one step."""
    files.write_json(self.config_json, run_config.to_json())


def check_new(path: str | os.PathLike) -> pathlib.Path:
  """Refuses a path at which a new run could overwrite something."""
  path = pathlib.Path(path).expanduser()
  if path.exists() and not path.is_dir():
    raise InputError(f"--run_dir {path} must be a folder. Got a file.")
  held = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
  if found := held - {files.LOCK_NAME}:
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
  return run.model_keras
