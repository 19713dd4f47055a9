"""Reads DICOM series, and multi-frame images, as volumes.

Any file of a series stands for all files of that series in its folder. Slices are ordered by their
positions along the normal, never by names or numbers, and only equal steps make a volume: what is
missing, doubled, sheared (gantry tilt) or of another orientation is named and refused.

Voxel axes are (column, row, slice) of the images; DICOM's world is LPS+ mm, ours RAS+.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from flexunet.core.errors import InputError
from flexunet.imaging import dicom_files, volume_bytes
from flexunet.imaging.dicom_files import CONVERT, DicomFile, Plane
from flexunet.imaging.volume import Volume, VolumeHeader

# A tenth of a step: headers round, and no slice is misplaced by that little.
_STEP_TOLERANCE = 0.1
_COSINE_TOLERANCE = 1e-3
_SHOWN = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Stack:
  """The slices of a scan in the order of their positions.

  Attributes:
    places: (file, number of the frame in it) of each slice.
    dtype: Of the volume: that of the pixels, or float32 where each slice has its own scale.
    slope, inter: Of all slices; 1 and 0 where each has its own.
  """

  places: tuple[tuple[DicomFile, int], ...]
  shape: tuple[int, int, int]
  dtype: np.dtype
  affine: np.ndarray
  oriented: bool
  slope: float
  inter: float
  scaled: bool


def files_of(path: str | os.PathLike) -> tuple[pathlib.Path, ...]:
  """Returns all files of the scan that a file belongs to, sorted by name.

  Raises:
    InputError: The file cannot be read as DICOM.
  """
  path = pathlib.Path(path)
  own = dicom_files.read_file(path)
  if own.no_scan or len(own.planes) > 1:
    return (path,)
  return tuple(file.path for file in _scans_beside(path) if file.key == own.key)


def read_header(path: str | os.PathLike) -> VolumeHeader:
  """Returns shape, stored dtype and geometry of a scan; decodes no pixel.

  Raises:
    InputError: A header cannot be read, or the slices are no volume.
  """
  stack = open_stack(path)
  return VolumeHeader.of(stack.shape, stack.dtype, stack.affine, stack.oriented)


def read_voxels(path: str | os.PathLike) -> tuple[Volume, float, float]:
  """Reads a scan, file by file into one array: (volume, slope, inter).

  Raises:
    InputError: As in `read_header`, or the pixels of a file cannot be decoded.
  """
  stack = open_stack(path)
  voxels = np.empty(stack.shape, stack.dtype, order="F")
  first = 0
  while first < len(stack.places):
    file, _ = stack.places[first]
    last = first + 1
    while last < len(stack.places) and stack.places[last][0] is file:
      last += 1
    frames = [frame for _, frame in stack.places[first:last]]
    for k, (frame, pixels) in enumerate(dicom_files.decoded(file, frames), start=first):
      plane = file.planes[frame]
      if stack.scaled:
        pixels = pixels.astype(np.float64) * plane.slope + plane.inter
      voxels[:, :, k] = pixels.T
    first = last
  return Volume(voxels, stack.affine, stack.oriented), stack.slope, stack.inter


@dataclasses.dataclass(frozen=True)
class Group:
  """The files of one scan.

  Attributes:
    files: Sorted by name.
    number: Of the series; "" where none is stated.
    about: What it is, without text of its headers.
    alone: Whether it is the only scan in its folder.
  """

  files: tuple[pathlib.Path, ...]
  number: str
  about: str
  alone: bool


def group(
    paths: Iterable[pathlib.Path], series: str = ""
) -> tuple[list[Group], dict[pathlib.Path, str]]:
  """Groups DICOM files into scans.

  Args:
    paths: Files, of any folders.
    series: Chooses series by number or by the end of their UID; "" takes all.

  Returns:
    (scans, {file that is none: reason}). A folder with a file that cannot be read is one group:
    reading it names the file.
  """
  folders: dict[pathlib.Path, list[pathlib.Path]] = {}
  for path in sorted(paths):
    folders.setdefault(path.parent, []).append(path)
  groups: list[Group] = []
  left: dict[pathlib.Path, str] = {}
  for own in folders.values():
    try:
      files = [dicom_files.read_file(path) for path in own]
    except InputError:
      groups.append(Group(tuple(own), "", "unreadable", True))
      continue
    by_key: dict[tuple[str, str], list[DicomFile]] = {}
    for file in files:
      if file.no_scan:
        left[file.path] = file.no_scan
      else:
        by_key.setdefault(file.key, []).append(file)
    for members in list(by_key.values()):
      if not is_chosen(members[0], series):
        del by_key[members[0].key]
        left.update({file.path: f"of {_about(members)}, not chosen" for file in members})
    for members in by_key.values():
      names = tuple(file.path for file in members)
      groups.append(Group(names, members[0].series_number, _about(members), len(by_key) == 1))
  return groups, left


def choose(folder: pathlib.Path, series: str = "") -> pathlib.Path:
  """Returns the first file of the only series of a folder, or of the series chosen.

  Raises:
    InputError: There is none, or there are several, which are listed.
  """
  paths = [path for path in sorted(folder.iterdir()) if path.is_file()]
  found, _ = group([path for path in paths if dicom_files.is_dicom(path)], series)
  if len(found) == 1:
    return found[0].files[0]
  if not found:
    chosen = f" of series {series}" if series else ""
    raise InputError(f"{folder}: holds no DICOM images{chosen}. Name a file, or another folder.")
  listed = "; ".join(one.about for one in found)
  raise InputError(
      f"{folder}: holds {len(found)} series: {listed}. Choose one by --series=NUMBER, or by the end"
      " of its UID."
  )


def _about(files: Sequence[DicomFile]) -> str:
  first = files[0]
  slices = sum(len(file.planes) for file in files)
  number = f"series {first.series_number}" if first.series_number else "a series without number"
  return f"{number} ({first.modality}, slices: {slices}, UID ...{first.series[-8:]})"


def is_chosen(file: DicomFile, series: str) -> bool:
  """Returns whether a file is of the series chosen by its number or by the end of its UID."""
  return not series or file.series_number == series or file.series.endswith(f".{series}") or (
      len(series) > 3 and file.series.endswith(series)
  )  # fmt: skip


def _scans_beside(path: pathlib.Path) -> list[DicomFile]:
  """Returns the images in the folder of a file, sorted by name.

  A file that cannot be read is an error: it may be a slice of the series.
  """
  others = [one for one in sorted(path.parent.iterdir()) if one.is_file()]
  found = [dicom_files.read_file(one) for one in others if dicom_files.is_dicom(one)]
  return [file for file in found if not file.no_scan]


def open_stack(path: str | os.PathLike) -> Stack:
  """Returns the slices of the scan that a file belongs to, in order.

  Raises:
    InputError: The file is no scan, or the slices are no volume.
  """
  path = pathlib.Path(path)
  own = dicom_files.read_file(path)
  if own.no_scan:
    raise InputError(f"{path}: not a volume, but {own.no_scan}. Name a scan.")
  files = [own] if len(own.planes) > 1 else [dicom_files.read_file(one) for one in files_of(path)]
  _check_alike(files)
  places = [(file, frame) for file in files for frame in range(len(file.planes))]
  affine, order, oriented = _geometry(places)
  ordered = tuple(places[place] for place in order)
  rows, columns = own.size_hw
  scales = {(plane.slope, plane.inter) for file in files for plane in file.planes}
  dtype = functools.reduce(np.promote_types, {file.dtype for file in files})
  if not all(math.isfinite(slope) and slope != 0 for slope, _ in scales):
    raise InputError(f"{path}: the rescale slope must be finite and not 0. Repair the header.")
  scaled = len(scales) > 1
  if scaled:
    dtype = np.dtype(np.float32 if dtype.itemsize <= 2 else np.float64)
  slope, inter = (1.0, 0.0) if scaled else next(iter(scales))
  shape = (columns, rows, len(ordered))
  declared = math.prod(shape) * dtype.itemsize
  if declared > volume_bytes.MAX_VOLUME_BYTES:
    raise InputError(
        f"{path}: the series declares {declared} bytes of voxels; the limit is"
        f" {volume_bytes.MAX_VOLUME_BYTES}. A header is damaged, or the scan must be cut."
    )
  volume_bytes.check_affine(path, affine, oriented=oriented)
  return Stack(ordered, shape, dtype, affine, oriented, slope, inter, scaled)


def _check_alike(files: Sequence[DicomFile]) -> None:
  """Refuses series whose files do not belong to one grid."""
  first = files[0]
  for file in files[1:]:
    if file.size_hw != first.size_hw:
      raise InputError(
          f"{file.path}: slices of a series have one size; this is {file.size_hw},"
          f" {first.path.name} {first.size_hw}. Put them into separate folders."
      )
    if file.frame_of_reference != first.frame_of_reference:
      raise InputError(
          f"{file.path}: its frame of reference is another than that of {first.path.name}, so their"
          " positions cannot be compared. Put them into separate folders."
      )


def _geometry(places: list[tuple[DicomFile, int]]) -> tuple[np.ndarray, list[int], bool]:
  """Returns (affine float64 [4, 4] to RAS+, order of the places, whether it is oriented)."""
  planes = [file.planes[frame] for file, frame in places]
  names = [
      file.path.name if len(file.planes) == 1 else f"frame {frame + 1}" for file, frame in places
  ]
  first, path = planes[0], places[0][0].path
  spacings = {plane.spacing_mm for plane in planes}
  if len(spacings) > 1:
    raise InputError(f"{path}: slices of a series have one pixel spacing, found {len(spacings)}.")
  stated = all(plane.position and plane.orientation for plane in planes)
  if not stated or first.spacing_mm is None:
    if len(planes) > 1:
      lacking = "pixel spacings" if stated else "positions"
      raise InputError(
          f"{path}: {lacking} of the slices are not stated, so they cannot be put in order."
          f" {CONVERT}."
      )
    row_mm, column_mm = first.spacing_mm or (np.nan, np.nan)
    return np.diag([column_mm, row_mm, first.thickness_mm or np.nan, 1.0]), [0], False
  across, down, normal = _directions(path, planes)
  positions = np.array([plane.position for plane in planes])
  order = [int(place) for place in np.argsort(positions @ normal, kind="stable")]
  positions = positions[order]
  row_mm, column_mm = first.spacing_mm
  if len(planes) == 1:
    if first.thickness_mm is None:
      return np.diag([column_mm, row_mm, np.nan, 1.0]), [0], False
    step = normal * first.thickness_mm
  else:
    _check_gaps(path, positions @ normal, [names[place] for place in order])
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    _check_tilt(path, positions, step, normal, min(row_mm, column_mm))
  affine = np.eye(4)
  affine[:3, :3] = np.stack([across * column_mm, down * row_mm, step], axis=1)
  affine[:3, 3] = positions[0]
  return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, order, True


def _directions(
    path: pathlib.Path, planes: Sequence[Plane]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns where columns ascend, where rows ascend, and the normal: unit vectors in LPS+."""
  cosines = np.array([plane.orientation for plane in planes])
  if np.abs(cosines - cosines[0]).max() > _COSINE_TOLERANCE:
    kinds = len(np.unique(np.round(cosines, 2), axis=0))
    raise InputError(
        f"{path}: slices of a volume are parallel; this series has about {kinds} orientations (a"
        " localizer?). Choose another series."
    )
  across, down = cosines[0, :3], cosines[0, 3:]
  lengths = np.linalg.norm(across), np.linalg.norm(down)
  if max(abs(length - 1) for length in lengths) > _COSINE_TOLERANCE * 10 or (
      abs(across @ down) > _COSINE_TOLERANCE * 10
  ):
    raise InputError(
        f"{path}: the orientation of an image is two unit vectors at a right angle; this header"
        f" states others. {CONVERT}, or repair the header."
    )
  across, down = across / lengths[0], down / lengths[1]
  return across, down, np.cross(across, down)


