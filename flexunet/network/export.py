"""Turns a trained network into files for other programs, each checked against the network.

Formats: "saved_model" (TensorFlow Serving, any TensorFlow program), "onnx" (ONNX Runtime; needs the
extra `export`), "litert" (phones and small devices; one image at a time), "weights" (numbers only).
Every exported network takes float32 [batch, height, width, channels] with values 0..255 and gives
float32 probabilities, whatever precision it was trained in.
"""

from __future__ import annotations

import dataclasses
import importlib
import pathlib
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from flexunet.core.errors import InputError
from flexunet.network import cost, model, probabilities

# Other programs sum in another order. Beyond this a probability is not the same answer.
MAX_DIFFERENCE = 1e-4
# What holds a graph, and not the weights alone.
GRAPH_FORMATS = ("saved_model", "onnx", "litert")
_OPSET = 17
_FREE_SIZE_FORMATS = ("saved_model", "onnx", "weights")


@dataclasses.dataclass(frozen=True)
class ExportResult:
  """One file or folder that was written and read back.

  Attributes:
    format: Its name in `FORMATS`.
    path: Below the folder given.
    max_difference: Largest difference of a probability from the Keras network, on the images
      of the check.
    label_agreement: Share of their pixels that get the same class, 0..1.
  """

  format: str
  path: pathlib.Path
  max_difference: float
  label_agreement: float


def export(
    network: keras.Model,
    formats: list[str],
    folder: pathlib.Path,
    image_size: tuple[int, int] | None = None,
) -> list[ExportResult]:
  """Writes `network` in each format below `folder`, which must exist.

  Args:
    network: A FlexUNet; if it has several outputs, the first is exported.
    formats: Names of `FORMATS`.
    folder: Where the files go.
    image_size: (height, width) the exported network takes; None for the network's own.

  Raises:
    InputError: An unknown format, a missing package, or a format that needs a fixed size.
    RuntimeError: The answers of an exported network differ from those of the Keras network.
  """
  for name in formats:
    check_format(name)
  twin = float32_twin(network, image_size)
  fixed = [name for name in formats if name not in _FREE_SIZE_FORMATS]
  if twin.input_shape[1] is None and fixed:
    raise InputError(
        f"Format {', '.join(fixed)} needs a fixed image size, and this network takes any. Pass"
        " --image_size=HEIGHT,WIDTH."
    )
  images = _check_images(twin)
  expected = np.concatenate([
      keras.ops.convert_to_numpy(twin(image[None], training=False)) for image in images
  ])
  results = []
  for name in formats:
    path, predict = FORMATS[name](twin, folder)
    found = np.concatenate([predict(image[None]) for image in images])
    if found.shape != expected.shape:
      raise RuntimeError(f"{path} answers with shape {found.shape}, not {expected.shape}.")
    result = ExportResult(
        name, path, float(np.abs(found - expected).max()),
        float(np.mean(probabilities.class_ids(found) == probabilities.class_ids(expected))),
    )  # fmt: skip
    if not result.max_difference <= MAX_DIFFERENCE:
      raise RuntimeError(
          f"{path} differs from the Keras network: probabilities are off by up to"
          f" {result.max_difference:g}; at most {MAX_DIFFERENCE:g} is tolerated."
      )
    results.append(result)
  return results


def check_format(name: str) -> None:
  """Raises InputError unless `name` is a format whose packages are installed."""
  if name not in FORMATS:
    raise InputError(f"--formats must be of {', '.join(FORMATS)}. Got: {name!r}.")
  if name != "onnx":
    return
  for package in ("onnx", "tf2onnx", "onnxruntime"):
    try:
      importlib.import_module(package)
    except ImportError as error:
      raise InputError(
          f"Format onnx needs the package {package} ({error}). Install the extra: pip install"
          " 'flexunet[export]', or leave onnx out of --formats."
      ) from error


def float32_twin(
    network: keras.Model, image_size: tuple[int, int] | None = None
) -> keras.Model:
  """Returns the network with one output, in float32, for `image_size` (None: as it is)."""
  shape = cost.config_of_layers(network.get_config()["layers"], "The model")
  shape = dataclasses.replace(
      shape, image_size=image_size or shape.image_size, deep_supervision=False
  )
  before = keras.config.dtype_policy()
  keras.config.set_dtype_policy("float32")
  try:
    values = {field.name: getattr(shape, field.name) for field in dataclasses.fields(shape)}
    twin = model.build_model(**values, name=network.name)
  finally:
    keras.config.set_dtype_policy(before)
  for layer in twin.layers:
    if layer.weights:
      layer.set_weights(network.get_layer(layer.name).get_weights())
  return twin


