"""`report.html`: one self-contained page that tells what a run was and how well it does.

Everything is read from the run folder: the report can be written again at any time. It holds
subject pseudonyms and slices of the data, but no path of the machine.

The report's pictures: worst and best volumes as image, truth and prediction side by side.
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
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flexunet import run_folder
from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.evaluation import examples
from flexunet.evaluation.examples import Example
from flexunet.imaging.label_scheme import LabelScheme
from flexunet.reporting import html_parts as page
from flexunet.reporting import overlay, results_section, training_section


def write_report(run: run_folder.RunFolder | str | os.PathLike) -> pathlib.Path:
  """Writes the report of a run, trained or still in training, evaluated or not; returns its path.

  Raises:
    InputError: The folder is no run, or one of its files is not readable.
  """
  if not isinstance(run, run_folder.RunFolder):
    run = run_folder.RunFolder.open(run)
  files.write_bytes(run.report_html, render(run).encode("utf-8"))
  return run.report_html


def render(run: run_folder.RunFolder) -> str:
  """Returns the page as text."""
  run_config = run.read_config()
  # Through JSON, so that tuples and lists look the same here as in the file.
  config = json.loads(json.dumps(run_config.to_json()))
  scheme = run_config.dataset_facts.label_scheme
  manifest = _read_json(run.manifest_json)
  evaluations = _read_json(run.metrics_json)
  cases = read_cases(run.cases_csv)
  model_sha256 = file_sha256(run.model_keras) if run.model_keras.is_file() else None

  sections: list[tuple[str, str, str]] = []  # (anchor, title, HTML)
  for split, figures in evaluations.items():
    shown = examples.read(examples.path_of(run, split))
    body = results_section.split_section(
        figures, [row for row in cases if row["split"] == split], scheme
    )
    sections.append((f"results-{split}", f"Results on {split}", body))
    if pictures := case_section(shown, scheme):
      sections.append((f"cases-{split}", f"Cases of {split}", pictures))
  counts = _split_counts(manifest, evaluations)
  sections.append(("data", "Data", training_section.data_section(config, counts, scheme)))
  curves = training_section.curves_section(
      read_history(run), config["training"], manifest.get("validation")
  )
  sections.append(("curves", "Training", curves))
  sections.append(("knobs", "Knobs and reasons", training_section.knobs_section(config)))
  definitions = results_section.figure_definitions(evaluations)
  sections.append(("definitions", "What the figures mean", definitions))
  provenance = training_section.provenance_section(manifest, model_sha256)
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
  top = results_section.tiles(headline, evaluations[headline]) if headline else ""
  top += results_section.caveat_box(results_section.caveats(evaluations, config, model_sha256))
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


def case_section(examples: Sequence[Example], scheme: LabelScheme) -> str:
  """Returns the examples, worst first; nothing where there are none."""
  if not examples:
    return ""
  palette = overlay.display_palette(scheme.palette)
  legend = "".join(
      f'<span class="item">{page.swatch(palette[index])}{page.text(name)}</span>'
      for index, name in enumerate(scheme.names)
      if index
  )
  parts = [f'<div class="legend">{legend}</div>']
  only = "The only case" if len(examples) == 1 else "Best cases"
  for side, title in (("worst", "Worst cases"), ("best", only)):
    if chosen := [example for example in examples if example.side == side]:
      parts.append(f"<h3>{title}</h3>")
      parts += [_case(example, palette) for example in chosen]
  parts.append(
      '<p class="note">Of each volume the slice with most true foreground; the Dice is that of the'
      " whole volume. Where there is a frame in the first picture, the others enlarge it.</p>"
  )
  return "".join(parts)


def _case(example: Example, palette: np.ndarray) -> str:
  box = overlay.crop_box([example.truth, example.prediction])
  crop = example.image[box]
  zoomed = crop.shape != example.image.shape
  panels = [
      ("slice", overlay.frame(example.image, box) if zoomed else example.image),
      ("image", crop),
      ("truth", overlay.blend(crop, example.truth[box], palette)),
      ("prediction", overlay.blend(crop, example.prediction[box], palette)),
  ]
  figures = "".join(
      f'<figure><div class="picture">'
      f"{page.picture(overlay.stretch(pixels, example.aspect), name)}</div>"
      f"<figcaption>{name}</figcaption></figure>"
      # Without anything to enlarge the first two would be the same picture.
      for name, pixels in (panels if zoomed else panels[1:])
  )
  per_class = ", ".join(
      f"{page.text(name)} {page.number(dice)}"
      for name, dice in example.dice.items()
      if dice is not None
  )
  detail = f"<span>{per_class}</span>" if len(example.dice) > 1 else ""
  columns = len(panels) if zoomed else len(panels) - 1
  return (
      f'<div class="case"><header><b>{page.text(example.subject)}</b>'
      f'<span class="dice">Dice <b>{page.number(example.foreground_dice)}</b></span>{detail}'
      f'<span class="soft">volume {page.text(example.volume)}, slice {example.slice_index}</span>'
      f'</header><div class="panels of{columns}">{figures}</div></div>'
  )
