"""Reads MetaImage (.mha, .mhd) and NRRD (.nrrd, .nhdr) by SimpleITK, and writes labels like them.

The text of the header is read here before SimpleITK sees the file, so that sizes are checked before
memory is taken and files that are missing are named. Compressed voxels are inflated here and held
against their checksum, about which ITK prints and returns what it has. ITK's world is LPS+ mm, ours
RAS+.
"""

from __future__ import annotations

import dataclasses
import gzip
import importlib
import math
import os
import pathlib
import re
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from flexunet.core import files
from flexunet.core.errors import InputError, missing_file
from flexunet.imaging import volume_bytes
from flexunet.imaging.volume import Volume, VolumeHeader

# A header is some hundred bytes; keys of segmentations may make it some ten thousand.
_MAX_HEADER_BYTES = 4 << 20
_MAX_DATA_FILES = 10_000
_META_REQUIRED = {
    name.lower(): name for name in ("NDims", "DimSize", "ElementType", "ElementDataFile")
}
_META_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4",
    "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_NRRD_TYPES = {
    name: code
    for code, names in {
        "i1": "signed char,int8,int8_t",
        "u1": "uchar,unsigned char,uint8,uint8_t",
        "i2": "short,short int,signed short,signed short int,int16,int16_t",
        "u2": "ushort,unsigned short,unsigned short int,uint16,uint16_t",
        "i4": "int,signed int,int32,int32_t",
        "u4": "uint,unsigned int,uint32,uint32_t",
        "i8": "longlong,long long,long long int,signed long long,int64,int64_t",
        "u8": "ulonglong,unsigned long long,unsigned long long int,uint64,uint64_t",
        "f4": "float",
        "f8": "double",
    }.items()
    for name in names.split(",")
}
# Spaces of which the directions in the patient are known.
_PATIENT_SPACE = re.compile(
    r"(left|right)-(posterior|anterior)-superior(-time)?|(lps|ras|las)t?", re.IGNORECASE
)
_NAME_PATTERN = re.compile(r"[^%]*%0?\d*d[^%]*")
# What a label takes over from its scan, as it is written there: numbers, and words of the format.
_META_GEOMETRY = {
    "transformmatrix": "TransformMatrix", "rotation": "TransformMatrix",
    "orientation": "TransformMatrix", "offset": "Offset", "position": "Offset", "origin": "Offset",
    "centerofrotation": "CenterOfRotation", "anatomicalorientation": "AnatomicalOrientation",
    "elementspacing": "ElementSpacing", "elementsize": "ElementSize",
}  # fmt: skip
_NRRD_GEOMETRY = (
    "space", "space dimension", "space directions", "space origin", "kinds", "spacings", "centers",
    "centerings",
)  # fmt: skip
_GEOMETRY_VALUE = re.compile(
    r"[-+0-9.eE(), ]*|[RLAPIS?]{3}|((domain|space|cell|node|none|\?\?\?|nan|\([-+0-9.eE, ]*\)) ?)*|"
    + _PATIENT_SPACE.pattern,
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True, eq=False)
class _OpenedImage:
  """What the text of a header says.

  Attributes:
    fields: {name in lower case: value}.
    data_files: Where the voxels lie; the file itself where it holds them.
    data_offset: Bytes before the voxels, where the file itself holds them.
    sizes: As declared, trailing axes of length 1 included.
    oriented: Whether directions in the patient are stated.
    spaced: Whether the edges of a voxel are stated.
  """

  path: pathlib.Path
  fields: dict[str, str]
  data_files: tuple[pathlib.Path, ...]
  data_offset: int
  sizes: tuple[int, ...]
  shape: tuple[int, int, int]
  dtype: np.dtype
  compressed: bool
  oriented: bool
  spaced: bool

  @property
  def skipped_bytes(self) -> int:
    """How many bytes the header says to skip before the voxels; any number for -1."""
    skipped = int(self.fields.get("byte skip", self.fields.get("headersize", 0)) or 0)
    return skipped if skipped >= 0 else volume_bytes.MAX_VOLUME_BYTES

  @property
  def stored_dtype(self) -> np.dtype:
    """The dtype with the order of its bytes in the file."""
    names = ("binarydatabyteordermsb", "elementbyteordermsb", "endian")
    order = next((self.fields[name].lower() for name in names if name in self.fields), "")
    return self.dtype.newbyteorder(">" if order in ("true", "big") else "<")

  @property
  def num_bytes(self) -> int:
    """Bytes of all voxels."""
    return math.prod(self.shape) * self.dtype.itemsize


