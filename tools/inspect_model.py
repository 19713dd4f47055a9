"""Shows what a FlexUNet is: its layers, parameters, receptive field, memory; and draws it.

  flexunet inspect --base_kernels=9 --num_layers=6 --output=network.png
  flexunet inspect --run_dir=RUN
  flexunet inspect --model=RUN/model.keras --json

All numbers follow from the shape alone: nothing is built, and no device is needed. The drawing is
the U itself: one bar per convolution, one row per stage.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
import pathlib
import types
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flexunet import run_folder
from flexunet.core import command_line, files, flags, progress
from flexunet.core.errors import InputError
from flexunet.network import architecture, cost
from flexunet.network.architecture import ModelConfig

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

_PROGRAM = flags.Program(__doc__, first=("run_dir", "model", "output", "json"))
_RUN_DIR = _PROGRAM.string("run_dir", None, "Run folder whose network is shown.")
_MODEL = _PROGRAM.string("model", None, "Model file (.keras) whose network is shown.")
_OUTPUT = _PROGRAM.string("output", None, "Drawing to write: .png, .svg or .pdf.")
_BATCH_SIZES = _PROGRAM.list(
    "batch_sizes", ["1", "2", "4", "8", "16", "32"], "Batch sizes whose memory is estimated."
)
_JSON = _PROGRAM.boolean("json", False, "Prints one JSON object instead of tables.")
# Without a run or a file the published network is shown, changed by these.
_SHAPE = _PROGRAM.fields(
    ModelConfig, group="Network", defaults=dataclasses.asdict(architecture.PUBLISHED)
)
_Table = list[tuple[str, ...]]
_COLORS = {
    "convolution": "#4c78a8", "pool": "#e45756", "up": "#f58518", "join": "#b279a2",
    "head": "#54a24b",
}  # fmt: skip
_SUFFIXES = (".png", ".svg", ".pdf")
_ROW_HEIGHT = 1.35


@functools.cache
def _matplotlib() -> types.SimpleNamespace:
  """Returns the modules `figure`, `lines` and `patches`: the object API, without a display."""
  # Only a drawing needs it; --help and tables need not wait a third of a second.
  from matplotlib import figure, lines, patches

  return types.SimpleNamespace(figure=figure, lines=lines, patches=patches)


def _chosen() -> ModelConfig:
  if _RUN_DIR.value and _MODEL.value:
    raise InputError("Pass either --run_dir or --model, not both.")
  if not _RUN_DIR.value and not _MODEL.value:
    return flags.read(ModelConfig, _SHAPE)
  if given := [name for name in _SHAPE if _PROGRAM.given(name)]:
    raise InputError(
        f"The network of --run_dir or --model has its own shape. Drop --{', --'.join(given)}."
    )
  if _MODEL.value:
    path = pathlib.Path(_MODEL.value).expanduser()
    cost.check_keras_file(path)
    return cost.config_of_keras_file(path)
  return run_folder.RunFolder.open(str(_RUN_DIR.value)).read_config().model


def _batch_sizes() -> tuple[int, ...]:
  sizes = flags.numbers("batch_sizes", _BATCH_SIZES.value, int)
  if not sizes or min(sizes) < 1:
    raise InputError(f"--batch_sizes must be at least 1. Got: {','.join(_BATCH_SIZES.value)}.")
  return sizes


def describe(shown: architecture.ModelConfig, batch_sizes: Sequence[int]) -> dict[str, Any]:
  """Returns all numbers as plain values, texts, lists and dicts."""
  table = cost.rows(shown)
  return {
      "knobs": dataclasses.asdict(shown),
      "parameters": cost.count_parameters(shown),
      "multiply_adds_per_image": sum(row.multiply_adds for row in table),
      "layers": [dataclasses.asdict(row) for row in table],
      "stages": [
          {**dataclasses.asdict(stage), "receptive_field": {
              "encoder": field.encoder, "decoder": field.decoder}}
          for stage, field in zip(shown.stages(), cost.receptive_fields(shown), strict=True)
      ],
      "training_memory_bytes": [
          {
              "batch_size": size,
              "float32": cost.training_bytes(shown, size),
              "mixed": cost.training_bytes(shown, size, bytes_per_number=2),
          }
          for size in batch_sizes
      ],
  }  # fmt: skip


def as_text(facts: dict[str, Any]) -> str:
  """Returns what `describe` gives as tables for the terminal."""
  layers: _Table = [("layer", "output", "kernel", "dilation", "parameters", "M multiply-adds")]
  for row in facts["layers"]:
    height, width = row["size"]
    layers.append((
        row["name"], f"{height} x {width} x {row['channels']}", str(row["kernel"] or ""),
        str(row["dilation"] if row["dilation"] > 1 else ""),
        f"{row['parameters']:,}" if row["parameters"] else "",
        f"{row['multiply_adds'] / 1e6:,.1f}" if row["multiply_adds"] else "",
    ))  # fmt: skip
  stages: _Table = [("stage", "filters", "kernel", "dropout", "field encoder", "field decoder")]
  for stage in facts["stages"]:
    field = stage["receptive_field"]
    stages.append((
        str(stage["index"]), str(stage["filters"]), str(stage["kernel"]),
        f"{stage['dropout_rate']:.2f}", f"{field['encoder']} px", f"{field['decoder']} px",
    ))  # fmt: skip
  memory: _Table = [("batch size", "float32", "mixed precision")]
  for entry in facts["training_memory_bytes"]:
    memory.append((
        str(entry["batch_size"]), f"{entry['float32'] / 2**30:.2f} GiB",
        f"{entry['mixed'] / 2**30:.2f} GiB",
    ))  # fmt: skip
  total = facts["multiply_adds_per_image"] / 1e9
  size = facts["knobs"]["image_size"]
  assumed = "" if size else " (any size; computed at 512 x 512)"
  return "\n\n".join([
      progress.table(layers),
      f"{facts['parameters']:,} parameters, {total:,.2f} G multiply-adds per image{assumed}",
      "Receptive field, in pixels of the input\n" + progress.table(stages),
      "Estimated memory of a training step with Adam, without the framework itself\n"
      + progress.table(memory),
  ])


def draw(config: ModelConfig, path: pathlib.Path) -> None:
  """Writes the drawing; the suffix of `path` decides its format.

  Raises:
    InputError: The suffix is none of .png, .svg, .pdf.
  """
  if path.suffix.lower() not in _SUFFIXES:
    raise InputError(f"--output must end in {', '.join(_SUFFIXES)}. Got: {path}.")
  count = config.num_layers
  table = cost.rows(config)
  encoder, decoder = _blocks(table, "encoder"), _blocks(table, "decoder")
  # Of each stage, wide enough for the convolutions of the longest.
  slot = max(2.4, 0.6 + 0.45 * max(map(len, encoder.values())))
  size = (max(8.0, slot * count + 3), 1.5 + 1.15 * count)
  drawing = _matplotlib().figure.Figure(figsize=size, dpi=120)
  axes = drawing.add_axes((0.01, 0.02, 0.98, 0.9))
  axes.set_axis_off()
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
  _head(axes, config, last + 0.9)
  axes.set_xlim(-0.9, last + 2.6)
  axes.set_ylim(-_ROW_HEIGHT * (count - 1) - 0.95, 0.75)
  drawing.suptitle(
      f"FlexUNet: {progress.count(count, 'stage')}, {cost.count_parameters(config):,} parameters,"
      f" receptive field {cost.output_field(config)} px", fontsize=12,
  )  # fmt: skip
  _legend(drawing)
  _save(drawing, path)


def _blocks(table: list[cost.Row], side: str) -> dict[int, list[cost.Row]]:
  blocks: dict[int, list[cost.Row]] = {}
  for row in table:
    if row.kind == "convolution" and row.name.startswith(side):
      blocks.setdefault(int(row.name.removeprefix(side).split("_")[0]), []).append(row)
  return blocks


def _bars(axes: Axes, block: list[cost.Row], left: float, stage: int) -> float:
  """Draws the two convolutions of a block and returns where they end."""
  x = left
  for row in block:
    width = 0.12 + 0.045 * math.log2(row.channels)
    height = 0.95 * max(0.25, 0.9**stage)
    axes.add_patch(_matplotlib().patches.Rectangle(
        (x, -stage * _ROW_HEIGHT - height / 2), width, height, facecolor=_COLORS[row.kind],
        edgecolor="white", linewidth=0.8,
    ))  # fmt: skip
    x += width + 0.08
  return x - 0.08


def _caption(axes: Axes, row: cost.Row, left: float, right: float, stage: int) -> None:
  height = 0.95 * max(0.25, 0.9**stage)
  lines = f"{row.size[0]}x{row.size[1]}x{row.channels}\nkernel {row.kernel}"
  if row.dilation > 1:
    lines += f", dilation {row.dilation}"
  axes.text(
      (left + right) / 2, -stage * _ROW_HEIGHT - height / 2 - 0.04, lines, fontsize=7,
      ha="center", va="top",
  )  # fmt: skip


def _skip(axes: Axes, start: float, end: float, stage: int) -> None:
  y = -stage * _ROW_HEIGHT
  axes.annotate(
      "", (end - 0.04, y), (start + 0.06, y),
      arrowprops={"arrowstyle": "-|>", "color": _COLORS["join"], "linestyle": "--", "lw": 1.1},
  )  # fmt: skip


def _arrow(axes: Axes, x0: float, row0: int, x1: float, row1: int, kind: str) -> None:
  y0, y1 = -row0 * _ROW_HEIGHT, -row1 * _ROW_HEIGHT
  down = row1 > row0
  axes.annotate(
      "", (x1, y1 + (0.42 if down else -0.2)), (x0 + 0.12, y0 + (-0.3 if down else 0.45)),
      arrowprops={"arrowstyle": "-|>", "color": _COLORS[kind], "lw": 1.6},
  )  # fmt: skip


def _head(axes: Axes, config: ModelConfig, x: float) -> None:
  rectangle = _matplotlib().patches.Rectangle
  axes.add_patch(rectangle((x, -0.475), 0.12, 0.95, facecolor=_COLORS["head"]))
  kind = "sigmoid" if config.num_classes == 1 else "softmax"
  text = f"{config.num_classes} class{'es' if config.num_classes > 1 else ''}\n{kind}"
  axes.text(x + 0.2, 0, text, fontsize=8, va="center")
  image = f"image\nx{config.image_channels}"
  if config.stem != "full":
    image += "\n2x2 to\nchannels"
    exit_ = "2x2 from\nchannels"
    axes.text(x - 0.1, -0.5, exit_, fontsize=7, va="top")
  axes.text(-0.15, 0, image, fontsize=8, ha="right", va="center")


def _legend(drawing: Figure) -> None:
  names = {
      "convolution": "convolution", "pool": "2x2 max-pool", "up": "2x2 upsampling",
      "join": "skip, concatenated", "head": "head",
  }  # fmt: skip
  line = _matplotlib().lines.Line2D
  handles = [
      line([], [], color=_COLORS[kind], lw=5 if kind in ("convolution", "head") else 2,
           linestyle="--" if kind == "join" else "-", label=text)
      for kind, text in names.items()
  ]  # fmt: skip
  drawing.legend(handles=handles, loc="lower left", fontsize=8, frameon=False)


def _save(drawing: Figure, path: pathlib.Path) -> None:
  stream = io.BytesIO()
  drawing.savefig(stream, format=path.suffix[1:].lower(), bbox_inches="tight", facecolor="white")
  files.write_bytes(path, stream.getvalue())


def main(argv: Sequence[str]) -> None:
  command_line.no_words(argv)
  shown = _chosen()
  sizes = _batch_sizes()
  facts = describe(shown, sizes)
  if _OUTPUT.value:
    draw(shown, pathlib.Path(_OUTPUT.value).expanduser())
  print(json.dumps(facts, indent=2) if _JSON.value else as_text(facts))


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()
