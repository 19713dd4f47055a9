"""Volumes are put together from records and scored at native resolution, in mm."""

import csv
import json

import dataset_samples
import numpy as np
import pytest
import run_samples

from flexunet import evaluate as program
from flexunet import run_folder, seen_subjects
from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.evaluation import evaluate, labelled_volumes
from flexunet.pipelines import readers
from flexunet.pipelines.dataset_source import open_dataset
from flexunet.prediction import opening

NAMES = dataset_samples.NAMES


DATASET = "blobs/slices/1.0.0"


def records(subject: str, count: int, height=20, width=26, **extras) -> list[dict]:
  """Returns the slices of one volume; later ones first, for order must come from the index."""
  made = []
  for k in reversed(range(count)):
    image, label = dataset_samples.blob_slice(height, width, seed=100 * ord(subject[0]) + k)
    made.append({
        "image": image, "label": label, "subject": subject, "volume": f"{subject}_scan",
        "slice_index": k, "spacing_mm": (1.0, 0.5), "slice_spacing_mm": 2.0, **extras,
    })  # fmt: skip
  return made


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  a, b = records("A", 4), records("B", 3, height=22)
  mixed = [record for pair in zip(a, [*b, a[0]]) for record in pair][:-1]
  healthy = records("C", 2)
  for record in healthy:
    record["image"], record["label"] = np.full_like(record["image"], 10), record["label"] * 0
  dataset_samples.write_dataset(
      folder,
      {
          "train": records("T", 2),
          "validation": records("V", 2),
          "test": [*mixed, *healthy],
          "unlabeled": records("U", 1),
      },
  )
  return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
  """A run whose network knows the classes by their brightness."""
  made = run_folder.RunFolder.create(tmp_path / "run")
  scheme = [{"name": name, "color": [9, 9, 200]} for name in NAMES]
  made.write_config(
      run_samples.with_facts(
          run_samples.run_config(),
          label_scheme=scheme,
          fingerprint=dataset_samples.FINGERPRINT,
      )
  )
  made.model_keras.write_bytes(b"model")
  remember(made, seen_subjects.SubjectsSeen(DATASET, frozenset("T"), frozenset("V")))
  monkeypatch.setattr(opening, "load_model", lambda run: run_samples.BrightnessNetwork())
  return made


def remember(run, *seen):
  """Lets the manifest of a run say whom it has seen."""
  entries = [one.to_json() for one in seen]
  files.write_json(run.manifest_json, {seen_subjects.KEY: entries} if seen else {})


def scores_of(run, splits, data_dir, **options):
  return evaluate.evaluate(
      run, splits, data_dir=data_dir, show_progress=False, **options
  )


def test_volumes_come_whole_and_in_order_from_mixed_records(data_dir):
  source = open_dataset("blobs", data_dir)
  volumes = list(labelled_volumes.read_volumes(source, readers.slice_table(source, "test")))
  assert [(v.subject, v.slice_index) for v in volumes] == [
      ("A", [0, 1, 2, 3]), ("B", [0, 1, 2]), ("C", [0, 1]),
  ]  # fmt: skip
  expected = dataset_samples.blob_slice(22, 26, seed=100 * ord("B") + 1)
  assert np.array_equal(volumes[1].images[1][..., 0], expected[0])
  assert np.array_equal(volumes[1].labels[1], expected[1])
  assert volumes[1].spacing_mm == (1.0, 0.5) and volumes[1].slice_spacing_mm == 2.0


def test_records_without_a_volume_are_volumes_of_their_own(data_dir):
  table = readers.slice_table(open_dataset("blobs", data_dir), "train")
  table.subject[:], table.volume[:] = "", ""
  assert labelled_volumes.volume_order(table)[1] == [("record_000000",) * 2, ("record_000001",) * 2]


