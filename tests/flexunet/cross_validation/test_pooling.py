"""The table over all folds: each subject once, with the statistics of an evaluation."""

import csv
import json

import pytest
import run_samples

from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.cross_validation import folder as folders
from flexunet.cross_validation import page, pooling
from flexunet.evaluation import summary


def cross_validation(path, firsts=(0, 4)):
  """Returns (folder, plan) of folds of four subjects each; their held-out split is called test."""
  folder = folders.CrossValidationFolder(path)
  for fold, first in enumerate(firsts):
    run_samples.evaluated_run(folder.run(fold).path, first=first)
  return folder, folders.Plan(
      dataset="blobs/slices/1.0.0", fingerprint="f" * 16, validation_split="test",
      folds=tuple(range(len(firsts))), given={"epochs": 3},
      trained={f"fold_{fold}": "0" * 64 for fold in range(len(firsts))},
  )  # fmt: skip


def test_the_pooled_figures_are_those_of_all_subjects_together(tmp_path):
  folder, plan = cross_validation(tmp_path)
  results, rows = pooling.pool(folder, plan)
  # By hand: the rows of both tables.
  both = [row for fold in (0, 1) for row in pooling.read_rows(folder.run(fold), "test")]
  assert len(both) == 16 and {row["subject"] for row in both} == {f"S0{n}" for n in range(8)}
  names = ["dice", "hd95_mm", "surface_dice_1mm"]
  expected = summary.strict(summary.summarize(both, run_samples.NAMES, names))
  pooled = dict(results["pooled"])
  evaluated = pooled.pop("evaluated")
  assert pooled == expected and pooled["foreground_dice"]["ci95"]["n"] == 8
  assert (evaluated["subjects"], evaluated["volumes"], evaluated["slices"]) == (8, 8, 248)
  assert [row["fold"] for row in rows] == [0] * 8 + [1] * 8
  # The same voxel warning of both folds stands there once, that of the chosen epoch first.
  assert evaluated["warnings"][0].endswith("a little optimistic.")
  assert evaluated["warnings"][1:] == [
      "in each fold: surface Dice at 1 mm: the tolerance is below the voxel size"
  ]


def test_confusion_is_pooled_by_voxels_and_its_shares_follow():
  entries = [{"classes": ["background", "a"], "pixels": pixels, "shares": None}
             for pixels in ([[8, 2], [0, 0]], [[1, 9], [1, 3]])]  # fmt: skip
  found = pooling._confusion(entries)
  assert found["pixels"] == [[9, 11], [1, 3]]
  assert found["shares"] == [[0.45, 0.55], [0.25, 0.75]]


def test_each_fold_has_a_line_and_their_spread_is_that_of_its_means(tmp_path):
  folder, plan = cross_validation(tmp_path)
  results, _ = pooling.pool(folder, plan)
  first, second = results["per_fold"]
  stored = files.read_json(folder.run(1).metrics_json)["test"]
  assert second["foreground_dice"]["mean"] == stored["foreground_dice"]["mean"]
  assert first["subjects"] == ["S00", "S01", "S02", "S03"] and second["run"] == "fold_1"
  # The eleventh epoch is validated with the highest score, 1 - 0.9 / 11.
  assert (first["best_epoch"], first["epochs"]) == (11, 11)
  means = [one["foreground_dice"]["mean"] for one in (first, second)]
  assert results["between_folds"]["min"] == min(means)
  assert results["between_folds"]["sd"] == pytest.approx(abs(means[0] - means[1]) / 2**0.5)


def test_a_subject_that_two_folds_held_out_is_refused(tmp_path):
  folder, plan = cross_validation(tmp_path, firsts=(0, 3))
  with pytest.raises(InputError, match="'S03' was by fold_0 and fold_1"):
    pooling.pool(folder, plan)


def test_the_table_keeps_every_digit_and_leaves_undefined_cells_empty(tmp_path):
  folder, plan = cross_validation(tmp_path)
  _, rows = pooling.pool(folder, plan)
  table = list(csv.DictReader(pooling.table_bytes(rows).decode().splitlines()))
  assert [float(row["dice"]) if row["dice"] else None for row in table] == [
      None if row["dice"] != row["dice"] else row["dice"] for row in rows
  ]
  assert sum(not row["dice"] for row in table) == 1  # The second subject lacks a class.
  assert list(table[0])[:4] == ["fold", "subject", "volume", "class"]


def test_a_cell_that_is_no_number_names_file_and_column(tmp_path):
  folder, plan = cross_validation(tmp_path)
  path = folder.run(0).cases_csv
  path.write_text(path.read_text().replace("0.75", "x", 1))
  with pytest.raises(InputError, match="cases.csv must hold numbers in the column 'surface_dice"):
    pooling.pool(folder, plan)


def test_a_fold_is_scored_once_its_scores_are_of_its_network_and_of_these_tolerances(tmp_path):
  folder, _ = cross_validation(tmp_path)
  run = folder.run(0)
  assert pooling.is_scored(run, "test", "0" * 64, [1.0])
  assert not pooling.is_scored(run, "test", "1" * 64, [1.0])
  assert not pooling.is_scored(run, "test", "0" * 64, [1.0, 2.0])
  assert not pooling.is_scored(run, "validation", "0" * 64, [1.0])
  assert not pooling.is_scored(folder.run(7), "test", "0" * 64, [1.0])


def test_the_page_links_to_the_folds_names_their_subjects_and_escapes_every_name(tmp_path):
  folder, plan = cross_validation(tmp_path)
  results, rows = pooling.pool(folder, plan)
  stored = json.loads(json.dumps(results))
  text = page.render(folder, plan, stored, rows)
  assert 'href="fold_0/report.html"' in text and 'href="fold_1/report.html"' in text
  assert "S00, S01, S02, S03" in text and "S04, S05, S06, S07" in text
  assert "8 subjects, each held out once" in text and "All folds have the same settings" in text
  assert "lesion <b>" not in text and "/secret" not in text
  assert "Worst cases" in text and "11 of 11" in text
