"""`--budget` and `--network_size`: choices for people who do not know what to ask for.

A budget is a time, more or less by the data and the machine; what is given beside it wins. Times
and sizes are those of a CPU; on a GPU none has been measured.
"""

from __future__ import annotations

import dataclasses
import math

# Network size -> what it means. The filters of each are in `FILTERS`.
NETWORK_SIZES = {
    "S": "8 filters (GPU: 16), about a quarter of the operations of M; better in no measured time",
    "M": "16 filters (GPU: 32): the one that the measured results are of",
    "L": "32 filters (GPU: 64), about four times the operations of M; not compared yet",
}
# Device -> network size -> channels of the first stage. Those of a GPU are not measured.
FILTERS = {"cpu": {"S": 8, "M": 16, "L": 32}, "gpu": {"S": 16, "M": 32, "L": 64}}
DEFAULT_SIZE = "M"


@dataclasses.dataclass(frozen=True)
class Budget:
  """How long a run trains, and what.

  Attributes:
    minutes: Usual length.
    passes: How often each slice should be seen, those with foreground where they are drawn.
    more: What gives a better answer than this budget, for the user.
  """

  minutes: float
  passes: float
  more: str


# The minutes are those of the measured recipes; passes bring a run closer to what its data need.
BUDGETS = {
    "preview": Budget(2.0, 10, "--budget=standard"),
    "standard": Budget(15.0, 80, "--budget=best"),
    "best": Budget(
        60.0, 300,
        "flexunet cross_validate with the same flags: five networks that answer as one",
    ),
}  # fmt: skip
BUDGET_HELP = {name: f"about {budget.minutes:g} minutes" for name, budget in BUDGETS.items()}
# Small data end sooner and large ones later, by at most this factor.
_STRETCH = 2.0


def minutes_of(budget: Budget, seconds_per_pass: float) -> tuple[float, str]:
  """Returns how long a run of a budget trains, and why.

  Args:
    budget: One of `BUDGETS`.
    seconds_per_pass: Expected time in which each slice is seen once.
  """
  wanted = budget.passes * seconds_per_pass / 60.0
  minutes = min(max(wanted, budget.minutes / _STRETCH), budget.minutes * _STRETCH)
  minutes = math.ceil(minutes) if minutes > 5 else math.ceil(10 * minutes) / 10
  why = f"{budget.passes:g} passes over the slices would take about {_text(wanted)} here"
  if not budget.minutes / _STRETCH <= wanted <= budget.minutes * _STRETCH:
    low, high = budget.minutes / _STRETCH, budget.minutes * _STRETCH
    why += f", and the budget is {low:g} to {high:g} minutes"
  return minutes, why


def _text(minutes: float) -> str:
  return f"{minutes:.1f} minutes" if minutes < 10 else f"{minutes:,.0f} minutes"


def filters_of(network_size: str, device: str) -> int:
  """Returns the channels of the first stage, for "cpu" or "gpu"."""
  return FILTERS[device][network_size]


def chosen_size(network_size: str | None) -> tuple[str, str]:
  """Returns the network size that was given, or the usual one; and why."""
  if network_size:
    return network_size, "--network_size"
  return DEFAULT_SIZE, f"the usual size {DEFAULT_SIZE}"
