"""The trainer from flags to run folder, on a tiny dataset."""

import contextlib
import csv
import dataclasses
import errno
import hashlib
import io
import json
import os
import resource
import shutil
import zipfile

import dataset_samples
import flagged
import forked
import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from flexunet import config, run_folder
from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.evaluation import evaluate
from flexunet.network import weights
from flexunet.pipelines.augmentation.config import AugmentationConfig
from flexunet.prediction.predictor import load_model
from flexunet.training import (
  callbacks,
  checkpoints,
  devices,
  diagnostics,
  input_pipeline,
  planning,
  resuming,
  run_setup,
  trainer,
)


def blobs(subjects, first_seed):
  made = []
  for subject in subjects:
    for index in range(4):
      image, label = dataset_samples.blob_slice(20, 28, first_seed + len(made))
      made.append({"image": image, "label": label, "subject": subject, "volume": subject,
                   "slice_index": index, "spacing_mm": (1.0, 2.0)})  # fmt: skip
  return made


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  splits = {"train": blobs("abc", 0), "validation": blobs("d", 100), "test": blobs("e", 200)}
  return dataset_samples.write_dataset(folder, splits)


def configs(data_dir, model=None, data=None, **changes):
  model = {"num_layers": 2, "base_filters": 4, **(model or {})}
  settings = {"epochs": 2, "batch_size": 4, "previews": 2, **changes}
  return (
      config.ModelConfig(**model),
      config.DataConfig(data_dir=str(data_dir), **(data or {})),
      config.TrainingConfig(**settings),
  )


def train(data_dir, folder, **changes):
  parts = configs(data_dir, **changes)
  opened = input_pipeline.open_data(parts[1])
  complete = run_setup.complete(*parts, opened)
  return trainer.fit(complete, folder, opened)


@pytest.mark.parametrize(
    "name",
    ["config.json",
     *(pytest.param(name, marks=pytest.mark.slow)
       for name in ("history.csv", "epoch_0001.png", "report.html"))],
)  # fmt: skip
def test_a_disk_that_refuses_a_file_is_one_line_and_keeps_the_checkpoints(
    data_dir, tmp_path, monkeypatch, name
):
  write = files.write_bytes

  def full(path, data):
    if path.name == name:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    write(path, data)

  monkeypatch.setattr(files, "write_bytes", full)
  with pytest.raises(InputError, match="must be writable and have space, but: No space left"):
    train(data_dir, tmp_path / "run", checkpoint_steps=1)
  kept = checkpoints.CheckpointStore(tmp_path / "run" / "checkpoints")
  assert kept.names() == [] if name == "config.json" else kept.read()[2] == []


def test_a_network_that_does_not_fit_on_the_disk_leaves_the_one_before(tmp_path, finished):
  run = copied(finished[0], tmp_path / "run")
  before = run.model_keras.read_bytes()
  network = keras.saving.load_model(run.model_keras, compile=False)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))  # Bytes of a file.
  try:
    with pytest.raises(InputError, match="File too large"), diagnostics.disk_explained(run):
      callbacks.save_model(network, run)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert run.model_keras.read_bytes() == before
  assert not list(run.path.glob(".model*"))
  run.check_model()


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EACCES, "Permission denied"),
     RuntimeError("errno = 28, No space left on device"),
     tf.errors.ResourceExhaustedError(None, None, "/run/tensorboard; No space left on device")],
)  # fmt: skip
def test_what_the_disk_says_is_passed_on_from_every_library(tmp_path, error):
  run = run_folder.RunFolder(tmp_path)
  refused = pytest.raises(InputError, match="Permission denied|No space left")
  with refused, diagnostics.disk_explained(run):
    raise error
  with pytest.raises(RuntimeError, match="something else"), diagnostics.disk_explained(run):
    raise RuntimeError("something else")


def copied(run, folder):
  shutil.copytree(run.path, folder)
  return run_folder.RunFolder(folder)


