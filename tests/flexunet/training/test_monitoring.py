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

from flexunet import config, run_folder
from flexunet.core import files, progress
from flexunet.core.errors import InputError
from flexunet.reporting import overlay
from flexunet.training import callbacks, monitoring, trainer


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return flagged.write_dataset(tmp_path_factory.mktemp("data"))


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
  log.on_epoch_end(0, {"loss": 0.5, "val_loss": 0.25, "nothing": float("nan")})
  (file,) = run.tensorboard.iterdir()
  assert socket.gethostname() not in file.name and "tfevents" in file.name
  found = event_accumulator.EventAccumulator(
      str(run.tensorboard), size_guidance={event_accumulator.TENSORS: 0}
  ).Reload()
  values = {tag: found.Tensors(tag)[0] for tag in found.Tags()["tensors"]}
  assert set(values) == {"training/loss", "validation/loss", "training/learning_rate", "previews"}
  assert tf.make_ndarray(values["training/loss"].tensor_proto) == 0.5
  assert {value.step for value in values.values()} == {1}
  width, height, png = tf.make_ndarray(values["previews"].tensor_proto)
  assert (int(width), int(height)) == (5, 3)
  np.testing.assert_array_equal(tf.io.decode_png(png).numpy(), sheet)
  plugins = {tag: found.SummaryMetadata(tag).plugin_data.plugin_name for tag in values}
  assert plugins["training/loss"] == "scalars" and plugins["previews"] == "images"


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