def test_a_perfect_network_scores_one_and_empty_volumes_do_not_count(run, data_dir):
  figures = scores_of(run, ["test"], data_dir)["test"]
  assert figures["foreground_dice"]["mean"] == 1.0
  assert figures["foreground_dice"]["n"] == 2 and figures["foreground_dice"]["n_empty"] == 1
  assert figures["per_class"]["dim"]["hd95_mm"]["max"] == 0.0
  assert figures["published"]["pixel_accuracy"] == 1.0
  evaluated = figures["evaluated"]
  assert (evaluated["subjects"], evaluated["volumes"], evaluated["slices"]) == (3, 3, 9)
  assert evaluated["fingerprint"] == dataset_samples.FINGERPRINT
  assert evaluated["dataset_splits"]["train"] == {"subjects": 1, "volumes": 1, "slices": 2}


def test_volumes_are_scored_as_prediction_sees_them_at_the_pixel_size_of_training(
    run, data_dir, monkeypatch
):
  shapes = []

  class Watching(run_samples.BrightnessNetwork):
    def predict_on_batch(self, batch):
      shapes.append(tuple(np.ptp(np.argwhere(batch[0, ..., 0]), axis=0) + 1))
      return super().predict_on_batch(batch)

  monkeypatch.setattr(opening, "load_model", lambda run: Watching())
  sizes = {name: [1.0, 1.0] for name in ("low_mm", "median_mm", "high_mm")}
  run.write_config(run_samples.with_facts(run.read_config(), pixel_sizes=sizes))
  scores_of(run, ["train"], data_dir)
  # 20 x 26 pixels of 1 x 0.5 mm: 13 columns of 1 mm.
  assert set(shapes) == {(20, 13)}


def test_subjects_that_the_run_has_seen_are_named_whatever_the_splits_of_today(
    run, tmp_path, capsys
):
  # Built again with other splits: A and B were trained on, C validated on; today all are tested.
  remember(run, seen_subjects.SubjectsSeen(DATASET, frozenset("ABT"), frozenset("CV")))
  today = [*records("A", 1), *records("C", 1), *records("D", 1)]
  dataset_samples.write_dataset(
      tmp_path, {"train": records("E", 1), "validation": records("B", 1), "test": today}
  )
  figures = scores_of(run, ["test", "validation", "train"], tmp_path)
  evaluated = figures["test"]["evaluated"]
  assert evaluated["subjects_also_trained_on"] == ["A"]
  assert evaluated["subjects_also_validated_on"] == ["C"]
  leak, chose = evaluated["warnings"][-2:]
  assert leak.startswith("1 of 3 subjects (A) was trained on too")
  assert "optimistic: 1 of 3 subjects (C) was validated on" in chose
  (all_seen,) = figures["validation"]["evaluated"]["warnings"][-1:]
  assert all_seen.startswith("the network was trained on it: all its subjects were")
  assert figures["train"]["evaluated"]["subjects_also_trained_on"] == []
  said, report = capsys.readouterr().err, run.report_html.read_text()
  assert f"warning: test: {leak}" in said and leak in report and chose in report


def test_a_run_that_keeps_no_subjects_is_compared_with_the_splits_of_today_and_says_so(
    run, tmp_path
):
  remember(run)
  both = [*records("A", 2), *records("B", 2)]
  splits = {"train": both[:2], "validation": records("V", 1), "test": both}
  dataset_samples.write_dataset(tmp_path, splits)
  evaluated = scores_of(run, ["test"], tmp_path)["test"]["evaluated"]
  assert evaluated["subjects_also_trained_on"] == ["A"]
  assert any("does not say whom it was trained on" in text for text in evaluated["warnings"])


def test_subjects_of_the_networks_that_a_run_started_from_count_too(run, data_dir):
  remember(
      run,
      seen_subjects.SubjectsSeen(DATASET, frozenset("T"), frozenset("V")),
      seen_subjects.SubjectsSeen("blobs/other/2.0.0", frozenset("AX")),
      seen_subjects.SubjectsSeen("patients/slices/1.0.0", frozenset("BY")),
      seen_subjects.SubjectsSeen(None),
  )
  evaluated = scores_of(run, ["test"], data_dir)["test"]["evaluated"]
  assert evaluated["subjects_also_trained_on"] == ["A"]
  leak, elsewhere, unknown = evaluated["warnings"][-3:]
  assert "1 of 3 subjects (A)" in leak
  assert "1 of 3 subjects (B)" in elsewhere and "patients/slices/1.0.0" in elsewhere
  assert "not known whom it was trained on" in unknown


