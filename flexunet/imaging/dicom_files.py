"""Reads single DICOM files: what their headers state, and their pixels.

No text of a header enters a message: it may name people. Numbers stay as they are stored,
MONOCHROME1 included, which asks for inverted display only.
Source: DICOM PS3.3, C.7.6.2 (image plane) and C.7.6.16 (multi-frame functional groups).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import logging
import math
import os
import pathlib
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from flexunet.core.errors import InputError, missing_file
from flexunet.imaging import volume_bytes

ENDINGS = (".dcm", ".dicom", ".ima")
SEGMENTATION_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
# What has rows and columns, but is no scan: {first part of the class: what it is}.
_NO_SCANS = {
    "1.2.840.10008.1.3.10": "a DICOMDIR",
    "1.2.840.10008.5.1.4.1.1.66": "a DICOM segmentation",
    "1.2.840.10008.5.1.4.1.1.481": "a DICOM file of radiotherapy",
    "1.2.840.10008.5.1.4.1.1.88": "a DICOM report",
    "1.2.840.10008.5.1.4.1.1.11": "a DICOM presentation state",
    "1.2.840.10008.5.1.4.1.1.104": "a document inside DICOM",
}
CONVERT = "Convert the series by dcm2niix"
# Transfer syntaxes whose pixels stand as they are.
LITTLE_ENDIAN = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")
_DEFLATED, _META_BYTES = b"1.2.840.10008.1.2.1.99", 1024
_TAGS = (
    "ImageType", "SOPClassUID", "SOPInstanceUID", "Modality", "SliceThickness",
    "SpacingBetweenSlices", "SeriesInstanceUID", "SeriesNumber", "ImagePositionPatient",
    "ImageOrientationPatient", "FrameOfReferenceUID", "SamplesPerPixel",
    "PhotometricInterpretation", "NumberOfFrames", "Rows",
    "Columns", "PixelSpacing", "ImagerPixelSpacing", "BitsAllocated", "BitsStored",
    "PixelRepresentation", "RescaleIntercept", "RescaleSlope", "ModalityLUTSequence",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Plane:
  """Where one slice lies, in LPS+ mm; None where its header does not state it."""

  position: tuple[float, ...] | None
  orientation: tuple[float, ...] | None
  spacing_mm: tuple[float, ...] | None
  thickness_mm: float | None
  slope: float
  inter: float


@dataclasses.dataclass(frozen=True)
class DicomFile:
  """What the header of a file states.

  Attributes:
    no_scan: Why the file is no scan; "" for a scan.
    planes: One per frame.
    size_hw: Rows and columns.
    dtype: Of a stored pixel.
    bits_stored: How many of its bits count.
    transfer_syntax: UID of how the pixels are stored.
  """

  path: pathlib.Path
  no_scan: str
  sop_class: str = ""
  sop_instance: str = ""
  series: str = ""
  series_number: str = ""
  modality: str = ""
  frame_of_reference: str = ""
  transfer_syntax: str = ""
  size_hw: tuple[int, int] = (0, 0)
  dtype: np.dtype = dataclasses.field(default_factory=lambda: np.dtype(np.int16))
  bits_stored: int = 16
  planes: tuple[Plane, ...] = ()

  @property
  def key(self) -> tuple[str, str]:
    """Equal for files of one scan: a file of several frames is a scan of its own."""
    return self.series, str(self.path) if len(self.planes) > 1 else ""


def is_dicom(path: str | os.PathLike) -> bool:
  """Returns by its ending whether a file is DICOM; one without any ending is opened."""
  path = pathlib.Path(path)
  name = path.name.lower()
  if name.endswith(ENDINGS) and not name.startswith("."):
    return True
  # Names such as IM000001, or a UID, whose last number looks like a suffix.
  if re.search(r"\.\w*[a-z]\w*$", name):
    return False
  try:
    with open(path, "rb") as stream:
      return stream.read(132)[128:] == b"DICM"
  except OSError:
    return False


def read_file(path: str | os.PathLike) -> DicomFile:
  """Returns what the header of a file states; decodes nothing.

  Raises:
    InputError: The file cannot be read as DICOM, or pydicom is not installed.
  """
  path = pathlib.Path(path)
  try:
    state = path.stat()
  except OSError as error:
    raise missing_file(path) from error
  return _read_file(str(path), state.st_mtime_ns, state.st_size)


def pydicom_module(name: str = "") -> Any:
  """Returns pydicom, or a module of it, which is optional."""
  try:
    return importlib.import_module(f"pydicom{name}")
  except ImportError as error:
    raise InputError(
        "DICOM files are read by pydicom, which is not installed. Install the extra: pip install"
        ' "flexunet[dicom]".'
    ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Silences pydicom, which warns of odd values, and quotes them."""
  logger = logging.getLogger("pydicom")
  before, logger.disabled = logger.disabled, True
  try:
    with warnings.catch_warnings(), pydicom_module().config.disable_value_validation():
      warnings.simplefilter("ignore")
      yield
  finally:
    logger.disabled = before


