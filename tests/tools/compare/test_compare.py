"""The comparing program on made-up runs: same subjects only, settings first, pages that hold."""

from __future__ import annotations

import csv
import dataclasses
import json
import pathlib
import re

import forked
import pytest
import run_samples

from flexunet import ensemble_folder, run_folder
from flexunet.core.errors import InputError
from flexunet.evaluation import stress_summary
from flexunet.tools.compare import comparison, page, stress_table

COLUMNS = ("split", "subject", "volume", "class", "dice", "hd95_mm", "reference_ml", "predicted_ml",
           "reference_pixels", "slices")  # fmt: skip


def run_with(path: pathlib.Path, dice: dict[str, float], pixels: int = 90, **training):
  """Writes a run whose two classes have these Dice scores; HD95 is 10 (1 - Dice)."""
  run = run_samples.evaluated_run(path)
  kept = run.read_config()
  run.config_json.unlink()
  run.manifest_json.unlink()
  run.write_config(
      dataclasses.replace(kept, training=dataclasses.replace(kept.training, **training))
  )
  write_cases(run.cases_csv, dice, pixels)
  return run


def write_cases(path: pathlib.Path, dice: dict[str, float], pixels: int = 90) -> None:
  with open(path, "w", newline="", encoding="utf-8") as stream:
    writer = csv.DictWriter(stream, COLUMNS)
    writer.writeheader()
    for subject, value in dice.items():
      for name in run_samples.NAMES:
        writer.writerow(dict(zip(COLUMNS, (
            "test", subject, f"{subject}_scan", name, value, 10 * (1 - value), 8.0, 8.0 * value,
            pixels, 12,
        ), strict=True)))  # fmt: skip


@pytest.fixture
def runs(tmp_path):
  """Two runs with seven subjects in common; the second is better by 0.01, 0.02, ..., 0.07."""
  common = {f"S{place}": 0.7 for place in range(7)}
  better = {name: 0.71 + place / 100 for place, name in enumerate(common)}
  run_with(tmp_path / "first", {**common, "only_first": 0.2})
  run_with(tmp_path / "second", better, learning_rate=5e-3)
  return [tmp_path / "first", tmp_path / "second"]


def test_only_common_subjects_count_and_others_are_named(runs):
  found = comparison.compare(runs, "test", "permutation")
  assert (found.subjects, found.volumes) == (7, 7)
  assert any("only_first" in line for line in found.warnings)
  first = found.results[0]
  assert (first.score, first.class_name) == ("dice", run_samples.NAMES[0])
  assert first.difference == pytest.approx(0.04) and first.wins == 7
  assert first.p == pytest.approx(2 / 128)
  assert first.p_holm == pytest.approx(4 / 128)  # Two classes.
  distance = next(one for one in found.results if one.score == "hd95_mm")
  assert distance.difference == pytest.approx(-0.4) and distance.wins == 7
  error = next(one for one in found.results if one.score == "volume_error_ml")
  assert error.mean_first == pytest.approx(2.4)  # |0.7 * 8 - 8| ml.


def test_settings_that_differ_are_named_with_their_values(runs):
  found = comparison.compare(runs, "test", "wilcoxon")
  assert found.settings == [("training.learning_rate", [1e-3, 5e-3])]


def test_other_grids_and_old_evaluations_are_warned_of(runs, tmp_path):
  run_with(tmp_path / "third", {f"S{place}": 0.8 for place in range(7)}, pixels=91)
  found = comparison.compare([runs[0], tmp_path / "third"], "test", "permutation")
  assert any(line.startswith("7 of 7 common volumes were scored on") for line in found.warnings)
  run = run_samples.run_folder.RunFolder.open(runs[1])
  run_samples.write_json(run.manifest_json, {"model_sha256": ["1" * 64]})
  found = comparison.compare(runs, "test", "permutation")
  assert "second was evaluated before its network changed. Evaluate it again." in found.warnings


def test_few_subjects_are_said_and_not_hidden(tmp_path):
  for name, dice in (("a", 0.5), ("b", 0.6)):
    run_with(tmp_path / name, {"S1": dice, "S2": dice, "S3": dice + 0.1})
  found = comparison.compare([tmp_path / "a", tmp_path / "b"], "test", "permutation")
  assert any("3 subjects: too few for a verdict" in line for line in found.notes)
  assert any("below 0.25" in line for line in found.notes)  # 2 / 2^3.


def test_a_cross_validation_is_compared_by_its_held_out_subjects(runs, tmp_path):
  folder = tmp_path / "cv"
  run_with(folder / "fold_0", {"S0": 0.1})
  write_cases(folder / "cases.csv", {f"S{place}": 0.75 for place in range(7)})
  found = comparison.compare([runs[0], folder], "test", "permutation")
  assert found.names == ["first", "cv"]
  assert found.results[0].difference == pytest.approx(0.05)
  assert ("data.fold", [-1, "each once"]) in found.settings


