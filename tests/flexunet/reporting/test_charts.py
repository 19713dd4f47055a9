"""Charts show each value in its place, harm no page, and are the same each time."""

import html
import math
import re
import subprocess
import sys

import matplotlib
import numpy as np
import pytest

from flexunet.reporting import charts

_BLUE = "#0072b2"


def line_chart(*ys, title="Loss", **options) -> charts.LineChart:
  lines = [charts.Line(f"line {n}", range(1, len(y) + 1), y) for n, y in enumerate(ys)]
  return charts.LineChart(title=title, lines=lines, **options)


def themed(color: str) -> str:
  """Returns a pattern of a colour that the page may replace by that of its theme."""
  return rf"(?:var\(--[\w-]+, )?{color}"


def paths_of(svg: str, color: str) -> list[str]:
  """Returns the outlines of the lines in a colour."""
  found = re.findall(rf'<path d="([^"]+)"[^>]*style="fill: none; stroke: {themed(color)}', svg)
  return [path for path in found if "L" in path]


def dots_of(svg: str, color: str) -> list[tuple[float, float]]:
  start = r'<use xlink:href="#\w+" x="([\d.]+)" y="([\d.]+)"[^>]*fill: '
  found = re.findall(start + themed(color), svg)
  return [(float(x), float(y)) for x, y in found]


def label_place(svg: str, text: str) -> tuple[float, float]:
  found = re.search(rf'<text[^>]* x="([\d.]+)" y="([\d.]+)"[^>]*>{re.escape(text)}</text>', svg)
  return float(found[1]), float(found[2])


def test_a_line_has_a_gap_where_a_value_is_missing():
  many = [1.0] * 20 + [math.nan] + [1.0] * 20
  svg = charts.svg(line_chart(many))
  assert paths_of(svg, _BLUE)[0].count("M") == 2
  assert paths_of(charts.svg(line_chart([1.0] * 41)), _BLUE)[0].count("M") == 1


def test_a_point_between_two_gaps_has_a_dot():
  many = [1.0] * 20 + [math.nan, 0.5, math.inf] + [1.0] * 20
  # One in the chart, one in the legend.
  assert len(dots_of(charts.svg(line_chart(many)), _BLUE)) == 2


def test_a_single_epoch_stands_in_the_middle_at_its_number():
  svg = charts.svg(line_chart([0.25], x_label="epoch"))
  x = label_place(svg, "1")[0]
  assert dots_of(svg, _BLUE)[0][0] == pytest.approx(x, abs=0.01)
  below = label_place(svg, "1")[1]
  ticks = re.findall(rf'y="{below:.6f}"[^>]*>([\d.]+)</text>', svg)
  assert ticks == ["1"]


def test_the_marked_epoch_is_a_dashed_upright_line():
  svg = charts.svg(line_chart([3.0, 2.0, 1.0], mark_x=2))
  dashed = re.findall(r'<path d="M ([\d.]+) [\d.]+ \nL ([\d.]+) [^"]*"[^>]*stroke-dasharray', svg)
  x = label_place(svg, "2")[0]
  assert [tuple(map(float, ends)) for ends in dashed] == [pytest.approx((x, x), abs=0.01)]
  assert "stroke-dasharray" not in charts.svg(line_chart([3.0, 2.0, 1.0]))


def test_the_axis_of_a_small_learning_rate_has_plain_numbers():
  svg = charts.svg(line_chart([2e-4, 1e-4, 0.0]))
  assert "0.0001</text>" in svg


def test_a_logarithmic_axis_has_the_powers_of_ten():
  svg = charts.svg(line_chart([0.01, 1.0, 100.0], log=True, y_range=(1e-3, 1e3)))
  heights = [label_place(svg, text)[1] for text in ("0.001", "0.01", "0.1", "100")]
  # A decade is as high as the next.
  assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.01)
  assert heights[2] - heights[3] == pytest.approx(3 * (heights[0] - heights[1]), abs=0.01)


def test_more_lines_than_colours_differ_by_their_dashes():
  svg = charts.svg(line_chart(*[[float(n), n + 1.0] for n in range(8)]))
  # The first and the eighth line, each with its entry of the legend.
  assert len(paths_of(svg, _BLUE)) == 2
  assert len(re.findall(rf"stroke-dasharray[^\"]*; stroke: {themed(_BLUE)}", svg)) == 2


