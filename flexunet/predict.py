"""Segments scans with a trained run.

  python -m flexunet.predict --run_dir=RUN --input=FILE_OR_FOLDER --output_dir=DIR

A volume (NIfTI, ANALYZE) gives <stem>_label of the same format, shape and geometry and a contact
sheet <stem>_overlay.png; a picture gives <stem>_label.png, whose grey values are class ids, and
<stem>_overlay.png. In a folder everything below it is predicted, except what is named like a
label (..._label, ..._mask, ..._seg, or in a folder called masks or labels).
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Sequence

from flexunet.core import command_line, flags

_PROGRAM = flags.Program(__doc__)
_RUN_DIR = _PROGRAM.string("run_dir", None, "Folder of the run.", required=True)
_INPUT = _PROGRAM.string("input", None, "Scan, or folder of scans.", required=True)
_OUTPUT_DIR = _PROGRAM.string("output_dir", None, "Where labels are written.", required=True)
_OVERLAY = _PROGRAM.boolean("overlay", True, "Also writes <stem>_overlay.png to look at.")
_COLOR_MASKS = _PROGRAM.boolean(
    "color_masks", False, "Also writes <stem>_color.png for pictures, in the dataset's colours."
)
_PROBABILITIES = _PROGRAM.boolean(
    "probabilities", False, "Also writes <stem>_probability.npz, float16, classes last."
)
_OVERWRITE = _PROGRAM.boolean("overwrite", False, "Replaces output that exists already.")
_BATCH_SIZE = _PROGRAM.integer("batch_size", 8, "Slices per step.", lower_bound=1)
_TTA = _PROGRAM.boolean("tta", False, "Averages over mirrored slices; twice the time.")


def main(argv: Sequence[str]) -> None:
  del argv
  # Heavy imports after the flags are known to be right: a typo answers at once.
  command_line.load_tensorflow()
  from flexunet import run_folder
  from flexunet.prediction import files
  from flexunet.prediction.predictor import Predictor, load_model

  run = run_folder.RunFolder.open(_RUN_DIR.value)
  run_config = run.read_config()
  outputs = files.Outputs(
      folder=pathlib.Path(_OUTPUT_DIR.value).expanduser(),
      overlay=_OVERLAY.value,
      color_masks=_COLOR_MASKS.value,
      probabilities=_PROBABILITIES.value,
      overwrite=_OVERWRITE.value,
  )
  found = files.find(
      pathlib.Path(_INPUT.value).expanduser(),
      outputs.folder,
      volumes_first=run_config.dataset_facts.slice_plan is not None,
  )
  predictor = Predictor(
      load_model(run), run_config, batch_size=_BATCH_SIZE.value, mirror=_TTA.value
  )
  outcome = files.predict_all(found.scans, predictor, run_config, outputs)
  for line in outcome.warnings:
    print(f"warning: {line}", file=sys.stderr)
  for line in outcome.failures:
    print(f"error: {line}", file=sys.stderr)
  print(json.dumps({
      "predicted": outcome.predicted,
      "failed": len(outcome.failures),
      "labels_skipped": found.labels_skipped,
      "pictures_skipped": found.pictures_skipped,
  }))  # fmt: skip
  if outcome.failures:
    sys.exit(1)


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()