def test_an_ensemble_is_compared_with_its_member(runs, tmp_path):
  folder = tmp_path / "both"
  members = [run_samples.run_folder.RunFolder.open(path) for path in runs]
  for member in members:
    member.model_keras.write_bytes(b"network")
  together = ensemble_folder.EnsembleFolder(folder)
  together.evaluation.mkdir(parents=True)
  ensemble_folder.RunSet(tuple(members), (0.5, 0.5)).write(together)
  write_cases(together.cases_csv, {f"S{place}": 0.8 for place in range(7)})
  found = comparison.compare([runs[0], folder], "test", "permutation")
  assert found.names == ["first", "both"]
  assert found.results[0].difference == pytest.approx(0.1)
  assert ("ensemble.runs", [None, 2]) in found.settings


def test_folders_of_one_name_are_called_by_more_of_their_path(tmp_path):
  for name in ("x", "y"):
    run_with(tmp_path / name / "run", {"S1": 0.5, "S2": 0.6})
  found = comparison.compare([tmp_path / "x/run", tmp_path / "y/run"], "test", "permutation")
  assert found.names == ["x/run", "y/run"]


def test_what_cannot_be_compared_is_one_line(runs, tmp_path):
  def refused(paths, match, split="test"):
    with pytest.raises(InputError, match=match):
      comparison.compare(paths, split, "permutation")

  refused(runs[:1], "two runs or more")
  refused([runs[0], runs[0]], "named once")
  refused([runs[0], tmp_path / "nothing"], "does not exist")
  refused(runs, "holds: test", split="validation")
  other = run_with(tmp_path / "other", {"S0": 0.5})
  values = json.loads(other.config_json.read_text())
  values["dataset_facts"]["label_scheme"][1]["name"] = "vessel"
  run_samples.write_json(other.config_json, values)
  refused([runs[0], other.path], "same classes.*vessel")
  strangers = run_with(tmp_path / "strangers", {"X1": 0.5})
  refused([runs[0], strangers.path], "same subjects")


def test_the_page_is_self_contained_and_escapes_names(runs):
  found = comparison.compare(runs, "test", "permutation")
  html = page.render(found)
  assert "lesion &lt;b&gt;" in html and "<b> " not in html
  assert html.index('id="settings"') < html.index('id="scores"') < html.index('id="subjects"')
  assert html.count("<svg") == 6  # Three scores of two classes.
  assert not re.search(r'(?:src|href)="(?!#|data:)', html)


@pytest.mark.slow
def test_the_program_prints_tables_or_json_and_writes_a_page(runs, tmp_path):
  done = forked.command("compare", *runs, f"--output={tmp_path / 'page.html'}")
  assert done.returncode == 0, done.stderr
  assert "training.learning_rate" in done.stdout and "7 0 0" in done.stdout
  assert (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")
  values = json.loads(forked.command("compare", *runs, "--json").stdout)
  assert values["subjects"] == [f"S{place}" for place in range(7)]
  assert values["results"][0]["wins"] == 7
  wrong = forked.command("compare", *runs, "--output=x.pdf")
  assert wrong.returncode == 1 and "must end in .html" in wrong.stderr


def write_stress(path: pathlib.Path, strengths: dict[str, float], name: str) -> None:
  """Writes a stress test in which Dice has fallen at these strengths, in mm."""
  entries = [
      {"name": key, "title": key.capitalize(), "unit": "mm", "graded": True,
       "clean": {"dice": 0.8}, "grades": [{"strength": 1.0}, {"strength": 9.0}],
       "fall": {"status": "within", "strength": value, "place": 0.5}}
      for key, value in strengths.items()
  ]  # fmt: skip
  target = stress_summary.json_path(run_folder.RunFolder(path))
  values = {name: {"form": stress_summary.FORM, "disturbances": entries}}
  target.write_text(json.dumps(values), encoding="utf-8")


def test_strengths_at_which_dice_has_fallen_stand_side_by_side_where_all_runs_have_them(runs):
  found = comparison.compare(runs, "test", "permutation")
  assert found.to_json()["stress"] == [] and "Disturbed scans" not in page.render(found)
  write_stress(runs[0], {"blur": 3.0, "spacing": 2.5}, "test")
  write_stress(runs[1], {"spacing": 4.25}, "test")
  found = comparison.compare(runs, "test", "permutation")
  assert stress_table.rows(found.scored) == [
      ("Dice falls by 0.05 at", "first", "second"), ("Spacing", "2.5 mm", "4.25 mm")
  ]  # fmt: skip
  (entry,) = found.to_json()["stress"]
  assert [one["strength"] for one in entry["runs"]] == [2.5, 4.25]
  assert "Disturbed scans" in page.render(found) and "4.25 mm" in page.render(found)


def test_stress_tests_of_another_split_are_not_compared(runs):
  for path in runs:
    write_stress(path, {"blur": 3.0}, "validation")
  assert stress_table.rows(comparison.compare(runs, "test", "permutation").scored) == []
