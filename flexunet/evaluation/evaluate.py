"""Evaluates a run: opens what it states, scores splits, writes `evaluation/` and the report."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import flexunet
from flexunet import config, run_folder, seen_subjects
from flexunet.core import files, progress
from flexunet.core.errors import InputError, unknown_name
from flexunet.evaluation import examples, stress_disturbances, summary
from flexunet.evaluation import lesions as lesion_scores
from flexunet.evaluation import stress as stress_tests
from flexunet.evaluation.scores import (
  DEFAULT_TOLERANCES_MM,
  VOLUME_ERROR_NAMES,
  VOLUME_NAMES,
  checked_tolerances,
)
from flexunet.evaluation.split_scores import SplitScores, score_split
from flexunet.evaluation.volume_scores import volume_score_names
from flexunet.imaging.clean_up import CleanUp
from flexunet.pipelines import dataset_source, readers
from flexunet.pipelines.dataset_source import DatasetSource, open_dataset
from flexunet.pipelines.record_table import RecordTable
from flexunet.prediction import opening
from flexunet.prediction.ensemble import Ensemble
from flexunet.prediction.opening import AS_TRAINED, PredictionOptions
from flexunet.prediction.predictor import Predictor
from flexunet.reporting import report

LESION_CHOICES = ("auto", "on", "off")


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
  """What is scored: a run, or an ensemble of runs.

  Attributes:
    folder: Where its scores are written.
    config: Of the run, or of the first run of an ensemble.
    predictor: Its network, or all of them.
    seen: Whom it has seen.
    unsaid: What is not known of that, one sentence each.
    about: What its entries in `metrics.json` say under "evaluated".
    options: How it is asked.
    weighed_on: Subjects on whom the weights of an ensemble were learnt.
  """

  folder: run_folder.RunFolder
  config: config.RunConfig
  predictor: Predictor | Ensemble
  seen: list[seen_subjects.SubjectsSeen]
  unsaid: list[str]
  about: dict[str, Any]
  options: PredictionOptions = AS_TRAINED
  weighed_on: frozenset[str] = frozenset()

  def warnings(self, known: seen_subjects.Overlap) -> list[str]:
    """Returns what it has seen of the subjects of a split, one sentence each."""
    found = [*known.warnings(), *self.unsaid]
    if shared := known.subjects & self.weighed_on:
      subjects = progress.count(len(known.subjects), "subject")
      found.append(
          f"the weights of the runs were learnt on {len(shared)} of its {subjects}, so its figures"
          " are optimistic."
      )
    return found


def evaluate(
    run: run_folder.RunFolder,
    splits: Sequence[str],
    *,
    data_dir: str | os.PathLike | None = None,
    allow_other_data: bool = False,
    tolerances_mm: Sequence[float | str] = DEFAULT_TOLERANCES_MM,
    options: PredictionOptions = AS_TRAINED,
    lesions: str = "auto",
    lesion_overlap: float = 0.0,
    stress: str | Sequence[str] = "",
    show_progress: bool = True,
) -> dict[str, Any]:
  """Scores splits and writes metrics.json, cases.csv, examples and the report.

  Figures of other splits are kept where they have the same form. One program at a time writes into
  `evaluation/`; training may continue meanwhile.

  Args:
    run: A trained run.
    splits: At least one.
    data_dir: Where the dataset lies; as in training where None.
    allow_other_data: Accepts records that differ from those of the training.
    tolerances_mm: Distances up to which two surfaces agree, one surface Dice each.
    options: How the network is asked.
    lesions: Whether lesions are scored one by one: "on", "off", or "auto", where the dataset
      declares that its classes are lesions.
    lesion_overlap: Share of a lesion that must be overlapped; 0: one voxel. See `lesions`.
    stress: Also scores disturbed volumes (`stress.json`, `stress.csv`): "quick", "full", or names,
      see `stress_disturbances.Request`; "": does not.
    show_progress: Draws a bar on standard error.

  Returns:
    Split -> its entry in `metrics.json`.

  Raises:
    InputError: Nothing to evaluate, other data, no trained network, or the run is being evaluated.
  """
  run_config = run.read_config()
  tolerances = checked_tolerances(tolerances_mm)
  request = stress_disturbances.Request.of(stress)
  source = open_run_dataset(run_config, data_dir)
  check_data(source, run_config, splits, allow_other_data)
  predictor = opening.open_run(run, run_config, options)
  about = {
      **provenance(source, files.sha256_of(run.model_keras), run_config.data),
      "surface_tolerances_mm": tolerances,
      "temperature": options.temperature(run),
      "lesion_overlap": overlap_of(lesions, lesion_overlap, source),
  }
  candidate = Candidate(
      run, run_config, predictor, *seen_by(run, source, run_config), about, options
  )
  tables = split_tables(source, run_config, splits)
  return write_scores(candidate, source, tables, stress=request, show_progress=show_progress)


def write_scores(
    candidate: Candidate,
    source: DatasetSource,
    tables: Mapping[str, RecordTable],
    *,
    stress: stress_disturbances.Request | None = None,
    show_progress: bool = True,
) -> dict[str, Any]:
  """Scores splits and writes metrics.json, cases.csv, examples and the report; as `evaluate`.

  Args:
    candidate: What is scored.
    source: The opened dataset.
    tables: Split -> its records.
    stress: The disturbances under which they are scored too; None: none.
    show_progress: Draws a bar on standard error.
  """
  run, run_config, written = candidate.folder, candidate.config, {}
  with files.locked(run.evaluation, "--run_dir"):
    for split, table in tables.items():
      scores = score_split(
          source,
          table,
          candidate.predictor,
          run_config.dataset_facts.label_scheme.names,
          split=split,
          keys=(source.keys.image, source.keys.label),
          tolerances_mm=candidate.about["surface_tolerances_mm"],
          lesion_overlap=candidate.about["lesion_overlap"],
          show_progress=show_progress,
          shown_channel=run_config.shown_channel,
      )
      known = seen_subjects.overlap(table.subject, source.name, candidate.seen)
      scores.warnings += candidate.warnings(known)
      asked = {
          "passes": candidate.predictor.pass_lines(),
          "clean_up": _clean_up_entry(candidate.predictor.clean_up),
      }
      written[split] = _figures(split, scores, {**known.to_json(), **candidate.about, **asked})
      _write_split(run, split, written[split], scores)
    report.write_report(run)
    if stress is not None:
      tested = stress_tests.Tested(
          run, run_config, candidate.predictor, source, _stress_about(candidate), stress,
          show_progress,
      )  # fmt: skip
      for split, table in tables.items():
        stress_tests.stress(tested, split, table)
      report.write_report(run)
  return written


def _stress_about(candidate: Candidate) -> dict[str, Any]:
  """Returns all on which scores of disturbed volumes depend but the disturbance."""
  known = ("dataset", "fingerprint", "model_sha256", "temperature")
  options = candidate.options
  return {
      **{name: candidate.about[name] for name in known},
      "options": {
          "views": dataclasses.asdict(options.views),
          "tiles": dataclasses.asdict(options.tiles),
          "temperatures": candidate.about.get("ensemble", {}).get("temperatures"),
          "clean_up": _clean_up_entry(candidate.predictor.clean_up),
      },
  }


def provenance(
    source: DatasetSource, model_sha256: str, data: config.DataConfig
) -> dict[str, Any]:
  """Returns what identifies records and networks of scores.

  Args:
    source: The opened dataset.
    model_sha256: Of the network, or of all of an ensemble.
    data: How the run divided the dataset.
  """
  divided = data.train_split, data.validation_split
  if not set(divided) <= set(source.splits):  # Other data than those of the training.
    counts = dataset_source.split_counts(source)
  else:
    counts = dataset_source.split_counts(source, *divided, data.fold)
  return {
      "dataset": source.name,
      "counted_by": source.counted_by,
      "fingerprint": source.fingerprint,
      "model_sha256": model_sha256,
      "flexunet": flexunet.__version__,
      "dataset_splits": counts,
  }


def _figures(split: str, scores: SplitScores, about: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the entry of a split in `metrics.json`."""
  overlap = about["lesion_overlap"]
  names = volume_score_names(
      about["surface_tolerances_mm"],
      pixels=any(row["distances"] == "none" for row in scores.rows),
      with_lesions=overlap is not None,
  )
  left_out = (*VOLUME_NAMES, *VOLUME_ERROR_NAMES)  # `volume_agreement` is of these.
  averaged = [name for name in names if name not in left_out]
  figures = summary.summarize(scores.rows, scores.class_names, averaged)
  if overlap is not None:
    figures["rules"]["lesions"] = lesion_scores.rule(overlap)
  if about["clean_up"] is not None:
    about = {**about, "clean_up": {**about["clean_up"], "volumes": scores.volumes_cleaned_up}}
  figures |= scores.voxel_figures
  figures["calibration"] = {**figures["calibration"], "temperature": about["temperature"]}
  figures["evaluated"] = {"split": split, **scores.counts, **about, "warnings": scores.warnings}
  return summary.strict(figures)


