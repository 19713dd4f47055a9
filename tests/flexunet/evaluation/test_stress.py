"""Stress tests of a stub whose answers are known, from records to report."""

import csv
import json

import dataset_samples
import numpy as np
import pytest
import run_samples

from flexunet import evaluate as program
from flexunet import library, run_folder, seen_subjects
from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.evaluation import evaluate, stress_examples
from flexunet.evaluation import stress as stress_tests
from flexunet.evaluation import stress_summary as figures
from flexunet.prediction import opening

DATASET = "blobs/slices/1.0.0"


def records(subject: str, count: int = 6, height=24, width=30) -> list[dict]:
  """Returns the slices of a volume of 1 x 1 x 2 mm with two blobs each."""
  made = []
  for k in range(count):
    image, label = dataset_samples.blob_slice(height, width, seed=100 * ord(subject[0]))
    made.append({
        "image": image, "label": label, "subject": subject, "volume": f"{subject}_scan",
        "slice_index": k, "spacing_mm": (1.0, 1.0), "slice_spacing_mm": 2.0,
    })  # fmt: skip
  return made


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  dataset_samples.write_dataset(
      folder, {"train": records("T", 2), "test": [*records("A"), *records("B")]}
  )
  return folder


@pytest.fixture
def undrawn(monkeypatch):
  """Leaves out the report, which takes longer than all else here."""
  monkeypatch.setattr(evaluate.report, "write_report", lambda run: None)


@pytest.fixture
def run(tmp_path, monkeypatch):
  """A run whose network knows the classes by their brightness: a perfect one of clean scans."""
  made = run_folder.RunFolder.create(tmp_path / "run")
  scheme = [{"name": name, "color": [9, 9, 200]} for name in dataset_samples.NAMES]
  facts = {"label_scheme": scheme, "fingerprint": dataset_samples.FINGERPRINT,
           "intensity": {"kind": "none", "low": 0.0, "high": 255.0}}  # fmt: skip
  made.write_config(run_samples.with_facts(run_samples.run_config(), **facts))
  made.model_keras.write_bytes(b"model")
  seen = seen_subjects.SubjectsSeen(DATASET, frozenset("T"), frozenset())
  files.write_json(made.manifest_json, {seen_subjects.KEY: [seen.to_json()]})
  monkeypatch.setattr(opening, "load_model", lambda run: run_samples.BrightnessNetwork())
  return made


def stressed(run, data_dir, stress, **options):
  evaluate.evaluate(
      run, ["test"], data_dir=data_dir, stress=stress, show_progress=False, **options
  )
  return figures.read_figures(run)["test"]


def of(entry, name):
  return next(one for one in entry["disturbances"] if one["name"] == name)


@pytest.fixture
def asked(monkeypatch):
  """Counts the volumes that the network was asked for."""
  calls = []
  real = stress_tests.predicted
  monkeypatch.setattr(
      stress_tests, "predicted", lambda *given: calls.append(given[1].subject) or real(*given)
  )
  return calls


def test_a_network_that_reads_brightness_stands_what_keeps_brightness(run, data_dir, undrawn):
  entry = stressed(run, data_dir, "flip,rotation,missing,gamma,orientation")
  assert entry["clean"]["dice"] == 1.0 and entry["volumes"] == 2
  # Mirrored and back nothing is lost; neighbours are equal, so that gaps are filled as they were.
  assert of(entry, "flip")["grades"][0]["dice"] == 1.0
  assert [grade["dice"] for grade in of(entry, "missing")["grades"]] == [1.0] * 6
  assert entry["orientation"]["differing_voxels"] == 0
  assert entry["orientation"]["voxels"] == 2 * 6 * 24 * 30 * len(entry["orientation"]["axes"])
  # 120 falls below the border of 60 at a power above ln(60/255) / ln(120/255) = 1.92, 240 never
  # below 180 up to 3: from 2.2 on half of the two classes is lost.
  dark = of(entry, "gamma_dark")
  assert [grade["dice"] for grade in dark["grades"]] == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5]
  assert dark["fall"]["strength"] == pytest.approx(1.8 + 0.4 * 0.05 / 0.5)
  assert dark["most_fragile_class"] == "dim"
  # What a turn costs a perfect answer too is its ceiling.
  for grade in of(entry, "rotation")["grades"]:
    assert 0.4 < grade["dice"] <= grade["ceiling"] <= 1
  assert [one["name"] for one in entry["disturbances"]][-1] == "flip"


