"""Reads 8-bit images (PNG, JPEG, BMP, TIFF, NumPy) with distrust: size, depth, wholeness.

The checksum of every chunk of a PNG is verified, which Pillow leaves to the caller; JPEG, BMP and
TIFF have none. What is shown otherwise than it is stored (turned by EXIF, animated) is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import struct
import warnings
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image

from flexunet.core.errors import InputError, missing_file
from flexunet.imaging import picture_arrays

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", *picture_arrays.SUFFIXES)
# A radiograph has 10 million pixels. More than this is a decompression bomb or no slice.
MAX_PIXELS = 64 << 20
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
# Grey images saved as colour JPEG come back with channels this far apart, by rounding.
_GREY_TOLERANCE = 16
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BLOCK_BYTES = 1 << 20
_UPRIGHT = 1  # EXIF has 2..8 for images that must be mirrored or turned before they are shown.


@dataclasses.dataclass(frozen=True)
class PictureHeader:
  """What an image file states before it is decoded: size, Pillow's mode, format."""

  height: int
  width: int
  mode: str
  format: str


@dataclasses.dataclass(frozen=True, eq=False)
class IndexedImage:
  """An image that stores positions in a palette of its own.

  Attributes:
    indices: uint8 [H, W].
    palette: uint8 [256, 3], RGB; black beyond the entries of the file.
  """

  indices: np.ndarray
  palette: np.ndarray


def is_picture(path: str | os.PathLike) -> bool:
  """Returns by its suffix, in any case, whether a file is an image this package reads."""
  return pathlib.PurePath(path).suffix.lower() in SUFFIXES


def read_header(path: str | os.PathLike, entry: str = "image") -> PictureHeader:
  """Returns size and mode; decodes nothing.

  Args:
    path: The file.
    entry: "image" or "mask": which array of a NumPy archive is meant.

  Raises:
    InputError: When the file is no image, too large, or has a mode that is not 8-bit.
  """
  path = pathlib.Path(path)
  if picture_arrays.is_array(path):
    array = picture_arrays.read_header(path, entry)
    height, width = array.shape[:2]
    return PictureHeader(height, width, array.dtype.name, "NumPy")
  with _opened(path) as picture:
    return PictureHeader(picture.height, picture.width, picture.mode, picture.format or "")


def read_gray(path: str | os.PathLike, entry: str = "image") -> np.ndarray:
  """Reads a grey image as uint8 [H, W]; grey stored as RGB is accepted, colour is not.

  Args:
    path: The file.
    entry: As in `read_header`; a one-hot mask of NumPy becomes class ids.
  """
  pixels = _decode(path, entry)
  if pixels.ndim == 2:
    return pixels
  spread = int((pixels.max(-1).astype(np.int16) - pixels.min(-1)).max())
  if spread > _GREY_TOLERANCE:
    raise InputError(
        f"{path}: must be a grey image, but its colour channels differ by up to {spread}."
        " Convert it to grey first."
    )
  return np.round(pixels.mean(-1)).astype(np.uint8)


def read_rgb(path: str | os.PathLike, entry: str = "image") -> np.ndarray:
  """Reads an image as uint8 [H, W, 3]; grey is repeated. `entry` is as in `read_gray`."""
  pixels = _decode(path, entry)
  return np.repeat(pixels[..., None], 3, axis=-1) if pixels.ndim == 2 else pixels


def read_indexed(path: str | os.PathLike) -> IndexedImage | None:
  """Reads what a palette image stores, before colours are looked up; None for other images."""
  if picture_arrays.is_array(pathlib.Path(path)):
    return None
  with _decodable(path) as picture:
    if picture.mode != "P":
      return None
    try:
      indices = np.asarray(picture)
      entries = np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)
    except _DECODE_ERRORS as error:
      raise _unreadable(path, error) from error
  palette = np.zeros((256, 3), np.uint8)
  palette[: len(entries)] = entries[:256]
  return IndexedImage(indices, palette)