def files_of(path: str | os.PathLike) -> tuple[pathlib.Path, ...]:
  """Returns the file, and those its header names.

  Raises:
    InputError: The header cannot be read, or a file it names is missing.
  """
  opened = _open(path)
  return (opened.path, *opened.data_files)


def read_header(path: str | os.PathLike) -> VolumeHeader:
  """Returns what the header states; reads no voxel.

  Raises:
    InputError: The header cannot be read, or lies, or SimpleITK is not installed.
  """
  opened = _open(path)
  return VolumeHeader.of(opened.shape, opened.dtype, _affine(opened), opened.oriented)


def read_voxels(path: str | os.PathLike) -> tuple[Volume, float, float]:
  """Reads a volume: (volume, 1, 0); the formats have no scale factors.

  Raises:
    InputError: The file is unreadable, truncated, corrupt, larger than the limit, not 3-D, or
      SimpleITK is not installed.
  """
  opened = _open(path)
  affine = _affine(opened)
  if opened.compressed:
    stored = np.frombuffer(_inflate(opened), opened.stored_dtype)
    voxels = stored.astype(opened.dtype, copy=False).reshape(opened.shape, order="F")
  else:
    itk = _simple_itk()
    image = _of_itk(opened.path, lambda: itk.ReadImage(str(opened.path)))
    voxels = itk.GetArrayFromImage(image).T.reshape(opened.shape, order="F")
  return Volume(voxels, affine, opened.oriented), 1.0, 0.0


def write_label(
    source_path: str | os.PathLike, label: np.ndarray, target_path: str | os.PathLike
) -> None:
  """Writes `label` uint8 [i, j, k] with the geometry of the source, compressed, in one file.

  Args:
    source_path: The scan the label belongs to.
    label: Class ids on its grid.
    target_path: Ends in .mha for MetaImage, .nrrd for NRRD.

  Raises:
    InputError: The source is of the other format.
  """
  source, target_path = _open(source_path), pathlib.Path(target_path)
  wanted = ".mha" if _is_meta(source.path) else ".nrrd"
  if target_path.suffix.lower() != wanted:
    raise InputError(
        f"{target_path}: the source is {source.path}, so the name must end in {wanted}."
    )
  voxels = label.astype(np.uint8).tobytes(order="F")
  sizes = " ".join(map(str, source.sizes))
  if wanted == ".mha":
    data = zlib.compress(voxels)
    kept = {
        name: source.fields[key] for key, name in _META_GEOMETRY.items() if key in source.fields
    }
    lines = [
        "ObjectType = Image", f"NDims = {len(source.sizes)}", "BinaryData = True",
        "BinaryDataByteOrderMSB = False", "CompressedData = True",
        f"CompressedDataSize = {len(data)}",
        *(f"{name} = {value}" for name, value in kept.items() if _GEOMETRY_VALUE.fullmatch(value)),
        f"DimSize = {sizes}", "ElementType = MET_UCHAR", "ElementDataFile = LOCAL",
    ]  # fmt: skip
    text = "\n".join(lines) + "\n"
  else:
    data = gzip.compress(voxels, mtime=0)  # No time stamp: equal labels give equal files.
    kept = {key: source.fields[key] for key in _NRRD_GEOMETRY if key in source.fields}
    lines = [
        "NRRD0004", "type: unsigned char", f"dimension: {len(source.sizes)}", f"sizes: {sizes}",
        *(f"{name}: {value}" for name, value in kept.items() if _GEOMETRY_VALUE.fullmatch(value)),
        "encoding: gzip",
    ]  # fmt: skip
    text = "\n".join(lines) + "\n\n"
  files.write_bytes(target_path, text.encode("ascii") + data)


