"""What is shown while a run trains: the progress line, and the event files of TensorBoard."""

import io
import re
import socket
import sys
import types

import flagged
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.plugins.hparams import metadata as hparams_metadata

from flexunet import config, run_folder
from flexunet.core import files, progress
from flexunet.core.errors import InputError
from flexunet.reporting import event_files, overlay
from flexunet.training import callbacks, monitoring, trainer


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return flagged.write_dataset(tmp_path_factory.mktemp("data"))


def accumulated(folder):
  """Returns the events of a folder as TensorBoard reads them."""
  return event_accumulator.EventAccumulator(
      str(folder), size_guidance={event_accumulator.TENSORS: 0}
  ).Reload()


def figures(folder):
  """Returns tag -> [(step, value), ...] of the figures in a folder, to six digits."""
  found = accumulated(folder)
  return {
      tag: [(one.step, round(float(tf.make_ndarray(one.tensor_proto)), 6))
            for one in found.Tensors(tag)]
      for tag in found.Tags()["tensors"]
      if found.SummaryMetadata(tag).plugin_data.plugin_name == "scalars"
  }  # fmt: skip


def graphs(folder):
  """Returns the graphs in the event files of a folder."""
  found = []
  for file in folder.glob("events*"):
    for record in tf.data.TFRecordDataset(str(file)):
      event = tf.compat.v1.Event.FromString(record.numpy())
      if event.graph_def:
        found.append(tf.compat.v1.GraphDef.FromString(event.graph_def))
  return found


@pytest.mark.parametrize("given", [(), ("--deep_supervision", "--num_layers=3")])
def test_the_graph_holds_every_layer_and_no_weights(data_dir, tmp_path, given):
  made = flagged.setup(data_dir, "--tensorboard_graph", "--base_filters=32", *given)
  built = trainer.Trainer(run_folder.RunFolder(tmp_path), made.config, made.prepared)
  network = made.prepared.network
  log = next(one for one in built.steering if isinstance(one, monitoring.TensorBoardLog))
  log.set_model(network)
  for _ in range(2):  # Once, however often `fit` is called.
    log.on_train_begin()
  (graph,) = graphs(run_folder.RunFolder(tmp_path).tensorboard)
  scopes = {part for node in graph.node for part in node.name.split("/")}
  layers = {
      layer.name for layer in network.layers if layer.weights or "pool" in layer.name
  }
  assert {"encoder0_conv0", "pool0", "head"} <= layers <= scopes
  # Far less than the weights in float32, more than 100 kB.
  assert graph.ByteSize() < 4 * network.count_params() and network.count_params() > 25_000
  shapes = {node.attr["shape"].shape.dim[1].size for node in graph.node if node.name == "image"}
  assert shapes == {20}


def test_constants_lose_their_values_and_keep_their_shape():
  large, small = tf.range(1000.0), tf.constant([1.0, 2.0])
  image = keras.Input((4,))
  outputs = keras.layers.Lambda(lambda x: x[:, :1] * large.numpy() + small.numpy()[0])(image)
  graph = monitoring.graph_of(keras.Model(image, outputs))
  sizes = {
      tuple(d.size for d in node.attr["value"].tensor.tensor_shape.dim):
          len(node.attr["value"].tensor.tensor_content)
      for node in graph.node if node.op == "Const"
  }  # fmt: skip
  assert sizes[(1000,)] == 0 and graph.ByteSize() < 4000


def test_without_the_flag_no_graph_is_written(data_dir, tmp_path):
  made = flagged.setup(data_dir)
  built = trainer.Trainer(run_folder.RunFolder(tmp_path), made.config, made.prepared)
  log = next(one for one in built.steering if isinstance(one, monitoring.TensorBoardLog))
  log.set_model(made.prepared.network)
  log.on_train_begin()
  assert not graphs(run_folder.RunFolder(tmp_path).tensorboard)


def test_event_files_hold_figures_and_sheets_and_not_the_name_of_the_machine(
    data_dir, tmp_path
):
  made = flagged.setup(data_dir)
  run = run_folder.RunFolder(tmp_path)
  log = next(one for one in trainer.Trainer(run, made.config, made.prepared).steering
             if isinstance(one, monitoring.TensorBoardLog))  # fmt: skip
  log.set_model(made.prepared.network)
  sheet = np.zeros((3, 5, 3), np.uint8)
  sheet[1, 2] = 200
  files.write_bytes(run.preview_png(0), overlay.encode_png(sheet))
  log._history._clock.step = 6
  log.on_epoch_end(0, {"loss": 0.5, "val_loss": 0.25, "nothing": float("nan")})
  for file in run.tensorboard.rglob("events*"):
    assert socket.gethostname() not in file.name and "tfevents" in file.name
  trained, validated = (figures(run.tensorboard / name) for name in ("train", "validation"))
  assert trained == {"epoch_loss": [(6, 0.5)]}
  assert validated == {"loss": [(6, 0.25)], "epoch_loss": [(6, 0.25)]}
  found = accumulated(run.tensorboard)
  (value,) = found.Tensors("previews")
  width, height, png = tf.make_ndarray(value.tensor_proto)
  assert (value.step, int(width), int(height)) == (6, 5, 3)
  np.testing.assert_array_equal(tf.io.decode_png(png).numpy(), sheet)
  assert found.SummaryMetadata("previews").plugin_data.plugin_name == "images"


