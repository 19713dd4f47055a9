"""Reads and writes NIfTI (.nii, .nii.gz, .hdr + .img) and ANALYZE 7.5 (.hdr + .img) volumes.

nibabel parses the header blocks; what surrounds them (twins, compression, sizes, suffixes in any
case) is done here, so that a bad file ends in one clear line. Every file is distrusted: sizes are
checked before memory is taken, and a compressed stream is read to its end, where its checksum
stands (other readers stop at the last voxel and never see it). A label volume is written in the
format, on the grid and with the header geometry of its scan.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import logging
import math
import os
import pathlib
import struct
import tempfile
import zlib

import nibabel as nib
import numpy as np

from flexunet.core.errors import InputError, missing_file
from flexunet.imaging import intensity
from flexunet.imaging.volume import Volume, VolumeHeader, axis_codes_of, spacing_of

STREAM_ERRORS = (OSError, EOFError, zlib.error, struct.error)
_HEADER_ERRORS = (
    nib.spatialimages.HeaderDataError, nib.wrapstruct.WrapStructError, ValueError, KeyError,
    OverflowError,
)  # fmt: skip
# Larger than any clinical scan (512 x 512 x 2000 int16 is 1 GiB), small enough to be held.
MAX_VOLUME_BYTES = 4 << 30
# Deflate cannot shrink data more than 1032-fold (RFC 1951: 258 bytes in 2 bits).
_MAX_DEFLATE_RATIO = 1032
_NIFTI1_BYTES, _NIFTI2_BYTES = 348, 540
_SILENT = logging.Logger("silent", logging.CRITICAL)
_TWIN = {".hdr": ".img", ".img": ".hdr"}
_CHUNK_BYTES = 1 << 20
# After the last voxel a file may carry padding; much more than that is no volume.
_MAX_TRAILING_BYTES = 64 << 20
_IMAGE_CLASSES: dict[type, type] = {
    nib.Nifti1Header: nib.Nifti1Image,
    nib.nifti1.Nifti1PairHeader: nib.Nifti1Pair,
    nib.Nifti2Header: nib.Nifti2Image,
    nib.nifti2.Nifti2PairHeader: nib.Nifti2Pair,
    nib.spm2analyze.Spm2AnalyzeHeader: nib.Spm2AnalyzeImage,
}
_SPACINGS_MM = (1e-5, 1e5)  # Beyond these no header is true.
# What a header may say about the person or the site; a mask must not carry it on.
_FREE_TEXT = (
    "descrip", "aux_file", "intent_name", "db_name", "data_type", "generated", "scannum",
    "patient_id", "exp_date", "exp_time",
)


@dataclasses.dataclass(frozen=True, eq=False)
class OpenedHeader:
  """A parsed header and where its voxels lie.

  Attributes:
    header: nibabel's header object, as read.
    header_path, data_path: The two files of a pair; the same file twice for `.nii`.
    stored_shape: The shape in the file, trailing axes of length 1 included.
    shape: The same as three axes.
    dtype: Stored dtype, byte order included.
    data_offset: Bytes before the first voxel in `data_path`.
    slope, inter: The scale factors; 1 and 0 where there are none.
  """

  header: nib.analyze.AnalyzeHeader
  header_path: pathlib.Path
  data_path: pathlib.Path
  stored_shape: tuple[int, ...]
  shape: tuple[int, int, int]
  dtype: np.dtype
  data_offset: int
  slope: float
  inter: float
  affine: np.ndarray
  oriented: bool

  @property
  def num_bytes(self) -> int:
    """Bytes of all voxels."""
    return math.prod(self.shape) * self.dtype.itemsize

  @property
  def spacing_mm(self) -> np.ndarray:
    """float64 [3]; NaN where the file states none."""
    return spacing_of(self.affine)

  @property
  def axis_codes(self) -> str:
    """Which way the axes point; "" where the file states no orientation."""
    return axis_codes_of(self.affine) if self.oriented else ""


def suffix_of(path: str | os.PathLike) -> str:
  """Returns ".nii", ".hdr" or ".img", with ".gz" where compressed, in lower case; "" otherwise."""
  name = pathlib.PurePath(path).name.lower()
  compressed = ".gz" if name.endswith(".gz") else ""
  for suffix in (".nii", ".hdr", ".img"):
    if name.endswith(suffix + compressed) and len(name) > len(suffix + compressed):
      return suffix + compressed
  return ""


def stem_of(path: str | os.PathLike) -> str:
  """Returns the file name without its volume suffix."""
  path = pathlib.PurePath(path)
  suffix = suffix_of(path)
  return path.name[: -len(suffix)] if suffix else path.stem


def is_volume(path: str | os.PathLike) -> bool:
  """Returns by its suffix whether a file is a volume this package reads."""
  return bool(suffix_of(path))


def is_compressed(path: str | os.PathLike) -> bool:
  """Returns by its suffix whether a file is compressed."""
  return pathlib.PurePath(path).name.lower().endswith(".gz")


def open_stream(path: pathlib.Path) -> io.BufferedIOBase:
  """Opens for reading, through gzip where the name ends in .gz."""
  return gzip.open(path, "rb") if is_compressed(path) else open(path, "rb")


def unreadable(path: str | os.PathLike, error: Exception) -> InputError:
  """Returns the error for a stream that breaks off or fails its checksum."""
  what = str(error).split("\n")[0] or type(error).__name__
  return InputError(f"{path}: cannot be read ({what}). Fetch the file again.")


def files_of(path: str | os.PathLike) -> tuple[pathlib.Path, pathlib.Path]:
  """Returns (header file, voxel file): one and the same for `.nii`, the twins of a pair."""
  path = pathlib.Path(path)
  suffix = suffix_of(path)
  if not suffix:
    raise InputError(
        f"{path}: not a volume. Expected .nii, .nii.gz, or a pair .hdr + .img (also .gz)."
    )
  if not path.is_file():
    raise missing_file(path)
  kind = suffix[:4]
  if kind == ".nii":
    return path, path
  twin = _find_twin(path, suffix, _TWIN[kind])
  if not twin.is_file():
    raise missing_file(twin)
  return (path, twin) if kind == ".hdr" else (twin, path)


def open_header(path: str | os.PathLike) -> OpenedHeader:
  """Parses and checks a header.

  Raises:
    InputError: When the header is unreadable, its twin is missing, or what it declares cannot be.
  """
  header_path, data_path = files_of(path)
  header, pixdim = _parse(header_path, single=header_path == data_path)
  try:
    stored_shape = tuple(int(size) for size in header.get_data_shape())
    dtype = np.dtype(header.get_data_dtype())
    offset = int(header.get_data_offset())
    slope, inter = header.get_slope_inter()
  except _HEADER_ERRORS as error:
    raise _bad_header(header_path, error) from error
  shape = _three_axes(header_path, stored_shape)
  if dtype.kind not in "iuf" or dtype.itemsize > 8:
    raise InputError(f"{header_path}: voxels must be real numbers of at most 64 bits, got {dtype}.")
  _check_size(header_path, data_path, shape, dtype)
  if "scl_slope" in header and np.isinf(header["scl_slope"]):  # nibabel takes it for none.
    raise InputError(f"{header_path}: the header's slope is infinite. Repair the header.")
  if offset < 0:
    raise InputError(f"{header_path}: the header puts the voxels {-offset} bytes before the file.")
  slope = 1.0 if slope is None else float(slope)
  inter = 0.0 if inter is None else float(inter)
  oriented = _is_oriented(header)
  affine = _affine_of(header_path, header, oriented, pixdim)
  edges = spacing_of(affine)
  known = edges[np.isfinite(edges)]
  if not all(_SPACINGS_MM[0] <= edge <= _SPACINGS_MM[1] for edge in known):
    raise InputError(
        f"{header_path}: the edges of a voxel must lie in {_SPACINGS_MM[0]:g}..{_SPACINGS_MM[1]:g}"
        f" mm, found {' x '.join(f'{edge:g}' for edge in edges)}. Repair the header."
    )
  return OpenedHeader(header, header_path, data_path, stored_shape, shape, dtype, offset,
                      slope, inter, affine, oriented)


def _find_twin(path: pathlib.Path, suffix: str, twin_kind: str) -> pathlib.Path:
  """Finds the other half of a pair, whatever the case of its suffix."""
  stem = path.name[: -len(suffix)]
  compressed = suffix[4:]
  # The likely name first; then both compressions, since some sets gzip the .img only.
  wanted = [twin_kind + compressed, twin_kind + ("" if compressed else ".gz")]
  for twin_suffix in wanted:
    upper = path.name[len(stem) :].isupper()
    candidate = path.with_name(stem + (twin_suffix.upper() if upper else twin_suffix))
    if candidate.is_file():
      return candidate
  names = {stem + twin_suffix for twin_suffix in wanted}
  for sibling in sorted(path.parent.iterdir()):
    if sibling.name.startswith(stem) and stem + sibling.name[len(stem) :].lower() in names:
      return sibling
  raise InputError(
      f"{path}: its twin {stem}{wanted[0]} is missing. A pair needs both files, the header (.hdr)"
      " and the voxels (.img), side by side."
  )


def _parse(path: pathlib.Path, single: bool) -> tuple[nib.analyze.AnalyzeHeader, np.ndarray]:
  """Returns the header, with nibabel's repairs, and its voxel edges [3] before them."""
  try:
    with open_stream(path) as stream:
      block = stream.read(_NIFTI2_BYTES)
  except STREAM_ERRORS as error:
    raise unreadable(path, error) from error
  if len(block) < _NIFTI1_BYTES:
    raise InputError(
        f"{path}: the header is truncated: expected {_NIFTI1_BYTES} bytes, found {len(block)}."
        " Fetch the file again."
    )
  header_class: type[nib.analyze.AnalyzeHeader]
  sizes = {int.from_bytes(block[:4], order) for order in ("little", "big")}
  if _NIFTI2_BYTES in sizes:
    header_class = nib.Nifti2Header if single else nib.nifti2.Nifti2PairHeader
    block = block[:_NIFTI2_BYTES]
  else:
    # An ANALYZE header has free text where NIfTI has its magic letters.
    is_nifti = block[344:348] in (b"n+1\0", b"ni1\0")
    if not (single or is_nifti) and _is_nearly(block[344:348], b"ni1\0"):
      raise InputError(f"{path}: the magic letters of NIfTI are damaged. Fetch the file again.")
    if single and not is_nifti:
      raise InputError(f"{path}: this is no NIfTI file (its magic letters are missing).")
    nifti_class = nib.Nifti1Header if single else nib.nifti1.Nifti1PairHeader
    header_class = nifti_class if is_nifti else nib.spm2analyze.Spm2AnalyzeHeader
    if not is_nifti and _NIFTI1_BYTES not in sizes:
      raise InputError(f"{path}: this is no ANALYZE or NIfTI header.")
    block = block[:_NIFTI1_BYTES]
  try:
    header = header_class.from_fileobj(io.BytesIO(block), check=False)
    pixdim = np.array(header["pixdim"][1:4], np.float64)
    _check_codes(header)  # nibabel would take an unknown one for none, and the orientation away.
    # Repairs what is harmless and raises the rest; it would print each repair.
    header.check_fix(logger=_SILENT)
    return header, pixdim
  except (*_HEADER_ERRORS, *STREAM_ERRORS) as error:
    raise _bad_header(path, error) from error


