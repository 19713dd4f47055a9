"""The report's part on results: summary tiles, caveats, tables, distributions, definitions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flexunet.evaluation import summary
from flexunet.imaging.label_scheme import LabelScheme
from flexunet.reporting import charts, overlay
from flexunet.reporting import html_parts as page

_HD95 = (
    "95th percentile of the distances between the two surfaces, in millimetres, both ways. Not"
    " defined where truth or prediction is empty, or the spacing is unknown."
)
# How each score of `cases.csv` is written in a heading, and what it means.
SCORES: dict[str, tuple[str, str]] = {
    "dice": ("Dice", summary.DICE_RULE),
    "dice_where_present": (
        "Dice where present",
        "Dice over the volumes in which the class truly is; healthy volumes are left out.",
    ),
    "iou": ("IoU", "Intersection over union of hard labels; equals Dice / (2 - Dice)."),
    "sensitivity": ("Sensitivity", "Share of the true pixels that were found."),
    "precision": ("Precision", "Share of the predicted pixels that are true."),
    "specificity": ("Specificity", "Share of the pixels of other classes that were left alone."),
    "hd95_mm": ("HD95 (mm)", _HD95),
    "assd_mm": ("ASSD (mm)", "Average symmetric distance between the two surfaces, millimetres."),
    "nsd": (
        "Surface Dice",
        "Share of both surfaces that lies within the surface tolerance of the other one.",
    ),
}
_PRESENCE = {
    "both_present": "there and found",
    "missed": "missed wholly",
    "false_alarm": "false alarm",
    "both_empty": "both empty",
}
_FEW_SUBJECTS = 10
_SUBJECTS_SHOWN = 60


def label_of(score: str) -> str:
  """Returns how a score is written in a heading."""
  return SCORES[score][0] if score in SCORES else score.replace("_", " ")


def tiles(split: str, figures: Mapping[str, Any]) -> str:
  """Returns the headline figures of one split."""
  overall, evaluated = figures["foreground_dice"], figures["evaluated"]
  ci95 = overall["ci95"]
  spread = f"95 % interval {page.interval(ci95)}" if ci95 else "too few subjects for an interval"
  volumes = page.count(overall["n"], "volume")
  worst, best = page.number(overall["min"]), page.number(overall["max"])
  entries = [
      ("Mean foreground Dice", page.number(overall["mean"]), f"{volumes}; {spread}"),
      ("Median Dice", page.number(overall["median"]), f"worst {worst}, best {best}"),
  ]
  medians = [entry["hd95_mm"]["median"] for entry in figures["per_class"].values()
             if "hd95_mm" in entry]  # fmt: skip
  if known := [value for value in medians if value is not None]:
    what = "median of the volumes" + ("; of the worst class" if len(medians) > 1 else "")
    entries.append(("HD95", f"{max(known):.1f} mm", what))
  counts = ", ".join(page.count(evaluated[f"{unit}s"], unit) for unit in ("volume", "slice"))
  counts += f" in {page.text(split)}"
  entries.append(("Subjects", page.number(evaluated["subjects"]), counts))
  return '<div class="tiles">' + "".join(
      f'<div class="tile"><span class="what">{what}</span><b>{value}</b><span>{note}</span></div>'
      for what, value, note in entries
  ) + "</div>"


def caveats(
    evaluations: Mapping[str, Mapping[str, Any]],
    config: Mapping[str, Any],
    model_sha256: str | None,
) -> list[str]:
  """Returns what a reader must know before trusting the figures, one sentence (HTML) each.

  Args:
    evaluations: Split -> its entry in `metrics.json`.
    config: `config.json`.
    model_sha256: Of the run's present model, None where there is none.
  """
  if not evaluations:
    unseen = (
        "Nothing has been evaluated yet; the curves below are of training and validation. Run"
        " <code>flexunet-evaluate</code> on a split that training has not seen."
    )
    return [unseen]
  found = []
  for split, figures in evaluations.items():
    evaluated = figures["evaluated"]
    volumes = page.count(evaluated["volumes"], "volume")
    says = []
    if evaluated["subjects"] < _FEW_SUBJECTS:
      says.append(
          f"only {page.count(evaluated['subjects'], 'subject')}. The figures can change much with"
          " other people; of so few, even the interval is too narrow."
      )
    if split == config["data"]["validation_split"]:
      says.append("it chose the best checkpoint, so its figures are optimistic.")
    if split == config["data"]["train_split"]:
      says.append("the network was trained on it. Its figures tell nothing about new people.")
    elif shared := evaluated.get("subjects_also_trained_on"):
      says.append(
          f"{shared} of {page.count(evaluated['subjects'], 'subject')} trained on too, with other"
          " slices. Its figures say little about new people: build the dataset with a split by"
          " subject."
      )
    if empty := figures["foreground_dice"]["n_empty"]:
      says.append(
          f"{empty} of {volumes} empty in truth and prediction: no Dice, left out of its means."
      )
    if flat := evaluated.get("volumes_with_2d_distances"):
      says.append(
          f"{flat} of {volumes} with gaps between slices, or a single slice: surface distances are"
          " measured within slices."
      )
    if unknown := evaluated.get("volumes_without_spacing"):
      says.append(
          f"{unknown} of {volumes} without a known spacing: no distances in millimetres."
      )
    if evaluated["fingerprint"] != config["dataset_facts"]["fingerprint"]:
      says.append("evaluated on other records than those the run was trained on.")
    if model_sha256 and evaluated["model_sha256"] != model_sha256:
      says.append("evaluated with an earlier checkpoint of this run. Evaluate again.")
    found += [f"<b>{page.text(split)}</b>: {sentence}" for sentence in says]
  return found


def caveat_box(sentences: Sequence[str]) -> str:
  """Returns the sentences in a box of their own."""
  if not sentences:
    return ""
  items = "".join(f"<li>{sentence}</li>" for sentence in sentences)
  return f'<div class="caveats"><h3>Before you trust the figures</h3><ul>{items}</ul></div>'


def split_section(
    figures: Mapping[str, Any], cases: Sequence[Mapping[str, Any]], scheme: LabelScheme
) -> str:
  """Returns tables and distributions of one evaluated split.

  Args:
    figures: Its entry in `metrics.json`.
    cases: Its rows of `cases.csv`, with `dice` as a float, NaN where there is none.
    scheme: Names and colours of the classes.
  """
  palette = dict(zip(scheme.names, overlay.display_palette(scheme.palette), strict=True))
  groups = [
      (name, [row["dice"] for row in cases if row["class"] == name], page.color(palette[name]))
      for name in figures["per_class"]
  ]
  chart = charts.strip_chart(groups, title="Dice of each volume, per class")
  figure = (
      f'<figure class="strip">{chart}<figcaption class="note">One dot a volume; box: quartiles;'
      " line and number: median. Dots are spread upright only to be told apart.</figcaption>"
      "</figure>"
  )
  return (
      _class_tables(figures["per_class"], palette)
      + (figure if chart else "")
      + _subject_table(figures, palette)
      + _published(figures["published"])
  )


def _class_tables(per_class: Mapping[str, Any], palette: Mapping[str, np.ndarray]) -> str:
  named = {name: f"{page.swatch(palette[name])}{page.text(name)}" for name in per_class}
  headers = ["Class", "mean Dice", "95 % interval", "median", "sd", "min", "max", "volumes"]
  headers.append("empty")
  rows = []
  for name, entry in per_class.items():
    dice = entry["dice"]
    spread = [page.number(dice[key]) for key in ("median", "sd", "min", "max", "n", "n_empty")]
    mean = f"<b>{page.number(dice['mean'])}</b>"
    rows.append([named[name], mean, page.interval(dice["ci95"]), *spread])
  parts = ["<h3>Per class</h3>", page.table(headers, rows)]

  entries = list(per_class.values())
  others = [score for score in entries[0] if score not in ("dice", "presence")]
  others = [score for score in others if any(entry[score]["n"] for entry in entries)]
  if not any(entry["presence"]["false_alarm"] for entry in entries):
    others.remove("dice_where_present")  # The same figures as above.
  if others:
    rows = [
        [named[name], *(_mean_and_sd(entry[score], _digits(score)) for score in others)]
        for name, entry in per_class.items()
    ]
    parts.append(page.table(["Class", *(page.text(label_of(score)) for score in others)], rows))
    parts.append('<p class="note">Mean ± standard deviation of the volumes that have a value.</p>')

  if any(entry["presence"][kind] for entry in per_class.values()
         for kind in ("missed", "false_alarm", "both_empty")):  # fmt: skip
    rows = [
        [named[name], *(page.number(entry["presence"][kind]) for kind in _PRESENCE)]
        for name, entry in per_class.items()
    ]
    parts.append(page.table(["Volumes in which the class is …", *_PRESENCE.values()], rows))
  return "".join(parts)


def _mean_and_sd(entry: Mapping[str, Any], digits: int) -> str:
  mean = page.number(entry["mean"], digits)
  return mean if entry["sd"] is None else f"{mean} ± {page.number(entry['sd'], digits)}"


def _digits(score: str) -> int:
  return 2 if score.endswith("_mm") else 3


def _subject_table(figures: Mapping[str, Any], palette: Mapping[str, np.ndarray]) -> str:
  classes = list(figures["per_class"])
  shown = classes if len(classes) > 1 else []
  headers = ["Subject", "volumes", "foreground Dice"]
  headers += [f"{page.swatch(palette[name])}{page.text(name)}" for name in shown]
  entries = sorted(
      figures["per_subject"],
      key=lambda entry: math.inf if entry["foreground_dice"] is None else entry["foreground_dice"],
  )
  rows = [
      [
          page.text(entry["subject"]),
          page.number(entry["volumes"]),
          page.number(entry["foreground_dice"]),
          *(page.number(entry["dice"][name]) for name in shown),
      ]
      for entry in entries[:_SUBJECTS_SHOWN]
  ]
  hidden = len(entries) - len(rows)
  more = f'<p class="note">And {hidden} more in evaluation/cases.csv.</p>' if hidden else ""
  return "<h3>Per subject, worst first</h3>" + page.table(headers, rows) + more


def _published(published: Mapping[str, Any]) -> str:
  coefficient = page.number(published["dice_coef_multiclass"], 4)
  accuracy = page.number(published["pixel_accuracy"], 4)
  return (
      "<h3>For comparison with published figures</h3>"
      f"<p>dice_coef_multiclass <b>{coefficient}</b>, pixel accuracy <b>{accuracy}</b>."
      ' <span class="soft">Both count the background, which fills most of a slice: they are close'
      " to 1 even where structures are missed, and are not the Dice above.</span></p>"
  )


def figure_definitions(evaluations: Mapping[str, Mapping[str, Any]]) -> str:
  """Returns what each figure means, with its rules for empty cases."""
  if not evaluations:
    return ""
  figures = next(iter(evaluations.values()))
  scores = next(iter(figures["per_class"].values()))
  entries = [SCORES[name] for name in scores if name in SCORES]
  entries += [
      ("Foreground Dice", summary.FOREGROUND_RULE),
      ("95 % interval", summary.INTERVAL_RULE),
      ("Empty", "Volumes in which the class is empty in truth and in the prediction."),
      ("Surface tolerance", f"{figures['evaluated']['surface_tolerance_mm']:g} mm."),
      ("dice_coef_multiclass", summary.PUBLISHED_RULE),
      (page.DASH, "Not defined."),
  ]
  if figures["evaluated"].get("mirrored"):
    entries.append(("Mirroring", "Probabilities are averaged with those of the mirrored slice."))
  return page.definitions([(page.text(term), page.text(what)) for term, what in entries])