@pytest.mark.parametrize("entry", [{}, "x", [{}], [{"dataset": 1, "train": [], "validation": []}],
                                   [{"dataset": "a", "train": [1], "validation": []}]])  # fmt: skip
def test_a_damaged_list_of_subjects_is_one_line(run, data_dir, entry):
  files.write_json(run.manifest_json, {seen_subjects.KEY: entry or 5})
  with pytest.raises(InputError, match="subjects_seen must be as the run wrote it"):
    scores_of(run, ["test"], data_dir)


def test_scores_of_parts_of_volumes_say_so_everywhere(run, tmp_path, capsys):
  # Built by an earlier version: 2 slices of A were left out everywhere. Of B one is missing.
  gap = [record for record in records("B", 5) if record["slice_index"] != 2]
  splits = {"train": records("T", 1), "validation": records("V", 2),
            "test": [*records("A", 3), *gap]}  # fmt: skip
  version = dataset_samples.write_dataset(tmp_path, splits)
  report = json.loads((version / "build_report.json").read_text())
  report["slices_left_out"] = {"A_scan": {"no labelled pixel, by empty_slices": 2}}
  run_samples.write_json(version / "build_report.json", report)
  figures = scores_of(run, ["test", "validation"], tmp_path)
  evaluated = figures["test"]["evaluated"]
  assert evaluated["volumes_without_some_slices"] == 2
  warning = evaluated["warnings"][0]
  assert warning.startswith("2 of 2 volumes not whole: the build left out 2 slices: no labelled")
  assert f"warning: test: {warning}" in capsys.readouterr().err
  assert warning in run.report_html.read_text()
  shown = program.scores_text("test", figures["test"])
  assert "2 subjects, 2 volumes, 2 of them not whole" in shown
  assert figures["validation"]["evaluated"]["volumes_without_some_slices"] == 0
  assert "not whole" not in program.scores_text("validation", figures["validation"])


def test_the_published_figure_is_computed_as_published(run, data_dir):
  published = scores_of(run, ["validation"], data_dir)["validation"]["published"]
  # The network answers 0.8 at the true class of each of the 20 x 26 pixels of every slice.
  pixels = 20 * 26
  expected = (2 * 0.8 * pixels + 1) / (pixels + pixels + 1)
  assert published["dice_coef_multiclass"] == pytest.approx(expected, abs=1e-6)


def test_cases_have_a_row_for_each_volume_and_class_with_empty_cells_for_nothing(run, data_dir):
  scores_of(run, ["test"], data_dir)
  with open(run.cases_csv, newline="") as stream:
    reader = csv.DictReader(stream)
    rows = list(reader)
  assert reader.fieldnames[:5] == ["split", "subject", "volume", "class", "dice"]
  assert [(row["volume"], row["class"]) for row in rows] == [
      (f"{subject}_scan", name) for subject in "ABC" for name in NAMES[1:]
  ]
  assert rows[0]["dice"] == "1.0" and rows[-1]["dice"] == ""
  assert rows[-1]["status"] == "both_empty"


def test_each_tolerance_has_its_figure_column_and_place_in_the_report(run, data_dir):
  figures = scores_of(run, ["test"], data_dir, tolerances_mm=[3, 1, 2.5])["test"]
  names = [f"surface_dice_{kind}{number}mm" for kind in ("", "2d_") for number in (1, 2.5, 3)]
  assert [name for name in figures["per_class"]["dim"] if "surface" in name] == names
  assert figures["per_class"]["dim"]["surface_dice_2.5mm"]["mean"] == 1.0
  assert figures["evaluated"]["surface_tolerances_mm"] == [1, 2.5, 3]
  with open(run.cases_csv, newline="") as stream:
    columns = csv.DictReader(stream).fieldnames
  assert [name for name in columns if "surface" in name] == names
  report = run.report_html.read_text()
  assert "Surface Dice, 2.5 mm" in report and "lies within 3 mm" in report
  assert "between the centres of surface voxels" in report


