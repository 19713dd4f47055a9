"""The features of a TFDS dataset decoded with NumPy, Pillow and zlib, as tf.data decodes them.

What the records hold is read from `features.json`. Values equal those of TensorFlow bit for bit,
but for JPEG, which every decoder rounds in its own way. Text is str.
"""

from __future__ import annotations

import dataclasses
import io
import pathlib
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from flexunet.core import files
from flexunet.core.errors import InputError, unknown_name
from flexunet.datasets.records import example

FEATURES_NAME = "features.json"
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
# Channels of the colour types of PNG that are stored as they are shown; 3 is a palette.
_PNG_CHANNELS = {0: 1, 4: 2, 2: 3, 6: 4}
# What Pillow may turn into the mode a feature has without a change of any pixel's colour.
_LOSSLESS = {("1", "L"), ("L", "RGB"), ("P", "RGB"), ("P", "RGBA"), ("RGB", "RGBA")}
_DTYPES = {"string": np.dtype(object), "object": np.dtype(object)}
# What a feature has in the example -> its value.
Decoder = Callable[[Mapping[str, example.Values]], Any]


@dataclasses.dataclass(frozen=True)
class Feature:
  """One feature of a dataset.

  Attributes:
    name: Nested ones are named "outer/inner".
    kind: Class of TFDS, such as "Image".
    stored: Names of its values in an example.
    shape: None where an axis has any length.
    dtype: Of its values; of text object.
    settings: What `features.json` says of it.
  """

  name: str
  kind: str
  stored: tuple[str, ...]
  shape: tuple[int | None, ...]
  dtype: np.dtype
  settings: dict[str, Any] = dataclasses.field(repr=False)

  def decoder(self) -> Decoder:
    """Returns what decodes it.

    Raises:
      InputError: Features of its class are not decoded here.
    """
    if self.kind in ("Image", "LabeledImage"):
      return self._image_decoder()
    if self.kind == "Text":
      return self._text
    if self.settings.get("encoding", "none") in ("bytes", "zlib"):
      return self._encoded_tensor
    if self.kind in ("Tensor", "Scalar", "ClassLabel", "BBoxFeature", "Sequence"):
      return self._plain_tensor
    raise InputError(
        f"Feature {self.name!r} is of the class {self.kind}, which only TensorFlow decodes. Name"
        " the features that are needed: features=(...)."
    )

  def _bytes(self, found: Mapping[str, example.Values], name: str) -> memoryview:
    values = found.get(name)
    if not isinstance(values, list) or len(values) != 1:
      raise ValueError(f"it must hold one string of bytes for {name!r}")
    return values[0]

  def _text(self, found: Mapping[str, example.Values]) -> str:
    return str(self._bytes(found, self.name), "utf-8")

  def _image_decoder(self) -> Decoder:
    channels = self.shape[-1]
    if len(self.shape) != 3 or channels not in _MODES:
      raise InputError(
          f"Feature {self.name!r} must be images of 1 to 4 channels. It has the shape {self.shape}."
      )
    if self.dtype == np.float32:  # Stored as four bytes a pixel.
      stored, bits = 4, 8
    elif self.dtype in (np.uint8, np.uint16):
      stored, bits = channels or 1, 8 * self.dtype.itemsize
    else:
      raise InputError(f"Feature {self.name!r}: images of {self.dtype} are not decoded here.")

    def decode(found: Mapping[str, example.Values]) -> np.ndarray:
      pixels = decode_image(self._bytes(found, self.name), stored, bits)
      if self.dtype == np.float32:
        pixels = pixels.view("<f4")
      self._check_shape(pixels)
      return pixels

    return decode

  def _check_shape(self, value: np.ndarray) -> None:
    if any(a not in (None, b) for a, b in zip(self.shape, value.shape, strict=True)):
      raise ValueError(f"it has the shape {value.shape} where {self.shape} must be")

  def _encoded_tensor(self, found: Mapping[str, example.Values]) -> np.ndarray:
    dynamic = len(self.stored) == 2
    data: Any = self._bytes(found, self.stored[-1])
    if self.settings["encoding"] == "zlib":
      data = zlib.decompress(data)
    shape: Sequence[int] = found[self.stored[0]].tolist() if dynamic else self._static_shape()  # type: ignore[union-attr]
    # A copy: the bytes are read-only, and belong to the file.
    value = np.frombuffer(data, self.dtype.newbyteorder("<")).reshape(shape).astype(self.dtype)
    self._check_shape(value)
    return value if value.ndim else value[()]

  def _static_shape(self) -> list[int]:
    return [-1 if length is None else length for length in self.shape]

  def _plain_tensor(self, found: Mapping[str, example.Values]) -> Any:
    values = found.get(self.name, [] if self.dtype == object else np.zeros(0, np.int64))
    if isinstance(values, list):
      if self.dtype != object:
        raise ValueError(f"it must hold numbers for {self.name!r}")
      value = np.array([bytes(one) for one in values] + [None], object)[:-1]
    elif values.dtype == np.float32 or self.dtype != np.uint64:
      value = values.astype(self.dtype)
    else:  # Examples hold int64 alone.
      value = values.view(np.uint64)
    value = value.reshape(self._static_shape())
    return value if value.ndim else value[()]


def read_features(folder: pathlib.Path) -> dict[str, Feature]:
  """Returns the features of the dataset in a version folder, by name.

  Raises:
    InputError: `features.json` is missing or damaged.
  """
  path = folder / FEATURES_NAME
  try:
    return {feature.name: feature for feature in _features_of(files.read_json(path), "")}
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    if isinstance(error, InputError):
      raise
    raise InputError(
        f"{path}: must be as TFDS wrote it, but cannot be read ({error!r}). Build the dataset"
        " again."
    ) from error


