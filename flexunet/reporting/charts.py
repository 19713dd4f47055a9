"""Small charts as SVG text, drawn for the report: crisp on a screen, in print, and in one file."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import numpy as np

# Okabe and Ito, dark enough for lines on white.
LINE_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
_AXIS = "#8a8f98"
_GRID = "#e6e8eb"
_TEXT = "#444a52"
_FONT = 'font-family="system-ui, sans-serif" font-size="12"'


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
  """Returns about `count` round numbers which cover low..high from inside."""
  if not high > low:
    return [low]
  raw = (high - low) / count
  power = 10.0 ** math.floor(math.log10(raw))
  step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
  first = math.ceil(low / step - 1e-9)
  last = math.floor(high / step + 1e-9)
  return [round(index * step, 12) for index in range(first, last + 1)]


def line_chart(
    series: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    *,
    title: str,
    x_label: str,
    y_range: tuple[float, float] | None = None,
    mark_x: float | None = None,
    width: int = 460,
    height: int = 260,
) -> str:
  """Returns an SVG of lines over a common x axis, with a legend; not finite values are gaps.

  Args:
    series: (name, x values, y values) of each line.
    title: Above the chart.
    x_label: Below the x axis.
    y_range: Fixed ends of the y axis; from the data where None.
    mark_x: Where to draw a dashed upright line, e.g. the best epoch.
    width: Of the SVG's view box.
    height: Of the SVG's view box.
  """
  points = [
      (x, y) for _, xs, ys in series for x, y in zip(xs, ys, strict=True) if math.isfinite(y)
  ]
  if not points:
    return ""
  x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
  if x_high == x_low:
    x_low, x_high = x_low - 0.5, x_high + 0.5
  y_low, y_high = y_range or _padded([y for _, y in points])
  left, right, top = 52, width - 12, 34
  # Legend entries flow below the axis, as many to a line as fit.
  legend, legend_lines = _legend([name for name, _, _ in series], left, right)
  bottom = height - 38 - 16 * legend_lines

  def to_x(value: float) -> float:
    return left + (value - x_low) / (x_high - x_low) * (right - left)

  def to_y(value: float) -> float:
    share = (min(max(value, y_low), y_high) - y_low) / (y_high - y_low)
    return bottom - share * (bottom - top)

  parts = [_title(title, left)]
  parts += [_y_tick(to_y(tick), tick, left, right) for tick in nice_ticks(y_low, y_high)]
  ticks = [tick for tick in nice_ticks(x_low, x_high, 6) if float(tick).is_integer()]
  parts += [_x_tick(to_x(tick), bottom, tick) for tick in ticks]
  parts.append(
      f'<text x="{(left + right) / 2}" y="{bottom + 31}" text-anchor="middle" fill="{_TEXT}"'
      f" {_FONT}>{html.escape(x_label)}</text>"
  )
  if mark_x is not None:
    x = to_x(mark_x)
    parts.append(
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" stroke="{_AXIS}"'
        ' stroke-dasharray="4 3"/>'
    )
  for index, (_, xs, ys) in enumerate(series):
    color = LINE_COLORS[index % len(LINE_COLORS)]
    parts += _polylines(
        [(to_x(x), to_y(y) if math.isfinite(y) else None) for x, y in zip(xs, ys, strict=True)],
        color,
    )
  for index, (x, line, name) in enumerate(legend):
    y = bottom + 50 + 16 * line
    color = LINE_COLORS[index % len(LINE_COLORS)]
    parts.append(
        f'<line x1="{x}" x2="{x + 16}" y1="{y - 4}" y2="{y - 4}" stroke="{color}"'
        f' stroke-width="2.5"/><text x="{x + 21}" y="{y}" fill="{_TEXT}" {_FONT}>'
        f"{html.escape(name)}</text>"
    )
  return _svg(parts, width, height, title)


def strip_chart(
    groups: Sequence[tuple[str, Sequence[float], str]],
    *,
    title: str,
    x_range: tuple[float, float] | None = (0.0, 1.0),
    width: int = 720,
) -> str:
  """Returns an SVG with a row of dots per group over its quartile box; NaN values are left out.

  Args:
    groups: (name, values, colour as "#rrggbb") of each row.
    title: Above the chart.
    x_range: Ends of the x axis; from the data where None.
    width: Of the SVG's view box.
  """
  finite = [[value for value in values if math.isfinite(value)] for _, values, _ in groups]
  if not any(finite):
    return ""
  x_low, x_high = x_range or _padded([0.0, *(value for values in finite for value in values)])
  row_height, top = 46, 34
  # About 7 px a letter; a name longer than that is cut below.
  left = min(220, 24 + 7 * max(len(name) for name, _, _ in groups))
  right, bottom = width - 70, top + row_height * len(groups)

  def to_x(value: float) -> float:
    return left + (min(max(value, x_low), x_high) - x_low) / (x_high - x_low) * (right - left)

  parts = [_title(title, 0)]
  for tick in nice_ticks(x_low, x_high):
    x = to_x(tick)
    parts.append(
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" stroke="{_GRID}"/>'
    )
    parts.append(_x_tick(x, bottom, tick))
  generator = np.random.default_rng(0)  # Jitter only; the same picture each time.
  for row, ((name, _, color), values) in enumerate(zip(groups, finite, strict=True)):
    middle = top + row_height * (row + 0.5)
    shown = name if len(name) <= 28 else name[:27] + "…"
    parts.append(
        f'<text x="{left - 10}" y="{middle + 4}" text-anchor="end" fill="{_TEXT}" {_FONT}>'
        f"{html.escape(shown)}</text>"
    )
    if not values:
      parts.append(
          f'<text x="{left + 6}" y="{middle + 4}" fill="{_AXIS}" {_FONT}>no value</text>'
      )
      continue
    low, median, high = np.percentile(values, [25, 50, 75])
    parts.append(
        f'<rect x="{to_x(low):.1f}" y="{middle - 12}" height="24" rx="2"'
        f' width="{max(to_x(high) - to_x(low), 1):.1f}" fill="{_GRID}" stroke="{_AXIS}"'
        ' stroke-width="0.7"/>'
        f'<line x1="{to_x(median):.1f}" x2="{to_x(median):.1f}" y1="{middle - 14}"'
        f' y2="{middle + 14}" stroke="#222" stroke-width="2"/>'
    )
    offsets = generator.uniform(-8, 8, len(values)) if len(values) > 1 else [0.0]
    parts += [
        f'<circle cx="{to_x(value):.1f}" cy="{middle + offset:.1f}" r="3.6" fill="{color}"'
        ' fill-opacity="0.8" stroke="#333" stroke-width="0.6"/>'
        for value, offset in zip(values, offsets, strict=True)
    ]
    parts.append(
        f'<text x="{right + 10}" y="{middle + 4}" fill="{_TEXT}" {_FONT}>{median:.3f}</text>'
    )
  return _svg(parts, width, bottom + 26, title)


def _padded(values: Sequence[float]) -> tuple[float, float]:
  low, high = min(values), max(values)
  pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
  return (low - pad if low < 0 or low - pad > 0 else 0.0), high + pad


def _title(title: str, x: float) -> str:
  return (
      f'<text x="{x}" y="18" fill="#1c2126" font-family="system-ui, sans-serif" font-size="13"'
      f' font-weight="600">{html.escape(title)}</text>'
  )


def _y_tick(y: float, value: float, left: float, right: float) -> str:
  return (
      f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="{_GRID}"/>'
      f'<text x="{left - 7}" y="{y + 4:.1f}" text-anchor="end" fill="{_TEXT}" {_FONT}>'
      f"{value:g}</text>"
  )


def _x_tick(x: float, bottom: float, value: float) -> str:
  return (
      f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle" fill="{_TEXT}" {_FONT}>'
      f"{value:g}</text>"
  )


def _legend(
    names: Sequence[str], left: float, right: float
) -> tuple[list[tuple[float, int, str]], int]:
  """Returns ((x, line, name) of each entry, count of lines)."""
  entries, x, line = [], left, 0
  for name in names:
    needed = 21 + 7 * len(name) + 14
    if x + needed > right and x > left:
      x, line = left, line + 1
    entries.append((x, line, name))
    x += needed
  return entries, line + 1


def _polylines(points: Sequence[tuple[float, float | None]], color: str) -> list[str]:
  """Returns one polyline per run of finite points; a lone point becomes a dot."""
  runs: list[list[tuple[float, float]]] = [[]]
  for x, y in points:
    if y is None:
      runs.append([])
    else:
      runs[-1].append((x, y))
  drawn = []
  for run in runs:
    if len(run) == 1:
      drawn.append(f'<circle cx="{run[0][0]:.1f}" cy="{run[0][1]:.1f}" r="2.5" fill="{color}"/>')
    elif run:
      path = " ".join(f"{x:.1f},{y:.1f}" for x, y in run)
      drawn.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.8"/>')
  return drawn


def _svg(parts: Sequence[str], width: float, height: float, title: str) -> str:
  return (
      f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
      f' aria-label="{html.escape(title)}">{"".join(parts)}</svg>'
  )
