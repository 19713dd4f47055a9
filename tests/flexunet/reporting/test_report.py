"""The report is one safe, self-contained page that says what a reader must know."""

import dataclasses
import html.parser
import io
import json
import re

import pytest
import run_samples
from PIL import Image

from flexunet import run_folder
from flexunet.config import DataConfig, TrainingConfig
from flexunet.core.errors import InputError
from flexunet.pipelines.augmentation.config import AugmentationConfig
from flexunet.reporting import report, training_section
from flexunet.training import callbacks, monitoring


@pytest.fixture(scope="module")
def page(tmp_path_factory):
  run = run_samples.evaluated_run(tmp_path_factory.mktemp("runs") / "run")
  return report.write_report(run.path).read_text(encoding="utf-8")


class Links(html.parser.HTMLParser):
  """Collects what a page refers to, and checks that each element is closed."""

  def __init__(self, text: str):
    super().__init__()
    self.targets, self.open, self.ids = [], [], set()
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    attributes = dict(attrs)
    self.targets += [attributes[key] for key in ("src", "href") if key in attributes]
    self.ids.add(attributes.get("id"))
    if tag not in ("meta", "img", "br", "wbr"):
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    pass

  def handle_endtag(self, tag):
    assert self.open.pop() == tag, f"</{tag}> closes nothing"


def test_the_page_refers_to_nothing_outside_itself(page):
  links = Links(page)
  assert links.open == []
  anchors = {target[1:] for target in links.targets if target.startswith("#")}
  assert anchors and anchors <= links.ids
  others = [target for target in links.targets if not target.startswith("#")]
  assert others and all(target.startswith("data:image/png;base64,") for target in others)
  assert not re.search(r"@import|url\((?!#)|<script|<link", page)


def test_the_page_holds_no_path_of_the_machine(page, tmp_path):
  assert "/secret/place" not in page and "data_dir" not in page
  assert str(tmp_path.parent) not in page


def test_settings_hold_no_path_and_no_augmentation_that_never_acts():
  run_config = dataclasses.replace(
      run_samples.run_config(),
      data=DataConfig(data_dir="/secret/a", cache_dir="/secret/b"),
      training=TrainingConfig(init_from="/secret/c", metrics=("dice", "iou")),
      augmentation=AugmentationConfig(
          augmentation="default", blur_probability=0.0, blur_sigma=1.0, noise_probability=0.125
      ),
  )
  section = training_section.settings_section(run_config)
  assert "/secret" not in section and "blur" not in section
  assert "noise_probability" in section and "dice, iou" in section


def test_a_setting_that_was_given_is_no_default():
  run_config = dataclasses.replace(
      run_samples.run_config(), training=TrainingConfig(max_minutes=5.0, seed=1)
  )
  section = training_section.settings_section(run_config)
  reasons = dict(re.findall(r"<code>(\w+)</code></td><td>[^<]*</td><td>([^<]*)</td>", section))
  # --max_minutes is 0 and --seed is 1 by default; planning had a reason for the fraction.
  assert (reasons["max_minutes"], reasons["seed"]) == ("given", "default")
  assert reasons["foreground_fraction"] == "31 % of the training slices hold foreground"


@pytest.mark.parametrize(
    ("training", "epoch"),
    [({}, 2), ({"monitor": "loss"}, 1), ({"monitor": "loss", "save_best": False}, 3)],
)
def test_the_marked_epoch_is_the_one_whose_weights_were_kept(training, epoch):
  rows = [{"epoch": n, "val_loss": loss, "val_foreground_dice": dice}
          for n, loss, dice in ((1, 0.5, 0.25), (2, 0.75, 0.5), (3, 0.625, 0.375))]  # fmt: skip
  settings = TrainingConfig(**training)
  assert training_section.kept_epoch([*rows, {"epoch": 4}], settings) == epoch


def test_among_equal_scores_the_later_epoch_is_the_kept_one():
  rows = [{"epoch": n, "val_loss": 1.0, "val_foreground_dice": 0.0} for n in (1, 2, 3)]
  assert training_section.kept_epoch(rows, TrainingConfig()) == 3


def test_a_validation_on_a_part_of_the_slices_is_stated():
  rows = [{"epoch": 1, "loss": 1.0, "val_loss": 1.0, "val_foreground_dice": 0.5}]
  part = {"slices": 40, "of": 400, "seconds": 9.5, "reason": "all would take about 95 s"}
  section = training_section.curves_section(rows, TrainingConfig(), part)
  assert "1 epoch." in section
  assert "Validated on 40 of 400 held-out slices: all would take about 95 s." in section
  assert "Volumes are scored by these slices" in section
  assert "held-out slices" not in training_section.curves_section(rows, TrainingConfig())


def test_a_history_of_nothing_has_no_section():
  assert training_section.curves_section([], TrainingConfig()) == ""


def test_epochs_without_a_validation_are_no_gaps_and_the_kept_one_is_marked():
  rows = [{"epoch": 1, "loss": 3.0, "dice_a_b": 0.5, "dice_c": 0.5},
          {"epoch": 2, "loss": 2.0, "val_dice_a_b": 0.25, "val_dice_c": 0.125},
          {"epoch": 3, "loss": 1.0}]  # fmt: skip
  drawn = {chart.title: chart for chart in training_section.history_charts(rows, kept=2)}
  assert {chart.mark_x for chart in drawn.values()} == {2}
  assert {chart.x_range for chart in drawn.values()} == {(1, 3)}
  assert [(line.name, line.x, line.y) for line in drawn["Loss"].lines] == [
      ("training", [1, 2, 3], [3.0, 2.0, 1.0]), ("validation", [], []),
  ]  # fmt: skip
  assert [(line.name, line.x, line.y) for line in drawn["Validation Dice per class"].lines] == [
      ("a b", [2], [0.25]), ("c", [2], [0.125]),
  ]  # fmt: skip


