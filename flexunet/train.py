"""Trains a FlexUNet on a built dataset.

  python -m flexunet.train --dataset=hippocampus_t1w --data_dir=DATA --run_dir=RUN

Every flag without a value is planned from the data; RUN/config.json tells what was chosen and why.
Afterwards: python -m flexunet.evaluate --run_dir=RUN --split=test
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import app, flags

from flexunet import command_line, config, config_flags

_RUN_DIR = flags.DEFINE_string("run_dir", None, "New folder for everything of this run.")
_MODEL = config_flags.define(config.ModelConfig)
_DATA = config_flags.define(config.DataConfig)
_TRAINING = config_flags.define(config.TrainingConfig)


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {argv[1:]}.")
  model = config_flags.read(config.ModelConfig, _MODEL)
  data = config_flags.read(config.DataConfig, _DATA)
  settings = config_flags.read(config.TrainingConfig, _TRAINING)

  # Heavy imports after the flags are known to be right: a typo answers at once.
  command_line.load_tensorflow()
  from flexunet import run_folder
  from flexunet.training import live_view, training

  opened = training.open_data(data)
  run_config = training.complete(model, data, settings, opened)
  run_folder.check_new(_RUN_DIR.value)
  _, rows = training.fit(run_config, _RUN_DIR.value, opened, sys.argv)
  print(live_view.final_line(rows))


def run() -> None:
  flags.mark_flag_as_required("run_dir")
  command_line.run(main)


if __name__ == "__main__":
  run()
