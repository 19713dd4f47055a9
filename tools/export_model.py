"""Exports a trained network for other programs, and checks that each file answers as it does.

  flexunet export --run_dir=RUN --output_dir=OUT --formats=saved_model,litert
  flexunet export --model=model.keras --output_dir=OUT --formats=onnx

OUT/export.json describes input, output, classes, how images were brought to the size of the input,
and how far each format differs from the network.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Sequence
from typing import Any

from flexunet import run_folder
from flexunet.core import command_line, files, flags, progress
from flexunet.core.errors import InputError, unknown_name

_FORMATS_KNOWN = {
    "saved_model": "TensorFlow Serving, any TensorFlow program",
    "onnx": "ONNX Runtime; needs the extra 'export'",
    "litert": "phones and small devices; one image at a time",
    "weights": "the numbers alone, as .weights.h5",
}
_PROGRAM = flags.Program(__doc__)
_RUN_DIR = _PROGRAM.string("run_dir", None, "Run folder whose best model is exported.")
_MODEL = _PROGRAM.string("model", None, "Model file (.keras) to export.")
_OUTPUT_DIR = _PROGRAM.string("output_dir", None, "New folder for the files.", required=True)
_FORMATS = _PROGRAM.list(
    "formats", ["saved_model"], "What to write, separated by commas.", choices=_FORMATS_KNOWN
)
_JSON = _PROGRAM.boolean("json", False, "Prints the entries of export.json instead of a table.")
_IMAGE_SIZE = _PROGRAM.list(
    "image_size", None,
    "Height,width (or one number) that the exported network takes. Default: its own.",
)  # fmt: skip


def main(argv: Sequence[str]) -> None:
  command_line.no_words(argv)
  size = _size(_IMAGE_SIZE.value)
  formats = list(dict.fromkeys(_FORMATS.value))
  if not formats:
    raise InputError("--formats must name at least one format, e.g. saved_model.")
  for name in formats:
    if name not in _FORMATS_KNOWN:
      raise unknown_name("format in --formats", name, _FORMATS_KNOWN)
  output = pathlib.Path(str(_OUTPUT_DIR.value)).expanduser()
  if output.exists() and (not output.is_dir() or any(output.iterdir())):
    raise InputError(f"--output_dir {output} must be new or empty. Pass a new folder.")
  files.check_writable(output, "--output_dir")
  path, facts = _source()

  progress.say("Loading TensorFlow ...")
  command_line.load_tensorflow()
  entries = write(path, facts, formats, output, size)
  if _JSON.value:
    print(json.dumps({"output_dir": str(output), "exports": entries}))
    return
  table = [("file", "MiB", "largest difference", "same class")]
  for entry in entries:
    table.append((
        entry["path"], f"{entry['bytes'] / 2**20:.1f}", f"{entry['max_difference']:.1e}",
        f"{100 * entry['label_agreement']:.3f} %",
    ))  # fmt: skip
  print(f"\n{progress.table(table)}\n\nExport  {output}")


def write(
    path: pathlib.Path,
    facts: dict[str, Any],
    formats: Sequence[str],
    output: pathlib.Path,
    size: tuple[int, int] | None,
) -> list[dict[str, Any]]:
  """Exports a model file into a new folder and returns the entries of its export.json.

  Args:
    path: The .keras file.
    facts: What export.json also says.
    formats: Names of `export.FORMATS`.
    output: The folder; after a failure there is none.
    size: (height, width) of the exported network; None for its own.
  """
  # Loads TensorFlow, which a wrong flag must not wait for.
  from flexunet.network import export, weights

  # Written beside its place and renamed: an export that fails its check leaves nothing.
  output.parent.mkdir(parents=True, exist_ok=True)
  partial = pathlib.Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
  try:
    with command_line.noise_aside():
      network = weights.read_model(path)
      done = export.export(network, list(formats), partial, size)
    entries = [
        {**dataclasses.asdict(entry), "path": entry.path.name, "bytes": _bytes(entry.path)}
        for entry in done
    ]
    description = {
        **facts,
        "input": "float32 [batch, height, width, channels], values 0..255",
        "output": "float32 [batch, height, width, classes], probabilities",
        "image_size": list(size or network.input_shape[1:3]),
        "image_channels": network.input_shape[-1],
        "exports": entries,
    }
    files.write_json(partial / "export.json", description)
    partial.chmod(0o755)  # mkdtemp makes it private.
    os.replace(partial, output)
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise
  return entries


def _source() -> tuple[pathlib.Path, dict[str, Any]]:
  """Returns the model file and what export.json says of its classes."""
  if bool(_RUN_DIR.value) == bool(_MODEL.value):
    raise InputError("Pass either --run_dir or --model.")
  facts: dict[str, Any] = {}
  if _MODEL.value:
    path = pathlib.Path(_MODEL.value).expanduser()
  else:
    run = run_folder.RunFolder.open(str(_RUN_DIR.value))
    run.check_model()
    path = run.model_keras
    run_config = run.read_config()
    facts = {
        "classes": run_config.dataset_facts.label_scheme.to_json(),
        # The exported network takes what these have made of an image.
        "crop_foreground": run_config.data.crop_foreground,
        "resize_mode": run_config.data.resize_mode,
    }
  if not path.is_file():
    raise InputError(f"{path} does not exist. Pass the folder of a finished run or a .keras file.")
  return path, facts


def _size(texts: Sequence[str] | None) -> tuple[int, int] | None:
  if texts is None:
    return None
  numbers = flags.numbers("image_size", texts, int)
  if len(numbers) not in (1, 2) or min(numbers) < 1:
    raise InputError(f"--image_size must be one or two whole numbers. Got: {','.join(texts)}.")
  return numbers[0], numbers[-1]


def _bytes(path: pathlib.Path) -> int:
  parts = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
  return sum(each.stat().st_size for each in parts)


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()
