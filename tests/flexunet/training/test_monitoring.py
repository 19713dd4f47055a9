"""What lies in the event files of a run."""

import flagged
import keras
import pytest
import tensorflow as tf

from flexunet import config, run_folder
from flexunet.core.errors import InputError
from flexunet.training import monitoring, trainer


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


def test_another_backend_is_refused(monkeypatch):
  monkeypatch.setattr(keras.config, "backend", lambda: "jax")
  with pytest.raises(InputError, match="--tensorboard_graph needs .*Got: jax"):
    monitoring.check(config.TrainingConfig(tensorboard_graph=True))
  monitoring.check(config.TrainingConfig())