def test_the_undisturbed_score_is_that_of_the_evaluation(run, data_dir, undrawn):
  entry = stressed(run, data_dir, "noise")
  metrics = json.loads(run.metrics_json.read_text())["test"]
  assert entry["clean"]["dice"] == metrics["foreground_dice"]["mean"]
  assert entry["model_sha256"] == metrics["evaluated"]["model_sha256"]


def test_what_is_known_is_not_computed_again_and_more_may_be_asked_for(
    run, data_dir, asked, undrawn
):
  stressed(run, data_dir, "quick,noise")
  assert len(asked) == 2 * (1 + 3)
  asked.clear()
  entry = stressed(run, data_dir, "noise,flip")
  assert len(asked) == 2 * (3 + 1)  # The other three strengths of noise, and the flip.
  assert len(of(entry, "noise")["grades"]) == 6
  asked.clear()
  again = stressed(run, data_dir, "flip")
  assert not asked and again["disturbances"] == entry["disturbances"]


def test_another_network_or_other_options_are_tested_anew(run, data_dir, asked, undrawn):
  stressed(run, data_dir, "flip")
  asked.clear()
  stressed(run, data_dir, "flip", options=opening.PredictionOptions(clean_up=False, batch_size=3))
  assert not asked  # There was no clean-up to leave out, and batches change nothing.
  run.model_keras.write_bytes(b"another model")
  stressed(run, data_dir, "flip")
  assert len(asked) == 4
  rows = figures.read_rows(figures.csv_path(run))
  assert len({row.key for row in rows}) == 1


def test_a_test_that_was_interrupted_continues(run, data_dir, asked, monkeypatch, undrawn):
  whole = stressed(run, data_dir, "noise")
  rows = figures.read_rows(figures.csv_path(run))
  figures.csv_path(run).unlink()
  figures.json_path(run).unlink()
  real, count = figures.write_rows, []

  def dies(path, rows):
    real(path, rows)
    count.append(path)
    if len(count) == 2:
      raise KeyboardInterrupt

  monkeypatch.setattr(stress_tests, "_WRITE_SECONDS", -1.0)
  monkeypatch.setattr(figures, "write_rows", dies)
  with pytest.raises(KeyboardInterrupt):
    stressed(run, data_dir, "noise")
  # The first volume is there, no figures are, and nothing half-written lies about.
  assert {row.subject for row in figures.read_rows(figures.csv_path(run)) if row.strength} == {"A"}
  assert not figures.json_path(run).exists()
  assert not [path for path in run.evaluation.iterdir() if path.name.startswith(".")]
  asked.clear()
  assert stressed(run, data_dir, "noise") == whole
  assert asked == ["B"] * 6
  assert sorted(map(repr, figures.read_rows(figures.csv_path(run)))) == sorted(map(repr, rows))


def test_order_and_choice_of_disturbances_change_nothing(run, data_dir, undrawn):
  alone = of(stressed(run, data_dir, "bias"), "bias")
  figures.csv_path(run).unlink()
  beside = of(stressed(run, data_dir, "noise,bias,blur"), "bias")
  assert alone == beside


def test_ct_goes_without_bias_and_gamma_and_says_why(run, data_dir, monkeypatch, capsys, undrawn):
  facts = {"intensity": {"kind": "window", "low": 0.0, "high": 80.0}}
  run.write_config(run_samples.with_facts(run.read_config(), **facts))
  entry = stressed(run, data_dir, "quick,bias,gamma,noise")
  assert [one["name"] for one in entry["disturbances"]] == ["noise"]
  assert [one["name"] for one in entry["skipped"]] == ["bias", "gamma_dark", "gamma_bright"]
  assert "Bias field skipped: the scans are of CT" in figures.text(entry)


def test_images_go_without_what_needs_volumes(run, tmp_path, undrawn):
  single = [{**record, "volume": f"{record['subject']}_{record['slice_index']}", "slice_index": 0,
             "spacing_mm": (np.nan, np.nan), "slice_spacing_mm": np.nan}
            for record in [*records("A", 2), *records("B", 2)]]  # fmt: skip
  version = dataset_samples.write_dataset(tmp_path, {"train": records("T", 2), "test": single})
  report = json.loads((version / "build_report.json").read_text())
  (version / "build_report.json").write_text(json.dumps({**report, "slice_plan": None}))
  facts = {"slice_plan": None, "intensity": None, "spacing_mm": None}
  run.write_config(run_samples.with_facts(run.read_config(), **facts))
  entry = stressed(run, tmp_path, "quick,spacing,missing,orientation,flip")
  assert [one["name"] for one in entry["skipped"]] == ["spacing_through", "missing", "orientation"]
  assert of(entry, "spacing_in_plane")["unit"] == "pixels"
  assert entry["volumes"] == 4 and of(entry, "flip")["grades"][0]["dice"] == 1.0


