"""A benchmark runs systems on one dataset, scores them alike, and continues where it stopped."""

import json
import pathlib
import subprocess
import sys

import dataset_samples
import numpy as np
import pytest

from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.evaluation import evaluate
from flexunet.pipelines import dataset_source
from flexunet.prediction import opening
from flexunet.prediction.test_time import ViewOptions
from flexunet.reporting import report
from flexunet.run_folder import RunFolder
from flexunet.tools.benchmarks.quality import __main__ as program
from flexunet.tools.benchmarks.quality import bench, exported_set, jobs, running, scoring

# What a peer is, in short: it labels by brightness, and says what it took.
PEER = """
import json, pathlib, sys
import numpy as np
task = json.loads(pathlib.Path(sys.argv[1]).read_text())
listed = json.loads((pathlib.Path(task["data"]) / "set.json").read_text())
out = pathlib.Path(task["predictions"])
out.mkdir()
for case in listed["cases"]:
  stored = np.load(pathlib.Path(task["data"]) / case["file"])
  assert ("label" in stored) == (case["split"] != "test")
  if case["split"] == "test":
    image = stored["image"][0]
    label = (image > 60).astype(np.uint8) + (image > 180)
    if "--blind" in task["options"]:
      label[label == 2] = 0
    np.savez(out / case["file"], label=label)
json.dump({"training_s": 6.0, "steps": 3, "inference_s": 0.0, "cached_setup_s": 100.0,
           "details": {"minutes": task["minutes"]}, "versions": {}}, open(task["answer"], "w"))
"""


