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
from collections.abc import Sequence

import nibabel as nib
import numpy as np

from flexunet.core import files
from flexunet.core.errors import InputError, missing_file
from flexunet.imaging import intensity, volume_bytes
from flexunet.imaging.volume import Volume, VolumeHeader

_HEADER_ERRORS = (
    nib.spatialimages.HeaderDataError, nib.wrapstruct.WrapStructError, ValueError, KeyError,
    OverflowError,
)  # fmt: skip
_NIFTI1_BYTES, _NIFTI2_BYTES = 348, 540
_MOST_PADDING_BYTES = 4096
_SILENT = logging.Logger("silent", logging.CRITICAL)
_TWIN = {".hdr": ".img", ".img": ".hdr"}
_IMAGE_CLASSES: dict[type, type] = {
    nib.Nifti1Header: nib.Nifti1Image,
    nib.nifti1.Nifti1PairHeader: nib.Nifti1Pair,
    nib.Nifti2Header: nib.Nifti2Image,
    nib.nifti2.Nifti2PairHeader: nib.Nifti2Pair,
    nib.spm2analyze.Spm2AnalyzeHeader: nib.Spm2AnalyzeImage,
}
# All that the header of a label takes from that of its scan: how the voxels lie. Every other field,
# text above all, may tell of the person or the site.
_GEOMETRY = (
    "dim_info", "dim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c",
    "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z",
)  # fmt: skip
# Of ANALYZE, whose fields of them could hold any letters.
_UNITS = (b"", b"mm", b"cm", b"um")
_ORIENTATIONS = (b"", b"\1", b"\2", b"\3", b"\4", b"\5")


@dataclasses.dataclass(frozen=True, eq=False)
class OpenedHeader:
  """A parsed header and where its voxels lie.

  Attributes:
    header: nibabel's header object, as read.
    header_path, data_path: The two files of a pair; the same file twice for `.nii`.
    stored_shape: The shape in the file, trailing axes of length 1 included; of a file opened as
      channels in a fourth axis, that of one of them.
    shape: The same as three axes.
    dtype: Stored dtype, byte order included.
    data_offset: Bytes before the first voxel in `data_path`.
    slope, inter: The scale factors; 1 and 0 where there are none.
    num_volumes: Volumes of this shape in the file, one after the other.
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
  num_volumes: int = 1

  @property
  def num_bytes(self) -> int:
    """Bytes of all voxels, of all volumes."""
    return math.prod(self.shape) * self.num_volumes * self.dtype.itemsize


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


def num_volumes(path: str | os.PathLike) -> int:
  """Returns how many volumes lie along the fourth axis of a file; 1 where it has none.

  Raises:
    InputError: The header is unreadable, or its twin is missing.
  """
  header_path, data_path = files_of(path)
  header, _ = _parse(header_path, single=header_path == data_path)
  try:
    return volume_bytes.num_volumes([int(size) for size in header.get_data_shape()])
  except _HEADER_ERRORS as error:
    raise _bad_header(header_path, error) from error


def open_header(path: str | os.PathLike, component: int | None = None) -> OpenedHeader:
  """Parses and checks a header.

  Args:
    path: The file; of a pair either.
    component: Which of the volumes along a fourth axis, from 0; None: the file is one volume.

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
  count, declared = 1, stored_shape
  if component is None:
    declared = shape = volume_bytes.three_axes(header_path, stored_shape)
  else:
    shape = volume_bytes.axes_of_component(header_path, stored_shape, component)
    count, stored_shape = volume_bytes.num_volumes(stored_shape), shape
  if dtype.kind not in "iuf" or dtype.itemsize > 8:
    raise InputError(f"{header_path}: voxels must be real numbers of at most 64 bits, got {dtype}.")
  volume_bytes.check_size(header_path, data_path, declared, dtype)
  if "scl_slope" in header and np.isinf(header["scl_slope"]):  # nibabel takes it for none.
    raise InputError(f"{header_path}: the header's slope is infinite. Repair the header.")
  if offset < 0:
    raise InputError(f"{header_path}: the header puts the voxels {-offset} bytes before the file.")
  slope = 1.0 if slope is None else float(slope)
  inter = 0.0 if inter is None else float(inter)
  oriented = _is_oriented(header)
  affine = _affine_of(header_path, header, oriented, pixdim)
  volume_bytes.check_affine(header_path, affine, oriented=oriented)
  return OpenedHeader(header, header_path, data_path, stored_shape, shape, dtype, offset,
                      slope, inter, affine, oriented, count)


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
    with volume_bytes.open_stream(path) as stream:
      block = stream.read(_NIFTI2_BYTES)
  except volume_bytes.STREAM_ERRORS as error:
    raise volume_bytes.unreadable(path, error) from error
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
  except (*_HEADER_ERRORS, *volume_bytes.STREAM_ERRORS) as error:
    raise _bad_header(path, error) from error


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


def read_header(path: str | os.PathLike, component: int | None = None) -> VolumeHeader:
  """Returns shape, stored dtype, spacing and axis codes; reads no voxel.

  Args:
    path: The file.
    component: As in `open_header`.

  Raises:
    InputError: When the header cannot be read, lies, or its twin file is missing.
  """
  header = open_header(path, component)
  return VolumeHeader.of(header.shape, header.dtype, header.affine, header.oriented)


def read(path: str | os.PathLike) -> Volume:
  """Reads a volume with the scale factors of its header applied, see `Volume.scaled`.

  Without scale factors the voxels keep the dtype of the file, in native byte order.

  Raises:
    InputError: When the file is unreadable, truncated, corrupt, larger than the limit or not 3-D.
  """
  stored, slope, inter = read_voxels(path)
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