def _three_axes(path: pathlib.Path, shape: tuple[int, ...]) -> tuple[int, int, int]:
  """Drops trailing axes of length 1 beyond the third, and no other."""
  if not shape or min(shape) < 1:
    raise InputError(f"{path}: the header declares the shape {shape}, which holds no voxel.")
  if any(size != 1 for size in shape[3:]):
    raise InputError(
        f"{path}: a volume has three axes, this file has the shape {shape}. Split the series into"
        " one file a volume."
    )
  i, j, k = (*shape, 1, 1)[:3]
  return i, j, k


def _check_size(header_path, data_path, shape, dtype) -> None:
  """Refuses sizes that cannot be, before memory is taken for them."""
  declared = math.prod(shape) * dtype.itemsize
  if declared > MAX_VOLUME_BYTES:
    raise InputError(
        f"{header_path}: the header declares {declared} bytes of voxels (shape {shape}, {dtype});"
        f" the limit is {MAX_VOLUME_BYTES}. The header is damaged, or the scan must be cut."
    )
  on_disk = data_path.stat().st_size
  if declared > on_disk * (_MAX_DEFLATE_RATIO if is_compressed(data_path) else 1):
    raise InputError(
        f"{data_path}: the file is truncated: its header promises {declared} bytes of voxels"
        f" (shape {shape}, {dtype}), the file has {on_disk} bytes. Fetch the file again."
    )


