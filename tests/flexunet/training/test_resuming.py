"""A run killed at any moment and resumed ends like one that was never stopped."""

import json
import random
import time

import pytest
import run_samples
from resume_runs import start, train

from flexunet import config
from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.dataset_facts import DatasetFacts
from flexunet.training import checkpoints, resuming

_KILLED = -9


@pytest.fixture(scope="module")
def uninterrupted(blob_data, tmp_path_factory):
  code, expected, stderr = train(blob_data, tmp_path_factory.mktemp("whole") / "run")
  assert code == 0, stderr
  return expected


# In the order in which a run comes to them; counted from the start of each process.
_MOMENTS = ("within_step:7", "within_save:5", "before_pointer:2", "within_validation:1",
            "at_epoch_end:1", "before_report")  # fmt: skip


@pytest.mark.slow
def test_killed_at_every_kind_of_moment_it_ends_the_same(blob_data, uninterrupted, tmp_path):
  for moment in _MOMENTS:
    code, _, stderr = train(blob_data, tmp_path / "run", "--resume", f"--kill={moment}")
    assert code == _KILLED, f"{moment}: {stderr}"
  code, found, stderr = train(blob_data, tmp_path / "run", "--resume")
  assert (code, found) == (0, uninterrupted), stderr


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_the_same(blob_data, uninterrupted, tmp_path):
  generator = random.Random(5)
  for _ in range(4):
    process = start(blob_data, tmp_path / "run", "--resume")
    # Whenever it comes, while it starts or trains; later ones have less to do before the end.
    before = time.monotonic()
    wait = generator.uniform(0.02, 0.3)
    seen = len(list((tmp_path / "run").glob("checkpoints/*_step_*")))
    while process.poll() is None:
      names = list((tmp_path / "run").glob("checkpoints/*_step_*"))
      if len(names) > seen or time.monotonic() - before > 60:
        time.sleep(wait)
        break
      time.sleep(0.005)
    process.kill()
    process.communicate()
  code, found, stderr = train(blob_data, tmp_path / "run", "--resume")
  assert (code, found) == (0, uninterrupted), stderr


@pytest.mark.slow
def test_sigterm_saves_and_says_how_to_resume(blob_data, uninterrupted, tmp_path):
  # Within the 14th step, then after the 27 steps of three epochs of 9.
  for moment, steps in (("terminate_step:14", 14), ("terminate_validation:2", 27)):
    code, _, stderr = train(
        blob_data, tmp_path / "run", "--resume", f"--kill={moment}", checkpoint_steps=0
    )
    assert code == 128 + 15 and "--resume" in stderr, stderr
    saved, _, _ = checkpoints.CheckpointStore(tmp_path / "run" / "checkpoints").read()
    assert saved.state["step"] == steps
  code, found, stderr = train(blob_data, tmp_path / "run", "--resume", checkpoint_steps=0)
  assert (code, found) == (0, uninterrupted), stderr


@pytest.mark.slow
def test_after_the_end_nothing_is_done_but_a_longer_run_continues(blob_data, tmp_path):
  run = tmp_path / "run"
  code, expected, _ = train(blob_data, run, epochs=1)
  model = (run / "model.keras").read_bytes()
  code, found, stderr = train(blob_data, run, "--resume", epochs=1)
  assert code == 0 and "Nothing to do" in stderr and found == expected
  code, _, stderr = train(blob_data, run, "--resume", epochs=2, batch_size=6)
  assert code == 1 and "--batch_size was 4, now it is 6" in stderr
  assert (run / "model.keras").read_bytes() == model
  code, found, stderr = train(blob_data, run, "--resume", epochs=2)
  assert code == 0, stderr
  assert [row["epoch"] for row in json.loads(found["history"])] == [1, 2]


@pytest.mark.slow
def test_stopped_early_stays_stopped(blob_data, tmp_path):
  # So small a rate that nothing gets better, without statistics of a normalization that could:
  # it stops after one validation without gain.
  knobs = {"learning_rate": 1e-12, "early_stopping_patience": 1, "epochs": 9}
  fixed = "--model=" + json.dumps({"normalization": "none"})
  code, expected, stderr = train(blob_data, tmp_path / "whole", fixed, **knobs)
  assert code == 0 and len(json.loads(expected["history"])) < 9, stderr
  assert train(blob_data, tmp_path / "run", fixed, "--kill=before_report", **knobs)[0] == _KILLED
  code, found, stderr = train(blob_data, tmp_path / "run", fixed, "--resume", **knobs)
  assert (code, found) == (0, expected), stderr
  assert (tmp_path / "run" / "report.html").is_file()


_DEEP = {"deep_supervision": True, "num_layers": 3}


