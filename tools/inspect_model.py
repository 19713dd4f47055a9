"""Tells what a FlexUNet is: its layers, parameters, receptive field, memory; and draws it.

  python -m flexunet.tools.inspect_model --base_kernels=9 --num_layers=6 --output=network.png
  python -m flexunet.tools.inspect_model --run_dir=RUN
  python -m flexunet.tools.inspect_model --model=RUN/model.keras --json

Nothing is built or trained: all figures come from the knobs, in no time and without a device.

Draws a FlexUNet as the U it is: one bar per convolution, one row per stage.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from flexunet import run_folder
from flexunet.core import command_line, files, flags
from flexunet.core.errors import InputError
from flexunet.network import architecture, cost
from flexunet.network.architecture import ModelConfig, count_parameters

_PROGRAM = flags.Program(__doc__)
_RUN_DIR = _PROGRAM.string("run_dir", None, "Run folder whose network is shown.")
_MODEL = _PROGRAM.string("model", None, "Model file (.keras) whose network is shown.")
_OUTPUT = _PROGRAM.string("output", None, "Drawing to write: .png, .svg or .pdf.")
_BATCH_SIZES = _PROGRAM.list("batch_sizes", ["1", "2", "4", "8", "16", "32"],
                                 "Batch sizes whose memory is told.")  # fmt: skip
_JSON = _PROGRAM.boolean("json", False, "Prints one JSON object instead of tables.")
_SIZE = _PROGRAM.list("image_size", ["512", "512"], "Height,width in pixels, or one number.")
_COUNTS = {
    "image_channels": "Channels of the input.",
    "num_classes": "Classes, background included; 1 for one foreground by sigmoid.",
    "base_filters": "Channels of the first stage; they double at each stage below.",
    "base_kernels": "Odd kernel edge of the first stage; shrinks by 2 per stage, down to 3.",
    "num_layers": "Stages.",
    "dilation": "Dilation of the first stage; shrinks by 1 per stage, to 1.",
}
_CHOICES = {
    "normalization": (architecture.NORMALIZATIONS, "Layer after each convolution."),
    "activation": (architecture.ACTIVATIONS, "Activation after each convolution."),
    "kernel_initializer": (architecture.KERNEL_INITIALIZERS, "How weights start."),
    "input_normalization": (architecture.INPUT_NORMALIZATIONS, "How 0..255 enters the network."),
}
_DEFAULTS = architecture.PUBLISHED
_Table = list[tuple[str, ...]]
_KNOBS: dict[str, flags.FlagHolder] = {
    **{n: _PROGRAM.integer(n, getattr(_DEFAULTS, n), text) for n, text in _COUNTS.items()},
    **{
        n: _PROGRAM.enum(n, getattr(_DEFAULTS, n), choices, text)
        for n, (choices, text) in _CHOICES.items()
    },
    "dropout_rate": _PROGRAM.float(
        "dropout_rate", _DEFAULTS.dropout_rate, "Dropout at stage n (from 0) is n times this rate."
    ),
    "deep_supervision": _PROGRAM.boolean(
        "deep_supervision", _DEFAULTS.deep_supervision, "Outputs at coarser stages too."
    ),
}
_COLORS = {
    "convolution": "#4c78a8", "pool": "#e45756", "up": "#f58518", "join": "#b279a2",
    "head": "#54a24b",
}  # fmt: skip
_SUFFIXES = (".png", ".svg", ".pdf")
_ROW_HEIGHT = 1.35


def main(argv: Sequence[str]) -> None:
  command_line.no_words(argv)
  shown = _chosen_knobs()
  sizes = _numbers("batch_sizes", _BATCH_SIZES.value)
  facts = describe(shown, sizes)
  if _OUTPUT.value:

    draw(shown, pathlib.Path(_OUTPUT.value).expanduser())
  print(json.dumps(facts, indent=2) if _JSON.value else as_text(facts))


def _chosen_knobs() -> architecture.ModelConfig:
  if _RUN_DIR.value and _MODEL.value:
    raise InputError("Pass either --run_dir or --model, not both.")
  if not _RUN_DIR.value and not _MODEL.value:
    values = {name: holder.value for name, holder in _KNOBS.items()}
    size = _numbers("image_size", _SIZE.value)
    if len(size) not in (1, 2):
      raise InputError(f"--image_size must be one or two whole numbers. Got: {_SIZE.value}.")
    return architecture.ModelConfig(image_size=(size[0], size[-1]), **values)
  if given := [name for name in (*_KNOBS, "image_size") if _PROGRAM.given(name)]:
    raise InputError(
        f"The network of --run_dir or --model has its own knobs. Drop --{', --'.join(given)}."
    )
  if _MODEL.value:
    return cost.config_of_keras_file(pathlib.Path(_MODEL.value).expanduser())
  return run_folder.RunFolder.open(str(_RUN_DIR.value)).read_config().model


def _numbers(flag: str, texts: Sequence[str]) -> list[int]:
  try:
    numbers = [int(text) for text in texts]
  except ValueError:
    numbers = []
  if not numbers or min(numbers) < 1:
    raise InputError(f"--{flag} must be whole numbers of at least 1. Got: {','.join(texts)}.")
  return numbers


def describe(shown: architecture.ModelConfig, batch_sizes: Sequence[int]) -> dict[str, Any]:
  """Returns all figures as plain numbers, texts, lists and dicts."""
  table = cost.rows(shown)
  return {
      "knobs": dataclasses.asdict(shown),
      "parameters": architecture.count_parameters(shown),
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
  """Returns the figures of `describe` as tables for the terminal."""
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
  assumed = "" if size else " (any size; told at 512 x 512)"
  return "\n\n".join([
      _aligned(layers),
      f"{facts['parameters']:,} parameters, {total:,.2f} G multiply-adds an image{assumed}",
      "Receptive field, in pixels of the input\n" + _aligned(stages),
      "Memory of a training step with Adam, estimated; the framework's own share comes on top\n"
      + _aligned(memory),
  ])


def _aligned(table: _Table) -> str:
  widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
  lines = []
  for row in table:
    cells = [row[0].ljust(widths[0])]
    cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
    lines.append("  ".join(cells).rstrip())
  lines.insert(1, "-" * max(map(len, lines)))
  return "\n".join(lines)


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()


def draw(config: ModelConfig, path: pathlib.Path) -> None:
  """Writes the drawing; the suffix of `path` decides its format.

  Raises:
    InputError: The suffix is none of .png, .svg, .pdf.
  """
  if path.suffix.lower() not in _SUFFIXES:
    raise InputError(f"--output must end in {', '.join(_SUFFIXES)}. Got: {path}.")
  # The object API of Matplotlib leaves the caller's backend and figures alone.
  from matplotlib import figure

  count = config.num_layers
  picture = figure.Figure(figsize=(max(8.0, 2.3 * count + 3), 1.5 + 1.15 * count), dpi=120)
  axes = picture.add_axes((0.01, 0.02, 0.98, 0.9))
  axes.set_axis_off()
  table = cost.rows(config)
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
  _head(axes, config, last + 0.9)
  axes.set_xlim(-0.9, last + 2.6)
  axes.set_ylim(-_ROW_HEIGHT * (count - 1) - 0.95, 0.75)
  fields = cost.receptive_fields(config)
  picture.suptitle(
      f"FlexUNet: {count} stage{'s' if count > 1 else ''}, {count_parameters(config):,} parameters,"
      f" receptive field {fields[0].decoder} px", fontsize=12,
  )  # fmt: skip
  _legend(picture)
  _save(picture, path)


def _blocks(table: list[cost.Row], side: str) -> dict[int, list[cost.Row]]:
  blocks: dict[int, list[cost.Row]] = {}
  for row in table:
    if row.kind == "convolution" and row.name.startswith(side):
      blocks.setdefault(int(row.name.removeprefix(side).split("_")[0]), []).append(row)
  return blocks


def _bars(axes, block: list[cost.Row], left: float, stage: int) -> float:
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


def _caption(axes, row: cost.Row, left: float, right: float, stage: int) -> None:
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


def _head(axes, config: ModelConfig, x: float) -> None:
  from matplotlib import patches

  axes.add_patch(patches.Rectangle((x, -0.475), 0.12, 0.95, facecolor=_COLORS["head"]))
  kind = "sigmoid" if config.num_classes == 1 else "softmax"
  text = f"{config.num_classes} class{'es' if config.num_classes > 1 else ''}\n{kind}"
  axes.text(x + 0.2, 0, text, fontsize=8, va="center")
  axes.text(-0.15, 0, f"image\nx{config.image_channels}", fontsize=8, ha="right", va="center")


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
  files.write_bytes(path, stream.getvalue())