def _is_nearly(found: bytes, wanted: bytes) -> bool:
  """Returns whether a bit or two make the difference, which no free text does."""
  return (int.from_bytes(found, "big") ^ int.from_bytes(wanted, "big")).bit_count() <= 2


def _check_codes(header) -> None:
  """Raises ValueError where the header states its orientation by a code that there is none of."""
  for name in ("qform_code", "sform_code"):
    if name in header and not 0 <= (code := int(header[name])) <= 5:
      raise ValueError(f"its {name} must be 0 to 5, got {code}")


def _is_oriented(header) -> bool:
  if not isinstance(header, nib.Nifti1Header):
    return False  # ANALYZE has no agreed directions.
  return int(header["qform_code"]) > 0 or int(header["sform_code"]) > 0


def _affine_of(path: pathlib.Path, header, oriented: bool, pixdim: np.ndarray) -> np.ndarray:
  """Returns the stated affine; where none is stated, one that holds the spacing only."""
  if oriented:
    try:
      affine = np.asarray(header.get_best_affine(), np.float64)
    except _HEADER_ERRORS as error:
      raise _bad_header(path, error) from error
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
      raise InputError(f"{path}: the header's affine is singular or not finite. Repair the header.")
    return affine
  zooms = np.abs(pixdim)
  # A zero means that it was not filled in: the spacing is unknown, not zero.
  zooms = np.where(np.isfinite(zooms) & (zooms > 0), zooms, np.nan)
  affine = np.zeros((4, 4))
  affine[[0, 1, 2, 3], [0, 1, 2, 3]] = [*zooms, 1.0]
  return affine