def overlap_of(lesions: str, lesion_overlap: float, source: DatasetSource) -> float | None:
  """Returns the share of a lesion that must be overlapped; None where lesions are not scored."""
  if lesions not in LESION_CHOICES:
    raise unknown_name("choice of --lesions", lesions, LESION_CHOICES)
  overlap = lesion_scores.checked_overlap(lesion_overlap)
  return overlap if lesions == "on" or (lesions == "auto" and source.has_lesions) else None


def _clean_up_entry(clean_up: CleanUp) -> dict[str, Any] | None:
  """Returns what `metrics.json` says of the clean-up; None where nothing was cleaned up."""
  if not clean_up:
    return None
  said = clean_up.to_json()
  return {"sentences": clean_up.sentences(), "rules": said["rules"], "in_slices": said["in_slices"]}


def open_run_dataset(
    run_config: config.RunConfig, data_dir: str | os.PathLike | None
) -> DatasetSource:
  """Opens the dataset a run was trained on, or that of the same name in `data_dir`."""
  return open_dataset(*run_config.dataset_in(data_dir), run_config.data.feature_keys)


def check_data(
    source: DatasetSource,
    run_config: config.RunConfig,
    splits: Sequence[str],
    allow_other_data: bool,
) -> None:
  """Refuses splits that cannot be scored and data that are not those of the run."""
  if not splits:
    raise InputError(f"--split must name a split. Dataset {source.name} has {source.splits}.")
  for split in splits:
    source.check_split(split)
    if split in dataset_source.WITHOUT_TRUTH:
      raise InputError(
          f"Split {split!r} of {source.name} has no labels to compare with. Use"
          " flexunet-predict to look at it."
      )
  facts = run_config.dataset_facts
  trained = facts.label_scheme.names
  found = source.label_scheme(source.keys.label, run_config.model.num_classes).names
  if trained != found:
    raise InputError(
        f"Dataset {source.name} must have the classes of the run, {trained}. It has {found}."
    )
  channels = facts.channel_names or ("image",)
  if source.channel_names != channels:
    raise InputError(
        f"Dataset {source.name} must have the channels of the run, {', '.join(channels)}. It has"
        f" {', '.join(source.channel_names)}."
    )
  if source.fingerprint != facts.fingerprint and not allow_other_data:
    raise InputError(
        f"Dataset {source.name} has the fingerprint {source.fingerprint}, the run was trained on"
        f" {facts.fingerprint} ({facts.name}): other records, so a subject of its test split may"
        " have been trained on. Name the right --data_dir, or pass --allow_other_data: subjects"
        " that were trained on are then named."
    )