def test_a_tolerance_below_the_voxel_is_a_warning_everywhere(run, data_dir, capsys):
  # Voxels of the test split are 2 x 1 x 0.5 mm.
  figures = scores_of(run, ["test"], data_dir, tolerances_mm=[1, 2])["test"]
  (warning,) = figures["evaluated"]["warnings"]
  assert warning.startswith("surface Dice at 1 mm: the tolerance is below the voxel size")
  assert "up to 2 mm, of 3 of 3 volumes" in warning
  assert warning in run.report_html.read_text() and warning in run.metrics_json.read_text()
  assert f"warning: test: {warning}" in capsys.readouterr().err
  assert not scores_of(run, ["test"], data_dir, tolerances_mm=[2])["test"]["evaluated"]["warnings"]


def test_splits_evaluated_before_are_kept_and_one_evaluated_again_is_replaced(run, data_dir):
  scores_of(run, ["validation"], data_dir)
  scores_of(run, ["test"], data_dir)
  scores_of(run, ["validation"], data_dir)
  metrics = json.loads(run.metrics_json.read_text(), parse_constant=pytest.fail)
  assert set(metrics) == {"test", "validation"}
  with open(run.cases_csv, newline="") as stream:
    splits = [row["split"] for row in csv.DictReader(stream)]
  assert splits.count("test") == 6 and splits.count("validation") == 2
  names = sorted(path.name for path in run.evaluation.iterdir())
  assert names == ["cases.csv", "examples_test.npz", "examples_validation.npz", "metrics.json"]
  assert "Results on validation" in run.report_html.read_text()


def test_figures_of_an_earlier_form_do_not_stay_beside_new_ones(run, data_dir):
  scores_of(run, ["validation"], data_dir)
  metrics = json.loads(run.metrics_json.read_text())
  del metrics["validation"]["form"]
  run_samples.write_json(run.metrics_json, metrics)
  scores_of(run, ["test"], data_dir)
  assert set(json.loads(run.metrics_json.read_text())) == {"test"}


def test_no_file_tells_where_it_was_made(run, data_dir):
  scores_of(run, ["test"], data_dir)
  for path in (run.metrics_json, run.cases_csv, run.report_html):
    assert str(data_dir) not in path.read_text() and "/secret" not in path.read_text()


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ([], "must name a split"),
        (["tset"], "Did you mean 'test'"),
        (["test", "unlabeled"], "no labels"),
    ],
)
def test_an_evaluation_of_nothing_is_an_error_before_any_work(run, data_dir, splits, message):
  with pytest.raises(InputError, match=message):
    scores_of(run, splits, data_dir)
  assert not run.evaluation.exists()


def test_other_records_are_refused_unless_allowed(run, data_dir):
  run.write_config(run_samples.with_facts(run.read_config(), fingerprint="e" * 16))
  with pytest.raises(InputError, match="--allow_other_data"):
    scores_of(run, ["test"], data_dir)
  figures = scores_of(run, ["test"], data_dir, allow_other_data=True)["test"]
  assert figures["evaluated"]["fingerprint"] == dataset_samples.FINGERPRINT


def test_a_second_evaluation_of_a_run_is_refused_while_one_writes(run, data_dir, tmp_path):
  scores_of(run, ["validation"], data_dir)
  before = run.metrics_json.read_text()
  with files.locked(run.evaluation, "--run_dir"):
    with pytest.raises(InputError, match=r"--run_dir .*evaluation must be free, but another"):
      scores_of(run, ["test"], data_dir)
    with files.locked(run.path, "--run_dir"):  # Training may continue.
      pass
  assert run.metrics_json.read_text() == before
  assert not list(run.evaluation.glob(".*"))


def test_other_classes_are_refused_even_then(run, data_dir):
  run.write_config(
      run_samples.with_facts(run.read_config(), label_scheme=run_samples.CLASSES)
  )
  with pytest.raises(InputError, match="must have the classes of the run"):
    scores_of(run, ["test"], data_dir, allow_other_data=True)


