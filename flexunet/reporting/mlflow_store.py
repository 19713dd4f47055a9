"""A run in MLflow: settings as parameters, the figures of each epoch, report and config as files.

The store is a folder, or what MLFLOW_TRACKING_URI names. MLflow writes the absolute path of a
folder into it, so it lies outside the run folder, which names no machine. It is told nothing else
of user or machine, and its telemetry is off.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import pathlib
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from flexunet import run_folder
from flexunet.core import files
from flexunet.core.errors import InputError

# Entry of the manifest: the run's name in the store.
KEY = "mlflow_run"
_STORE = "mlruns"
_UNFIT = re.compile(r"[^\w\-. /]")  # What MLflow refuses in a name.
_ENVIRONMENT = {
    # It keeps stores in folders as they are, and asks for this where a program opens one.
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def check_installed() -> None:
  """Raises InputError where MLflow is not there."""
  if importlib.util.find_spec("mlflow") is None:
    raise InputError(
        "--log_to=mlflow needs MLflow: pip install 'flexunet[mlflow]', or leave the flag out."
    )


def address_of(run: run_folder.RunFolder) -> str:
  """Returns the address of the store of a run: by default the folder mlruns beside its own."""
  beside = run.path.absolute().parent / _STORE
  return os.environ.get("MLFLOW_TRACKING_URI") or beside.as_uri()


class MlflowRun:
  """One run in a store; a resumed one continues, and no figure is written twice."""

  def __init__(
      self,
      run: run_folder.RunFolder,
      dataset: str,
      parameters: Mapping[str, bool | float | str],
  ):
    """Opens the run that the manifest names, or a new one.

    Args:
      run: Its folder.
      dataset: By whose name runs stand together, as an experiment.
      parameters: Settings of the run.
    """
    mlflow = _mlflow()
    self._run, self._mlflow = run, mlflow
    self._client = mlflow.MlflowClient(tracking_uri=address_of(run))
    self._id = self._known() or self._create(dataset, parameters)
    steps = [one.step for one in self._client.get_metric_history(self._id, "loss")]
    self._last_step = max(steps, default=-1)

  def _known(self) -> str | None:
    """Returns the name of the run in the store, where it is there."""
    name = run_folder.read_manifest(self._run.manifest_json).get(KEY)
    if name is None:
      return None
    with contextlib.suppress(self._mlflow.exceptions.MlflowException):
      self._client.update_run(name, status="RUNNING")
      return name
    return None

  def _create(self, dataset: str, parameters: Mapping[str, bool | float | str]) -> str:
    """Returns the name of a new run, of which the manifest takes note."""
    name = self._client.create_run(self._experiment(dataset), run_name=self._run.path.name)
    entities = self._mlflow.entities
    params = [entities.Param(_fit(key), str(value)) for key, value in parameters.items()]
    self._client.log_batch(name.info.run_id, params=params)
    manifest = run_folder.read_manifest(self._run.manifest_json)
    files.write_json(self._run.manifest_json, {**manifest, KEY: name.info.run_id})
    return name.info.run_id

  def _experiment(self, dataset: str) -> str:
    if found := self._client.get_experiment_by_name(dataset):
      return found.experiment_id
    try:
      return self._client.create_experiment(dataset)
    except self._mlflow.exceptions.MlflowException:  # Another fold has just made it.
      found = self._client.get_experiment_by_name(dataset)
      if found is None:
        raise
      return found.experiment_id

  def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds the figures of the epochs that are not in the store yet.

    Args:
      rows: Those of `history.csv`.
    """
    now_ms = int(1000 * time.time())
    for row in rows:
      if row["step"] <= self._last_step:
        continue
      self._last_step = row["step"]
      self._client.log_batch(self._id, metrics=[
          self._mlflow.entities.Metric(_fit(name), float(value), now_ms, row["step"])
          for name, value in row.items() if name != "step" and math.isfinite(value)
      ])  # fmt: skip

  def finish(self, paths: Sequence[pathlib.Path]) -> None:
    """Adds files, those that are there, and marks the run as finished."""
    for path in paths:
      if path.is_file():
        self._client.log_artifact(self._id, str(path))
    self._client.set_terminated(self._id)


def _fit(name: str) -> str:
  return _UNFIT.sub("_", name)


def _mlflow() -> Any:
  """Returns MLflow, an extra that runs without --log_to do without."""
  for name, value in _ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  # Heavy, and installed only where it is asked for.
  import mlflow

  return mlflow
