"""Says what a training would do and how long it would take, without training.

  flexunet plan --dataset=hippocampus_t1w --data_dir=DATA --budget=standard

Takes the flags of `flexunet train` but those of its run folder, and prints the plan that a
training says before it begins: data, network, time and memory, augmentation, what to do for more.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from flexunet.core import command_line, flags, progress
from flexunet.presets import preset_files
from flexunet.train import TrainerFlags

_PROGRAM = flags.Program(
    __doc__, first=("dataset", "data_dir", "budget", "max_minutes", "epochs", "preset", "json")
)
_TRAINER = TrainerFlags(_PROGRAM)
_JSON = _PROGRAM.boolean(
    "json", False, "Prints config, reasons and figures as one JSON object, the lines aside.",
    group="Checkpoints and output",
)  # fmt: skip


def main(argv: Sequence[str]) -> None:
  command_line.no_words(argv)
  given = _TRAINER.read()
  progress.say("Loading TensorFlow ...")
  command_line.load_tensorflow()
  # Heavy: a wrong flag is answered before they are loaded.
  from flexunet import library
  from flexunet.training import trainer

  plan = library.plan_of(trainer.Settings(**given))
  if not _JSON.value:
    print("\n".join(plan.lines))
    return
  for line in plan.lines:
    progress.say(line)
  print(json.dumps({"config": plan.to_json(), "expected": plan.expected.to_json()}, indent=2))


def run() -> None:
  command_line.run(main, _PROGRAM, expand=preset_files.expand)


if __name__ == "__main__":
  run()
