"""The report's part on disturbed scans says what was found, and nothing where nothing was."""

import numpy as np
import pytest
import run_samples

from flexunet.evaluation import stress_summary
from flexunet.evaluation.stress_examples import StressExample, read, write
from flexunet.reporting import charts, stress_section

NAMES = run_samples.NAMES


def grade(strength, dice, **changes):
  return {"strength": strength, "dice": dice, "low": dice - 0.1, "high": dice + 0.1,
          "ceiling": 1.0, "false_alarms": 0, "per_class": {}, **changes}  # fmt: skip


def disturbance(name, title, unit, dices, **changes):
  """Returns figures with the strengths 1, 2, 3 and a Dice of 0.8 undisturbed."""
  strengths = [1.0, 2.0, 3.0]
  fall = stress_summary.fall_point(0.8, 0.0, strengths, dices)
  return {
      "name": name, "title": title, "what": "what it is", "unit": unit, "neutral": 0.0,
      "graded": True, "volumes": 2, "clean": grade(0.0, 0.8), "fall": fall,
      "grades": [grade(*pair) for pair in zip(strengths, dices, strict=True)],
      "per_class_fall": {NAMES[1]: fall}, "most_fragile_class": NAMES[1], **changes,
  }  # fmt: skip


@pytest.fixture
def entry():
  return {
      "split": "test", "volumes_with_foreground": 2, "model_sha256": "a",
      "clean": {"dice": 0.8, "per_class": dict.fromkeys(NAMES, 0.8)},
      "disturbances": [
          disturbance("blur", "Blur", "mm", [0.5, 0.4, 0.3]),
          disturbance("noise", "Noise", "of the window", [0.8, 0.7, 0.6]),
          disturbance("bias", "Bias field", "", [0.8, 0.8, 0.79]),
      ],
      "orientation": None,
      "skipped": [{"name": "missing", "title": "Missing slices", "reason": "no <volumes>"}],
      "rule": "The rule.",
  }  # fmt: skip


def section(entry, examples=(), model_sha256="a"):
  return stress_section.stress_section(entry, examples, run_samples.SCHEME, model_sha256)


def test_without_a_test_there_is_no_section():
  assert section(None) == ""


def test_falls_within_before_and_beyond_the_strengths_are_said(entry):
  page = section(entry)
  assert "<b>150 %</b>" in page  # Of 0.8 and 0.7 at 1 and 2: 0.75 at 1.5, a share of the window.
  assert "before 1 mm, the mildest" in page
  assert "beyond 3, the largest" in page
  assert "lesion &lt;b&gt;: before 1 mm" in page and "no &lt;volumes&gt;" in page


def test_a_chart_stands_for_each_graded_disturbance_with_its_limits(entry):
  page = section(entry)
  assert page.count("<svg") == 3 and "ceiling</text>" not in page
  entry["disturbances"][0]["grades"][2]["ceiling"] = 0.7
  assert "ceiling" in charts.svg(stress_section._chart(entry["disturbances"][0], (0, 1)))


def test_the_signal_to_noise_ratio_stands_beside_the_strength_of_noise(entry):
  for one in entry["disturbances"][1]["grades"]:
    one["snr"] = 12.0 / one["strength"]
  assert "<b>150 %</b> (SNR 8.0)" in section(entry)


def test_a_test_of_another_network_is_called_so(entry):
  assert "another model.keras" not in section(entry)
  assert "another model.keras" in section(entry, model_sha256="b")


def test_examples_come_back_from_their_file_and_are_shown_with_their_strength(entry, tmp_path):
  label = np.zeros((40, 30), np.uint8)
  label[10:20, 10:20] = 2
  made = [
      StressExample(np.full((40, 30), 90, np.uint8), label, label, name, strength, "S<1>", 7, 1.0)
      for name, strength in (("clean", 0.0), ("blur", 1.0))
  ]
  write(tmp_path / "stress_test.npz", made)
  stored = read(tmp_path / "stress_test.npz")
  assert [one.name for one in stored] == ["clean", "blur"]
  assert np.array_equal(stored[1].prediction, label) and stored[1].slice_index == 7
  page = section(entry, stored)
  assert ">undisturbed</figcaption>" in page and ">Blur 1 mm</figcaption>" in page
  assert "S&lt;1&gt;" in page


def test_a_volume_without_a_class_that_gets_one_is_said(entry):
  entry["disturbances"][0]["grades"][1]["false_alarms"] = 3
  assert "Blur: up to 3 false alarms" in section(entry)
