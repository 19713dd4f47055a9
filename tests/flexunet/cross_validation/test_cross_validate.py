"""A cross-validation as a whole: what is left to do, what is refused, kills and continuations."""

import dataclasses
import shutil
import signal
import time

import flagged
import forked
import pytest
import run_samples

import flexunet
from flexunet import config, ensemble_folder, seen_subjects
from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.cross_validation import cross_validate, folder, processes
from flexunet.pipelines.augmentation.config import AugmentationConfig

SETTINGS = {"epochs": 2, "num_layers": 2, "base_filters": 4, "batch_size": 4, "previews": 0,
            "augmentation": "none", "precision": "float32"}  # fmt: skip


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  """Subjects a, b, c train and d validates; their folds are 0, 1, 2 and 0."""
  return flagged.write_dataset(tmp_path_factory.mktemp("data"))


def parts_of(data_dir, **training):
  return {
      "model": config.ModelConfig(),
      "data": config.DataConfig(data_dir=str(data_dir)),
      "training": config.TrainingConfig(epochs=3, **training),
      "augmentation": AugmentationConfig(),
  }


class Runner:
  """Stands in for processes: makes up a run whose held-out subjects are numbered by the fold."""

  def __init__(self, fails=(), dies_before=None):
    self.fails, self.dies_before, self.ran = fails, dies_before, []

  def __call__(self, places, ended):
    self.ended = ended
    return self

  def run(self, tasks):
    for task in tasks:
      if task.fold in self.fails:
        continue
      for stage in task.stages:
        if (task.fold, stage["stage"]) == self.dies_before:
          raise processes.Stopped(signal.SIGTERM)
        self.ran.append((task.fold, stage["stage"]))
        make_up(task, stage["stage"])
        self.ended(task, stage["stage"])
    return dict.fromkeys(self.fails, "no such thing.")


def make_up(task, stage):
  made = run_samples.evaluated_run(task.folder.parent / "made_up", first=10 * max(0, task.fold))
  made.model_keras.write_bytes(f"network of fold {task.fold}".encode())
  digest = files.sha256_of(made.model_keras)
  metrics = files.read_json(made.metrics_json)
  if stage == "ensemble":
    metrics["test"]["evaluated"]["model_sha256"] = ensemble_folder.open_runs(task.folder).digest()
    files.write_json(made.metrics_json, metrics)
    shutil.copytree(made.evaluation, task.folder / "evaluation")
    shutil.rmtree(made.path)
    return
  metrics["validation"] = metrics.pop("test")
  metrics["validation"]["evaluated"] |= {"model_sha256": digest, "counted_by": "subject"}
  files.write_json(made.metrics_json, metrics)
  made.cases_csv.write_text(made.cases_csv.read_text().replace("\ntest,", "\nvalidation,"))
  seen = seen_subjects.SubjectsSeen("blobs", frozenset("ab"), frozenset("c"))
  files.write_json(made.manifest_json, {seen_subjects.KEY: [seen.to_json()]})
  if stage == "train":
    shutil.rmtree(made.evaluation)
    shutil.copytree(made.path, task.folder)
  else:
    shutil.copytree(made.evaluation, task.folder / "evaluation")
  shutil.rmtree(made.path)


def start(monkeypatch, data_dir, path, runner, resume=False, **options):
  monkeypatch.setattr(processes, "FoldRunner", runner)
  monkeypatch.setattr(processes, "visible_gpus", list)
  # The networks are made up.
  monkeypatch.setattr(cross_validate.run_folder.RunFolder, "check_model", lambda self: None)
  job = cross_validate.check(parts_of(data_dir), path, resume=resume, **options)
  return cross_validate.run(job)


def results_of(path):
  return [(path / name).read_bytes()
          for name in ("cases.csv", "cross_validation.json", "report.html")]  # fmt: skip


@pytest.mark.parametrize("moment", [(0, "train"), (1, "score"), (2, "train"), (2, "score")])
def test_stopped_anywhere_it_continues_with_what_is_left_and_ends_with_the_same_bytes(
    monkeypatch, data_dir, tmp_path, moment
):
  whole = Runner()
  start(monkeypatch, data_dir, tmp_path / "whole", whole)
  assert whole.ran == [(fold, stage) for fold in range(3) for stage in ("train", "score")]
  first, second = Runner(dies_before=moment), Runner()
  with pytest.raises(processes.Stopped):
    start(monkeypatch, data_dir, tmp_path / "cv", first)
  assert not (tmp_path / "cv" / "cases.csv").exists()
  start(monkeypatch, data_dir, tmp_path / "cv", second, resume=True)
  assert first.ran + second.ran == whole.ran and second.ran[0] == moment
  assert results_of(tmp_path / "cv") == results_of(tmp_path / "whole")
  # Once more there is nothing to do, and nothing changes.
  third = Runner()
  start(monkeypatch, data_dir, tmp_path / "cv", third, resume=True)
  assert not third.ran and results_of(tmp_path / "cv") == results_of(tmp_path / "whole")


def test_a_fold_that_fails_is_named_and_resume_runs_it_alone(monkeypatch, data_dir, tmp_path):
  with pytest.raises(InputError, match="1 of 3 folds failed. fold 1: no such thing. The other"):
    start(monkeypatch, data_dir, tmp_path / "cv", Runner(fails=[1]))
  again = Runner()
  figures = start(monkeypatch, data_dir, tmp_path / "cv", again, resume=True)
  assert again.ran == [(1, "train"), (1, "score")]
  assert figures["pooled"]["evaluated"]["subjects"] == 12


