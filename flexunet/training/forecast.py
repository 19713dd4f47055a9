"""What a run will take: its steps, its time, its memory, before the first step.

Planning decides by these figures (a short run is planned otherwise than a long one), the lines
before training show them, and the manifest keeps them beside what the run has taken.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from flexunet import config
from flexunet.network import cost, step_time
from flexunet.pipelines.laterality import Laterality
from flexunet.pipelines.record_table import RecordTable

# Loading, tracing and compiling, and the report: before the first step and after the last.
_AROUND_S = 15.0
# A training step costs about three forward passes.
_FORWARD_PASSES = 3
# The framework itself with its libraries, the input pipeline, Python.
_FRAMEWORK_BYTES = 0.9e9


@dataclasses.dataclass(frozen=True)
class Facts:
  """What planning knows of the data and the machine.

  Attributes:
    train, validation: Records of the two splits.
    class_names: Classes of the dataset, background first.
    device: "cpu" or "gpu".
    cpu_cores: That training may use.
    memory_bytes: Free memory of the device; None where unknown.
    spacing_mm: Median (row, column) spacing of the slices; None where unknown.
    start: The network that training starts from, if any.
    laterality: Whether images may be mirrored.
    channel_names: Those of the dataset.
    precision: In which the layers will compute.
    convolution_speed: That of `step_time.Machine`; None where it was not measured.
  """

  train: RecordTable
  validation: RecordTable
  class_names: Sequence[str]
  device: str = "cpu"
  cpu_cores: int = 1
  memory_bytes: int | None = None
  spacing_mm: Sequence[float] | None = None
  start: config.ModelConfig | None = None
  laterality: Laterality = dataclasses.field(default_factory=Laterality)
  channel_names: Sequence[str] = ("image",)
  precision: str = "float32"
  convolution_speed: float | None = None

  @property
  def machine(self) -> step_time.Machine:
    """What a step runs on."""
    return step_time.Machine(
        self.device, self.cpu_cores, self.precision, self.convolution_speed
    )


@dataclasses.dataclass(frozen=True)
class Forecast:
  """What a run is expected to take.

  Attributes:
    steps: Training steps.
    step_seconds: Duration of one.
    seconds: Of the whole run.
    memory_bytes: Of the process on a CPU, of the device on a GPU.
    basis: What the times rest on, for the user.
  """

  steps: int
  step_seconds: float
  seconds: float
  memory_bytes: int
  basis: str

  def to_json(self) -> dict[str, Any]:
    """Returns the figures as the manifest keeps them."""
    return {
        "steps": self.steps,
        "step_seconds": round(self.step_seconds, 4),
        "seconds": round(self.seconds, 1),
        "memory_bytes": self.memory_bytes,
        "basis": self.basis,
    }


def forecast(
    model: config.ModelConfig,
    data: config.DataConfig,
    training: config.TrainingConfig,
    facts: Facts,
    num_sharing: int = 1,
    faster: int | None = None,
) -> Forecast:
  """Returns what a run is expected to take, its validations included.

  Args:
    model, data, training: Complete.
    facts: What is known of the data and the machine.
    num_sharing: Devices that share a batch.
    faster: Times the hardware of one device that they are; None: as many.
  """
  seen = data.step_model(model)
  step_s = step_time.step_seconds(seen, training.batch_size, facts.machine)
  step_s /= faster or num_sharing
  share = validation_share(model, training, data, facts) / (training.validation_epochs or 1)
  with_validation_s = step_s * (1.0 + share)
  steps = training.epochs * data.epoch_passes * steps_per_pass(training, data, facts)
  if training.max_minutes:
    room_s = max(0.0, 60.0 * training.max_minutes - _AROUND_S)
    steps = max(1, min(steps, int(room_s / with_validation_s)))
  seconds = _AROUND_S + steps * with_validation_s
  if training.max_minutes:
    seconds = min(seconds, 60.0 * training.max_minutes)
  return Forecast(
      steps=steps,
      step_seconds=step_s,
      seconds=seconds,
      memory_bytes=memory_bytes(seen, training, facts.device, num_sharing),
      basis=facts.machine.basis,
  )


def memory_bytes(
    model: config.ModelConfig, training: config.TrainingConfig, device: str, num_sharing: int = 1
) -> int:
  """Returns the memory that training is expected to need, with the program itself on a CPU."""
  needed = _step_bytes(model, training, training.batch_size, num_sharing)
  return int(needed + (_FRAMEWORK_BYTES if device == "cpu" else 0))


def _step_bytes(
    model: config.ModelConfig, training: config.TrainingConfig, batch_size: int, num_sharing: int
) -> int:
  number = 2 if training.precision.startswith("mixed") else 4
  share = math.ceil(batch_size / num_sharing)
  return cost.training_bytes(model, share, bytes_per_number=number)


def memory_warning(
    model: config.ModelConfig,
    training: config.TrainingConfig,
    free_bytes: int | None,
    num_sharing: int = 1,
    size_flag: str = "--image_size",
) -> str | None:
  """Returns a line for the user when a training step is estimated to need more than is free.

  A CPU's kernel ends a process that runs out of memory without a word, so it is said before.

  Args:
    model, training: Complete; the network as a step sees it.
    free_bytes: Free on each device; None where unknown.
    num_sharing: Devices that share a batch.
    size_flag: Names the size of what a step sees.
  """
  size = training.batch_size

  def needed(batch_size: int) -> int:
    return _step_bytes(model, training, batch_size, num_sharing)

  if free_bytes is None or needed(size) <= free_bytes:
    return None
  fits = next((n for n in range(size - 1, 0, -1) if needed(n) <= free_bytes), None)
  would = f"{fits} would fit" if fits else "not even 1 would fit"
  return (
      f"Warning: a training step needs about {needed(size) / 1e9:.1f} GB by the estimate of"
      f" `flexunet inspect`, but {free_bytes / 1e9:.1f} GB are free: the system may end"
      f" the run without a word. Lower --batch_size (now {size}; {would}), {size_flag} (now"
      f" {','.join(map(str, model.image_size))}) or --base_filters (now {model.base_filters})."
  )


def validation_share(
    model: config.ModelConfig,
    training: config.TrainingConfig,
    data: config.DataConfig,
    facts: Facts,
) -> float:
  """Returns the time of a validation as a share of that of an epoch's steps."""
  steps = data.epoch_passes * steps_per_pass(training, data, facts)
  seen = steps * training.batch_size * data.share_of_slice(model)
  return len(facts.validation) / max(1, _FORWARD_PASSES * seen)


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
  """Returns the steps that planning decides by: with a time limit at most those of its epochs.

  Args:
    model, data, training: Planned as far as network, drawing, batch and epochs go.
    facts: What is known of the data and the machine.
  """
  steps = training.epochs * data.epoch_passes * steps_per_pass(training, data, facts)
  if not training.max_minutes:
    return steps
  seen = data.step_model(model)
  step_s = step_time.step_seconds(seen, training.batch_size, facts.machine)
  return min(steps, 60.0 * training.max_minutes / step_s)


def passes_per_step(
    model: config.ModelConfig,
    data: config.DataConfig,
    training: config.TrainingConfig,
    facts: Facts,
) -> tuple[float, str]:
  """Returns which part of a pass a step is, over the slices with foreground where those are drawn.

  Returns:
    (the part, what is counted).
  """
  drawn = round(training.batch_size * data.foreground_fraction)
  part = 1.0 / steps_per_pass(training, data, facts) + drawn / max(1, len(facts.train.foreground))
  part *= data.share_of_slice(model)
  return part, "slices with foreground" if drawn else "the training slices"


def expected_passes(
    model: config.ModelConfig,
    data: config.DataConfig,
    training: config.TrainingConfig,
    facts: Facts,
) -> tuple[float, str]:
  """Returns how often the run sees a slice, one with foreground where those are drawn, and why."""
  part, what = passes_per_step(model, data, training, facts)
  passes = expected_steps(model, data, training, facts) * part
  return passes, f"about {passes:.2g} passes over {what}"
