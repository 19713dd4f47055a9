"""Exports a trained network for other programs, and proves that each file answers as it does.

  python -m flexunet.tools.export_model --run_dir=RUN --output_dir=OUT --formats=saved_model,litert
  python -m flexunet.tools.export_model --model=model.keras --output_dir=OUT --formats=onnx

OUT/export.json tells input, output, classes, how images were brought to the input's size, and how
far each format differs from the network.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
import tempfile
from collections.abc import Sequence
from typing import Any

from flexunet import run_folder
from flexunet.core import command_line, files, flags
from flexunet.core.errors import InputError

_PROGRAM = flags.Program(__doc__)
_RUN_DIR = _PROGRAM.string("run_dir", None, "Run folder whose best model is exported.")
_MODEL = _PROGRAM.string("model", None, "Model file (.keras) to export.")
_OUTPUT_DIR = _PROGRAM.string("output_dir", None, "New folder for the files.", required=True)
_FORMATS = _PROGRAM.list(
    "formats", ["saved_model"], "Comma-separated: saved_model, onnx, litert, weights."
)
_IMAGE_SIZE = _PROGRAM.list(
    "image_size", None, "Height,width (or one number) of the exported network; default: its own."
)


def main(argv: Sequence[str]) -> None:
  command_line.no_words(argv)
  size = _size(_IMAGE_SIZE.value)
  output = pathlib.Path(str(_OUTPUT_DIR.value)).expanduser()
  if output.exists() and (not output.is_dir() or any(output.iterdir())):
    raise InputError(f"--output_dir {output} must be new or empty. Pass a new folder.")
  if not _FORMATS.value:
    raise InputError("--formats must name at least one format, e.g. saved_model.")
  path, facts = _source()

  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  from flexunet.network import export

  for name in _FORMATS.value:
    export.check_format(name)
  network = load_network(path)
  # Written beside its place and renamed: an export that fails its check leaves nothing.
  output.parent.mkdir(parents=True, exist_ok=True)
  partial = pathlib.Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
  try:
    done = export.export(network, list(dict.fromkeys(_FORMATS.value)), partial, size)
    entries = [
        {**dataclasses.asdict(entry), "path": entry.path.name, "bytes": _bytes(entry.path)}
        for entry in done
    ]
    files.write_json(
        partial / "export.json",
        {
            **facts,
            "input": "float32 [batch, height, width, channels], values 0..255",
            "output": "float32 [batch, height, width, classes], probabilities",
            "image_size": list(size or network.input_shape[1:3]),
            "image_channels": network.input_shape[-1],
            "exports": entries,
        },
    )
    partial.chmod(0o755)  # mkdtemp makes it private.
    os.replace(partial, output)
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise
  for entry in entries:
    print(
        f"{output / entry['path']}: {entry['bytes'] / 2**20:.1f} MiB, largest difference"
        f" {entry['max_difference']:.1e}, same class for {100 * entry['label_agreement']:.3f} %"
    )


def _source() -> tuple[pathlib.Path, dict[str, Any]]:
  """Returns the model file and what export.json is to tell of its classes."""
  if bool(_RUN_DIR.value) == bool(_MODEL.value):
    raise InputError("Pass either --run_dir or --model.")
  facts: dict[str, Any] = {}
  if _MODEL.value:
    path = pathlib.Path(_MODEL.value).expanduser()
  else:
    run = run_folder.RunFolder.open(str(_RUN_DIR.value))
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
  try:
    numbers = [int(text) for text in texts]
  except ValueError:
    numbers = []
  if len(numbers) not in (1, 2) or min(numbers) < 1:
    raise InputError(f"--image_size must be one or two whole numbers. Got: {','.join(texts)}.")
  return numbers[0], numbers[-1]


def load_network(path: pathlib.Path) -> Any:
  """Returns the Keras model of a file; InputError when it is damaged."""
  import keras

  try:
    return keras.saving.load_model(path, compile=False)
  except (OSError, ValueError, KeyError, TypeError) as error:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    raise InputError(f"{path} must be a model saved as .keras: {first}") from error


def _bytes(path: pathlib.Path) -> int:
  files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
  return sum(each.stat().st_size for each in files)


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()