def test_distances_in_slices_are_not_averaged_with_those_in_three_dimensions(run, tmp_path):
  # A is gapless; of B every other slice was kept, and of its first one the label is gone.
  sparse = [record for record in records("B", 5) if record["slice_index"] % 2 == 0]
  sparse[-1] = {**sparse[-1], "label": sparse[-1]["label"] * 0}
  dataset_samples.write_dataset(tmp_path, {"train": records("T", 1),
                                           "test": records("A", 3) + sparse})  # fmt: skip
  figures = scores_of(run, ["test"], tmp_path)["test"]
  assert figures["evaluated"]["volumes_with_2d_distances"] == 1
  solid, flat = (figures["per_class"]["dim"][name] for name in ("hd95_mm", "hd95_2d_mm"))
  assert (solid["n"], solid["n_undefined"], solid["mean"]) == (1, 0, 0.0)
  assert (flat["n"], flat["n_undefined"], flat["mean"]) == (0, 1, None)
  assert figures["per_class"]["dim"]["slices_false_alarm"] == 1
  report = run.report_html.read_text()
  assert "1 of 2 volumes with gaps between slices" in report
  # Once for each of the two classes.
  assert "missed in a slice 0 times, and found in a slice without it 2 times" in report
  shown = program.scores_text("test", figures)
  assert "surfaces in 3-D: 1 volume\n" in shown and "within slices: 1 volume\n" in shown


@pytest.mark.parametrize(
    ("declared", "asked", "counted"),
    [(True, "auto", True), (False, "auto", False), (True, "off", False), (False, "on", True)],
)
def test_lesions_are_scored_where_the_dataset_declares_them_or_on_demand(
    run, data_dir, tmp_path, declared, asked, counted
):
  version = dataset_samples.write_dataset(
      tmp_path, {"train": records("T", 1), "test": records("A", 3)}
  )
  report = json.loads((version / "build_report.json").read_text())
  (version / "build_report.json").write_text(json.dumps({**report, "has_lesions": declared}))
  entry = scores_of(run, ["test"], tmp_path, lesions=asked, lesion_overlap=0.5)["test"]
  dim = entry["per_class"]["dim"]
  assert ("lesion_f1" in dim) == ("lesions" in entry["rules"]) == counted
  assert entry["evaluated"]["lesion_overlap"] == (0.5 if counted else None)
  shown = program.scores_text("test", entry)
  assert ("lesions, means over the volumes" in shown) == counted
  with open(run.cases_csv, encoding="utf-8") as stream:
    (first, *_) = csv.DictReader(stream)
  assert ("lesions_false_positive" in first) == counted
  if counted:
    # A perfect network: each of the lesions in the three slices is found and none is false.
    assert dim["lesion_f1"]["mean"] == 1.0 and dim["lesions_pooled"]["lesions_missed"] == 0
    assert dim["lesions_false_positive"] == {**dim["lesions_false_positive"], "mean": 0, "max": 0}
    assert "at least 50% of its voxels" in entry["rules"]["lesions"]


def test_an_unknown_choice_of_lesions_is_refused(run, data_dir):
  with pytest.raises(InputError, match="choice of --lesions 'onn'"):
    scores_of(run, ["test"], data_dir, lesions="onn")


def test_agreement_and_confusion_are_kept_and_printed(run, data_dir):
  entry = scores_of(run, ["test"], data_dir)["test"]
  agreed = entry["per_class"]["dim"]["volume_agreement"]
  # The network is perfect in A and B; C is empty in both.
  assert (agreed["n"], agreed["bias_ml"], agreed["unit"]) == (2, 0.0, "ml")
  pixels = np.array(entry["confusion"]["pixels"])
  assert pixels.sum() == 4 * 20 * 26 + 3 * 22 * 26 + 2 * 20 * 26
  assert np.array_equal(pixels, np.diag(np.diag(pixels)))
  shown = program.scores_text("test", entry)
  assert "predicted - true volume" in shown and "0.00 .. 0.00" in shown
  summary_line = program._summary("test", entry)
  assert summary_line["volume_agreement"]["dim"]["n"] == 2
  assert summary_line["hd100_mm"]["dim"] == 0.0 and summary_line["confusion"]["classes"] == NAMES
