"""`report.html`: one self-contained page on what a run is and how well it performs.

Everything is read from the run folder: the report can be written again at any time. It holds
subject pseudonyms and slices of the data, but no path of the machine.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from flexunet import config, run_folder, seen_subjects
from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.datasets import dataset_folders
from flexunet.ensemble_folder import EnsembleFolder, RunSet
from flexunet.evaluation import agreement, examples, stress_examples, stress_summary, summary
from flexunet.reporting import (
  cases_section,
  caveats,
  decisions_section,
  errors_section,
  results_section,
  sources,
  stress_section,
  training_section,
)
from flexunet.reporting import html_parts as page

_SOURCES = "manifest.json, history.csv, evaluation/metrics.json and evaluation/cases.csv"


def write_report(run: run_folder.RunFolder | str | os.PathLike) -> pathlib.Path:
  """Writes the report of a run, trained or still in training, evaluated or not, or of an ensemble.

  Returns its path.

  Raises:
    InputError: The folder is no run, or one of its files is not readable.
  """
  if not isinstance(run, run_folder.RunFolder):
    folder = EnsembleFolder(pathlib.Path(run).expanduser())
    run = folder if folder.ensemble_json.is_file() else run_folder.RunFolder.open(run)
  files.write_bytes(run.report_html, render(run).encode("utf-8", "backslashreplace"))
  return run.report_html


def render(run: run_folder.RunFolder) -> str:
  """Returns the page as text.

  Raises:
    InputError: One of the run's files is not readable, or not as it was written.
  """
  try:
    return _page(run)
  except InputError:
    raise
  # Figures and manifest hold many entries, any of which may have been edited or damaged.
  except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
    raise InputError(
        f"{run.path}: the report is made of {_SOURCES}, which must be as training and evaluation"
        f" wrote them, but one of them is not: {error!r}. Run flexunet evaluate again."
    ) from error


def _page(run: run_folder.RunFolder) -> str:
  run_config = run.read_config()
  manifest = _read_json(run.manifest_json)
  stored = _least_seen_first(_read_json(run.metrics_json), run_config.data)
  evaluations = {split: entry for split, entry in stored.items() if summary.is_current(entry)}
  runs = run.read() if isinstance(run, EnsembleFolder) else None
  model_sha256 = runs.digest() if runs else None
  if run.model_keras.is_file():
    model_sha256 = files.sha256_of(run.model_keras)
  headline = next(iter(evaluations), None)
  top = results_section.tiles(headline, evaluations[headline]) if headline else ""
  top += caveats.caveat_box(
      caveats.caveats(evaluations, run_config, model_sha256)
      + caveats.left_out(set(stored) - set(evaluations))
      + _label_warnings(manifest)
  )
  return page.document(
      kind="FlexUNet ensemble report" if runs else "FlexUNet run report",
      heading=run_config.dataset_facts.name,
      lead=_ensemble_lead(runs) if runs else _network_lead(run_config.model),
      top=top,
      sections=[
          *_result_sections(run, run_config, evaluations),
          *_stress_sections(run, run_config, model_sha256),
          ("decisions", "Learnt from validation",
           decisions_section.decisions_section(_read_json(run.calibration_json), model_sha256)),
          *(_ensemble_sections(runs) if runs
            else _run_sections(run, run_config, evaluations, manifest)),
          ("definitions", "What the figures mean", results_section.figure_definitions(evaluations)),
          ("provenance", "Provenance",
           training_section.provenance_section(manifest, model_sha256)),
          ("files", "Files", page.file_links(run.path, _files(run))),
      ],
      footer=(
          "Written by FlexUNet from the files of the run folder. For research; not a medical"
          " device, and no diagnosis may rest on it."
      ),
  )  # fmt: skip


def _network_lead(model: config.ModelConfig) -> str:
  size = " × ".join(str(edge) for edge in model.image_size or ("any", "any"))
  return (
      f"A FlexUNet of {model.num_layers} stages with {model.base_filters} filters in the first, for"
      f" {size} pixels and {model.num_classes} classes, background included."
  )


def _ensemble_lead(runs: RunSet) -> str:
  return (
      f"An ensemble of {page.count(len(runs.runs), 'run')}: the mean of their probabilities on the"
      " grid of the scan, with the weights below."
  )


def _ensemble_sections(runs: RunSet) -> list[tuple[str, str, str]]:
  """Returns (anchor, title, HTML) of the runs of an ensemble and their weights."""
  rows = []
  for name, run, weight in zip(runs.names, runs.runs, runs.weights, strict=True):
    facts = run.read_config().dataset_facts
    plane = facts.slice_plan.plane if facts.slice_plan else page.DASH
    sha256 = f"<code>{files.sha256_of(run.model_keras)[:12]}</code>"
    rows.append([page.text(name), page.text(facts.name), plane, f"{weight:.3f}", sha256])
  note = {"equal": "The weights are equal.", "given": "The weights were given.", "learnt": ""}
  text = note[runs.kind]
  if learnt_on := runs.learnt_on:
    subjects = page.count(len(learnt_on["subjects"]), "subject")
    text = (
        f"The weights have the least Brier score on {subjects} of {learnt_on['split']}, whom no run"
        f" was trained on: {learnt_on['brier']:.4f} per voxel of foreground, with equal weights"
        f" {learnt_on['brier_of_equal_weights']:.4f}."
    )
  headers = ["Run", "Dataset", "Plane", "Weight", "model.keras, sha256"]
  table = page.table(headers, rows, texts=(0, 1, 2, 4))
  return [("runs", "Runs and weights", f'{table}<p class="note">{page.text(text)}</p>')]


def _label_warnings(manifest: Mapping[str, Any]) -> list[str]:
  """Returns the classes that splits lack, as the training found them, a sentence (HTML) each."""
  stored = manifest.get("label_warnings", [])  # Runs of earlier versions have none.
  return [page.text(line) for line in stored] if isinstance(stored, list) else []


def _held_out(manifest: Mapping[str, Any]) -> list[str]:
  """Returns the subjects that the run validated on, by name."""
  seen = manifest.get(seen_subjects.KEY) or [{}]  # Runs of earlier versions have none.
  return [str(name) for name in seen[0].get("validation", ())]


def _least_seen_first(
    evaluations: Mapping[str, Any], data: config.DataConfig
) -> dict[str, Any]:
  """Returns the evaluated splits, those that training has seen least of first."""
  uses = {data.train_split: 2, data.validation_split: 1}
  ranked = sorted(evaluations, key=lambda split: uses.get(split, 0))
  return {split: evaluations[split] for split in ranked}


def _result_sections(
    run: run_folder.RunFolder, run_config: config.RunConfig, evaluations: Mapping[str, Any]
) -> list[tuple[str, str, str]]:
  """Returns (anchor, title, HTML) of what was evaluated."""
  scheme = run_config.dataset_facts.label_scheme
  cases = read_cases(run.cases_csv)
  sections = []
  for split, figures in evaluations.items():
    own = [row for row in cases if row["split"] == split]
    shown = examples.read(examples.path_of(run, split))
    sections += [
        (f"results-{split}", _results_title(split, run_config.data),
         results_section.split_section(figures, own, scheme)),
        (f"cases-{split}", f"Where it fails: cases of {split}",
         cases_section.cases_section(shown, scheme)),
        (f"errors-{split}", f"Where it fails: errors on {split}",
         errors_section.errors_section(figures, own, scheme, run_config.dataset_facts.slice_plan)),
    ]  # fmt: skip
  return sections


def _stress_sections(
    run: run_folder.RunFolder, run_config: config.RunConfig, model_sha256: str | None
) -> list[tuple[str, str, str]]:
  """Returns (anchor, title, HTML) of what was scored on disturbed volumes."""
  tested = _least_seen_first(stress_summary.read_figures(run), run_config.data)
  scheme = run_config.dataset_facts.label_scheme
  return [
      (
          f"stress-{split}",
          f"Robustness: disturbed scans of {split}",
          stress_section.stress_section(
              entry, stress_examples.read(stress_examples.path_of(run, split)), scheme,
              model_sha256,
          ),
      )
      for split, entry in tested.items()
  ]  # fmt: skip


def _results_title(split: str, data: config.DataConfig) -> str:
  if data.fold >= 0 and split in (data.train_split, data.validation_split):
    held_out = f"held out as fold {data.fold}"
    return f"Results on {split} ({held_out if split == data.validation_split else 'other folds'})"
  return f"Results on {split}"


def _run_sections(
    run: run_folder.RunFolder,
    run_config: config.RunConfig,
    evaluations: Mapping[str, Any],
    manifest: Mapping[str, Any],
) -> list[tuple[str, str, str]]:
  """Returns (anchor, title, HTML) of data, training and settings."""
  # Through JSON, so that tuples and lists look the same here as in the file.
  as_stored = json.loads(json.dumps(run_config.to_json()))
  counts, scheme = _split_counts(manifest, evaluations), run_config.dataset_facts.label_scheme
  curves = training_section.curves_section(
      read_history(run), run_config.training, manifest.get("validation")
  )
  return [
      ("data", "Data",
       training_section.data_section(as_stored, counts, scheme, _held_out(manifest))
       + sources.section(_data_source(run_config))),
      ("curves", "Training", curves),
      ("settings", "Settings and reasons", training_section.settings_section(run_config)),
  ]  # fmt: skip


def _data_source(run_config: config.RunConfig) -> sources.DataSource:
  """Returns licence and citation of the run's dataset: of its folder, if it is there."""
  try:
    found = sources.of_folder(dataset_folders.locate(*run_config.dataset_in(None)))
  except InputError:  # It has moved since the training.
    found = sources.DataSource()
  return found or sources.of_package(run_config.dataset_facts.name.split("/")[0])


