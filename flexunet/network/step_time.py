"""How long a training step takes: predicted from steps that were measured once.

`step_times.json` holds steps of networks of several widths on machines of different speed (with
AVX-512, with AVX2), and the speed of a convolution alone on each, measured in the same minute
(`flexunet benchmark_step_times`; what it prints under `measured` of another machine is added to the
table). On any machine that convolution is timed again (`devices.convolution_speed`), and the steps
are scaled by the ratio of both. Pure Python: nothing is run here.
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
      fastest machine of the table.
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
  entries = sorted(_entries(machine.precision), key=_speed_of_a_core)
  convolution = machine.convolution_speed
  if convolution is None:
    convolution = _speed_of_a_core(entries[-1]) * machine.cores
  shares = [share_of_convolution(one["rows"], model.stem, model.base_filters) for one in entries]
  # Where convolutions are fast, the layers between them take the larger part of a step.
  speeds = [math.log(_speed_of_a_core(one)) for one in entries]
  share = float(np.interp(math.log(convolution / machine.cores), speeds, shares))
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


def _entries(precision: str) -> list[dict[str, Any]]:
  """Returns what was measured in a precision; in that of the first entry where it was not."""
  measured = table()["measured"]
  if precision not in {one["precision"] for one in measured}:
    precision = measured[0]["precision"]
  return [one for one in measured if one["precision"] == precision]


def _speed_of_a_core(entry: dict[str, Any]) -> float:
  """Returns the operations a second and core of the convolution that was timed for an entry."""
  return entry["convolution_speed"] / entry["cores"]


@functools.cache
def table() -> dict[str, Any]:
  """Returns the measured steps."""
  return files.read_json(TABLE)
