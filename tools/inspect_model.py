"""Tells what a FlexUNet is: its layers, parameters, receptive field, memory; and draws it.

  python -m flexunet.tools.inspect_model --base_kernels=9 --num_layers=6 --output=network.png
  python -m flexunet.tools.inspect_model --run_dir=RUN
  python -m flexunet.tools.inspect_model --model=RUN/model.keras --json

Nothing is built or trained: all figures come from the knobs, in no time and without a device.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import app, flags

from flexunet import command_line, run_folder
from flexunet.datasets.errors import InputError
from flexunet.network import inspection, knobs

_RUN_DIR = flags.DEFINE_string("run_dir", None, "Run folder whose network is shown.")
_MODEL = flags.DEFINE_string("model", None, "Model file (.keras) whose network is shown.")
_OUTPUT = flags.DEFINE_string("output", None, "Drawing to write: .png, .svg or .pdf.")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["1", "2", "4", "8", "16", "32"],
                                 "Batch sizes whose memory is told.")  # fmt: skip
_JSON = flags.DEFINE_boolean("json", False, "Prints one JSON object instead of tables.")

_SIZE = flags.DEFINE_list("image_size", ["512", "512"], "Height,width in pixels, or one number.")
_COUNTS = {
    "image_channels": "Channels of the input.",
    "num_classes": "Classes, background included; 1 for one foreground by sigmoid.",
    "base_filters": "Channels of the first stage; they double at each stage below.",
    "base_kernels": "Odd kernel edge of the first stage; shrinks by 2 per stage, down to 3.",
    "num_layers": "Stages.",
    "dilation": "Dilation of the first stage; shrinks by 1 per stage, to 1.",
}
_CHOICES = {
    "normalization": (knobs.NORMALIZATIONS, "Layer after each convolution."),
    "activation": (knobs.ACTIVATIONS, "Activation after each convolution."),
    "kernel_initializer": (knobs.KERNEL_INITIALIZERS, "How weights start."),
    "input_normalization": (knobs.INPUT_NORMALIZATIONS, "How 0..255 enters the network."),
}
_DEFAULTS = knobs.Knobs()
_Table = list[tuple[str, ...]]
_KNOBS: dict[str, flags.FlagHolder] = {
    **{n: flags.DEFINE_integer(n, getattr(_DEFAULTS, n), text) for n, text in _COUNTS.items()},
    **{
        n: flags.DEFINE_enum(n, getattr(_DEFAULTS, n), choices, text)
        for n, (choices, text) in _CHOICES.items()
    },
    "dropout_rate": flags.DEFINE_float(
        "dropout_rate", _DEFAULTS.dropout_rate, "Dropout at stage n (from 0) is n times this rate."
    ),
    "deep_supervision": flags.DEFINE_boolean(
        "deep_supervision", _DEFAULTS.deep_supervision, "Outputs at coarser stages too."
    ),
}


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}.")
  shown = _chosen_knobs()
  sizes = _numbers("batch_sizes", _BATCH_SIZES.value)
  facts = describe(shown, sizes)
  if _OUTPUT.value:
    from flexunet.tools import network_drawing

    network_drawing.draw(shown, pathlib.Path(_OUTPUT.value).expanduser())
  print(json.dumps(facts, indent=2) if _JSON.value else as_text(facts))


def _chosen_knobs() -> knobs.Knobs:
  if _RUN_DIR.value and _MODEL.value:
    raise InputError("Pass either --run_dir or --model, not both.")
  if not _RUN_DIR.value and not _MODEL.value:
    values = {name: holder.value for name, holder in _KNOBS.items()}
    size = _numbers("image_size", _SIZE.value)
    if len(size) not in (1, 2):
      raise InputError(f"--image_size must be one or two whole numbers. Got: {_SIZE.value}.")
    return knobs.Knobs(image_size=(size[0], size[-1]), **values)
  if given := [name for name in (*_KNOBS, "image_size") if flags.FLAGS[name].present]:
    raise InputError(
        f"The network of --run_dir or --model has its own knobs. Drop --{', --'.join(given)}."
    )
  if _MODEL.value:
    return inspection.knobs_of_keras_file(pathlib.Path(_MODEL.value).expanduser())
  return knobs_of_run(run_folder.RunFolder.open(str(_RUN_DIR.value)))


def knobs_of_run(run: run_folder.RunFolder) -> knobs.Knobs:
  """Returns the knobs that a run's config.json holds."""
  values = dataclasses.asdict(run.read_config().model)
  names = {field.name for field in dataclasses.fields(knobs.Knobs)}
  return knobs.Knobs(**{name: value for name, value in values.items() if name in names})


def _numbers(flag: str, texts: Sequence[str]) -> list[int]:
  try:
    numbers = [int(text) for text in texts]
  except ValueError:
    numbers = []
  if not numbers or min(numbers) < 1:
    raise InputError(f"--{flag} must be whole numbers of at least 1. Got: {','.join(texts)}.")
  return numbers


def describe(shown: knobs.Knobs, batch_sizes: Sequence[int]) -> dict[str, Any]:
  """Returns all figures as plain numbers, texts, lists and dicts."""
  table = inspection.rows(shown)
  return {
      "knobs": dataclasses.asdict(shown),
      "parameters": knobs.count_parameters(shown),
      "multiply_adds_per_image": sum(row.multiply_adds for row in table),
      "layers": [dataclasses.asdict(row) for row in table],
      "stages": [
          {**dataclasses.asdict(stage), "receptive_field": {
              "encoder": field.encoder, "decoder": field.decoder}}
          for stage, field in zip(shown.stages(), inspection.receptive_fields(shown), strict=True)
      ],
      "training_memory_bytes": [
          {
              "batch_size": size,
              "float32": inspection.training_bytes(shown, size),
              "mixed": inspection.training_bytes(shown, size, bytes_per_number=2),
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
  command_line.run(main)


if __name__ == "__main__":
  run()