def _features_of(entry: Mapping[str, Any], name: str) -> Iterator[Feature]:
  kind = entry["pythonClassName"].rsplit(".", 1)[-1]
  if kind == "FeaturesDict":
    for inner, settings in entry["featuresDict"]["features"].items():
      yield from _features_of(settings, f"{name}/{inner}" if name else inner)
    return
  [settings] = [entry[key] for key in entry if key not in ("pythonClassName", "description")]
  shape: tuple[int | None, ...] = _shape_of(settings)
  dtype = settings.get("dtype", "string" if kind == "Text" else "int64")
  if kind == "Sequence":
    inner = list(_features_of(settings["feature"], name))
    if len(inner) != 1 or inner[0].kind not in ("Tensor", "Scalar", "ClassLabel"):
      kind = "Sequence of " + settings["feature"]["pythonClassName"].rsplit(".", 1)[-1]
    elif inner[0].settings.get("encoding", "none") != "none":
      kind = "Sequence of encoded tensors"
    else:
      length = int(settings.get("length", -1))
      shape, dtype = (None if length < 0 else length, *inner[0].shape), inner[0].dtype
  dynamic = shape.count(None) > 1 and kind == "Tensor"
  stored = (f"{name}/shape", f"{name}/value") if dynamic else (name,)
  yield Feature(name, kind, stored, shape, _DTYPES.get(dtype) or np.dtype(dtype), settings)


def _shape_of(settings: Mapping[str, Any]) -> tuple[int | None, ...]:
  lengths = map(int, settings.get("shape", {}).get("dimensions", ()))
  return tuple(None if length < 0 else length for length in lengths)


class RecordDecoder:
  """Maps the bytes of a record to its features; holds no file, so that it may be copied."""

  def __init__(self, features: Mapping[str, Feature], chosen: Sequence[str] | None = None):
    """Takes the features of a dataset.

    Args:
      features: By name.
      chosen: Those to be decoded, and their order; None: all.

    Raises:
      InputError: There is no such feature, or it is not decoded here.
    """
    names = list(features if chosen is None else chosen)
    if unknown := [name for name in names if name not in features]:
      raise unknown_name("feature", unknown[0], features)
    self.features = {name: features[name] for name in names}
    self._decoders = {name: feature.decoder() for name, feature in self.features.items()}
    self._stored = frozenset(key for one in self.features.values() for key in one.stored)

  def __getstate__(self) -> dict[str, Any]:
    return {"features": self.features}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__init__(state["features"])  # type: ignore[misc]

  def __call__(self, payload: bytes | memoryview) -> dict[str, Any]:
    """Returns the features of a record: arrays that may be written to, NumPy scalars, str.

    Raises:
      ValueError: The record holds something else; names the feature.
    """
    found = example.parse(payload, self._stored)
    record = {}
    for name, decode in self._decoders.items():
      try:
        record[name] = decode(found)
      except (ValueError, KeyError, TypeError, OSError, SyntaxError, zlib.error,
              Image.DecompressionBombError) as error:  # fmt: skip
        raise ValueError(f"feature {name!r} cannot be decoded: {error}") from error
    return record


def decode_image(data: bytes | memoryview, channels: int, bits: int = 8) -> np.ndarray:
  """Returns the pixels of an image file.

  Args:
    data: PNG, or anything that Pillow reads.
    channels: 1 to 4; Pillow reads 16 bits of one channel alone.
    bits: 8 or 16 a channel.

  Returns:
    uint8 or uint16 [H, W, channels].

  Raises:
    ValueError, OSError: It is damaged or has other channels.
  """
  mode = "I;16" if bits == 16 else _MODES[channels]
  if bits == 16 and channels != 1:
    raise ValueError(f"Pillow reads 16 bits of one channel alone, not of {channels}")
  image = _plain_png(data, mode, channels, bits) or _any_image(data, mode)
  height, width = image.height, image.width
  pixels = np.frombuffer(image.tobytes(), "<u2" if bits == 16 else np.uint8)
  return pixels.reshape(height, width, channels).copy()


def _plain_png(
    data: bytes | memoryview, mode: str, channels: int, bits: int
) -> Image.Image | None:
  """Returns a PNG of exactly these channels and bits; None: it is something else.

  Pillow's decoder is given the compressed pixels directly: for small slices looking at the file
  costs it as much as decoding. The checksum of the record covers that of the chunks.
  """
  if bytes(data[:8]) != b"\x89PNG\r\n\x1a\n" or bytes(data[12:16]) != b"IHDR":
    return None
  width, height, depth, color, *_, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
  if (depth, _PNG_CHANNELS.get(color), interlaced) != (bits, channels, 0):
    return None
  if width * height > 2 * (Image.MAX_IMAGE_PIXELS or width * height):
    return None  # Pillow refuses it by its own words.
  parts, position = [], 33
  while position + 12 <= len(data):
    kind = bytes(data[position + 4 : position + 8])
    (length,) = struct.unpack_from(">I", data, position)
    if kind == b"IDAT":
      parts.append(data[position + 8 : position + 8 + length])
    elif kind == b"tRNS":
      return None
    position += 12 + length
  pixels = bytes(parts[0]) if len(parts) == 1 else b"".join(parts)
  raw = "I;16B" if bits == 16 else mode
  return Image.frombytes(mode, (width, height), pixels, "zip", raw, False)


def _any_image(data: bytes | memoryview, mode: str) -> Image.Image:
  with Image.open(io.BytesIO(data)) as image:
    image.load()
    if image.mode == mode:
      return image
    if (image.mode, mode) not in _LOSSLESS:
      raise ValueError(f"its pixels are of the mode {image.mode} where {mode} must be")
    return image.convert(mode)

