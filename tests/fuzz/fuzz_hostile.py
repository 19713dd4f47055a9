"""Hostile scans and images: files that lie, bombs, odd names, and what only looks like a scan."""

from __future__ import annotations

import gzip
import os
import pathlib
import struct
import zlib
from collections.abc import Callable

import fuzz_inputs
import nibabel as nib
import numpy as np
from PIL import Image

# Offsets in a NIfTI-1 header.
_DIM, _DATATYPE, _BITPIX, _PIXDIM, _VOX_OFFSET, _SLOPE = 40, 70, 72, 76, 108, 112
_SFORM_CODE, _SROW_X, _MAGIC = 254, 280, 344


def _nifti(voxels: np.ndarray | None = None) -> bytearray:
  voxels = fuzz_inputs.voxels() if voxels is None else voxels
  return bytearray(nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 2.0, 1.0])).to_bytes())


def _with(offset: int, form: str, *values) -> Callable[[pathlib.Path], pathlib.Path]:
  """Returns what writes a scan with other values at one place of its header."""

  def write(folder: pathlib.Path) -> pathlib.Path:
    data = _nifti()
    struct.pack_into(form, data, offset, *values)
    (folder / "bad.nii").write_bytes(data)
    return folder / "bad.nii"

  return write


def _holding(name: str, data: bytes) -> Callable[[pathlib.Path], pathlib.Path]:
  def write(folder: pathlib.Path) -> pathlib.Path:
    (folder / name).write_bytes(data)
    return folder / name

  return write


def _of_voxels(voxels: np.ndarray) -> Callable[[pathlib.Path], pathlib.Path]:
  return _holding("bad.nii", bytes(_nifti(voxels)))


def _of_image(name: str, image: Image.Image, **options) -> Callable[[pathlib.Path], pathlib.Path]:
  def write(folder: pathlib.Path) -> pathlib.Path:
    image.save(folder / name, **options)
    return folder / name

  return write


def _png_of_size(width: int, height: int) -> bytes:
  """Returns a PNG that declares a size and holds next to nothing."""

  def chunk(kind: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum

  head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
  pixels = zlib.compress(bytes(1000))
  return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels)
          + chunk(b"IEND", b""))  # fmt: skip


def _link(target: str) -> Callable[[pathlib.Path], pathlib.Path]:
  def write(folder: pathlib.Path) -> pathlib.Path:
    (folder / "bad.nii").symlink_to(target)
    return folder / "bad.nii"

  return write


