"""What a user sees while a run trains: the progress line, previews, TensorBoard and MLflow.

TensorBoard shows every figure of history.csv, loss and learning rate of each step, the previews,
the graph and, to compare runs, the settings with the scores of the kept model.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from flexunet import config, run_folder
from flexunet.core import files, progress
from flexunet.core.errors import InputError
from flexunet.distributed import hosts
from flexunet.imaging.label_scheme import LabelScheme
from flexunet.network import probabilities
from flexunet.network.model import accept_any_size
from flexunet.pipelines.augmentation.config import PROBABILITIES
from flexunet.pipelines.feature_keys import FeatureFlags
from flexunet.prediction import tiles
from flexunet.prediction.tiles import Tiler
from flexunet.reporting import event_files, mlflow_store, overlay, sheets
from flexunet.training import callbacks, input_pipeline, preview_slices
from flexunet.training.history import History

# Constants above this size lose their values in the graph: weights would make it as large as the
# model. Variables are inputs of the graph and have none.
_LARGEST_CONSTANT = 1024
_COLUMNS = 80
# Settings that do not change what is learnt, or that are paths.
_NO_HYPERPARAMETERS = (
    *(name for name in config.MAY_CHANGE if name not in ("epochs", "max_minutes")),
    "init_from", *(field.name for field in dataclasses.fields(FeatureFlags)),
)  # fmt: skip
_TILES_AT_ONCE = 4
_SHORT = {callbacks.MONITOR: "val_dice", "foreground_dice": "dice"}


class ProgressLine(keras.callbacks.Callback):
  """One live line on standard error, and a lasting one for each epoch that was validated."""

  def __init__(self, clock: callbacks.RunClock):
    super().__init__()
    self._clock = clock
    self._bar: Any = None
    self._figures: dict[str, float] = {}

  def on_train_begin(self, logs=None):
    if self._bar is None:  # A run may call `fit` more than once.
      self._bar = progress.bar(
          bar_format="{desc}", desc="Preparing the first step.", leave=False, miniters=0
      )

  def on_train_batch_end(self, batch, logs=None):
    self._figures |= logs or {}
    if self._bar is not None:
      self._bar.set_description_str(self.text(), refresh=False)
      self._bar.update()

  def on_epoch_end(self, epoch, logs=None):
    self._figures |= logs or {}
    if callbacks.MONITOR in (logs or {}):
      seconds = _clock_text(self._clock.elapsed_s)
      progress.say(f"{self._text_of('val_loss', 'foreground_dice')}  after {seconds}")

  def text(self) -> str:
    """Returns the live line, in at most 80 columns."""
    text, left_s = self._text_of(), self._clock.left_s
    if left_s is not None:
      text += f"  {_clock_text(left_s)} left"
    # A line that fills the last column would be wrapped.
    return text[: min(_COLUMNS, shutil.get_terminal_size().columns - 1)]

  def _text_of(self, *more: str) -> str:
    names = (callbacks.MONITOR, *more[:1], "loss", *more[1:])
    parts = [f"{_SHORT.get(name, name)} {_figure(self._figures.get(name))}" for name in names]
    return "  ".join([*parts, self._clock.epoch_text()])

  def close(self) -> None:
    """Removes the live line."""
    if self._bar is not None:
      self._bar.close()
      self._bar = None


def _figure(value: float | None) -> str:
  return "-" if value is None else f"{value:.3f}"


def _clock_text(seconds: float) -> str:
  """Returns h:mm:ss, or m:ss below an hour."""
  minutes, seconds_left = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds_left:02}" if hours else f"{minutes}:{seconds_left:02}"


class Previews(keras.callbacks.Callback):
  """Draws image, truth and prediction of a few slices after the first epoch and each validation."""

  def __init__(
      self,
      run: run_folder.RunFolder,
      slices: Sequence[preview_slices.PreviewSlice],
      scheme: LabelScheme,
      network: keras.Model | None = None,
      shown_channel: int | None = None,
      tiler: Tiler | None = None,
  ):
    """Takes the slices, which are few.

    Args:
      run: Where the sheets go.
      slices: The slices.
      scheme: Names and colours of the classes.
      network: Predicts; the one in training by default.
      shown_channel: Which channel is drawn; None: the mean of all.
      tiler: Cuts slices larger than the network's input; None: there are none.
    """
    super().__init__()
    self._run = run
    self._shown_channel = shown_channel
    self._slices, self._tiler = slices, tiler
    self._any_size: keras.Model | None = None
    self._view = sheets.View.of_scheme(scheme)
    self._network = network

  def on_epoch_end(self, epoch, logs=None):
    # The first epoch too: a wrong label shows at once.
    if epoch and callbacks.MONITOR not in (logs or {}):
      return
    network = self._network or self.model
    if self._tiler is not None and self._any_size is None:
      self._any_size = accept_any_size(network)
    images = [one.image for one in self._slices]
    predicted = predict_labels(self._any_size or network, images, self._tiler)
    if not hosts.is_first():  # Several hosts compute together, one draws.
      return
    drawn = []
    for one, guess in zip(self._slices, predicted, strict=True):
      drawn += self._tiles(one, guess)
    sheet = sheets.contact_sheet(
        drawn, columns=6 if len(drawn) > 3 else 3, tile_size=256, legend=self._view.legend
    )
    files.write_bytes(self._run.preview_png(epoch), overlay.encode_png(sheet))

  def _tiles(
      self, one: preview_slices.PreviewSlice, guess: np.ndarray
  ) -> list[sheets.Tile]:
    """Returns a slice alone, and with its true and its predicted label."""
    grey = overlay.grey_of(one.image, self._shown_channel)
    number = f"slice {one.slice_index}" if one.slice_index >= 0 else "image"
    return [
        sheets.Tile(overlay.to_rgb(grey), number),
        *(sheets.slice_tile(grey, label, self._view, size=256, caption=what)
          for label, what in ((one.label, "truth"), (guess, "prediction"))),
    ]  # fmt: skip


def predict_labels(
    model: keras.Model, images: Sequence[np.ndarray], tiler: Tiler | None = None
) -> list[np.ndarray]:
  """Returns class ids uint8 [h, w] of images uint8 [h, w, C].

  Args:
    model: The network; with a tiler one that takes images of any size.
    images: Of one size; of any sizes with a tiler.
    tiler: Cuts those that are larger than the network's input.
  """

  def network(batch: np.ndarray) -> np.ndarray:
    probability = model.predict_on_batch(batch)
    if isinstance(probability, (list, tuple)):  # Deep supervision: the full-size output is first.
      probability = probability[0]
    # Each of several devices answers for the whole batch, one after the other.
    return np.asarray(probability)[: len(batch)]

  if tiler is None:
    return list(probabilities.class_ids(network(np.stack(images))).astype(np.uint8))
  found = []
  for image in images:
    cut, frames = tiler.tiling(image.shape[:2]), image[None]
    answer = network(frames) if cut is None else tiles.answer(network, frames, cut, _TILES_AT_ONCE)
    found.append(probabilities.class_ids(answer)[0].astype(np.uint8))
  return found


def previews(
    run: run_folder.RunFolder,
    run_config: config.RunConfig,
    data: input_pipeline.TrainingData,
    network: keras.Model,
) -> list[Previews]:
  """Returns what draws previews of a run, where it is to; the network predicts."""
  number = run_config.training.previews
  if not number:
    return []
  tiler = None
  if data.whole_validation is not None:
    options = tiles.TileOptions.of(run_config.model.image_size or "auto")
    tiler = tiles.Tiler(run_config.model, options, None)
  slices = preview_slices.choose(run_config, data, number)
  scheme = run_config.dataset_facts.label_scheme
  channel = run_config.shown_channel
  return [Previews(run, slices, scheme, network, shown_channel=channel, tiler=tiler)]


def check(settings: config.TrainingConfig) -> None:
  """Raises InputError for a graph where the backend is not TensorFlow, and a missing MLflow."""
  if "mlflow" in settings.log_to:
    mlflow_store.check_installed()
  if settings.tensorboard_graph and keras.config.backend() != "tensorflow":
    raise InputError(
        "--tensorboard_graph needs KERAS_BACKEND=tensorflow, whose graphs TensorBoard draws. Got:"
        f" {keras.config.backend()}. Leave the flag out."
    )


def graph_of(network: keras.Model) -> tf.compat.v1.GraphDef:
  """Returns the operations of the network for one image, by layer, without any weights."""
  image = tf.TensorSpec((1, *network.input_shape[1:]), tf.float32, name="image")
  traced = tf.function(lambda image: network(image, training=False)).get_concrete_function(image)
  graph = traced.graph.as_graph_def()
  functions = [node for function in graph.library.function for node in function.node_def]
  for node in [*graph.node, *functions]:
    if node.op == "Const" and node.attr["value"].ByteSize() > _LARGEST_CONSTANT:
      tensor = node.attr["value"].tensor
      kept = {"dtype": tensor.dtype, "tensor_shape": tensor.tensor_shape}
      tensor.CopyFrom(type(tensor)(**kept))
  names = {network.name, *(layer.name for layer in network.layers)}
  for node in graph.node:
    node.name = _as_in_the_network(node.name, names)
    node.input[:] = [_as_in_the_network(name, names) for name in node.input]
  return graph


def _as_in_the_network(path: str, names: set[str]) -> str:
  """Returns the path of an operation without the "_1" that Keras' second trace adds to layers."""
  parts = path.split("/")
  for place, part in enumerate(parts[:-1]):
    plain = part.removesuffix("_1")
    # The first part of a control input begins with ^.
    if part.lstrip("^") not in names and plain.lstrip("^") in names:
      parts[place] = plain
  return "/".join(parts)


