"""Trains a tiny run in a process of its own, which a test kills at a chosen moment.

python resume_program.py DATA_DIR RUN_DIR [--resume] [--kill=MOMENT] [--NAME=VALUE of a knob ...]

Prints one line of JSON at the end: hashes of all that must be the same after any number of kills.
"""

import argparse
import hashlib
import json
import os
import signal
import sys
import threading
import zipfile


def kill_here(*_, **__):
  os.kill(os.getpid(), signal.SIGKILL)


def arm(moment: str) -> None:
  """Makes this process die, or be asked to end, at a moment such as "step:7" or "save:2"."""
  from flexunet.core import files
  from flexunet.reporting import report
  from flexunet.training import callbacks, checkpointing, checkpoints, validation

  kind, _, number = moment.partition(":")
  left = [int(number or 1)]

  def count_down(act=kill_here):
    left[0] -= 1
    if left[0] == 0:
      act()

  def before(owner, name, act=kill_here):
    original = getattr(owner, name)

    def wrapped(*arguments, **options):
      count_down(act)
      return original(*arguments, **options)

    setattr(owner, name, wrapped)

  if kind == "within_step":
    # The step runs in other threads meanwhile.
    before(callbacks.RunClock, "on_train_batch_begin",
           lambda: threading.Timer(0.01, kill_here).start())  # fmt: skip
  elif kind == "within_save":  # The arrays are written, their manifest is not.
    before(checkpoints._HashingFile, "close")  # Of arrays, state, manifest, in this order.
  elif kind == "before_pointer":  # The checkpoint has its name, `current` names the one before.
    original = files.write_bytes

    def wrapped(path, data):
      if path.name == "current":
        count_down()
      return original(path, data)

    files.write_bytes = wrapped
  elif kind == "within_validation":
    before(validation.Validation, "on_epoch_end",
           lambda: threading.Timer(0.02, kill_here).start())  # fmt: skip
  elif kind == "at_epoch_end":  # Scores and model are written, the checkpoint is not.
    before(checkpointing.Checkpointer, "on_epoch_end")
  elif kind == "before_report":
    before(report, "write_report")
  elif kind == "terminate_step":
    before(callbacks.RunClock, "on_train_batch_begin",
           lambda: os.kill(os.getpid(), signal.SIGTERM))  # fmt: skip
  elif kind == "terminate_validation":
    before(callbacks.RunClock, "on_test_begin",
           lambda: os.kill(os.getpid(), signal.SIGTERM))  # fmt: skip
  else:
    raise ValueError(moment)


def fingerprint(run) -> dict[str, str]:
  """Returns hashes of the last checkpoint, the saved model's weights and the history."""
  import h5py
  import numpy as np

  from flexunet.training import checkpoints

  def digest(arrays):
    whole = hashlib.sha256()
    for array in arrays:
      whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()[:16]

  checkpoint, _, _ = checkpoints.CheckpointStore(run.checkpoints).read()
  states = dict(checkpoint.state["callbacks"])
  for clock_only in ("spent_s", "validation_s", "closing_s"):
    del states["RunClock"][clock_only]
  rows = states.pop("History")["rows"]
  for row in rows:
    del row["seconds"]
  # As they lie in the file: building the network again is a tenth of so short a run.
  with zipfile.ZipFile(run.model_keras) as model, model.open("model.weights.h5") as weights:
    kept = []
    h5py.File(weights).visititems(
        lambda _, one: kept.append(one[()]) if isinstance(one, h5py.Dataset) else None
    )
  assert kept
  return {
      **{group: digest(arrays) for group, arrays in checkpoint.arrays.items()},
      "kept": digest(kept),
      "callbacks": json.dumps(states, sort_keys=True),
      "history": json.dumps(rows),
      "csv": str([line.split(",")[:2] for line in run.history_csv.read_text().splitlines()]),
  }


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("data_dir")
  parser.add_argument("run_dir")
  parser.add_argument("--resume", action="store_true")
  parser.add_argument("--kill")
  parser.add_argument("--knobs", default="{}", help="JSON of TrainingConfig")
  parser.add_argument("--model", default="{}", help="JSON of ModelConfig")
  parser.add_argument("--patch_size", default="none")
  parser.add_argument("--cache", default="ram")
  parser.add_argument("--data_service")
  parser.add_argument("--data_service_timeout_s", type=float, default=120.0)
  parser.add_argument("--logical_devices", type=int, default=1)
  parser.add_argument("--dropout", type=float, default=0.2)
  parser.add_argument("--losses", action="store_true", help="prints the running loss of each step")
  options = parser.parse_args()

  import numpy as np
  import tensorflow as tf

  from flexunet import config
  from flexunet.core.errors import InputError
  from flexunet.reporting import charts
  from flexunet.training import checkpointing, diagnostics, input_pipeline, run_setup, trainer

  losses = []
  if options.losses:
    watch = diagnostics.NanGuard.on_train_batch_end

    def noting(self, batch, logs=None):
      losses.append(float(logs["loss"]))
      watch(self, batch, logs)

    diagnostics.NanGuard.on_train_batch_end = noting
  if options.logical_devices > 1:
    cpu = tf.config.list_physical_devices("CPU")[0]
    each = tf.config.LogicalDeviceConfiguration()
    tf.config.set_logical_device_configuration(cpu, [each] * options.logical_devices)
  if options.kill:
    arm(options.kill)
  # Nobody looks at them, and drawing is a fifth of so short a run.
  charts.svg = lambda chart: ""
  charts.image = lambda drawn, columns: np.zeros((1, 1, 3), np.uint8)
  settings = {
      "epochs": 4, "batch_size": 4, "previews": 0, "checkpoint_steps": 3, "learning_rate": 3e-3,
      "reduce_lr_patience": 1, "warmup_steps": 5, "validation_epochs": 1,
      **json.loads(options.knobs),
  }  # fmt: skip
  data = config.DataConfig(
      data_dir=options.data_dir, cache=options.cache, patch_size=options.patch_size,
      data_service=options.data_service, data_service_timeout_s=options.data_service_timeout_s,
  )
  opened = input_pipeline.open_data(data)
  try:
    run_config = run_setup.complete(
        config.ModelConfig(**{
            "num_layers": 2, "base_filters": 4, "dropout_rate": options.dropout,
            **json.loads(options.model),
        }),
        data, config.TrainingConfig(**settings), opened,
    )  # fmt: skip
    run, _ = trainer.fit(run_config, options.run_dir, opened, resume=options.resume)
  except checkpointing.Interrupted as interrupted:
    sys.exit(128 + interrupted.signal_number)
  except InputError as error:
    sys.exit(f"error: {error}")
  print(json.dumps(losses if options.losses else fingerprint(run)))


if __name__ == "__main__":
  main()
