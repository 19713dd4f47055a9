"""The report's part on errors: by slice position, between classes, of volumes, of probabilities.

Each part stands where an evaluation has written its figures, and is left out where it has not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flexunet.evaluation import agreement
from flexunet.imaging.label_scheme import LabelScheme
from flexunet.imaging.slicing import SlicePlan
from flexunet.reporting import charts, colors, error_charts
from flexunet.reporting import html_parts as page

_MISSED, _FALSE = charts.LINE_COLORS[5], charts.LINE_COLORS[1]
# By the code towards which slices run; nothing is claimed about left and right.
_DIRECTIONS = {"A": "back to front", "P": "front to back", "S": "upwards", "I": "downwards"}


def errors_section(
    figures: Mapping[str, Any],
    cases: Sequence[Mapping[str, Any]],
    scheme: LabelScheme,
    plan: SlicePlan | None,
) -> str:
  """Returns where and how the network errs, as HTML; nothing where no figures are there.

  Args:
    figures: Entry of the split in `metrics.json`.
    cases: Its rows of `cases.csv`; `reference_ml` and `predicted_ml` are floats, NaN where unknown.
    scheme: Names and colours of the classes.
    plan: How volumes were cut; None where the dataset is of images.
  """
  return (
      _positions(figures.get("slice_errors"), plan)
      + _confusion(figures.get("confusion"))
      + _agreement(figures["per_class"], cases, scheme)
      + _calibration(figures.get("calibration"))
  )


def _positions(slice_errors: Mapping[str, Any] | None, plan: SlicePlan | None) -> str:
  """Returns the charts of errors by slice position."""
  if not slice_errors:
    return ""
  entries = {name.replace("_", " "): one for name, one in slice_errors["per_class"].items()}
  if len(entries) > 1:
    entries = {"All classes": slice_errors["all_classes"], **entries}
  edges = [*slice_errors["low"], slice_errors["high"][-1]]
  drawn = [charts.svg(_position_chart(title, one, edges, plan)) for title, one in entries.items()]
  if not any(drawn):
    return ""
  alone = slice_errors["volumes_without_position"]
  skipped = f" {page.count(alone, 'volume')} of one slice left out." if alone else ""
  return (
      "<h3>Errors by slice position</h3>"
      + page.chart_grid(drawn)
      + f'<p class="note">{page.text(slice_errors["rule"])}{skipped}</p>'
  )


def _position_chart(
    title: str, counts: Mapping[str, Sequence[int]], edges: Sequence[float], plan: SlicePlan | None
) -> charts.Chart:
  true, found = (np.asarray(counts[name], float) for name in ("true", "predicted"))
  missed, false = (np.asarray(counts[f"false_{side}"], float) for side in ("negative", "positive"))
  direction = _DIRECTIONS.get(plan.display_axes[2]) if plan else None
  with np.errstate(divide="ignore", invalid="ignore"):
    shares = missed / true, false / found
  return error_charts.StepChart(
      title=title,
      x_label="first to last slice" + (f", {direction}" if direction else ""),
      y_label="share of pixels",
      series=[
          charts.Values("missed", shares[0], _MISSED),
          charts.Values("false", shares[1], _FALSE),
      ],
      edges=edges,
  )


def _confusion(confusion: Mapping[str, Any] | None) -> str:
  """Returns which classes are taken for which, as a table shaded by the share of each row."""
  if not confusion:
    return ""
  pixels = np.asarray(confusion["pixels"], np.int64)
  totals = pixels.sum(axis=1)
  names = [page.words(name) for name in confusion["classes"]]
  rows = []
  for name, own, total in zip(names, pixels, totals, strict=True):
    cells = [_share_cell(count, total) for count in own]
    rows.append(f"<tr><td>{name}</td>{''.join(cells)}"
                f'<td class="number">{total:,}</td></tr>')  # fmt: skip
  heads = "".join(f'<th class="number">{name}</th>' for name in names)
  return (
      "<h3>Which class is taken for which</h3>"
      '<div class="scroll"><table class="matrix"><thead><tr><th>True class</th>'
      f'{heads}<th class="number">Pixels</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
      "</div>"
      '<p class="note">Rows are true classes, columns what was predicted: the share of the true'
      " pixels of each class, over all volumes.</p>"
  )


def _share_cell(count: int, total: int) -> str:
  if not total:
    return f'<td class="number">{page.DASH}</td>'
  share = count / total
  shown = "0" if not count else f"{100 * share:.1f} %" if share >= 5e-4 else "&lt; 0.1 %"
  return (
      f'<td class="number" style="background: rgba(var(--heat), {0.55 * share:.3f})"'
      f' title="{count:,} pixels">{shown}</td>'
  )


def _agreement(
    per_class: Mapping[str, Any], cases: Sequence[Mapping[str, Any]], scheme: LabelScheme
) -> str:
  """Returns true and predicted volumes compared, for the classes that have figures of it."""
  shown = dict(zip(scheme.names, colors.display_palette(scheme.palette), strict=True))
  drawn, rows = [], []
  for name, entry in per_class.items():
    found = entry.get("volume_agreement") or {}
    unit = found.get("unit", "ml")
    bias, low, high = (found.get(f"{key}_{unit}") for key in ("bias", "low", "high"))
    if bias is None or low is None or high is None:
      continue
    pairs = [
        tuple(row[column] for column in agreement.COLUMNS[unit])
        for row in cases if row["class"] == name
    ]  # fmt: skip
    pairs = [pair for pair in pairs if all(map(math.isfinite, pair)) and any(pair)]
    said = {"mm2": "mm²"}.get(unit, unit)
    drawn.append(
        charts.svg(
            error_charts.AgreementChart(
                title=f"Volume of {name.replace('_', ' ')}",
                x_label=f"mean of true and predicted, {said}",
                y_label=f"predicted − true, {said}",
                mean=[(true + claimed) / 2 for true, claimed in pairs],
                difference=[claimed - true for true, claimed in pairs],
                bias=bias,
                low=low,
                high=high,
                color=page.color(shown[name]),
            )
        )
    )
    relative = found.get("relative_bias")
    rows.append([
        page.class_name(name, shown[name]),
        page.number(found["n"]),
        said,
        page.number(bias, 2),
        page.interval({"low": low, "high": high}, 2),
        page.DASH if relative is None else f"{100 * relative:+.1f} %",
    ])
  if not rows:
    return ""
  headers = ["Class", "Subjects", "Unit", "Bias", "Limits of agreement", "Relative bias"]
  return (
      "<h3>Agreement of volumes</h3>"
      + page.table(headers, rows)
      + page.chart_grid(drawn)
      + '<p class="note">Predicted minus true volume, a dot per scan (Bland and Altman 1986). The'
      " bias is the mean difference of the subjects; between the limits of agreement lie about 95 %"
      " of the differences.</p>"
  )


def _calibration(calibration: Mapping[str, Any] | None) -> str:
  """Returns whether probabilities can be believed."""
  if not calibration or calibration.get("ece") is None:
    return ""
  parts = {"All classes": calibration, **calibration.get("per_class", {})}
  drawn = [
      charts.svg(_reliability_chart(name.replace("_", " "), one["bins"]))
      for name, one in parts.items()
  ]
  entries = [
      ("Expected calibration error", page.number(calibration["ece"])),
      ("Brier score", page.number(calibration["brier"])),
  ]
  temperature = calibration.get("temperature")
  if temperature is not None:
    scaled = "probabilities as the network gives them"
    if temperature != 1:
      scaled = f"{temperature:.3g}, learnt on validation"
    entries.append(("Temperature", page.text(scaled)))
  entries.append(("Counted", page.text(calibration["region"])))
  rule = calibration.get("rule") or (
      "A dot per range of confidence, its area the share of voxels in it. Below the diagonal the"
      " network is surer than it is right."
  )
  return (
      "<h3>Calibration of probabilities</h3>"
      + page.definitions(entries)
      + page.chart_grid(drawn)
      + f'<p class="note">{page.text(rule)}</p>'
  )


def _reliability_chart(title: str, bins: Sequence[Mapping[str, Any]]) -> charts.Chart:
  pixels = np.array([one["pixels"] for one in bins], float)
  accuracy, confidence = (
      [math.nan if one[key] is None else one[key] for one in bins]
      for key in ("accuracy", "confidence")
  )
  return error_charts.ReliabilityChart(
      title=title,
      x_label="confidence",
      y_label="share that is right",
      confidence=confidence,
      accuracy=accuracy,
      share=pixels / max(pixels.sum(), 1),
  )
