"""The report's part on disturbed scans: how strong a disturbance may be, and how that looks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flexunet.evaluation import stress_summary
from flexunet.evaluation.stress_examples import StressExample
from flexunet.evaluation.stress_summary import BEFORE, BEYOND, FALL, WITHIN, quantity
from flexunet.imaging.label_scheme import LabelScheme
from flexunet.reporting import charts, colors, overlay
from flexunet.reporting import html_parts as page

if TYPE_CHECKING:
  from matplotlib.axes import Axes

_MEAN, _LIMIT, _CEILING = charts.LINE_COLORS[0], charts.LINE_COLORS[1], charts.LINE_COLORS[2]
_CLEAN = charts.LINE_COLORS[6]
_LONGEST, _OUTLINE = 480, 2
_VISIBLE_CEILING = 0.995  # A line along the edge of the chart says nothing.
_MARGIN, _LEAST_SHOWN = 1.2, 96  # Around small structures; the disturbance must be seen too.


@dataclasses.dataclass(frozen=True, kw_only=True)
class StressChart(charts.Chart):
  """Dice over the strength of a disturbance.

  Attributes:
    strengths: Mildest first, that which changes nothing before them.
    mean, low, high: Of the volumes, at each.
    ceiling: Dice of a perfect answer, at each; drawn where it is clearly below 1.
    fall: The strength at which Dice has fallen by `FALL`; None: it is not among them.
    y_range: Ends of the y axis.
  """

  strengths: Sequence[float]
  mean: Sequence[float]
  low: Sequence[float]
  high: Sequence[float]
  ceiling: Sequence[float]
  fall: float | None
  y_range: tuple[float, float]

  @property
  def empty(self) -> bool:
    """Whether there is no value."""
    return not np.isfinite(np.asarray(self.mean, float)).any()

  @property
  def legend_names(self) -> list[str]:
    """The lines."""
    names = ["mean", "undisturbed", f"{FALL:g} less"]
    return [*names, "ceiling"] if self._has_ceiling else names

  @property
  def _has_ceiling(self) -> bool:
    return min(self.ceiling) < _VISIBLE_CEILING

  def plot(self, axis: Axes) -> None:
    """Draws the mean over the range of the volumes, and the lines it is compared with."""
    clean = self.mean[0]
    axis.fill_between(self.strengths, self.low, self.high, color=_MEAN, alpha=0.18, linewidth=0)
    axis.plot(self.strengths, self.mean, color=_MEAN, marker="o", label="mean", zorder=3)
    axis.axhline(clean, color=_CLEAN, linewidth=1.2, label="undisturbed")
    axis.axhline(
        clean - FALL, color=_LIMIT, linewidth=1.2, linestyle=(0, (4, 3)), label=f"{FALL:g} less"
    )
    if self._has_ceiling:
      axis.plot(
          self.strengths, self.ceiling, color=_CEILING, linewidth=1.4, linestyle=":",
          label="ceiling",
      )  # fmt: skip
    if self.fall is not None:
      axis.axvline(self.fall, color=_LIMIT, linewidth=1.2, linestyle=(0, (4, 3)))
      axis.plot([self.fall], [clean - FALL], color=_LIMIT, marker="D", markersize=7, zorder=4)
    axis.set_ylim(self.y_range)
    first, last = self.strengths[0], self.strengths[-1]
    pad = 0.04 * (last - first)
    axis.set_xlim(first - pad, last + pad)  # Of gamma below 1 the axis runs down.
    axis.grid(axis="y")


def stress_section(
    entry: Mapping[str, Any] | None,
    examples: Sequence[StressExample],
    scheme: LabelScheme,
    model_sha256: str | None,
) -> str:
  """Returns the robustness of a run on a split as HTML; nothing where it was not tested.

  Args:
    entry: Of the split in `stress.json`.
    examples: A slice of each disturbance, the undisturbed one first.
    scheme: Names and colours of the classes.
    model_sha256: Of the network that there is now; None: unknown.
  """
  if not entry:
    return ""
  parts = [_lead(entry, model_sha256)]
  if entry["disturbances"]:
    parts += [_table(entry), _gallery(entry, examples, scheme), _charts(entry)]
  parts.append(_sentences(entry))
  parts.append(_definitions(entry))
  return "".join(parts)


def _lead(entry: Mapping[str, Any], model_sha256: str | None) -> str:
  clean = entry["clean"]["dice"]
  volumes = page.count(entry["volumes_with_foreground"], "volume")
  stale = ""
  if model_sha256 and entry["model_sha256"] != model_sha256:
    stale = " <b>It was another model.keras that was tested: run the test again.</b>"
  return (
      f"<p>{volumes} of {page.text(entry['split'])} were disturbed in rising strength and predicted"
      f" again; undisturbed their Dice is {page.number(clean)}. Most harmful first, by how early"
      f" among the strengths that were tried Dice has fallen by {FALL:g}.{stale}</p>"
  )


def _table(entry: Mapping[str, Any]) -> str:
  several = len(entry["clean"]["per_class"]) > 1
  headers = ["Disturbance", f"Dice has fallen by {FALL:g} at"]
  headers += ["Class that falls first"] if several else []
  headers += ["Least Dice", "at", "of volumes", "Ceiling there"]
  rows = []
  for one in entry["disturbances"]:
    worst = stress_summary.least_grade(one)
    row = [page.text(one["title"]), _fall_cell(one)]
    if several:
      row.append(_first_class(one))
    at = page.text(quantity(worst["strength"], one["unit"])) if one["graded"] else ""
    row += [
        page.number(worst["dice"]), at, page.interval(worst), page.number(worst["ceiling"]),
    ]  # fmt: skip
    rows.append(row)
  texts = (0, 1, 2) if several else (0, 1)
  return page.table(headers, rows, texts=texts, sortable=False)


def _fall_cell(one: Mapping[str, Any]) -> str:
  status = one["fall"]["status"]
  if status == WITHIN:
    said = page.text(stress_summary.fall_text(one))
    return f"<b>{said}</b>{_snr(one, one['fall']['strength'])}"
  if status in (BEFORE, BEYOND):
    return page.text(stress_summary.fall_text(one))
  fall = one["clean"]["dice"] - stress_summary.least_grade(one)["dice"]
  return f"not graded: {fall:.3f} less" if fall > 0 else "not graded: no less"


def _snr(one: Mapping[str, Any], strength: float) -> str:
  """Returns the signal-to-noise ratio at a strength of noise; nothing of other disturbances."""
  known = [grade for grade in one["grades"] if grade.get("snr")]
  if not known:
    return ""
  return f" (SNR {known[0]['snr'] * known[0]['strength'] / strength:.1f})"


def _first_class(one: Mapping[str, Any]) -> str:
  name = one["most_fragile_class"]
  if not name:
    return page.DASH
  fall = one["per_class_fall"][name]
  said = stress_summary.fall_text(one, fall)
  return f"{page.words(name)}: {page.text(said)}"


def _gallery(
    entry: Mapping[str, Any], examples: Sequence[StressExample], scheme: LabelScheme
) -> str:
  """Returns a slice of each disturbance with the answer's outline."""
  if not examples:
    return ""
  palette = colors.display_palette(scheme.palette)
  titles = {one["name"]: one for one in entry["disturbances"]}
  panels = []
  for shown in examples:
    if shown.name != stress_summary.CLEAN and shown.name not in titles:
      continue
    caption = "undisturbed"
    if shown.name in titles:
      one = titles[shown.name]
      strength = page.text(quantity(shown.strength, one["unit"])) if one["graded"] else ""
      caption = f"{page.text(one['title'])} {strength}"
    panels.append(_panel(shown, palette, caption))
  named = " ".join(
      page.class_name(name, palette[index]) for index, name in enumerate(scheme.names) if index
  )
  first = examples[0]
  return (
      "<h3>What these strengths look like</h3>"
      f'<div class="legend">{named}</div><div class="panels of4">{"".join(panels)}</div>'
      f'<p class="note">Subject {page.text(first.subject)}, whose Dice is the median; slice'
      f" {first.slice_index}, with most true foreground (of missing slices the one among them)."
      f" Each is shown at the strength at which Dice has fallen by {FALL:g} over all volumes; where"
      " that is before the mildest or beyond the largest that was tried, at that. Outlines are the"
      " answer, taken back to the undisturbed slice where slices or pixels were fewer. A slice that"
      " is missing is black: its answer lies between those of its neighbours.</p>"
  )


