"""The one place that opens a scan by its kind, and the one table of endings.

A scan is named by one file: a .nii.gz, the header of a pair, or any file of a DICOM series, which
stands for the whole series in its folder. Readers of optional formats import their package when
such a file is read.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from flexunet.core.errors import InputError, unknown_name
from flexunet.imaging import (
    dicom,
    dicom_files,
    dicom_segmentation,
    intensity,
    itk_images,
    mgh,
    nifti,
    tiff_stacks,
    volume_bytes,
)
from flexunet.imaging.volume import Volume, VolumeHeader


@dataclasses.dataclass(frozen=True)
class ScanFormat:
  """A format that is read.

  Attributes:
    name: As people call it.
    endings: In lower case, each before any that it ends in.
    reader: Module with `files_of`, `read_header` and `read_voxels`.
    extra: Extra of setup.cfg that brings its package; "" for none.
  """

  name: str
  endings: tuple[str, ...]
  reader: Any
  extra: str = ""


FORMATS = (
    ScanFormat("NIfTI or ANALYZE", (
        ".nii.gz", ".nii", ".hdr.gz", ".hdr", ".img.gz", ".img",
    ), nifti),
    ScanFormat("MGH", (".mgz", ".mgh.gz", ".mgh"), mgh),
    ScanFormat("MetaImage", (".mha", ".mhd"), itk_images, "itk"),
    ScanFormat("NRRD", (".nrrd", ".nhdr"), itk_images, "itk"),
    ScanFormat("DICOM", dicom_files.ENDINGS, dicom, "dicom"),
)  # fmt: skip
ENDINGS = tuple(ending for one in FORMATS for ending in one.endings)
# A TIFF of several pages; one page is an image.
_STACK = ScanFormat("TIFF stack", tiff_stacks.ENDINGS, tiff_stacks)
# In which format a label is written: that of its scan (DICOM: a segmentation), or as named.
OUTPUT_FORMATS = ("same", "nifti", "dicom_seg")
# Formats of scans that are not read: {ending: (name, what converts it)}.
_UNREAD = {
    ".mnc": ("a MINC scan", "mnc2nii (MINC tools)"),
    ".mif": ("an MRtrix scan", "mrconvert (MRtrix3)"),
    ".mif.gz": ("an MRtrix scan", "mrconvert (MRtrix3)"),
    ".mih": ("an MRtrix scan", "mrconvert (MRtrix3)"),
    ".head": ("an AFNI scan", "3dAFNItoNIFTI (AFNI)"),
    ".brik": ("an AFNI scan", "3dAFNItoNIFTI (AFNI)"),
    ".brik.gz": ("an AFNI scan", "3dAFNItoNIFTI (AFNI)"),
    ".par": ("a Philips PAR/REC scan", "dcm2niix"),
    ".rec": ("a Philips PAR/REC scan", "dcm2niix"),
    ".v": ("an ECAT scan", "3D Slicer, or dcm2niix after export as DICOM"),
    ".vtk": ("a VTK file", "3D Slicer"),
    ".vti": ("a VTK image", "3D Slicer"),
    ".raw": ("voxels without a header", "3D Slicer, once it is given their size,"),
    ".gipl": ("a GIPL scan", "ITK-SNAP (Convert3D)"),
    ".gipl.gz": ("a GIPL scan", "ITK-SNAP (Convert3D)"),
    ".isq": ("a Scanco scan", "3D Slicer"),
    ".h5": ("an HDF5 file", "a script of its publisher"),
    ".hdf5": ("an HDF5 file", "a script of its publisher"),
    ".mat": ("a MATLAB file", "niftiwrite (MATLAB)"),
    ".nd2": ("a microscope file", "Fiji (Bio-Formats)"),
    ".czi": ("a microscope file", "Fiji (Bio-Formats)"),
    ".svs": ("a whole-slide image", "QuPath"),
    ".gif": ("a GIF image", "any image program, as PNG,"),
    ".webp": ("a WebP image", "any image program, as PNG,"),
    ".zip": ("an archive", "unzip"),
    ".tar": ("an archive", "tar -xf"),
    ".tar.gz": ("an archive", "tar -xf"),
    ".7z": ("an archive", "7z x"),
}


@dataclasses.dataclass(frozen=True)
class ScanFile:
  """One scan of a folder.

  Attributes:
    path: What names it to the readers of this module.
    stem: Its name without its ending; the folder's for a DICOM series alone in its folder.
    ending: In lower case.
    files: All files it consists of.
  """

  path: pathlib.Path
  stem: str
  ending: str
  files: tuple[pathlib.Path, ...]


@dataclasses.dataclass(frozen=True)
class ScanListing:
  """What files hold.

  Attributes:
    scans: Sorted by path.
    not_read: {file that is no part of a scan: reason}.
  """

  scans: list[ScanFile]
  not_read: dict[pathlib.Path, str]

  @functools.cached_property
  def by_path(self) -> dict[pathlib.Path, ScanFile]:
    """The scans by the file that names each."""
    return {scan.path: scan for scan in self.scans}


def ending_of(path: str | os.PathLike) -> str:
  """Returns the ending in lower case, ".nii.gz" and the like; "" where the name is no scan's."""
  name = pathlib.PurePath(path).name.lower()
  return next((one for one in ENDINGS if name.endswith(one) and len(name) > len(one)), "")


