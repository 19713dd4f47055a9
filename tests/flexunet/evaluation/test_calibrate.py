"""A run is calibrated on its validation subjects in one pass, and uses what it has learnt."""

import dataclasses
import json

import dataset_samples
import numpy as np
import pytest
import run_samples

from flexunet import library, run_calibration, run_folder, seen_subjects
from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.evaluation import calibrate, evaluate
from flexunet.evaluation.calibrate import HeldOutVolume
from flexunet.evaluation.labelled_volumes import LabelledVolume
from flexunet.prediction import opening
from flexunet.prediction.opening import PredictionOptions

NAMES = dataset_samples.NAMES
DATASET = "blobs/slices/1.0.0"


def records(subject: str, fold: int = 0, shift: int = 0) -> list[dict]:
  """Returns four slices of a volume whose labels lie beside what is bright, by some columns."""
  made = []
  for k in range(4):
    image, label = dataset_samples.blob_slice(20, 26, seed=10 * ord(subject) + k)
    made.append({
        "image": image, "label": np.roll(label, shift, axis=1), "subject": subject,
        "volume": f"{subject}_scan", "slice_index": k, "fold": fold,
        "spacing_mm": (1.0, 0.5), "slice_spacing_mm": 2.0,
    })  # fmt: skip
  return made


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  validation = [record for place, name in enumerate("VWXYZ")
                for record in records(name, place % 2, shift=place % 3)]  # fmt: skip
  dataset_samples.write_dataset(
      folder, {"train": records("T"), "validation": validation, "test": records("A")}
  )
  return folder


@pytest.fixture
def network(monkeypatch):
  """A network that knows the classes by their brightness, wherever a run is opened."""
  monkeypatch.setattr(opening, "load_model", lambda run: run_samples.BrightnessNetwork())


def made_run(path, trained_on="T", fold=-1) -> run_folder.RunFolder:
  made = run_folder.RunFolder.create(path)
  scheme = [{"name": name, "color": [9, 9, 200]} for name in NAMES]
  settings = run_samples.with_facts(
      run_samples.run_config(), label_scheme=scheme, fingerprint=dataset_samples.FINGERPRINT
  )
  data = dataclasses.replace(settings.data, fold=fold)
  made.write_config(dataclasses.replace(settings, data=data))
  made.model_keras.write_bytes(f"model {fold}".encode())
  seen = seen_subjects.SubjectsSeen(DATASET, frozenset(trained_on), frozenset())
  files.write_json(made.manifest_json, {
      seen_subjects.KEY: [seen.to_json()], "model_sha256": [files.sha256_of(made.model_keras)]
  })  # fmt: skip
  return made


def test_margins_are_by_how_much_the_truth_lies_beside_the_prediction(network, tmp_path, data_dir):
  run = made_run(tmp_path / "run")
  learnt = calibrate.calibrate(run, data_dir=data_dir, show_progress=False)
  margins = learnt.margins
  assert (margins.unit, margins.geometry, margins.contained) == ("mm", "3d", 1.0)
  # Columns of 0.5 mm: moved by 0, 1, 2, 0 and 1 of them, and nothing is rolled over the edge, or
  # it would be a margin of its own.
  assert set(margins.classes) == {"dim", "bright"}
  for own in margins.classes.values():
    assert sorted(own.subjects) == list("VWXYZ") and own.folds is None
    assert own.values.tolist() == sorted(own.values.tolist())
    by_name = dict(zip(own.subjects, own.values.tolist(), strict=True))
    assert by_name["V"] == by_name["Y"] == 0.0 and by_name["W"] >= 0.5
  assert learnt.learnt_on["split"] == "validation"
  assert learnt.learnt_on["subjects"] == list("VWXYZ")
  assert run_calibration.read(run).to_json() == learnt.to_json()


def test_evaluation_uses_the_temperature_and_scores_stay(network, tmp_path, data_dir):
  run = made_run(tmp_path / "run")
  options = {"data_dir": data_dir, "show_progress": False}
  before = evaluate.evaluate(run, ["test"], **options)["test"]
  assert before["calibration"]["temperature"] == 1.0
  fit = calibrate.calibrate(run, **options).temperature
  after = evaluate.evaluate(run, ["test"], **options)["test"]
  assert after["calibration"]["temperature"] == fit["temperature"] != 1.0
  assert after["calibration"]["nll"] != before["calibration"]["nll"]
  assert after["foreground_dice"] == before["foreground_dice"]
  assert after["calibration"]["pixels"] == before["calibration"]["pixels"] > 0
  assert fit["after"]["nll"] < fit["before"]["nll"]
  as_is = PredictionOptions(calibrated=False)
  plain = evaluate.evaluate(run, ["test"], options=as_is, **options)["test"]
  assert plain["calibration"] == before["calibration"]
  assert set(after["calibration"]["per_class"]) == set(NAMES)
  json.dumps(after, allow_nan=False)