@pytest.mark.slow
@pytest.mark.parametrize(
    "knobs, model",
    [
        ({"optimizer": "muon", "ema_momentum": 0.9, "gradient_accumulation": 2,
          "steps_per_execution": 4, "checkpoint_steps": 4}, {}),
        ({"optimizer": "schedule_free"}, _DEEP),
        ({"weight_average": 0.5, "precision": "mixed_float16", "label_smoothing": 0.1}, {}),
    ],
    ids=["muon", "schedule_free", "weight_average"],
)  # fmt: skip
def test_whatever_the_optimizer_averages_and_outputs_it_ends_the_same(
    blob_data, tmp_path, knobs, model
):
  shape = f"--model={json.dumps(model)}"
  code, expected, stderr = train(blob_data, tmp_path / "whole", shape, epochs=2, **knobs)
  assert code == 0, stderr
  # Behind the middle, where the mean of the last weights has begun; executions are counted.
  execution = 14 // knobs.get("steps_per_execution", 1)
  killed, _, stderr = train(
      blob_data, tmp_path / "run", shape, f"--kill=within_step:{execution}", epochs=2, **knobs
  )
  assert killed == _KILLED, stderr
  code, found, stderr = train(blob_data, tmp_path / "run", shape, "--resume", epochs=2, **knobs)
  assert (code, found) == (0, expected), stderr


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_costs_steps_not_exactness(blob_data, uninterrupted, tmp_path):
  train(blob_data, tmp_path / "run", "--kill=at_epoch_end:2")
  store = checkpoints.CheckpointStore(tmp_path / "run" / "checkpoints")
  path = tmp_path / "run" / "checkpoints" / store.names()[0] / "arrays.npz"
  path.write_bytes(path.read_bytes()[:-9])
  code, found, stderr = train(blob_data, tmp_path / "run", "--resume")
  assert code == 0 and "damaged" in stderr and found == uninterrupted, stderr


def run_config(**changes):
  facts = {
      "name": "blobs/slices/1.0.0", "fingerprint": "f" * 16, "slice_plan": None, "intensity": None,
      "label_scheme": run_samples.SCHEME, **changes.pop("facts", {}),
  }  # fmt: skip
  reasons = changes.pop("reasons", {})
  return config.RunConfig(
      model=config.ModelConfig(num_classes=2),
      data=config.DataConfig(),
      training=config.TrainingConfig(**changes),
      dataset_facts=DatasetFacts(**facts),
      reasons=reasons,
  )


def test_what_was_planned_stays_when_another_machine_would_plan_otherwise():
  saved = run_config(batch_size=8, reasons={"batch_size": "fits into memory"})
  now = run_config(batch_size=2, reasons={"batch_size": "fits into less"})
  assert resuming.merge(saved, now).training.batch_size == 8


@pytest.mark.parametrize("given", ["given", "planned"])
def test_a_given_flag_must_be_given_again(given):
  saved = run_config(learning_rate=0.1, reasons={"learning_rate": "given"})
  now = run_config(learning_rate=0.2, reasons={"learning_rate": given})
  with pytest.raises(InputError, match="--learning_rate was 0.1, now it is 0.2.*another --run_dir"):
    resuming.merge(saved, now)


def test_the_length_and_what_is_kept_may_change():
  saved = run_config(epochs=5, max_minutes=1.0, reasons={"epochs": "given"})
  now = run_config(epochs=9, max_minutes=2.0, keep_checkpoints=5, reasons={"epochs": "given"})
  merged = resuming.merge(saved, now).training
  assert (merged.epochs, merged.max_minutes, merged.keep_checkpoints) == (9, 2.0, 5)


def test_other_data_are_refused():
  with pytest.raises(InputError, match="data fingerprint was ffff.*now it is eeee"):
    resuming.merge(run_config(), run_config(facts={"fingerprint": "e" * 16}))


def test_resume_starts_a_run_where_there_is_none(tmp_path):
  assert resuming.existing_run(tmp_path / "new") is None
  (tmp_path / ".config.json.half").write_text("{")  # Killed while it wrote its first file.
  assert resuming.existing_run(tmp_path) is None
  (tmp_path / "checkpoints").mkdir()  # Killed before it.
  assert resuming.existing_run(tmp_path) is None


def begun(folder, epochs: int = 0, finished: bool = False, checkpoints: bool = True):
  """Makes the files of a run by which a resume decides."""
  files.write_json(folder / "config.json", {})
  if checkpoints:
    (folder / "checkpoints").mkdir()
  if epochs:
    rows = [f"{epoch},{9 * epoch}\n" for epoch in range(1, epochs + 1)]
    (folder / "history.csv").write_text("epoch,step\n" + "".join(rows))
  if finished:
    (folder / "report.html").write_text("")
  return folder


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path, epochs):
  assert resuming.existing_run(begun(tmp_path, epochs)).path == tmp_path


@pytest.mark.parametrize(
    "made",
    [{"checkpoints": False}, {"epochs": 2}, {"epochs": 1, "finished": True},
     {"checkpoints": False, "finished": True}],
)  # fmt: skip
def test_a_run_whose_checkpoints_are_gone_is_not_begun_again(tmp_path, made):
  with pytest.raises(InputError, match="needs the checkpoints of.*another --run_dir"):
    resuming.existing_run(begun(tmp_path, **made))


def test_resume_refuses_a_folder_of_something_else(tmp_path):
  (tmp_path / "thesis.txt").write_text("")
  with pytest.raises(InputError, match="must be new or empty"):
    resuming.existing_run(tmp_path)
