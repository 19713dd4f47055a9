"""Validation at an epoch's end, which an interruption may break off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from flexunet.training import callbacks


class Validation(keras.callbacks.Callback):
  """Adds the validation figures to the logs of every n-th epoch and of the last one.

  Keras' own `validation_freq` cannot know that a time limit has made an epoch the last. Before all
  callbacks that use the figures.

  Attributes:
    pending: {"epoch", "logs"} while a validation is under way, for a run that is interrupted
      then: it begins with this validation when it goes on.
  """

  def __init__(
      self,
      kept: keras.Model,
      clock: callbacks.RunClock,
      data: Any,
      *,
      every: int,
      epochs: int,
      watchers: Sequence[keras.callbacks.Callback] = (),
  ):
    """Takes the network to evaluate, which may be another one than that in training."""
    super().__init__()
    self._kept, self._clock, self._data = kept, clock, data
    self._every, self._epochs, self._watchers = every, epochs, watchers
    self.pending: dict[str, Any] | None = None

  def on_epoch_end(self, epoch, logs=None):
    last = epoch + 1 == self._epochs or self.model.stop_training
    if logs is None or not (last or (epoch + 1) % self._every == 0):
      return
    self.pending = {"epoch": epoch, "logs": dict(logs)}
    stop = self.model.stop_training
    self._clock.on_test_begin()
    figures = self._kept.evaluate(
        self._data, verbose=0, return_dict=True, callbacks=list(self._watchers)
    )
    self._clock.on_test_end()
    self.model.stop_training = stop
    self.pending = None
    logs.update({f"val_{name}": value for name, value in figures.items()})