def test_subjects_that_were_trained_on_are_refused(network, tmp_path, data_dir):
  run = made_run(tmp_path / "run", trained_on="TV")
  with pytest.raises(InputError, match="1 subject of the validation split was trained on: V"):
    calibrate.calibrate(run, data_dir=data_dir, show_progress=False)
  assert not run.calibration_json.exists()


def test_the_folds_of_a_cross_validation_are_pooled(network, tmp_path, data_dir):
  runs = {f"fold_{n}": made_run(tmp_path / f"fold_{n}", "", fold=n) for n in (0, 1)}
  learnt = calibrate.calibrate_folds(tmp_path, runs, data_dir=data_dir, show_progress=False)
  # T lies in fold 0, as three of the five of the validation split.
  assert sorted(learnt.learnt_on["subjects"]) == list("TVWXYZ")
  own = learnt.margins.classes["dim"]
  by_name = dict(zip(own.subjects, own.folds, strict=True))
  assert by_name == {"T": 0, "V": 0, "W": 1, "X": 0, "Y": 1, "Z": 0}
  assert learnt.temperature is None and all(
      run_calibration.temperature_of(run) > 0 for run in runs.values()
  )
  assert run_calibration.read_folds(tmp_path, runs).to_json() == learnt.to_json()
  half = learnt.coverage["levels"][0]
  assert half["level"] == 0.5 and half["margin"]["dim"]["subjects"] == 6


def test_folds_that_hold_out_the_same_subject_are_refused(network, tmp_path, data_dir):
  runs = {name: made_run(tmp_path / name, "", fold=0) for name in ("a", "b")}
  with pytest.raises(InputError, match="a and b both hold out"):
    calibrate.calibrate_folds(tmp_path, runs, data_dir=data_dir, show_progress=False)


def volume(labels, subject="s", spacing_mm=(1.0, 1.0), between=1.0, name="v"):
  return LabelledVolume(
      subject, name, list(range(len(labels))), [], labels, spacing_mm, between
  )


def dots(*columns, size=6):
  """Returns a slice [3, size] with class 1 in some columns of its middle row."""
  label = np.zeros((3, size), np.uint8)
  label[1, list(columns)] = 1
  return label


def test_of_several_volumes_of_a_subject_the_worst_counts():
  volumes = [
      HeldOutVolume.of(volume([dots(0), dots(0)]), [dots(1), dots(0)], -1),
      HeldOutVolume.of(volume([dots(0), dots(0)], name="w"), [dots(4), dots(4)], -1),
  ]
  found = calibrate.margins(volumes, ["background", "a"], 1.0, True)
  assert found.geometry == "3d" and found.classes["a"].values.tolist() == [4.0]
  ratios = calibrate.volume_ratios(
      [*volumes, HeldOutVolume.of(volume([dots(0, 1), dots(0)]), [dots(1), dots()], -1)],
      ["background", "a"],
  )
  np.testing.assert_allclose(ratios.classes["a"].values, [[0.0, np.log(3)]])


def test_without_spacing_margins_are_pixels_within_slices():
  unknown = (float("nan"), float("nan"))
  volumes = [HeldOutVolume.of(volume([dots(0)], spacing_mm=unknown), [dots(3)], -1)]
  found = calibrate.margins(volumes, ["background", "a"], 1.0, True)
  assert (found.unit, found.geometry) == ("px", "2d")
  assert found.classes["a"].values.tolist() == [3.0]
  # A slice without a neighbour is no volume: its own spacing counts.
  flat = [HeldOutVolume.of(volume([dots(0)], spacing_mm=(1.0, 0.5)), [dots(3)], -1)]
  found = calibrate.margins(flat, ["background", "a"], 1.0, True)
  assert (found.unit, found.geometry) == ("mm", "2d")
  assert found.classes["a"].values.tolist() == [1.5]


def specks_run(tmp_path, monkeypatch, subjects="VWXYZ"):
  """A run whose network takes a speck of every image, four bright pixels, for the class."""
  kinds = {"train": "T", "validation": subjects, "test": "A"}
  splits = {split: [record for name in names for record in records(name)]
            for split, names in kinds.items()}  # fmt: skip
  for own in splits.values():
    for record in own:
      record["label"][:] = 0
      record["label"][8:13, 8:13], record["label"][8:13, 18:23] = 1, 2
      record["image"][:] = np.array([10, 120, 240], np.uint8)[record["label"]]
      record["image"][0, :4] = 120
  dataset_samples.write_dataset(tmp_path / "data", splits)
  monkeypatch.setattr(opening, "load_model", lambda run: run_samples.BrightnessNetwork())
  return made_run(tmp_path / "run"), tmp_path / "data"


