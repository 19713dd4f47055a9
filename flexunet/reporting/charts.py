"""Charts of the reports and of a run's curves: each says what it shows, Matplotlib draws it.

`svg` gives a chart as text for a page, `image` several charts as pixels. Lengths are in CSS pixels:
at its own width a chart's text is 12 px high. Values that are not finite are left out.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import html
import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.axis import Axis
  from matplotlib.figure import Figure, SubFigure

Numbers = Sequence[float] | np.ndarray  # A NumPy array is no Sequence.

# Okabe and Ito, dark enough for lines on white.
LINE_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
QUIET_COLOR = "#c6d3dd"  # Of bars that are the whole of which others are a part.
_DASHES = ("-", "--", ":")  # A second and a third round of the colours.
_AXIS, _GRID, _TEXT, _TITLE = "#8a8f98", "#e6e8eb", "#444a52", "#1c2126"
_WIDTH, _MARGIN = 360, 5  # The width of a phone: text keeps its size there.
_LETTER = 7  # Width of a letter, about.
_UNITS_PER_INCH = 72  # Of Matplotlib's SVG: with as many dots per inch a point is a unit.
_IMAGE_SCALE = 1.5
# What a page may colour by its theme: each is drawn as a variable of the page's style.
_THEMED = {
    **{color.lower(): f"--line-{index}" for index, color in enumerate(LINE_COLORS)},
    _AXIS: "--chart-axis", _GRID: "--chart-grid", _TEXT: "--chart-text", _TITLE: "--chart-title",
    "#222222": "--chart-median", "#333333": "--chart-edge", QUIET_COLOR: "--bar",
}  # fmt: skip
_SIZES_LABELLED = 6  # More labels would cover each other.
_TAG_WITH_NAME = re.compile(r'(<[\w:]+[^>]*?) id="([^"]+)"')
_STYLE = {
    "font.size": 12,
    "font.sans-serif": ["DejaVu Sans"],  # Comes with Matplotlib: the same layout everywhere.
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlecolor": _TITLE,
    "axes.titlelocation": "left",
    "axes.labelcolor": _TEXT,
    "axes.edgecolor": _AXIS,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "text.color": _TEXT,
    "text.parse_math": False,  # Class names are text, dollar signs included.
    "xtick.color": _AXIS,
    "ytick.color": _AXIS,
    "xtick.labelcolor": _TEXT,
    "ytick.labelcolor": _TEXT,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
    "svg.fonttype": "none",  # Text stays text: small, searchable, in the page's own font.
}


@dataclasses.dataclass(frozen=True)
class Line:
  """A line: its name in the legend, its points, and its colour where the usual ones are unfit."""

  name: str
  x: Numbers
  y: Numbers
  color: str = ""


@dataclasses.dataclass(frozen=True)
class Values:
  """Named numbers in a colour ("#rrggbb"); what they are is the chart's business."""

  name: str
  values: Numbers
  color: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart(abc.ABC):
  """What stands around every chart."""

  title: str
  x_label: str = ""
  y_label: str = ""

  @property
  @abc.abstractmethod
  def empty(self) -> bool:
    """Whether there is nothing to draw."""

  @property
  def height(self) -> int:
    """The height in pixels, the legend included."""
    return self.plot_height + 18 * self.legend_lines

  @property
  def plot_height(self) -> int:
    """The height in pixels without the legend."""
    return 240

  @property
  def legend_names(self) -> list[str]:
    """What the legend lists; nothing where it would only repeat the title."""
    return []

  @property
  def legend_columns(self) -> int:
    """How many entries of the legend fit into a line."""
    longest = max((len(name) for name in self.legend_names), default=0)
    return max(1, _WIDTH // (_LETTER * longest + 50))

  @property
  def legend_lines(self) -> int:
    """How many lines the legend takes."""
    return -(-len(self.legend_names) // self.legend_columns)

  @abc.abstractmethod
  def plot(self, axis: Axes) -> None:
    """Draws the data; title, labels and legend follow by themselves."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LineChart(Chart):
  """Lines over a common axis of whole numbers; a value that is not finite is a gap.

  Attributes:
    lines: Drawn in this order.
    x_range: Ends of the x axis; from the data where None.
    y_range: Ends of the y axis; from the data where None.
    mark_x: Where a dashed upright line stands, e.g. the epoch whose weights were kept.
    log: Makes the y axis logarithmic.
  """

  lines: Sequence[Line]
  x_range: tuple[float, float] | None = None
  y_range: tuple[float, float] | None = None
  mark_x: float | None = None
  log: bool = False

  @property
  def empty(self) -> bool:
    """Whether no line has a value."""
    return not any(_finite(line.y).size for line in self.lines)

  @property
  def legend_names(self) -> list[str]:
    """The lines that have a value; nothing for one that is named as the title."""
    names = [line.name for line in self.lines if _finite(line.y).size]
    return [] if [name.lower() for name in names] == [self.title.lower()] else names

  def plot(self, axis: Axes) -> None:
    """Draws the lines, with dots where they are few, and the mark."""
    for position, line in enumerate(self.lines):
      y = np.asarray(line.y, np.float64)
      known = np.isfinite(y)
      if not known.any():
        continue
      # A point between two gaps has no line to be seen by.
      alone = known & ~np.append(known[1:], False) & ~np.append(False, known[:-1])
      dots = known if len(y) < 30 else alone
      axis.plot(
          line.x,
          np.where(known, y, np.nan),
          label=line.name,
          color=line.color or LINE_COLORS[position % len(LINE_COLORS)],
          linestyle=_DASHES[position // len(LINE_COLORS) % len(_DASHES)],
          marker="o" if dots.any() else None,
          markevery=[int(index) for index in np.flatnonzero(dots)],
      )
    if self.mark_x is not None:
      axis.axvline(self.mark_x, color=_AXIS, linestyle=(0, (4, 3)), linewidth=1)
    if self.log:
      axis.set_yscale("log")
      _plain_powers(axis.yaxis)
    axis.set_ylim(self.y_range or _padded([y for line in self.lines for y in _finite(line.y)]))
    low, high = self.x_range or axis.dataLim.intervalx
    pad = min(0.5, 0.03 * (high - low)) or 0.5
    axis.set_xlim(low - pad, high + pad)
    axis.locator_params(axis="x", integer=True, min_n_ticks=1)
    axis.grid(axis="y")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StripChart(Chart):
  """Per group a row of dots over the box of its quartiles, with the median as line and number.

  Attributes:
    groups: The rows, from the top.
    x_range: Ends of the x axis; values beyond them stand at its ends.
  """

  groups: Sequence[Values]
  x_range: tuple[float, float] = (0.0, 1.0)

  @property
  def empty(self) -> bool:
    """Whether no group has a value."""
    return not any(_finite(group.values).size for group in self.groups)

  @property
  def plot_height(self) -> int:
    """As much as the rows take."""
    return 62 + 46 * len(self.groups)

  def plot(self, axis: Axes) -> None:
    """Draws a row per group, a note where it has no value."""
    spread = np.random.default_rng(0)  # The same image each time.
    beside: dict[str, Any] = {"transform": axis.get_yaxis_transform(), "va": "center"}
    for row, group in enumerate(self.groups):
      values = _finite(group.values)
      if not values.size:
        axis.text(0.02, row, "no value", color=_AXIS, **beside)
        continue
      low, median, high = np.percentile(values, [25, 50, 75])
      axis.barh(row, high - low, 0.52, low, color=_GRID, edgecolor=_AXIS, linewidth=0.7)
      axis.plot([median] * 2, [row - 0.3, row + 0.3], color="#222222", linewidth=2)
      offsets = spread.uniform(-0.17, 0.17, values.size) if values.size > 1 else np.zeros(1)
      axis.scatter(
          np.clip(values, *self.x_range), row + offsets, 36, color=group.color, alpha=0.8,
          edgecolors="#333333", linewidths=0.6, clip_on=False, zorder=3,
      )  # fmt: skip
      axis.text(1.03, row, f"{median:.3f}", **beside)
    axis.set_xlim(self.x_range)
    _name_rows(axis, [group.name for group in self.groups])
    axis.grid(axis="x")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BarChart(Chart):
  """Bars to the right, a row per name; several series lie side by side or one over the other.

  Attributes:
    names: The rows, from the top.
    series: Each with one value per row; 0 has no bar.
    stacked_in_place: Draws a series over the one before, of which it is a part.
    notes: A text at the end of each row's bar.
    x_range: Ends of the x axis; from the data where None.
    log: Makes the x axis logarithmic.
  """

  names: Sequence[str]
  series: Sequence[Values]
  stacked_in_place: bool = False
  notes: Sequence[str] = ()
  x_range: tuple[float, float] | None = None
  log: bool = False

  @property
  def empty(self) -> bool:
    """Whether no bar has a length."""
    return not any(np.any(_finite(one.values)) for one in self.series)

  @property
  def plot_height(self) -> int:
    """As much as the rows take."""
    beside = 1 if self.stacked_in_place else len(self.series)
    return 70 + len(self.names) * max(36, 12 * beside + 8)

  @property
  def legend_names(self) -> list[str]:
    """The series, where there are several."""
    return [one.name for one in self.series] if len(self.series) > 1 else []

  def plot(self, axis: Axes) -> None:
    """Draws the bars and their notes."""
    rows = np.arange(len(self.names))
    thickness = 0.7 if self.stacked_in_place else 0.8 / max(1, len(self.series))
    for position, one in enumerate(self.series):
      shift = 0 if self.stacked_in_place else (position - (len(self.series) - 1) / 2) * thickness
      values = np.asarray(one.values, np.float64)
      lengths = np.where(values > 0, values, np.nan)
      axis.barh(rows + shift, lengths, thickness, color=one.color, label=one.name)
    ends = np.max([np.asarray(one.values) for one in self.series], axis=0)
    for row, (end, note) in enumerate(zip(ends, self.notes, strict=False)):
      axis.annotate(note, (end, row), (6, 0), textcoords="offset points", va="center")
    if self.log:
      axis.set_xscale("log")
      _plain_powers(axis.xaxis)
    if self.notes:
      axis.margins(x=0.5)  # Room for them.
    if self.x_range:
      axis.set_xlim(self.x_range)
    _name_rows(axis, self.names)
    axis.grid(axis="x")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Histogram(Chart):
  """How often values occur: filled bars for one sample, outlines for several.

  Attributes:
    samples: Drawn in this order.
    edges: Ends of the bins, ascending.
  """

  samples: Sequence[Values]
  edges: Numbers

  @property
  def empty(self) -> bool:
    """Whether no sample has a value."""
    return not any(_finite(sample.values).size for sample in self.samples)

  @property
  def legend_names(self) -> list[str]:
    """The samples that have a name and a value."""
    names = [sample.name for sample in self.samples if _finite(sample.values).size]
    return [name for name in names if name]

  def plot(self, axis: Axes) -> None:
    """Draws the counts of each sample."""
    for sample in self.samples:
      values = _finite(sample.values)
      if not values.size:
        continue
      counts, edges = np.histogram(values, np.asarray(self.edges, np.float64))
      fill = len(self.samples) == 1
      axis.stairs(counts, edges, color=sample.color, label=sample.name, fill=fill, linewidth=1.6)
    axis.set_ylim(bottom=0)
    axis.locator_params(axis="y", integer=True, min_n_ticks=1)
    axis.grid(axis="y")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SizeChart(Chart):
  """Sizes of images as discs whose area says how many images have them.

  Attributes:
    counts: (height, width) in pixels -> images.
  """

  counts: dict[tuple[int, int], int]

  @property
  def empty(self) -> bool:
    """Whether there are no images."""
    return not self.counts

  @property
  def plot_height(self) -> int:
    """Room for a square."""
    return 300

  def plot(self, axis: Axes) -> None:
    """Draws the discs, and the sizes beside them where they are few."""
    sizes = np.array(list(self.counts), np.float64)
    counts = np.array(list(self.counts.values()), np.float64)
    axis.scatter(
        sizes[:, 1], sizes[:, 0], 30 + 300 * counts / counts.max(), color=LINE_COLORS[0], alpha=0.5
    )
    if len(sizes) <= _SIZES_LABELLED:
      for (height, width), count in self.counts.items():
        axis.annotate(
            f"{height} × {width}: {count:,}", (width, height), (-12, 0), va="center", ha="right",
            textcoords="offset points",
        )  # fmt: skip
    largest = 1.15 * sizes.max()
    axis.set(xlim=(0, largest), ylim=(0, largest), aspect="equal")
    axis.grid()


def svg(chart: Chart) -> str:
  """Returns a chart as an <svg> element for a page; nothing where there is nothing to draw."""
  if chart.empty:
    return ""
  drawn = io.StringIO()
  with _canvas("svg", _WIDTH, chart.height, salt=chart.title) as canvas:
    _draw(chart, canvas.figure)
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    # Not `savefig`, which draws twice, the first time to find out what bbox_inches would need.
    canvas.print_svg(drawn, metadata=nothing)
  return _inline(drawn.getvalue(), chart)


def image(charts: Sequence[Chart], columns: int) -> np.ndarray:
  """Returns charts on white, row by row, uint8 [H, W, 3]; those with nothing to draw are left out.

  Args:
    charts: In reading order. With nothing to draw in any of them the image is a white pixel.
    columns: Charts in a row, at most.
  """
  drawn = [chart for chart in charts if not chart.empty]
  if not drawn:
    return np.full((1, 1, 3), 255, np.uint8)
  columns = min(columns, len(drawn))
  rows = [drawn[start : start + columns] for start in range(0, len(drawn), columns)]
  heights = [max(chart.height for chart in row) for row in rows]
  with _canvas("agg", columns * _WIDTH, sum(heights)) as canvas:
    canvas.figure.set_dpi(_UNITS_PER_INCH * _IMAGE_SCALE)
    panels = canvas.figure.subfigures(len(rows), columns, height_ratios=heights, squeeze=False)
    for chart, panel in zip(drawn, panels.flat, strict=False):
      _draw(chart, panel)
    canvas.draw()
    return np.array(np.asarray(canvas.buffer_rgba())[..., :3])


@contextlib.contextmanager
def _canvas(kind: str, width: int, height: int, salt: str = "") -> Iterator[Any]:
  """Yields the canvas of an empty figure in our style, whatever the style in use elsewhere.

  Args:
    kind: "svg", whose ground is clear, or "agg", of pixels on white.
    width, height: In pixels.
    salt: Makes names inside an SVG its own; the same salt gives the same file.
  """
  # Takes half a second to load: --help and programs that draw nothing go without.
  import matplotlib.figure
  import matplotlib.layout_engine
  import matplotlib.style
  from matplotlib.backends import backend_agg, backend_svg

  ground = {"axes.facecolor": "none", "figure.facecolor": "none"} if kind == "svg" else {}
  with matplotlib.style.context(["default", {**_STYLE, **ground, "svg.hashsalt": salt}]):
    # A figure of its own, not pyplot: nothing global is touched, no display is needed.
    margin = _MARGIN / _UNITS_PER_INCH
    figure = matplotlib.figure.Figure(
        (width / _UNITS_PER_INCH, height / _UNITS_PER_INCH),
        _UNITS_PER_INCH,
        layout=matplotlib.layout_engine.ConstrainedLayoutEngine(w_pad=margin, h_pad=margin),
    )
    canvases = {"svg": backend_svg.FigureCanvasSVG, "agg": backend_agg.FigureCanvasAgg}
    yield canvases[kind](figure)


def _draw(chart: Chart, figure: Figure | SubFigure) -> None:
  axis = figure.subplots()
  axis.set_title(chart.title)
  axis.set_xlabel(chart.x_label)
  axis.set_ylabel(chart.y_label)
  axis.tick_params(which="both", length=0)
  # No offsets such as "1e-3" above the axis, where the title stands.
  axis.xaxis.set_major_formatter("{x:g}")
  axis.yaxis.set_major_formatter("{x:g}")
  chart.plot(axis)
  if chart.legend_names:
    figure.legend(loc="outside lower left", ncols=chart.legend_columns, handlelength=1.5)


def _plain_powers(axis: Axis) -> None:
  """Labels a logarithmic axis with plain numbers, at the powers of ten alone."""
  axis.set_major_formatter("{x:g}")
  axis.set_minor_formatter("")


def _name_rows(axis: Axes, names: Sequence[str]) -> None:
  """Puts names to the left of the rows 0, 1, ..., the first at the top, long ones in two lines."""
  shown = [textwrap.shorten(name, 40, placeholder=" …") for name in names]
  axis.set_yticks(range(len(names)), [textwrap.fill(name, 20) for name in shown])
  axis.set_ylim(len(names) - 0.5, -0.5)
  axis.tick_params(axis="y", pad=8)


def _finite(values: Numbers) -> np.ndarray:
  """Returns the finite ones of some values, float64 [count]."""
  numbers = np.asarray(values, np.float64)
  return numbers[np.isfinite(numbers)]


def _padded(values: Sequence[float]) -> tuple[float, float]:
  """Returns the ends of an axis for some values; 0 is not passed by the padding."""
  low, high = min(values), max(values)
  pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
  return (low - pad if low < 0 or low - pad > 0 else 0.0), high + pad


def _inline(text: str, chart: Chart) -> str:
  """Returns a file of Matplotlib as an element that does nothing to the page around it.

  Its own style rules, unused names and size are taken out; names repeat from chart to chart.
  """
  body = re.sub(r"<!--.*?-->|<style.*?</style>|<metadata.*?</metadata>", "", text, flags=re.S)
  body = body[body.index("<svg") :]
  used = set(re.findall(r"#([\w.-]+)", body))
  body = _TAG_WITH_NAME.sub(
      lambda found: found[0] if found[2] in used else found[1], body
  )
  body = re.sub(
      r"(?<=: )#[0-9a-f]{6}",
      lambda found: f"var({_THEMED[found[0]]}, {found[0]})" if found[0] in _THEMED else found[0],
      body,
  )
  body = re.sub(r">\s+<", "><", body.replace("'DejaVu Sans'", "system-ui, sans-serif"))
  start = (
      '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
      f' viewBox="0 0 {_WIDTH} {chart.height}" role="img" aria-label="{html.escape(chart.title)}"'
      ' style="stroke-linejoin: round">'
  )
  return re.sub(r"<svg[^>]*>", lambda _: start, body, count=1).strip()