def _decode(path, entry: str) -> np.ndarray:
  """Returns uint8 [H, W] for grey files, [H, W, 3] for colour and palette files."""
  if picture_arrays.is_array(pathlib.Path(path)):
    return picture_arrays.read(pathlib.Path(path), entry)
  with _decodable(path) as picture:
    try:
      if picture.mode in ("1", "L"):
        return np.asarray(picture.convert("L"))
      return np.asarray(picture.convert("RGB"))
    except _DECODE_ERRORS as error:
      raise _unreadable(path, error) from error


@contextlib.contextmanager
def _decodable(path) -> Iterator[Image.Image]:
  """Opens an image whose bytes are whole and whose pixels stand as they are to be seen."""
  with _opened(path, whole=True) as picture:
    try:
      with _quiet():
        orientation = picture.getexif().get(ExifTags.Base.Orientation, _UPRIGHT)
    except _DECODE_ERRORS as error:
      raise _unreadable(path, error) from error
    if orientation in range(_UPRIGHT + 1, 9):
      raise InputError(
          f"{path}: its EXIF orientation must be 1, got {orientation}: programs show it turned or"
          " mirrored, and it may not fit its twin. Save it upright, without the tag."
      )
    yield picture


@contextlib.contextmanager
def _opened(path, *, whole: bool = False) -> Iterator[Image.Image]:
  """Opens an image; `whole` verifies the checksums of a PNG, for which all of it is read."""
  path = pathlib.Path(path)
  if not path.is_file():
    raise missing_file(path)
  with contextlib.ExitStack() as stack:
    try:
      stream = stack.enter_context(open(path, "rb"))
      if whole:
        _check_png(path, stream)
        stream.seek(0)
      with _quiet():
        picture = Image.open(stream, formats=_FORMATS)
    except Image.DecompressionBombError as error:
      raise InputError(
          f"{path}: the image declares more than {MAX_PIXELS} pixels, which no slice has. Remove"
          " the file."
      ) from error
    except InputError:
      raise
    except _DECODE_ERRORS as error:
      raise _unreadable(path, error) from error
    stack.enter_context(picture)
    _check(path, picture)
    yield picture


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Silences Pillow about sizes, for which our limit is stricter, and about unused EXIF tags."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    warnings.simplefilter("ignore", UserWarning)
    yield


def _check_png(path: pathlib.Path, stream: BinaryIO) -> None:
  """Refuses a PNG of which a chunk is not what its checksum says; other formats pass."""
  if stream.read(len(_PNG_SIGNATURE)) != _PNG_SIGNATURE:
    return
  kind = b""
  while kind != b"IEND":
    head = stream.read(8)
    left = int.from_bytes(head[:4], "big")
    kind = head[4:]
    checksum = zlib.crc32(kind)
    while left and (block := stream.read(min(left, _BLOCK_BYTES))):
      checksum = zlib.crc32(block, checksum)
      left -= len(block)
    stored = stream.read(4)
    if len(stored) < 4:
      raise InputError(f"{path}: the image is damaged: it breaks off. Fetch it again.")
    if int.from_bytes(stored, "big") != checksum:
      raise InputError(
          f"{path}: the image is damaged: the checksum of its chunk {kind.decode('latin-1')!r} does"
          " not fit. Fetch it again."
      )


def _check(path: pathlib.Path, picture: Image.Image) -> None:
  if picture.width * picture.height > MAX_PIXELS:
    raise InputError(
        f"{path}: the image declares {picture.width} x {picture.height} pixels; the limit is"
        f" {MAX_PIXELS}. Remove the file."
    )
  if picture.mode not in ("1", "L", "P", "RGB") or (
      picture.mode == "P" and "transparency" in picture.info
  ):
    raise InputError(
        f"{path}: must be 8-bit grey or RGB without transparency, got mode {picture.mode!r}."
        " Convert it first."
    )
  if (frames := getattr(picture, "n_frames", 1)) > 1:  # Pillow gives this to some formats only.
    raise InputError(
        f"{path}: must be a single image, got {frames} frames. Save each as a file of its own."
    )


def _unreadable(path, error: Exception) -> InputError:
  # Pillow's message may repeat the whole path.
  what = str(error).split("\n")[0].replace(f" {str(path)!r}", "") or type(error).__name__
  return InputError(f"{path}: the image is damaged or of another kind ({what}). Fetch it again.")
