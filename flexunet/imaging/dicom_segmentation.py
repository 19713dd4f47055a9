"""Reads DICOM segmentations (DICOM-SEG) onto the grid of their scan, and writes them by highdicom.

A DICOM-SEG belongs to the study of its patient: by the standard it repeats the identifiers of its
source series. What FlexUNet adds holds no text but class names.
Source: DICOM PS3.3, C.8.20 (segmentation), C.7.6.16 (functional groups of its frames).
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import io
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.imaging import dicom, dicom_files, volume_bytes
from flexunet.imaging.volume import Volume

_MAX_ID = 255
# A tenth of a voxel: headers round, and no label is shifted by that little.
_PLACE_TOLERANCE = 0.1
_SERIES_OFFSET = 1000  # The number of a segmentation's series: that of its source and this.
_NAME_LENGTH = 64  # Of a value of representation LO.
# A series may lack what a segmentation must repeat, if only as an empty value.
_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber",
    "ReferringPhysicianName", "StudyDate", "StudyTime", "PositionReferenceIndicator",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Frame:
  """Where a frame lies, what it shows, and which slices of its source it was drawn on."""

  segment: int | None
  position: tuple[float, ...] | None
  sources: tuple[tuple[str, int], ...]


@dataclasses.dataclass(frozen=True)
class _Opened:
  """The header of a segmentation; orientation and spacing are those of all frames.

  `packed` are frames of one bit a pixel, in the usual order of bytes.
  """

  path: pathlib.Path
  kind: str
  size_hw: tuple[int, int]
  names: Mapping[int, str]
  frames: tuple[_Frame, ...]
  orientation: tuple[float, ...]
  spacing_mm: tuple[float, ...]
  frame_of_reference: str
  full_value: int
  packed: bool


def is_segmentation(path: str | os.PathLike) -> bool:
  """Returns whether a file is a DICOM segmentation."""
  if not dicom_files.is_dicom(path):
    return False
  return dicom_files.read_file(path).sop_class in dicom_files.SEGMENTATION_CLASSES


def names_of(path: str | os.PathLike) -> dict[int, str]:
  """Returns {segment number: name}.

  Raises:
    InputError: The file cannot be read as a segmentation.
  """
  return dict(_open(pathlib.Path(path)).names)


def size_of(path: str | os.PathLike) -> tuple[int, int]:
  """Returns (columns, rows) of the frames of a segmentation.

  Raises:
    InputError: The file cannot be read as a segmentation.
  """
  rows, columns = _open(pathlib.Path(path)).size_hw
  return columns, rows


def read(
    path: str | os.PathLike, scan: Volume, scan_path: str | os.PathLike | None = None
) -> tuple[Volume, dict[int, str]]:
  """Reads a segmentation onto the grid of its scan: (segment numbers, names of segments).

  Args:
    path: The segmentation.
    scan: Its scan, of any format; what the segmentation does not show is 0.
    scan_path: Where the scan came from; the slices that frames refer to are looked up in a series.

  Raises:
    InputError: The file cannot be read, its frames do not lie on slices of the scan, or segments
      overlap.
  """
  opened = _open(pathlib.Path(path))
  if not scan.oriented:
    raise InputError(
        f"{path}: a DICOM segmentation lies by its positions, but its scan states no orientation."
    )
  affine = _frame_affine(opened)
  # The grid of the scan with its axes along the columns, rows and slices of the frames.
  frame = Volume(np.zeros((1, 1, 1), np.uint8), affine, True)
  grid = Volume(np.zeros(scan.voxels.shape, np.uint8), scan.affine, True).turned_like(frame)
  if grid.voxels.shape[:2] != opened.size_hw[::-1]:
    raise InputError(
        f"{path}: a label must lie on the grid of its scan. Columns and rows of the scan:"
        f" {grid.voxels.shape[:2]}, of the frames: {opened.size_hw[::-1]}."
    )
  _check_plane(opened, affine, grid)
  slice_of = _slices_by_reference(opened, scan_path, grid)
  label = np.zeros(grid.voxels.shape, np.uint8)
  for number, (own, pixels) in enumerate(zip(opened.frames, _pixels(opened), strict=True)):
    k = _slice_of(opened, number, own, grid, slice_of)
    _add(opened, own, pixels.T, label[:, :, k], k)
  return Volume(label, grid.affine, True).turned_like(scan), dict(opened.names)


def _open(path: pathlib.Path) -> _Opened:
  pydicom = dicom_files.pydicom_module()
  file = dicom_files.read_file(path)
  if file.sop_class not in dicom_files.SEGMENTATION_CLASSES:
    raise InputError(f"{path}: this is no DICOM segmentation, but {file.no_scan or 'a scan'}.")
  try:
    with dicom_files.quiet():
      dataset = pydicom.dcmread(path, stop_before_pixels=True)
      opened = _opened_of(path, dataset, file.transfer_syntax)
  except (InputError, MemoryError):
    raise
  # A parser of hostile bytes raises anything; its words may quote the header.
  except Exception as error:
    raise InputError(
        f"{path}: cannot be read as a DICOM segmentation ({type(error).__name__}). Fetch the file"
        " again."
    ) from error
  bits = 1 if opened.kind == "BINARY" else 8
  needed = math.prod(opened.size_hw) * len(opened.frames) * bits // 8
  compressed = dicom_files.is_compressed(file.transfer_syntax)
  if needed > path.stat().st_size and not compressed:
    raise volume_bytes.truncated(path, needed, path.stat().st_size)
  if needed > volume_bytes.MAX_VOLUME_BYTES * 8:
    raise InputError(f"{path}: declares {len(opened.frames)} frames, more than can be held.")
  return opened


def _opened_of(path: pathlib.Path, dataset: Any, transfer_syntax: str) -> _Opened:
  """Reads a header; any exception where it states no sense."""
  names = {
      int(segment.SegmentNumber): str(segment.get("SegmentLabel", ""))
      for segment in dataset.SegmentSequence
  }
  names.pop(0, None)  # A label map may describe its background.
  if names and max(names) > _MAX_ID:
    raise InputError(f"{path}: segment numbers must be at most {_MAX_ID}, got {max(names)}.")
  shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
  each = dataset.PerFrameFunctionalGroupsSequence

  def group(own: Any, name: str) -> Any:
    found = own.get(name) or (shared.get(name) if shared is not None else None)
    return found[0] if found else None

  kind = str(dataset.SegmentationType)
  frames = []
  for own in each:
    position = group(own, "PlanePositionSequence")
    identified = group(own, "SegmentIdentificationSequence")
    frames.append(_Frame(
        segment=None if kind == "LABELMAP" else int(identified.ReferencedSegmentNumber),
        position=tuple(map(float, position.ImagePositionPatient)) if position else None,
        sources=tuple(_sources(group(own, "DerivationImageSequence"))),
    ))  # fmt: skip
  if len(frames) != int(dataset.NumberOfFrames):
    raise ValueError("frames")
  orientation = group(each[0], "PlaneOrientationSequence").ImageOrientationPatient
  return _Opened(
      path=path,
      kind=kind,
      size_hw=(int(dataset.Rows), int(dataset.Columns)),
      names=names,
      frames=tuple(frames),
      orientation=tuple(map(float, orientation)),
      spacing_mm=tuple(map(float, group(each[0], "PixelMeasuresSequence").PixelSpacing)),
      frame_of_reference=str(dataset.get("FrameOfReferenceUID", "") or ""),
      packed=kind == "BINARY" and transfer_syntax in dicom_files.LITTLE_ENDIAN,
      full_value=int(dataset.get("MaximumFractionalValue", 1) or 1),
  )


def _sources(derivation: Any) -> Iterator[tuple[str, int]]:
  """Yields (instance, frame from 0) of the slices that a frame was drawn on."""
  for source in (derivation.get("SourceImageSequence") or []) if derivation is not None else []:
    numbers = source.get("ReferencedFrameNumber") or 1
    for number in numbers if isinstance(numbers, Sequence) else [numbers]:
      yield str(source.ReferencedSOPInstanceUID), int(number) - 1


def _frame_affine(opened: _Opened) -> np.ndarray:
  """Returns float64 [4, 4] to RAS+ of the directions of the frames; its origin and step are not."""
  across, down = np.reshape(opened.orientation, (2, 3))
  row_mm, column_mm = opened.spacing_mm
  affine = np.eye(4)
  affine[:3, :3] = np.stack([across * column_mm, down * row_mm, np.cross(across, down)], axis=1)
  affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
  volume_bytes.check_affine(opened.path, affine, oriented=True)
  return affine


def _check_plane(opened: _Opened, affine: np.ndarray, grid: Volume) -> None:
  """Refuses frames whose rows and columns run otherwise than those of the scan."""
  extent = np.array(grid.voxels.shape[:2])
  off_mm = np.abs((affine[:3, :2] - grid.affine[:3, :2]) * extent).max()
  if off_mm > _PLACE_TOLERANCE * float(grid.spacing_mm[:2].min()):
    raise InputError(
        f"{opened.path}: its frames lie in other planes, or have other pixels, than the scan (up to"
        f" {off_mm:.2f} mm off). Resample the label onto the scan first."
    )


def _slices_by_reference(
    opened: _Opened, scan_path: str | os.PathLike | None, grid: Volume
) -> dict[tuple[str, int], int]:
  """Returns {(instance, frame): slice of the grid} of a scan that is a series; {} of others."""
  if scan_path is None or not dicom_files.is_dicom(scan_path):
    return {}
  stack = dicom.open_stack(scan_path)
  theirs = stack.places[0][0].frame_of_reference
  if theirs and opened.frame_of_reference and theirs != opened.frame_of_reference:
    raise InputError(
        f"{opened.path}: its frame of reference is not that of the scan, so that its positions say"
        " nothing. Is it the label of another scan?"
    )
  # The slices of the grid run as the frames do, which may be the other way round.
  backwards = float(stack.affine[:3, 2] @ grid.affine[:3, 2]) < 0
  last = len(stack.places) - 1
  return {
      (file.sop_instance, frame): last - k if backwards else k
      for k, (file, frame) in enumerate(stack.places)
  }


def _slice_of(
    opened: _Opened, number: int, own: _Frame, grid: Volume, slice_of: Mapping[tuple[str, int], int]
) -> int:
  """Returns the slice a frame lies on, by position and by reference, which must agree."""
  referred = {slice_of[source] for source in own.sources if source in slice_of}
  if own.position is None:
    if len(referred) != 1:
      raise InputError(
          f"{opened.path}: frame {number + 1} states no position and refers to no one slice of the"
          " scan."
      )
    return referred.pop()
  ras = np.array([-own.position[0], -own.position[1], own.position[2], 1.0])
  column, row, place = (np.linalg.inv(grid.affine) @ ras)[:3]
  k = round(float(place))
  if max(abs(column), abs(row), abs(place - k)) > _PLACE_TOLERANCE or not (
      0 <= k < grid.voxels.shape[2]
  ):
    raise InputError(
        f"{opened.path}: frame {number + 1} lies on no slice of the scan: at column {column:.2f},"
        f" row {row:.2f}, slice {place:.2f} of its grid. Is it the label of another scan?"
    )
  if len(referred) == 1 and referred != {k}:
    raise InputError(
        f"{opened.path}: frame {number + 1} lies on slice {k}, but refers to slice {min(referred)}."
        " The file is damaged."
    )
  return k


def _pixels(opened: _Opened) -> Iterator[np.ndarray]:
  """Yields the pixels [rows, columns] of each frame."""
  pixels_module = dicom_files.pydicom_module(".pixels")
  try:
    with dicom_files.quiet():
      if opened.packed:
        yield from _unpacked(opened)
      elif len(opened.frames) == 1:
        yield np.reshape(pixels_module.pixel_array(opened.path, raw=True), opened.size_hw)
      else:
        yield from pixels_module.iter_pixels(opened.path, raw=True)
  except (InputError, MemoryError):
    raise
  except Exception as error:  # Decoders of hostile bytes raise anything.
    what = str(error).split("\n")[0][:120] or type(error).__name__
    raise InputError(
        f"{opened.path}: its frames cannot be decoded ({what}). Fetch the file again."
    ) from error


def _unpacked(opened: _Opened) -> Iterator[np.ndarray]:
  """Yields frames of one bit a pixel, which follow each other without a gap.

  A frame need not begin with a byte, which pydicom does not heed where it reads single frames.
  """
  data = np.frombuffer(dicom_files.pydicom_module().dcmread(opened.path).PixelData, np.uint8)
  size = math.prod(opened.size_hw)
  for number in range(len(opened.frames)):
    first, skipped = divmod(number * size, 8)
    bits = np.unpackbits(
        data[first : first + (skipped + size + 7) // 8], bitorder="little"
    )[skipped : skipped + size]
    yield bits.reshape(opened.size_hw)


def _add(opened: _Opened, own: _Frame, pixels: np.ndarray, label: np.ndarray, k: int) -> None:
  """Enters a frame [column, row] into the label of its slice."""
  if opened.kind == "FRACTIONAL" and not np.isin(pixels, (0, opened.full_value)).all():
    raise InputError(
        f"{opened.path}: its segments are fractional; a label needs whole ones. Threshold it first."
    )
  known = np.array([0, *opened.names])
  if own.segment is None:
    values = pixels
  elif own.segment in opened.names:
    values = np.where(pixels != 0, own.segment, 0)
  else:
    raise InputError(f"{opened.path}: a frame shows segment {own.segment}, which is not described.")
  if not np.isin(values, known).all():
    raise InputError(f"{opened.path}: a frame holds numbers of segments that are not described.")
  both = (values != 0) & (label != 0) & (values != label)
  if both.any():
    pair = sorted({int(label[both][0]), int(values[both][0])})
    raise InputError(
        f"{opened.path}: segments {pair[0]} and {pair[1]} overlap on slice {k}; a voxel has one"
        " class. Separate them first."
    )
  np.copyto(label, values.astype(np.uint8), where=values != 0)


def write(
    source_path: str | os.PathLike,
    label: np.ndarray,
    target_path: str | os.PathLike,
    names: Sequence[str],
) -> None:
  """Writes a label as a binary DICOM-SEG that refers to the slices of its series.

  Args:
    source_path: The series.
    label: Class ids uint8 [i, j, k] on its grid.
    target_path: The file; it appears whole or not at all.
    names: Class names by id, background first; each class is a segment, empty or not.

  Raises:
    InputError: The series does not state what a segmentation must repeat.
  """
  stack = dicom.open_stack(source_path)
  # Heavy, and of an extra: needed only where a segmentation is written.
  try:
    highdicom = importlib.import_module("highdicom")
  except ImportError as error:
    raise InputError(
        "DICOM segmentations are written by highdicom, which is not installed. Install the extra:"
        ' pip install "flexunet[dicom]".'
    ) from error
  if not stack.oriented or not stack.places[0][0].frame_of_reference:
    raise InputError(
        f"{source_path}: a DICOM segmentation needs a series with positions and a frame of"
        " reference, which this one does not state. Write NIfTI: --output_format=nifti."
    )
  try:
    with dicom_files.quiet():
      made = _segmentation(highdicom, stack, label, list(names))
      buffer = io.BytesIO()
      made.save_as(buffer)
  except (AttributeError, TypeError, ValueError) as error:
    what = str(error) if isinstance(error, AttributeError) else type(error).__name__
    raise InputError(
        f"{source_path}: no DICOM segmentation can be made of this series ({what}). Write NIfTI:"
        " --output_format=nifti."
    ) from error
  files.write_bytes(pathlib.Path(target_path), buffer.getvalue())


def _segmentation(
    highdicom: Any, stack: dicom.Stack, label: np.ndarray, names: list[str]
) -> Any:
  """Returns highdicom's dataset of a label."""
  pydicom = dicom_files.pydicom_module()
  multi_frame = len(stack.places[0][0].planes) > 1
  paths = [file.path for file, _ in stack.places]
  sources = []
  for path in paths[:1] if multi_frame else paths:
    source = pydicom.dcmread(path, stop_before_pixels=True, force=True)
    for keyword in _MAY_BE_EMPTY:
      if keyword not in source:
        setattr(source, keyword, "")
    sources.append(source)
  slices = np.moveaxis(label.astype(np.uint8), (0, 1, 2), (2, 1, 0))
  if multi_frame:  # In the order of the file, as the source has them.
    slices = slices[np.argsort([frame for _, frame in stack.places])]
  descriptions = [_description(highdicom, number, name) for number, name in enumerate(names)][1:]
  number = stack.places[0][0].series_number
  return highdicom.seg.Segmentation(
      source_images=sources,
      pixel_array=np.ascontiguousarray(slices),
      segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
      segment_descriptions=descriptions,
      series_instance_uid=highdicom.UID(),
      series_number=_SERIES_OFFSET + int(number or 0),
      sop_instance_uid=highdicom.UID(),
      instance_number=1,
      manufacturer="FlexUNet",
      manufacturer_model_name="FlexUNet",
      software_versions=_version(),
      device_serial_number="0",
      content_label="FLEXUNET",
      omit_empty_frames=bool(label.any()),
  )


def _version() -> str:
  try:
    return importlib.metadata.version("flexunet")
  except importlib.metadata.PackageNotFoundError:
    return "unknown"  # Run from a checkout that is not installed.


def _description(highdicom: Any, number: int, name: str) -> Any:
  """Returns the description of a segment, its property coded by its name alone."""
  coded = highdicom.sr.CodedConcept
  shown = name[:_NAME_LENGTH] or f"class {number}"
  return highdicom.seg.SegmentDescription(
      segment_number=max(number, 1),
      segment_label=shown,
      segmented_property_category=coded("85756007", "SCT", "Tissue"),
      segmented_property_type=coded(f"CLASS{number}", "99FLEXUNET", shown),
      algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
      algorithm_identification=highdicom.AlgorithmIdentificationSequence(
          name="FlexUNet",
          version=_version(),
          family=coded("123110", "DCM", "Artificial Intelligence"),
      ),
  )
