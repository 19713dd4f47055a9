"""Trains systems on equal minutes, on the same subjects, and scores them alike.

  flexunet benchmark_quality --sets=mine=DATA:hippocampus_t1w --minutes=1,5 --seeds=1,2
      --systems=flexunet,nnunet_2d,monai_unet --peers_env=PEERS --output_dir=OUT

Beside flexunet, with any flags of its trainer (flexunet:--batch_size=4), there are nnU-Net and
MONAI, in an environment of their own, and programs of your own (program:FILE). All train on the
same slices of the same subjects and on the same processors, one after the other; the learning
rate of each reaches its end with the time. Minutes count from the first training step. The labels
that each predicts for the test subjects are scored by one program. flexunet_folds and
flexunet_planes spend the minutes on several networks, a fold or a plane each, and average them.

OUT/results holds a file per training, so that the same command with --resume continues, and one
with more sets, systems, minutes or seeds adds to it; OUT/summary.json, table.md, dice.png and
dice.svg are of all results there.
"""

from __future__ import annotations

import json
import pathlib
import signal
import sys
from collections.abc import Sequence

from flexunet.core import command_line, files, flags, progress
from flexunet.core.errors import InputError
from flexunet.pipelines import dataset_source
from flexunet.tools.benchmarks.quality import jobs

_PROGRAM = flags.Program(__doc__, first=("sets", "systems", "minutes", "seeds", "output_dir"))
_SETS = _PROGRAM.string(
    "sets", None,
    "Built datasets: NAME=DATA_DIR:DATASET[/CONFIG], with commas between several, or a JSON file,"
    " {NAME: \"DATA_DIR:DATASET\"} or {NAME: {\"data_dir\": ..., \"dataset\": ..., \"title\": ...,"
    " \"planes\": [\"DATA_DIR:DATASET\", ...]}}; planes are the same scans, cut in other planes.",
    required=True,
)  # fmt: skip
_SYSTEMS = _PROGRAM.string(
    "systems", "flexunet",
    f"With commas between several: {', '.join(jobs.SYSTEMS)}, or {jobs.PROGRAM}:FILE. SYSTEM:FLAGS"
    " gives it flags of its own, LABEL=SYSTEM:FLAGS a name too.",
)  # fmt: skip
_MINUTES = _PROGRAM.list("minutes", ["1", "5"], "Minutes of training; fractions are allowed.")
_SEEDS = _PROGRAM.list("seeds", ["1", "2"], "One training each.")
_OUTPUT_DIR = _PROGRAM.string("output_dir", None, "Folder of the results.", required=True)
_RESUME = _PROGRAM.boolean(
    "resume", False, "Keeps what is in --output_dir and trains what is missing or has failed."
)
_PEERS_ENV = _PROGRAM.string(
    "peers_env", None,
    "Folder of the Python environment of nnU-Net and MONAI; made where it is missing (6 GB).",
)  # fmt: skip
_PATIENCE = _PROGRAM.float(
    "patience_minutes", 60.0, "How long a system may take beside its training.", lower_bound=0.1
)
_KEEP_WORK = _PROGRAM.boolean(
    "keep_work", False, "Keeps run folders and predicted labels of each training, in OUT/work."
)
_JSON = _PROGRAM.boolean("json", False, "Prints the summary as JSON instead of the table.")


def main(argv: Sequence[str]) -> None:
  command_line.no_words(argv)
  sets, systems = jobs.parse_sets(_SETS.value), jobs.parse_systems(_SYSTEMS.value)
  minutes = jobs.parse_minutes(_MINUTES.value)
  seeds = flags.numbers("seeds", _SEEDS.value, int)
  folder = pathlib.Path(_OUTPUT_DIR.value).expanduser().absolute()
  files.check_writable(folder, "--output_dir")
  for one in sets:
    dataset_source.check_folder(one.dataset, one.data_dir, jobs.SPLITS)
    for dataset, data_dir in one.planes:
      dataset_source.check_folder(dataset, data_dir, jobs.SPLITS)
  planned = jobs.all_jobs(sets, systems, minutes, seeds)
  command_line.load_tensorflow()
  # They load TensorFlow: --help and wrong flags are answered without it.
  from flexunet.tools.benchmarks.quality import bench, results

  with files.locked(folder, "--output_dir"):
    if not _RESUME.value and results.read_all(folder):
      raise InputError(f"--output_dir {folder} holds results. --resume adds to them.")
    options = bench.Options(
        folder, peers_env=_PEERS_ENV.value, patience_minutes=_PATIENCE.value,
        keep_work=_KEEP_WORK.value,
    )  # fmt: skip
    summary = bench.run(planned, options)
  if _JSON.value:
    print(json.dumps(summary, indent=2))
    return
  print(progress.table(results.rows(summary)))
  print(f"\nTable    {folder / 'table.md'}\nImage    {folder / 'dice.png'}")


def run() -> None:
  # As Ctrl-C does: the training that is under way is ended, too.
  signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()
