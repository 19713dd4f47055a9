"""Scores a trained run on a split of its dataset, per volume and class, at native resolution.

  python -m flexunet.evaluate --run_dir=RUN --split=test

Writes RUN/evaluation/metrics.json and cases.csv and RUN/report.html. Several splits may be named,
separated by commas; figures of splits evaluated before are kept.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from flexunet.core import command_line, flags

_PROGRAM = flags.Program(__doc__)
_RUN_DIR = _PROGRAM.string("run_dir", None, "Folder of the run.", required=True)
_SPLIT = _PROGRAM.list("split", ["test"], "Splits to score, separated by commas.")
_DATA_DIR = _PROGRAM.string(
    "data_dir", None, "Folder of built datasets, or the version folder of one. Default: as trained."
)
_ALLOW_OTHER_DATA = _PROGRAM.boolean(
    "allow_other_data", False, "Accepts records other than those of the training."
)
_TOLERANCE = _PROGRAM.float(
    "surface_tolerance_mm", 1.0, "Distance in mm up to which two surfaces count as agreeing."
)
_BATCH_SIZE = _PROGRAM.integer("batch_size", 8, "Slices per step.", lower_bound=1)
_TTA = _PROGRAM.boolean("tta", False, "Averages over mirrored slices; twice the time.")


def main(argv: Sequence[str]) -> None:
  del argv
  # Heavy imports after the flags are known to be right: a typo answers at once.
  command_line.load_tensorflow()
  from flexunet import run_folder
  from flexunet.evaluation import evaluate

  figures = evaluate.evaluate(
      run_folder.RunFolder.open(_RUN_DIR.value),
      list(dict.fromkeys(name.strip() for name in _SPLIT.value if name.strip())),
      data_dir=_DATA_DIR.value,
      allow_other_data=_ALLOW_OTHER_DATA.value,
      tolerance_mm=_TOLERANCE.value,
      batch_size=_BATCH_SIZE.value,
      mirror=_TTA.value,
  )
  for split, entry in figures.items():
    print(json.dumps({
        "split": split,
        "subjects": entry["evaluated"]["subjects"],
        "volumes": entry["evaluated"]["volumes"],
        "foreground_dice": entry["foreground_dice"]["mean"],
        "ci95": entry["foreground_dice"]["ci95"],
        "dice": {name: scores["dice"]["mean"] for name, scores in entry["per_class"].items()},
    }))  # fmt: skip


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()
