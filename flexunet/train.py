"""Trains a FlexUNet on a built dataset.

  flexunet train --dataset=hippocampus_t1w --data_dir=DATA --run_dir=RUN --max_minutes=10

What is not given is planned from the data; RUN/config.json says what was chosen and why.
--preset=published/hippocampus_t1w trains by the published recipe instead. After a kill, a power
cut or Ctrl-C the same command with --resume continues where the run stopped.

Afterwards: flexunet evaluate --run_dir=RUN
"""

from __future__ import annotations

import dataclasses
import math
import shlex
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from flexunet import config, run_folder
from flexunet.core import command_line, flags, progress
from flexunet.core.errors import InputError
from flexunet.core.service_address import ServiceFlags
from flexunet.distributed import launch
from flexunet.distributed.membership import HostFlags, Membership
from flexunet.pipelines.augmentation.config import AugmentationConfig
from flexunet.pipelines.feature_keys import FeatureFlags
from flexunet.presets import preset_files
from flexunet.training import resuming

_PROGRAM = flags.Program(
    __doc__,
    first=(
        "dataset", "data_dir", "run_dir", "budget", "max_minutes", "epochs", "preset", "resume",
        "fold", "init_from", "seed",
    ),
)  # fmt: skip
_RUN_DIR = _PROGRAM.string("run_dir", None, "New folder for everything of this run.", required=True)
_RESUME = _PROGRAM.boolean(
    "resume",
    False,
    "Continues the run in --run_dir exactly as if it had not stopped; starts it if there is none"
    " yet. The other flags stay as they were; --epochs and --max_minutes may grow.",
)


class TrainerFlags:
  """The flags of everything that a run is trained by, defined in a program."""

  def __init__(self, program: flags.Program, skip: Sequence[str] = ()):
    """Defines them, without those of the fields in `skip`."""
    of_others = [
        field.name for cls in (FeatureFlags, ServiceFlags) for field in dataclasses.fields(cls)
    ]
    data = program.fields(config.DataConfig, group="Data", skip=[*of_others, *skip])
    data |= program.fields(ServiceFlags)
    self._holders: dict[str, tuple[type, dict[str, flags.FlagHolder]]] = {
        "model": (config.ModelConfig, program.fields(config.ModelConfig, group="Network")),
        "training": (config.TrainingConfig, program.fields(config.TrainingConfig)),
        "augmentation": (
            AugmentationConfig, program.fields(AugmentationConfig, group="Augmentation")
        ),
    }  # fmt: skip
    data |= program.fields(FeatureFlags)  # Last in the help: few need them.
    self._holders["data"] = (config.DataConfig, data)
    # Read by command_line.run before the other flags are parsed.
    program.string(
        "preset",
        None,
        "A published recipe, whose flags come before all others:"
        f" {', '.join(preset_files.names())}.",
    )

  def read(self) -> dict[str, Any]:
    """Returns "model", "data", "training" and "augmentation" -> config, with open fields."""
    return {name: flags.read(cls, holders) for name, (cls, holders) in self._holders.items()}


_TRAINER = TrainerFlags(_PROGRAM)
_JSON = _PROGRAM.boolean(
    "json", False, "Prints the result as one JSON object, not as a table.",
    group="Checkpoints and output",
)  # fmt: skip


_HOSTS = HostFlags(_PROGRAM)


def main(argv: Sequence[str]) -> None:
  command_line.no_words(argv)
  given = _TRAINER.read()
  member = _HOSTS.membership()
  _HOSTS.set_backend(member)
  if member and given["data"].data_service:
    raise InputError(
        "--data_service computes whole batches, of which several processes would need parts. Leave"
        " it out: each process computes its own part."
    )
  resuming.check_paths(
      given["data"], given["training"], _RUN_DIR.value,
      resume=_RESUME.value, writes=member is None or member.index == 0,
  )  # fmt: skip
  if member is None:
    _train(given)
  elif Membership.of_environment() == member:
    _train_with_others(given, member)
  else:
    sys.exit(launch.watched(member, sys.argv[1:]))


def _train_with_others(given: dict[str, Any], member: Membership) -> None:
  """Trains as one of several processes; none waits for one that has failed."""
  launch.follow_the_watcher()
  if member.index:
    progress.be_quiet()
  try:
    _train(given, member)
  except InputError as error:
    launch.end_at_once(str(error))
  except Exception as error:
    if launch.means_lost(error):
      launch.end_at_once(launch.lost_sentence(member, error))
    traceback.print_exc()
    launch.end_at_once(None)


def _train(given: dict[str, Any], member: Membership | None = None) -> None:
  progress.say("Loading TensorFlow ...")
  command_line.load_tensorflow()
  # Heavy: a wrong flag or path is answered before they are loaded.
  from flexunet.distributed import hosts
  from flexunet.training import checkpointing, devices, history, trainer

  devices.leave_gpus_to_keras()
  if member:
    progress.say(f"Waiting for {member.count - 1} other processes ...")
    hosts.join(member)
  settings = trainer.Settings(**given)
  try:
    run, rows = trainer.train(settings, _RUN_DIR.value, resume=_RESUME.value, command=sys.argv)
  except KeyboardInterrupt:  # Before the first step: there is nothing to save yet.
    sys.exit(128 + signal.SIGINT)
  except checkpointing.Interrupted as interrupted:
    hosts.leave()
    sys.exit(128 + interrupted.signal_number)  # As a shell reports it: 143 SIGTERM, 130 Ctrl-C.
  if hosts.is_first():
    shown = run.read_config().training
    print(history.final_line(rows) if _JSON.value else result_text(run, shown, rows))
  hosts.leave()


def result_text(
    run: run_folder.RunFolder, settings: config.TrainingConfig, rows: Sequence[Mapping[str, Any]]
) -> str:
  """Returns the end of a run for people: scores per class, time, report, and the next command.

  Args:
    run: Where it lies.
    settings: Its settings, which decide what the best model is.
    rows: Its history, one row per epoch.
  """
  lines = [""]
  if best := best_row(settings, rows):
    scores = {
        name.removeprefix("val_dice_"): value
        for name, value in best.items() if name.startswith("val_dice_") and name != _PUBLISHED
    }  # fmt: skip
    scores["mean of the volumes"] = best[_SCORE]
    of = f"epoch {best['epoch']} of {rows[-1]['epoch']}, {rows[-1]['seconds'] / 60:.1f} minutes"
    lines.append(f"Validation scores of model.keras ({of}),")
    lines.append("means over the held-out volumes at the network's size")
    table = [("class", "Dice"), *((name, f"{value:.3f}") for name, value in scores.items())]
    lines += [progress.table(table), ""]
  quoted = shlex.quote(str(run.path))
  lines += [f"Report  {run.report_html}", f"Next    flexunet evaluate --run_dir={quoted}"]
  return "\n".join(lines)


_SCORE, _PUBLISHED = "val_foreground_dice", "val_dice_coef_multiclass"


def best_row(
    settings: config.TrainingConfig, rows: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any] | None:
  """Returns the epoch whose weights are in model.keras; None where nothing was validated."""
  validated = [row for row in rows if math.isfinite(row.get(_SCORE, math.nan))]
  if not validated or not settings.save_best:
    return validated[-1] if validated else None
  if settings.monitor == "loss":
    return min(reversed(validated), key=lambda row: row["val_loss"])
  return max(reversed(validated), key=lambda row: row[_SCORE])


def run() -> None:
  command_line.run(main, _PROGRAM, expand=preset_files.expand)


if __name__ == "__main__":
  run()