@functools.lru_cache(maxsize=1 << 14)
def _read_file(name: str, mtime_ns: int, size: int) -> DicomFile:
  """Reads a header once, as long as the file does not change."""
  del mtime_ns
  path = pathlib.Path(name)
  pydicom = pydicom_module()
  try:
    with open(path, "rb") as stream:
      # pydicom would inflate all of it, however much that is, to see the header.
      if _DEFLATED in stream.read(_META_BYTES):
        raise InputError(f"{path}: is deflated as a whole. Decompress it by gdcmconv --raw.")
    with quiet():
      forced = path.name.lower().endswith(ENDINGS)  # Old files lack the preamble.
      dataset = pydicom.dcmread(
          path, stop_before_pixels=True, force=forced, specific_tags=list(_TAGS)
      )
      return _file_of(path, dataset, size)
  except (InputError, MemoryError):
    raise
  # A parser of hostile bytes raises anything; its words may quote the header.
  except Exception as error:
    raise InputError(
        f"{path}: cannot be read as DICOM ({type(error).__name__}). Fetch the file again."
    ) from error


def _file_of(path: pathlib.Path, dataset: Any, size: int) -> DicomFile:
  """Returns what a header states; any exception where it states no sense."""
  sop_class = str(dataset.get("SOPClassUID", "") or "")
  meta_class = str(dataset.file_meta.get("MediaStorageSOPClassUID", "") or "")
  no_scan = ""
  for start, what in _NO_SCANS.items():
    if f"{sop_class or meta_class}.".startswith(f"{start}."):
      no_scan = what
  if not no_scan and not all(dataset.get(tag) for tag in ("Rows", "Columns", "BitsAllocated")):
    _refuse_broken_header(path, sop_class or meta_class)
    no_scan = "a DICOM file without an image"
  common: dict[str, Any] = {
      "path": path,
      "no_scan": no_scan,
      "sop_class": sop_class,
      "sop_instance": str(dataset.get("SOPInstanceUID", "") or ""),
      "series": str(dataset.get("SeriesInstanceUID", "") or ""),
      "series_number": str(_number(dataset.get("SeriesNumber")) or ""),
      "modality": re.sub(r"[^A-Z]", "", str(dataset.get("Modality", "") or ""))[:4],
      "frame_of_reference": str(dataset.get("FrameOfReferenceUID", "") or ""),
      "transfer_syntax": str(dataset.file_meta.get("TransferSyntaxUID", "") or ""),
  }
  if no_scan:
    return DicomFile(**common)
  _refuse_kinds(path, dataset)
  bits = int(dataset.BitsAllocated)
  if bits not in (8, 16, 32):
    raise InputError(f"{path}: a pixel must have 8, 16 or 32 bits, got {bits}. {CONVERT}.")
  dtype = np.dtype(f"{'i' if int(dataset.get('PixelRepresentation', 0) or 0) else 'u'}{bits // 8}")
  frames = int(dataset.get("NumberOfFrames", 1) or 1)
  size_hw = int(dataset.Rows), int(dataset.Columns)
  needed = math.prod(size_hw) * frames * dtype.itemsize
  if common["transfer_syntax"] in ("", *LITTLE_ENDIAN, "1.2.840.10008.1.2.2") and needed > size:
    raise volume_bytes.truncated(path, needed, size)
  return DicomFile(
      **common, size_hw=size_hw, dtype=dtype, bits_stored=int(dataset.get("BitsStored", bits)),
      planes=_planes(path, dataset, frames),
  )  # fmt: skip


def _refuse_broken_header(path: pathlib.Path, sop_class: str) -> None:
  """Refuses a file without rows and columns that should have them, or is no DICOM at all."""
  if not sop_class:
    raise InputError(f"{path}: states no kind of DICOM file. It is none, or is damaged; remove it.")
  if "Image Storage" in pydicom_module(".uid").UID(sop_class).name:
    raise InputError(
        f"{path}: the file is truncated: it is an image, but its header states no rows and columns."
        " Fetch the file again."
    )


def _refuse_kinds(path: pathlib.Path, dataset: Any) -> None:
  """Refuses images that are no slices of numbers."""
  samples = int(dataset.get("SamplesPerPixel", 1) or 1)
  if samples != 1:
    raise InputError(f"{path}: a scan has one number per pixel, got {samples} (colour). Remove it.")
  kind = str(dataset.get("PhotometricInterpretation", "") or "MONOCHROME2")
  if kind not in ("MONOCHROME1", "MONOCHROME2"):
    raise InputError(f"{path}: a scan must be grey (MONOCHROME1 or 2), this is colour. Remove it.")
  if "MOSAIC" in (dataset.get("ImageType") or ()):
    raise InputError(f"{path}: holds the slices of a volume as one mosaic. {CONVERT}.")
  if dataset.get("ModalityLUTSequence"):
    raise InputError(f"{path}: its intensities stand in a lookup table. {CONVERT}.")