def test_another_backend_is_refused(monkeypatch):
  monkeypatch.setattr(keras.config, "backend", lambda: "jax")
  with pytest.raises(InputError, match="--tensorboard_graph needs .*Got: jax"):
    monitoring.check(config.TrainingConfig(tensorboard_graph=True))
  monitoring.check(config.TrainingConfig())


class Terminal(io.StringIO):
  """A screen of some width that keeps all that was written to it."""

  def isatty(self):
    return True


def shown_lines(screen: io.StringIO) -> list[str]:
  """Returns what stands on each line of the screen: after a carriage return text is overwritten."""
  lines = []
  for line in screen.getvalue().split("\n"):
    cells = ""
    for part in line.split("\r"):
      cells = part + cells[len(part) :]
    lines.append(cells.rstrip())
  return lines


def live_lines(screen: io.StringIO) -> list[str]:
  """Returns every state of the live line."""
  return [part.strip() for part in re.split("[\r\n]", screen.getvalue()) if part.strip()]


def run_epochs(monkeypatch, screen, epochs, max_minutes=0.0, message=""):
  """Runs the line over epochs of 10 steps of 2 s each and a validation of 3 s after each."""
  now = [0.0]
  monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
  monkeypatch.setattr(progress, "_TERMINAL_SECONDS", 0.0)
  monkeypatch.setattr(progress, "_LOG_SECONDS", 0.0)
  monkeypatch.setattr(sys, "stderr", screen)
  total = 10_000 if max_minutes else epochs
  clock = callbacks.RunClock(10 * total, max_minutes, steps_per_epoch=10)
  clock.set_model(types.SimpleNamespace(stop_training=False))
  line = monitoring.ProgressLine(clock)
  line.on_train_begin()
  for epoch in range(epochs):
    clock.on_epoch_begin(epoch)
    for step in range(10):
      now[0] += 2.0
      for one in (clock, line):
        one.on_train_batch_end(step, {"loss": 0.2144, "foreground_dice": 0.5})
      if message and (epoch, step) == (0, 5):
        progress.say(message)
    clock.on_epoch_end(epoch)
    now[0] += 3.0
    logs = {"loss": 0.2, callbacks.MONITOR: 0.8731, "val_loss": 0.3, "foreground_dice": 0.5}
    line.on_epoch_end(epoch, logs)
  clock.on_epoch_begin(epochs)
  line.on_train_batch_end(0, {})
  line.close()
  return line


def test_the_line_shows_the_validation_dice_first_and_the_time_left_of_the_run(monkeypatch):
  screen = Terminal()
  line = run_epochs(monkeypatch, screen, epochs=3)
  states = live_lines(screen)
  assert states[0] == "Preparing the first step."
  assert states[1] == "val_dice -  loss 0.214  epoch 1/3"
  # Five steps of 2 s each say how long one takes, and 25 are left.
  assert states[5] == "val_dice -  loss 0.214  epoch 1/3  0:50 left"
  # 10 steps of 2 s, and the validation of 3 s that each epoch has had so far.
  assert "val_dice 0.873  loss 0.214  epoch 3/3  0:21 left" in states
  assert line.text() == "val_dice 0.873  loss 0.200  epoch 3/3  0:00 left"
  lasting = "val_dice 0.873  val_loss 0.300  loss 0.200  dice 0.500  epoch"
  assert f"{lasting} 1/3  after 0:23" in states and f"{lasting} 3/3  after 1:09" in states


def test_the_time_limit_is_the_time_left(monkeypatch):
  screen = Terminal()
  run_epochs(monkeypatch, screen, epochs=2, max_minutes=90)
  # 90 minutes less one step of 2 s.
  assert "val_dice -  loss 0.214  epoch 1  1:29:58 left" in live_lines(screen)