def test_a_clean_up_that_validation_speaks_for_is_stored_and_applied(tmp_path, monkeypatch):
  run, data = specks_run(tmp_path, monkeypatch)
  before = evaluate.evaluate(run, ["test"], data_dir=data, show_progress=False)["test"]
  assert before["evaluated"]["clean_up"] is None
  learnt = calibrate.calibrate(run, data_dir=data, show_progress=False)
  # The speck has 4 x 4 voxels of 1 mm3, 0.016 ml; the class 4 x 25 voxels, 0.1 ml.
  (rule,) = learnt.clean_up["rules"].values()
  assert (rule["min_size"], rule["unit"]) == (0.03, "ml")
  assert learnt.clean_up["rules"].keys() == {"dim"} and not learnt.clean_up["in_slices"]
  after = evaluate.evaluate(run, ["test"], data_dir=data, show_progress=False)["test"]
  told = after["evaluated"]["clean_up"]
  assert told["volumes"] == 1 and told["sentences"][0].startswith("dim: ")
  assert told["rules"] == learnt.clean_up["rules"]
  dice = [one["per_class"]["dim"]["dice"]["mean"] for one in (before, after)]
  assert dice[0] < 1.0 and dice[1] == 1.0
  # 16 wrong voxels of the background, 4 per slice, are gone from the confusion matrix.
  pixels = [one["confusion"]["pixels"][0][1] for one in (before, after)]
  assert pixels == [16, 0]
  undone = evaluate.evaluate(
      run, ["test"], data_dir=data, options=PredictionOptions(clean_up=False), show_progress=False
  )["test"]
  assert undone["evaluated"]["clean_up"] is None
  assert undone["per_class"]["dim"]["dice"]["mean"] == dice[0]


def test_few_validation_subjects_choose_no_clean_up_and_say_so(tmp_path, monkeypatch):
  run, data = specks_run(tmp_path, monkeypatch, subjects="VW")
  learnt = calibrate.calibrate(run, data_dir=data, show_progress=False)
  assert learnt.clean_up["rules"] == {}
  reason = learnt.clean_up["evidence"]["classes"]["dim"]["reason"]
  assert reason == "2 subjects, fewer than 5"


def test_a_clean_up_of_other_classes_is_refused_in_one_line(tmp_path, monkeypatch):
  run, data = specks_run(tmp_path, monkeypatch)
  learnt = calibrate.calibrate(run, data_dir=data, show_progress=False)
  other = {**learnt.clean_up, "rules": {"tumour": learnt.clean_up["rules"]["dim"]}}
  run_calibration.write(run.path, dataclasses.replace(learnt, clean_up=other))
  with pytest.raises(InputError, match="for the classes dim, bright"):
    evaluate.evaluate(run, ["test"], data_dir=data, show_progress=False)


def test_margins_are_those_after_the_clean_up_that_is_chosen():
  # In each of six subjects one speck, far from the one structure, which is found but for a voxel.
  names = ["background", "a"]
  held_out = []
  for subject in "abcdef":
    truth = [np.zeros((9, 30), np.uint8) for _ in range(3)]
    for label in truth:
      label[2:7, 2:8] = 1
    found = [label.copy() for label in truth]
    found[1][4, 2] = 0
    for label in found:
      label[7:9, 24:30] = 1
    held_out.append(HeldOutVolume.of(volume(truth, subject), found, -1))
  about = calibrate.HeldOut(None, held_out, {}, names, True, False)
  clean_up, cleaned = calibrate._cleaned(held_out, about)
  assert clean_up
  before = calibrate.volume_ratios(held_out, names).classes["a"].values
  after = calibrate.volume_ratios(cleaned, names).classes["a"].values
  assert (before < -0.3).all() and (np.abs(after) < 0.02).all()
  assert (calibrate.margins(cleaned, names, 1.0, True).classes["a"].values <= 1.0).all()


def test_nothing_is_cleaned_where_few_subjects_speak_for_it(network, tmp_path, data_dir):
  run = made_run(tmp_path / "run")
  learnt = library.load(run.path).calibrate(data_dir=data_dir, show_progress=False)
  assert learnt.clean_up["rules"] == {} and learnt.clean_up["evidence"]["subjects"] == 5
