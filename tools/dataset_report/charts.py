"""Charts and contact sheets of a dataset report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flexunet.datasets.built_dataset import BuiltDataset
from flexunet.reporting import charts, colors, html_parts, overlay, sheets
from flexunet.tools.dataset_report import statistics
from flexunet.tools.dataset_report.statistics import Sample, Statistics

_TILE = 200
_TITLE_HEIGHT = 36
_MANY, _SOME = charts.QUIET_COLOR, charts.LINE_COLORS[0]
_BACKGROUND = "#777777"
_LEAST_PERCENT = 1e-3  # Lower end of the logarithmic axes.


def charts_of(dataset: BuiltDataset, figures: Statistics) -> list[charts.Chart]:
  """Returns the charts of a dataset, in reading order; some may have nothing to draw."""
  return [
      _split_chart(dataset),
      _class_chart(dataset),
      _intensity_chart(dataset, figures),
      charts.SizeChart(
          title="Size of slices", x_label="width, pixels", y_label="height, pixels",
          counts=figures.sizes,
      ),
      _foreground_chart(dataset),
      _position_chart(dataset),
  ]  # fmt: skip


def _class_colors(dataset: BuiltDataset) -> list[str]:
  palette = colors.display_palette(dataset.scheme.palette)
  return [_BACKGROUND, *(html_parts.color(rgb) for rgb in palette[1:])]


def _class_words(dataset: BuiltDataset) -> list[str]:
  return [name.replace("_", " ") for name in dataset.scheme.names]


def _split_chart(dataset: BuiltDataset) -> charts.BarChart:
  splits = dataset.splits.values()
  records = [entry["num_records"] for entry in splits]
  return charts.BarChart(
      title="Records per split",
      names=list(dataset.splits),
      series=[
          charts.Values("records", records, _MANY),
          charts.Values(
              "with foreground", [entry["num_foreground_records"] for entry in splits], _SOME
          ),
      ],
      stacked_in_place=True,
      notes=[
          f"{count:,} ({html_parts.count(entry['num_subjects'], 'subject')})"
          for count, entry in zip(records, splits, strict=True)
      ],
  )


def _class_chart(dataset: BuiltDataset) -> charts.BarChart:
  names = dataset.scheme.names
  labelled = {name: entry for name, entry in dataset.splits.items() if name != "unlabeled"}
  series = []
  for position, (split, entry) in enumerate(labelled.items()):
    counts = np.array([entry["pixels"][name] for name in names], np.float64)
    share = 100 * counts / max(counts.sum(), 1)
    color = charts.LINE_COLORS[position % len(charts.LINE_COLORS)]
    series.append(charts.Values(split, share, color))
  return charts.BarChart(
      title="Share of the pixels per class",
      x_label="%, logarithmic",
      names=_class_words(dataset),
      series=series,
      x_range=(_LEAST_PERCENT, 200),
      log=True,
  )


def _intensity_chart(dataset: BuiltDataset, figures: Statistics) -> charts.LineChart:
  lines = []
  for name, color, counts in zip(
      _class_words(dataset), _class_colors(dataset), figures.intensities, strict=True
  ):
    # Bins of four, since a window of 12-bit data leaves gaps between single values.
    share = 100 * counts.reshape(64, 4).sum(axis=1) / max(counts.sum(), 1)
    lines.append(
        charts.Line(name, np.arange(64) * 4 + 2, np.where(share > 0, share, np.nan), color)
    )
  return charts.LineChart(
      title="Intensities of each class",
      x_label="8-bit intensity",
      y_label="% of its pixels",
      lines=lines,
      x_range=(0, 255),
      y_range=(_LEAST_PERCENT, 200),
      log=True,
  )


def _foreground_chart(dataset: BuiltDataset) -> charts.Histogram:
  names = dataset.scheme.names
  foreground: dict[str, int] = {}
  for row in dataset.rows:
    if row["split"] != "unlabeled":
      count = sum(statistics.pixels(row, names)[1:])
      foreground[row["volume"]] = foreground.get(row["volume"], 0) + count
  values = list(foreground.values())
  bins = min(30, max(5, len(values)))
  return charts.Histogram(
      title=f"Foreground per volume ({values.count(0)} of {len(values)} have none)",
      x_label="pixels, thousands",
      y_label="volumes",
      samples=[charts.Values("", [value / 1000 for value in values], _SOME)],
      edges=np.histogram_bin_edges([value / 1000 for value in values], bins),
  )


def _position_chart(dataset: BuiltDataset) -> charts.Histogram:
  """Returns where in the volumes the classes are; nothing of whole volumes, whose rows lack it."""
  by_volume: dict[str, list[dict[str, str]]] = {}
  for row in dataset.rows:
    if row["split"] != "unlabeled" and row["slice_index"]:
      by_volume.setdefault(row["volume"], []).append(row)
  names = dataset.scheme.names[1:]
  places: dict[str, list[float]] = {name: [] for name in names}
  for rows in by_volume.values():
    positions = [int(row["slice_index"]) for row in rows]
    low, span = min(positions), max(max(positions) - min(positions), 1)
    for row, position in zip(rows, positions, strict=True):
      for name in names:
        if int(row[f"pixels_{name}"]):
          places[name].append((position - low) / span)
  colors, words = _class_colors(dataset)[1:], _class_words(dataset)[1:]
  return charts.Histogram(
      title="Where in the volume each class occurs",
      x_label="0: first slice, 1: last slice",
      y_label="slices",
      samples=[
          charts.Values(word, places[name], color)
          for name, word, color in zip(names, words, colors, strict=True)
      ],
      edges=np.linspace(0, 1, 21),
  )


def contact_sheet(dataset: BuiltDataset, samples: Sequence[Sample]) -> np.ndarray:
  """Returns slices in a row, below them the same with coloured labels if there are any.

  The sheet is uint8 [H, W, 3].
  """
  view = sheets.View.of_scheme(dataset.scheme)
  plain, painted = [], []
  for sample in samples:
    grey = sample.image
    if grey.ndim == 3:
      grey = grey.mean(axis=-1).astype(np.uint8)
    of_sample = dataclasses.replace(view, aspect=sample.aspect)
    number = sample.row["slice_index"]
    plain.append(
        sheets.Tile(
            overlay.stretch(overlay.to_rgb(grey), sample.aspect),
            f"slice {number}" if number and int(number) >= 0 else "",
        )
    )
    painted.append(sheets.slice_tile(grey, sample.label, of_sample, size=_TILE))
  blank = [sheets.Tile(np.full((8, 8, 3), 16, np.uint8))]
  blank *= statistics.SHEET_COLUMNS - len(plain)
  labelled = any(sample.label.any() for sample in samples)
  return sheets.contact_sheet(
      [*plain, *blank, *painted, *blank] if labelled else [*plain, *blank],
      columns=statistics.SHEET_COLUMNS,
      tile_size=_TILE,
      legend=view.legend if labelled else (),
  )


def stack(images: Mapping[str, np.ndarray]) -> np.ndarray:
  """Returns images (uint8 [H, W, 3], any sizes) below each other on white, each under its title."""
  width = max(image.shape[1] for image in images.values())
  padded = []
  for title, image in images.items():
    band = Image.new("RGB", (width, _TITLE_HEIGHT), "white")
    font = ImageFont.load_default(size=18)
    ImageDraw.Draw(band).text((8, 8), title, fill="#1c2126", font=font)
    padded.append(np.asarray(band))
    right = width - image.shape[1]
    padded.append(np.pad(image, ((0, 8), (0, right), (0, 0)), constant_values=255))
  return np.concatenate(padded)
