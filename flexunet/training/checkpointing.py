"""When checkpoints are taken, what they hold, and how a signal ends a run that can be resumed."""

from __future__ import annotations

import hashlib
import itertools
import signal
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from flexunet import run_folder
from flexunet.core import progress
from flexunet.core.errors import InputError
from flexunet.distributed import hosts, launch
from flexunet.pipelines.record_table import RecordTable
from flexunet.training import callbacks, checkpoints

_FORMAT = 1


class Interrupted(Exception):
  """The run was asked to end before it was finished.

  Attributes:
    signal_number: What asked; a program ends with 128 plus this number, as a shell would say.
    error: What the run cannot continue without; None: a signal asked.
  """

  def __init__(self, signal_number: int, error: InputError | None = None):
    super().__init__("Ending" if error else signal.Signals(signal_number).name)
    self.signal_number, self.error = signal_number, error


class Interruption:
  """While entered, SIGTERM and SIGINT only leave a note, which `check` looks at between steps.

  Of several processes that train together all end at the same step, whichever got the signal.

  A second signal acts as usual: pressing Ctrl-C twice means not wanting to wait. A signal that is
  ignored stays ignored: a shell starts background jobs so, and they must not end at a Ctrl-C that
  is meant for the program in the foreground.
  """

  _SIGNALS = (signal.SIGTERM, signal.SIGINT)

  def __init__(self):
    self._before: dict[int, Any] = {}
    self.signal_number: int | None = None
    self._error: InputError | None = None

  def __enter__(self) -> Interruption:
    # Python lets only the main thread listen to signals.
    if threading.current_thread() is threading.main_thread():
      self._before = {
          number: signal.signal(number, self._note)
          for number in self._SIGNALS
          if signal.getsignal(number) is not signal.SIG_IGN
      }
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)
    self._before = {}

  def _note(self, number, frame) -> None:
    del frame
    self.signal_number = number
    self.__exit__()

  def stop(self, error: InputError) -> None:
    """Asks the run to end between two steps, as a signal does, because of an error."""
    self._error = error

  def check(self) -> None:
    """Raises Interrupted if a signal has come, or an error after which the run is to end.

    The signal may have come to another process of the run.
    """
    if self._error is not None:
      raise Interrupted(signal.SIGTERM, self._error)
    if number := hosts.largest(self.signal_number or launch.asked_signal()):
      raise Interrupted(number)


class InterruptionWatcher(keras.callbacks.Callback):
  """Looks for a signal between the batches of a validation."""

  def __init__(self, interruption: Interruption):
    super().__init__()
    self._interruption = interruption

  def on_test_batch_end(self, batch, logs=None):
    self._interruption.check()


class Checkpointer(keras.callbacks.Callback):
  """Takes a checkpoint every n steps and at each epoch's end; the last in the list of callbacks.

  Only the copy is made in the training thread. While a checkpoint is still being written, those due
  within an epoch are skipped: training never waits for a slow disk, except at an epoch's end.
  """

  def __init__(
      self,
      state: RunState,
      clock: callbacks.RunClock,
      writer: checkpoints.BackgroundWriter,
      interruption: Interruption,
      every_steps: int,
      steps_per_epoch: int,
  ):
    super().__init__()
    self._state, self._clock, self._writer = state, clock, writer
    self._interruption = interruption
    self.every_steps, self._steps_per_epoch = every_steps, steps_per_epoch
    self._metrics: checkpoints.Checkpoint | None = None
    self._epoch_done = True  # Whether the end of the epoch before the position has been handled.

  def resume_from(self, checkpoint: checkpoints.Checkpoint) -> None:
    """Lets the next epoch begin with the running metrics of a checkpoint."""
    self._metrics = checkpoint

  def on_epoch_begin(self, epoch, logs=None):
    self._epoch_done = False
    if self._metrics is not None:  # Here, because `fit` has reset them just before.
      self._state.put_back_metrics(self._metrics)
      self._metrics = None

  def on_train_batch_end(self, batch, logs=None):
    step = self._clock.step
    ends_epoch = step % self._steps_per_epoch == 0 or self.model.stop_training
    every = self.every_steps
    due = every and step // every > self._clock.previous_step // every
    if ends_epoch:  # Its end, with the validation, follows at once and is saved.
      return
    self._interruption.check()
    if due and self._writer.busy:
      logging.info("Step %d: the checkpoint before is still being written.", step)
    elif due:
      self._submit(within_epoch=True)

  def on_epoch_end(self, epoch, logs=None):
    self._epoch_done = True
    self.save(stopped=bool(self.model.stop_training))
    self._interruption.check()

  def save(self, **more: Any) -> None:
    """Saves the run between two epochs; `more` is JSON to keep in the state."""
    self._submit(**more)

  def _submit(self, **more: Any) -> None:
    if not hosts.is_first():
      return
    self._writer.wait()  # The copy goes where the one before lies.
    self._writer.submit(self._state.take(self._clock.step, **more))

  def save_interrupted(self, pending: dict[str, Any] | None) -> None:
    """Saves the run where it was interrupted and waits until it is on the disk.

    Args:
      pending: {"epoch", "logs"} of an epoch whose validation was under way.
    """
    if not self._epoch_done:
      self._submit(
          within_epoch=pending is None,
          pending=pending,
          stopped=bool(self.model.stop_training),
      )
    self._writer.wait()