def test_other_tolerances_score_again_and_a_lost_fold_is_trained_again(
    monkeypatch, data_dir, tmp_path
):
  start(monkeypatch, data_dir, tmp_path / "cv", Runner())
  shutil.rmtree(tmp_path / "cv" / "fold_1")
  again = Runner()
  start(monkeypatch, data_dir, tmp_path / "cv", again, resume=True)
  assert again.ran == [(1, "train"), (1, "score")]
  job = cross_validate.check(
      parts_of(data_dir), tmp_path / "cv", resume=True, tolerances_mm=["2"]
  )
  tasks = [cross_validate._task(job, job.plan, fold) for fold in job.plan.folds]
  assert [[stage["stage"] for stage in task.stages] for task in tasks] == [["score"]] * 3
  assert tasks[0].stages[0]["tolerances_mm"] == [2.0]


def test_a_changed_config_of_a_finished_fold_is_refused(monkeypatch, data_dir, tmp_path):
  start(monkeypatch, data_dir, tmp_path / "cv", Runner())
  run = tmp_path / "cv" / "fold_1" / "config.json"
  run.write_text(run.read_text().replace('"seed": 1', '"seeds": 1'))
  with pytest.raises(InputError, match="fold_1/config.json must be as the run wrote it"):
    start(monkeypatch, data_dir, tmp_path / "cv", Runner(), resume=True)


def test_the_ensemble_of_the_folds_is_scored_once_on_the_test_split(
    monkeypatch, data_dir, tmp_path
):
  first, again = Runner(), Runner()
  figures = start(monkeypatch, data_dir, tmp_path / "cv", first, evaluate_test=True)
  assert first.ran[-1] == (-1, "ensemble") and len(first.ran) == 7
  assert figures["ensemble_test"]["evaluated"]["split"] == "test"
  figures = start(monkeypatch, data_dir, tmp_path / "cv", again, resume=True, evaluate_test=True)
  assert not again.ran and "ensemble_test" in figures
  assert "ensemble_test" not in files.read_json(tmp_path / "cv" / "cross_validation.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": [0, 7]}, "--folds must be among those of the dataset, 0,1,2. Got: 7"),
        ({"folds": []}, "--folds must name folds"),
        ({"tolerances_mm": [0]}, "must be above 0"),
        ({"parallel": 10_000}, "--parallel must be at most|^$"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(
    monkeypatch, data_dir, tmp_path, options, message
):
  monkeypatch.setattr(processes, "visible_gpus", list)
  monkeypatch.setattr(processes.machine, "available_cpus", lambda: 2)
  with pytest.raises(InputError, match=message):
    cross_validate.check(parts_of(data_dir), tmp_path / "cv", **options)
  assert not (tmp_path / "cv").exists()


def test_a_folder_that_holds_something_and_a_dataset_of_one_fold_are_refused(data_dir, tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(InputError, match="must be new or empty"):
    cross_validate.check(parts_of(data_dir), tmp_path)
  alone = flagged.records("a", 0)
  version = flagged.dataset_samples.write_dataset(
      tmp_path / "data", {"train": alone, "validation": flagged.records("d", 100)}
  )
  with pytest.raises(InputError, match="needs subjects of two folds or more .* It has only one"):
    cross_validate.check(parts_of(version), tmp_path / "cv")
  with pytest.raises(InputError, match="--fold is what a cross-validation sets itself"):
    flexunet.cross_validate(tmp_path / "cv", data_dir=str(data_dir), fold=1)


def program(data_dir, path, *more):
  words = [f"--{name}={value}" for name, value in SETTINGS.items()]
  given = [f"--data_dir={data_dir}", f"--run_dir={path}", "--json", *words, *more]
  return forked.Forked("command_program", ["cross_validate", *given])


def with_two_folds_trained(whole, path):
  """Makes what a cross-validation has written when its third fold starts, of one that has ended."""
  shutil.copytree(whole, path)
  shutil.rmtree(path / "fold_2")
  begun = folder.CrossValidationFolder(path)
  begun.remove_results()
  plan = begun.read_plan()
  trained = {name: plan.trained[name] for name in ("fold_0", "fold_1")}
  begun.write(dataclasses.replace(plan, trained=trained))
  return path


@pytest.mark.slow
def test_killed_in_the_third_fold_and_resumed_the_table_is_the_same(data_dir, tmp_path):
  figures = flexunet.cross_validate(
      tmp_path / "whole", data_dir=str(data_dir), parallel=0, **SETTINGS
  )
  held_out = [one["subjects"] for one in figures.figures["per_fold"]]
  assert [sorted(names) for names in held_out] == [["a", "d"], ["b"], ["c"]]
  assert [run.config.data.fold for run in figures.runs] == [0, 1, 2]
  begun = with_two_folds_trained(tmp_path / "whole", tmp_path / "cv")
  process = program(data_dir, begun, "--resume")
  saved = tmp_path / "cv" / "fold_2" / "checkpoints"
  while not list(saved.glob("*_step_*")):
    assert process.poll() is None
    time.sleep(0.05)
  process.kill()
  process.communicate()
  again = program(data_dir, tmp_path / "cv", "--resume")
  _, error = again.communicate(timeout=600)
  assert again.returncode == 0, error
  assert "fold 0" not in error and "fold 2: Dice" in error
  table = (tmp_path / "whole" / "cases.csv").read_bytes()
  assert (tmp_path / "cv" / "cases.csv").read_bytes() == table
  pooled = [files.read_json(tmp_path / name / "cross_validation.json")["pooled"]
            for name in ("whole", "cv")]  # fmt: skip
  assert pooled[0] == pooled[1]
