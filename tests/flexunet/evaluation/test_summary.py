"""From scores of volumes to the figures of a split, with sums that can be done by hand."""

import json
import math

import numpy as np
import pytest
import run_samples

from flexunet.evaluation import summary

NAMES = run_samples.NAMES
NAN = math.nan


def summarize(rows):
  return summary.summarize(rows, NAMES, ["dice", "hd95_mm"])


def test_foreground_dice_is_the_mean_over_volumes_of_their_classes():
  rows = [
      run_samples.row("A", NAMES[0], 1.0), run_samples.row("A", NAMES[1], 0.5),
      run_samples.row("B", NAMES[0], 0.5), run_samples.row("B", NAMES[1], NAN, truth=0, found=0),
  ]  # fmt: skip
  figures = summarize(rows)
  # A: (1 + 0.5) / 2; B: only its one class that has a Dice.
  assert figures["foreground_dice"]["mean"] == ((1.0 + 0.5) / 2 + 0.5) / 2
  assert figures["per_class"][NAMES[0]]["dice"]["mean"] == (1.0 + 0.5) / 2
  assert figures["per_class"][NAMES[1]]["dice"]["mean"] == 0.5


def test_empty_volumes_are_counted_and_left_out():
  rows = [
      run_samples.row("A", NAMES[0], 0.8), run_samples.row("A", NAMES[1], 0.6),
      run_samples.row("B", NAMES[0], NAN, 0, 0), run_samples.row("B", NAMES[1], NAN, 0, 0),
  ]  # fmt: skip
  figures = summarize(rows)
  assert figures["foreground_dice"]["mean"] == pytest.approx(0.7)
  assert figures["foreground_dice"]["n"] == 1 and figures["foreground_dice"]["n_empty"] == 1
  assert figures["per_class"][NAMES[0]]["dice"]["n_empty"] == 1
  assert figures["per_subject"][1]["subject"] == "B"
  assert math.isnan(figures["per_subject"][1]["foreground_dice"])


def test_a_false_alarm_counts_as_zero_but_not_where_the_class_is_present():
  rows = [run_samples.row("A", NAMES[0], 0.8), run_samples.row("B", NAMES[0], 0.0, truth=0)]
  entry = summary.summarize(rows, NAMES[:1], ["dice"])["per_class"][NAMES[0]]
  assert entry["dice"]["mean"] == 0.4
  assert entry["dice_where_present"]["mean"] == 0.8
  assert entry["presence"] == {
      "both_present": 1, "missed": 0, "false_alarm": 1, "both_empty": 0
  }  # fmt: skip


def test_a_subject_with_two_volumes_counts_once_per_subject_and_twice_per_volume():
  rows = [run_samples.row("A", NAMES[0], dice) for dice in (0.2, 0.4)]
  rows[1]["volume"] = "A_second"
  rows.append(run_samples.row("B", NAMES[0], 0.9))
  figures = summary.summarize(rows, NAMES[:1], ["dice"])
  assert figures["foreground_dice"]["mean"] == pytest.approx((0.2 + 0.4 + 0.9) / 3)
  assert figures["per_subject"][0]["foreground_dice"] == pytest.approx(0.3)
  assert figures["per_subject"][0]["volumes"] == 2


def test_volumes_of_one_name_but_two_subjects_stay_two():
  rows = [run_samples.row("A", NAMES[0], 0.2), run_samples.row("B", NAMES[0], 0.4)]
  for row in rows:
    row["volume"] = "scan"
  assert summary.foreground_dice(rows) == {("A", "scan"): 0.2, ("B", "scan"): 0.4}


def test_statistics_of_known_numbers():
  figures = summary.statistics([1.0, NAN, 3.0, 5.0])
  assert figures == {"mean": 3.0, "median": 3.0, "sd": 2.0, "min": 1.0, "max": 5.0, "n": 3}


def test_the_spread_of_a_single_value_is_not_defined():
  assert math.isnan(summary.statistics([0.5])["sd"])


def test_the_interval_counts_subjects_not_volumes():
  # Four volumes each of six subjects, all alike: volumes alone would claim a narrow interval.
  subjects = [0.2, 0.3, 0.5, 0.6, 0.8, 0.9]
  one = summary.subject_interval(subjects, list("ABCDEF"))
  four = summary.subject_interval(subjects * 4, list("ABCDEF") * 4)
  assert (four["low"], four["high"]) == pytest.approx((one["low"], one["high"]))
  assert one["n"] == four["n"] == 6
  single = summary.subject_interval(subjects * 4, [str(k) for k in range(24)])
  assert single["high"] - single["low"] < 0.6 * (one["high"] - one["low"])


def test_the_interval_is_no_minimum_and_maximum_and_stays_within_the_possible():
  # Of three subjects there was one: their minimum and maximum.
  assert summary.subject_interval([0.5, 0.7, 0.9], list("ABC")) is None
  values = [0.1, 0.9, 0.95, 0.97, 0.99]
  found = summary.subject_interval(values, list("ABCDE"))
  assert 0 <= found["low"] < np.mean(values) < found["high"] <= 1
  # One in five failed: others may fare much worse than these, but hardly better.
  assert np.mean(values) - found["low"] > 2 * (found["high"] - np.mean(values))
  millimetres = summary.subject_interval([1.0, 9.0, 3.0, 4.0, 2.0], list("ABCDE"), math.inf)
  assert millimetres["low"] >= 0 and millimetres["high"] > 6


@pytest.mark.parametrize(
    ("values", "subjects"),
    [
        ([0.1, 0.9, 0.5, 0.6, NAN], "ABCDE"),  # Four have a value.
        ([0.4] * 6, "ABCDEF"),  # All alike.
        ([0.1] * 40 + [0.5, 0.6, 0.7, 0.8], "A" * 40 + "BCDE"),  # One has nearly all volumes.
    ],
)
def test_there_is_no_interval_where_the_spread_is_unknown(values, subjects):
  assert summary.subject_interval(values, list(subjects)) is None


def test_the_interval_says_what_it_is():
  found = summary.subject_interval([0.3, 0.5, 0.6, 0.9, 0.8], list("ABCDE"))
  assert found["level"] == 0.95 and found["n"] == 5 and "Student" in found["method"]


def test_every_score_has_its_interval_and_says_how_many_volumes_have_none():
  rows = [run_samples.row(name, NAMES[0], 0.5 + 0.05 * k) for k, name in enumerate("ABCDEFG")]
  for k, row in enumerate(rows):
    row["hd95_mm"] = 1.0 + k
  rows[6].update(hd95_mm=NAN, dice=0.0, status="missed")
  entry = summary.summarize(rows, NAMES[:1], ["dice", "hd95_mm"])["per_class"][NAMES[0]]
  assert (entry["hd95_mm"]["n"], entry["hd95_mm"]["n_undefined"]) == (6, 1)
  assert entry["hd95_mm"]["ci95"]["n"] == 6 and entry["hd95_mm"]["ci95"]["high"] > 1
  assert (entry["dice"]["n_undefined"], entry["dice"]["ci95"]["n"]) == (0, 7)
  assert entry["dice_where_present"]["ci95"]["n"] == 7


def test_strict_values_are_json_without_nan():
  strict = summary.strict({"a": NAN, "b": (np.float32(0.5), np.int64(3), None, "x")})
  assert json.loads(json.dumps(strict, allow_nan=False)) == {"a": None, "b": [0.5, 3, None, "x"]}