def _simple_itk() -> Any:
  """Returns the package SimpleITK, which is optional."""
  try:
    itk = importlib.import_module("SimpleITK")
  except ImportError as error:
    raise InputError(
        "MetaImage and NRRD files are read by SimpleITK, which is not installed. Install the"
        ' extra: pip install "flexunet[itk]".'
    ) from error
  itk.ProcessObject.SetGlobalWarningDisplay(False)
  return itk


def _of_itk(path: pathlib.Path, read: Any) -> Any:
  """Calls ITK, whose errors fill a screen."""
  try:
    return read()
  except RuntimeError as error:
    last = [line for line in str(error).splitlines() if line.strip()][-1]
    what = re.split(r"\): |: ", last)[-1].replace(str(path), "the file").strip()
    raise InputError(f"{path}: cannot be read ({what}). Fetch the file again.") from error


def _is_meta(path: pathlib.Path) -> bool:
  return path.suffix.lower() in (".mha", ".mhd")


def _open(path: str | os.PathLike) -> _OpenedImage:
  path = pathlib.Path(path)
  if not path.is_file():
    raise missing_file(path)
  try:
    with open(path, "rb") as stream:
      head = stream.read(_MAX_HEADER_BYTES)
  except OSError as error:
    raise volume_bytes.unreadable(path, error) from error
  try:
    opened = _parse_meta(path, head) if _is_meta(path) else _parse_nrrd(path, head)
    _check_sizes(opened)
  except (KeyError, ValueError, OverflowError) as error:
    if isinstance(error, InputError):
      raise
    what = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
    raise InputError(
        f"{path}: the header cannot be used ({what}). Fetch the file again."
    ) from error
  return opened


def _parse_meta(path: pathlib.Path, head: bytes) -> _OpenedImage:
  """Reads lines "Key = Value" up to ElementDataFile, behind which the voxels may follow."""
  fields: dict[str, str] = {}
  offset = 0
  while "elementdatafile" not in fields:
    end = head.find(b"\n", offset)
    if end < 0 and offset >= len(head):
      raise KeyError("ElementDataFile")
    line = head[offset : end if end >= 0 else len(head)].decode("latin-1")
    offset = end + 1 if end >= 0 else len(head)
    key, _, value = line.partition("=")
    exact = _META_REQUIRED.get(key.strip().lower())
    if exact and exact != key.strip():
      raise InputError(f"{path}: a field must be called {exact}, got {key.strip()[:40]!r}.")
    fields[key.strip().lower()] = value.strip()
  if fields.get("binarydata", "true").lower() == "false":
    raise InputError(f"{path}: its voxels must be binary, got text. Save it as binary.")
  channels = int(fields.get("elementnumberofchannels", 1))
  _refuse_vectors(path, channels)
  sizes = _whole_numbers(fields["dimsize"])
  if len(sizes) != int(fields["ndims"]):
    raise InputError(f"{path}: NDims is {fields['ndims']}, DimSize {fields['dimsize']}.")
  matrix = any(key in fields for key in ("transformmatrix", "rotation", "orientation"))
  named = fields["elementdatafile"]
  words = named.split()
  if words[:1] == ["LIST"]:
    rest = head[offset:].decode("latin-1").split("\n")
    data_files = _beside(path, [line.strip() for line in rest if line.strip()])
  else:
    data_files = (path,) if named.upper() == "LOCAL" else _beside(path, _expand(named))
  return _OpenedImage(
      path, fields, data_files, offset if data_files == (path,) else 0, sizes,
      volume_bytes.three_axes(path, sizes), _dtype(path, _META_TYPES, fields["elementtype"]),
      fields.get("compresseddata", "false").lower() == "true",
      oriented=matrix and len(sizes) >= 3,
      spaced="elementspacing" in fields or "elementsize" in fields,
  )  # fmt: skip