def stem_of(path: str | os.PathLike) -> str:
  """Returns the file name without the ending of a scan, else without its last suffix."""
  path = pathlib.PurePath(path)
  ending = ending_of(path)
  return path.name[: -len(ending)] if ending else path.stem


def is_scan(path: str | os.PathLike) -> bool:
  """Returns whether a file is a scan that can be read."""
  return _format_of(path) is not None


def unread_ending(path: str | os.PathLike) -> str:
  """Returns the ending of a scan or an image that is not read, in lower case; "" for others."""
  name = pathlib.PurePath(path).name.lower()
  return max((one for one in _UNREAD if name.endswith(one)), key=len, default="")


def is_dicom(path: str | os.PathLike) -> bool:
  """Returns whether a file is DICOM, of which several may be one scan, and some are none."""
  return dicom_files.is_dicom(path)


def reason_unread(path: str | os.PathLike) -> str:
  """Returns why a file is no scan that is read, and what converts it, for a list of such files."""
  ending = unread_ending(path)
  if not ending:
    return "not a scan"
  what, tool = _UNREAD[ending]
  verb = "unpacks" if what == "an archive" else "converts"
  return f"{what}, which is not read; {tool} {verb} it"


def readable_endings() -> str:
  """Returns the endings of all scans that are read, for messages."""
  return ", ".join(ENDINGS)


def files_of(path: str | os.PathLike) -> tuple[pathlib.Path, ...]:
  """Returns all files of a scan, the one that names it first, none twice.

  Raises:
    InputError: The file is no scan, or a file of it is missing.
  """
  return tuple(dict.fromkeys(_reader_of(path).files_of(path)))


def detached_files(paths: Iterable[pathlib.Path]) -> set[pathlib.Path]:
  """Returns the files with the voxels of the MetaImage and NRRD headers among some files."""
  found: set[pathlib.Path] = set()
  for path in paths:
    if ending_of(path) in (".mhd", ".nhdr"):
      try:
        found.update(files_of(path)[1:])
      except InputError:
        continue  # Reading it says what is wrong.
  return found


def num_volumes(path: str | os.PathLike) -> int:
  """Returns how many volumes lie along the fourth axis of a NIfTI file; 1 for every other scan.

  Raises:
    InputError: The header cannot be read.
  """
  return nifti.num_volumes(path) if _reader_of(path) is nifti else 1


def read_header(path: str | os.PathLike, component: int | None = None) -> VolumeHeader:
  """Returns shape, stored dtype, affine, spacing and axis codes; reads no voxel.

  Args:
    path: The scan.
    component: Which volume along the fourth axis of a NIfTI file, from 0; None: it has only one.

  Raises:
    InputError: The header cannot be read, or lies.
  """
  if component is not None:
    return nifti.read_header(path, component)
  return _reader_of(path).read_header(path)


def read(path: str | os.PathLike) -> Volume:
  """Reads a volume with its scale factors applied, such as a label; its numbers may be anything.

  Raises:
    InputError: The file is unreadable, truncated, corrupt, larger than the limit or not 3-D.
  """
  stored, slope, inter = _reader_of(path).read_voxels(path)
  return stored.scaled(slope, inter)


def read_volumes(
    path: str | os.PathLike, components: Sequence[int] = ()
) -> list[tuple[Volume, float, float]]:
  """Reads volumes of one file, which is inflated once: (volume, slope, inter) of each.

  Args:
    path: The scan.
    components: Which of the volumes along the fourth axis of a NIfTI file, from 0, in this order;
      () for a scan that is one volume.

  Raises:
    InputError: As in `read`, or there is no such volume.
  """
  if not components:
    return [_reader_of(path).read_voxels(path)]
  volumes, slope, inter = nifti.read_components(path, components)
  return [(volume, slope, inter) for volume in volumes]


