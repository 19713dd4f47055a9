"""Several runs are scored as one, in a folder of their own, on people that none was trained on."""

import csv
import dataclasses
import json

import dataset_samples
import numpy as np
import pytest
import run_samples

import flexunet
from flexunet import ensemble_folder, run_folder, seen_subjects
from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.evaluation import evaluate, evaluate_ensemble
from flexunet.prediction import opening
from flexunet.reporting import report

DATASET = "blobs/slices/1.0.0"
SCHEME = [{"name": name, "color": [9, 9, 200]} for name in dataset_samples.NAMES]
TEST = {"splits": ["test"], "show_progress": False}


def records(subject: str, count: int = 4) -> list[dict]:
  made = []
  for k in range(count):
    image, label = dataset_samples.blob_slice(20, 26, seed=100 * ord(subject) + k)
    made.append({
        "image": image, "label": label, "subject": subject, "volume": f"{subject}_scan",
        "slice_index": k, "spacing_mm": (1.0, 1.0), "slice_spacing_mm": 1.0,
    })  # fmt: skip
  return made


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  dataset_samples.write_dataset(folder, {
      "train": records("T"), "validation": [*records("V"), *records("W")],
      "test": [*records("A"), *records("B")],
  })  # fmt: skip
  return folder


class Wrong(run_samples.BrightnessNetwork):
  """Calls everything background, with certainty 0.6."""

  def predict_on_batch(self, batch):
    return np.broadcast_to(np.float32([0.6, 0.2, 0.2]), (*batch.shape[:3], 3))


NETWORKS = {"right": run_samples.BrightnessNetwork, "wrong": Wrong}


@pytest.fixture
def make(tmp_path, data_dir, monkeypatch):
  """A function that makes a run which has seen T and V, and whose network is known by name."""

  def make_run(name, *, train="T", validation="V", dataset=DATASET, fold=-1, **facts):
    made = run_folder.RunFolder.create(tmp_path / name)
    config = run_samples.with_facts(
        run_samples.run_config(), label_scheme=SCHEME, name=dataset,
        fingerprint=dataset_samples.FINGERPRINT,
        slice_plan={"axes": "LAS", "plane": "axial"},
        intensity={"kind": "none", "low": 0.0, "high": 255.0}, **facts,
    )  # fmt: skip
    data = dataclasses.replace(config.data, data_dir=str(data_dir), fold=fold)
    made.write_config(dataclasses.replace(config, data=data))
    made.model_keras.write_bytes(name.encode())
    seen = seen_subjects.SubjectsSeen(dataset, frozenset(train), frozenset(validation))
    files.write_json(made.manifest_json, {seen_subjects.KEY: [seen.to_json()]})
    return made

  def load(run):
    return NETWORKS[run.path.name.partition("_")[0]]()

  monkeypatch.setattr(opening, "load_model", load)
  return make_run


def both(*runs, folder=None):
  found = ensemble_folder.open_runs([run.path for run in runs])
  return dataclasses.replace(found, folder=folder)


PLANES = [{"plane": plane, "axes": "LAS"} for plane in ("coronal", "sagittal")]


def test_runs_of_three_planes_are_scored_on_the_volumes_of_the_first(make, tmp_path, capsys):
  runs = [make("right_0")]
  for number, plan in enumerate(PLANES, 1):
    # A dataset of its own, which is not there and need not be.
    other = make(f"right_{number}", dataset=f"blobs/plane_{number}/1.0.0")
    other.write_config(run_samples.with_facts(other.read_config(), slice_plan=plan,
                                              fingerprint=str(number) * 16))  # fmt: skip
    runs.append(other)
  out = tmp_path / "out"
  figures = evaluate_ensemble.evaluate_ensemble(both(*runs), **TEST, output_dir=out)["test"]
  assert figures["foreground_dice"]["mean"] == 1.0
  assert figures["evaluated"]["ensemble"]["runs"] == ["right_0", "right_1", "right_2"]
  assert figures["evaluated"]["subjects_also_trained_on"] == []
  page = (out / "ensemble.html").read_text()
  assert "An ensemble of 3 runs" in page and "sagittal" in page and "0.333" in page
  assert json.loads((out / "ensemble.json").read_text())["weights"] == "equal"
  with open(out / "evaluation" / "cases.csv", newline="") as stream:
    assert {row["subject"] for row in csv.DictReader(stream)} == {"A", "B"}
  assert not any(run.evaluation.exists() for run in runs)
  # The page can be written again, and the folder is a --run_dir by itself.
  (out / "ensemble.html").unlink()
  assert report.write_report(out).read_text() == page
  assert flexunet.load(out).evaluate("test", show_progress=False)["test"] == figures


def test_an_ensemble_of_one_run_has_the_scores_of_the_run(make, tmp_path):
  run = make("right_0")
  alone = evaluate.evaluate(run, **TEST)["test"]
  found = evaluate_ensemble.evaluate_ensemble(
      both(run, run), **TEST, output_dir=tmp_path / "out"
  )["test"]
  for figures in (alone, found):
    del figures["evaluated"]
  assert found == alone