def _check_images(twin: keras.Model) -> np.ndarray:
  """Returns float32 [2, height, width, channels]: noise, and a bright disc on a ramp."""
  height, width, channels = twin.input_shape[1:]
  # A size that needs padding, where the size is free.
  height, width = height or 45, width or 70
  rows, columns = np.mgrid[:height, :width]
  disc = np.hypot(rows - height / 2, columns - width / 2) < min(height, width) / 3
  scene = np.where(disc, 200.0, 100.0 * columns / width)
  noise = np.random.default_rng(0).uniform(0, 255, (height, width, channels))
  return np.stack([noise, np.repeat(scene[..., None], channels, -1)]).astype("float32")


# float32 [batch, height, width, channels] -> probabilities.
_Predict = Callable[[np.ndarray], np.ndarray]


def _saved_model(twin: keras.Model, folder: pathlib.Path) -> tuple[pathlib.Path, _Predict]:
  path = folder / "saved_model"
  _write_saved_model(twin, path, batch_size=None)
  loaded = tf.saved_model.load(str(path))
  return path, lambda image: loaded.serve(tf.constant(image)).numpy()


def _write_saved_model(twin: keras.Model, path: pathlib.Path, batch_size: int | None) -> None:
  signature = tf.TensorSpec((batch_size, *twin.input_shape[1:]), tf.float32, name="image")
  if keras.backend.backend() != "tensorflow":
    twin.export(str(path), verbose=False, input_signature=[signature])
    return
  # As twin.export writes it, which stores every variable twice.
  module = tf.Module()
  module.weights = [variable.value for variable in twin.variables]
  module.serve = tf.function(
      lambda image: twin(image, training=False), input_signature=[signature]
  )
  endpoint = module.serve.get_concrete_function()
  tf.saved_model.save(module, str(path), {"serve": endpoint, "serving_default": endpoint})


def write_graph(
    name: str, function: Any, module: tf.Module, folder: pathlib.Path
) -> pathlib.Path:
  """Writes a function of TensorFlow in one of the formats `GRAPH_FORMATS` and returns its place.

  Args:
    name: The format.
    function: A `tf.function` with one input signature.
    module: Holds its variables.
    folder: Where the file goes.
  """
  if name == "onnx":
    path = folder / "model.onnx"
    _tf2onnx().from_function(function, function.input_signature, opset=_OPSET, output_path=path)
    return path
  with tempfile.TemporaryDirectory() as scratch:
    path = (folder if name == "saved_model" else pathlib.Path(scratch)) / "saved_model"
    module.serve = function
    endpoint = function.get_concrete_function()
    tf.saved_model.save(module, str(path), {"serve": endpoint, "serving_default": endpoint})
    if name == "saved_model":
      return path
    # By way of a SavedModel: converting a function directly leaves its variables unset.
    converted = tf.lite.TFLiteConverter.from_saved_model(
        str(path), signature_keys=["serving_default"]
    ).convert()
  path = folder / "model.tflite"
  path.write_bytes(converted)
  return path


def _tf2onnx() -> Any:
  # Part of the extra `export`; `check_format` has made sure that it is installed.
  from tf2onnx import convert

  return convert


def _onnx(twin: keras.Model, folder: pathlib.Path) -> tuple[pathlib.Path, _Predict]:
  # Part of the extra `export`; `check_format` has made sure that it is installed.
  import onnxruntime

  path = folder / "model.onnx"
  twin.export(str(path), format="onnx", verbose=False)
  session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
  name = session.get_inputs()[0].name
  return path, lambda image: session.run(None, {name: image})[0]


def _litert(twin: keras.Model, folder: pathlib.Path) -> tuple[pathlib.Path, _Predict]:
  path = folder / "model.tflite"
  # By way of a SavedModel: converting a function directly leaves its variables unset.
  with tempfile.TemporaryDirectory() as scratch:
    saved = pathlib.Path(scratch) / "saved_model"
    _write_saved_model(twin, saved, batch_size=1)
    path.write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(saved)).convert())
  interpreter = _litert_interpreter(path)
  interpreter.allocate_tensors()
  entry, exit_ = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

  def predict(image: np.ndarray) -> np.ndarray:
    interpreter.set_tensor(entry["index"], image)
    interpreter.invoke()
    return interpreter.get_tensor(exit_["index"])

  return path, predict


def _litert_interpreter(path: pathlib.Path) -> Any:
  try:
    # Optional: TensorFlow's own interpreter serves where it is not installed.
    from ai_edge_litert import interpreter as litert

    return litert.Interpreter(model_path=str(path))
  except ImportError:
    pass
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # It advertises its successor.
    return tf.lite.Interpreter(model_path=str(path))


def _weights(twin: keras.Model, folder: pathlib.Path) -> tuple[pathlib.Path, _Predict]:
  path = folder / "model.weights.h5"
  twin.save_weights(path)
  fresh = keras.models.clone_model(twin)
  fresh.load_weights(path)
  return path, lambda image: keras.ops.convert_to_numpy(fresh(image, training=False))


FORMATS: dict[str, Callable[[keras.Model, pathlib.Path], tuple[pathlib.Path, _Predict]]] = {
    "saved_model": _saved_model,
    "onnx": _onnx,
    "litert": _litert,
    "weights": _weights,
}
