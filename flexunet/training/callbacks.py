"""What steers a run while it trains: learning rate, time, best model, early stopping.

Each callback gives its state as JSON and takes it back, so that a resumed run continues as if it
had never stopped. With --steps_per_execution above 1 they act once per execution. The learning
rate is a pure function of progress, so it fits a run of any length and resumes.
"""

from __future__ import annotations

import math
import time
from typing import Any

import keras
from absl import logging

from flexunet import run_folder
from flexunet.core import machine
from flexunet.distributed import hosts
from flexunet.training import time_budget

# Mean over the held-out volumes of the mean Dice of their classes, at the network's size.
MONITOR = "val_foreground_dice"
# Higher is better. The first number ranks kinds of scores, so that those of one kind are compared.
Score = tuple[int, float]
_NO_SCORE: Score = (-1, -math.inf)


class RunCallback(keras.callbacks.Callback):
  """A callback whose state can be saved and restored.

  `_STATE` names its attributes (numbers, strings, None) that change during the run.
  """

  _STATE: tuple[str, ...] = ()

  def state(self) -> dict[str, Any]:
    """Returns what JSON can hold of the callback."""
    return {name: getattr(self, name) for name in self._STATE}

  def load_state(self, state: dict[str, Any]) -> None:
    """Restores what `state` gave."""
    for name in self._STATE:
      setattr(self, name, state[name])


