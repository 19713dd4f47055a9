"""What the end of a time-limited run costs: its last validation, and what is written after it.

Measured once it has happened; estimated from the training steps before. Times are seconds.
"""

from __future__ import annotations

import collections
import dataclasses

import numpy as np

# Where validating all held-out slices takes more than this share of the limit, a part is validated.
VALIDATION_SHARE = 0.1
_SLACK_SHARE = 0.01  # A share of the limit, for all that is not counted.
_VALIDATION_MARGIN = 1.2  # Two validations never take quite the same time.
# A forward pass is about a third of a training step; loss and scores come on top.
_FORWARD_SHARE = 0.4
_TRACING_S = 2.0  # Tracing the graph of a validation.
_FIRST_STEP_EXTRA_S = 10.0  # At most so much of the first step is taken for tracing and compiling.
_STEPS_TO_JUDGE_BY = 5  # With fewer steps the shortest counts: some of them trace and compile.
# With checksums and hashes: 1.5 GB took 7 to 15 s on two cores.
_WRITTEN_BYTES_PER_S = 150e6


@dataclasses.dataclass(frozen=True)
class Workload:
  """What a validation and an epoch's end consist of.

  Attributes:
    validation_batches: Batches that hold all held-out slices.
    preview_batches: Slices drawn as previews, in training batches.
    written_bytes: Bytes of the saved model and of a checkpoint.
  """

  validation_batches: int = 0
  preview_batches: float = 0.0
  written_bytes: int = 0


class TimeBudget:
  """How much of the limit must be kept for the end of the run.

  Attributes:
    validation_s: Duration of the longest validation so far; 0: none yet.
    closing_s: Duration of the longest epoch's end after its validation; 0: none yet.
  """

  def __init__(self, limit_s: float, work: Workload, steps_per_execution: int = 1):
    self._limit_s, self._work = limit_s, work
    self._steps_per_execution = steps_per_execution
    self._executions: collections.deque[float] = collections.deque(maxlen=50)
    self.validation_s = 0.0
    self.closing_s = 0.0

  def add_steps(self, seconds: float, steps: int) -> None:
    """Takes note of one execution, which may be a shorter one."""
    self._executions.append(seconds * self._steps_per_execution / steps)

  @property
  def execution_s(self) -> float:
    """Expected duration of the next call of the training step; 0: none has been measured."""
    if not self._executions:
      return 0.0
    if len(self._executions) >= _STEPS_TO_JUDGE_BY:
      return float(np.median(self._executions))
    first, *others = self._executions
    return min([max(0.0, first - _FIRST_STEP_EXTRA_S), *others])

  @property
  def _forward_s(self) -> float:
    return _FORWARD_SHARE * self.execution_s / self._steps_per_execution

  @property
  def expected_validation_s(self) -> float:
    """Expected duration of the next validation."""
    expected_s = self.validation_s
    if not expected_s and self._executions:
      expected_s = _TRACING_S + self._forward_s * self._work.validation_batches
    # A longer one is cut short, though not before its first batch.
    return max(min(expected_s, VALIDATION_SHARE * self._limit_s), self._forward_s)

  @property
  def expected_closing_s(self) -> float:
    """Expected duration of the next epoch's end after its validation."""
    if self.closing_s:
      return self.closing_s
    drawn_s = self._forward_s * self._work.preview_batches
    return drawn_s + self._work.written_bytes / _WRITTEN_BYTES_PER_S

  @property
  def slack_s(self) -> float:
    """What is kept for all that is not counted."""
    return _SLACK_SHARE * self._limit_s

  @property
  def reserve_s(self) -> float:
    """Time that a validation and the end of its epoch need together."""
    return _VALIDATION_MARGIN * self.expected_validation_s + self.expected_closing_s + self.slack_s

  @property
  def whole_validation_fits(self) -> bool:
    """Whether a validation has shown that it keeps to its share."""
    return 0 < self.validation_s <= VALIDATION_SHARE * self._limit_s

  def validation_allowance_s(self, elapsed_s: float, last: bool) -> float:
    """Returns how long a validation that begins now may take.

    Args:
      elapsed_s: Time since the start of the run.
      last: Whether nothing follows but the end, so that all that is left may be used.
    """
    left_s = self._limit_s - elapsed_s - self.expected_closing_s - self.slack_s
    if last:
      return max(0.0, left_s)
    # As much must be left for the last one, and something to train in between.
    halved_s = (left_s - self.expected_closing_s - self.execution_s) / 2
    return max(0.0, min(VALIDATION_SHARE * self._limit_s, halved_s))

  def time_for_two(self, elapsed_s: float) -> bool:
    """Returns whether there is time for a validation now, a step, and the last validation."""
    return elapsed_s + 2 * self.reserve_s + self.execution_s <= self._limit_s