class TensorBoardLog(keras.callbacks.Callback):
  """Writes what TensorBoard shows; after the callbacks that make it.

  Over training steps, in two folders whose curves of one name share a chart: `train` with loss and
  learning rate of each execution and the figures of each epoch (their loss as `epoch_loss`), and
  `validation`. Beside them, of the run itself: hyperparameters, the scores of the kept model as
  `best/...`, preview sheets and graph.
  """

  def __init__(
      self,
      run: run_folder.RunFolder,
      run_config: config.RunConfig,
      history: History,
      learning_rate: callbacks.LearningRate,
      steps_per_epoch: int,
  ):
    """Takes what is written and whose figures it is.

    Args:
      run: Where it goes.
      run_config: What the run is.
      history: Knows the epochs so far, and the step.
      learning_rate: Knows that of the last step.
      steps_per_epoch: Of the run.
    """
    super().__init__()
    self._run, self._config, self._history = run, run_config, history
    self._learning_rate, self._steps_per_epoch = learning_rate, steps_per_epoch
    self._graph = run_config.training.tensorboard_graph
    self._files: dict[str, event_files.EventFile] = {}
    self._mean: tuple[int, float] | None = None  # Steps of the epoch, and their mean loss.

  def _open(self) -> dict[str, event_files.EventFile]:
    if not self._files:
      folder, step = self._run.tensorboard, self._history.step
      parts = {"run": folder, "train": folder / "train", "validation": folder / "validation"}
      self._files = {name: event_files.EventFile(path, step) for name, path in parts.items()}
      self._files["run"].hyperparameters(hyperparameters(self._config))
    return self._files

  def on_train_begin(self, logs=None):
    events = self._open()["run"]
    if self._graph:
      self._graph = False  # A run may call `fit` more than once.
      events.graph(graph_of(self.model))
    events.flush()

  def on_epoch_begin(self, epoch, logs=None):
    self._mean = None

  def on_train_batch_begin(self, batch, logs=None):
    if self._mean is None:  # Of a resumed epoch Keras shows the mean from its first step on.
      done = self._history.step % self._steps_per_epoch
      self._mean = (done, _running_loss(self.model) if done else 0.0)

  def on_train_batch_end(self, batch, logs=None):
    mean = (logs or {}).get("loss")
    if mean is None or self._mean is None:
      return
    step = self._history.step
    before, mean_before = self._mean
    done = (step - 1) % self._steps_per_epoch + 1
    self._mean = (done, float(mean))
    loss = (done * float(mean) - before * mean_before) / max(1, done - before)
    figures = {"loss": loss, "learning_rate": self._learning_rate.rate}
    events = self._open()["train"]
    events.scalars(_finite(figures), step)
    events.flush_now_and_then()

  def on_epoch_end(self, epoch, logs=None):
    opened, step = self._open(), self._history.step
    figures = _finite(logs or {})
    trained = {name: value for name, value in figures.items() if not name.startswith("val_")}
    if "loss" in trained:
      trained["epoch_loss"] = trained.pop("loss")
    validated = {
        name.removeprefix("val_"): value for name, value in figures.items() if name not in trained
    }
    validated.pop("loss", None)
    if "val_loss" in figures:
      validated["loss"] = validated["epoch_loss"] = figures["val_loss"]
    opened["train"].scalars(trained, step)
    if validated:
      opened["validation"].scalars(validated, step)
    if validated and self._history.kept_epoch(self._config.training) == epoch + 1:
      best = {f"best/{name}": validated[name] for name in validated if name != "epoch_loss"}
      opened["run"].scalars(best, step)
    sheet = self._run.preview_png(epoch)
    if sheet.is_file():
      opened["run"].image("previews", sheet.read_bytes(), step)
    for events in opened.values():
      events.flush()