class RunClock(RunCallback):
  """Knows how far the run is: in steps, and in minutes where a limit is set.

  Attributes:
    step: Training steps done, over all epochs.
    total_steps: Steps of a run that nothing ends early.
    limit_s: Time limit in seconds; 0: none.
    stopped_limit_s: The limit that ended training; None while none has.
    budget: What the end of a limited run costs.
    validation_batches: Batches per validation, where all of them take too long; None: all.
  """

  def __init__(
      self,
      total_steps: int,
      max_minutes: float,
      work: time_budget.Workload | None = None,
      *,
      steps_per_epoch: int | None = None,
      steps_per_execution: int = 1,
  ):
    super().__init__()
    self._steps_per_epoch = steps_per_epoch or total_steps
    self._steps_per_execution = steps_per_execution
    self.total_steps = total_steps
    self.limit_s = 60.0 * max_minutes
    self.budget = time_budget.TimeBudget(
        self.limit_s, work or time_budget.Workload(), steps_per_execution
    )
    self.stopped_limit_s: float | None = None
    self.validation_batches: int | None = None
    self.step = 0
    self.previous_step = 0  # Before the last execution.
    self.spent_s = 0.0  # Before this process started, for a resumed run.
    self._agreed_s: float | None = None
    self.agree()
    self._started = self._step_started = self._now()
    self._validation_started: float | None = None
    self._last_validation_s = 0.0  # 0: none at this epoch's end.
    self._epoch_ended: float | None = None
    self._between_epochs_s: list[float] = []  # Validation, saving and drawing, in this process.

  def _now(self) -> float:
    return time.monotonic() if self._agreed_s is None else self._agreed_s

  def agree(self) -> None:
    """Takes the time of the first of several processes, where a limit makes decisions of it.

    All of them must call it at the same points of the run; time then stands still in between.
    """
    if self.limit_s and hosts.count() > 1:
      self._agreed_s = hosts.time_of_first(time.monotonic())

  @property
  def elapsed_s(self) -> float:
    """Time spent on the run so far, by all of its processes."""
    return self.spent_s + self._now() - self._started

  @property
  def progress(self) -> float:
    """Share of the run that is done, 0..1."""
    done = self.step / max(1, self.total_steps)
    if self.limit_s:
      done = max(done, self.elapsed_s / max(1e-3, self.limit_s - self.budget.reserve_s))
    return min(1.0, done)

  @property
  def left_s(self) -> float | None:
    """Time until the run ends, if nothing ends it early; None while that is unknown."""
    bounds = [max(0.0, self.limit_s - self.elapsed_s)] if self.limit_s else []
    if self.budget.execution_s:
      steps = max(0, self.total_steps - self.step)
      between_s = sum(self._between_epochs_s) / max(1, len(self._between_epochs_s))
      bounds.append(
          steps * self.budget.execution_s / self._steps_per_execution
          + math.ceil(steps / self._steps_per_epoch) * between_s
      )
    return min(bounds, default=None)

  def epochs_at(self, step: int) -> float:
    """Returns how many epochs were done after so many steps."""
    return step / self._steps_per_epoch

  def epoch_text(self) -> str:
    """Returns which epoch the last step belongs to, for the user."""
    epoch = math.ceil(self.step / self._steps_per_epoch)
    if self.limit_s:  # Time ends the run, not its epochs.
      return f"epoch {epoch}"
    return f"epoch {epoch}/{math.ceil(self.total_steps / self._steps_per_epoch)}"

  def position(self) -> str:
    """Returns how far the run is, for the user."""
    text = f"step {self.step}"
    if self.limit_s:
      return f"{text} after {self.elapsed_s / 60:.1f} of {self.limit_s / 60:.1f} minutes"
    return f"{text} of {self.total_steps}"

  def taken(self) -> dict[str, Any]:
    """Returns what the run has taken so far, by the names of `forecast.Forecast`.

    Time is that of all its processes, memory the most that this one has held.
    """
    step_s = self.budget.execution_s / self._steps_per_execution
    return {
        "steps": self.step,
        "step_seconds": round(step_s, 4),
        "seconds": round(self.elapsed_s, 1),
        "memory_bytes": int(machine.peak_mib() * 2**20),
    }

  def state(self) -> dict[str, Any]:
    """Returns the position, and what the ends of epochs have cost."""
    budget = self.budget
    return {
        **{name: getattr(self, name) for name in ("step", "stopped_limit_s", "validation_batches")},
        "spent_s": self.elapsed_s,
        "validation_s": budget.validation_s,
        "closing_s": budget.closing_s,
    }

  def load_state(self, state: dict[str, Any]) -> None:
    """Restores what `state` gave; time that passes from now on is added."""
    self.step, self.spent_s = state["step"], state["spent_s"]
    self.stopped_limit_s = state["stopped_limit_s"]
    self.budget.validation_s = state["validation_s"]
    self.budget.closing_s = state["closing_s"]
    self.validation_batches = state["validation_batches"]
    self.agree()
    self._started = self._now()
    self.previous_step = self.step

  def on_epoch_begin(self, epoch, logs=None):
    self.agree()
    self._step_started = now = self._now()
    if self._epoch_ended is not None:
      self._between_epochs_s.append(now - self._epoch_ended)
      if self._last_validation_s:
        closing_s = self._between_epochs_s[-1] - self._last_validation_s
        self.budget.closing_s = max(self.budget.closing_s, closing_s)
    self._epoch_ended, self._last_validation_s = None, 0.0

  def on_train_batch_end(self, batch, logs=None):
    self.previous_step = self.step
    # The last execution of an epoch can be a shorter one.
    left = self._steps_per_epoch - self.step % self._steps_per_epoch
    self.step += min(self._steps_per_execution, left)
    self.agree()
    # From end to end, so that waiting for data counts on every backend.
    now = self._now()
    self.budget.add_steps(now - self._step_started, self.step - self.previous_step)
    self._step_started = now
    needed_s = self.budget.execution_s + self.budget.reserve_s
    if self.limit_s and self.elapsed_s + needed_s >= self.limit_s:
      self.stopped_limit_s = self.limit_s
      self.model.stop_training = True

  def on_epoch_end(self, epoch, logs=None):
    self.agree()
    self._epoch_ended = self._now()

  def on_test_begin(self, logs=None):
    self.agree()
    self._validation_started = self._now()

  def on_test_end(self, logs=None):
    self.agree()
    if self._validation_started is not None:
      self._last_validation_s = self._now() - self._validation_started
      self.budget.validation_s = max(self.budget.validation_s, self._last_validation_s)

  def validate_on(self, batches: int) -> None:
    """Limits all validations from the last one on to so many batches."""
    self.validation_batches = batches
    self.budget.validation_s = self._last_validation_s


class LearningRate(RunCallback):
  """Sets the learning rate of each step: warm-up x schedule(progress) x plateau reductions."""

  _STATE = ("factor", "best_loss", "wait")

  def __init__(
      self,
      clock: RunClock,
      *,
      initial: float,
      schedule: str,
      warmup_steps: int,
      reduce_factor: float,
      reduce_patience: int,
  ):
    super().__init__()
    self._clock = clock
    self._initial, self._schedule, self._warmup_steps = initial, schedule, warmup_steps
    self._reduce_factor, self._reduce_patience = reduce_factor, reduce_patience
    self.factor = 1.0
    self.best_loss = math.inf
    self.wait = 0
    self.rate = initial  # Of the last step.

  def current(self) -> float:
    """Returns the learning rate of the next step."""
    rate = self._initial * self.factor * scale(self._schedule, self._clock.progress)
    return rate * warmup(self._clock.step, self._warmup_steps)

  def on_train_batch_begin(self, batch, logs=None):
    self.rate = self.current()
    self.model.optimizer.learning_rate.assign(self.rate)

  def on_epoch_end(self, epoch, logs=None):
    loss = (logs or {}).get("val_loss")
    if loss is None or not self._reduce_patience:
      return
    if loss < self.best_loss:
      self.best_loss, self.wait = float(loss), 0
      return
    self.wait += 1
    if self.wait >= self._reduce_patience:
      self.factor *= self._reduce_factor
      self.wait = 0


