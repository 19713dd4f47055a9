"""The plan of a run in five lines, before it trains: data, network, time, training, what is more.

`flexunet train` says them, `flexunet plan` and `flexunet.plan` give them without training.
"""

from __future__ import annotations

import datetime
import textwrap
from collections.abc import Sequence

from flexunet import config
from flexunet.core import machine, progress
from flexunet.network import cost
from flexunet.presets import budgets
from flexunet.training import forecast, input_pipeline

_COLUMNS, _INDENT = 80, 9


def lines(
    run_config: config.RunConfig,
    opened: input_pipeline.TrainingData,
    device_names: Sequence[str],
    expected: forecast.Forecast,
) -> list[str]:
  """Returns the five lines; a long one is wrapped.

  Args:
    run_config: Complete.
    opened: Its data.
    device_names: Those it may train on, e.g. ["CPU"].
    expected: What the run will take.
  """
  return [
      data_line(opened),
      network_line(run_config, device_names),
      time_line(run_config.training, expected),
      training_line(run_config),
      more_line(run_config),
  ]


def data_line(opened: input_pipeline.TrainingData) -> str:
  """Returns the line that says what is trained and validated on."""
  parts = []
  for what, table in (("train", opened.train), ("validate", opened.validation)):
    subjects = len(set(table.subject.tolist()) - {""})
    people = f"{progress.count(subjects, 'subject')}, " if subjects else ""
    parts.append(f"{what} on {people}{progress.count(len(table), 'slice')}")
  return _line("Data", f"{opened.source.name}: {'; '.join(parts)}")


def network_line(run_config: config.RunConfig, device_names: Sequence[str]) -> str:
  """Returns the line of the network and what it computes on."""
  model, settings = run_config.model, run_config.training
  size = "x".join(map(str, [*model.image_size, model.image_channels]))
  deepest = model.stages()[-1].filters
  filters = f"{model.base_filters}..{deepest}" if model.num_layers > 1 else f"{deepest}"
  device = ", ".join(sorted(set(device_names)))
  device += f" x {len(device_names)}" if len(device_names) > 1 else ""
  if device == "CPU":
    device += f" ({machine.available_cpus()} cores)"
  return _line(
      "Network",
      f"{size} pixels, {model.num_layers} stages of {filters} filters,"
      f" {cost.count_parameters(model) / 1e6:.2f} M parameters;"
      f" {device}, {settings.precision.removeprefix('mixed_')}",
  )


def time_line(settings: config.TrainingConfig, expected: forecast.Forecast) -> str:
  """Returns the line of steps, end and memory."""
  ends = datetime.datetime.now() + datetime.timedelta(seconds=expected.seconds)
  if settings.max_minutes:
    length = f"at most {settings.max_minutes:g} minutes"
  else:
    length = f"{progress.count(settings.epochs, 'epoch')}, {duration(expected.seconds)}"
  day = "" if expected.seconds < 12 * 3600 else f"{ends:%d %b} "
  return _line(
      "Time",
      f"{length}, until {day}{ends:%H:%M}; about {_rounded(expected.steps):,} steps of"
      f" {expected.step_seconds:.2g} s, {expected.memory_bytes / 1e9:.1f} GB of memory"
      f" ({expected.basis})",
  )


def training_line(run_config: config.RunConfig) -> str:
  """Returns the line of loss, optimizer and augmentation, with the reason for the last."""
  settings = run_config.training
  patch_hw = run_config.data.patch_hw
  patches = f" patches of {'x'.join(map(str, patch_hw))} pixels" if patch_hw else ""
  why = run_config.reasons.get("augmentation", f"preset {run_config.augmentation.augmentation}")
  return _line(
      "Training",
      f"batches of {settings.batch_size}{patches}, {settings.optimizer} {settings.learning_rate:g},"
      f" {settings.loss}; augmentation {why}",
  )


def more_line(run_config: config.RunConfig) -> str:
  """Returns what the user can do for a better answer than this run's."""
  settings = run_config.training
  budget = budgets.BUDGETS.get(settings.budget or "")
  if budget is not None:
    parts = [budget.more]
  elif settings.max_minutes:
    parts = [f"--max_minutes={2 * settings.max_minutes:g}, or flexunet cross_validate"]
  else:
    parts = ["--budget=best, or flexunet cross_validate"]
  if run_config.laterality.mirroring:
    parts.append("later flexunet predict --tta=mirror")
  return _line("More", "; ".join(parts))


def duration(seconds: float) -> str:
  """Returns a length of time for the user, about as exact as it is known."""
  if seconds < 90:
    return f"about {_rounded(seconds):g} s"
  if seconds < 90 * 60:
    return f"about {_rounded(seconds / 60):g} minutes"
  return f"about {_rounded(seconds / 3600, 1):g} hours"


def _rounded(number: float, places: int = 0) -> float:
  """Returns two significant digits of what is larger than that, without a fraction."""
  if number >= 100:
    power = 10 ** (len(str(int(number))) - 2)
    return round(number / power) * power
  return round(number, places) if places else round(number)


def _line(title: str, text: str) -> str:
  return textwrap.fill(
      text, _COLUMNS, initial_indent=title.ljust(_INDENT), subsequent_indent=" " * _INDENT,
      break_long_words=False, break_on_hyphens=False,
  )  # fmt: skip
