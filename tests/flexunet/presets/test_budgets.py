"""A budget becomes minutes by the size of the data and the speed of the machine."""

import pytest

from flexunet.presets import budgets


@pytest.mark.parametrize(
    ("seconds_per_pass", "minutes"),
    [(12.0, 2.0), (6.0, 1.0), (1.0, 1.0), (15.3, 2.6), (24.0, 4.0), (1000.0, 4.0)],
)
def test_a_preview_sees_each_slice_ten_times_within_its_bounds(seconds_per_pass, minutes):
  found, why = budgets.minutes_of(budgets.BUDGETS["preview"], seconds_per_pass)
  assert found == pytest.approx(minutes)
  assert "10 passes over the slices would take about" in why
  assert ("the budget is 1 to 4 minutes" in why) == (seconds_per_pass in (1.0, 1000.0))


def test_longer_budgets_ask_for_more():
  ordered = [budgets.BUDGETS[name] for name in ("preview", "standard", "best")]
  assert [one.minutes for one in ordered] == sorted(one.minutes for one in ordered)
  assert [one.passes for one in ordered] == sorted(one.passes for one in ordered)
  assert list(budgets.BUDGETS) == ["preview", "standard", "best"]


def test_every_size_has_filters_for_each_device_and_they_grow():
  for filters in budgets.FILTERS.values():
    assert list(filters) == list(budgets.NETWORK_SIZES) == ["S", "M", "L"]
    assert sorted(filters.values()) == list(filters.values())


def test_a_given_size_wins_over_the_usual_one():
  assert budgets.chosen_size("L") == ("L", "--network_size")
  assert budgets.chosen_size(None)[0] == budgets.DEFAULT_SIZE
