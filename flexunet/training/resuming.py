"""Whether a run can be resumed, and whether the command still agrees with that of the start."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from typing import Any

from flexunet import config, run_folder
from flexunet.core import files, service_address
from flexunet.core.errors import InputError
from flexunet.dataset_facts import DatasetFacts
from flexunet.pipelines import dataset_source
from flexunet.training import checkpoints

_PARTS = ("model", "data", "training", "augmentation")


def existing_run(path: str | os.PathLike) -> run_folder.RunFolder | None:
  """Returns the run to resume; None when the folder is new, empty, or holds no config yet.

  So one command with --resume serves the first start on a cluster and every later one.
  """
  folder = pathlib.Path(path).expanduser()
  run = run_folder.RunFolder(folder)
  if run.config_json.is_file():
    _check_checkpoints(run)
    return run
  if folder.is_dir():
    with contextlib.suppress(OSError):  # Made just before the first file.
      run.checkpoints.rmdir()
    for path in folder.glob(".config.json.*"):  # Killed while the first file was written.
      path.unlink()
  run_folder.check_new(folder)
  return None


def is_there(run_dir: pathlib.Path, *, resume: bool) -> bool:
  """Returns whether there is a run to resume; refuses a folder that no new one can be put into."""
  if resume:
    return existing_run(run_dir) is not None
  run_folder.check_new(run_dir)
  return False


def _check_checkpoints(run: run_folder.RunFolder) -> None:
  """Refuses a run whose checkpoints are gone: it would begin again over its own results.

  Killed before its first checkpoint, a run does begin again. Its folder of checkpoints is made
  before its config, and the first one is on the disk before the second epoch has ended.
  """
  if checkpoints.CheckpointStore(run.checkpoints).names():
    return
  rows = len(run.history_csv.read_text().splitlines()) - 1 if run.history_csv.is_file() else 0
  if not run.checkpoints.is_dir() or run.report_html.is_file() or rows > 1:
    raise InputError(
        f"--resume needs the checkpoints of {run.path}, but {run.checkpoints} holds none. Put them"
        " back, or start a new run in another --run_dir."
    )


def merge(saved: config.RunConfig, now: config.RunConfig) -> config.RunConfig:
  """Returns the config to resume with: what was planned stays, what may change is taken over.

  With more epochs or minutes a schedule that ends at zero is stretched from here on.

  Raises:
    InputError: A flag differs from the start, or the data do.
  """
  _check_facts(saved.dataset_facts, now.dataset_facts)
  merged: dict[str, Any] = {}
  reasons = dict(saved.reasons)
  changed = []
  for part in _PARTS:
    before, after = getattr(saved, part), getattr(now, part)
    values = {}
    for field in dataclasses.fields(before):
      name = field.name
      old, new = getattr(before, name), getattr(after, name)
      if old is None and name in now.reasons and name not in saved.reasons:
        continue  # A knob that the version of the start did not have: the run does without.
      # What nobody asked for may be planned otherwise on another machine; the run keeps its own.
      # What is planned since the run was started stands in its config as it was before.
      reason = now.reasons.get(name, "given")
      planned = "given" not in (saved.reasons.get(name, reason), reason)
      if name == "init_from" and _same_name(old, new):
        values[name] = new  # The config keeps less of a path than the command gives.
        continue
      free = name in config.MAY_CHANGE and now.reasons.get(name, "given") == "given"
      if free and old != new:
        values[name], reasons[name] = new, now.reasons.get(name, "given")
      elif old != new and not planned and name not in config.MAY_CHANGE:
        changed.append(f"--{name} was {_shown(old)}, now it is {_shown(new)}")
    merged[part] = dataclasses.replace(before, **values)
  if changed:
    raise InputError(
        f"--resume continues with the same flags, but {'; '.join(changed)}. Give the values of the"
        " start, or start a new run in another --run_dir."
    )
  return dataclasses.replace(saved, **merged, reasons=reasons)


def _same_name(old: str | None, new: str | None) -> bool:
  return bool(old and new) and pathlib.Path(str(old)).name == pathlib.Path(str(new)).name


def _check_facts(saved: DatasetFacts, now: DatasetFacts) -> None:
  for name, what in (("name", "dataset"), ("fingerprint", "data fingerprint")):
    old, new = getattr(saved, name), getattr(now, name)
    if old != new:
      raise InputError(
          f"--resume needs the data the run was started with: its {what} was {old}, now it is"
          f" {new}. Point --data_dir at the same data, or start a new run in another --run_dir."
      )


def _shown(value: Any) -> str:
  return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def check_paths(
    data: config.DataConfig,
    training: config.TrainingConfig,
    run_dir: str | os.PathLike,
    *,
    resume: bool,
    writes: bool = True,
) -> run_folder.RunFolder | None:
  """Refuses what folders and small files alone show to be wrong, loading no library.

  Args:
    data, training: As given.
    run_dir: The run folder.
    resume: Whether a run in it is to be continued.
    writes: False for a process beside another one that writes the run folder.

  Returns:
    The run to resume; None where a new one is to be started, or another process writes.
  """
  started = _check_run_dir(pathlib.Path(run_dir).expanduser(), resume) if writes else None
  splits = (data.train_split, data.validation_split)
  dataset_source.check_folder(data.dataset, data.data_dir, splits, data.fold)
  if training.init_from:
    run_folder.network_file(training.init_from, "--init_from")
  if data.data_service:
    service_address.check_reachable(
        data.data_service, "--data_service", "Start one: flexunet data_service."
    )
  return started


def _check_run_dir(folder: pathlib.Path, resume: bool) -> run_folder.RunFolder | None:
  files.check_unlocked(folder, "--run_dir")
  started = existing_run(folder) if resume else None
  if started:
    started.read_config()
    started.check_model_kept()
  if not resume:
    run_folder.check_new(folder)
  files.check_writable(folder, "--run_dir")
  return started