def read_voxels(path: str | os.PathLike) -> tuple[Volume, float, float]:
  """Reads a volume as `read_stored` does, without looking at its numbers: a label may be empty.

  Raises:
    InputError: As in `read`.
  """
  return _read_voxels(open_header(path))


def read_components(
    path: str | os.PathLike, components: Sequence[int]
) -> tuple[list[Volume], float, float]:
  """Reads volumes along the fourth axis of a file, which is inflated once: (volumes, slope, inter).

  Args:
    path: The file.
    components: Which ones, from 0, in this order; at least one.

  Raises:
    InputError: As in `read`, or there is no such volume.
  """
  header = open_header(path, max(components))
  return _read_volumes(header, components), header.slope, header.inter


def _read_voxels(header: OpenedHeader) -> tuple[Volume, float, float]:
  """Returns (volume, slope, inter) of an opened file; the voxels in native byte order."""
  return _read_volumes(header, [0])[0], header.slope, header.inter


def _read_volumes(header: OpenedHeader, components: Sequence[int]) -> list[Volume]:
  """Returns some of the volumes of an opened file; the voxels in native byte order."""
  expected = header.num_bytes
  # Padding may follow; as much as a slice is more likely a shape that was changed.
  most_trailing = max(_MOST_PADDING_BYTES, expected // 256)
  data = volume_bytes.read_exactly(
      header.data_path, header.data_offset, expected, most_trailing
  )
  flat = np.frombuffer(data, header.dtype)
  every = flat.reshape((*header.shape, header.num_volumes), order="F")
  # Copies only what another byte order needs: the volumes are views of one buffer.
  native = header.dtype.newbyteorder("=")
  return [
      Volume(every[..., one].astype(native, copy=False), header.affine, header.oriented)
      for one in components
  ]


def write_label(
    header: VolumeHeader, label: np.ndarray, target_path: pathlib.Path, scale: float = 1.0
) -> None:
  """Writes what lies on a scan as NIfTI-1, with the scan's geometry.

  Args:
    header: Shape and affine of the scan.
    label: Class ids uint8 [i, j, k] on its grid.
    target_path: Ends in .nii or .nii.gz; the file appears whole or not at all.
    scale: What readers multiply the numbers by.
  """
  image = nib.Nifti1Image(label.astype(np.uint8), header.affine if header.oriented else None)
  image.header.set_xyzt_units("mm")
  if header.oriented:
    # Both forms, as scanner coordinates: some programs read one, some the other.
    image.set_sform(header.affine, 1)
    image.set_qform(header.affine, 1)
  else:
    image.header["pixdim"][1:4] = np.nan_to_num(header.spacing_mm)  # 0 is read as unknown.
    image.header["sform_code"] = image.header["qform_code"] = 0
  if scale != 1.0:
    image.header.set_slope_inter(scale, 0.0)
  blobs = {"image": image.to_bytes()}
  _write_files(blobs, target_path, suffix_of(target_path))


def write_like(
    source_path: str | os.PathLike,
    label: np.ndarray,
    target_path: str | os.PathLike,
    component: int | None = None,
) -> None:
  """Writes `label` as uint8 into a file that lies voxel by voxel on the source.

  Shape (trailing axes of length 1 included), affine, codes and byte order are the source's; nothing
  else of its header is taken. The file appears whole or not at all.

  Args:
    source_path: The scan the label belongs to.
    label: Integer ids [i, j, k], 0..255, on the source's grid.
    target_path: The same kind of file as the source: .nii for .nii, .hdr or .img for a pair;
      with or without .gz.
    component: Where the source holds channels in a fourth axis, any of them; the label has three
      axes.

  Raises:
    InputError: When the kinds or the shapes differ.
  """
  source = open_header(source_path, component)
  target_path = pathlib.Path(target_path)
  label = np.asarray(label)
  volume_bytes.check_label(source.shape, label, target_path)
  single = source.header_path == source.data_path
  suffix = suffix_of(target_path)
  if not suffix or (suffix[:4] == ".nii") != single:
    kind = ".nii or .nii.gz" if single else ".hdr or .img"
    raise InputError(f"{target_path}: the source is {source_path}, so the name must end in {kind}.")
  _write_files(_blobs(source, label, single), target_path, suffix)


def _blobs(source: OpenedHeader, label: np.ndarray, single: bool) -> dict:
  """Returns the bytes of each file: {"image": ..., "header": ...} (only "image" for .nii)."""
  header = _geometry_of(source)
  header.set_data_dtype(np.uint8)
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


def _geometry_of(source: OpenedHeader) -> nib.analyze.AnalyzeHeader:
  """Returns a new header of the same kind and byte order that says only how the voxels lie."""
  old = source.header
  header = type(old)(endianness=old.endianness)
  for field in _GEOMETRY:
    if field in header:
      header[field] = old[field]
  # Unused edges are numbers of any meaning, such as a date; so is the origin where SPM wrote none.
  header["pixdim"][:4] = old["pixdim"][:4]
  if "orient" in header and old["orient"].item() in _ORIENTATIONS:
    header["orient"] = old["orient"]
  if "vox_units" in header and bytes(old["vox_units"].item()).strip(b"\0 ") in _UNITS:
    header["vox_units"] = old["vox_units"]
  if "origin" in header:
    voxel, rest = old["origin"][:3], old["origin"][3:]
    if not rest.any() and (voxel >= 0).all() and (voxel <= source.shape).all():
      header["origin"] = old["origin"]
  return header


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
    files.write_bytes(target_path.with_name(name), blob)
