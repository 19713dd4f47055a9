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

from absl import app, flags

from flexunet import command_line, config, config_flags, preset_files

_RUN_DIR = flags.DEFINE_string("run_dir", None, "New folder for everything of this run.")
_RESUME = flags.DEFINE_boolean(
    "resume",
    False,
    "Goes on with the run in --run_dir, exactly as if it had not stopped; starts it if there is"
    " none yet. The other flags stay those of the start; --epochs and --max_minutes may grow.",
)
# Read by command_line.run before the other flags are parsed.
flags.DEFINE_string(
    "preset",
    None,
    f"Named flags that come before all others: {', '.join(preset_files.names())}."
    " Default: everything is planned from the data.",
)
_MODEL = config_flags.define(config.ModelConfig)
_DATA = config_flags.define(config.DataConfig)
_TRAINING = config_flags.define(config.TrainingConfig)
_AUGMENTATION = config_flags.define(config.AugmentationConfig)
flags.adopt_module_key_flags(config_flags)  # So that --help tells them too.


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}.")
  model = config_flags.read(config.ModelConfig, _MODEL)
  data = config_flags.read(config.DataConfig, _DATA)
  settings = config_flags.read(config.TrainingConfig, _TRAINING)
  augmentation = config_flags.read(config.AugmentationConfig, _AUGMENTATION)

  # Heavy imports after the flags are known to be right: a typo answers at once.
  command_line.load_tensorflow()
  from flexunet import run_folder
  from flexunet.training import checkpointing, completion, live_view, streams, training

  opened = streams.open_data(data)
  run_config = completion.complete(model, data, settings, opened, augmentation)
  if not _RESUME.value:
    run_folder.check_new(command_line.given(_RUN_DIR))
  try:
    _, rows = training.fit(
        run_config, command_line.given(_RUN_DIR), opened, sys.argv, resume=_RESUME.value
    )
  except KeyboardInterrupt:  # Before the first step: there is nothing to save yet.
    sys.exit(128 + signal.SIGINT)
  except checkpointing.Interrupted as interrupted:
    sys.exit(128 + interrupted.signal_number)  # As a shell reports it: 143 SIGTERM, 130 Ctrl-C.
  print(live_view.final_line(rows))


def run() -> None:
  flags.mark_flag_as_required("run_dir")
  command_line.run(main)


if __name__ == "__main__":
  run()