class RunState:
  """The variables of a network in training and the states of the callbacks that steer it.

  `model.variables` includes the states of the dropout seeds, which no file format of Keras keeps.
  """

  def __init__(
      self,
      network: keras.Model,
      steering: Sequence[keras.callbacks.Callback],
      identity: Mapping[str, Any],
  ):
    """Takes a compiled network whose optimizer is built: a checkpoint may be put back into it.

    Args:
      network: In training.
      steering: All callbacks; those with a state are part of a checkpoint.
      identity: JSON that must be the same when the run is resumed.
    """
    self._network = network
    self._identity = dict(identity)
    self._taken: dict[str, list[Any]] = {}
    self._callbacks: dict[str, callbacks.RunCallback] = {}
    for callback in steering:
      if isinstance(callback, callbacks.RunCallback):
        name = type(callback).__name__
        if name in self._callbacks:
          raise ValueError(f"Two callbacks of the class {name}: their states would be mixed up.")
        self._callbacks[name] = callback

  def take(self, step: int, *, within_epoch: bool = False, **more: Any) -> checkpoints.Checkpoint:
    """Copies the state into main memory, the same memory each time.

    The copy before must have been written: it is overwritten. New memory for each copy would cost
    more than the copy, since the system clears it first.

    Args:
      step: Training steps done.
      within_epoch: Keeps the running metrics, which the rest of the epoch adds to.
      **more: JSON that is kept in the state.
    """
    return checkpoints.Checkpoint(
        arrays={
            name: self._copies(name, variables)
            for name, variables in self._groups(within_epoch).items()
        },
        state={
            "format": _FORMAT,
            "step": step,
            "identity": self._identity,
            "callbacks": {name: callback.state() for name, callback in self._callbacks.items()},
            **more,
        },
    )

  def _copies(self, group: str, variables: list) -> list[np.ndarray]:
    before = self._taken.get(group, [])
    pairs = itertools.zip_longest(before[: len(variables)], variables)
    self._taken[group] = [_copy_into(target, variable) for target, variable in pairs]
    return self._taken[group]

  def put_back(self, checkpoint: checkpoints.Checkpoint) -> None:
    """Sets variables and callbacks; the running metrics wait for `put_back_metrics`.

    Raises:
      InputError: The checkpoint is of another version, or of other data, devices or variables.
    """
    state = checkpoint.state
    if state.get("format") != _FORMAT:
      raise InputError(
          f"The checkpoint must have the format {_FORMAT}. Got: {state.get('format')}. Resume with"
          " the version of flexunet that wrote it (manifest.json)."
      )
    for name, now in self._identity.items():
      saved = state["identity"].get(name)
      if saved != now:
        raise InputError(
            f"--resume needs what the run was started with: {name} was {saved}, now it is {now}."
            " Use the same data and devices, or start a new run in another folder."
        )
    for name, variables in self._groups(within_epoch=False).items():
      _assign(name, variables, checkpoint.arrays[name])
    for name, callback in self._callbacks.items():
      callback.load_state(state["callbacks"][name])

  def put_back_metrics(self, checkpoint: checkpoints.Checkpoint) -> None:
    """Sets the running metrics of a checkpoint that was taken within an epoch."""
    if values := checkpoint.arrays.get("metrics"):
      _assign("metrics", self._groups(within_epoch=True)["metrics"], values)

  def _groups(self, within_epoch: bool) -> dict[str, list]:
    network = self._network
    groups = {
        "model": _parts(network, network.variables),
        "optimizer": list(network.optimizer.variables),  # Updated alike on each device.
    }
    if within_epoch:
      groups["metrics"] = _parts(network, network.metrics_variables)
    return groups


