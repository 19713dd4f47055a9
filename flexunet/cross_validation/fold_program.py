"""What the process of one fold does: it trains the run, or scores it on whom it held out.

Training and scoring are processes of their own, so that scores are the same whether the command was
killed between them or not. The task comes as one line of JSON on standard input, which then stays
open: where it ends, the program that started this one has died, and this one is asked to end too.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Sequence
from typing import IO, Any

from flexunet import run_folder
from flexunet.core import command_line, flags, machine, progress

_PROGRAM = flags.Program(__doc__)
# A line this often: the program that started this one shows the last.
_STATUS_S = 5.0


@dataclasses.dataclass(frozen=True)
class Task:
  """What one process is to do.

  Attributes:
    stage: "train", "score", or "ensemble" to score the mean of all folds.
    run_dir: The run folder of the fold; for the ensemble the folder of the folds.
    settings: Those that were given, with the fold, by name.
    data_dir: Where the dataset lies.
    split: The split whose name the held-out subjects go by.
    tolerances_mm: Of the surface Dice.
    sharing: Processes that share the machine.
    place: Which of them this one is.
  """

  stage: str
  run_dir: str
  settings: dict[str, Any]
  data_dir: str
  split: str
  tolerances_mm: list[float]
  sharing: int
  place: int

  def command(self) -> list[str]:
    """Returns the command of the trainer that would give the same run, for its manifest."""
    words = [f"--{name}={_word(value)}" for name, value in self.settings.items()]
    return ["flexunet.train", f"--run_dir={os.path.basename(self.run_dir)}", *words]


def _word(value: Any) -> str:
  if isinstance(value, bool):
    return str(value).lower()
  return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def main(argv: Sequence[str]) -> None:
  command_line.no_words(argv)
  source = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115 - it stays open.
  task = Task(**json.loads(source.readline()))
  threading.Thread(target=_end_with_the_starter, args=(source,), daemon=True).start()
  if task.sharing > 1:
    machine.share(task.sharing, task.place)
  progress.set_log_interval(_STATUS_S)
  progress.say("Loading TensorFlow ...")
  command_line.load_tensorflow()
  # Heavy, and after the machine has been divided.
  from flexunet import ensemble_folder, library
  from flexunet.evaluation import evaluate_ensemble
  from flexunet.training import checkpointing, trainer

  if task.stage == "ensemble":
    runs = ensemble_folder.open_runs(pathlib.Path(task.run_dir))
    if not isinstance(runs, ensemble_folder.RunSet):
      raise TypeError(f"{task.run_dir} must hold a cross-validation.")
    evaluate_ensemble.evaluate_ensemble(
        runs, [task.split], data_dir=task.data_dir, tolerances_mm=task.tolerances_mm
    )
    return
  if task.stage == "score":
    run = run_folder.RunFolder.open(task.run_dir)
    library.Run(run, run.read_config()).evaluate(
        task.split, data_dir=task.data_dir, tolerances_mm=task.tolerances_mm
    )
    return
  given = library.settings_of(task.settings)
  try:
    trainer.train(given, task.run_dir, resume=True, command=task.command())
  except checkpointing.Interrupted as interrupted:
    sys.exit(128 + interrupted.signal_number)


def _end_with_the_starter(source: IO[bytes]) -> None:
  source.read(1)
  os.kill(os.getpid(), signal.SIGTERM)


def run() -> None:
  command_line.run(main, _PROGRAM, argv=["fold_program"])


if __name__ == "__main__":
  run()