def _parse_nrrd(path: pathlib.Path, head: bytes) -> _OpenedImage:
  """Reads lines "field: value" up to an empty one, behind which the voxels may follow."""
  if not re.match(rb"NRRD000\d", head):
    raise InputError(f"{path}: this is no NRRD file (its first letters must be NRRD).")
  found = re.search(rb"\r?\n\r?\n", head)
  text = head[: found.start()] if found else head
  fields: dict[str, str] = {}
  lines = text.decode("latin-1").splitlines()[1:]
  listed: list[str] | None = None
  for line in lines:
    if listed is not None:
      listed.append(line.strip())
    elif ": " in line and not line.startswith("#"):
      key, _, value = line.partition(": ")
      fields[key.strip().lower()] = value.strip()
      if key.strip().lower() in ("data file", "datafile") and value.split()[:1] == ["LIST"]:
        listed = []
  sizes = _whole_numbers(fields["sizes"])
  if len(sizes) != int(fields["dimension"]):
    raise InputError(f"{path}: dimension is {fields['dimension']}, sizes {fields['sizes']}.")
  directions = fields.get("space directions", "")
  kinds = fields.get("kinds", "").lower().split()
  if directions.startswith("none") or (kinds and kinds[0] not in ("domain", "space", "???")):
    _refuse_vectors(path, sizes[0])
  encoding = fields["encoding"].lower()
  if encoding not in ("raw", "gzip", "gz"):
    raise InputError(f"{path}: its encoding must be raw or gzip, got {encoding}. Save it so.")
  named = fields.get("data file", fields.get("datafile"))
  if named is None and found is None:
    raise InputError(f"{path}: the file is truncated: its header has no end. Fetch the file again.")
  data_files: tuple[pathlib.Path, ...] = (path,)
  if named is not None:
    data_files = _beside(path, listed if listed is not None else _expand(named))
  return _OpenedImage(
      path, fields, data_files, found.end() if found and named is None else 0, sizes,
      volume_bytes.three_axes(path, sizes), _dtype(path, _NRRD_TYPES, fields["type"].lower()),
      encoding != "raw",
      oriented=bool(_PATIENT_SPACE.fullmatch(fields.get("space", "")) and directions)
      and len(sizes) >= 3,
      spaced=bool(directions or "spacings" in fields),
  )  # fmt: skip


def _whole_numbers(text: str) -> tuple[int, ...]:
  return tuple(int(word) for word in text.split())


def _dtype(path: pathlib.Path, types: dict[str, str], name: str) -> np.dtype:
  if name not in types:
    raise InputError(f"{path}: voxels must be numbers of at most 64 bits, got {name[:40]!r}.")
  return np.dtype(types[name])


def _refuse_vectors(path: pathlib.Path, channels: int) -> None:
  if channels != 1:
    raise InputError(
        f"{path}: a voxel must hold one number, this file has {channels} (colour, vectors or time)."
        " Save each in a file of its own."
    )


def _expand(named: str) -> list[str]:
  """Returns the names that "slice%03d.raw 1 20 1" stands for, or the name itself."""
  found = re.fullmatch(r"(\S.*?)\s+(-?\d+)\s+(-?\d+)\s+(-?\d+)(\s+\d+)?", named)
  if not found or not _NAME_PATTERN.fullmatch(found[1]):
    return [named]
  first, last, step = (int(found[place]) for place in (2, 3, 4))
  if step == 0 or abs(last - first) // abs(step) >= _MAX_DATA_FILES:
    raise ValueError(f"{named[:60]!r} names too many files")
  return [found[1] % number for number in range(first, last + (1 if step > 0 else -1), step)]


def _beside(path: pathlib.Path, names: list[str]) -> tuple[pathlib.Path, ...]:
  """Returns the files that a header names; they lie in its folder or below."""
  found = []
  for name in names[: _MAX_DATA_FILES + 1]:
    file = path.parent / name
    if pathlib.PurePath(name).is_absolute() or ".." in pathlib.PurePath(name).parts:
      raise InputError(
          f"{path}: the file of its voxels must lie in the same folder or below; the header names"
          f" {name[:80]!r}. Put it there and edit the header."
      )
    if not file.is_file():
      raise InputError(
          f"{path}: its voxels should be in {name[:80]!r}, which is missing. Put both files side by"
          " side."
      )
    found.append(file)
  if not found:
    raise InputError(f"{path}: the header names no file of voxels. Fetch the file again.")
  return tuple(found)