class MlflowLog(keras.callbacks.Callback):
  """Writes the figures of each epoch into MLflow, and at the end of the run its report."""

  def __init__(self, run: run_folder.RunFolder, run_config: config.RunConfig, history: History):
    super().__init__()
    self._run, self._config, self._history = run, run_config, history
    self._opened: mlflow_store.MlflowRun | None = None

  def _open(self) -> mlflow_store.MlflowRun:
    if self._opened is None:
      name = self._config.dataset_facts.name
      self._opened = mlflow_store.MlflowRun(self._run, name, hyperparameters(self._config))
    return self._opened

  def on_train_begin(self, logs=None):
    self._open()

  def on_epoch_end(self, epoch, logs=None):
    self._open().add(self._history.rows)

  def finish(self) -> None:
    """Adds what is written when training has ended."""
    run = self._run
    self._open().add(self._history.rows)
    self._open().finish([run.config_json, run.report_html, run.history_csv, run.curves_png])


def mlflow_logs(
    run: run_folder.RunFolder, run_config: config.RunConfig, history: History
) -> list[MlflowLog]:
  """Returns what writes into MLflow, where the run is to."""
  wanted = "mlflow" in run_config.training.log_to
  return [MlflowLog(run, run_config, history)] if wanted else []


def _finite(figures: Mapping[str, Any]) -> dict[str, float]:
  return {name: float(value) for name, value in figures.items() if math.isfinite(value)}