def newest_of_first(
    run: run_folder.RunFolder, store: checkpoints.CheckpointStore
) -> tuple[checkpoints.Checkpoint, str] | None:
  """Returns the newest whole checkpoint that the first process finds, and its name.

  What a kill has left behind is removed before. Of several processes the others need no such
  folder: they are sent the values.

  Returns:
    None: There is none yet.

  Raises:
    InputError: There are checkpoints, but none is whole.
  """
  found = hosts.on_all(lambda: _newest(run, store) if hosts.is_first() else None)
  if hosts.count() == 1:
    return found
  arrays = found[0].arrays if found else {}
  kinds = {name: [(one.shape, one.dtype.str) for one in group] for name, group in arrays.items()}
  shared = hosts.value_of_first([found[0].state, found[1], kinds] if found else None)
  if shared is None:
    return None
  state, name, kinds = shared
  values = {
      group: [
          hosts.array_of_first(arrays[group][place] if arrays else np.zeros(shape, dtype))
          for place, (shape, dtype) in enumerate(each)
      ]
      for group, each in kinds.items()
  }
  return checkpoints.Checkpoint(values, state), name


def _newest(
    run: run_folder.RunFolder, store: checkpoints.CheckpointStore
) -> tuple[checkpoints.Checkpoint, str] | None:
  run.remove_partial()
  store.remove_partial()
  if not store.names():
    return None
  checkpoint, name, damaged = store.read()
  for problem in damaged:
    progress.say(f"A damaged checkpoint is skipped: {problem}.")
  return checkpoint, name


def data_identity(tables: Mapping[str, RecordTable], fingerprint: str | None) -> dict[str, Any]:
  """Returns what identifies the records of a run, wherever their files lie."""
  identity: dict[str, Any] = {"data fingerprint": fingerprint}
  for name, table in tables.items():
    digest = hashlib.sha256()
    for column in (table.shard, table.offset, table.slice_index):
      digest.update(np.ascontiguousarray(column, np.int64).tobytes())
    identity[f"{name} records"] = f"{len(table)} ({digest.hexdigest()[:12]})"
  return identity


def _copy_into(target: np.ndarray | None, variable: Any) -> np.ndarray:
  """Returns `target`, or new memory where that does not fit, filled from the variable."""
  if keras.backend.backend() == "tensorflow":
    # The variable's own memory; what Keras and TensorFlow give as NumPy is a copy already.
    values = np.asarray(tf.convert_to_tensor(variable))
  else:
    values = np.asarray(keras.ops.convert_to_numpy(variable))
  if target is None or (target.shape, target.dtype) != (values.shape, values.dtype):
    target = np.empty(values.shape, values.dtype)
  np.copyto(target, values)
  return target


def _parts(network: keras.Model, variables: Iterable) -> list:
  """Returns the variables, each device's own copy of those that differ between devices.

  Each device has its own running metrics and statistics of batch normalization. Reading such a
  variable as one would merge the copies, or give that of the first device.
  """
  variables = list(variables)
  strategy = getattr(network, "distribute_strategy", None)
  if strategy is None or strategy.num_replicas_in_sync == 1:
    return variables
  parts: list[Any] = []
  for variable in variables:
    alike = variable.trainable
    parts += [variable] if alike else strategy.experimental_local_results(variable.value)
  return parts


def _assign(group: str, variables: list, values: Sequence[np.ndarray]) -> None:
  shapes = [tuple(variable.shape) for variable in variables]
  saved = [value.shape for value in values]
  if shapes != saved:
    raise InputError(
        f"The {group} variables of the checkpoint must fit the run: {len(saved)} were saved,"
        f" {len(shapes)} are there, of other shapes. Resume with the versions of manifest.json."
    )
  for variable, value in zip(variables, values, strict=True):
    variable.assign(value)
