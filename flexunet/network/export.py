"""Turns a trained network into files for other programs, each checked against the network.

Formats: "saved_model" (TensorFlow Serving, any TensorFlow program), "onnx" (ONNX Runtime; needs the
extra `export`), "litert" (phones and small devices; one image at a time), "weights" (numbers only).
Every exported network takes float32 [batch, height, width, channels] with values 0..255 and gives
float32 probabilities, whatever precision it was trained in.
"""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
import warnings
from collections.abc import Callable

import keras
import numpy as np

from flexunet.core.errors import InputError
from flexunet.network import cost, model

# Other programs sum in another order. Beyond this a probability is not the same answer.
MAX_DIFFERENCE = 1e-4
_FREE_SIZE_FORMATS = ("saved_model", "onnx", "weights")


@dataclasses.dataclass(frozen=True)
class Exported:
  """One file or folder that was written and read back.

  Attributes:
    format: Its name in `FORMATS`.
    path: Below the folder given.
    max_difference: Largest difference of a probability from the Keras network, on the images
      of the check.
    label_agreement: Share of their pixels that get the same class.
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
) -> list[Exported]:
  """Writes `network` in each format below `folder`, which must exist.

  Args:
    network: A FlexUNet; of several outputs the first is exported.
    formats: Names of `FORMATS`.
    folder: Where the files go.
    image_size: (height, width) the exported network takes; None for the network's own.

  Raises:
    InputError: An unknown format, a missing package, a format that needs a fixed size.
    RuntimeError: An exported network answers otherwise than the Keras network.
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
  pictures = _check_pictures(twin)
  expected = np.concatenate([
      keras.ops.convert_to_numpy(twin(picture[None], training=False)) for picture in pictures
  ])
  done = []
  for name in formats:
    path, answer = FORMATS[name](twin, folder)
    found = np.concatenate([answer(picture[None]) for picture in pictures])
    if found.shape != expected.shape:
      raise RuntimeError(f"{path} answers with shape {found.shape}, not {expected.shape}.")
    result = Exported(
        name, path, float(np.abs(found - expected).max()),
        float(np.mean(_labels(found) == _labels(expected))),
    )  # fmt: skip
    if not result.max_difference <= MAX_DIFFERENCE:
      raise RuntimeError(
          f"{path} answers otherwise than the Keras network: probabilities differ by up to"
          f" {result.max_difference:g}, at most {MAX_DIFFERENCE:g} is tolerated."
      )
    done.append(result)
  return done


def check_format(name: str) -> None:
  """Raises InputError unless `name` is a format whose packages are installed."""
  if name not in FORMATS:
    raise InputError(f"--formats must be of {', '.join(FORMATS)}. Got: {name!r}.")
  if name != "onnx":
    return
  for package in ("onnx", "tf2onnx", "onnxruntime"):
    try:
      __import__(package)
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


def _check_pictures(twin: keras.Model) -> np.ndarray:
  """Returns float32 [2, height, width, channels]: noise, and a bright disc on a ramp."""
  height, width, channels = twin.input_shape[1:]
  # A size that needs padding, where the size is free.
  height, width = height or 45, width or 70
  rows, columns = np.mgrid[:height, :width]
  disc = np.hypot(rows - height / 2, columns - width / 2) < min(height, width) / 3
  scene = np.where(disc, 200.0, 100.0 * columns / width)
  noise = np.random.default_rng(0).uniform(0, 255, (height, width, channels))
  return np.stack([noise, np.repeat(scene[..., None], channels, -1)]).astype("float32")


def _labels(probability: np.ndarray) -> np.ndarray:
  if probability.shape[-1] == 1:
    return probability[..., 0] >= 0.5
  return probability.argmax(-1)


_Answer = Callable[[np.ndarray], np.ndarray]


def _saved_model(twin: keras.Model, folder: pathlib.Path) -> tuple[pathlib.Path, _Answer]:
  import tensorflow as tf

  path = folder / "saved_model"
  _write_saved_model(twin, path, batch_size=None)
  loaded = tf.saved_model.load(str(path))
  return path, lambda picture: loaded.serve(tf.constant(picture)).numpy()


def _write_saved_model(twin: keras.Model, path: pathlib.Path, batch_size: int | None) -> None:
  import tensorflow as tf

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


def _onnx(twin: keras.Model, folder: pathlib.Path) -> tuple[pathlib.Path, _Answer]:
  path = folder / "model.onnx"
  twin.export(str(path), format="onnx", verbose=False)
  import onnxruntime

  session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
  name = session.get_inputs()[0].name
  return path, lambda picture: session.run(None, {name: picture})[0]


def _litert(twin: keras.Model, folder: pathlib.Path) -> tuple[pathlib.Path, _Answer]:
  import tensorflow as tf

  path = folder / "model.tflite"
  # By way of a SavedModel: converting a function directly leaves its variables unset.
  with tempfile.TemporaryDirectory() as scratch:
    saved = pathlib.Path(scratch) / "saved_model"
    _write_saved_model(twin, saved, batch_size=1)
    path.write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(saved)).convert())
  interpreter = _litert_interpreter(path)
  interpreter.allocate_tensors()
  entry, exit_ = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

  def answer(picture: np.ndarray) -> np.ndarray:
    interpreter.set_tensor(entry["index"], picture)
    interpreter.invoke()
    return interpreter.get_tensor(exit_["index"])

  return path, answer


def _litert_interpreter(path: pathlib.Path):
  try:
    from ai_edge_litert import interpreter as litert

    return litert.Interpreter(model_path=str(path))
  except ImportError:
    import tensorflow as tf

  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # It advertises its successor.
    return tf.lite.Interpreter(model_path=str(path))


def _weights(twin: keras.Model, folder: pathlib.Path) -> tuple[pathlib.Path, _Answer]:
  path = folder / "model.weights.h5"
  twin.save_weights(path)
  fresh = keras.models.clone_model(twin)
  fresh.load_weights(path)
  return path, lambda picture: keras.ops.convert_to_numpy(fresh(picture, training=False))


FORMATS: dict[str, Callable[[keras.Model, pathlib.Path], tuple[pathlib.Path, _Answer]]] = {
    "saved_model": _saved_model,
    "onnx": _onnx,
    "litert": _litert,
    "weights": _weights,
}