def test_rows_and_examples_are_written_beside_the_figures(run, data_dir, undrawn):
  entry = stressed(run, data_dir, "quick,gamma,flip,missing,rotation,spacing")
  with open(figures.csv_path(run), newline="") as stream:
    rows = list(csv.DictReader(stream))
  assert {row["class"] for row in rows} == {"dim", "bright"}
  assert {row["subject"] for row in rows} == {"A", "B"}
  shown = stress_examples.read(stress_examples.path_of(run, "test"))
  assert [one.name for one in shown] == ["clean", *(e["name"] for e in entry["disturbances"])]
  dark = next(one for one in shown if one.name == "gamma_dark")
  assert dark.strength == of(entry, "gamma_dark")["fall"]["strength"]
  mirrored = next(one for one in shown if one.name == "flip")
  assert np.array_equal(mirrored.image, shown[0].image[:, ::-1])
  assert np.array_equal(mirrored.prediction, shown[0].prediction[:, ::-1])
  assert all(one.image.shape == one.truth.shape == one.prediction.shape for one in shown)
  gap = next(one for one in shown if one.name == "missing")
  assert not gap.image.any() and gap.prediction.any()


@pytest.mark.slow
def test_the_report_and_the_terminal_show_what_was_found(run, data_dir, capsys):
  argv = ["evaluate", f"--run_dir={run.path}", f"--data_dir={data_dir}", "--stress=quick,gamma"]
  program.main(program._PROGRAM.parse(argv))
  shown = capsys.readouterr().out
  assert "test, disturbed: Dice 1.000 undisturbed, 2 volumes" in shown
  assert "Gamma, darker" in shown and "stress.csv" in shown
  page = run.report_html.read_text()
  assert "Robustness: disturbed scans of test" in page and "What these strengths look like" in page
  assert "stress.csv" in page and 'aria-label="Gamma, darker"' in page
  program.main(program._PROGRAM.parse([*argv, "--json"]))
  line = json.loads(capsys.readouterr().out)
  assert line["stress"]["clean"]["dice"] == 1.0


def test_a_report_says_when_another_network_was_tested(run, data_dir):
  stressed(run, data_dir, "flip")
  assert "another model.keras" not in run.report_html.read_text().split("Robustness")[-1]
  run.model_keras.write_bytes(b"another model")
  evaluate.evaluate(run, ["test"], data_dir=data_dir, show_progress=False)
  assert "It was another model.keras that was tested" in run.report_html.read_text()


def test_stress_alone_stands_for_the_quick_test_and_an_unknown_name_is_refused(run):
  words = program._PROGRAM.parse(["evaluate", "--stress", f"--run_dir={run.path}"])
  assert words == ["evaluate"] and program._STRESS.value == "quick"
  program._PROGRAM.parse(["evaluate", f"--run_dir={run.path}"])
  assert program._STRESS.value == ""
  program._PROGRAM.parse(["evaluate", f"--run_dir={run.path}", "--stress=nosie"])
  with pytest.raises(InputError, match="Did you mean 'noise'"):
    program.main(["evaluate"])


def test_the_library_gives_the_figures_in_one_call(run, data_dir, undrawn):
  entry = library.load(run.path).stress("flip", data_dir=data_dir, show_progress=False)
  assert entry == figures.read_figures(run)["test"] and entry["split"] == "test"


def test_several_runs_are_tested_as_one(run, data_dir, tmp_path):
  other = run_folder.RunFolder.create(tmp_path / "other")
  for name in ("config.json", "manifest.json", "model.keras"):
    (other.path / name).write_bytes((run.path / name).read_bytes())
  entry = library.load([run.path, other.path]).stress(
      "quick,flip,missing", data_dir=data_dir, output_dir=tmp_path / "both", show_progress=False
  )
  assert entry["clean"]["dice"] == 1.0 and len(entry["disturbances"]) == 2
  assert "Robustness" in (tmp_path / "both" / "ensemble.html").read_text()