def test_the_line_fits_80_columns_and_a_narrow_terminal(monkeypatch):
  screen = Terminal()
  line = run_epochs(monkeypatch, screen, epochs=2, max_minutes=60 * 99)
  assert max(map(len, live_lines(screen))) <= 80
  monkeypatch.setenv("COLUMNS", "30")
  assert line.text() == "val_dice 0.873  loss 0.200  ep"[:29]


def test_a_message_has_a_line_of_its_own_above_the_live_line(monkeypatch):
  screen = Terminal()
  run_epochs(monkeypatch, screen, epochs=1, message="Something to know.")
  lines = shown_lines(screen)
  assert lines[0] == "Something to know."
  assert lines[1].startswith("val_dice 0.873  val_loss 0.300") and lines[2:] == [""]


def test_a_log_file_holds_whole_lines(monkeypatch):
  log = io.StringIO()
  run_epochs(monkeypatch, log, epochs=1, message="Something to know.")
  assert "\r" not in log.getvalue()
  lines = log.getvalue().splitlines()
  assert "Something to know." in lines and "val_dice -  loss 0.214  epoch 1/1  0:08 left" in lines


def trained_steps(monkeypatch, data_dir, path, *given):
  """Trains a run and returns it with the loss of each of its steps, from the metrics of Keras."""
  steps = []
  watch = monitoring.TensorBoardLog.on_train_batch_end

  def noting(self, batch, logs=None):
    watch(self, batch, logs)
    steps.append(self._mean)

  monkeypatch.setattr(monitoring.TensorBoardLog, "on_train_batch_end", noting)
  made = flagged.setup(data_dir, *given)
  run, _ = trainer.fit(made.config, path, made.data)
  return run, steps


@pytest.mark.slow
def test_training_and_validation_share_charts_over_steps_and_runs_can_be_compared(
    monkeypatch, data_dir, tmp_path
):
  run, means = trained_steps(monkeypatch, data_dir, tmp_path / "run", "--learning_rate=0.01")
  trained, validated = (figures(run.tensorboard / name) for name in ("train", "validation"))
  # Two epochs of three batches of four of the twelve slices.
  assert [step for step, _ in trained["loss"]] == [1, 2, 3, 4, 5, 6]
  losses = [loss for _, loss in trained["loss"]]
  # The mean of an epoch's steps is what Keras shows at its end.
  for place, epoch in enumerate(trained["epoch_loss"]):
    assert epoch[0] == 3 * place + 3
    assert np.mean(losses[3 * place : 3 * place + 3]) == pytest.approx(epoch[1], abs=1e-5)
  assert [count for count, _ in means] == [1, 2, 3, 1, 2, 3]
  assert [step for step, _ in trained["learning_rate"]] == [1, 2, 3, 4, 5, 6]
  assert {"loss", "epoch_loss", "foreground_dice", "dice_bright"} <= set(trained) & set(validated)
  best = figures(run.tensorboard)
  rows = [row for row in files.read_table(run.history_csv) if row["val_foreground_dice"]]
  assert best["best/foreground_dice"][-1][1] == pytest.approx(
      max(float(row["val_foreground_dice"]) for row in rows), abs=1e-5
  )
  stored = accumulated(run.tensorboard).SummaryMetadata("_hparams_/session_start_info")
  started = hparams_metadata.parse_session_start_info_plugin_data(stored.plugin_data.content)
  values = {name: next(iter(value.ListFields()))[1] for name, value in started.hparams.items()}
  assert values["learning_rate"] == 0.01 and values["optimizer"] == "adamw"
  assert values["image_size"].count("x") == 1 and values["dataset"] == "blobs/slices/1.0.0"
  assert not {"data_dir", "cache_dir", "init_from"} & set(values)
  whole = b"".join(path.read_bytes() for path in run.tensorboard.rglob("events*"))
  assert str(tmp_path).encode() not in whole


def test_a_resumed_run_continues_its_curves_without_a_step_twice(tmp_path):
  first = event_files.EventFile(tmp_path)
  first.hyperparameters({"epochs": 2})
  for step in range(1, 6):
    first.scalars({"loss": step / 4}, step)
  first.flush()
  with open(next(tmp_path.iterdir()), "ab") as stream:
    stream.write(b"half a record")  # The process was killed.
  second = event_files.EventFile(tmp_path, step=3)
  second.hyperparameters({"epochs": 3})
  for step in (4, 5):
    second.scalars({"loss": step / 2}, step)
  second.flush()
  expected = [(1, 0.25), (2, 0.5), (3, 0.75), (4, 2.0), (5, 2.5)]
  assert figures(tmp_path) == {"loss": expected}
  stored = accumulated(tmp_path).SummaryMetadata("_hparams_/session_start_info")
  started = hparams_metadata.parse_session_start_info_plugin_data(stored.plugin_data.content)
  assert started.hparams["epochs"].number_value == 3
  # Begun again from the first step, nothing is left of it.
  event_files.EventFile(tmp_path, step=0).flush()
  assert figures(tmp_path) == {}