def test_a_finished_run_knows_its_network(finished, tmp_path):
  run = copied(finished[0], tmp_path / "run")
  written = json.loads(run.manifest_json.read_text())["model_sha256"]
  assert written == [hashlib.sha256(run.model_keras.read_bytes()).hexdigest()]
  load_model(run)
  data = bytearray(run.model_keras.read_bytes())
  data[len(data) // 2] ^= 16
  run.model_keras.write_bytes(data)
  with pytest.raises(InputError, match="must be the network that the run wrote"):
    load_model(run)
  with pytest.raises(InputError, match="must be the network that the run wrote"):
    run_folder.network_file(run.path, "--init_from")
  parts = configs(run.read_config().data.data_dir)
  with pytest.raises(InputError, match="must be the network that the run wrote"):
    resuming.check_paths(*parts[1:], run.path, resume=True)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(finished, tmp_path, bad):
  network = keras.saving.load_model(finished[0].model_keras, compile=False)
  kernel = network.get_layer("encoder0_conv0").kernel
  values = np.array(kernel)
  values[0, 0, 0, 0] = bad
  kernel.assign(values)
  network.save(tmp_path / "bad.keras")
  with pytest.raises(InputError, match=r"bad\.keras must hold finite weights.*encoder0_conv0"):
    weights.read_model(tmp_path / "bad.keras")


def test_flipped_bits_of_a_model_file_without_a_run_end_in_one_line(finished, tmp_path):
  whole = finished[0].model_keras.read_bytes()
  generator = np.random.default_rng(4)
  for place in generator.integers(0, len(whole), 12):
    data = bytearray(whole)
    data[place] ^= 1 << generator.integers(8)
    (tmp_path / "m.keras").write_bytes(data)
    with contextlib.suppress(InputError):  # Or harmless, in a time or a name that nobody reads.
      weights.read_model(tmp_path / "m.keras")


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
  return train(data_dir, tmp_path_factory.mktemp("runs") / "run", validation_epochs=1)


def test_a_second_trainer_in_a_run_folder_is_refused(data_dir, tmp_path):
  with files.locked(tmp_path / "run", "--run_dir"):
    with pytest.raises(InputError, match=f"--run_dir .*must be free.*process {os.getpid()}"):
      train(data_dir, tmp_path / "run")
    with pytest.raises(InputError, match="must be free"):  # Before TensorFlow is loaded.
      parts = configs(data_dir)
      resuming.check_paths(*parts[1:], tmp_path / "run", resume=True)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_a_run_leaves_everything_it_promises(finished):
  run, rows = finished
  assert len(rows) == 2
  for path in (run.config_json, run.manifest_json, run.model_keras, run.history_csv,
               run.curves_png, run.report_html):  # fmt: skip
    assert path.stat().st_size > 0, path
  assert len(list(run.previews.glob("*.png"))) == 2
  written = list(csv.DictReader(run.history_csv.open()))
  assert [row["epoch"] for row in written] == ["1", "2"]
  assert {"loss", "foreground_dice", "dice_dim", "dice_bright", "dice_coef_multiclass",
          "val_foreground_dice", "learning_rate"} <= set(written[0])  # fmt: skip
  assert not [path for path in run.path.iterdir() if path.name.startswith(".")]


def test_the_config_is_complete_and_reads_back(finished):
  run, _ = finished
  stored = run.read_config()
  of_others = {"subject_key", "volume_key", "slice_key", "spacing_key"}
  for part in (stored.model, stored.data, stored.training):
    for name, value in vars(part).items():
      open_ones = {
          "dataset", "cache_dir", "init_from", "shown_channel", "budget", "network_size",
          "data_service", *of_others,
      }  # fmt: skip
      assert value is not None or name in open_ones, name
  assert stored.model.image_size == (20, 28) and stored.data.resize_mode == "pad"
  assert stored.dataset_facts.spacing_mm == (1.0, 2.0)
  manifest = json.loads(run.manifest_json.read_text())
  assert manifest["data_fingerprint"] == dataset_samples.FINGERPRINT
  assert manifest["versions"]["keras"] == keras.__version__


@pytest.mark.slow
def test_config_and_manifest_hold_no_path_of_this_machine(data_dir, tmp_path, monkeypatch):
  """As a user gives them: absolute. The run still finds its data, also when both have moved."""
  monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to={tmp_path}/dump")
  shutil.copytree(data_dir, tmp_path / "here" / "data")
  run, _ = train_with_command(tmp_path / "here" / "data", tmp_path / "here" / "runs" / "one")
  for file in (run.config_json, run.manifest_json, run.report_html):
    text = file.read_text()
    for word in (str(tmp_path), tmp_path.parts[1] + "/", "/home", os.path.expanduser("~") + "/"):
      assert word not in text, file
  manifest = json.loads(run.manifest_json.read_text())
  assert manifest["command"] == ["flexunet.train", "--data_dir=data", "--run_dir=one"]
  assert manifest["environment"]["XLA_FLAGS"] == "--xla_dump_to=dump"
  assert json.loads(run.config_json.read_text())["data"]["data_dir"] == "../../data"
  shutil.move(tmp_path / "here", tmp_path / "there")
  moved = run_folder.RunFolder(tmp_path / "there" / "runs" / "one")
  assert moved.read_config().dataset_in(None)[1] == tmp_path / "there" / "data"
  assert evaluate.evaluate(moved, ["test"])["test"]["evaluated"]["split"] == "test"
  shutil.move(tmp_path / "there" / "data", tmp_path / "elsewhere")
  with pytest.raises(InputError, match="--data_dir must name the folder that holds blobs"):
    evaluate.evaluate(moved, ["test"])
  assert evaluate.evaluate(moved, ["test"], data_dir=tmp_path / "elsewhere")
  parts = configs(tmp_path / "elsewhere")
  opened = input_pipeline.open_data(parts[1])
  trainer.fit(run_setup.complete(*parts, opened), moved.path, opened, resume=True)


def train_with_command(data_dir, folder):
  parts = configs(data_dir)
  opened = input_pipeline.open_data(parts[1])
  command = ["/usr/bin/flexunet", f"--data_dir={data_dir}", f"--run_dir={folder}"]
  return trainer.fit(run_setup.complete(*parts, opened), folder, opened, command)


@pytest.mark.slow
def test_a_run_that_began_from_another_is_resumed_by_any_path_to_it(data_dir, tmp_path):
  run, _ = train(data_dir, tmp_path / "first", epochs=1)
  given = {"epochs": 1, "init_from": str(run.path)}
  train(data_dir, tmp_path / "second", **given)
  saved = run_folder.RunFolder(tmp_path / "second").read_config()
  assert saved.training.init_from == str(run.path)
  shutil.copytree(run.path, tmp_path / "moved" / "first")
  for place, fits in (("moved/first", True), ("first/model.keras", False)):
    now = dataclasses.replace(
        saved, training=dataclasses.replace(saved.training, init_from=str(tmp_path / place))
    )
    if fits:
      assert resuming.merge(saved, now).training.init_from == str(tmp_path / place)
    else:
      with pytest.raises(InputError, match="--init_from was"):
        resuming.merge(saved, now)


def test_the_saved_model_is_the_one_that_scored_best_as_evaluation_scores_it(finished):
  run, rows = finished
  # The network takes slices at their own size, so that both score the same pixels.
  figures = evaluate.evaluate(run, ["validation"], show_progress=False)["validation"]
  best = max(rows, key=lambda row: row["val_foreground_dice"])
  assert figures["foreground_dice"]["mean"] == pytest.approx(best["val_foreground_dice"], abs=1e-5)
  for name, scores in figures["per_class"].items():
    assert scores["dice"]["mean"] == pytest.approx(best[f"val_dice_{name}"], abs=1e-5)


def test_the_saved_model_goes_without_the_optimizer(finished):
  run, _ = finished
  network = keras.saving.load_model(run.model_keras)
  assert not network.compiled
  assert isinstance(network.output, keras.KerasTensor)
  stored = zipfile.ZipFile(run.model_keras).read("model.weights.h5")
  with h5py.File(io.BytesIO(stored)) as weights:
    assert "optimizer" not in weights and "layers" in weights


def test_classes_that_a_split_lacks_are_said_kept_and_reported(tmp_path, capsys):
  splits = {"train": blobs("ab", 0), "validation": blobs("d", 100), "test": blobs("e", 200)}
  for record in splits["validation"]:
    record["label"] = record["label"] * (record["label"] < 2)
  for record in splits["test"]:
    record["label"] = record["label"] * 0
  folder = dataset_samples.write_dataset(tmp_path / "data", splits)
  run, _ = train(folder, tmp_path / "run", epochs=1, previews=0)
  empty = "Split test has no foreground: all 4 labels are background. No score can come of it."
  lacks = "Class bright occurs in train, but not in validation."
  assert json.loads(run.manifest_json.read_text())["label_warnings"] == [empty, lacks]
  said, shown = capsys.readouterr().err, run.report_html.read_text()
  for line in (empty, lacks):
    assert f"Warning: {line}" in said and line in shown


def test_the_network_starts_from_the_classes_shares(data_dir):
  parts = configs(data_dir)
  opened = input_pipeline.open_data(parts[1])
  complete = run_setup.complete(*parts, opened)
  epoch_order = input_pipeline.make_order(complete, opened.train)
  shares = input_pipeline.drawn_pixel_shares(opened.train, epoch_order)
  # All slices hold 25 pixels of each class, unless the blobs overlap, among 20 x 28.
  assert shares.sum() == pytest.approx(1) and 0.9 < shares[0] < 1 - 25 / 560


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data": {"train_split": "trian"}}, "Did you mean 'train'"),
        ({"data": {"validation_split": "train"}}, "must differ"),
        ({"model": {"num_classes": 5}}, "num_classes must be 3"),
        ({"model": {"image_size": (8, 8)}, "data": {"resize_mode": "pad"}}, "20x28 pixels do not"),
        ({"model": {"base_kernels": 4}}, "odd"),
        ({"loss": "dise"}, "Did you mean 'dice'"),
        ({"data": {"dataset": "blobs/slicse"}}, "slicse|not blobs"),
        ({"data": {"label_key": "mask"}}, "mask"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    data_dir, tmp_path, changes, message
):
  with pytest.raises(InputError, match=message):
    train(data_dir, tmp_path / "run", **changes)
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_time_limit_ends_the_run_with_a_model(data_dir, tmp_path):
  run, rows = train(data_dir, tmp_path / "run", max_minutes=0.05, epochs=None, previews=0)
  assert run.model_keras.is_file() and run.read_config().training.epochs > 1000
  assert rows[-1]["val_foreground_dice"] is not None


@pytest.mark.parametrize("free", [2**20, 2**40])
def test_too_large_a_batch_is_reported_before_training(data_dir, monkeypatch, capsys, free):
  monkeypatch.setattr(devices, "free_memory", lambda: free)
  parts = configs(data_dir, batch_size=64)
  complete = run_setup.complete(*parts, input_pipeline.open_data(parts[1]))
  assert complete.training.batch_size == 64  # As given.
  lines = capsys.readouterr().err.splitlines()
  assert sum("--batch_size (now 64" in line for line in lines) == (1 if free == 2**20 else 0)


def test_large_slices_are_scaled_down_and_small_ones_kept():
  from flexunet.pipelines import record_table

  def table(height, width):
    one = np.array([0])
    return record_table.RecordTable(
        files=["f"], shard=one, offset=one, subject=np.array(["a"]), volume=np.array(["a"]),
        slice_index=one, fold=one, height=np.array([height]), width=np.array([width]),
        pixels=np.array([[10, 1]]),
    )  # fmt: skip

  def planned(height, width):
    return planning.plan(
        config.ModelConfig(), config.DataConfig(), config.TrainingConfig(),
        AugmentationConfig(),
        planning.Facts(train=table(height, width), validation=table(height, width),
                           class_names=["background", "lesion"]),
    )  # fmt: skip

  small, large = planned(174, 162), planned(650, 325)
  assert (small.model.image_size, small.data.resize_mode) == ((176, 176), "pad")
  assert (large.model.image_size, large.data.resize_mode) == ((256, 128), "fit")
  assert set(small.reasons) >= {"image_size", "loss", "learning_rate"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags, message",
    [
        (["--learning_rat=1"], "Did you mean: learning_rate"),
        (["--loss=dise"], "Did you mean 'dice'"),
        (["--dataset=blbos"], "not blbos"),
        (["--batch_size=0"], "batch_size"),
    ],
)
def test_the_program_ends_with_one_line_and_exit_code_1(data_dir, tmp_path, flags, message):
  where = (f"--data_dir={data_dir}", f"--run_dir={tmp_path / 'run'}")
  done = forked.command("train", *where, *flags)
  assert done.returncode == 1
  assert message in done.stderr and "Traceback" not in done.stderr
  assert not (tmp_path / "run").exists()


def test_the_free_memory_is_measured_before_the_data_are_opened(data_dir, monkeypatch):
  order = []
  open_dataset = input_pipeline.open_dataset
  monkeypatch.setattr(devices, "free_memory", lambda: order.append("measured") or 12345)
  monkeypatch.setattr(
      input_pipeline, "open_dataset", lambda *given: order.append("opened") or open_dataset(*given)
  )
  opened = input_pipeline.open_data(configs(data_dir)[1])
  assert order == ["measured", "opened"] and opened.free_device_bytes == 12345


def test_callbacks_out_of_their_order_are_refused(data_dir, tmp_path):
  made = flagged.setup(data_dir)
  built = trainer.Trainer(run_folder.RunFolder(tmp_path), made.config, made.prepared)
  trainer.check_order(built.steering)
  first, *others = built.steering
  foreign = keras.callbacks.History()
  for wrong in ([*others, first], [first, *built.steering], [*built.steering, foreign]):
    with pytest.raises(ValueError, match="must stand in the order"):
      trainer.check_order(wrong)
