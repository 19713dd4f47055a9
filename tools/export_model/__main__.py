"""Exports a trained network for other programs, and checks that each file answers as it does.

  flexunet export --run_dir=RUN --output_dir=OUT --formats=saved_model,litert,onnx
  flexunet export --run_dir=RUN --output_dir=OUT --formats=onnx --output=probabilities
  flexunet export --model=model.keras --output_dir=OUT --formats=onnx

What is exported of a run stands alone: slices of a scan go in at their own size, with the scan's
own intensities, and class ids come out, those of `flexunet predict` but for ties. OUT/export.json
describes inputs, output, classes, orientation, window and pixel sizes, how far each format differs,
and the sha256 of each file; OUT/MODEL_CARD.md says what the network was trained on, how well it
does, and what it is not for. OUT/predict_onnx.py segments a NIfTI file with numpy, nibabel and
onnxruntime alone.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence

from flexunet import run_folder
from flexunet.core import command_line, files, flags, progress
from flexunet.core.errors import InputError, unknown_name

FORMATS_KNOWN = {
    "saved_model": "TensorFlow Serving, any TensorFlow program",
    "onnx": "ONNX Runtime; needs the extra 'export'",
    "litert": "phones and small devices; one image at a time, of one size",
    "weights": "the numbers alone, as .weights.h5",
}
_OUTPUTS_KNOWN = {
    "labels": "class ids of slices at their own size, uint8",
    "probabilities": "of each class, at their own size, calibrated where the run is",
    "network": "the bare network: resized images in, probabilities out",
}
_PROGRAM = flags.Program(__doc__)
_RUN_DIR = _PROGRAM.string("run_dir", None, "Run folder whose best model is exported.")
_MODEL = _PROGRAM.string("model", None, "Model file (.keras) to export.")
_OUTPUT_DIR = _PROGRAM.string("output_dir", None, "New folder for the files.", required=True)
_FORMATS = _PROGRAM.list(
    "formats", ["saved_model"], "What to write, separated by commas.", choices=FORMATS_KNOWN
)
_OUTPUT = _PROGRAM.enum(
    "output", None, list(_OUTPUTS_KNOWN),
    "What comes out: "
    + "; ".join(f"'{name}' {about}" for name, about in _OUTPUTS_KNOWN.items())
    + ". Default: labels of a run, network of a model file, which knows nothing of slices.",
)  # fmt: skip
_JSON = _PROGRAM.boolean("json", False, "Prints the entries of export.json instead of a table.")
_IMAGE_SIZE = _PROGRAM.list(
    "image_size", None,
    "Height,width (or one number) of the images that go in. Default: slices of any size, for litert"
    " that of most slices of the run's dataset; of a bare network its own.",
)  # fmt: skip
_LICENCE = _PROGRAM.string(
    "licence", "", "Licence under which the network is handed out, for MODEL_CARD.md."
)


def main(argv: Sequence[str]) -> None:
  command_line.no_words(argv)
  size = _size(_IMAGE_SIZE.value)
  formats = list(dict.fromkeys(_FORMATS.value))
  if not formats:
    raise InputError("--formats must name at least one format, e.g. saved_model.")
  for name in formats:
    if name not in FORMATS_KNOWN:
      raise unknown_name("format in --formats", name, FORMATS_KNOWN)
  output = pathlib.Path(str(_OUTPUT_DIR.value)).expanduser()
  if output.exists() and (not output.is_dir() or any(output.iterdir())):
    raise InputError(f"--output_dir {output} must be new or empty. Pass a new folder.")
  files.check_writable(output, "--output_dir")
  path, run = _source()
  if run is None and _OUTPUT.value not in (None, "network"):
    raise InputError(
        f"--output={_OUTPUT.value} needs --run_dir: a model file does not say how slices come to"
        " the network. Pass the run folder, or --output=network."
    )
  wanted_output = _OUTPUT.value or ("labels" if run is not None else "network")

  progress.say("Loading TensorFlow ...")
  command_line.load_tensorflow()
  # Loads TensorFlow, which a wrong flag must not wait for.
  from flexunet.tools.export_model import folder

  wanted = folder.Wanted(path, run, formats, wanted_output, size, str(_LICENCE.value))
  entries = folder.write(wanted, output)
  if _JSON.value:
    print(json.dumps({"output_dir": str(output), "exports": entries}))
    return
  table = [("file", "MiB", "largest difference", "same class")]
  for entry in entries:
    # Where class ids come out, how sure prediction was of one that differs.
    far = entry["max_difference"]
    far = entry["largest_margin"] if far is None else far
    table.append((
        entry["path"], f"{entry['bytes'] / 2**20:.1f}", f"{far:.1e}",
        f"{100 * entry['label_agreement']:.3f} %",
    ))  # fmt: skip
  print(f"\n{progress.table(table)}\n\nExport  {output}")


def _source() -> tuple[pathlib.Path, run_folder.RunFolder | None]:
  """Returns the model file, and the run it belongs to."""
  if bool(_RUN_DIR.value) == bool(_MODEL.value):
    raise InputError("Pass either --run_dir or --model.")
  if _MODEL.value:
    path, run = pathlib.Path(_MODEL.value).expanduser(), None
  else:
    run = run_folder.RunFolder.open(str(_RUN_DIR.value))
    run.check_model()
    path = run.model_keras
  if not path.is_file():
    raise InputError(f"{path} does not exist. Pass the folder of a finished run or a .keras file.")
  return path, run


def _size(texts: Sequence[str] | None) -> tuple[int, int] | None:
  if texts is None:
    return None
  numbers = flags.numbers("image_size", texts, int)
  if len(numbers) not in (1, 2) or min(numbers) < 1:
    raise InputError(f"--image_size must be one or two whole numbers. Got: {','.join(texts)}.")
  return numbers[0], numbers[-1]


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()
