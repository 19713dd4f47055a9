"""Charts and the contact sheet of a dataset report, as pictures (uint8 [H, W, 3])."""

from __future__ import annotations

import numpy as np

from flexunet.datasets.built_dataset import BuiltDataset
from flexunet.reporting import overlay
from flexunet.tools.dataset_report import statistics
from flexunet.tools.dataset_report.statistics import Statistics

_TILE = 200
_TITLE_HEIGHT = 36
_LINE_COLORS = ("#555555", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def charts(dataset: BuiltDataset, statistics: Statistics) -> np.ndarray:
  """Draws the six charts as one picture."""
  import matplotlib.figure
  from matplotlib.backends import backend_agg

  # A figure of its own, not pyplot: nothing global is touched, no display is needed.
  figure = matplotlib.figure.Figure(figsize=(15, 8.4), dpi=90, layout="constrained")
  canvas = backend_agg.FigureCanvasAgg(figure)
  axes = figure.subplots(2, 3)
  _split_chart(axes[0, 0], dataset)
  _class_chart(axes[0, 1], dataset)
  _intensity_chart(axes[0, 2], dataset, statistics)
  _size_chart(axes[1, 0], statistics)
  _slices_chart(axes[1, 1], dataset)
  _position_chart(axes[1, 2], dataset)
  for axis in axes.flat:
    axis.spines[["top", "right"]].set_visible(False)
    axis.title.set_size(11)
  canvas.draw()
  return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _split_chart(axis, dataset: BuiltDataset) -> None:
  splits = dataset.splits
  names = list(splits)
  records = [splits[name]["num_records"] for name in names]
  foreground = [splits[name]["num_foreground_records"] for name in names]
  axis.bar(names, records, color="#c6d3dd", label="records")
  axis.bar(names, foreground, color="#0072B2", label="with foreground")
  for place, name in enumerate(names):
    subjects = splits[name]["num_subjects"]
    text = f"{subjects} subject{'s' if subjects != 1 else ''}\n{records[place]} records"
    axis.annotate(text, (place, records[place]), ha="center", va="bottom", fontsize=8)
  axis.margins(y=0.2)
  axis.set_title("Records per split")
  axis.legend(fontsize=8, frameon=False)


def _class_chart(axis, dataset: BuiltDataset) -> None:
  scheme = dataset.scheme
  splits = {name: entry for name, entry in dataset.splits.items() if name != "unlabeled"}
  width = 0.8 / max(1, len(splits))
  places = np.arange(scheme.num_classes)
  for number, (name, entry) in enumerate(splits.items()):
    counts = np.array([entry["pixels"][class_name] for class_name in scheme.names], float)
    share = 100 * counts / max(counts.sum(), 1)
    color = _LINE_COLORS[(number + 1) % len(_LINE_COLORS)]
    axis.bar(places + number * width, np.where(share > 0, share, np.nan), width, label=name,
             color=color)  # fmt: skip
  axis.set_xticks(places + width * (len(splits) - 1) / 2, scheme.names, rotation=20, ha="right",
                  fontsize=8)  # fmt: skip
  axis.set_yscale("log")
  axis.set_ylim(bottom=1e-3)
  axis.set_title("Share of pixels per class, % (log)")
  axis.legend(fontsize=8, frameon=False)


def _intensity_chart(axis, dataset: BuiltDataset, statistics: Statistics) -> None:
  palette = overlay.display_palette(dataset.scheme.palette) / 255
  for index, name in enumerate(dataset.scheme.names):
    counts = statistics.intensities[index]
    if not counts.sum():
      continue
    # Bins of four, since a window of 12-bit data leaves gaps between single values.
    share = 100 * counts.reshape(64, 4).sum(axis=1) / counts.sum()
    color = "#777777" if index == 0 else palette[index]
    axis.plot(np.arange(64) * 4 + 2, share, label=name, color=color, linewidth=1.6)
  axis.set_yscale("log")
  axis.set_ylim(bottom=1e-3)
  axis.set_title("Intensity per class, % of its pixels (log)")
  axis.set_xlabel("8-bit intensity", fontsize=9)
  axis.legend(fontsize=8, frameon=False)


def _size_chart(axis, statistics: Statistics) -> None:
  heights = [size[0] for size in statistics.sizes]
  widths = [size[1] for size in statistics.sizes]
  counts = np.array(list(statistics.sizes.values()), float)
  axis.scatter(widths, heights, s=30 + 300 * counts / max(counts.max(), 1), color="#0072B2",
               alpha=0.5)  # fmt: skip
  if len(heights) <= 8:
    for (height, width), count in statistics.sizes.items():
      axis.annotate(f"{height} x {width}: {count}", (width, height), fontsize=8,
                    textcoords="offset points", xytext=(8, 6))  # fmt: skip
  largest = max([*heights, *widths], default=1) * 1.15
  axis.set(xlim=(0, largest), ylim=(0, largest), xlabel="width", ylabel="height")
  axis.set_aspect("equal")
  axis.set_title("Size of slices, pixels")


def _slices_chart(axis, dataset: BuiltDataset) -> None:
  names = dataset.scheme.names
  foreground: dict[str, int] = {}
  for row in dataset.rows:
    if row["split"] != "unlabeled":
      count = sum(statistics.pixels(row, names)[1:])
      foreground[row["volume"]] = foreground.get(row["volume"], 0) + count
  values = np.array(list(foreground.values()))
  axis.hist(values, bins=min(30, max(5, len(values))), color="#0072B2", alpha=0.75)
  axis.set_title(f"Foreground pixels per volume ({(values == 0).sum()} of {len(values)} have none)")
  axis.set_xlabel("pixels", fontsize=9)
  axis.set_ylabel("volumes", fontsize=9)


def _position_chart(axis, dataset: BuiltDataset) -> None:
  names = dataset.scheme.names
  per_volume: dict[str, list[dict[str, str]]] = {}
  for row in dataset.rows:
    if row["split"] != "unlabeled" and row["slice_index"]:
      per_volume.setdefault(row["volume"], []).append(row)
  palette = overlay.display_palette(dataset.scheme.palette) / 255
  bins = np.linspace(0, 1, 21)
  places: dict[str, list[float]] = {name: [] for name in names[1:]}
  for rows in per_volume.values():
    positions = [int(row["slice_index"]) for row in rows]
    low, span = min(positions), max(max(positions) - min(positions), 1)
    for row, position in zip(rows, positions, strict=True):
      for name in names[1:]:
        if int(row[f"pixels_{name}"]):
          places[name].append((position - low) / span)
  for index, (name, found) in enumerate(places.items(), start=1):
    if found:
      axis.hist(found, bins, histtype="step", color=palette[index], label=name, linewidth=1.6)
  if not per_volume:
    axis.set_axis_off()  # Whole volumes: where in them a class occurs is not in the table.
    return
  axis.set_title("Where in the volume a class occurs (0 first slice, 1 last)")
  axis.set_ylabel("records", fontsize=9)
  if any(places.values()):
    axis.legend(fontsize=8, frameon=False)


def contact_sheet(dataset: BuiltDataset, samples) -> np.ndarray:
  """Draws the slices in a row, and below them the same with coloured labels, if there are any."""
  palette = overlay.display_palette(dataset.scheme.palette)
  plain, painted = [], []
  for sample in samples:
    grey = sample.image
    if grey.ndim == 3:
      grey = grey.mean(axis=-1).astype(np.uint8)
    plain.append(overlay.stretch(overlay.to_rgb(grey), sample.aspect))
    painted.append(overlay.stretch(overlay.blend(grey, sample.label, palette), sample.aspect))
  blank = [np.full((8, 8, 3), 16, np.uint8)] * (statistics.SHEET_COLUMNS - len(plain))
  labelled = any(sample.label.any() for sample in samples)
  return overlay.contact_sheet(
      [*plain, *blank, *painted, *blank] if labelled else [*plain, *blank],
      columns=statistics.SHEET_COLUMNS,
      tile_size=_TILE,
  )


def stack(pictures: dict[str, np.ndarray]) -> np.ndarray:
  """Puts pictures of any width below each other on white, each under its title."""
  from PIL import Image, ImageDraw, ImageFont

  width = max(picture.shape[1] for picture in pictures.values())
  padded = []
  for title, picture in pictures.items():
    band = Image.new("RGB", (width, _TITLE_HEIGHT), "white")
    font = ImageFont.load_default(size=18)
    ImageDraw.Draw(band).text((8, 8), title, fill="#1c2126", font=font)
    padded.append(np.asarray(band))
    right = width - picture.shape[1]
    padded.append(np.pad(picture, ((0, 8), (0, right), (0, 0)), constant_values=255))
  return np.concatenate(padded)
