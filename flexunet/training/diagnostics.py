"""What can go wrong in the middle of training, explained by what to do about it."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import math
import os
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from flexunet import config, run_folder
from flexunet.core.errors import InputError
from flexunet.pipelines import batches, order
from flexunet.pipelines.record_table import RecordTable
from flexunet.training import callbacks, devices, input_pipeline

_NAMED_RECORDS = 20
# Names, since XLA and PyTorch have classes of their own, which need not be installed.
_OUT_OF_MEMORY = ("ResourceExhaustedError", "OutOfMemoryError")
_PERHAPS_OUT_OF_MEMORY = ("InternalError", "XlaRuntimeError", "JaxRuntimeError", "RuntimeError")
_UNREADABLE = ("DataLossError", "InvalidArgumentError", "OutOfRangeError", "UnknownError")
# The system's words; HDF5 and TensorFlow have errors of their own with these in them.
_DISK_TROUBLE = tuple(
    os.strerror(number)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO)
)


class NanGuard(keras.callbacks.Callback):
  """Ends a run whose loss is no number, naming the records that were in the batch."""

  def __init__(
      self, clock: callbacks.RunClock, epoch_order: order.EpochOrder, table: RecordTable
  ):
    super().__init__()
    self._clock, self._order, self._table = clock, epoch_order, table

  def on_train_batch_end(self, batch, logs=None):
    if math.isfinite((logs or {}).get("loss", 0.0)):
      return
    first, last = self._clock.previous_step, self._clock.step
    records = records_of_steps(self._order, self._table, first, last)
    raise InputError(
        f"The loss must be a number, but it became {logs['loss']} at step {last}. Records of that"
        f" batch: {records}. If they are sound, start a new run with a lower --learning_rate or"
        " --clipvalue, or with --precision=float32."
    )


def records_of_steps(
    epoch_order: order.EpochOrder, table: RecordTable, first: int, last: int
) -> str:
  """Returns which records the steps first..last-1 train on, described for the user."""
  size = epoch_order.batch_size
  rows, _, _ = epoch_order.records_at(tf.range(first * size, last * size, dtype=tf.int64))
  return _listed(table, [int(row) for row in rows.numpy()])


def leave_out_corrupt(
    run_config: config.RunConfig, opened: input_pipeline.TrainingData
) -> tuple[input_pipeline.TrainingData, list[str]]:
  """Reads every record where --skip_corrupt allows some to be left out.

  Returns:
    (the data without unreadable records, the records left out, described for the user).

  Raises:
    InputError: More are unreadable than the flag allows.
  """
  allowed = run_config.data.skip_corrupt
  if not allowed:
    return opened, []
  kept: dict[str, RecordTable] = {}
  left_out: list[str] = []
  for name, table in (("train", opened.train), ("validation", opened.validation)):
    rows = _corrupt_rows(run_config, opened, table)
    # Tiles of a record count as one.
    left_out += dict.fromkeys(table.describe(row) for row in rows)
    kept[name] = table.take(np.setdiff1d(np.arange(len(table)), rows)) if rows else table
    if not len(kept[name]):
      raise InputError(f"No record of {name} can be read. Build the dataset again.")
  if len(left_out) > allowed:
    raise InputError(
        f"--skip_corrupt={allowed} must be at least the number of records that cannot be read,"
        f" {len(left_out)}: {_shortened(left_out)}. Build the dataset again, or raise the flag."
    )
  return dataclasses.replace(opened, train=kept["train"], validation=kept["validation"]), left_out


@contextlib.contextmanager
def explained(run_config: config.RunConfig, opened: input_pipeline.TrainingData) -> Iterator[None]:
  """Turns out-of-memory errors and those of unreadable records, raised inside, into InputError."""
  try:
    yield
  except Exception as error:
    if _is_out_of_memory(error):
      raise InputError(_memory_advice(run_config)) from error
    if type(error).__name__ not in _UNREADABLE:
      raise
    corrupt = [
        table.describe(row)
        for table in (opened.train, opened.validation)
        for row in _corrupt_rows(run_config, opened, table)
    ]
    if not corrupt:  # Then it was something else.
      raise
    raise InputError(
        f"Every record must be readable, but {len(corrupt)} cannot be: {_shortened(corrupt)}."
        f" Build or copy the dataset again, or leave them out with --skip_corrupt={len(corrupt)}."
    ) from error


@contextlib.contextmanager
def disk_explained(run: run_folder.RunFolder) -> Iterator[None]:
  """Turns errors of the disk, raised inside, into InputError."""
  try:
    yield
  except BrokenPipeError:  # It is the reader of our output that is gone.
    raise
  except Exception as error:
    of_disk = isinstance(error, OSError) or any(words in str(error) for words in _DISK_TROUBLE)
    if isinstance(error, InputError) or not of_disk:
      raise
    said, file = (error.strerror, error.filename) if isinstance(error, OSError) else (None, None)
    reason = (said or str(error) or type(error).__name__).strip().splitlines()[0]
    raise InputError(
        f"{run.path} must be writable and have space, but: {reason}"
        f"{f' ({file})' if file else ''}. The checkpoints"
        " written so far are kept. Free space or restore the permission, then continue with"
        " --resume."
    ) from error


def _corrupt_rows(
    run_config: config.RunConfig, opened: input_pipeline.TrainingData, table: RecordTable
) -> list[int]:
  return batches.open_loader(
      opened.source, table, input_pipeline.example_spec(run_config)
  ).find_corrupt()


def _is_out_of_memory(error: Exception) -> bool:
  if isinstance(error, MemoryError) or type(error).__name__ in _OUT_OF_MEMORY:
    return True
  text = str(error).lower()
  return type(error).__name__ in _PERHAPS_OUT_OF_MEMORY and any(
      words in text for words in ("resource_exhausted", "out of memory", "failed to allocate")
  )


def _memory_advice(run_config: config.RunConfig) -> str:
  model, training = run_config.model, run_config.training
  size, shown = "--image_size", ",".join(map(str, model.image_size))
  if run_config.data.patch_hw:
    size, shown = "--patch_size", run_config.data.patch_size
  advice = [
      f"--batch_size (now {training.batch_size})",
      f"{size} (now {shown})",
      f"--base_filters (now {model.base_filters})",
  ]
  text = f"The run must fit into the device's memory, but it ran out. Lower {', '.join(advice)}"
  if training.precision == "float32":
    text += ", or use --precision=mixed_bfloat16"
  if run_config.data.cache == "device" or (run_config.data.cache == "auto" and devices.has_gpu()):
    text += ", or keep the slices in main memory with --cache=ram"
  return text + ". `flexunet inspect` shows the memory per batch size."


def _listed(table: RecordTable, rows: list[int]) -> str:
  return _shortened([table.describe(row) for row in dict.fromkeys(rows)])


def _shortened(records: list[str]) -> str:
  more = len(records) - _NAMED_RECORDS
  return "; ".join(records[:_NAMED_RECORDS]) + (f"; and {more} more" if more > 0 else "")
