"""Draws Dice over minutes: one panel per set, one line per system, minutes on a log axis."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib import ticker
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by all common forms of colour vision; after them the order
# begins again with other markers and dashes.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS, _DASHES = "osD^vPX*<>", ("-", "--", ":")
_PANEL_INCHES = (3.6, 3.0)
_COLUMNS = 3
_MEAN = "mean over sets"


def draw(
    summary: Mapping[str, Any], path: pathlib.Path, titles: Mapping[str, str] | None = None
) -> list[pathlib.Path]:
  """Writes `path` with the suffixes .png and .svg, and returns both.

  Points are means over seeds, bars reach from the lowest to the highest seed. The last panel is
  the mean over sets, of systems that have all of them; it is left out where there is one set.

  Args:
    summary: From `results.summarize`.
    path: Without suffix.
    titles: Set -> what its panel is called.
  """
  panels = [(name, (titles or {}).get(name, name)) for name in summary["sets"]]
  if len(panels) > 1:
    panels.append((_MEAN, _MEAN))
  columns = min(_COLUMNS, len(panels))
  rows = -(-len(panels) // columns)
  figure = Figure((_PANEL_INCHES[0] * columns, _PANEL_INCHES[1] * rows + 0.6), layout="constrained")
  axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
  for axis, (name, title) in zip(axes, panels, strict=False):
    _draw_panel(axis, summary, name, title)
  for axis in axes[len(panels) :]:
    axis.set_axis_off()
  lines = {line.get_label(): line for axis in axes for line in axis.get_lines()}
  named = [system for system in summary["systems"] if system in lines]
  figure.legend(
      [lines[system] for system in named], named, loc="outside lower center",
      ncols=min(4, 2 * columns, len(named) or 1), frameon=False, fontsize=8,
  )  # fmt: skip
  path.parent.mkdir(parents=True, exist_ok=True)
  png, svg = (path.with_name(path.name + suffix) for suffix in (".png", ".svg"))
  FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
  with matplotlib.rc_context({"svg.hashsalt": "flexunet", "svg.fonttype": "none"}):
    FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": None})
  return [png, svg]


def _draw_panel(axis: Any, summary: Mapping[str, Any], name: str, title: str) -> None:
  for place, system in enumerate(summary["systems"]):
    points = _points(summary, name, system)
    if not points:
      continue
    minutes, mean, low, high = zip(*points, strict=True)
    below = [one - other for one, other in zip(mean, low, strict=True)]
    above = [one - other for one, other in zip(high, mean, strict=True)]
    color = _COLORS[place % len(_COLORS)]
    axis.plot(
        minutes, mean, label=system, color=color, marker=_MARKERS[place % len(_MARKERS)],
        linestyle=_DASHES[place // len(_COLORS) % len(_DASHES)], markersize=5, linewidth=1.5,
    )  # fmt: skip
    axis.errorbar(minutes, mean, [below, above], fmt="none", ecolor=color, capsize=2, linewidth=1)
  axis.set_title(title, fontsize=10)
  axis.set_xscale("log")
  axis.set_xticks(summary["minutes"], [f"{value:g}" for value in summary["minutes"]])
  axis.xaxis.set_minor_locator(ticker.NullLocator())
  axis.set_xlabel("minutes of training", fontsize=8)
  axis.set_ylabel("Dice of test subjects", fontsize=8)
  axis.tick_params(labelsize=8)
  axis.grid(color="0.9", linewidth=0.6)
  axis.set_axisbelow(True)
  for side in ("top", "right"):
    axis.spines[side].set_visible(False)


def _points(
    summary: Mapping[str, Any], name: str, system: str
) -> Sequence[tuple[float, float, float, float]]:
  """Returns (minutes, mean, low, high) of a line, minutes rising."""
  if name == _MEAN:
    return [
        (one["minutes"], *[one["dice"]] * 3) for one in summary["means"]
        if one["system"] == system and one["sets"] == len(summary["sets"])
    ]  # fmt: skip
  return [
      (one["minutes"], one["dice"]["mean"], one["dice"]["low"], one["dice"]["high"])
      for one in summary["entries"]
      if (one["set"], one["system"]) == (name, system) and one["dice"]["seeds"]
  ]