def read_stored(path: str | os.PathLike) -> tuple[Volume, float, float]:
  """Reads the numbers of a scan as they are stored: (volume, slope, inter).

  What they stand for is `stored * slope + inter`. Voxels may be NaN in part.

  Raises:
    InputError: As in `read`, or the voxels show nothing: they are all NaN or all equal, or some
      intensity is infinite or larger than any scanner's.
  """
  return read_channels(path)[0]


def read_channels(
    path: str | os.PathLike, components: Sequence[int] = ()
) -> list[tuple[Volume, float, float]]:
  """Reads volumes of one file as `read_volumes`, and refuses each as `read_stored`."""
  channels = read_volumes(path, components)
  # Of a pair it is the voxel file that shows nothing.
  named = nifti.files_of(path)[1] if _reader_of(path) is nifti else path
  for one, (stored, slope, inter) in zip(components or (None,), channels, strict=True):
    name = volume_bytes.component_name(named, one)
    intensity.check_scan(stored.voxels, slope, inter, name)
  return channels


def read_label(
    path: str | os.PathLike,
    scan: Volume | VolumeHeader,
    scan_path: str | os.PathLike | None = None,
) -> tuple[Volume, dict[int, str]]:
  """Reads the label of a scan, its voxels in the order of the scan's.

  Args:
    path: The label.
    scan: Its scan, or its header, for only its grid is looked at. Where both state an orientation,
      and the axes of the label only run another way or come in another order, they are turned;
      nothing is interpolated.
    scan_path: Where the scan came from; a DICOM segmentation refers to the slices of a series.

  Returns:
    (volume, {value: name}); names come with formats that hold them.

  Raises:
    InputError: The label cannot be read.
  """
  if isinstance(scan, VolumeHeader):
    empty = np.broadcast_to(np.uint8(0), scan.shape)  # One byte, whatever the shape.
    scan = Volume(empty, scan.affine, scan.oriented)
  if dicom_segmentation.is_segmentation(path):
    return dicom_segmentation.read(path, scan, scan_path)
  return read(path).turned_like(scan), {}


def label_names(path: str | os.PathLike) -> dict[int, str]:
  """Returns {value: name} of a label whose format holds names; {} of others.

  Raises:
    InputError: The label cannot be read.
  """
  return dicom_segmentation.names_of(path) if dicom_segmentation.is_segmentation(path) else {}


def label_shape(label_path: str | os.PathLike, scan: VolumeHeader) -> tuple[int, ...]:
  """Returns the shape of a label by its header, in the voxel order of its scan.

  That of a DICOM segmentation, which need not show all slices, is the scan's where its frames have
  the size of the scan's slices, else the columns and rows of the frames.

  Raises:
    InputError: The header cannot be read.
  """
  if dicom_segmentation.is_segmentation(label_path):
    columns, rows = dicom_segmentation.size_of(label_path)
    rest = list(scan.shape)
    for size in (columns, rows):
      if size not in rest:
        return columns, rows
      rest.remove(size)
    return scan.shape
  return read_header(label_path).shape_like(scan)


def resolve(path: pathlib.Path, series: str = "") -> pathlib.Path:
  """Returns the file that names a scan: the file itself, or one of a folder's DICOM series.

  Raises:
    InputError: The folder holds no series, or several, which are listed, and none is chosen.
  """
  return dicom.choose(path, series) if path.is_dir() else path


def gather(
    paths: Iterable[pathlib.Path], series: str = "", *, labels: bool = False
) -> ScanListing:
  """Groups files into scans: one per file, pair of files, or DICOM series.

  Args:
    paths: Files, of any folders.
    series: Chooses DICOM series by number or by the end of their UID; "" takes all.
    labels: The files are labels: DICOM segmentations are taken too.
  """
  paths = sorted(paths)
  slices = [path for path in paths if ending_of(path) in ("", *dicom_files.ENDINGS)]
  slices = [path for path in slices if dicom_files.is_dicom(path)]
  scans = _gather_dicom(slices, series, labels)
  used = {file for scan in scans.scans for file in scan.files} | set(slices)
  for path in paths:
    if path in used or (not ending_of(path) and not tiff_stacks.is_stack(path)):
      continue
    try:
      files = files_of(path)
    except InputError:
      files = (path,)  # Reading it says what is wrong.
    # A pair is named by its header, which comes first.
    used.update(files)
    ending = ending_of(files[0]) or files[0].suffix.lower()
    scans.scans.append(ScanFile(files[0], stem_of(files[0]), ending, files))
  not_read = {path: reason_unread(path) for path in paths if path not in used}
  return ScanListing(
      sorted(scans.scans, key=lambda scan: scan.path), {**scans.not_read, **not_read}
  )


