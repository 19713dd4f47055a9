"""Reads 8-bit images (PNG, JPEG, BMP) with distrust: size, depth and wholeness are checked."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import struct
import warnings
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from flexunet.core.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
# A radiograph has 10 million pixels. More than this is a decompression bomb or no slice.
MAX_PIXELS = 64 << 20
_FORMATS = ("PNG", "JPEG", "BMP")
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
# Grey images saved as colour JPEG come back with channels this far apart, by rounding.
_GREY_TOLERANCE = 16


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


def read_header(path: str | os.PathLike) -> PictureHeader:
  """Returns size and mode; decodes nothing.

  Raises:
    InputError: When the file is no image, too large, or has a mode that is not 8-bit.
  """
  with _opened(path) as picture:
    return PictureHeader(picture.height, picture.width, picture.mode, picture.format or "")


def read_gray(path: str | os.PathLike) -> np.ndarray:
  """Reads a grey image as uint8 [H, W]; grey stored as RGB is accepted, colour is not."""
  pixels = _decode(path)
  if pixels.ndim == 2:
    return pixels
  spread = int((pixels.max(-1).astype(np.int16) - pixels.min(-1)).max())
  if spread > _GREY_TOLERANCE:
    raise InputError(
        f"{path}: must be a grey image, but its colour channels differ by up to {spread}."
        " Convert it to grey first."
    )
  return np.round(pixels.mean(-1)).astype(np.uint8)


def read_rgb(path: str | os.PathLike) -> np.ndarray:
  """Reads an image as uint8 [H, W, 3]; grey is repeated."""
  pixels = _decode(path)
  return np.repeat(pixels[..., None], 3, axis=-1) if pixels.ndim == 2 else pixels


def read_indexed(path: str | os.PathLike) -> IndexedImage | None:
  """Reads what a palette image stores, before colours are looked up; None for other images."""
  with _opened(path) as picture:
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


def _decode(path) -> np.ndarray:
  """Returns uint8 [H, W] for grey files, [H, W, 3] for colour and palette files."""
  with _opened(path) as picture:
    try:
      if picture.mode in ("1", "L"):
        return np.asarray(picture.convert("L"))
      return np.asarray(picture.convert("RGB"))
    except _DECODE_ERRORS as error:
      raise _unreadable(path, error) from error


@contextlib.contextmanager
def _opened(path) -> Iterator[Image.Image]:
  path = pathlib.Path(path)
  if not path.is_file():
    raise InputError(f"{path}: there is no such file.")
  try:
    with warnings.catch_warnings():
      # The limit below is stricter than the one Pillow warns about.
      warnings.simplefilter("ignore", Image.DecompressionBombWarning)
      picture = Image.open(path, formats=_FORMATS)
  except Image.DecompressionBombError as error:
    raise InputError(
        f"{path}: the image declares more than {MAX_PIXELS} pixels, which no slice has. Remove"
        " the file."
    ) from error
  except _DECODE_ERRORS as error:
    raise _unreadable(path, error) from error
  with picture:
    _check(path, picture)
    yield picture


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


def _unreadable(path, error: Exception) -> InputError:
  # Pillow's message may repeat the whole path.
  what = str(error).split("\n")[0].replace(f" {str(path)!r}", "") or type(error).__name__
  return InputError(f"{path}: the image is damaged or of another kind ({what}). Fetch it again.")