def test_the_loss_of_a_step_within_a_resumed_epoch_is_its_own():
  metric = types.SimpleNamespace(name="loss", total=np.float32(1.0), count=np.float32(2.0))
  history = types.SimpleNamespace(step=2)
  settings = types.SimpleNamespace(training=config.TrainingConfig())
  log = monitoring.TensorBoardLog(None, settings, history, types.SimpleNamespace(rate=0.1), 5)
  log.set_model(types.SimpleNamespace(metrics=[metric]))
  seen = []
  log._files = {"train": types.SimpleNamespace(
      scalars=lambda values, step: seen.append((step, values)), flush_now_and_then=lambda: None
  )}  # fmt: skip
  log.on_epoch_begin(0)
  log.on_train_batch_begin(2)
  history.step = 3
  # The mean of three steps is 0.6, that of the two before was 0.5: the third had 1.8 - 1.0.
  log.on_train_batch_end(2, {"loss": 0.6})
  # Two steps at once: their mean.
  history.step = 5
  log.on_train_batch_end(4, {"loss": 0.8})
  (_, one), (_, two) = seen
  assert one["loss"] == pytest.approx(0.8) and two["loss"] == pytest.approx((4.0 - 1.8) / 2)


@pytest.fixture
def mlflow_store(monkeypatch, tmp_path):
  """The folder of a store that the environment names."""
  monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
  return tmp_path / "store"


def stored_runs(folder):
  """Returns {name: (parameters, {metric: [(step, value), ...]}, files)} of a store."""
  from mlflow.tracking import MlflowClient

  client = MlflowClient(tracking_uri=folder.as_uri())
  found = {}
  for one in client.search_runs([each.experiment_id for each in client.search_experiments()]):
    histories = {
        name: [(value.step, value.value) for value in client.get_metric_history(
            one.info.run_id, name)] for name in one.data.metrics
    }  # fmt: skip
    listed = {file.path for file in client.list_artifacts(one.info.run_id)}
    found[one.info.run_name, one.info.status] = (one.data.params, histories, listed)
  return found


@pytest.mark.needs_extra("mlflow")
def test_mlflow_holds_settings_figures_and_report_of_a_run_and_names_nobody(
    data_dir, mlflow_store, tmp_path, monkeypatch
):
  monkeypatch.setenv("USER", "alice_example")
  monkeypatch.setattr(socket, "gethostname", lambda: "machine_of_alice_example")
  made = flagged.setup(data_dir, "--log_to=mlflow", "--learning_rate=0.01")
  run, rows = trainer.fit(made.config, tmp_path / "run", made.data)
  ((key, (params, figures_of, listed)),) = stored_runs(mlflow_store).items()
  assert key == ("run", "FINISHED")
  assert params["learning_rate"] == "0.01" and "data_dir" not in params
  assert figures_of["loss"] == [(row["step"], row["loss"]) for row in rows]
  assert listed == {"config.json", "report.html", "history.csv", "curves.png"}
  # The same command with --resume: nothing is written twice, and there is no second run.
  longer = flagged.setup(data_dir, "--log_to=mlflow", "--learning_rate=0.01", "--epochs=3")
  _, rows = trainer.fit(longer.config, tmp_path / "run", longer.data, resume=True)
  ((_, (_, figures_of, _)),) = stored_runs(mlflow_store).items()
  assert len(rows) == 3
  assert figures_of["loss"] == [(row["step"], row["loss"]) for row in rows]
  texts = [path.read_bytes() for path in mlflow_store.rglob("*") if path.is_file()]
  assert not any(b"alice_example" in text for text in texts)
  assert (mlflow_store / "0").is_dir() and str(tmp_path) not in run.manifest_json.read_text()


def test_without_mlflow_one_line_says_what_to_install(monkeypatch, data_dir):
  monkeypatch.setattr(monitoring.mlflow_store.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(InputError, match=r"--log_to=mlflow needs MLflow: pip install"):
    flagged.setup(data_dir, "--log_to=mlflow")


def test_the_store_lies_beside_the_run_unless_the_environment_names_one(monkeypatch, tmp_path):
  run = run_folder.RunFolder(tmp_path / "runs" / "first")
  monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
  address_of = monitoring.mlflow_store.address_of
  assert address_of(run) == (tmp_path / "runs" / "mlruns").as_uri()
  monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///m.db")
  assert address_of(run) == "sqlite:///m.db"
