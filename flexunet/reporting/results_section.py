"""The report's part on results: tiles, tables, distributions, definitions."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flexunet.evaluation import summary
from flexunet.imaging.label_scheme import LabelScheme
from flexunet.reporting import charts, colors
from flexunet.reporting import html_parts as page

_HD95 = (
    "95th percentile of the distances between the two surfaces, in millimetres, the larger of both"
    " directions. Distances run between the centres of surface voxels, each counted once. Not"
    " defined where truth or prediction is empty, or the spacing is unknown."
)
_SURFACE_DICE = (
    "Share of the {} of both surfaces that lies within {} mm of the other one, after Nikolov et al."
    " 2018. A surface without a counterpart counts as 0."
)
_IN_SLICES = (
    "Only of volumes with gaps between slices or with a single slice. Not defined where a slice has"
    " the class in only one of truth and prediction: such a slice has no distance."
)
_PIXELS = (
    "Only of volumes of unknown spacing. Slices count as one pixel apart, so the figure compares"
    " networks on the same images and is no length."
)
# How each score of `cases.csv` is written in a heading, and what it means.
SCORES: dict[str, tuple[str, str]] = {
    "dice": ("Dice", summary.DICE_RULE),
    "dice_where_present": (
        "Dice where present",
        "Dice over the volumes in which the class is truly present; the others are left out.",
    ),
    "iou": ("IoU", "Intersection over union of hard labels; equals Dice / (2 - Dice)."),
    "sensitivity": ("Sensitivity", "Share of the true pixels that were predicted."),
    "precision": ("Precision", "Share of the predicted pixels that are true."),
    "specificity": (
        "Specificity",
        "Share of the pixels outside the class that were not predicted as it.",
    ),
    "hd95_mm": ("HD95 (mm)", _HD95),
    "hd95_2d_mm": ("HD95 in slices (mm)", "As HD95, of all slices together. " + _IN_SLICES),
    "assd_mm": (
        "ASSD (mm)",
        "Average symmetric distance between the two surfaces, in millimetres, between the centres"
        " of surface voxels like HD95.",
    ),
    "assd_2d_mm": ("ASSD in slices (mm)", "As ASSD, of all slices together. " + _IN_SLICES),
    "hd100_mm": ("HD100 (mm)", "Greatest distance between the two surfaces: one voxel decides it."),
    "hd100_2d_mm": ("HD100 in slices (mm)", "As HD100, of all slices together. " + _IN_SLICES),
    "masd_mm": (
        "MASD (mm)",
        "Mean of the two directed mean distances between the surfaces: both directions weigh alike,"
        " where the ASSD weighs every surface voxel alike.",
    ),
    "masd_2d_mm": ("MASD in slices (mm)", "As MASD, of all slices together. " + _IN_SLICES),
    **{
        f"{name.lower()}_{infix}px": (f"{name}{where} (pixels)", f"As {name}, in pixels. {_PIXELS}")
        for name in ("HD95", "ASSD", "HD100", "MASD")
        for infix, where in (("", ""), ("2d_", " in slices"))
    },
    "lesion_sensitivity": ("Lesion sensitivity", "Share of the true lesions that are found."),
    "lesion_precision": ("Lesion precision", "Share of the predicted lesions that are not false."),
    "lesion_f1": ("Lesion F1", "Harmonic mean of lesion sensitivity and lesion precision."),
    "lesions_reference": ("True lesions", "True lesions per volume."),
    "lesions_predicted": ("Predicted lesions", "Predicted lesions per volume."),
    "lesions_missed": ("Missed lesions", "True lesions per volume that are not found."),
    "lesions_false_positive": (
        "False lesions", "Predicted lesions per volume that are false; volumes without any count.",
    ),
}
_SURFACE_DICE_NAME = re.compile(r"surface_dice_(2d_)?(.+)mm")
_PRESENCE = {
    "both_present": "present and predicted",
    "missed": "present, not predicted",
    "false_alarm": "absent, predicted",
    "both_empty": "absent, not predicted",
}
_SUBJECTS_SHOWN = 60


def label_of(score: str) -> str:
  """Returns how a score is written in a heading."""
  known = _named(score)
  return known[0] if known else score.replace("_", " ")


def _named(score: str) -> tuple[str, str] | None:
  """Returns heading and meaning of a score; None for what is no score."""
  if surface := _SURFACE_DICE_NAME.fullmatch(score):
    flat, tolerance = surface.groups()
    heading = f"Surface Dice{' in slices' if flat else ''}, {tolerance} mm"
    return heading, _SURFACE_DICE.format("length, within slices," if flat else "area", tolerance)
  return SCORES.get(score)


def tiles(split: str, figures: Mapping[str, Any]) -> str:
  """Returns the headline figures of one split as HTML.

  Args:
    split: Its name.
    figures: Its entry in `metrics.json`.
  """
  overall, evaluated = figures["foreground_dice"], figures["evaluated"]
  ci95 = overall["ci95"]
  spread = f"95 % interval {page.interval(ci95)}" if ci95 else "no interval"
  volumes = page.count(overall["n"], "volume")
  spread += "" if not ci95 else f" of {page.count(ci95['n'], 'subject')}"
  worst, best = page.number(overall["min"]), page.number(overall["max"])
  entries = [
      (f"Mean foreground Dice, {page.text(split)}", page.number(overall["mean"]),
       f"{volumes}; {spread}"),
      ("Median Dice", page.number(overall["median"]), f"worst {worst}, best {best}"),
  ]  # fmt: skip
  for score, what in (("hd95_mm", "HD95"), ("hd95_2d_mm", "HD95 in slices")):
    medians = [entry[score] for entry in figures["per_class"].values() if score in entry]
    if known := [one for one in medians if one["median"] is not None]:
      worst_class = max(known, key=lambda one: one["median"])
      note = "median over the volumes" + (", of the worst class" if len(medians) > 1 else "")
      none = f"; none in {worst_class['n_undefined']}" if worst_class["n_undefined"] else ""
      entries.append((what, f"{worst_class['median']:.1f} mm", note + none))
  counts = ", ".join(page.count(evaluated[f"{unit}s"], unit) for unit in ("volume", "slice"))
  entries.append(("Subjects", page.number(evaluated["subjects"]), counts))
  return '<div class="tiles">' + "".join(
      f'<div class="tile"><span class="what">{what}</span><b>{value}</b><span>{note}</span></div>'
      for what, value, note in entries
  ) + "</div>"


def split_section(
    figures: Mapping[str, Any], cases: Sequence[Mapping[str, Any]], scheme: LabelScheme
) -> str:
  """Returns tables and distributions of one evaluated split as HTML.

  Args:
    figures: Its entry in `metrics.json`.
    cases: Its rows of `cases.csv`, with `dice` as a float, NaN where there is none.
    scheme: Names and colours of the classes.
  """
  palette = dict(zip(scheme.names, colors.display_palette(scheme.palette), strict=True))
  per_class = figures["per_class"]
  named = {name: page.class_name(name, palette[name]) for name in per_class}
  return (
      "<h3>Per class</h3>"
      + _dice_table(per_class, named)
      + _score_table(per_class, named)
      + _presence_table(per_class, named)
      + _distribution(cases, {name: page.color(palette[name]) for name in per_class})
      + _subject_table(figures["per_subject"], named)
      + (_published(figures["published"]) if "published" in figures else "")
  )


def _dice_table(per_class: Mapping[str, Any], named: Mapping[str, str]) -> str:
  headers = ["Class", "Mean Dice", "95 % interval", "of subjects"]
  headers += ["Median", "SD", "Min", "Max", "Volumes", "Empty"]
  rows = []
  for name, entry in per_class.items():
    dice = entry["dice"]
    spread = [page.number(dice[key]) for key in ("median", "sd", "min", "max", "n", "n_empty")]
    mean = f"<b>{page.number(dice['mean'])}</b>"
    subjects = str(dice["ci95"]["n"]) if dice["ci95"] else page.DASH
    rows.append([named[name], mean, page.interval(dice["ci95"]), subjects, *spread])
  return page.table(headers, rows)


def _score_table(per_class: Mapping[str, Any], named: Mapping[str, str]) -> str:
  """Returns the scores beside Dice that any class has."""
  entries = list(per_class.values())
  scores = [
      score for score in entries[0]
      if score != "dice" and _named(score) and any(entry[score]["n"] for entry in entries)
  ]  # fmt: skip
  if not any(entry["presence"]["false_alarm"] for entry in entries):
    # The same figures as those of Dice.
    scores = [score for score in scores if score != "dice_where_present"]
  if not scores:
    return ""
  rows = [
      [named[name], *(_score_cell(entry[score], _digits(score)) for score in scores)]
      for name, entry in per_class.items()
  ]
  table = page.table(["Class", *(page.text(label_of(score)) for score in scores)], rows)
  note = (
      "Mean ± standard deviation over the volumes that have a value; below it the 95 % interval,"
      " and how many volumes have a value and how many none."
  )
  return f'{table}<p class="note">{note}</p>'


def _presence_table(per_class: Mapping[str, Any], named: Mapping[str, str]) -> str:
  """Returns in how many volumes each class is and was predicted; nothing where always both."""
  noteworthy = ("missed", "false_alarm", "both_empty")
  if not any(entry["presence"][kind] for entry in per_class.values() for kind in noteworthy):
    return ""
  rows = [
      [named[name], *(page.number(entry["presence"][kind]) for kind in _PRESENCE)]
      for name, entry in per_class.items()
  ]
  return page.table(["Volumes in which the class is …", *_PRESENCE.values()], rows)


def _distribution(cases: Sequence[Mapping[str, Any]], colors: Mapping[str, str]) -> str:
  groups = [
      charts.Values(
          name.replace("_", " "), [row["dice"] for row in cases if row["class"] == name], color
      )
      for name, color in colors.items()
  ]
  chart = charts.svg(charts.StripChart(title="Dice of each volume, per class", groups=groups))
  if not chart:
    return ""
  return (
      f'<figure class="strip">{page.chart(chart)}<figcaption class="note">One dot per volume; the'
      " box spans the quartiles, line and number are the median. Dots are shifted up and down only"
      " to keep them apart.</figcaption></figure>"
  )


def _score_cell(entry: Mapping[str, Any], digits: int) -> str:
  """Returns mean and spread of a score, below them its interval and the volumes it is of."""
  mean = page.number(entry["mean"], digits)
  spread = mean if entry["sd"] is None else f"{mean} ± {page.number(entry['sd'], digits)}"
  below = [page.interval(entry["ci95"], digits)] if entry["ci95"] else []
  below.append(f"n {entry['n']}")
  if entry["n_undefined"]:
    below.append(f"none in {entry['n_undefined']}")
  return f'{spread}<br><span class="soft">{"; ".join(below)}</span>'


def _digits(score: str) -> int:
  return 2 if score.endswith("_mm") else 3


def _subject_table(per_subject: Sequence[Mapping[str, Any]], named: Mapping[str, str]) -> str:
  classes = list(named) if len(named) > 1 else []
  headers = ["Subject", "Volumes", "Foreground Dice", *(named[name] for name in classes)]
  entries = sorted(
      per_subject,
      key=lambda entry: math.inf if entry["foreground_dice"] is None else entry["foreground_dice"],
  )
  rows = [
      [
          page.text(entry["subject"]),
          page.number(entry["volumes"]),
          page.number(entry["foreground_dice"]),
          *(page.number(entry["dice"][name]) for name in classes),
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
      ' <span class="soft">Both count the background, which fills most of a slice. They are close'
      " to 1 even where structures are missed, and are not the Dice above.</span></p>"
  )


def figure_definitions(evaluations: Mapping[str, Mapping[str, Any]]) -> str:
  """Returns what each figure means as HTML, with its rules for empty cases.

  Args:
    evaluations: Split -> its entry in `metrics.json`.
  """
  if not evaluations:
    return ""
  figures = next(iter(evaluations.values()))
  scores = next(iter(figures["per_class"].values()))
  entries = [known for name in scores if (known := _named(name))]
  entries += [
      ("Foreground Dice", summary.FOREGROUND_RULE),
      ("95 % interval", summary.INTERVAL_RULE),
      ("Empty", "Volumes in which the class is empty in truth and in the prediction."),
      ("dice_coef_multiclass", summary.PUBLISHED_RULE),
      (page.DASH, "Not defined."),
  ]
  entries += [("Prediction", f"{line}.") for line in figures["evaluated"].get("passes", ())]
  return page.definitions([(page.text(term), page.text(what)) for term, what in entries])
