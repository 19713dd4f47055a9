"""How long a training step takes: predicted from steps that were measured once.

`step_times.json` holds steps of networks of several widths on one machine, and the speed of a
convolution alone on it, measured in the same minute (`flexunet benchmark_step_times`). On another
machine that convolution is timed again (`devices.convolution_speed`), and the steps are scaled by
the ratio of both. Pure Python: nothing is run here.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from typing import Any

import numpy as np

from flexunet.core import files
from flexunet.network import cost
from flexunet.network.architecture import ModelConfig

TABLE = pathlib.Path(__file__).with_name("step_times.json")
# What runs beside the steps of a trainer takes processors from them: two runs of five minutes, on
# patches of the hippocampus and of a whole-brain set, took 0.88 and 0.83 of the steps that bare
# ones would have in that time.
IN_TRAINER = 0.87
# Operations a second of a GPU in training: a guess at the lower end, none has been measured.
_GPU_SPEED = 10e12


@dataclasses.dataclass(frozen=True)
class Machine:
  """What a step runs on.

  Attributes:
    device: "cpu" or "gpu".
    cores: That training may use, of a CPU.
    precision: Of the layers' arithmetic, e.g. "mixed_bfloat16".
    convolution_speed: Operations a second of a convolution alone; None: as fast by core as the
      machine of the table.
  """

  device: str = "cpu"
  cores: int = 1
  precision: str = "float32"
  convolution_speed: float | None = None

  @property
  def basis(self) -> str:
    """What a prediction for it rests on, for the user."""
    if self.device == "gpu":
      return "a guess: no GPU has been measured"
    if self.convolution_speed is None:
      return "by the number of cores"
    return "from the speed of a convolution here and measured steps"


def operations(model: ModelConfig, batch_size: int) -> float:
  """Returns the operations of a step: three forward passes, two for a multiply-add."""
  return 6.0 * batch_size * sum(row.multiply_adds for row in cost.rows(model))


def step_seconds(model: ModelConfig, batch_size: int, machine: Machine) -> float:
  """Returns the expected duration of a training step.

  Args:
    model: Complete.
    batch_size: Images a step.
    machine: What it runs on.
  """
  return operations(model, batch_size) / speed(model, machine)


def speed(model: ModelConfig, machine: Machine) -> float:
  """Returns the operations a second that a training step of a network is expected to do."""
  if machine.device == "gpu":
    return _GPU_SPEED
  entry = _entry(machine.precision)
  convolution = machine.convolution_speed
  if convolution is None:
    convolution = entry["convolution_speed"] * machine.cores / entry["cores"]
  share = share_of_convolution(entry["rows"], model.stem, model.base_filters)
  return IN_TRAINER * convolution * share


def share_of_convolution(
    rows: list[dict[str, Any]], stem: str | None, base_filters: int
) -> float:
  """Returns the share of a convolution's speed that steps of such a network reach.

  Between measured widths it is interpolated over the logarithm; beyond them it stays.

  Args:
    rows: Measured steps: stem, base_filters, and `share`, the figure for each.
    stem: Form of the first stage; of one that was not measured all rows count.
    base_filters: Channels of the first stage.
  """
  rows = [row for row in rows if row["stem"] == stem] or rows
  widths = sorted({row["base_filters"] for row in rows})
  means = [
      np.exp(np.mean([math.log(row["share"]) for row in rows if row["base_filters"] == width]))
      for width in widths
  ]
  return float(np.interp(math.log(base_filters), np.log(widths), means))


def _entry(precision: str) -> dict[str, Any]:
  """Returns what was measured in a precision; in the first of the table where it was not."""
  measured = table()["measured"]
  return next((one for one in measured if one["precision"] == precision), measured[0])


@functools.cache
def table() -> dict[str, Any]:
  """Returns the measured steps."""
  return files.read_json(TABLE)
