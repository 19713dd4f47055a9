"""Runs the trainings of a benchmark of quality one after the other, and sums up what is there."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from flexunet.core import files, machine, progress
from flexunet.core.errors import InputError
from flexunet.pipelines import dataset_source
from flexunet.pipelines.dataset_source import DatasetSource
from flexunet.tools.benchmarks.quality import chart, exported_set, results, running, scoring
from flexunet.tools.benchmarks.quality.exported_set import TestVolume
from flexunet.tools.benchmarks.quality.jobs import BenchSet, Job
from flexunet.tools.benchmarks.quality.running import JobError, Outcome, Places


@dataclasses.dataclass(frozen=True)
class Options:
  """How a benchmark runs.

  Attributes:
    folder: Of the results.
    peers_env: Folder of the environment of the peers; None: there is none.
    patience_minutes: How long a system may take beside its training.
    keep_work: Keeps the folder of each training.
  """

  folder: pathlib.Path
  peers_env: str | None = None
  patience_minutes: float = 60.0
  keep_work: bool = False


class _OpenedSet:
  """A set, opened; its test split is read, and its cases are exported, when first asked for."""

  def __init__(self, data: BenchSet, folder: pathlib.Path):
    self.source: DatasetSource = dataset_source.open_dataset(data.dataset, data.data_dir)
    self.class_names = self.source.label_scheme(self.source.keys.label).names
    made = f"{self.source.identity[:8]}_form{exported_set.FORM}"
    self.shared = folder / "work" / f"set_{data.name}_{made}"
    self._volumes: list[TestVolume] | None = None

  @property
  def volumes(self) -> list[TestVolume]:
    """The test split."""
    if self._volumes is None:
      self._volumes = exported_set.read_test_volumes(self.source)
    return self._volumes

  def exported(self) -> pathlib.Path:
    """Returns the folder of its cases."""
    folder = self.shared / "cases"
    exported_set.export(self.source, folder)
    return folder


def run(planned: Sequence[Job], options: Options) -> dict[str, Any]:
  """Runs what is not finished yet; a system that fails is recorded, and the others are run.

  Args:
    planned: The trainings, in order.
    options: How.

  Returns:
    The summary of all results in the folder, which is also written there, with tables and images.

  Raises:
    InputError: A set cannot be opened, or a result of the folder was made with other settings.
  """
  sets = {job.data.name: job.data for job in planned}
  opened = {name: _OpenedSet(data, options.folder) for name, data in sets.items()}
  todo = [job for job in planned if not _is_finished(job, opened[job.data.name], options)]
  python = _interpreter(todo, options)
  minutes = math.ceil(sum(job.minutes for job in todo))
  done = len(planned) - len(todo)
  progress.say(
      f"{progress.count(len(todo), 'training')}, {progress.count(minutes, 'minute')} of training"
      f" time{f'; {done} done before' if done else ''}."
  )
  for place, job in enumerate(todo, start=1):
    result = _run_job(job, opened[job.data.name], options, python)
    files.write_json(results.path_of(options.folder, job.key), result)
    progress.say(f"{place}/{len(todo)} {job.key}: {_said(result)}")
  found = results.read_all(options.folder)
  summary = results.summarize(found)
  files.write_json(options.folder / "summary.json", summary)
  table = results.markdown(results.rows(summary))
  files.write_bytes(options.folder / "table.md", table.encode())
  titles = {name: data.title for name, data in sets.items()}
  chart.draw(summary, options.folder / "dice", titles)
  return summary


def _is_finished(job: Job, data: _OpenedSet, options: Options) -> bool:
  settings = job.settings(data.source.identity, machine.available_cpus())
  return results.finished(results.path_of(options.folder, job.key), settings)


def _interpreter(todo: Sequence[Job], options: Options) -> pathlib.Path:
  """Returns what runs the peers: this interpreter where none needs the environment of peers."""
  peers = [job.system for job in todo if job.system.program is not None]
  if peers and (options.peers_env or any(system.needs_peers_env for system in peers)):
    return running.peers_python(options.peers_env)
  return pathlib.Path(sys.executable)


def _run_job(
    job: Job, data: _OpenedSet, options: Options, python: pathlib.Path
) -> dict[str, Any]:
  """Returns the result of a training, or that it has failed."""
  result: dict[str, Any] = {
      "form": results.FORM,
      "settings": job.settings(data.source.identity, machine.available_cpus()),
      "dataset": data.source.name,
      "machine": results.machine_facts(),
  }
  work = options.folder / "work" / job.key
  shutil.rmtree(work, ignore_errors=True)
  work.mkdir(parents=True)
  places = Places(
      data=data.shared / "cases",
      work=work,
      shared=data.shared,
      log=options.folder / "logs" / f"{job.key}.txt",
  )
  try:
    outcome, scored = _train(job, data, places, options, python)
  except (JobError, InputError) as error:
    return {**result, "status": "failed", "error": str(error).splitlines()[0]}
  if not options.keep_work:
    shutil.rmtree(work, ignore_errors=True)
  return {
      **result,
      "status": "done",
      **dataclasses.asdict(outcome),
      "scores": scored["label"],
      "mirrored_scores": scored["mirrored"],
  }


def _train(
    job: Job, data: _OpenedSet, places: Places, options: Options, python: pathlib.Path
) -> tuple[Outcome, dict[str, dict[str, Any] | None]]:
  """Trains, predicts the test split, and returns what it took with the scores of its answers."""
  if job.system.program is None:
    networks = running.members(job, places)
    outcome = running.train_flexunet(job, networks, options.patience_minutes)
    runs = [one.places.run_dir for one in networks]
    if len(runs) > 1:
      return outcome, scoring.score_ensemble(runs, places.work / "ensemble", data.class_names)
    scoring.predict_with_run(runs[0], data.volumes, places.predictions)
    return outcome, scoring.score(data.volumes, places.predictions, data.class_names)
  data.exported()
  outcome = running.train_peer(
      job, places, python, machine.available_cpus(), options.patience_minutes
  )
  ids = exported_set.class_ids(places.data)
  return outcome, scoring.score(data.volumes, places.predictions, data.class_names, ids)


def _said(result: results.Result) -> str:
  if result["status"] == "failed":
    return f"failed: {result['error']}"
  dice = result["scores"]["foreground_dice"]
  return (
      f"Dice {'none' if dice is None else format(dice, '.3f')}, {result['steps']} steps in"
      f" {result['training_s']:.0f} s, {result['with_setup_s']:.0f} s with set-up"
  )
