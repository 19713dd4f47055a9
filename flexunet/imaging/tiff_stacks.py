"""Reads a TIFF of several pages as a volume, and writes labels as such.

Pages are slices in the order of the file, voxel axes (column, row, page). A TIFF states neither
orientation nor the distance of its slices, and its resolution is that of a print: all is unknown.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import pathlib
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image

from flexunet.core import files
from flexunet.core.errors import InputError, missing_file
from flexunet.imaging import volume_bytes
from flexunet.imaging.volume import Volume, VolumeHeader

ENDINGS = (".tif", ".tiff")
_DTYPES = {"1": "u1", "L": "u1", "I;16": "u2", "I;16B": "u2", "I;16L": "u2", "I": "i4", "F": "f4"}
_MAX_PAGES = 10_000
_UNKNOWN = np.diag([np.nan, np.nan, np.nan, 1.0])


def is_stack(path: str | os.PathLike) -> bool:
  """Returns whether a file is a TIFF of more than one page; one that cannot be read is none."""
  if not pathlib.PurePath(path).name.lower().endswith(ENDINGS):
    return False
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      with Image.open(path, formats=("TIFF",)) as image:
        image.seek(1)
        return True
  # A parser of hostile bytes raises anything, and reading the file says what.
  except Exception:
    return False


def files_of(path: str | os.PathLike) -> tuple[pathlib.Path, ...]:
  """Returns the file itself."""
  return (pathlib.Path(path),)


def read_header(path: str | os.PathLike) -> VolumeHeader:
  """Returns shape and dtype; decodes no page.

  Raises:
    InputError: The file is no TIFF, too large, or its pages are no grey images.
  """
  with _opened(pathlib.Path(path)) as (_, shape, dtype):
    return VolumeHeader.of(shape, dtype, _UNKNOWN.copy(), False)


def read_voxels(path: str | os.PathLike) -> tuple[Volume, float, float]:
  """Reads all pages: (volume, 1, 0).

  Raises:
    InputError: As in `read_header`, or the pages differ in size or kind, or are damaged.
  """
  path = pathlib.Path(path)
  with _opened(path) as (image, shape, dtype):
    voxels = np.empty(shape, dtype, order="F")
    for page in range(shape[2]):
      image.seek(page)
      if (*image.size, _DTYPES.get(image.mode)) != (*shape[:2], dtype.str[1:]):
        raise InputError(
            f"{path}: pages of a stack must be alike; page {page + 1} is {image.size} of mode"
            f" {image.mode!r}, the first {shape[:2]}. Save each kind in a file of its own."
        )
      voxels[:, :, page] = np.asarray(image).T
  return Volume(voxels, _UNKNOWN.copy(), False), 1.0, 0.0


def write_label(
    source_path: str | os.PathLike, label: np.ndarray, target_path: str | os.PathLike
) -> None:
  """Writes `label` uint8 [i, j, k] as a stack of grey pages, whose values are class ids.

  Args:
    source_path: The stack the label belongs to.
    label: Class ids on its grid.
    target_path: Ends in .tif or .tiff; the file appears whole or not at all.
  """
  del source_path  # A stack states nothing that its label could take over.
  pages = [
      Image.fromarray(np.ascontiguousarray(label[:, :, page].T.astype(np.uint8)))
      for page in range(label.shape[2])
  ]
  buffer = io.BytesIO()
  pages[0].save(
      buffer, "TIFF", save_all=True, append_images=pages[1:], compression="tiff_adobe_deflate"
  )
  files.write_bytes(pathlib.Path(target_path), buffer.getvalue())


@contextlib.contextmanager
def _opened(
    path: pathlib.Path,
) -> Iterator[tuple[Image.Image, tuple[int, int, int], np.dtype]]:
  """Opens a stack: (its pages, shape, dtype); whatever goes wrong inside names the file."""
  if not path.is_file():
    raise missing_file(path)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      with Image.open(path, formats=("TIFF",)) as image:
        pages = int(getattr(image, "n_frames", 1))
        if image.mode not in _DTYPES:
          raise InputError(
              f"{path}: pages of a stack must be grey, 8, 16 or 32 bits deep; got mode"
              f" {image.mode!r}. Convert it first."
          )
        dtype = np.dtype(_DTYPES[image.mode])
        shape = (*image.size, pages)
        declared = math.prod(shape) * dtype.itemsize
        if declared > volume_bytes.MAX_VOLUME_BYTES or pages > _MAX_PAGES or (
            declared > path.stat().st_size * volume_bytes.MAX_DEFLATE_RATIO
        ):
          raise InputError(
              f"{path}: declares {declared} bytes in {pages} pages, which it cannot hold, or is too"
              " large. Fetch the file again, or cut it."
          )
        yield image, shape, dtype
  except (InputError, MemoryError):
    raise
  # A parser of hostile bytes raises anything.
  except Exception as error:
    what = str(error).split("\n")[0][:120] or type(error).__name__
    raise InputError(f"{path}: the stack is damaged ({what}). Fetch the file again.") from error
