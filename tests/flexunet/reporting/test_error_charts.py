"""Charts of errors show their values where they are, and leave out what is not known."""

import math
import re

import pytest

from flexunet.reporting import charts, error_charts


def agreement(low: float, high: float, difference: list[float]) -> str:
  return charts.svg(
      error_charts.AgreementChart(
          title="Volume", mean=[10.0] * len(difference), difference=difference,
          bias=(low + high) / 2, low=low, high=high, color="#ff0000",
      )
  )  # fmt: skip


def test_bias_and_limits_stand_at_their_lines():
  drawn = agreement(-2.0, 4.0, [-1.0, 3.0])
  for text in ("upper limit +4", "bias +1", "lower limit -2"):
    assert text in drawn.replace("\u2212", "-")


def test_limits_that_are_close_share_one_text():
  drawn = agreement(-50.0, -46.0, [-47.0, -49.0]).replace("\u2212", "-")
  assert "bias -48, limits -50 to -46" in drawn and "upper limit" not in drawn


def test_a_single_pair_without_any_spread_is_drawn():
  assert "limits +0 to +0" in agreement(0.0, 0.0, [0.0])


def test_without_values_nothing_is_drawn():
  nothing = math.nan
  assert agreement(-1.0, 1.0, []) == ""
  steps = error_charts.StepChart(
      title="a", series=[charts.Values("missed", [nothing, nothing], "#ff0000")], edges=[0, 1, 2]
  )
  bins = error_charts.ReliabilityChart(
      title="a", confidence=[nothing], accuracy=[nothing], share=[0.0]
  )
  assert charts.svg(steps) == charts.svg(bins) == ""


def test_a_bin_without_a_value_is_a_gap():
  def path(values):
    drawn = charts.svg(
        error_charts.StepChart(
            title="a", series=[charts.Values("missed", values, "#ff0000")], edges=[0, 1, 2, 3]
        )
    )
    return max(re.findall(r'd="([^"]+)"[^>]*stroke: #ff0000', drawn), key=len)

  assert path([0.5, 0.25, 0.5]).count("M") == 1
  assert path([0.5, math.nan, 0.5]).count("M") == 2


@pytest.mark.parametrize("share", [[0.25, 0.75], [0.5, 0.5]])
def test_dots_of_a_reliability_diagram_are_as_large_as_their_share(share):
  drawn = charts.svg(
      error_charts.ReliabilityChart(
          title="a", confidence=[0.25, 0.75], accuracy=[0.5, 0.5], share=share
      )
  )
  dots = re.findall(r'<path (?:id="\w+" )?d="M [^"]*C[^"]*"', drawn)
  assert len(set(dots)) >= (2 if share[0] != share[1] else 1)