def _check_gaps(path: pathlib.Path, along: np.ndarray, names: list[str]) -> None:
  """Refuses doubled, missing and unequally spaced slices, by name."""
  gaps = np.diff(along)
  distinct = gaps[gaps > 0.01]  # Positions are rounded; no slices lie that near.
  nearest = 0.1 * float(np.median(distinct)) if distinct.size else np.inf
  doubled = np.flatnonzero(gaps < nearest)
  if doubled.size:
    num_positions = len(names) - len(doubled)
    if num_positions > 1 and len(names) % num_positions == 0:
      raise InputError(
          f"{path}: {len(names)} slices lie at {num_positions} positions: several volumes (times,"
          " echoes) in one series. Put each into a folder of its own, or split them by dcm2niix."
      )
    shown = ", ".join(f"{names[one]} and {names[one + 1]}" for one in doubled[:_SHOWN])
    raise InputError(
        f"{path}: slices are doubled: {shown} lie at one position. Remove one of each."
    )
  usual = float(np.median(gaps[gaps < 1.2 * gaps.min()]))
  wide = np.flatnonzero(gaps > 1.5 * usual)
  multiples = np.round(gaps / usual)
  if wide.size and np.abs(gaps / usual - multiples).max() < 2 * _STEP_TOLERANCE:
    shown = ", ".join(f"{names[one]} and {names[one + 1]}" for one in wide[:_SHOWN])
    missing = int((multiples - 1).sum())
    raise InputError(
        f"{path}: slices are missing: {missing}, between {shown}. Fetch the series again."
    )
  even = along[0] + np.arange(len(along)) * (along[-1] - along[0]) / (len(along) - 1)
  if np.abs(along - even).max() > _STEP_TOLERANCE * usual:
    place = int(np.abs(gaps - usual).argmax())
    raise InputError(
        f"{path}: slices must lie at equal distances; they are {gaps.min():.4g} to"
        f" {gaps.max():.4g} mm apart, such as {names[place]} at {along[place]:.2f} mm and"
        f" {names[place + 1]} at {along[place + 1]:.2f} mm. Resample the series by dcm2niix or 3D"
        " Slicer."
    )


def _check_tilt(
    path: pathlib.Path, positions: np.ndarray, step: np.ndarray, normal: np.ndarray, pixel_mm: float
) -> None:
  """Refuses slices that are shifted against each other within their planes."""
  sideways = float(np.linalg.norm(step - (step @ normal) * normal))
  shift = sideways * (len(positions) - 1)
  if shift > 0.5 * pixel_mm:
    angle = math.degrees(math.atan2(sideways, float(step @ normal)))
    raise InputError(
        f"{path}: the slices are sheared by {shift:.1f} mm from first to last (gantry tilt of"
        f" {angle:.1f} degrees). {CONVERT}, which corrects the tilt."
    )
  even = positions[0] + np.arange(len(positions))[:, None] * step
  worst = float(np.abs(positions - even).max())
  if worst > max(0.5 * pixel_mm, _STEP_TOLERANCE * float(np.linalg.norm(step))):
    raise InputError(
        f"{path}: the slices do not lie on one line: one is {worst:.2f} mm off. {CONVERT}."
    )
