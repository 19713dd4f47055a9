"""Draws a FlexUNet as the U it is: one bar per convolution, one row per stage."""

from __future__ import annotations

import io
import math
import pathlib

from flexunet import run_folder
from flexunet.datasets.errors import InputError
from flexunet.network import inspection
from flexunet.network.knobs import Knobs, count_parameters

_COLORS = {
    "convolution": "#4c78a8", "pool": "#e45756", "up": "#f58518", "join": "#b279a2",
    "head": "#54a24b",
}  # fmt: skip
_SUFFIXES = (".png", ".svg", ".pdf")
_ROW_HEIGHT = 1.35


def draw(knobs: Knobs, path: pathlib.Path) -> None:
  """Writes the drawing; the suffix of `path` decides its format.

  Raises:
    InputError: The suffix is none of .png, .svg, .pdf.
  """
  if path.suffix.lower() not in _SUFFIXES:
    raise InputError(f"--output must end in {', '.join(_SUFFIXES)}. Got: {path}.")
  # The object API of Matplotlib leaves the caller's backend and figures alone.
  from matplotlib import figure

  count = knobs.num_layers
  picture = figure.Figure(figsize=(max(8.0, 2.3 * count + 3), 1.5 + 1.15 * count), dpi=120)
  axes = picture.add_axes((0.01, 0.02, 0.98, 0.9))
  axes.set_axis_off()
  table = inspection.rows(knobs)
  encoder, decoder = _blocks(table, "encoder"), _blocks(table, "decoder")
  slot = 2.4
  right_of = {}
  for stage in range(count):
    left = slot * stage
    end = _bars(axes, encoder[stage], left, stage)
    right_of[stage] = end
    _caption(axes, encoder[stage][0], left, end, stage)
  for stage in range(count - 1):
    left = slot * (2 * (count - 1) - stage) + 0.5
    end = _bars(axes, decoder[stage], left, stage)
    _caption(axes, decoder[stage][0], left, end, stage)
    _skip(axes, right_of[stage], left, stage)
    _arrow(axes, right_of[stage] - 0.1, stage, slot * (stage + 1) + 0.1, stage + 1, "pool")
    below = slot * (2 * (count - 1) - stage - 1) + 0.5
    source = right_of[stage + 1] if stage == count - 2 else below + 0.5
    _arrow(axes, source, stage + 1, left - 0.03, stage, "up")
  last = slot * 2 * (count - 1) + 0.5 if count > 1 else 0.0
  _head(axes, knobs, last + 0.9)
  axes.set_xlim(-0.9, last + 2.6)
  axes.set_ylim(-_ROW_HEIGHT * (count - 1) - 0.95, 0.75)
  fields = inspection.receptive_fields(knobs)
  picture.suptitle(
      f"FlexUNet: {count} stage{'s' if count > 1 else ''}, {count_parameters(knobs):,} parameters,"
      f" receptive field {fields[0].decoder} px", fontsize=12,
  )  # fmt: skip
  _legend(picture)
  _save(picture, path)


def _blocks(table: list[inspection.Row], side: str) -> dict[int, list[inspection.Row]]:
  blocks: dict[int, list[inspection.Row]] = {}
  for row in table:
    if row.kind == "convolution" and row.name.startswith(side):
      blocks.setdefault(int(row.name.removeprefix(side).split("_")[0]), []).append(row)
  return blocks


def _bars(axes, block: list[inspection.Row], left: float, stage: int) -> float:
  """Draws the two convolutions of a block and returns where they end."""
  from matplotlib import patches

  x = left
  for row in block:
    width = 0.12 + 0.045 * math.log2(row.channels)
    height = 0.95 * max(0.25, 0.9**stage)
    axes.add_patch(patches.Rectangle(
        (x, -stage * _ROW_HEIGHT - height / 2), width, height, facecolor=_COLORS[row.kind],
        edgecolor="white", linewidth=0.8,
    ))  # fmt: skip
    x += width + 0.08
  return x - 0.08


def _caption(axes, row: inspection.Row, left: float, right: float, stage: int) -> None:
  height = 0.95 * max(0.25, 0.9**stage)
  lines = f"{row.size[0]}x{row.size[1]}x{row.channels}\nkernel {row.kernel}"
  if row.dilation > 1:
    lines += f", dilation {row.dilation}"
  axes.text(
      (left + right) / 2, -stage * _ROW_HEIGHT - height / 2 - 0.04, lines, fontsize=7,
      ha="center", va="top",
  )  # fmt: skip


def _skip(axes, start: float, end: float, stage: int) -> None:
  y = -stage * _ROW_HEIGHT
  axes.annotate(
      "", (end - 0.04, y), (start + 0.06, y),
      arrowprops={"arrowstyle": "-|>", "color": _COLORS["join"], "linestyle": "--", "lw": 1.1},
  )  # fmt: skip


def _arrow(axes, x0: float, row0: int, x1: float, row1: int, kind: str) -> None:
  y0, y1 = -row0 * _ROW_HEIGHT, -row1 * _ROW_HEIGHT
  down = row1 > row0
  axes.annotate(
      "", (x1, y1 + (0.42 if down else -0.2)), (x0 + 0.12, y0 + (-0.3 if down else 0.45)),
      arrowprops={"arrowstyle": "-|>", "color": _COLORS[kind], "lw": 1.6},
  )  # fmt: skip


def _head(axes, knobs: Knobs, x: float) -> None:
  from matplotlib import patches

  axes.add_patch(patches.Rectangle((x, -0.475), 0.12, 0.95, facecolor=_COLORS["head"]))
  kind = "sigmoid" if knobs.num_classes == 1 else "softmax"
  text = f"{knobs.num_classes} class{'es' if knobs.num_classes > 1 else ''}\n{kind}"
  axes.text(x + 0.2, 0, text, fontsize=8, va="center")
  axes.text(-0.15, 0, f"image\nx{knobs.image_channels}", fontsize=8, ha="right", va="center")


def _legend(picture) -> None:
  from matplotlib import lines

  names = {
      "convolution": "convolution", "pool": "2x2 max-pool", "up": "2x2 transposed convolution",
      "join": "skip, concatenated", "head": "1x1 head",
  }  # fmt: skip
  handles = [
      lines.Line2D([], [], color=_COLORS[kind], lw=5 if kind in ("convolution", "head") else 2,
                   linestyle="--" if kind == "join" else "-", label=text)
      for kind, text in names.items()
  ]  # fmt: skip
  picture.legend(handles=handles, loc="lower left", fontsize=8, frameon=False)


def _save(picture, path: pathlib.Path) -> None:
  stream = io.BytesIO()
  picture.savefig(stream, format=path.suffix[1:].lower(), bbox_inches="tight", facecolor="white")
  run_folder.write_bytes(path, stream.getvalue())