class _ScoreCallback(RunCallback):
  """Follows the score of the validations.

  Attributes:
    best: The best so far.
  """

  def __init__(self, monitor: str):
    super().__init__()
    self._monitor = monitor
    self.best = _NO_SCORE

  def load_state(self, state: dict[str, Any]) -> None:
    """Restores what `state` gave; JSON has no tuples."""
    super().load_state({**state, "best": tuple(state["best"])})


class BestModel(_ScoreCallback):
  """Keeps the model with the best validation score in the run folder, replaced in one step."""

  _STATE = ("best", "best_epoch")

  def __init__(
      self,
      run: run_folder.RunFolder,
      saved_model: keras.Model,
      monitor: str = "dice",
      best_only: bool = True,
  ):
    """Takes the model to save, which may differ from the one in training.

    Args:
      run: Where it goes.
      saved_model: The evaluation network.
      monitor: "dice" or "loss".
      best_only: False saves it at every validation.
    """
    super().__init__(monitor)
    self._run, self._saved_model, self._best_only = run, saved_model, best_only
    self.best_epoch: int | None = None

  def on_epoch_end(self, epoch, logs=None):
    score = score_of(logs or {}, self._monitor)
    if score is None:
      return
    # The later one of equal scores: where nothing has been found yet, all scores are 0, and the
    # weights that have learnt longest are the best there are.
    better = score >= self.best
    if better:
      self.best, self.best_epoch = score, epoch
    if better or not self._best_only:
      save_model(self._saved_model, self._run)


class EarlyStop(_ScoreCallback):
  """Ends the run after `patience` validations without a better score."""

  _STATE = ("best", "wait", "stopped_epoch")

  def __init__(self, patience: int, monitor: str = "dice"):
    super().__init__(monitor)
    self._patience = patience
    self.wait = 0
    self.stopped_epoch: int | None = None

  def on_epoch_end(self, epoch, logs=None):
    score = score_of(logs or {}, self._monitor)
    if score is None or not self._patience:
      return
    if score > self.best:
      self.best, self.wait = score, 0
      return
    self.wait += 1
    if self.wait >= self._patience:
      self.stopped_epoch = epoch
      self.model.stop_training = True
      logging.info("No better validation %s for %d epochs.", self._monitor, self._patience)


def score_of(logs: dict[str, Any], monitor: str) -> Score | None:
  """Returns the score of a validation by "dice" or "loss"; None where there was no validation.

  Dice is NaN where no class was found or there: any number ranks above it, and among such
  validations the loss decides.
  """
  figure = logs.get(MONITOR if monitor == "dice" else "val_loss")
  if figure is None:
    return None
  if monitor == "dice" and not math.isnan(figure):
    return (1, float(figure))
  return (0, -float(logs["val_loss"]))


def save_model(model: keras.Model, run: run_folder.RunFolder) -> None:
  """Writes `model.keras` so that a reader sees the old model or the new one, never half of one.

  Without the optimizer, which checkpoints hold: Adam's would make the file three times as large.
  """
  partial = run.path / ".model.partial.keras"
  try:
    keras.Model(model.input, model.output, name=model.name).save(partial)
    run.replace_model(partial)
  except BaseException:
    partial.unlink(missing_ok=True)
    raise


def scale(schedule: str, progress: float) -> float:
  """Returns the factor of the initial learning rate at `progress` 0..1 of the run.

  "cosine" follows SGDR without restarts (arXiv:1608.03983), "poly" has the power 0.9 of
  DeepLab (arXiv:1606.00915).
  """
  progress = min(max(progress, 0.0), 1.0)
  if schedule == "constant":
    return 1.0
  if schedule == "cosine":
    return 0.5 * (1.0 + math.cos(math.pi * progress))
  if schedule == "poly":
    return (1.0 - progress) ** 0.9
  raise ValueError(f"schedule must be constant, cosine or poly. Got: {schedule!r}.")


def warmup(step: int, warmup_steps: int) -> float:
  """Returns the factor of the linear rise over the first steps (step counts from 0)."""
  return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