def test_whom_one_run_was_trained_on_the_ensemble_has_seen(make, tmp_path):
  runs = both(
      make("right_0", train="TV", validation="W", fold=0),
      make("right_1", train="TW", validation="V", fold=1),
  )
  figures = evaluate_ensemble.evaluate_ensemble(
      runs, ["validation", "test"], output_dir=tmp_path / "out", show_progress=False
  )
  evaluated = figures["validation"]["evaluated"]
  assert evaluated["subjects_also_trained_on"] == ["V", "W"]
  assert any("trained on it" in line for line in evaluated["warnings"])
  assert figures["test"]["evaluated"]["subjects_also_trained_on"] == []
  with pytest.raises(InputError, match="all 2 were trained on by one of right_0, right_1"):
    evaluate_ensemble.evaluate_ensemble(
        runs, **TEST, output_dir=tmp_path / "learnt", weights="learnt"
    )
  assert not (tmp_path / "learnt").exists()


@pytest.mark.slow
def test_weights_are_learnt_on_validation_kept_and_used(make, tmp_path):
  # W was trained on by one of them, so V alone is left.
  runs = both(make("wrong_0"), make("right_1", train="TW"))
  out = tmp_path / "out"
  learnt = evaluate_ensemble.evaluate_ensemble(runs, **TEST, output_dir=out, weights="learnt")
  stored = json.loads((out / "ensemble.json").read_text())
  assert stored["weights"] == "learnt" and stored["learnt_on"]["subjects"] == ["V"]
  assert [entry["weight"] for entry in stored["runs"]] == [0.0, 1.0]
  assert stored["learnt_on"]["brier"] < stored["learnt_on"]["brier_of_equal_weights"]
  assert learnt["test"]["foreground_dice"]["mean"] == 1.0
  again = flexunet.load(out, weights="learnt")
  assert again.runs.weights == (0.0, 1.0)
  assert again.evaluate("test", show_progress=False) == learnt
  validation = again.evaluate("validation", show_progress=False)["validation"]
  assert any(
      "weights of the runs were learnt on 1 of its 2 subjects" in line
      for line in validation["evaluated"]["warnings"]
  )
  # Other weights are other figures, for which the folder then stands.
  equal = flexunet.load(out).evaluate("test", weights="3,1", show_progress=False)["test"]
  assert equal["evaluated"]["model_sha256"] != learnt["test"]["evaluated"]["model_sha256"]
  assert flexunet.load(out).runs.kind == "given"


def test_people_under_other_names_are_not_known_to_be_new(make, tmp_path):
  runs = both(make("right_0"), make("right_1", train="x", validation="y"))
  figures = evaluate_ensemble.evaluate_ensemble(runs, **TEST, output_dir=tmp_path / "out")
  warnings = figures["test"]["evaluated"]["warnings"]
  assert "right_1 names its subjects by other names than blobs/slices/1.0.0." in warnings
  with pytest.raises(InputError, match="needs to know whom the runs"):
    evaluate_ensemble.evaluate_ensemble(
        runs, **TEST, output_dir=tmp_path / "learnt", weights="learnt"
    )


def test_runs_windowed_otherwise_and_volumes_with_gaps_are_refused(make, tmp_path):
  first, windowed = make("right_0"), make("right_1", dataset="blobs/other/1.0.0")
  windowed.write_config(run_samples.with_facts(
      windowed.read_config(), intensity={"kind": "window", "low": 0.0, "high": 80.0}
  ))  # fmt: skip
  out = {"output_dir": tmp_path / "out"}
  with pytest.raises(InputError, match="windowed or resampled differently"):
    evaluate_ensemble.evaluate_ensemble(both(first, windowed), **TEST, **out)
  turned = make("right_2", dataset="blobs/coronal/1.0.0")
  turned.write_config(run_samples.with_facts(turned.read_config(), slice_plan=PLANES[0]))
  holes = tmp_path / "holes"
  dataset_samples.write_dataset(holes, {
      "train": records("T"), "test": [one for one in records("A") if one["slice_index"] != 2]
  })  # fmt: skip
  with pytest.raises(InputError, match="need whole volumes, but split 'test' .* lacks slices of A"):
    evaluate_ensemble.evaluate_ensemble(both(first, turned), **TEST, **out, data_dir=holes)


def test_a_run_trained_on_other_records_of_the_same_dataset_is_refused_unless_allowed(
    make, tmp_path
):
  other = make("right_1")
  other.write_config(run_samples.with_facts(other.read_config(), fingerprint="0" * 16))
  runs, out = both(make("right_0"), other), {"output_dir": tmp_path / "out"}
  with pytest.raises(InputError, match="was trained on 0000"):
    evaluate_ensemble.evaluate_ensemble(runs, **TEST, **out)
  assert evaluate_ensemble.evaluate_ensemble(runs, **TEST, **out, allow_other_data=True)


def test_scores_of_a_folder_of_runs_lie_in_it(make, tmp_path):
  for number in range(2):
    make(f"right_{number}")
  found = ensemble_folder.open_runs(tmp_path)
  evaluate_ensemble.evaluate_ensemble(found, **TEST)
  written = {path.name for path in (tmp_path / "evaluation").iterdir()}
  assert written >= {"metrics.json", "cases.csv"}
  assert (tmp_path / "ensemble.html").is_file()
  assert ensemble_folder.open_runs(tmp_path).names == ["right_0", "right_1"]
