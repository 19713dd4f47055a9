"""The page of a comparison: settings first, then tables, and a line per subject."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from flexunet.core import progress
from flexunet.reporting import charts, html_parts
from flexunet.reporting.html_parts import number, text
from flexunet.tools.compare import comparison, paired, stress_table
from flexunet.tools.compare.comparison import Comparison
from flexunet.tools.compare.paired import PairedResult

if TYPE_CHECKING:
  from matplotlib.axes import Axes

_BETTER, _WORSE, _MEAN = charts.LINE_COLORS[0], charts.LINE_COLORS[1], "#1c2126"
_EQUAL = "#8a8f98"
_LONGEST_NAME = 22  # Letters below a chart, of two runs; fewer for more.
_MOST_CHARTED = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedChart(charts.Chart):
  """A line per subject from run to run, and their mean.

  Attributes:
    runs: Names along the x axis.
    subjects: Name -> its value in each run.
    less_is_better: Which lines count as better.
  """

  runs: Sequence[str]
  subjects: Mapping[str, Sequence[float]]
  less_is_better: bool

  @property
  def empty(self) -> bool:
    """Whether no subject has a value in every run."""
    return not self.subjects

  @property
  def plot_height(self) -> int:
    """Room for slopes."""
    return 280

  @property
  def legend_names(self) -> list[str]:
    """The kinds of lines that there are."""
    return [name for name, _ in self._kinds()]

  def plot(self, axis: Axes) -> None:
    """Draws the lines, and the mean over them."""
    places = range(len(self.runs))
    for name, color in self._kinds()[:-1]:
      own = [values for values in self.subjects.values() if self._kind(values) == name]
      for index, values in enumerate(own):
        axis.plot(
            places, values, color=color, alpha=0.75, linewidth=1.2, marker="o", markersize=3.5,
            label=None if index else name,
        )
    means = [sum(column) / len(column) for column in zip(*self.subjects.values(), strict=True)]
    axis.plot(places, means, color=_MEAN, linewidth=2.6, marker="D", markersize=6, label="mean")
    longest = max(6, 2 * _LONGEST_NAME // len(self.runs))
    axis.set_xticks(places, [_cut(name, longest) for name in self.runs])
    axis.set_xlim(-0.25, len(self.runs) - 0.75)
    axis.grid(axis="y")

  def _kind(self, values: Sequence[float]) -> str:
    """Returns what the last run is to the first."""
    gain = values[-1] - values[0]
    if gain == 0:
      return "equal"
    return "better" if (gain < 0) == self.less_is_better else "worse"

  def _kinds(self) -> list[tuple[str, str]]:
    found = {self._kind(values) for values in self.subjects.values()}
    colors = (("better", _BETTER), ("worse", _WORSE), ("equal", _EQUAL))
    return [*(one for one in colors if one[0] in found), ("mean", _MEAN)]


def render(found: Comparison) -> str:
  """Returns the page of a comparison as text; it needs no other file."""
  subjects = progress.count(found.subjects, "subject")
  return html_parts.document(
      kind="Comparison",
      heading=" · ".join(found.names),
      lead=f"{subjects}, {progress.count(found.volumes, 'volume')} that every run has scored;"
      f" split {found.split}.",
      top=_tiles(found) + _warnings(found.warnings),
      sections=[
          ("settings", "Settings that differ", _settings(found)),
          ("scores", "Scores", "".join(_score(found, score) for score in found.score_names)),
          ("subjects", "Subject by subject", _charts(found)),
          ("stress", "Disturbed scans", _stress(found)),
          ("reading", "How to read this",
           "<ul>" + "".join(f"<li>{text(line)}</li>" for line in found.notes) + "</ul>"),
      ],
      footer="Written by FlexUNet from the evaluations of the runs; it names subjects by their"
      " pseudonyms.",
  )  # fmt: skip


def _tiles(found: Comparison) -> str:
  """Returns the mean Dice of each class and pair at a glance."""
  tiles: list[str] = []
  for one in found.results:
    if one.score == "dice" and len(tiles) < _MOST_CHARTED:
      verdict = f"Holm p {_p(one.p_holm)}" if not math.isnan(one.p_holm) else "no test"
      tiles.append(
          f'<div class="tile"><b>{_signed(one.difference)}</b>'
          f'<span class="what">Dice of {html_parts.words(one.class_name)}</span>'
          f"<span>{text(one.second)} minus {text(one.first)}; {verdict}; won {one.wins}, lost"
          f" {one.losses}, tied {one.ties}</span></div>"
      )
  return f'<div class="tiles">{"".join(tiles)}</div>'


def _warnings(lines: Sequence[str]) -> str:
  if not lines:
    return ""
  items = "".join(f"<li>{text(line)}</li>" for line in lines)
  return f'<div class="caveats"><h3>To be read first</h3><ul>{items}</ul></div>'


def _settings(found: Comparison) -> str:
  if not found.settings:
    return "<p>None: the runs differ in nothing that their config.json states.</p>"
  rows = [
      [f"<code>{text(name)}</code>", *(text(comparison.shown(value)) for value in values)]
      for name, values in found.settings
  ]
  headers = ["setting", *map(text, found.names)]
  return html_parts.table(headers, rows, texts=range(len(headers)))


def _score(found: Comparison, score: str) -> str:
  rows = [_row(one) for one in found.results if one.score == score]
  headers = ["class", "runs", "means", "difference", "95 %", "p", "Holm p", "won, lost, tied",
             "subjects"]  # fmt: skip
  less = " (less is better)" if paired.lower_is_better(score) else ""
  title = text(comparison.title_of(score))
  return f"<h3>{title}{less}</h3>" + html_parts.table(headers, rows, texts=(0, 1))


def _stress(found: Comparison) -> str:
  """Returns at which strength of disturbances Dice has fallen; nothing where a run lacks it."""
  rows = stress_table.rows(found.scored)
  if not rows:
    return ""
  cells = [[text(cell) for cell in row] for row in rows]
  note = "Of each run its own stress test; its Dice is compared with its own undisturbed one."
  table = html_parts.table(cells[0], cells[1:], texts=range(len(cells[0])), sortable=False)
  return f'{table}<p class="note">{note}</p>'


def _row(one: PairedResult) -> list[str]:
  between = html_parts.DASH
  if one.interval is not None:
    between = f"{_signed(one.interval['low'])} to {_signed(one.interval['high'])}"
  return [
      html_parts.words(one.class_name), f"{text(one.first)} → {text(one.second)}",
      f"{number(one.mean_first)} → {number(one.mean_second)}", _signed(one.difference), between,
      _p(one.p), _p(one.p_holm), f"{one.wins}, {one.losses}, {one.ties}", number(one.subjects),
  ]  # fmt: skip


def _signed(value: float) -> str:
  return html_parts.DASH if math.isnan(value) else f"{value:+.3f}".replace("-", "−")


def _p(value: float) -> str:
  if math.isnan(value):
    return html_parts.DASH
  return "below 0.001" if value < 0.001 else f"{value:.3f}"


def _charts(found: Comparison) -> str:
  drawn: list[PairedChart] = []
  for score in found.score_names:
    for name in found.class_names:
      drawn.append(PairedChart(
          title=f"{name.replace('_', ' ')}: {comparison.title_of(score)}", runs=found.names,
          subjects=found.subject_means(name, score),
          less_is_better=paired.lower_is_better(score),
      ))  # fmt: skip
  shown = [chart for chart in drawn if not chart.empty][:_MOST_CHARTED]
  hidden = sum(not chart.empty for chart in drawn) - len(shown)
  shapes = "".join(f"<div>{charts.svg(chart)}</div>" for chart in shown)
  note = "A line is a subject: blue where the last run is better than the first, orange if worse."
  if hidden:
    note += f" {progress.count(hidden, 'chart')} more left out; the tables hold all."
  return f'<p class="note">{note}</p><div class="charts">{shapes}</div>'


def _cut(name: str, most: int) -> str:
  return name if len(name) <= most else f"…{name[1 - most:]}"