def _bad_header(path: pathlib.Path, error: Exception) -> InputError:
  what = str(error).split("\n")[0] or type(error).__name__
  return InputError(f"{path}: the header cannot be used ({what}). Fetch the file again.")


def read_header(path: str | os.PathLike) -> VolumeHeader:
  """Returns shape, stored dtype, spacing and axis codes; reads no voxel.

  Raises:
    InputError: When the header cannot be read, lies, or its twin file is missing.
  """
  header = open_header(path)
  return VolumeHeader(
      shape=header.shape,
      dtype=header.dtype.newbyteorder("="),
      spacing_mm=(*map(float, header.spacing_mm),),  # type: ignore[arg-type]
      axis_codes=header.axis_codes,
      oriented=header.oriented,
  )


def read(path: str | os.PathLike) -> Volume:
  """Reads a volume with the scale factors of its header applied, see `Volume.scaled`.

  Without scale factors the voxels keep the dtype of the file, in native byte order.

  Raises:
    InputError: When the file is unreadable, truncated, corrupt, larger than the limit or not 3-D.
  """
  stored, slope, inter = _read_voxels(open_header(path))
  return stored.scaled(slope, inter)


def read_stored(path: str | os.PathLike) -> tuple[Volume, float, float]:
  """Reads the numbers of a scan as they are stored: (volume, slope, inter).

  What they stand for is `stored * slope + inter`. Without scale factors these are 1 and 0. Voxels
  may be NaN in part: some programs write that outside of the head.

  Raises:
    InputError: As in `read`, or the voxels show nothing: they are all NaN or all equal, or some
      intensity is infinite or larger than any scanner's.
  """
  header = open_header(path)
  stored, slope, inter = _read_voxels(header)
  intensity.check_scan(stored.voxels, slope, inter, header.data_path)
  return stored, slope, inter


def _read_voxels(header: OpenedHeader) -> tuple[Volume, float, float]:
  """Returns (volume, slope, inter) of an opened file; the voxels in native byte order."""
  expected = header.num_bytes
  data = _read_exactly(header.data_path, header.data_offset, expected)
  flat = np.frombuffer(data, header.dtype)
  voxels = flat.reshape(header.shape, order="F")
  if not header.dtype.isnative:
    voxels = voxels.astype(header.dtype.newbyteorder("="))
  return Volume(voxels, header.affine, header.oriented), header.slope, header.inter