def _gather_dicom(paths: Sequence[pathlib.Path], series: str, labels: bool) -> ScanListing:
  """Groups DICOM files into series, one scan each."""
  groups, left = dicom.group(paths, series)
  scans = []
  marks = collections.Counter((group.files[0].parent, group.number) for group in groups)
  for group in groups:
    first = group.files[0]
    stem = stem_of(first)
    if len(group.files) > 1:
      # Series may share a number; their first files tell them apart.
      own = [group.number] if group.number else []
      own += [stem] if marks[first.parent, group.number] > 1 or not own else []
      stem = first.parent.name + ("" if group.alone else f"_series{'_'.join(own)}")
    scans.append(ScanFile(group.files[0], stem, ".dcm", group.files))
  if labels:
    for path in [path for path in left if dicom_segmentation.is_segmentation(path)]:
      del left[path]
      scans.append(ScanFile(path, stem_of(path), ".dcm", (path,)))
  return ScanListing(scans, left)


def label_ending(ending: str, output_format: str = "same") -> str:
  """Returns the ending of a label's file for a scan of an ending.

  Args:
    ending: That of the scan, in any case; kept as it is where the format is kept.
    output_format: One of `OUTPUT_FORMATS`.

  Raises:
    InputError: A DICOM segmentation of a scan that is not DICOM.
  """
  if output_format not in OUTPUT_FORMATS:
    raise unknown_name("output format", output_format, OUTPUT_FORMATS)
  if output_format == "dicom_seg" and ending.lower() not in ("", *dicom_files.ENDINGS):
    raise InputError(
        f"A DICOM segmentation refers to the slices of a DICOM series; the scan is {ending}. Choose"
        " --output_format=same or nifti."
    )
  if output_format == "nifti" and ending.lower() not in nifti_endings():
    return ".nii.gz"
  # A label is one file, also where its scan is a header and its voxels.
  one_file = {".mhd": ".mha", ".nhdr": ".nrrd", "": ".dcm", ".ima": ".dcm", ".dicom": ".dcm"}
  return one_file.get(ending.lower(), ending)


def nifti_endings() -> tuple[str, ...]:
  """Returns the endings of NIfTI and ANALYZE."""
  return FORMATS[0].endings


def write_label_like(
    source_path: str | os.PathLike,
    label: np.ndarray,
    target_path: str | os.PathLike,
    names: Sequence[str] = (),
    component: int | None = None,
) -> None:
  """Writes a label that lies voxel by voxel on its scan; it appears whole or not at all.

  Args:
    source_path: The scan.
    label: Class ids [i, j, k], 0..255, on the scan's grid.
    target_path: Its ending decides the format: that of the scan, or NIfTI.
    names: Class names by id, background first, for formats that hold them.
    component: Any of the volumes along the fourth axis of the scan; None where it has none.

  Raises:
    InputError: The shapes differ, or the format is another one.
  """
  target_path, reader = pathlib.Path(target_path), _reader_of(source_path)
  if reader is nifti:
    nifti.write_like(source_path, label, target_path, component)
    return
  header = read_header(source_path)
  volume_bytes.check_label(header.shape, label, target_path)
  ending = ending_of(target_path)
  if ending in (".nii", ".nii.gz"):
    nifti.write_label(header, label, target_path)
  elif reader is dicom and ending in ("", *dicom_files.ENDINGS):
    dicom_segmentation.write(source_path, label, target_path, names or _numbered(label))
  elif target_path.name.lower().endswith(_endings_of(reader)):
    reader.write_label(source_path, label, target_path)
  else:
    raise InputError(
        f"{target_path}: the source is {source_path}, so the name must end in .nii, .nii.gz or as"
        " the source does."
    )


def _endings_of(reader: Any) -> tuple[str, ...]:
  formats = [one for one in (*FORMATS, _STACK) if one.reader is reader]
  return tuple(ending for one in formats for ending in one.endings)


def _numbered(label: np.ndarray) -> list[str]:
  """Returns names for a label that has none."""
  return ["background", *(f"class {number}" for number in range(1, int(label.max(initial=1)) + 1))]


def _format_of(path: str | os.PathLike) -> ScanFormat | None:
  ending = ending_of(path)
  if not ending and dicom_files.is_dicom(path):
    ending = dicom_files.ENDINGS[0]
  if not ending and tiff_stacks.is_stack(path):
    return _STACK
  return next((one for one in FORMATS if ending in one.endings), None)


def _reader_of(path: str | os.PathLike) -> Any:
  found = _format_of(path)
  if found is None:
    reason = reason_unread(path)
    raise InputError(
        f"{path}: not a volume{'' if reason == 'not a scan' else f', but {reason}'}. Expected"
        f" {readable_endings()}."
    )
  return found.reader