def _twins(folder: pathlib.Path) -> pathlib.Path:
  for name in ("bad.nii", "bad.nii.gz"):
    data = bytes(_nifti())
    (folder / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
  return folder / "bad.nii"


def _queue(folder: pathlib.Path) -> pathlib.Path:
  os.mkfifo(folder / "bad.nii")
  return folder / "bad.nii"


def _animated(folder: pathlib.Path) -> pathlib.Path:
  frames = [Image.fromarray(np.full((9, 9), level, np.uint8)) for level in (1, 200)]
  frames[0].save(folder / "bad.png", save_all=True, append_images=frames[1:])
  return folder / "bad.png"


def _bomb(folder: pathlib.Path) -> pathlib.Path:
  # 64 x 64 x 64 voxels declared, and a gibibyte of zeros behind them.
  head = _nifti(np.zeros((64, 64, 64), np.int16))
  packer = zlib.compressobj(9, zlib.DEFLATED, 31)
  with open(folder / "bad.nii.gz", "wb") as stream:
    stream.write(packer.compress(bytes(head)))
    for _ in range(1024):
      stream.write(packer.compress(bytes(1 << 20)))
    stream.write(packer.flush())
  return folder / "bad.nii.gz"


_SOME = fuzz_inputs.voxels(np.float32)
_HUGE = _SOME.copy()
_HUGE[0, 0, 0] = 3e38
_INFINITE = _SOME.copy()
_INFINITE[0, 0, 0] = np.inf
_RGB = np.zeros((9, 9, 3), np.uint8)
_RGB[..., 0] = 250

# Each must be refused by name.
REFUSED: dict[str, Callable[[pathlib.Path], pathlib.Path]] = {
    "no bytes": _holding("bad.nii", b""),
    "a text": _holding("bad.nii", b"not a scan"),
    "a page of HTML as .nii.gz": _holding("bad.nii.gz", b"<html></html>"),
    "a header alone": _holding("bad.nii", bytes(_nifti()[:348])),
    "no magic letters": _with(_MAGIC, "4s", b"abcd"),
    "a shape of 32767 cubed": _with(_DIM, "<8h", 3, 32767, 32767, 32767, 1, 1, 1, 1),
    "a negative shape": _with(_DIM, "<8h", 3, -5, 12, 6, 1, 1, 1, 1),
    "an empty shape": _with(_DIM, "<8h", 3, 0, 12, 6, 1, 1, 1, 1),
    "five axes": _with(_DIM, "<8h", 5, 2, 2, 2, 3, 2, 1, 1),
    "an unknown type of voxels": _with(_DATATYPE, "<h", 9999),
    "complex voxels": _with(_DATATYPE, "<hh", 32, 64),
    "voxels before the file": _with(_VOX_OFFSET, "<f", -800.0),
    "voxels behind the file": _with(_VOX_OFFSET, "<f", 1e9),
    "voxels at infinity": _with(_VOX_OFFSET, "<f", np.inf),
    "voxels nowhere": _with(_VOX_OFFSET, "<f", np.nan),
    "an infinite slope": _with(_SLOPE, "<ff", np.inf, 0.0),
    "a slope of 3e38": _with(_SLOPE, "<ff", 3e38, 0.0),
    "an edge of 1e30 mm": _with(_SROW_X, "<f", 1e30),
    "an affine of NaN": _with(_SROW_X, "<4f", *[np.nan] * 4),
    "a flat affine": _with(_SROW_X, "<4f", 0, 0, 0, 0),
    "nothing but NaN": _of_voxels(np.full((5, 6, 7), np.nan, np.float32)),
    "nothing but zero": _of_voxels(np.zeros((5, 6, 7), np.int16)),
    "one constant": _of_voxels(np.full((5, 6, 7), 42, np.int16)),
    "an infinite voxel": _of_voxels(_INFINITE),
    "a voxel of 3e38": _of_voxels(_HUGE),
    "a bomb": _bomb,
    "a dead link": _link("nowhere"),
    "a link to itself": _link("bad.nii"),
    "a queue": _queue,
    "two forms of one name": _twins,
    "an .img without its .hdr": _holding("bad.img", bytes(2000)),
}
# The same for a run on images.
REFUSED_IMAGES: dict[str, Callable[[pathlib.Path], pathlib.Path]] = {
    "no bytes": _holding("bad.png", b""),
    "a text": _holding("bad.jpg", b"not an image"),
    "a size of 2 thousand millions": _holding("bad.png", _png_of_size(1 << 31, 1 << 31)),
    "a bomb": _holding("bad.png", _png_of_size(30_000, 30_000)),
    "too few pixels": _holding("bad.png", _png_of_size(300, 300)),
    "sixteen bits": _of_image("bad.png", Image.fromarray(np.zeros((9, 9), np.uint16))),
    "colour": _of_image("bad.png", Image.fromarray(_RGB)),
    "transparency": _of_image("bad.png", Image.fromarray(_RGB).convert("RGBA")),
    "CMYK": _of_image("bad.jpg", Image.fromarray(_RGB).convert("CMYK")),
    "a GIF named PNG": _of_image("bad.png", Image.fromarray(_RGB), format="GIF"),
    "an animation": _animated,
    "a volume": _holding("bad.nii", bytes(_nifti())),
}
