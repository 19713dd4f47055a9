"""The plan of a run in five lines: what they say, and that they fit a terminal."""

import dataclasses

import pytest
import run_samples

from flexunet.presets import budgets
from flexunet.training import forecast, plan_lines

EXPECTED = forecast.Forecast(1234, 0.251, 300.0, 1_440_000_000, "by the number of cores")


def config(**training):
  made = run_samples.run_config()
  settings = dataclasses.replace(made.training, optimizer="adamw", **training)
  reasons = {"augmentation": "preset none: about 2.3 passes over the training slices, too few"}
  return dataclasses.replace(made, training=settings, reasons=reasons)


def lines(**training):
  made = config(**training)
  return [
      plan_lines.network_line(made, ["CPU"]), plan_lines.time_line(made.training, EXPECTED),
      plan_lines.training_line(made), plan_lines.more_line(made),
  ]  # fmt: skip


def test_a_line_is_wrapped_to_80_columns_under_its_title():
  for line in lines(max_minutes=5.0):
    first, *others = line.splitlines()
    assert len(first) <= 80 and first[:9].strip() and first[8] == " "
    assert all(len(one) <= 80 and one.startswith(" " * 9) for one in others)


def test_network_and_training_say_what_was_planned_and_why():
  network, _, training, _ = lines()
  assert "32x32x1 pixels" in network and "parameters" in network and "CPU (" in network
  text = " ".join(training.split())
  assert "batches of 4, adamw 0.001, dice; augmentation preset none" in text
  assert "too few" in text


def test_the_time_has_two_digits_and_an_end():
  timed = " ".join(lines(max_minutes=5.0)[1].split())
  assert "Time at most 5 minutes, until " in timed
  assert "about 1,200 steps of 0.25 s, 1.4 GB of memory (by the number of cores)" in timed
  assert "3 epochs, about 5 minutes, until" in " ".join(lines()[1].split())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(17.4, "about 17 s"), (260, "about 4 minutes"), (5000, "about 83 minutes"),
     (8000, "about 2.2 hours"), (400_000, "about 110 hours")],
)  # fmt: skip
def test_a_duration_is_as_exact_as_it_is_known(seconds, text):
  assert plan_lines.duration(seconds) == text


def test_what_is_more_follows_from_the_budget():
  assert "--budget=standard" in lines(budget="preview", max_minutes=2.0)[3]
  assert "cross_validate" in lines(budget="best", max_minutes=60.0)[3]
  assert "--max_minutes=10" in lines(max_minutes=5.0)[3]
  assert "--budget=best" in lines()[3]
  for budget in (None, *budgets.BUDGETS):
    assert "--tta=mirror" in lines(budget=budget)[3]


def test_views_are_not_proposed_to_a_run_that_must_not_be_mirrored():
  made = config(budget="best", max_minutes=60.0)
  laterality = dataclasses.replace(made.laterality, mirroring=False, reason="sides have names")
  made = dataclasses.replace(made, laterality=laterality)
  assert "tta" not in plan_lines.more_line(made)
