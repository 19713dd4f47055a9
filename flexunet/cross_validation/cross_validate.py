"""Runs the folds of a cross-validation and pools whom they held out; the runs are an ensemble."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from flexunet import config, ensemble_folder, run_folder
from flexunet.core import files, progress
from flexunet.core.errors import InputError
from flexunet.cross_validation import page, pooling, processes
from flexunet.cross_validation.folder import (
    CrossValidationFolder,
    Plan,
    given_settings,
    stored_settings,
)
from flexunet.datasets import built_dataset
from flexunet.evaluation.scores import DEFAULT_TOLERANCES_MM, checked_tolerances
from flexunet.pipelines import dataset_source
from flexunet.reporting import report


_TEST = "test"


@dataclasses.dataclass(frozen=True)
class Job:
  """What a command asks for, checked as far as small files allow.

  Attributes:
    folder: Where everything goes.
    plan: Continues that of the folder, where there is one.
    given: Settings by name, with paths as they were given.
    data: Which dataset.
    places: Environment of each fold that runs at a time.
    tolerances_mm: Of the surface Dice.
    evaluate_test: Whether the mean of all networks is scored on the test split.
  """

  folder: CrossValidationFolder
  plan: Plan
  given: dict[str, Any]
  data: config.DataConfig
  places: list[dict[str, str]]
  tolerances_mm: tuple[float, ...]
  evaluate_test: bool


def check(
    parts: Mapping[str, Any],
    run_dir: str | os.PathLike,
    *,
    folds: Sequence[int] | None = None,
    parallel: int = 0,
    resume: bool = False,
    tolerances_mm: Sequence[float | str] = DEFAULT_TOLERANCES_MM,
    evaluate_test: bool = False,
) -> Job:
  """Refuses what folders and small files alone show to be wrong, loading no library.

  Args:
    parts: "model", "data", "training" and "augmentation" -> config with open fields.
    run_dir: New folder for everything; that of the cross-validation to be continued with `resume`.
    folds: Those to be run; all of the dataset by default.
    parallel: Folds at a time; 0: one per GPU, or one on a machine without.
    resume: Continues what is in the folder; starts where there is nothing yet.
    tolerances_mm: Distances up to which two surfaces agree, one surface Dice each.
    evaluate_test: Also scores the mean of all networks on the test split.

  Raises:
    InputError: One of them, or the dataset, is not as it must be.
  """
  data = parts["data"]
  folder = CrossValidationFolder(pathlib.Path(run_dir).expanduser())
  files.check_unlocked(folder.path, "--run_dir")
  files.check_writable(folder.path, "--run_dir")
  before = folder.read_plan() if resume else None
  if before is None:
    if resume and folder.path.is_dir():
      folder.remove_partial()
    run_folder.check_new(folder.path)
  if parts["training"].init_from:
    run_folder.network_file(parts["training"].init_from, "--init_from")
  given = given_settings([parts[name] for name in ("model", "data", "training", "augmentation")])
  plan = _plan(folder, data, given, folds)
  if evaluate_test:
    dataset_source.check_folder(data.dataset, data.data_dir, [_TEST])
  if before is not None:
    plan = before.continued_by(plan)
  return Job(
      folder=folder,
      plan=plan,
      given=given,
      data=data,
      places=processes.environments(parallel, len(plan.folds), processes.visible_gpus()),
      tolerances_mm=checked_tolerances(tolerances_mm),
      evaluate_test=evaluate_test,
  )


def _plan(
    folder: CrossValidationFolder,
    data: config.DataConfig,
    given: Mapping[str, Any],
    folds: Sequence[int] | None,
) -> Plan:
  if data.fold >= 0:
    raise InputError(
        f"--fold is what a cross-validation sets itself; --folds names several. Got: {data.fold}."
    )
  splits = (data.train_split, data.validation_split)
  known = dataset_source.folds_of(data.dataset, data.data_dir, splits)
  path = dataset_source.check_folder(data.dataset, data.data_dir, splits)
  wanted = known if folds is None else tuple(sorted(set(folds)))
  if unknown := [fold for fold in wanted if fold not in known]:
    raise InputError(
        f"--folds must be among those of the dataset, {','.join(map(str, known))}. Got:"
        f" {unknown[0]}."
    )
  if not wanted:
    raise InputError(f"--folds must name folds, such as {','.join(map(str, known))}. Got none.")
  return Plan(
      dataset=built_dataset.read_summary(path)[0],
      fingerprint=built_dataset.read_report(path).get("fingerprint"),
      validation_split=data.validation_split,
      folds=wanted,
      given=stored_settings(given, folder.path),
  )


def run(job: Job) -> dict[str, Any]:
  """Trains and scores what is not yet, and writes the results of all folds.

  Returns:
    `cross_validation.json`, and "ensemble_test" where the ensemble was to be scored.

  Raises:
    processes.Stopped: A signal came; everything is saved.
    InputError: Folds have failed; the others are trained and scored.
  """
  with files.locked(job.folder.path, "--run_dir"):
    keeper = _PlanKeeper(job)
    tasks = [task for fold in keeper.plan.folds if (task := _task(job, keeper.plan, fold))]
    if tasks:
      keeper.start()
      problems = processes.FoldRunner(job.places, keeper.note).run(tasks)
      if problems:
        raise _failed(problems, len(keeper.plan.folds))
    else:
      progress.say("All folds are trained and scored already.")
    results = _write_results(job, keeper.plan)
  if job.evaluate_test:  # It locks the folder itself.
    results["ensemble_test"] = _evaluate_ensemble(job)
  return results


def _evaluate_ensemble(job: Job) -> dict[str, Any]:
  """Returns the entry of the test split in the `metrics.json` of the ensemble of all folds."""
  runs = ensemble_folder.open_runs(job.folder.path)
  folder = ensemble_folder.EnsembleFolder(job.folder.path)
  tolerances = list(job.tolerances_mm)
  digest = runs.digest() if isinstance(runs, ensemble_folder.RunSet) else ""
  if not pooling.is_scored(folder, _TEST, digest, tolerances):
    message = {
        "stage": "ensemble",
        "run_dir": os.fspath(job.folder.path),
        "settings": {},
        "data_dir": job.data.data_dir,
        "split": _TEST,
        "tolerances_mm": tolerances,
    }
    log = job.folder.path / "ensemble_log.txt"
    task = processes.FoldTask(fold=-1, folder=job.folder.path, log=log, stages=(message,))
    problems = processes.FoldRunner([{}], lambda *_: None).run([task])
    if problems:
      raise InputError(f"The ensemble of all folds was not scored: {problems[-1]}")
  return files.read_json(folder.metrics_json)[_TEST]


class _PlanKeeper:
  """Writes down which folds are trained, as they are."""

  def __init__(self, job: Job):
    self._job, self.plan = job, job.plan
    for fold in job.plan.folds:
      self._drop_if_changed(fold)

  def start(self) -> None:
    """Writes what is going to be run, before anything is."""
    self._job.folder.remove_results()
    self._job.folder.write(self.plan)

  def note(self, task: processes.FoldTask, stage: str) -> None:
    """Takes note of a stage that has ended well."""
    run_of_fold = self._job.folder.run(task.fold)
    if stage == "train":
      self.plan = self.plan.with_trained(task.fold, files.sha256_of(run_of_fold.model_keras))
      self._job.folder.write(self.plan)
    else:
      progress.say(_fold_line(task.fold, run_of_fold, self.plan.validation_split))

  def _drop_if_changed(self, fold: int) -> None:
    """Forgets a trained fold that is gone or was trained further; refuses a damaged one."""
    run_of_fold = self._job.folder.run(fold)
    name = run_of_fold.path.name
    if name not in self.plan.trained:
      return
    whole = run_of_fold.config_json.is_file() and run_of_fold.model_keras.is_file()
    if whole:
      run_of_fold.read_config()  # Refuses one that is not that of the start.
      run_of_fold.check_model()
    if not whole or files.sha256_of(run_of_fold.model_keras) != self.plan.trained[name]:
      trained = {run: digest for run, digest in self.plan.trained.items() if run != name}
      self.plan = dataclasses.replace(self.plan, trained=trained)


def _task(job: Job, plan: Plan, fold: int) -> processes.FoldTask | None:
  """Returns what is left to do for a fold; None where there is nothing."""
  fold_run = job.folder.run(fold)
  digest = plan.trained.get(fold_run.path.name)
  split, tolerances = plan.validation_split, list(job.tolerances_mm)
  if digest and pooling.is_scored(fold_run, split, digest, tolerances):
    return None
  message = {
      "run_dir": os.fspath(fold_run.path),
      "settings": {**job.given, "fold": fold},
      "data_dir": job.data.data_dir,
      "split": split,
      "tolerances_mm": tolerances,
  }
  stages = ["score"] if digest else ["train", "score"]
  return processes.FoldTask(
      fold=fold,
      folder=fold_run.path,
      log=fold_run.log_txt,
      stages=tuple({**message, "stage": stage} for stage in stages),
  )


def _failed(problems: Mapping[int, str], total: int) -> InputError:
  named = "; ".join(f"fold {fold}: {problem.rstrip('.')}" for fold, problem in problems.items())
  return InputError(
      f"{len(problems)} of {progress.count(total, 'fold')} failed. {named}. The other folds are"
      " trained and scored; the same command with --resume runs what is left."
  )


def _write_results(job: Job, plan: Plan) -> dict[str, Any]:
  results, rows = pooling.pool(job.folder, plan)
  files.write_bytes(job.folder.cases_csv, pooling.table_bytes(rows))
  text = page.render(job.folder, plan, results, rows)
  files.write_bytes(job.folder.report_html, text.encode("utf-8", "backslashreplace"))
  job.folder.write(plan, results)
  return {**plan.to_json(), **results}


def _fold_line(fold: int, run_of_fold: run_folder.RunFolder, split: str) -> str:
  """Returns what a fold came to, in a line for the terminal."""
  entry = files.read_json(run_of_fold.metrics_json)[split]
  mean = entry["foreground_dice"]["mean"]
  history = report.read_history(run_of_fold)
  minutes = history[-1].get("seconds", 0.0) / 60 if history else 0.0
  dice = "none" if mean is None else f"{mean:.3f}"
  subjects = progress.count(entry["evaluated"]["subjects"], "subject")
  return f"fold {fold}: Dice {dice} of {subjects} held out, trained for {minutes:.1f} minutes"