def records(subjects, seed, slices=4, first=0):
  made = []
  for place in range(slices * len(subjects)):
    image, label = dataset_samples.blob_slice(20, 28, seed + place)
    subject = subjects[place // slices]
    made.append({
        "image": image, "label": label, "subject": subject, "volume": subject,
        "slice_index": first + place % slices * (2 if first else 1),
        "spacing_mm": (1.0, 2.0), "slice_spacing_mm": 3.0, "fold": place // slices % 3,
    })  # fmt: skip
  return made


@pytest.fixture
def data(tmp_path):
  return dataset_samples.write_dataset(tmp_path / "data", {
      "train": records("abcd", 0), "validation": records("ef", 50), "test": records("gh", 90),
  })  # fmt: skip


@pytest.fixture
def peer(tmp_path):
  path = tmp_path / "peer.py"
  path.write_text(PEER)
  return path


def planned(data, systems, minutes=(0.1,), seeds=(1,)):
  sets = jobs.parse_sets(f"blobs={data}")
  return jobs.all_jobs(sets, jobs.parse_systems(systems), list(minutes), list(seeds))


def test_a_peer_gets_volumes_with_our_splits_and_no_truth_of_the_test(data, tmp_path):
  source = _opened(data)
  exported_set.export(source, tmp_path / "cases")
  listed = files.read_json(tmp_path / "cases" / "set.json")
  assert (listed["dimensions"], listed["channels"]) == (3, ["image"])
  assert listed["classes"] == dataset_samples.NAMES
  splits = [(case["split"], case["subject"]) for case in listed["cases"]]
  assert splits == [
      *(("train", one) for one in "abcd"), ("validation", "e"), ("validation", "f"),
      ("test", "g"), ("test", "h"),
  ]  # fmt: skip
  assert listed["cases"][0]["spacing_mm"] == [3.0, 1.0, 2.0]
  first = np.load(tmp_path / "cases" / listed["cases"][0]["file"])
  assert first["image"].shape == (1, 4, 20, 28)
  truth = np.stack([record["label"] for record in records("a", 0)])
  np.testing.assert_array_equal(first["label"], truth)
  assert np.load(tmp_path / "cases" / listed["cases"][-1]["file"]).files == ["image"]


def test_classes_that_nobody_can_learn_are_left_out_and_ids_come_back(tmp_path):
  bright = [{**one, "label": np.where(one["label"] == 2, 2, 0)} for one in records("ab", 0)]
  data = dataset_samples.write_dataset(tmp_path / "data", {
      "train": bright, "validation": records("c", 50), "test": records("d", 90),
  })  # fmt: skip
  source = _opened(data)
  exported_set.export(source, tmp_path / "cases")
  listed = files.read_json(tmp_path / "cases" / "set.json")
  assert (listed["classes"], listed["class_ids"]) == (["background", "bright"], [0, 2])
  held = {case["subject"]: np.load(tmp_path / "cases" / case["file"]) for case in listed["cases"]}
  expected = [one["label"] == 2 for one in records("c", 50)]
  np.testing.assert_array_equal(held["c"]["label"], expected)
  (volume,) = exported_set.read_test_volumes(source)
  truth = np.stack(volume.volume.labels)
  np.savez(tmp_path / volume.files[0], label=(truth == 2).astype(np.uint8))
  ids = exported_set.class_ids(tmp_path / "cases")
  found = scoring.score([volume], tmp_path, dataset_samples.NAMES, ids)["label"]
  assert found["per_class"] == {"dim": 0.0, "bright": 1.0}
  np.savez(tmp_path / volume.files[0], label=truth)
  with pytest.raises(InputError, match="must hold ids of classes, 0 to 1. Got: 2"):
    scoring.score([volume], tmp_path, dataset_samples.NAMES, ids)


def test_slices_with_gaps_are_cases_of_their_own_and_scored_as_a_volume(tmp_path):
  data = dataset_samples.write_dataset(tmp_path / "data", {
      "train": records("ab", 0, first=3), "validation": records("c", 50), "test": records("d", 90),
  })  # fmt: skip
  source = _opened(data)
  exported_set.export(source, tmp_path / "cases")
  listed = files.read_json(tmp_path / "cases" / "set.json")
  assert listed["dimensions"] == 2
  assert [case["subject"] for case in listed["cases"]] == [*"aaaabbbb", *"cccc", *"dddd"]
  (volume,) = exported_set.read_test_volumes(source)
  held = [case["file"] for case in listed["cases"] if case["split"] == "test"]
  assert volume.files == held
  for name, label in zip(held, volume.volume.labels, strict=True):
    np.savez(tmp_path / name, label=label[None])
  found = scoring.score([volume], tmp_path, dataset_samples.NAMES)["label"]
  assert found["foreground_dice"] == 1.0 and len(found["volumes"]) == 2


def test_scores_are_means_over_classes_then_volumes(data, tmp_path):
  volumes = exported_set.read_test_volumes(_opened(data))
  for one in volumes:
    label = np.stack(one.volume.labels)
    np.savez(tmp_path / one.files[0], label=label)
  # Of the second volume the class bright is missed: Dice 1 and 0.
  label = np.where(label == 2, 0, label).astype(np.uint8)
  np.savez(tmp_path / volumes[1].files[0], label=label)
  scored = scoring.score(volumes, tmp_path, dataset_samples.NAMES)
  assert scored["mirrored"] is None
  found = scored["label"]
  assert found["foreground_dice"] == pytest.approx((1 + 0.5) / 2)
  assert found["per_class"] == {"dim": 1.0, "bright": 0.5}
  assert found["subjects"][1] == {
      "subject": "h", "foreground_dice": 0.5, "dice": {"dim": 1.0, "bright": 0.0},
  }  # fmt: skip
  np.savez(tmp_path / volumes[1].files[0], label=label[:, :-1])
  with pytest.raises(InputError, match="must have the shape of its case"):
    scoring.score(volumes, tmp_path, dataset_samples.NAMES)


def test_answers_to_mirrored_views_are_scored_beside_the_others(data, tmp_path):
  volumes = exported_set.read_test_volumes(_opened(data))
  for one in volumes:
    label = np.stack(one.volume.labels)
    dim = np.where(label == 2, 0, label).astype(np.uint8)
    np.savez(tmp_path / one.files[0], label=dim, mirrored=label)
  scored = scoring.score(volumes, tmp_path, dataset_samples.NAMES)
  assert [scored[answer]["foreground_dice"] for answer in scoring.ANSWERS] == [0.5, 1.0]
  np.savez(tmp_path / volumes[1].files[0], label=label)
  with pytest.raises(InputError, match="must hold the predicted label: .*mirrored"):
    scoring.score(volumes, tmp_path, dataset_samples.NAMES)


def test_peers_are_scored_failures_recorded_and_the_rest_goes_on(data, peer, tmp_path):
  (tmp_path / "broken.py").write_text("raise MemoryError('too large')")
  systems = f"program:{peer},blind=program:{peer} --blind,program:{tmp_path}/broken.py"
  options = bench.Options(tmp_path / "out")
  summary = bench.run(planned(data, systems), options)
  entries = {one["system"]: one for one in summary["entries"]}
  assert entries["peer"]["dice"]["mean"] == 1.0
  assert entries["blind"]["dice"]["mean"] == 0.5
  assert entries["broken"]["failed"] == ["MemoryError: too large"]
  result = files.read_json(tmp_path / "out" / "results" / "blobs__peer__0.1min__seed1.json")
  assert (result["training_s"], result["steps"]) == (6.0, 3)
  # What an earlier training has prepared counts, too.
  assert 100 < result["with_setup_s"] < 160
  assert result["settings"]["processors"] == result["machine"]["processors"]
  assert {one["subject"] for one in result["scores"]["subjects"]} == {"g", "h"}
  assert result["mirrored_scores"] is None
  assert str(tmp_path) not in json.dumps(result)
  made = {path.name for path in (tmp_path / "out").iterdir()}
  assert made == {"results", "logs", "work", "summary.json", "table.md", "dice.png", "dice.svg"}
  left = sorted(path.name for path in (tmp_path / "out" / "work").iterdir())
  assert left == ["blobs__broken__0.1min__seed1", "set_blobs_ffffffff_form2"]


def test_what_is_finished_is_kept_and_a_failed_training_is_tried_again(data, peer, tmp_path):
  options = bench.Options(tmp_path / "out")
  unsteady = tmp_path / "unsteady.py"
  unsteady.write_text("import sys; sys.exit('error: not today')")
  systems = f"program:{peer},program:{unsteady}"
  assert bench.run(planned(data, systems), options)["entries"][1]["failed"] == ["not today"]
  kept = tmp_path / "out" / "results" / "blobs__peer__0.1min__seed1.json"
  before = kept.stat().st_mtime_ns
  unsteady.write_text(PEER)
  summary = bench.run(planned(data, systems, seeds=(1, 2)), options)
  assert [one["dice"]["seeds"] for one in summary["entries"]] == [2, 2]
  assert kept.stat().st_mtime_ns == before
  # Other records under the same name.
  report = files.read_json(data / "build_report.json")
  files.write_json(data / "build_report.json", {**report, "fingerprint": "e" * 16})
  with pytest.raises(InputError, match="was made with records"):
    bench.run(planned(data, systems), options)


def test_a_peer_that_does_not_end_is_ended(data, tmp_path):
  slow = tmp_path / "slow.py"
  slow.write_text("import time; time.sleep(600)")
  options = bench.Options(tmp_path / "out", patience_minutes=0.02)
  (entry,) = bench.run(planned(data, f"program:{slow}", minutes=(0.01,)), options)["entries"]
  assert entry["failed"] == ["it had not ended after 0.03 minutes"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--systems=flexunet"], "--sets and --output_dir must be given"),
        (["--sets=a={root}/none:x", "--output_dir={root}/out"], "no such folder"),
        (["--sets=a={data}", "--output_dir={root}/out", "--systems=nnunet_2d"], "--peers_env"),
        (["--sets=a={data}", "--output_dir={root}/out", "--minutes=0"], "--minutes"),
    ],
)
def test_wrong_flags_end_in_one_line_and_leave_nothing(words, message, data, tmp_path, capsys):
  given = [word.format(data=data, root=tmp_path) for word in words]
  with pytest.raises(InputError, match=message):
    program.main(program._PROGRAM.parse(["benchmark_quality", *given]))
  assert not (tmp_path / "out").exists()