def split_tables(
    source: DatasetSource, run_config: config.RunConfig, splits: Sequence[str]
) -> dict[str, RecordTable]:
  """Returns the records of each split to be scored.

  A run on a fold has divided its training and validation splits again: its validation split is the
  fold.
  """
  data = run_config.data
  tables = {split: readers.slice_table(source, split) for split in splits}
  if data.fold < 0:
    return tables
  train, held_out = readers.split_tables(
      source, data.train_split, data.validation_split, data.fold
  )
  divided = {data.train_split: train, data.validation_split: held_out}
  return {split: divided.get(split, table) for split, table in tables.items()}


def seen_by(
    run: run_folder.RunFolder, source: DatasetSource, run_config: config.RunConfig
) -> tuple[list[seen_subjects.SubjectsSeen], list[str]]:
  """Returns whom the run has seen, and a warning where it does not say so.

  The splits of today then stand in for those of the training.
  """
  if (seen := seen_subjects.of_run(run)) is not None:
    return seen, []
  data = run_config.data
  unsaid = (
      "the run does not say whom it was trained on (another version of FlexUNet wrote it): its"
      " subjects are compared with the dataset's splits of today."
  )
  if not {data.train_split, data.validation_split} <= set(source.splits):
    return [], [unsaid]
  tables = readers.split_tables(
      source, data.train_split, data.validation_split, None if data.fold < 0 else data.fold
  )
  names = [seen_subjects.names_of(table.subject) for table in tables]
  return [seen_subjects.SubjectsSeen(source.name, *names)], [unsaid]


def _write_split(
    run: run_folder.RunFolder,
    split: str,
    figures: Mapping[str, Any],
    scores: SplitScores,
) -> None:
  """Puts one split into the files of `evaluation/`, each replaced in one step; says warnings."""
  for warning in scores.warnings:
    progress.say(f"warning: {split}: {warning}")
  metrics = {}
  if run.metrics_json.is_file():
    stored = files.read_json(run.metrics_json)
    metrics = {name: entry for name, entry in stored.items() if summary.is_current(entry)}
  others = []
  if run.cases_csv.is_file():
    with open(run.cases_csv, newline="", encoding="utf-8") as stream:
      others = [row for row in csv.DictReader(stream) if row["split"] != split]
  own = [{"split": split, **{key: _cell(value) for key, value in row.items()}}
         for row in scores.rows]  # fmt: skip
  columns = list(dict.fromkeys(name for row in [*own, *others] for name in row))
  text = io.StringIO()
  writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
  writer.writeheader()
  writer.writerows([*others, *own])
  examples.write(examples.path_of(run, split), scores.examples)
  files.write_bytes(run.cases_csv, text.getvalue().encode("utf-8"))
  files.write_json(run.metrics_json, {**metrics, split: figures})


def _cell(value: Any) -> Any:
  """Returns a value as it stands in the CSV: an empty cell for what is not defined."""
  return "" if isinstance(value, float) and math.isnan(value) else value
