"""Times of steps follow from the table: between its widths, on other machines."""

import math

import pytest
import run_samples

from flexunet.network import cost, step_time

ROWS = [{"stem": "full", "base_filters": 8, "share": 0.2},
        {"stem": "full", "base_filters": 8, "share": 0.8},
        {"stem": "full", "base_filters": 32, "share": 0.9},
        {"stem": "half", "base_filters": 16, "share": 0.3}]  # fmt: skip


@pytest.mark.parametrize(
    ("width", "share"), [(8, 0.4), (32, 0.9), (16, 0.65), (2, 0.4), (100, 0.9)]
)
def test_shares_are_interpolated_over_the_logarithm_of_the_width(width, share):
  # The geometric mean of 0.2 and 0.8 is 0.4; 16 lies half way between 8 and 32.
  assert step_time.share_of_convolution(ROWS, "full", width) == pytest.approx(share)


def test_shares_are_those_of_the_same_first_stage_where_it_was_measured():
  assert step_time.share_of_convolution(ROWS, "half", 8) == pytest.approx(0.3)
  # Of another one all rows count: at 16 filters "half" has been measured alone.
  assert step_time.share_of_convolution(ROWS, "other", 16) == pytest.approx(0.3)


def model(filters=16):
  return run_samples.published(
      image_size=(96, 96), base_filters=filters, num_layers=5, stem="full",
      decoder_convolutions=2,
  )


def test_a_step_takes_its_operations_by_the_speed_of_the_machine():
  made = model()
  work = 6 * 8 * sum(row.multiply_adds for row in cost.rows(made))
  machine = step_time.Machine(precision="mixed_bfloat16", convolution_speed=1e11)
  measured = next(one["rows"] for one in step_time.table()["measured"]
                  if one["precision"] == "mixed_bfloat16")  # fmt: skip
  rows = [row for row in measured if (row["stem"], row["base_filters"]) == ("full", 16)]
  share = math.exp(sum(math.log(row["share"]) for row in rows) / len(rows))
  assert step_time.step_seconds(made, 8, machine) == pytest.approx(
      work / (step_time.IN_TRAINER * 1e11 * share)
  )


def test_between_measured_machines_the_share_is_interpolated():
  slow, fast = sorted(
      one["convolution_speed"] / one["cores"]
      for one in step_time.table()["measured"] if one["precision"] == "float32"
  )  # fmt: skip

  def share(speed_of_a_core):
    machine = step_time.Machine(cores=4, convolution_speed=4 * speed_of_a_core)
    return step_time.speed(model(), machine) / (step_time.IN_TRAINER * 4 * speed_of_a_core)

  # Layers that only move numbers are as slow on both, so they weigh less where convolutions do.
  assert share(slow) > share(fast)
  assert share(math.sqrt(slow * fast)) == pytest.approx((share(slow) + share(fast)) / 2)
  assert share(slow / 3) == share(slow) and share(3 * fast) == share(fast)


def test_without_a_measurement_speed_goes_by_the_cores():
  one, four = (step_time.speed(model(), step_time.Machine(cores=cores)) for cores in (1, 4))
  assert four == pytest.approx(4 * one)


def test_the_table_says_by_which_command_it_was_measured():
  table = step_time.table()
  assert "flexunet benchmark_step_times" in table["command"] and table["timed_by"]
  assert {one["precision"] for one in table["measured"]} == {"mixed_bfloat16", "float32"}
  for one in table["measured"]:
    assert {row["stem"] for row in one["rows"]} == {"full", "half_refined"}
    assert one["convolution_speed"] > 0 and one["cores"] > 0
    assert all(0 < row["share"] < 3 and row["base_filters"] > 0 for row in one["rows"])
