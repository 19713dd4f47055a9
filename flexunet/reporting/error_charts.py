"""Charts of errors: by slice position, of volumes that agree or not, of honest probabilities."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from flexunet.reporting import charts

if TYPE_CHECKING:
  from matplotlib.axes import Axes

_DASHED = (0, (4, 3))
_LABEL_SHARE = 0.1  # Height of a text as a share of the axis, about.
_AXIS_COLOR = "#8a8f98"  # As of the axes of all charts.


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepChart(charts.Chart):
  """Values of bins side by side, as steps; a bin whose value is not finite is a gap.

  Attributes:
    series: Each with one value per bin.
    edges: Ends of the bins, ascending, one more than there are bins.
    y_range: Ends of the y axis.
  """

  series: Sequence[charts.Values]
  edges: charts.Numbers
  y_range: tuple[float, float] = (0.0, 1.03)  # A line at 1 is seen whole.

  @property
  def empty(self) -> bool:
    """Whether no bin has a value."""
    return not any(np.isfinite(np.asarray(one.values, float)).any() for one in self.series)

  @property
  def legend_names(self) -> list[str]:
    """The series."""
    return [one.name for one in self.series]

  def plot(self, axis: Axes) -> None:
    """Draws a line of steps per series."""
    for one in self.series:
      values = np.asarray(one.values, np.float64)
      axis.stairs(
          values, np.asarray(self.edges, float), color=one.color, label=one.name, baseline=None,
          linewidth=2.2,
      )  # fmt: skip
    axis.set_ylim(self.y_range)
    axis.set_xlim(self.edges[0], self.edges[-1])
    axis.grid(axis="y")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgreementChart(charts.Chart):
  """Differences of two measurements over their mean (Bland and Altman 1986).

  Attributes:
    mean, difference: Of each pair.
    bias, low, high: Mean difference and limits of agreement, drawn as lines.
    color: Of the dots.
  """

  mean: charts.Numbers
  difference: charts.Numbers
  bias: float
  low: float
  high: float
  color: str

  @property
  def empty(self) -> bool:
    """Whether there is no pair."""
    return not np.isfinite(np.asarray(self.difference, float)).any()

  def plot(self, axis: Axes) -> None:
    """Draws a dot per pair, and the three lines with their values."""
    axis.axhline(0, color=_AXIS_COLOR, linewidth=0.8)
    ends = [self.low, self.high, 0.0, *np.asarray(self.difference, float)]
    span = max(ends) - min(ends) or 1.0
    lines = [(self.high, "upper limit", _DASHED), (self.bias, "bias", "-"),
             (self.low, "lower limit", _DASHED)]  # fmt: skip
    # Side by side the three texts would cover each other: the table names them too.
    crowded = min(self.high - self.bias, self.bias - self.low) < _LABEL_SHARE * span
    for value, name, dashes in lines:
      axis.axhline(value, color="#222222", linewidth=1.2, linestyle=dashes)
      if not crowded:
        _label(axis, f"{name} {value:+.3g}", value)
    if crowded:
      _label(axis, f"bias {self.bias:+.3g}, limits {self.low:+.3g} to {self.high:+.3g}", self.high)
    axis.scatter(
        self.mean, self.difference, 34, color=self.color, alpha=0.85, edgecolors="#333333",
        linewidths=0.6, zorder=3,
    )  # fmt: skip
    axis.set_ylim(min(ends) - 0.18 * span, max(ends) + 0.18 * span)
    axis.margins(x=0.12)
    axis.grid(axis="y")


def _label(axis: Axes, text: str, height: float) -> None:
  """Writes above a line, at the right end of the chart."""
  axis.annotate(
      text, (1, height), (-2, 3), ha="right", va="bottom", xycoords=("axes fraction", "data"),
      textcoords="offset points",
  )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReliabilityChart(charts.Chart):
  """How often predictions of some confidence are right; on the diagonal they are as sure as right.

  Attributes:
    confidence, accuracy: Mean of each bin; not finite where it is empty.
    share: Share of the voxels in each bin, as the area of its dot.
  """

  confidence: charts.Numbers
  accuracy: charts.Numbers
  share: charts.Numbers

  @property
  def empty(self) -> bool:
    """Whether all bins are empty."""
    return not np.isfinite(np.asarray(self.accuracy, float)).any()

  @property
  def plot_height(self) -> int:
    """Room for a square."""
    return 300

  def plot(self, axis: Axes) -> None:
    """Draws the diagonal, and a dot per bin on a line."""
    axis.plot([0, 1], [0, 1], color=_AXIS_COLOR, linestyle=_DASHED, linewidth=1)
    known = np.isfinite(np.asarray(self.accuracy, float))
    x, y = (np.asarray(one, float)[known] for one in (self.confidence, self.accuracy))
    area = 14 + 220 * np.asarray(self.share, float)[known]
    axis.plot(x, y, color=charts.LINE_COLORS[0])
    axis.scatter(x, y, area, color=charts.LINE_COLORS[0], alpha=0.6, zorder=3)
    axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axis.grid()
