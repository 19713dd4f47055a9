"""What a run has learnt from subjects that were held out: `calibration.json` in its folder.

`flexunet calibrate` writes it; prediction and evaluation apply it. It belongs to one network: that
of the run, or those of the folds of a cross-validation, by their sha256.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from flexunet import run_folder
from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.ensemble_folder import RunSet
from flexunet.evaluation.conformal import Margins, VolumeRatios
from flexunet.imaging.clean_up import CleanUp

# The form of the file; raised whenever its keys change their meaning.
FORM = 1


@dataclasses.dataclass(frozen=True)
class RunCalibration:
  """The content of the file.

  Attributes:
    learnt_on: split, subjects, volumes, counted_by, dataset, fingerprint, model_sha256, flexunet.
    temperature: Its entry: `temperature`, and the figures before and after; None where each of
      several networks has its own.
    clean_up: Its entry; None: none was chosen.
    margins: See `conformal`.
    volume_ratios: Likewise; None for networks trained on images.
    coverage: Of a cross-validation: how many subjects of each fold the others' scores cover.
  """

  learnt_on: Mapping[str, Any]
  temperature: Mapping[str, Any] | None
  clean_up: Mapping[str, Any] | None
  margins: Margins
  volume_ratios: VolumeRatios | None
  coverage: Mapping[str, Any] | None = None

  @property
  def scale(self) -> float:
    """The temperature; 1.0 where there is none."""
    return 1.0 if self.temperature is None else float(self.temperature["temperature"])

  def to_json(self) -> dict[str, Any]:
    """Returns the content as strict JSON."""
    entries = {
        "form": FORM,
        "learnt_on": dict(self.learnt_on),
        "temperature": self.temperature,
        "clean_up": self.clean_up,
        "conformal": self.margins.to_json(),
        "volume_interval": None if self.volume_ratios is None else self.volume_ratios.to_json(),
        "coverage": self.coverage,
    }
    return {name: entry for name, entry in entries.items() if entry is not None}

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> RunCalibration:
    """Reads what `to_json` wrote; ValueError, KeyError, TypeError where it is something else."""
    if values["form"] != FORM:
      raise ValueError(f"its form is {values['form']}, not {FORM}")
    ratios = values.get("volume_interval")
    read = cls(
        learnt_on=dict(values["learnt_on"]),
        temperature=values.get("temperature"),
        clean_up=values.get("clean_up"),
        margins=Margins.from_json(values["conformal"]),
        volume_ratios=None if ratios is None else VolumeRatios.from_json(ratios),
        coverage=values.get("coverage"),
    )
    if not (math.isfinite(read.scale) and read.scale > 0):
      raise ValueError("the temperature must be above 0")
    if not isinstance(read.learnt_on["model_sha256"], (str, dict)):
      raise TypeError("model_sha256 must be text")
    return read


def write(folder: pathlib.Path, calibration: RunCalibration) -> None:
  """Replaces the file of a run folder in one step."""
  files.write_json(run_folder.RunFolder(folder).calibration_json, calibration.to_json())


def read(run: run_folder.RunFolder) -> RunCalibration | None:
  """Returns what a run has learnt; None where it was not calibrated.

  Raises:
    InputError: The file is damaged, or was learnt with another network.
  """
  path = run.calibration_json
  if not path.is_file():
    return None
  found = parsed(path)
  sha256 = found.learnt_on["model_sha256"]
  if sha256 not in run.model_hashes():
    raise InputError(
        f"{path} was learnt with another network than {run.model_keras}, such as that of an earlier"
        f" epoch. {_AGAIN}"
    )
  return found


def read_folds(
    folder: pathlib.Path, members: Mapping[str, run_folder.RunFolder]
) -> RunCalibration | None:
  """Returns what the held-out subjects of a cross-validation have shown; None before calibration.

  Args:
    folder: Of the cross-validation.
    members: Name of the folder of each fold -> its run.

  Raises:
    InputError: The file is damaged, or was learnt with other networks.
  """
  path = run_folder.RunFolder(folder).calibration_json
  if not path.is_file():
    return None
  found = parsed(path)
  sha256 = found.learnt_on["model_sha256"]
  if not isinstance(sha256, dict) or set(sha256) != set(members) or any(
      sha256[name] not in run.model_hashes() for name, run in members.items()
  ):
    raise InputError(f"{path} was learnt with other networks than those of its folds. {_AGAIN}")
  return found


def read_named(named: run_folder.RunFolder | RunSet) -> RunCalibration | None:
  """Returns what --run_dir has learnt; None for runs that are named one by one, too.

  Raises:
    InputError: As of `read` and `read_folds`.
  """
  if isinstance(named, run_folder.RunFolder):
    return read(named)
  if named.folder is None:
    return None
  return read_folds(named.folder, {run.path.name: run for run in named.runs})


def clean_up_of(
    named: run_folder.RunFolder | RunSet, class_names: Sequence[str]
) -> CleanUp:
  """Returns the clean-up that --run_dir has learnt; one that changes nothing where there is none.

  Args:
    named: A run, or several; those that are named one by one have no clean-up in common.
    class_names: Of the run, background first.

  Raises:
    InputError: As of `read_named`.
  """
  found = read_named(named)
  if found is None or found.clean_up is None:
    return CleanUp()
  return CleanUp.from_json(found.clean_up, class_names)


def temperature_of(run: run_folder.RunFolder) -> float:
  """Returns the temperature of a run; 1.0 where it was not calibrated. Errors as of `read`."""
  found = read(run)
  return 1.0 if found is None else found.scale


_AGAIN = "Run flexunet calibrate again, or pass --nocalibrated --noclean_up."


def parsed(path: pathlib.Path) -> RunCalibration:
  """Returns what a file holds, of whatever network; InputError where it is damaged."""
  try:
    return RunCalibration.from_json(files.read_json(path))
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    if isinstance(error, InputError):
      raise
    what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    raise InputError(
        f"{path} must be as flexunet calibrate wrote it ({what.splitlines()[0]:.80}). {_AGAIN}"
    ) from error