def _running_loss(network: keras.Model) -> float:
  """Returns the mean loss of the epoch so far, as the metrics of the network hold it."""
  found = next((metric for metric in network.metrics if metric.name == "loss"), None)
  if found is None:
    return 0.0
  # By NumPy: several processes would have to compute it together, and only one asks.
  total, count = (keras.ops.convert_to_numpy(part) for part in (found.total, found.count))
  return float(total / count) if count else 0.0


def hyperparameters(run_config: config.RunConfig) -> dict[str, bool | float | str]:
  """Returns what distinguishes runs in a table: settings by name, without paths of the machine."""
  values: dict[str, Any] = {"dataset": run_config.dataset_facts.name}
  for part in (run_config.model, run_config.data, run_config.training):
    values |= {
        field.name: getattr(part, field.name)
        for field in dataclasses.fields(part)
        if field.name not in _NO_HYPERPARAMETERS and field.name not in values
    }
  changes = dataclasses.asdict(run_config.augmentation)
  values |= {
      name: value for name, value in changes.items()
      if name == "augmentation" or (name in PROBABILITIES and value)
  }  # fmt: skip
  return {
      name: "x".join(map(str, value)) if isinstance(value, (tuple, list)) else value
      for name, value in values.items() if value is not None
  }  # fmt: skip
