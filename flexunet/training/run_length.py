"""How long a run will be: known where epochs are counted, estimated where time ends it."""

from __future__ import annotations

import dataclasses
import math

from flexunet import config
from flexunet.network import inspection, knobs
from flexunet.training.network_plan import Facts

# Operations a second in training, to estimate what a time limit allows: two cores did 110e9 each
# with bfloat16, 57e9 without. That of a GPU is a guess at the lower end.
_CPU_CORE_SPEED = 80e9
_GPU_SPEED = 10e12


def steps_per_pass(
    training: config.TrainingConfig, data: config.DataConfig, facts: Facts
) -> int:
  """Returns the steps of one pass over the training slices."""
  size = training.batch_size
  uniform = max(1, size - round(size * data.foreground_fraction))
  return max(1, math.ceil(len(facts.train) / uniform))


def expected_steps(
    model: config.ModelConfig,
    data: config.DataConfig,
    training: config.TrainingConfig,
    facts: Facts,
) -> float:
  """Returns the steps of the run; with a time limit a rough guess, at most those of its epochs.

  Args:
    model, data, training: Planned as far as network, drawing, batch and epochs go.
    facts: Of the data and the machine.
  """
  steps = training.epochs * data.epoch_passes * steps_per_pass(training, data, facts)
  if not training.max_minutes:
    return steps
  shape = knobs.Knobs(**dataclasses.asdict(model))
  # A training step computes about three times what a prediction does, twice a multiply-add.
  work = 6 * sum(row.multiply_adds for row in inspection.rows(shape)) * training.batch_size
  speed = _GPU_SPEED if facts.device == "gpu" else _CPU_CORE_SPEED * facts.cpu_cores
  return min(steps, 60 * training.max_minutes * speed / work)


def expected_passes(
    model: config.ModelConfig,
    data: config.DataConfig,
    training: config.TrainingConfig,
    facts: Facts,
) -> tuple[float, str]:
  """Returns how often the run sees a slice, one with foreground where those are drawn, and why."""
  steps = expected_steps(model, data, training, facts)
  drawn = round(training.batch_size * data.foreground_fraction)
  passes = steps / steps_per_pass(training, data, facts)
  passes += steps * drawn / max(1, len(facts.train.foreground))
  what = "slices with foreground" if drawn else "the training slices"
  return passes, f"about {passes:.2g} passes over {what}"
