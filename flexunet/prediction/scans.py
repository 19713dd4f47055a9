"""Finds what to predict in a file or folder, and names what comes out.

In a folder every volume and image below it is taken, a .hdr + .img pair once. Left out are hidden
files and labels: files whose name ends as those of the known datasets and of our own output do
(`_label`, `_mask`, `_seg`, `_overlay`, ...), and files in folders called `mask`, `labels` and the
like. A file that is named directly is always taken.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Sequence

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
  """

  scans: list[Scan]
  labels_skipped: int = 0
  images_skipped: int = 0


def find(input_path: pathlib.Path, output_dir: pathlib.Path, *, volumes_first: bool) -> ScanList:
  """Returns what to predict.

  Args:
    input_path: File or folder.
    output_dir: What lies in it is left out, unless it is the input itself.
    volumes_first: The network was trained on volumes: images beside volumes are left out.

  Raises:
    InputError: There is nothing to predict, or two inputs would write one output.
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
  scans, labels = _scans_below(input_path, output_dir)
  image_files = 0
  if volumes_first and any(scan.kind == "volume" for scan in scans):
    image_files = sum(scan.kind == "image" for scan in scans)
    scans = [scan for scan in scans if scan.kind == "volume"]
  if not scans:
    raise InputError(
        f"--input {input_path} must hold volumes or images. None was found"
        + (f"; {labels} files were taken for labels. Name a file directly." if labels else ".")
    )
  _refuse_collisions(scans)
  return ScanList(scans, labels, image_files)


def _scans_below(
    folder: pathlib.Path, output_dir: pathlib.Path
) -> tuple[list[Scan], int]:
  """Returns the scans below a folder, and how many files were taken for labels."""
  outputs = output_dir.resolve()
  skip_outputs = outputs != folder.resolve()
  scans, labels = [], 0
  for path in sorted(folder.rglob("*")):
    relative = path.relative_to(folder)
    if any(part.startswith(".") for part in relative.parts) or not path.is_file():
      continue
    if skip_outputs and path.resolve().is_relative_to(outputs):
      continue
    scan = _scan(path, relative.parent)
    if scan is None or _is_second_of_pair(path):
      continue
    if _is_label(scan):
      labels += 1
    else:
      scans.append(scan)
  return scans, labels


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


def _refuse_collisions(scans: Sequence[Scan]) -> None:
  seen: dict[pathlib.Path, Scan] = {}
  for scan in scans:
    target = scan.label_path(pathlib.Path())
    if other := seen.get(target):
      raise InputError(
          f"{other.path} and {scan.path} would both be written to {target}. Predict them into"
          " different folders."
      )
    seen[target] = scan