def _number(value: Any) -> int | None:
  return None if value in (None, "") else int(value)


def _numbers(dataset: Any, tag: str, count: int) -> tuple[float, ...] | None:
  """Returns the finite numbers of a tag; None where it is absent or empty."""
  value = dataset.get(tag) if dataset is not None else None
  if value is None or value == "":
    return None
  numbers = tuple(float(one) for one in (value if count > 1 else [value]))
  if len(numbers) != count or not np.isfinite(numbers).all():
    raise ValueError(f"{tag} holds {len(numbers)} numbers")
  return numbers


def _plane(position: Any, orientation: Any, measures: Any, scale: Any) -> Plane:
  """Reads a plane from the datasets that hold its parts, which may be one and the same."""
  spacing = _numbers(measures, "PixelSpacing", 2)
  if spacing is None:
    spacing = _numbers(measures, "ImagerPixelSpacing", 2)
  thickness = _numbers(measures, "SpacingBetweenSlices", 1)
  if thickness is None or thickness[0] <= 0:
    thickness = _numbers(measures, "SliceThickness", 1)
  slope, inter = _numbers(scale, "RescaleSlope", 1), _numbers(scale, "RescaleIntercept", 1)
  return Plane(
      position=_numbers(position, "ImagePositionPatient", 3),
      orientation=_numbers(orientation, "ImageOrientationPatient", 6),
      spacing_mm=spacing,
      thickness_mm=thickness[0] if thickness and thickness[0] > 0 else None,
      slope=slope[0] if slope else 1.0,
      inter=inter[0] if inter else 0.0,
  )


def _planes(path: pathlib.Path, dataset: Any, frames: int) -> tuple[Plane, ...]:
  """Returns the plane of each frame, from functional groups where a file has several."""
  shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
  each = dataset.get("PerFrameFunctionalGroupsSequence") or []
  if not each:
    if frames > 1:
      raise InputError(f"{path}: its {frames} frames state no positions. {CONVERT}.")
    return (_plane(dataset, dataset, dataset, dataset),)
  if len(each) != frames:
    raise InputError(f"{path}: states positions of {len(each)} frames, but holds {frames}.")

  def group(own: Any, name: str) -> Any:
    found = own.get(name) or (shared.get(name) if shared is not None else None)
    return found[0] if found else None

  names = (
      "PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence",
      "PixelValueTransformationSequence",
  )  # fmt: skip
  return tuple(_plane(*(group(own, name) for name in names)) for own in each)


def decoded(file: DicomFile, frames: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
  """Yields (frame, pixels [rows, columns]) of a file, in the order asked for.

  Raises:
    InputError: The pixels cannot be decoded, or no decoder of their compression is installed.
  """
  pixels_module = pydicom_module(".pixels")
  _require_decoder(file, pixels_module)
  try:
    with quiet():
      arrays = iter([pixels_module.pixel_array(file.path, raw=True)])
      if len(file.planes) > 1:
        arrays = pixels_module.iter_pixels(file.path, indices=list(frames), raw=True)
      for frame, pixels in zip(frames, arrays, strict=True):
        if pixels.shape != file.size_hw:
          raise ValueError(f"{pixels.shape} pixels instead of {file.size_hw}")
        yield frame, _used_bits(pixels, file)
  except (InputError, MemoryError):
    raise
  except Exception as error:  # Decoders of hostile bytes raise anything.
    if is_compressed(file.transfer_syntax):
      raise InputError(
          f"{file.path}: its compressed pixels are damaged, or of a kind that no installed decoder"
          " knows. Fetch the file again, or decompress the series by gdcmconv --raw."
      ) from error
    what = str(error).split("\n")[0][:120] or type(error).__name__
    raise InputError(
        f"{file.path}: its pixels cannot be decoded ({what}). Fetch the file again."
    ) from error


def is_compressed(transfer_syntax: str) -> bool:
  """Returns whether pixels stored by a transfer syntax need a decoder."""
  with quiet():
    uid = pydicom_module(".uid").UID(transfer_syntax)
    return bool(uid) and uid.is_transfer_syntax and uid.is_compressed


def _require_decoder(file: DicomFile, pixels_module: Any) -> None:
  if not is_compressed(file.transfer_syntax):
    return
  uid = pydicom_module(".uid").UID(file.transfer_syntax)
  try:
    decoder = pixels_module.get_decoder(uid)
  except NotImplementedError:
    decoder = None
  if decoder is None or not decoder.is_available:
    raise InputError(
        f"{file.path}: its pixels are compressed as {uid.name}, for which no decoder is installed."
        " Decompress the series by gdcmconv --raw."
    )


def _used_bits(pixels: np.ndarray, file: DicomFile) -> np.ndarray:
  """Returns the numbers without what stands in the bits beyond BitsStored (overlays)."""
  unused = pixels.dtype.itemsize * 8 - file.bits_stored
  if not 0 < unused < pixels.dtype.itemsize * 8 or pixels.dtype.kind not in "iu":
    return pixels
  return (pixels << unused) >> unused
