"""Learning rate over a run: a pure function of progress, so that it fits any length and resumes."""

from __future__ import annotations

import math


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
