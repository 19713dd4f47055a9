"""Figures of stress tests follow from their rows by arithmetic that is repeated here."""

import math

import pytest

from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.evaluation import stress_summary as figures
from flexunet.evaluation.stress_summary import Row
from flexunet.run_folder import RunFolder

NAMES = ["grey", "white"]


def row(name, strength, volume, class_name="grey", truth=10, found=10, overlap=10, **changes):
  values = {"split": "test", "key": "k", "subject": volume, "ceiling": 1.0, **changes}
  return Row(
      disturbance=name, strength=strength, volume=volume, class_name=class_name,
      reference_pixels=truth, predicted_pixels=found, overlap_pixels=overlap, **values,
  )  # fmt: skip


def about(**changes):
  return {"name": "noise", "title": "Noise", "what": "", "unit": "of the window", "neutral": 0.0,
          "graded": True, **changes}  # fmt: skip


def test_the_fall_is_interpolated_between_two_strengths():
  # 0.90 at 2 and 0.80 at 4, from 0.95: 0.90 is reached exactly at 2; from 0.93, 0.88 at 2.4.
  found = figures.fall_point(0.93, 0.0, [2.0, 4.0], [0.90, 0.80])
  assert found["status"] == figures.WITHIN and found["strength"] == pytest.approx(2.4)
  # Of two strengths the second: a share of 0.2 on the way from the first to it.
  assert found["place"] == pytest.approx((1 + 0.2) / 2)


def test_a_fall_before_the_mildest_or_beyond_the_strongest_is_said_as_such():
  before = figures.fall_point(0.95, 0.0, [2.0, 4.0], [0.80, 0.70])
  assert (before["status"], before["strength"]) == (figures.BEFORE, None)
  beyond = figures.fall_point(0.95, 0.0, [2.0, 4.0], [0.94, 0.91])
  assert (beyond["status"], beyond["strength"]) == (figures.BEYOND, None)
  assert before["place"] < 0 < 1 < beyond["place"] <= 1.05


def test_strengths_may_run_down_and_the_first_crossing_counts():
  found = figures.fall_point(0.90, 1.0, [0.8, 0.6, 0.4, 0.2], [0.89, 0.81, 0.88, 0.5])
  assert found["strength"] == pytest.approx(0.8 - 0.2 * (0.89 - 0.85) / (0.89 - 0.81))


def test_classes_that_a_volume_lacks_are_false_alarms_and_no_dice():
  rows = [
      row("clean", "", "A"), row("clean", "", "A", "white", truth=0, found=0, overlap=0),
      row("noise", "0.1", "A", overlap=8),
      row("noise", "0.1", "A", "white", truth=0, found=5, overlap=0),
  ]  # fmt: skip
  own = figures.figures_of(figures.Table(rows), about(), [0.1], NAMES)
  assert own["clean"]["dice"] == 1.0
  assert own["grades"][0]["dice"] == pytest.approx(0.8)
  assert own["grades"][0]["false_alarms"] == 1 and own["clean"]["false_alarms"] == 0
  assert own["fall"]["status"] == figures.BEFORE
  assert list(own["per_class_fall"]) == ["grey"] and own["most_fragile_class"] == "grey"


def test_volumes_are_compared_with_themselves_undisturbed():
  rows = [
      row("clean", "", "A"), row("clean", "", "B", overlap=6), row("clean", "", "C", truth=0),
      row("noise", "0.1", "A", overlap=9), row("noise", "0.1", "C", truth=0, found=0, overlap=0),
  ]  # fmt: skip
  own = figures.figures_of(figures.Table(rows), about(), [0.1], NAMES)
  # B was not tried, C has no foreground.
  assert own["volumes"] == 1 and own["clean"]["dice"] == 1.0
  assert own["grades"][0]["fall"] == pytest.approx(0.1)
  assert figures.figures_of(figures.Table(rows[:3]), about(), [0.1], NAMES) is None


def test_the_mean_is_over_volumes_and_the_range_is_theirs():
  rows = [row("clean", "", name) for name in "AB"]
  rows += [row("noise", "0.1", "A", overlap=9), row("noise", "0.1", "B", overlap=5, ceiling=0.8)]
  grade = figures.figures_of(figures.Table(rows), about(), [0.1], NAMES)["grades"][0]
  assert grade["dice"] == pytest.approx(0.7)
  assert (grade["low"], grade["high"]) == (0.5, 0.9)
  assert grade["ceiling"] == pytest.approx(0.9)


def test_the_most_harmful_disturbance_stands_first_and_what_is_not_graded_last():
  def entry(name, **fall):
    return {"name": name, "fall": fall}

  entries = [
      entry("flip", status=figures.UNGRADED, place=-3.0),
      entry("late", **figures.fall_point(0.9, 0.0, [1.0, 2.0], [0.89, 0.80])),
      entry("never", **figures.fall_point(0.9, 0.0, [1.0, 2.0], [0.89, 0.88])),
      entry("at once", **figures.fall_point(0.9, 0.0, [1.0, 2.0], [0.50, 0.30])),
  ]
  assert [one["name"] for one in figures.by_fragility(entries)] == [
      "at once", "late", "never", "flip"
  ]  # fmt: skip


def test_strengths_are_said_with_their_unit():
  assert figures.quantity(2.4567, "mm") == "2.46 mm"
  assert figures.quantity(0.084, "of the window") == "8.4 %"
  assert figures.quantity(1.5, "") == "1.5"
  entry = {"unit": "mm", "grades": [{"strength": 1.5}, {"strength": 6.0}]}
  assert "before 1.5 mm, the mildest" in figures.fall_text(entry, {"status": "before"})
  assert "beyond 6 mm, the largest" in figures.fall_text(entry, {"status": "beyond"})


def test_rows_come_back_from_their_file_as_they_were(tmp_path):
  rows = [row("noise", "0.1", "A, the first"), row("clean", "", "B", ceiling=math.nan)]
  path = tmp_path / "evaluation" / "stress.csv"
  figures.write_rows(path, rows)
  first, second = figures.read_rows(path)
  assert first == rows[0] and math.isnan(second.ceiling)
  assert "class" in path.read_text().splitlines()[0].split(",")
  assert [entry.name for entry in path.parent.iterdir()] == ["stress.csv"]
  path.write_text(path.read_text().replace(",10,10,10,", ",10,ten,10,"))
  with pytest.raises(InputError, match="must be as the stress test wrote it"):
    figures.read_rows(path)


def test_figures_of_another_version_are_left_out_and_damage_is_one_line(tmp_path):
  run = RunFolder(tmp_path)
  assert figures.read_figures(run) == {}
  files.write_json(figures.json_path(run), {"test": {"form": figures.FORM}, "old": {"form": 0}})
  assert list(figures.read_figures(run)) == ["test"]
  files.write_json(figures.json_path(run), {"test": 3})
  with pytest.raises(InputError, match="Run it again"):
    figures.read_figures(run)


def test_scans_in_other_axes_are_counted_voxel_by_voxel():
  rows = [
      row("orientation", code, volume, "", 0, 0, 0, differing_voxels=count, voxels=100)
      for code, volume, count in (("PIR", "A", 0), ("PIR", "B", 3), ("SAL", "A", 0))
  ]
  found = figures.orientation_figures(rows)
  assert found["axes"] == {"PIR": 3, "SAL": 0} and found["volumes"] == 2
  assert "3 of 300 voxels have another label" in figures.orientation_text(found)
  assert figures.orientation_figures([]) is None