def test_charts_of_nothing_are_empty():
  empty = [
      line_chart([math.nan, math.inf]),
      line_chart([]),
      charts.StripChart(title="", groups=[charts.Values("a", [math.nan], "#000000")]),
      charts.BarChart(title="", names=["a"], series=[charts.Values("s", [0], "#000000")]),
      charts.Histogram(title="", samples=[charts.Values("a", [], "#000000")], edges=[0, 1]),
      charts.SizeChart(title="", counts={}),
  ]
  assert [charts.svg(chart) for chart in empty] == [""] * len(empty)
  assert charts.image(empty, columns=2).tolist() == [[[255, 255, 255]]]


def test_a_strip_has_a_dot_for_each_value_in_its_place():
  groups = [
      charts.Values("a", [0.0, 1.0, 0.5, math.nan], "#123456"), charts.Values("b", [], "#ff0000")
  ]  # fmt: skip
  svg = charts.svg(charts.StripChart(title="Dice", groups=groups))
  ends = [label_place(svg, text)[0] for text in ("0", "1")]
  expected = [ends[0], ends[1], sum(ends) / 2]
  assert [x for x, _ in dots_of(svg, "#123456")] == pytest.approx(expected, abs=0.01)
  assert ">0.500</text>" in svg and ">no value</text>" in svg
  # The first group stands above the second.
  assert label_place(svg, "a")[1] < label_place(svg, "b")[1]


def test_bars_have_their_notes_and_a_histogram_its_counts():
  bars = charts.BarChart(
      title="Records", names=["train", "test"], notes=["12 (3 subjects)", "4 (1 subject)"],
      series=[charts.Values("records", [12, 4], "#123456")],
  )  # fmt: skip
  assert "12 (3 subjects)</text>" in charts.svg(bars)
  histogram = charts.Histogram(
      title="", edges=[0, 1, 2], samples=[charts.Values("", [0.5, 1.5, 1.5], "#123456")]
  )
  svg = charts.svg(histogram)
  outline = re.search(r'<path d="([^"]+)"[^>]*style="fill: #123456', svg)[1]
  heights = sorted({float(y) for y in re.findall(r"[\d.]+ ([\d.]+) ", outline)})
  base = heights[-1]
  # Counts of 0 (the base), 1 and 2.
  assert base - heights[0] == pytest.approx(2 * (base - heights[1]), abs=0.01)


def test_names_are_text_whatever_they_hold():
  name = 'a$b$ <i> id="x" &'
  groups = [charts.Values(name, [0.5], "#123456")]
  svg = charts.svg(charts.StripChart(title=f"{name}!", groups=groups))
  texts = [html.unescape(text) for text in re.findall(r">([^<]+)</text>", svg)]
  assert name in texts and f"{name}!" in texts


def test_a_chart_is_the_same_each_time_whatever_style_the_user_has_set():
  chart = line_chart([1.0, 2.0], [2.0, 1.0])
  with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "svg.fonttype": "path"}):
    within = charts.svg(chart)
    assert matplotlib.rcParams["font.size"] == 30
  assert within == charts.svg(chart)


def test_charts_on_one_page_do_not_share_names():
  one, two = (charts.svg(line_chart([1.0, 2.0], title=title)) for title in ("Loss", "Dice"))
  names = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (one, two)]
  assert names[0] and not names[0] & names[1]
  for svg, own in zip((one, two), names, strict=True):
    assert "<style" not in svg
    assert {a or b for a, b in re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg)} == own


def test_images_stand_in_a_grid():
  chart = line_chart([1.0, 2.0])
  width, height = round(360 * 1.5), round(chart.height * 1.5)
  image = charts.image([chart, line_chart([math.nan]), chart, chart], columns=2)
  # Three charts have something to show: two in the first row, one in the second.
  assert image.dtype == np.uint8 and image.shape == (2 * height, 2 * width, 3)
  assert image[height:, :width].min() < 128
  assert image[height:, width:].min() == 255


def test_what_draws_nothing_does_not_load_matplotlib():
  program = (
      "import sys; import flexunet.tools.dataset_report.page;"
      " sys.exit('matplotlib' in sys.modules)"
  )
  assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
