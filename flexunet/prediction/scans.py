"""Finds what to predict in a file or folder, and names what comes out.

In a folder every volume and image below it is taken, a .hdr + .img pair once. Left out are hidden
files and labels: files whose name ends as those of the known datasets and of our own output do
(`_label`, `_mask`, `_seg`, `_overlay`, ...), and files in folders called `mask`, `labels` and the
like. A file that is named directly is always taken.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Sequence

from flexunet.core import errors
from flexunet.core.errors import InputError
from flexunet.imaging import pictures, scan_files

# HFH_001_Hipp_Labels, 12_HGE_Seg, 3-LesionSeg-T2, GU001_label_deface, our own <stem>_overlay.
_LABEL_STEM = re.compile(
    r".*[-_ .](labels?|masks?|(hge_)?seg|lesionseg[-_]\w+|overlay|color|probability)(_deface)?",
    re.IGNORECASE,
)
_LABEL_FOLDER = re.compile(r"masks?|labels?|full[-_ ]head[-_ ]segmentation", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Scan:
  """One thing to predict.

  Attributes:
    path: The file; the header of a pair.
    kind: "volume" or "image".
    folder: Where it lies below the input folder; outputs mirror it.
    stem: Its name without suffixes.
    suffix: As the file has it, ".gz" included.
  """

  path: pathlib.Path
  kind: str
  folder: pathlib.PurePath
  stem: str
  suffix: str

  def output(self, output_dir: pathlib.Path, ending: str) -> pathlib.Path:
    """Returns the path of an output, e.g. ending "_label.png"."""
    return output_dir / self.folder / f"{self.stem}{ending}"

  def label_path(self, output_dir: pathlib.Path) -> pathlib.Path:
    """Returns the path of the label, in the format of the scan."""
    return self.output(output_dir, f"_label{self.suffix if self.kind == 'volume' else '.png'}")


@dataclasses.dataclass(frozen=True)
class ScanList:
  """What lies below an input.

  Attributes:
    scans: To predict, sorted by path.
    labels_skipped: How many files were taken for labels.
    images_skipped: How many images lie beside the volumes.
    problems: One line for each thing that cannot be predicted though it should: links that lead
      nowhere, folders that cannot be read, scans that would share an output.
    not_read: {ending: number of files} of the scans and images in formats that are not read.
  """

  scans: list[Scan]
  labels_skipped: int = 0
  images_skipped: int = 0
  problems: list[str] = dataclasses.field(default_factory=list)
  not_read: dict[str, int] = dataclasses.field(default_factory=dict)


def find(input_path: pathlib.Path, output_dir: pathlib.Path, *, volumes_first: bool) -> ScanList:
  """Returns what to predict.

  Args:
    input_path: File or folder.
    output_dir: What lies in it is left out, unless it is the input itself.
    volumes_first: The network was trained on volumes: images beside volumes are left out.

  Raises:
    InputError: There is nothing to predict.
  """
  if output_dir.exists() and not output_dir.is_dir():
    raise InputError(f"--output_dir {output_dir} must be a folder. Got a file.")
  if input_path.is_file():
    scan = _scan(input_path, pathlib.PurePath())
    if scan is None:
      raise InputError(
          f"--input {input_path} must be a volume ({scan_files.readable_endings()}) or an image"
          f" ({', '.join(pictures.SUFFIXES)})."
      )
    return ScanList([scan])
  if not input_path.is_dir():
    raise InputError(f"--input {input_path} must be a file or a folder; there is none.")
  found = _scans_below(input_path, output_dir)
  scans, image_files = found.scans, 0
  if volumes_first and any(scan.kind == "volume" for scan in scans):
    image_files = sum(scan.kind == "image" for scan in scans)
    scans = [scan for scan in scans if scan.kind == "volume"]
  scans, collisions = _without_collisions(scans)
  problems = [*found.problems, *collisions]
  if not scans and problems:
    raise errors.from_problems(problems, f"Nothing of --input {input_path} can be predicted.")
  if not scans:
    raise InputError(
        f"--input {input_path} must hold volumes or images. None was found"
        + _instead_found(found)
    )
  return dataclasses.replace(found, scans=scans, images_skipped=image_files, problems=problems)


def _instead_found(found: ScanList) -> str:
  """Returns the end of the sentence that no scan was found."""
  text = "".join(
      f"; {count} {ending} ({scan_files.reason_unread('scan' + ending)})"
      for ending, count in found.not_read.items()
  )
  if labels := found.labels_skipped:
    text += f"; {labels} files were taken for labels. Name a file directly"
  return f"{text}."


def _scans_below(folder: pathlib.Path, output_dir: pathlib.Path) -> ScanList:
  """Returns the scans below a folder, and what else lies there."""
  outputs = os.path.realpath(output_dir)
  skip_outputs = outputs != os.path.realpath(folder)
  paths, problems = _files_below(folder)
  found = ScanList([], problems=problems)
  labels = 0
  for path in paths:
    if skip_outputs and pathlib.Path(os.path.realpath(path)).is_relative_to(outputs):
      continue
    scan = _scan(path, path.relative_to(folder).parent)
    if scan is not None and _is_label(scan):
      labels += not _is_second_of_pair(path)
    elif not path.is_file():
      if scan is not None or not path.suffix:  # A dead link to anything else takes nothing away.
        problems.append(str(errors.missing_file(path)))
    elif scan is None:
      if ending := scan_files.unread_ending(path):
        found.not_read[ending] = found.not_read.get(ending, 0) + 1
    elif not _is_second_of_pair(path):
      found.scans.append(scan)
  return dataclasses.replace(found, labels_skipped=labels)


def _files_below(folder: pathlib.Path) -> tuple[list[pathlib.Path], list[str]]:
  """Returns files and dead links, sorted, hidden ones left out, and folders that cannot be read.

  Links to folders are followed, each folder once: a link may lead back to where it lies.
  """
  problems: list[str] = []

  def refused(error: OSError) -> None:
    problems.append(f"{error.filename}: the folder cannot be read ({error.strerror}).")

  paths: list[pathlib.Path] = []
  seen = {os.path.realpath(folder)}
  for parent, folders, names in os.walk(folder, onerror=refused, followlinks=True):
    inside = {name: os.path.join(parent, name) for name in folders if not name.startswith(".")}
    folders.clear()
    # A folder itself before the links to it, so that its files keep their own names.
    for name in sorted(inside, key=lambda name: (os.path.islink(inside[name]), name)):
      real = os.path.realpath(inside[name])
      if real not in seen:
        seen.add(real)
        folders.append(name)
    paths += [pathlib.Path(parent, name) for name in names if not name.startswith(".")]
  return sorted(paths), problems


def _scan(path: pathlib.Path, folder: pathlib.PurePath) -> Scan | None:
  if suffix := scan_files.ending_of(path):
    stem, suffix = path.name[: -len(suffix)], path.name[-len(suffix) :]
    return Scan(path, "volume", folder, stem, suffix)
  if pictures.is_picture(path):
    return Scan(path, "image", folder, path.stem, path.suffix)
  return None


def _is_second_of_pair(path: pathlib.Path) -> bool:
  """Returns whether a file is the .img of a .hdr that lies beside it."""
  suffix = scan_files.ending_of(path)
  if suffix[:4] != ".img":
    return False
  stem = path.name[: -len(suffix)]
  wanted = f"{stem}.hdr".lower()
  return any(
      other.name.lower() in (wanted, f"{wanted}.gz") for other in path.parent.glob(f"{stem}.*")
  )


def _is_label(scan: Scan) -> bool:
  if _LABEL_STEM.fullmatch(scan.stem):
    return True
  return any(_LABEL_FOLDER.fullmatch(part) for part in scan.folder.parts)


def _without_collisions(scans: Sequence[Scan]) -> tuple[list[Scan], list[str]]:
  """Returns the scans whose outputs are theirs alone, and a line for each of the others.

  Labels keep the ending of their scan, so that those of a.nii and a.nii.gz differ; overlays do not.
  """
  by_output: dict[pathlib.Path, list[Scan]] = {}
  for scan in scans:
    by_output.setdefault(scan.output(pathlib.Path(), "_overlay.png"), []).append(scan)
  problems = [
      f"{' and '.join(str(scan.path) for scan in sharing)} would both be written to {output}."
      " Predict them into different folders."
      for output, sharing in by_output.items()
      if len(sharing) > 1
  ]
  return [sharing[0] for sharing in by_output.values() if len(sharing) == 1], problems
