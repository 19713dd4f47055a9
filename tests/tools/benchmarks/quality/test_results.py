"""Results are summed up by arithmetic that can be followed by hand, and drawn."""

import pytest
from PIL import Image

from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.tools.benchmarks.quality import chart, results


def result(name, system, minutes, seed, dice=None, error=None, validation=None, mirrored=None):
  settings = {"set": name, "system": system, "minutes": minutes, "seed": seed}
  made = {
      "form": results.FORM, "settings": settings, "machine": {"processors": 2, "load_before": seed},
  }  # fmt: skip
  if error:
    return {**made, "status": "failed", "error": error}
  return {
      **made, "status": "done", "training_s": 60 * minutes, "with_setup_s": 60 * minutes + 30,
      "steps": 100 * seed, "scores": {"foreground_dice": dice}, "validation_dice": validation,
      "mirrored_scores": mirrored and {"foreground_dice": mirrored},
  }  # fmt: skip


@pytest.fixture
def found():
  return [
      result("hip", "ours", 1.0, 1, 0.80, validation=0.7, mirrored=0.83),
      result("hip", "ours", 1.0, 2, 0.84, validation=0.8, mirrored=0.85),
      result("ms", "ours", 1.0, 1, 0.50), result("ms", "ours", 1.0, 2, 0.60, validation=0.45),
      result("hip", "peer", 1.0, 1, 0.70), result("hip", "peer", 1.0, 2, error="no memory"),
      result("ms", "peer", 1.0, 1, error="no volumes"),
      result("hip", "ours", 5.0, 1, 0.9),
  ]  # fmt: skip


def test_means_are_over_seeds_then_over_sets(found):
  summary = results.summarize(found)
  first = summary["entries"][0]
  assert first["dice"] == {"mean": pytest.approx(0.82), "low": 0.80, "high": 0.84, "seeds": 2}
  assert (first["training_s"], first["with_setup_s"], first["steps"]) == (60, 90, 150)
  assert first["validation_dice"] == pytest.approx(0.75)
  assert first["mirrored_dice"] == pytest.approx(0.84)
  means = {(one["system"], one["minutes"]): one for one in summary["means"]}
  assert means["ours", 1.0]["dice"] == pytest.approx((0.82 + 0.55) / 2)
  assert means["peer", 1.0] == {"system": "peer", "minutes": 1.0, "dice": 0.70, "sets": 1}
  assert summary["machines"] == [{"processors": 2}]


def test_the_table_has_a_mean_only_where_a_system_has_all_sets(found):
  table = results.rows(results.summarize(found))
  assert table[0] == (
      "minutes", "system", "mean", "hip", "ms",
      "mirrored views", "validation", "training s", "with set-up s", "steps",
  )  # fmt: skip
  both = ("0.820 ± 0.020", "0.550 ± 0.050")
  assert table[1] == ("1", "ours", "0.685", *both, "0.840", "0.600", "60", "90", "150")
  assert table[2] == ("1", "peer", "-", "0.700 (one failed)", "failed", "-", "-", "60", "90", "100")
  assert table[3] == ("5", "ours", "-", "0.900", "", "-", "-", "300", "330", "100")
  lines = results.markdown(table).splitlines()
  assert lines[1] == "|---|---|" + 8 * "---:|" and len(lines) == 5


def test_the_chart_has_a_panel_for_each_set_and_names_nothing_of_the_machine(found, tmp_path):
  png, svg = chart.draw(results.summarize(found), tmp_path / "dice", {"hip": "Hippocampus"})
  with Image.open(png) as image:
    assert image.width > 900 and not image.info.get("Software")
  text = svg.read_text()
  for words in ("Hippocampus", ">ms<", "mean over sets", "ours", "peer", "minutes of training"):
    assert words in text
  assert "date" not in text and str(tmp_path) not in text


def test_the_same_results_draw_the_same_bytes(found, tmp_path):
  summary = results.summarize(found)
  first, second = (chart.draw(summary, tmp_path / name) for name in ("a", "b"))
  assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_finished_result_is_kept_a_failed_one_tried_again_another_one_refused(tmp_path):
  path = results.path_of(tmp_path, "key")
  made = result("hip", "ours", 1.0, 1, 0.8)
  assert not results.finished(path, made["settings"])
  files.write_json(path, made)
  assert results.finished(path, made["settings"])
  with pytest.raises(InputError, match="was made with seed=1, and now it is 2"):
    results.finished(path, {**made["settings"], "seed": 2})
  files.write_json(path, result("hip", "ours", 1.0, 1, error="no memory"))
  assert not results.finished(path, made["settings"])


def test_the_facts_of_a_machine_do_not_name_it():
  facts = results.machine_facts()
  assert set(facts) == {"processors", "cpu", "memory_gib", "load_before"}
  assert facts["processors"] >= 1 and facts["memory_gib"] > 0
