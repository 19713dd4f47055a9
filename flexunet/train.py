"""Trains a FlexUNet on a built dataset.

  python -m flexunet.train --dataset=hippocampus_t1w --data_dir=DATA --run_dir=RUN

Every flag without a value is planned from the data; RUN/config.json tells what was chosen and why.
--preset=published/hippocampus_t1w trains by the published recipe instead.
After a kill, a power cut or Ctrl-C the same command with --resume goes on where it stopped.
Afterwards: python -m flexunet.evaluate --run_dir=RUN --split=test
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from flexunet import config
from flexunet.core import command_line, flags
from flexunet.pipelines.augmentation.config import AugmentationConfig
from flexunet.presets import preset_files

_PROGRAM = flags.Program(__doc__)
_RUN_DIR = _PROGRAM.string("run_dir", None, "New folder for everything of this run.", required=True)
_RESUME = _PROGRAM.boolean(
    "resume",
    False,
    "Goes on with the run in --run_dir, exactly as if it had not stopped; starts it if there is"
    " none yet. The other flags stay those of the start; --epochs and --max_minutes may grow.",
)
_MODEL = _PROGRAM.fields(config.ModelConfig)
_DATA = _PROGRAM.fields(config.DataConfig)
_TRAINING = _PROGRAM.fields(config.TrainingConfig)
_AUGMENTATION = _PROGRAM.fields(AugmentationConfig)
# Read by command_line.run before the other flags are parsed.
_PROGRAM.string(
    "preset",
    None,
    f"Named flags that come before all others: {', '.join(preset_files.names())}."
    " Default: everything is planned from the data.",
)


def main(argv: Sequence[str]) -> None:
  command_line.no_words(argv)
  model = flags.read(config.ModelConfig, _MODEL)
  data = flags.read(config.DataConfig, _DATA)
  settings = flags.read(config.TrainingConfig, _TRAINING)
  augmentation = flags.read(AugmentationConfig, _AUGMENTATION)

  # Heavy imports after the flags are known to be right: a typo answers at once.
  command_line.load_tensorflow()
  from flexunet import run_folder
  from flexunet.training import checkpointing, input_pipeline, monitoring, run_setup, trainer

  opened = input_pipeline.open_data(data)
  run_config = run_setup.complete(model, data, settings, opened, augmentation)
  if not _RESUME.value:
    run_folder.check_new(_RUN_DIR.value)
  try:
    _, rows = trainer.fit(
        run_config, _RUN_DIR.value, opened, sys.argv, resume=_RESUME.value
    )
  except KeyboardInterrupt:  # Before the first step: there is nothing to save yet.
    sys.exit(128 + signal.SIGINT)
  except checkpointing.Interrupted as interrupted:
    sys.exit(128 + interrupted.signal_number)  # As a shell reports it: 143 SIGTERM, 130 Ctrl-C.
  print(monitoring.final_line(rows))


def run() -> None:
  command_line.run(main, _PROGRAM, expand=preset_files.expand)


if __name__ == "__main__":
  run()