def _panel(shown: StressExample, palette: np.ndarray, caption: str) -> str:
  box = overlay.crop_box([shown.truth, shown.prediction], margin=_MARGIN, min_size=_LEAST_SHOWN)
  image, label = shown.image[box], shown.prediction[box]
  shape = overlay.square_shape(label.shape, shown.aspect, _LONGEST)
  outline = overlay.outline(overlay.resized(label, shape, picked=True), _OUTLINE)
  images = page.image(overlay.stretch(image, shown.aspect), caption)
  images += page.layer(outline, palette, "outline")
  return (
      f'<figure><div class="frame">{images}</div><figcaption>{caption}</figcaption></figure>'
  )


def _charts(entry: Mapping[str, Any]) -> str:
  graded = [one for one in entry["disturbances"] if one["graded"]]
  lowest = min(
      (grade["low"] for one in graded for grade in [one["clean"], *one["grades"]]), default=0.0
  )
  y_range = (max(0.0, math.floor(10 * lowest) / 10), 1.02)
  drawn = [charts.svg(_chart(one, y_range)) for one in graded]
  if not any(drawn):
    return ""
  return (
      "<h3>Dice over strength</h3>"
      + page.chart_grid(drawn)
      + '<p class="note">The band is the range of the volumes. The ceiling is drawn where a perfect'
      " answer would lose on its way back to the undisturbed slices.</p>"
  )