def _read_exactly(path: pathlib.Path, offset: int, num_bytes: int) -> bytearray:
  """Returns `num_bytes` from `offset`; the rest of a compressed stream is read and dropped."""
  compressed = is_compressed(path)
  if not compressed:
    found = path.stat().st_size - offset
    if found < num_bytes:
      raise _truncated(path, num_bytes, max(found, 0))
  data = bytearray(num_bytes)
  view = memoryview(data)
  filled = 0
  try:
    with open_stream(path) as stream:
      skipped = 0
      while skipped < offset and (block := stream.read(min(_CHUNK_BYTES, offset - skipped))):
        skipped += len(block)
      while filled < num_bytes:
        got = stream.readinto(view[filled : filled + _CHUNK_BYTES])
        if not got:
          raise _truncated(path, num_bytes, filled)
        filled += got
      if compressed:
        trailing = 0
        while block := stream.read(_CHUNK_BYTES):
          trailing += len(block)
          if trailing > _MAX_TRAILING_BYTES:
            raise InputError(
                f"{path}: more than {_MAX_TRAILING_BYTES} bytes follow the last voxel, so the"
                " header does not describe this file. Fetch the file again."
            )
  except EOFError as error:
    raise _truncated(path, num_bytes, filled) from error
  except STREAM_ERRORS as error:
    raise unreadable(path, error) from error
  return data


def _truncated(path: pathlib.Path, expected: int, found: int) -> InputError:
  return InputError(
      f"{path}: the file is truncated: its header promises {expected} bytes of voxels, it holds"
      f" {found}. Fetch the file again."
  )


def write_like(
    source_path: str | os.PathLike, label: np.ndarray, target_path: str | os.PathLike
) -> None:
  """Writes `label` as uint8 into a file that lies voxel by voxel on the source.

  Shape (trailing axes of length 1 included), affine, codes and byte order are the source's; free
  text is left out. The file appears whole or not at all.

  Args:
    source_path: The scan the label belongs to.
    label: Integer ids [i, j, k], 0..255, on the source's grid.
    target_path: The same kind of file as the source: .nii for .nii, .hdr or .img for a pair;
      with or without .gz.

  Raises:
    InputError: When the kinds or the shapes differ.
  """
  source = open_header(source_path)
  target_path = pathlib.Path(target_path)
  label = np.asarray(label)
  if label.shape != source.shape:
    raise InputError(
        f"{target_path}: a label must lie on the grid of its scan. Scan {source.shape}, label"
        f" {label.shape}."
    )
  if label.size and (label.min() < 0 or label.max() > 255):
    raise ValueError(f"Label ids must lie in 0..255, got {label.min()}..{label.max()}.")
  single = source.header_path == source.data_path
  suffix = suffix_of(target_path)
  if not suffix or (suffix[:4] == ".nii") != single:
    kind = ".nii or .nii.gz" if single else ".hdr or .img"
    raise InputError(f"{target_path}: the source is {source_path}, so the name must end in {kind}.")
  _write_files(_blobs(source, label, single), target_path, suffix)


def _blobs(source: OpenedHeader, label: np.ndarray, single: bool) -> dict:
  """Returns the bytes of each file: {"image": ..., "header": ...} (only "image" for .nii)."""
  header = source.header.copy()
  for field in _FREE_TEXT:
    if field in header:
      header[field] = b""
  header.set_data_dtype(np.uint8)
  if isinstance(header, nib.Nifti1Header):
    header["cal_max"] = header["cal_min"] = 0
  data = label.astype(np.uint8).reshape(source.stored_shape, order="F")
  # No affine is passed: nibabel then leaves qform, sform and origin as they are.
  image = _IMAGE_CLASSES[type(header)](data, None, header)
  keys = ("image",) if single else ("image", "header")
  streams = {key: io.BytesIO() for key in (*keys, "mat")}  # "mat" is SPM's, and stays empty.
  wanted = image.make_file_map()
  image.to_file_map(
      {key: nib.fileholders.FileHolder(fileobj=streams[key]) for key in wanted}
  )
  return {key: streams[key].getvalue() for key in keys}


def _write_files(blobs: dict, target_path: pathlib.Path, suffix: str) -> None:
  names = {"image": target_path.name}
  if "header" in blobs:
    stem = target_path.name[: -len(suffix)]
    compressed = suffix[4:]
    names = {"header": f"{stem}.hdr{compressed}", "image": f"{stem}.img{compressed}"}
  for key, name in names.items():
    blob = blobs[key]
    if name.lower().endswith(".gz"):
      blob = gzip.compress(blob, mtime=0)  # No time stamp: equal labels give equal files.
    handle, temporary = tempfile.mkstemp(dir=target_path.parent, prefix=f".{name}.")
    try:
      with os.fdopen(handle, "wb") as stream:
        stream.write(blob)
      os.chmod(temporary, 0o644)
      os.replace(temporary, target_path.with_name(name))
    except BaseException:
      os.unlink(temporary)
      raise
