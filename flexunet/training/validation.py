"""Validation at an epoch's end, which a signal may interrupt and a time limit shorten.

Scores are means over the volumes of the held-out slices, at the network's size. Where the time
allows only a part of the slices, each volume is scored by those that were seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from flexunet.core import progress
from flexunet.pipelines.record_table import RecordTable
from flexunet.training import callbacks, time_budget


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """The slices of a validation.

  Attributes:
    batches: Returns batches of some rows int64 [n], in that order; None: of all, in file order.
    spread: All rows int64 [N], in an order of which any first part is spread evenly.
    batch_size: Slices per batch.
  """

  batches: Callable[[np.ndarray | None], Any]
  spread: np.ndarray
  batch_size: int

  @property
  def num_batches(self) -> int:
    """Batches that hold all slices."""
    return -(-len(self.spread) // self.batch_size)


def spread_rows(table: RecordTable) -> np.ndarray:
  """Returns all rows, int64 [N], in an order of which any first part represents the whole.

  Foreground, subjects, volumes and places along a volume keep their shares in it: the rows are
  sorted by these, and visited at ever finer regular distances (van der Corput).
  """
  foreground = np.zeros(len(table), bool)
  foreground[table.foreground] = True
  by_kind = np.lexsort((table.slice_index, table.volume, table.subject, ~foreground))
  bits = max(1, int(len(table) - 1).bit_length())
  places = [int(f"{place:0{bits}b}"[::-1], 2) for place in range(2**bits)]
  return by_kind[[place for place in places if place < len(table)]].astype(np.int64)


class Validation(keras.callbacks.Callback):
  """Adds the validation figures to the logs of every n-th epoch and of the last one.

  Keras' own `validation_freq` cannot know that a time limit has made an epoch the last. Stands
  before all callbacks that use the figures.

  In a run with a time limit the first validation is cut short where it takes more than its share
  of the time. All later ones use the slices that it got through, so that their figures can be
  compared; the logs then hold their number as `val_slices`.

  Attributes:
    pending: {"epoch", "logs"} while a validation is under way, for a run that is interrupted
      then: it resumes with this validation.
  """

  def __init__(
      self,
      kept: keras.Model,
      clock: callbacks.RunClock,
      held_out: HeldOut,
      *,
      every: int,
      epochs: int,
      watchers: Sequence[keras.callbacks.Callback] = (),
      note: Callable[[dict[str, Any]], None] = lambda entry: None,
  ):
    """Takes the network to evaluate, which may differ from the one in training.

    Args:
      kept: The network to evaluate.
      clock: Clock of the run.
      held_out: What it is evaluated on.
      every: Epochs from one validation to the next.
      epochs: Epochs of the run.
      watchers: Callbacks of the evaluation.
      note: Takes, as JSON, which part of the slices is validated where the time is too short.
    """
    super().__init__()
    self._kept, self._clock, self._held_out = kept, clock, held_out
    self._every, self._epochs, self._watchers = every, epochs, watchers
    self._note = note
    self._skipping = False
    self._data: tuple[int | None, Any] | None = None  # (number of rows, their batches)
    self.pending: dict[str, Any] | None = None

  def on_epoch_end(self, epoch, logs=None):
    last = epoch + 1 == self._epochs or self.model.stop_training
    if logs is None or not (last or (epoch + 1) % self._every == 0):
      return
    if not last and self._is_too_late():
      return
    self.pending = {"epoch": epoch, "logs": dict(logs)}
    stop = self.model.stop_training
    figures = self._evaluate(last)
    self.model.stop_training = stop
    self.pending = None
    logs.update({f"val_{name}": value for name, value in figures.items()})
    if self._clock.validation_batches is not None:
      logs["val_slices"] = self._clock.validation_batches * self._held_out.batch_size

  def _is_too_late(self) -> bool:
    clock = self._clock
    if not clock.limit_s or clock.budget.time_for_two(clock.elapsed_s):
      return False
    if not self._skipping:
      progress.say("No time for another validation before the last one.")
    self._skipping = True
    return True

  def _evaluate(self, last: bool) -> dict[str, Any]:
    clock, held_out = self._clock, self._held_out
    rows = None
    watchers = list(self._watchers)
    allowance = None
    if clock.validation_batches is not None:
      rows = held_out.spread[: clock.validation_batches * held_out.batch_size]
    elif clock.limit_s:
      rows = held_out.spread
      if not clock.budget.whole_validation_fits:
        allowance = _Allowance(clock, last)
        watchers.append(allowance)
    number = None if rows is None else len(rows)
    if self._data is None or self._data[0] != number:
      self._data = number, held_out.batches(rows)
    clock.on_test_begin()
    figures = self._kept.evaluate(
        self._data[1], verbose=0, return_dict=True, callbacks=watchers
    )
    clock.on_test_end()
    if allowance is not None and allowance.batches < held_out.num_batches:
      self._keep_to(allowance)
    return figures

  def _keep_to(self, allowance: _Allowance) -> None:
    """Lets all further validations use the slices that this one got through, and says so."""
    clock, held_out = self._clock, self._held_out
    clock.validate_on(allowance.batches)
    slices, whole = allowance.batches * held_out.batch_size, len(held_out.spread)
    took_s = clock.budget.validation_s
    expected_s = took_s * held_out.num_batches / allowance.batches
    reason = (
        f"all would take about {expected_s:.0f} s, more than"
        f" {100 * time_budget.VALIDATION_SHARE:.0f} % of --max_minutes or than is left of it"
    )
    progress.say(
        f"Validated on {slices} of {whole} held-out slices, spread evenly over subjects, slices and"
        f" foreground: {reason}. Volumes are scored by these. Evaluate the run for figures of all."
    )
    self._note({"slices": slices, "of": whole, "seconds": round(took_s, 1), "reason": reason})


class _Allowance(keras.callbacks.Callback):
  """Ends a validation before the batch that would take it past its share of the time.

  Attributes:
    batches: Batches done so far.
    last: Whether all the time that is left may be used.
  """

  def __init__(self, clock: callbacks.RunClock, last: bool):
    super().__init__()
    self._clock, self.last = clock, last
    self.batches = 0
    self._ends_s = self._before_s = 0.0
    self._shortest_s = float("inf")  # The first one traces.

  def on_test_begin(self, logs=None):
    self._before_s = self._clock.elapsed_s
    allowed_s = self._clock.budget.validation_allowance_s(self._before_s, self.last)
    self._ends_s = self._before_s + allowed_s

  def on_test_batch_end(self, batch, logs=None):
    self._clock.agree()
    now_s = self._clock.elapsed_s
    self.batches += self.model.steps_per_execution
    self._shortest_s = min(self._shortest_s, now_s - self._before_s)
    self._before_s = now_s
    if now_s + self._shortest_s > self._ends_s:
      self.model.stop_evaluating = True