def test_the_networks_of_an_ensemble_share_the_minutes(data, tmp_path, monkeypatch):
  other = tmp_path / "data_of_another_plane"
  listed = tmp_path / "sets.json"
  listed.write_text(json.dumps({"blobs": {"data_dir": str(data), "planes": [str(other)]}}))
  (one,) = jobs.parse_sets(str(listed))
  commands = []

  def train(command, places, most_minutes):
    commands.append(command)
    raise running.JobError("stop")

  monkeypatch.setattr(running, "run_program", train)
  for name, folders, flags in (
      ("flexunet_planes", [str(data), str(other)], [[], []]),
      ("flexunet_folds", [str(data)] * 3, [["--fold=0"], ["--fold=1"], ["--fold=2"]]),
      ("flexunet", [str(data)], [[]]),
  ):  # fmt: skip
    (job,) = jobs.all_jobs([one], jobs.parse_systems(f"{name}:--seed=4"), [6.0], [1])
    places = running.Places(data, tmp_path / "work", tmp_path, tmp_path / "log.txt")
    networks = running.members(job, places)
    assert [network.data_dir for network in networks] == folders
    assert [list(network.flags) for network in networks] == flags
    for of_all in ("run_dir", "log"):
      assert len({getattr(network.places, of_all) for network in networks}) == len(networks)
    with pytest.raises(running.JobError):
      running.train_flexunet(job, networks, 1.0)
    assert f"--max_minutes={6 / len(networks):g}" in commands.pop()


