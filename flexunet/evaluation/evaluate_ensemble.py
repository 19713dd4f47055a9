"""Evaluates an ensemble of runs on the dataset of its first run, into a folder of its own.

Truth and slices are those of the first run's dataset. Runs of other planes see the same 8-bit
volume, turned: the window is one per volume, so that the voxels are those of their own datasets
(equal byte for byte where nothing is resampled), and their datasets need not be there.

Whom any of the runs has seen the ensemble has seen.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flexunet import config, ensemble_folder, seen_subjects
from flexunet.core import files, progress
from flexunet.core.errors import InputError
from flexunet.ensemble_folder import RunSet
from flexunet.evaluation import ensemble_weights, evaluate, stress_disturbances
from flexunet.evaluation.scores import DEFAULT_TOLERANCES_MM, checked_tolerances
from flexunet.pipelines.dataset_source import DatasetSource
from flexunet.pipelines.record_table import RecordTable, volume_names
from flexunet.prediction import ensemble as ensembles
from flexunet.prediction import opening
from flexunet.prediction.opening import AS_TRAINED, PredictionOptions


def evaluate_ensemble(
    runs: RunSet,
    splits: Sequence[str],
    *,
    output_dir: str | os.PathLike | None = None,
    weights: str = "",
    data_dir: str | os.PathLike | None = None,
    allow_other_data: bool = False,
    tolerances_mm: Sequence[float | str] = DEFAULT_TOLERANCES_MM,
    options: PredictionOptions = AS_TRAINED,
    lesions: str = "auto",
    lesion_overlap: float = 0.0,
    stress: str | Sequence[str] = "",
    show_progress: bool = True,
) -> dict[str, Any]:
  """Scores an ensemble on splits; writes `ensemble.json`, `evaluation/` and the report.

  Args:
    runs: The ensemble.
    splits: Names; at least one.
    output_dir: Folder of its scores; by default that which named the runs.
    weights: As of the flag: "" keeps those of `ensemble.json`, else equal; "learnt" learns them on
      the subjects of validation that no run was trained on.
    data_dir, allow_other_data, tolerances_mm, options, lesions, lesion_overlap, stress,
      show_progress: As of `evaluate.evaluate`; each run has its own temperature.

  Returns:
    Split -> its entry in `metrics.json`.

  Raises:
    InputError: As of `evaluate.evaluate`; or the runs cannot answer together, or nobody is left to
      learn weights on.
  """
  folder = ensemble_folder.output_folder(runs, output_dir)
  learns = weights.strip() == "learnt"
  runs = ensemble_folder.chosen(runs, "equal" if learns else weights)
  configs = runs.configs()
  tolerances = checked_tolerances(tolerances_mm)
  request = stress_disturbances.Request.of(stress)
  source = evaluate.open_run_dataset(configs[0], data_dir)
  _check_data(runs, configs, source, splits, allow_other_data)
  tables = _whole_tables(runs, configs, source, splits)
  seen, unsaid = _seen(runs, configs, source)
  if learns:
    runs = _learnt(runs, configs, options, source, seen, show_progress)
  about = {
      **evaluate.provenance(source, runs.digest(), _common_fold(configs).data),
      "surface_tolerances_mm": tolerances,
      "lesion_overlap": evaluate.overlap_of(lesions, lesion_overlap, source),
      **_about(runs, [options.temperature(run) for run in runs.runs]),
  }
  network = opening.open_runs(runs, options)
  candidate = evaluate.Candidate(
      folder, configs[0], network, seen, unsaid, about, options, runs.weighed_on
  )
  with files.locked(folder.path, "--output_dir"):
    runs.write(folder)
  return evaluate.write_scores(
      candidate, source, tables, stress=request, show_progress=show_progress
  )


def _about(runs: RunSet, temperatures: Sequence[float]) -> dict[str, Any]:
  """Returns what entries of `metrics.json` say of an ensemble; each run has its temperature."""
  return {
      "temperature": temperatures[0] if len(set(temperatures)) == 1 else None,
      "ensemble": {
          "runs": runs.names,
          "weights": list(runs.weights),
          "kind": runs.kind,
          "learnt_on": runs.learnt_on,
          "temperatures": list(temperatures),
      },
  }


def _common_fold(configs: Sequence[config.RunConfig]) -> config.RunConfig:
  """Returns the config by which splits are divided: into folds only where all hold out the same."""
  divided = {(own.data.fold, own.data.train_split, own.data.validation_split) for own in configs}
  if len(divided) == 1:
    return configs[0]
  return dataclasses.replace(configs[0], data=dataclasses.replace(configs[0].data, fold=-1))


def _check_data(
    runs: RunSet,
    configs: Sequence[config.RunConfig],
    source: DatasetSource,
    splits: Sequence[str],
    allow_other_data: bool,
) -> None:
  """Refuses splits that cannot be scored, and runs whose datasets are other ones.

  Datasets of several planes are cut from the same voxels; what differs in more has other voxels.
  """
  cuts = [ensembles.cut_of(own.dataset_facts.recipe) for own in configs]
  for run, own, cut in zip(runs.runs, configs, cuts, strict=True):
    # Datasets of other planes, or from elsewhere, have records of their own.
    if own is configs[0] or own.dataset_facts.name == source.name:
      evaluate.check_data(source, own, splits, allow_other_data)
    if cut != cuts[0]:
      raise InputError(
          "Runs that are evaluated together must have datasets that differ in their plane alone."
          f" Those of {runs.runs[0].path} and {run.path} are windowed or resampled differently."
          " Evaluate each by itself; flexunet predict fuses them, for it cuts scans for each run."
      )


def _whole_tables(
    runs: RunSet,
    configs: Sequence[config.RunConfig],
    source: DatasetSource,
    splits: Sequence[str],
) -> dict[str, RecordTable]:
  """Returns the records of each split; whole volumes where runs are of several planes."""
  tables = evaluate.split_tables(source, _common_fold(configs), splits)
  if len({own.dataset_facts.slice_plan for own in configs}) > 1:
    for split, table in tables.items():
      _check_whole(runs, source, split, table)
  return tables


def _check_whole(runs: RunSet, source: DatasetSource, split: str, table: RecordTable) -> None:
  """Refuses volumes that lack slices, where other planes need all of them."""
  left_out = source.report.get("slices_left_out") or {}
  places: dict[tuple[str, str], list[int]] = {}
  for name, place in zip(volume_names(table), table.slice_index.tolist(), strict=True):
    places.setdefault(name, []).append(place)
  for (_, volume), own in places.items():
    if left_out.get(volume) or set(np.diff(sorted(own)).tolist()) - {1}:
      raise InputError(
          f"Runs of several planes ({', '.join(runs.names)}) need whole volumes, but split"
          f" {split!r} of {source.name} lacks slices of {volume}. Evaluate another split, or build"
          " the dataset with all slices."
      )


def _seen(
    runs: RunSet, configs: Sequence[config.RunConfig], source: DatasetSource
) -> tuple[list[seen_subjects.SubjectsSeen], list[str]]:
  """Returns whom any of the runs has seen, and what is not known of that, one sentence each."""
  seen: list[seen_subjects.SubjectsSeen] = []
  unsaid: list[str] = []
  names: frozenset[str] = frozenset()
  for split in source.splits:
    if source.info.splits[split].num_examples:
      names |= seen_subjects.names_of(source.records(split).subject)
  for run, own, short in zip(runs.runs, configs, runs.names, strict=True):
    found, missing = evaluate.seen_by(run, source, own)
    if found and (found[0].train or found[0].validation) and names and not (
        (found[0].train | found[0].validation) & names
    ):
      found = [*found, seen_subjects.SubjectsSeen(None)]
      missing = [*missing, f"{short} names its subjects by other names than {source.name}."]
    seen += [one for one in found if one not in seen]
    unsaid += [one for one in missing if one not in unsaid]
  return seen, unsaid


def _unseen(
    runs: RunSet,
    source: DatasetSource,
    table: RecordTable,
    seen: Sequence[seen_subjects.SubjectsSeen],
) -> RecordTable:
  """Returns the records of the subjects that no run was trained on.

  Raises:
    InputError: There are none, or it is not known who they are.
  """
  known = seen_subjects.overlap(table.subject, source.name, seen)
  if not known.subjects or known.unknown:
    raise InputError(
        f"--weights=learnt needs to know whom the runs {', '.join(runs.names)} were trained on, and"
        f" who is in {source.name}, which is not said. Take --weights=equal."
    )
  trained = known.trained.union(*known.elsewhere.values())
  rows = [row for row, name in enumerate(table.subject.tolist()) if name not in trained]
  if not rows:
    raise InputError(
        "--weights=learnt needs subjects of validation that no run was trained on; all"
        f" {len(known.subjects)} were trained on by one of {', '.join(runs.names)}. Runs of a"
        " cross-validation leave none: take --weights=equal, or numbers."
    )
  return table.take(np.array(rows, np.int64))


def _learnt(
    runs: RunSet,
    configs: Sequence[config.RunConfig],
    options: PredictionOptions,
    source: DatasetSource,
    seen: Sequence[seen_subjects.SubjectsSeen],
    show_progress: bool,
) -> RunSet:
  """Returns the runs with the weights that fit the validation subjects that no run has seen."""
  split = configs[0].data.validation_split
  (table,) = _whole_tables(runs, configs, source, [split]).values()
  table = _unseen(runs, source, table, seen)
  count = len(runs.runs)
  sums = ensemble_weights.learn(
      opening.open_runs(runs, options), source, table, count, show_progress=show_progress
  )
  weights = sums.best_weights()
  subjects = sorted(seen_subjects.names_of(table.subject))
  learnt_on: Mapping[str, Any] = {
      "split": split,
      "subjects": subjects,
      "dataset": source.name,
      "fingerprint": source.fingerprint,
      "criterion": "Brier score per true foreground voxel, mean over volumes",
      "brier": sums.brier(weights),
      "brier_of_equal_weights": sums.brier([1 / count] * count),
      "brier_of_each": [sums.brier(one) for one in np.eye(count)],
  }
  shares = ", ".join(f"{name} {one:.3f}" for name, one in zip(runs.names, weights, strict=True))
  progress.say(f"Weights learnt on {progress.count(len(subjects), 'subject')} of {split}: {shares}")
  return runs.weighted(weights.tolist(), "learnt", dict(learnt_on))