def _files(run: run_folder.RunFolder) -> dict[pathlib.Path, str]:
  """Returns the files of a run that a reader of its report may open, and what is in each."""
  return {
      run.metrics_json: "scores of each split",
      run.cases_csv: "scores of each volume and class",
      stress_summary.csv_path(run): "the same of disturbed volumes",
      run.calibration_json: "what was learnt from the validation subjects",
      run.history_csv: "a row per epoch of the training",
      run.curves_png: "the same as charts",
      run.config_json: "all settings",
      run.manifest_json: "versions, hashes and subjects",
  }


def read_history(run: run_folder.RunFolder) -> list[dict[str, float]]:
  """Returns the rows of `history.csv`; empty cells are left out, an absent file has no rows."""
  if not run.history_csv.is_file():
    return []
  return [
      {name: _number(value, run.history_csv) for name, value in row.items() if value}
      for row in files.read_table(run.history_csv, ["epoch"])
  ]


def read_cases(path: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the rows of `cases.csv`, scores and volumes as floats; an absent file has none.

  What is not defined, or in no column, is NaN.
  """
  if not path.is_file():
    return []
  numbers = ("dice", *(name for pair in agreement.COLUMNS.values() for name in pair))
  return [
      {**row, **{name: _number(row.get(name) or "nan", path) for name in numbers}}
      for row in files.read_table(path, ["split", "subject", "volume", "class", "dice"])
  ]


def _number(text: str, path: pathlib.Path) -> float:
  try:
    return float(text)
  except ValueError as error:
    raise InputError(f"{path} must hold numbers. Got: {text!r}. Put the original back.") from error


def _split_counts(
    manifest: Mapping[str, Any], evaluations: Mapping[str, Any]
) -> dict[str, dict[str, int]]:
  counts = dict(manifest.get("splits") or {})
  for figures in evaluations.values():
    counts.update(figures["evaluated"].get("dataset_splits") or {})
  usual = ("train", "validation", "test", "unlabeled")
  ranked = sorted(counts, key=lambda name: (usual.index(name) if name in usual else 9, name))
  return {name: counts[name] for name in ranked}


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  return files.read_json(path) if path.is_file() else {}