@pytest.mark.slow
def test_our_trainer_gets_the_figure_of_its_own_evaluation(data, tmp_path, capsys):
  out = tmp_path / "out"
  small = ":--base_filters=4 --num_layers=2 --image_size=32,32"
  command = [
      sys.executable, "-m", "flexunet", "benchmark_quality", f"--sets=blobs={data}",
      f"--systems=flexunet{small},three=flexunet_folds{small}", "--minutes=0.1",
      "--seeds=3", f"--output_dir={out}", "--keep_work", "--json",
  ]  # fmt: skip
  done = subprocess.run(command, capture_output=True, text=True, timeout=600)
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)["entries"]
  entries = {entry["system"].partition(":")[0]: entry for entry in found}
  (run_dir,) = out.glob("work/*/run")
  alone = entries["flexunet"]
  for views, told in (("none", alone["dice"]["mean"]), ("mirror", alone["mirrored_dice"])):
    options = opening.PredictionOptions(views=ViewOptions.of(views))
    (scores,) = evaluate.evaluate(
        RunFolder.open(run_dir), ["test"], options=options, show_progress=False
    ).values()
    assert told == pytest.approx(scores["foreground_dice"]["mean"], abs=1e-12)
  assert 0 < alone["training_s"] < alone["with_setup_s"] and alone["steps"] > 0
  kept = max(row["val_foreground_dice"] for row in report.read_history(RunFolder.open(run_dir)))
  assert (alone["validation_dice"], entries["three"]["validation_dice"]) == (kept, None)
  members = sorted(out.glob("work/*/member_*/run"))
  assert [RunFolder.open(path).read_config().data.fold for path in members] == [0, 1, 2]
  three = entries["three"]
  for answer, told in (("label", three["dice"]["mean"]), ("mirrored", three["mirrored_dice"])):
    (metrics,) = out.glob(f"work/*/ensemble/{answer}/evaluation/metrics.json")
    mean = files.read_json(metrics)["test"]["foreground_dice"]["mean"]
    assert told == pytest.approx(mean, abs=1e-12)
  (result,) = (files.read_json(path) for path in out.glob("results/*three*.json"))
  assert result["details"]["networks"] == 3 and result["scores"]["subjects"]
  program.main(program._PROGRAM.parse([*command[3:], "--resume"]))
  assert "0 trainings" in capsys.readouterr().err
  with pytest.raises(InputError, match="--resume adds to them"):
    program.main(program._PROGRAM.parse([*command[3:], "--noresume"]))


def _opened(data: pathlib.Path):
  return dataset_source.open_dataset(None, data)
