"""When checkpoints are taken, and how a signal ends a run so that it can go on."""

from __future__ import annotations

import signal
import threading
from typing import Any

import keras
from absl import logging

from flexunet.training import callbacks, checkpoints, run_state


class Interrupted(Exception):
  """The run was asked to end before it was finished.

  Attributes:
    signal_number: What asked; a program ends with 128 plus this number, as a shell would say.
  """

  def __init__(self, signal_number: int):
    super().__init__(signal.Signals(signal_number).name)
    self.signal_number = signal_number


class Interruption:
  """While entered, SIGTERM and SIGINT only leave a note, which is looked at between steps.

  A second signal acts as usual: who presses Ctrl-C twice does not want to wait.
  """

  _SIGNALS = (signal.SIGTERM, signal.SIGINT)

  def __init__(self):
    self._before: dict[int, Any] = {}
    self.signal_number: int | None = None

  def __enter__(self) -> Interruption:
    # Python lets only the main thread listen to signals.
    if threading.current_thread() is threading.main_thread():
      self._before = {number: signal.signal(number, self._note) for number in self._SIGNALS}
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)
    self._before = {}

  def _note(self, number, frame) -> None:
    del frame
    self.signal_number = number
    self.__exit__()

  def check(self) -> None:
    if self.signal_number is not None:
      raise Interrupted(self.signal_number)


class WatchInterruption(keras.callbacks.Callback):
  """Looks for the note between the batches of a validation."""

  def __init__(self, interruption: Interruption):
    super().__init__()
    self._interruption = interruption

  def on_test_batch_end(self, batch, logs=None):
    self._interruption.check()


class Checkpointer(keras.callbacks.Callback):
  """Takes a checkpoint every n steps and at each epoch's end; the last in the list of callbacks.

  Only the copy is made in the training thread. While one is still being written, those within an
  epoch are left out: training never waits for a slow disk, except at an epoch's end.
  """

  def __init__(
      self,
      state: run_state.RunState,
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
    self._epoch_done = True  # Whether the end of the epoch before the position has been worked on.

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
    """Saves the position at which no epoch is under way."""
    self._submit(**more)

  def _submit(self, **more: Any) -> None:
    self._writer.wait()  # The copy goes where the one before lies.
    self._writer.submit(self._state.take(self._clock.step, **more))

  def save_interrupted(self, pending: dict[str, Any] | None) -> None:
    """Saves wherever the run was interrupted and waits until it is on the disk.

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