def _check_sizes(opened: _OpenedImage) -> None:
  """Refuses sizes that cannot be, before memory is taken for them."""
  largest = max(opened.data_files, key=lambda file: file.stat().st_size)
  if len(opened.data_files) == 1:
    volume_bytes.check_size(
        opened.path, largest, opened.shape, opened.dtype, compressed=opened.compressed
    )
  on_disk = sum(file.stat().st_size for file in opened.data_files) - opened.data_offset
  most = on_disk * (volume_bytes.MAX_DEFLATE_RATIO if opened.compressed else 1)
  if opened.num_bytes > min(most, volume_bytes.MAX_VOLUME_BYTES):
    raise volume_bytes.truncated(opened.path, opened.num_bytes, max(on_disk, 0))
  within = opened.data_files == (opened.path,)
  if within and not opened.compressed and on_disk > opened.num_bytes + opened.skipped_bytes:
    raise _of_other_size(opened)
  stated = opened.fields.get("compresseddatasize")
  if within and opened.compressed and stated is not None and int(stated) != on_disk:
    raise InputError(
        f"{opened.path}: CompressedDataSize is {stated[:20]}, the file holds {on_disk} bytes after"
        " its header. Fetch the file again."
    )


def _inflate(opened: _OpenedImage) -> bytearray:
  """Returns the bytes of compressed voxels, held against the checksum at their end."""
  skipped = max(opened.skipped_bytes, 0) if opened.skipped_bytes < opened.num_bytes else 0
  data = bytearray()
  try:
    for file in opened.data_files:
      for block in _inflated(file, opened.data_offset):
        data += block
        if len(data) > opened.num_bytes + skipped:
          raise _of_other_size(opened)
  except (zlib.error, OSError) as error:
    raise volume_bytes.unreadable(opened.path, error) from error
  if len(data) != opened.num_bytes + skipped:
    raise volume_bytes.truncated(opened.path, opened.num_bytes + skipped, len(data))
  return data[skipped:] if skipped else data


def _of_other_size(opened: _OpenedImage) -> InputError:
  return InputError(
      f"{opened.path}: holds more than the {opened.num_bytes} bytes of voxels that its header"
      " promises, so the header does not describe it. Fetch the file again."
  )


def _inflated(path: pathlib.Path, offset: int) -> Iterator[bytes]:
  """Yields what a zlib or gzip stream holds; zlib.error where it is damaged or breaks off."""
  decoder = zlib.decompressobj(wbits=47)  # Either kind of header.
  with open(path, "rb") as stream:
    stream.seek(offset)
    while block := stream.read(volume_bytes.CHUNK_BYTES):
      more = True
      while more:
        found = decoder.decompress(block, volume_bytes.CHUNK_BYTES)
        yield found
        block = decoder.unconsumed_tail
        more = not decoder.eof and (bool(block) or len(found) == volume_bytes.CHUNK_BYTES)
      if decoder.eof:
        return
  raise zlib.error("the compressed stream breaks off")


def _affine(opened: _OpenedImage) -> np.ndarray:
  """Returns float64 [4, 4] to RAS+ mm; where no orientation is stated, one of the spacing."""
  itk = _simple_itk()
  reader = itk.ImageFileReader()
  reader.SetFileName(str(opened.path))
  _of_itk(opened.path, reader.ReadImageInformation)
  dimension = reader.GetDimension()
  if reader.GetNumberOfComponents() != 1:
    _refuse_vectors(opened.path, reader.GetNumberOfComponents())
  affine = np.diag([np.nan, np.nan, np.nan, 1.0])
  spacing = np.array(reader.GetSpacing(), np.float64)[:3]
  if opened.oriented:
    direction = np.reshape(reader.GetDirection(), (dimension, dimension))[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing
    affine[:3, 3] = reader.GetOrigin()[:3]
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # LPS+ to RAS+.
  elif opened.spaced:
    known = np.where(spacing > 0, spacing, np.nan)
    for axis in range(len(known)):
      affine[axis, axis] = known[axis]
  volume_bytes.check_affine(opened.path, affine, oriented=opened.oriented)
  return affine