def test_curves_png_is_of_the_charts_that_have_something_to_show():
  rows = [{"epoch": 1, "loss": 1.0, "learning_rate": 0.5, "foreground_dice": float("nan")}]
  size = Image.open(io.BytesIO(monitoring.draw_curves(rows))).size
  assert size[0] == 2 * 460 * 1.5  # Loss and learning rate.


def test_names_cannot_break_the_page(page):
  assert "lesion <b>" not in page and "lesion &lt;b&gt;" in page


def test_classes_are_named_in_words(page):
  assert "grey matter" in page and "grey_matter" not in page


def test_figures_and_rules_are_on_the_page(page):
  assert "0.9987" in page  # dice_coef_multiclass, by that name.
  assert "dice_coef_multiclass" in page
  assert "Empty in only one of the two is a Dice of 0" in page
  for subject in ("S00", "S01", "S02", "S03"):
    assert subject in page
  assert "31 % of the training slices hold foreground" in page  # The reason of a knob.


def test_few_subjects_and_missing_spacing_are_said_before_the_figures(page):
  assert "only 4 subjects" in page
  assert "1 of 4 volumes without a known spacing" in page


def test_each_score_stands_beside_its_interval_and_the_volumes_without_one(tmp_path):
  text = report.render(run_samples.evaluated_run(tmp_path / "run", subjects=6))
  entry = json.loads((tmp_path / "run/evaluation/metrics.json").read_text())["test"]["per_class"]
  dice = entry["grey_matter"]["dice"]["ci95"]
  assert f"{dice['low']:.3f} to {dice['high']:.3f}" in text
  assert "n 5; none in 1" in text  # The distances of the lesion.
  assert "Simulated coverage" in text


def test_worst_and_best_cases_show_four_images_each(page):
  assert page.index("Worst cases") < page.index("Best cases")
  assert page.count("<img ") == 4 * 4


def test_the_best_epoch_is_marked_although_validation_was_rarer_than_epochs(page):
  assert "epoch 11, whose weights were kept" in page


def test_the_best_epoch_is_that_of_the_trainer():
  assert training_section.VALIDATION_SCORE == callbacks.MONITOR


def test_the_curves_say_what_is_pooled_and_what_is_a_mean_over_volumes(page):
  assert "Validation scores are means over the held-out volumes" in page
  rows = [{"epoch": 1.0, "foreground_dice": 0.9, "val_foreground_dice": 0.5,
           "val_pooled_foreground_dice": 0.8}]  # fmt: skip
  chart = next(one for one in training_section.history_charts(rows) if "Dice" in one.title)
  assert {line.name: list(line.y) for line in chart.lines} == {
      "training, pooled": [0.9], "validation": [0.5], "validation, pooled": [0.8],
  }  # fmt: skip


def test_a_run_in_training_has_a_report_too(tmp_path):
  run = run_folder.RunFolder.create(tmp_path / "run")
  run.write_config(run_samples.run_config())
  text = report.write_report(run).read_text()
  assert "Nothing has been evaluated yet" in text
  assert "Results on" not in text
  Links(text)


def test_an_older_checkpoint_and_other_data_are_stated(tmp_path):
  run = run_samples.evaluated_run(tmp_path / "run")
  run.model_keras.write_bytes(b"a newer model")
  other = run_samples.with_facts(run.read_config(), fingerprint="e" * 16)
  run.write_config(other)
  text = report.render(run)
  assert "earlier checkpoint" in text and "other records than the run was trained on" in text


def test_where_subjects_have_no_names_the_splits_of_training_are_marked_by_theirs(tmp_path):
  run = run_samples.evaluated_run(tmp_path / "run")
  figures = json.loads(run.metrics_json.read_text())
  figures["test"]["evaluated"]["subjects_also_trained_on"] = None
  run_samples.write_json(run.metrics_json, figures)
  config = run.read_config()
  data = dataclasses.replace(config.data, validation_split="test")
  run.write_config(dataclasses.replace(config, data=data))
  text = report.render(run)
  assert "chose the best checkpoint, so its figures are optimistic" in text
  assert "its subjects have no names" in text


def test_the_split_that_training_has_seen_least_of_comes_first(tmp_path):
  run = run_samples.evaluated_run(tmp_path / "run")
  figures = json.loads(run.metrics_json.read_text())["test"]
  splits = ("train", "validation", "test")
  run_samples.write_json(run.metrics_json, dict.fromkeys(splits, figures))
  text = report.render(run)
  assert "Mean foreground Dice, test" in text
  places = [text.index(f'id="results-{split}"') for split in splits]
  assert places == sorted(places, reverse=True)


@pytest.mark.parametrize("entry", [{"foreground_dice": {"mean": 0.5}}, {"form": 1}, None])
def test_scores_of_another_form_are_left_out_and_named(tmp_path, entry):
  run = run_samples.evaluated_run(tmp_path / "run")
  figures = json.loads(run.metrics_json.read_text())
  run_samples.write_json(run.metrics_json, {**figures, "train": entry})
  text = report.render(run)
  assert "<b>train</b>: its scores were written by another version" in text
  assert "Results on test" in text and "Results on train" not in text


def test_a_folder_that_is_no_run_is_refused(tmp_path):
  with pytest.raises(InputError, match=r"config\.json"):
    report.write_report(tmp_path)


def test_damaged_metrics_name_their_file(tmp_path):
  run = run_samples.evaluated_run(tmp_path / "run")
  run.metrics_json.write_text("{")
  with pytest.raises(InputError, match=r"metrics\.json"):
    report.render(run)
