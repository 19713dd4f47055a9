"""`report.html`: one self-contained page that tells what a run was and how well it does.

Everything is read from the run folder: the report can be written again at any time. It holds
subject pseudonyms and slices of the data, but no path of the machine.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.resources
import json
import math
import os
import pathlib
import string
from collections.abc import Mapping
from typing import Any

from flexunet import run_folder
from flexunet.datasets.errors import InputError
from flexunet.evaluation import evaluation_examples
from flexunet.prediction import inference
from flexunet.reporting import report_cases, report_results, report_training
from flexunet.reporting import report_html as page


def write_report(run: run_folder.RunFolder | str | os.PathLike) -> pathlib.Path:
  """Writes the report of a run, trained or still in training, evaluated or not; returns its path.

  Raises:
    InputError: The folder is no run, or one of its files is not readable.
  """
  if not isinstance(run, run_folder.RunFolder):
    run = run_folder.RunFolder.open(run)
  run_folder.write_bytes(run.report_html, render(run).encode("utf-8"))
  return run.report_html


def render(run: run_folder.RunFolder) -> str:
  """Returns the page as text."""
  run_config = run.read_config()
  # Through JSON, so that tuples and lists look the same here as in the file.
  config = json.loads(json.dumps(run_config.to_json()))
  scheme = inference.scheme_of(run_config)
  manifest = _read_json(run.manifest_json)
  evaluations = _read_json(run.metrics_json)
  cases = read_cases(run.cases_csv)
  model_sha256 = file_sha256(run.model_keras) if run.model_keras.is_file() else None

  sections: list[tuple[str, str, str]] = []  # (anchor, title, HTML)
  for split, figures in evaluations.items():
    examples = evaluation_examples.read(evaluation_examples.path_of(run, split))
    body = report_results.split_section(
        figures, [row for row in cases if row["split"] == split], scheme
    )
    sections.append((f"results-{split}", f"Results on {split}", body))
    if pictures := report_cases.case_section(examples, scheme):
      sections.append((f"cases-{split}", f"Cases of {split}", pictures))
  counts = _split_counts(manifest, evaluations)
  sections.append(("data", "Data", report_training.data_section(config, counts, scheme)))
  curves = report_training.curves_section(
      read_history(run), config["training"], manifest.get("validation")
  )
  sections.append(("curves", "Training", curves))
  sections.append(("knobs", "Knobs and reasons", report_training.knobs_section(config)))
  definitions = report_results.figure_definitions(evaluations)
  sections.append(("definitions", "What the figures mean", definitions))
  provenance = report_training.provenance_section(manifest, model_sha256)
  sections.append(("provenance", "Provenance", provenance))
  return _page(config, evaluations, [section for section in sections if section[2]], model_sha256)


def _page(
    config: Mapping[str, Any],
    evaluations: Mapping[str, Any],
    sections: list[tuple[str, str, str]],
    model_sha256: str | None,
) -> str:
  # The headline is of the split that training has seen least of.
  order = {config["data"]["train_split"]: 2, config["data"]["validation_split"]: 1}
  headline = min(evaluations, key=lambda split: order.get(split, 0), default=None)
  top = report_results.tiles(headline, evaluations[headline]) if headline else ""
  top += report_results.caveat_box(report_results.caveats(evaluations, config, model_sha256))
  name = config["dataset_facts"]["name"]
  model = config["model"]
  size = " × ".join(str(edge) for edge in model["image_size"] or ("any", "any"))
  template = importlib.resources.files("flexunet.reporting").joinpath("report_template.html")
  return string.Template(template.read_text(encoding="utf-8")).substitute(
      title=f"FlexUNet: {page.text(name)}",
      heading=page.text(name),
      lead=(
          f"A FlexUNet of {model['num_layers']} stages with {model['base_filters']} filters in the"
          f" first, for {page.text(size)} pixels and {model['num_classes']} classes."
      ),
      navigation="".join(
          f'<a href="#{page.text(anchor)}">{page.text(title)}</a>' for anchor, title, _ in sections
      ),
      body=top + "".join(
          f'<section><h2 id="{page.text(anchor)}">{page.text(title)}</h2>{body}</section>'
          for anchor, title, body in sections
      ),
      footer=(
          "Made by FlexUNet from the files of the run folder. For research; not a medical device,"
          " and no finding of a person may rest on it."
      ),
  )


def read_history(run: run_folder.RunFolder) -> list[dict[str, float]]:
  """Returns the rows of `history.csv`; empty cells are left out, an absent file has no rows."""
  if not run.history_csv.is_file():
    return []
  with open(run.history_csv, newline="", encoding="utf-8") as stream:
    return [
        {name: float(value) for name, value in row.items() if value}
        for row in csv.DictReader(stream)
    ]


def read_cases(path: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the rows of `cases.csv` with `dice` as a float; an absent file has no rows."""
  if not path.is_file():
    return []
  with open(path, newline="", encoding="utf-8") as stream:
    return [
        {**row, "dice": float(row["dice"]) if row["dice"] else math.nan}
        for row in csv.DictReader(stream)
    ]


def file_sha256(path: pathlib.Path) -> str:
  """Returns the hash of a file, hex."""
  digest = hashlib.sha256()
  with open(path, "rb") as stream:
    while block := stream.read(1 << 20):
      digest.update(block)
  return digest.hexdigest()


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
  if not path.is_file():
    return {}
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise InputError(f"{path} must be readable JSON: {error}. Write it again.") from error