def _chart(one: Mapping[str, Any], y_range: tuple[float, float]) -> StressChart:
  grades = [{**one["clean"], "strength": one["neutral"]}, *one["grades"]]
  values = {
      key: [math.nan if grade[key] is None else grade[key] for grade in grades]
      for key in ("strength", "dice", "low", "high", "ceiling")
  }
  return StressChart(
      title=one["title"],
      x_label=one["unit"].replace("of the", "share of the") or "strength",
      y_label="Dice",
      strengths=values["strength"],
      mean=values["dice"],
      low=values["low"],
      high=values["high"],
      ceiling=values["ceiling"],
      fall=one["fall"]["strength"],
      y_range=y_range,
  )


def _sentences(entry: Mapping[str, Any]) -> str:
  """Returns what no chart shows: other axes, sides, false alarms, what was skipped."""
  lines = []
  if found := entry["orientation"]:
    lines.append(page.text(stress_summary.orientation_text(found)))
  for one in entry["disturbances"]:
    if "other_side" in one:
      shares = {key: f"{100 * value:.2f} %" for key, value in one["other_side"].items()}
      lines.append(
          f"Sides: {shares['clean']} of the true pixels got the name of the other side of the body,"
          f" in mirrored scans {shares['flipped']}."
      )
    alarms = max(grade["false_alarms"] for grade in one["grades"])
    if alarms > one["clean"]["false_alarms"]:
      lines.append(
          f"{page.text(one['title'])}: up to {page.count(alarms, 'false alarm')} (a class where a"
          f" volume has none), undisturbed {one['clean']['false_alarms']}."
      )
    if one["volumes"] < entry["volumes_with_foreground"]:
      lines.append(
          f"{page.text(one['title'])}: {page.count(one['volumes'], 'volume')} of"
          f" {entry['volumes_with_foreground']}; the others are not of the kind that it needs."
      )
  lines += [
      f"{page.text(one['title'])} was skipped: {page.text(one['reason'])}."
      for one in entry["skipped"]
  ]
  return "<ul>" + "".join(f"<li>{line}</li>" for line in lines) + "</ul>" if lines else ""


def _definitions(entry: Mapping[str, Any]) -> str:
  terms = [(page.text(one["title"]), page.text(one["what"])) for one in entry["disturbances"]]
  note = f'<p class="note">{page.text(entry["rule"])}</p>'
  if not terms:
    return note
  return (
      f"<details><summary>What each disturbance is</summary>{page.definitions(terms)}</details>"
      + note
  )
