"""Finds what to predict in a file or folder, and names what comes out.

In a folder every volume and image below it is taken, a .hdr + .img pair and a DICOM series once.
Left out are hidden files and labels: files whose name ends as those of the known datasets and of
our own output do (`_label`, `_mask`, `_seg`, `_overlay`, ...), and files in folders called `mask`,
`labels` and the like, which the layouts of MSD, nnU-Net and BIDS name `labelsTr`, `labelsTs` and
`derivatives`. Only what lies below the folder that is named decides: a file, or a folder of labels,
that is named directly is taken.
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
from flexunet.prediction import cases

# HFH_001_Hipp_Labels, 12_HGE_Seg, 3-LesionSeg-T2, GU001_label_deface, our own <stem>_overlay.
_LABEL_STEM = re.compile(
    r".*[-_ .](labels?|masks?|(hge_)?seg|dseg|probseg|lesionseg[-_]\w+|overlay|color|probability"
    r"|uncertainty|margin_[\w.-]+)"
    r"(_deface)?",
    re.IGNORECASE,
)
# labelsTr and labelsTs of MSD and nnU-Net, derivatives of BIDS, masks below train, valid, test.
_LABEL_FOLDER = re.compile(
    r"(masks?|labels?|segmentations?|full[-_ ]head[-_ ]segmentation)"
    r"([-_ ]?(tr|ts|va|val|train|valid|validation|test))?"
    r"|derivatives|ground[-_ ]?truth",
    re.IGNORECASE,
)
# Folders of a subject in BIDS that hold no anatomy, and that of what has not become BIDS.
_NOT_ANATOMY = ("func", "dwi", "fmap", "perf", "pet", "eeg", "meg", "ieeg", "mrs", "micr", "nirs")
_NOT_BIDS = "sourcedata"


@dataclasses.dataclass(frozen=True)
class Scan:
  """One thing to predict.

  Attributes:
    path: The file; the header of a pair, the first file of a DICOM series.
    kind: "volume" or "image".
    folder: Where it lies below the input folder; outputs mirror it.
    stem: Its name without suffixes.
    suffix: As the file has it, ".gz" included.
    others: Files of its further channels, in the order of the run's.
    label_suffix: That of its label where it is another one; "" where it is the same.
    components: Volumes along the fourth axis of `path` that are its channels, in the order of the
      run's; () where each channel is a file.
  """

  path: pathlib.Path
  kind: str
  folder: pathlib.PurePath
  stem: str
  suffix: str
  others: tuple[pathlib.Path, ...] = ()
  label_suffix: str = ""
  components: tuple[int, ...] = ()

  def output(self, output_dir: pathlib.Path, ending: str) -> pathlib.Path:
    """Returns the path of an output, e.g. ending "_label.png"."""
    return output_dir / self.folder / f"{self.stem}{ending}"

  def label_path(self, output_dir: pathlib.Path) -> pathlib.Path:
    """Returns the path of the label, for a volume in its format or in that asked for."""
    suffix = self.label_suffix or self.suffix
    return self.output(output_dir, f"_label{suffix if self.kind == 'volume' else '.png'}")


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
    channels_skipped: How many files hold a channel or modality that the run does not know.
    not_scans: {ending: number of files} of all else.
    dicom_skipped: {why: number of files} of the DICOM files that are no slices of a scan wanted.
  """

  scans: list[Scan]
  labels_skipped: int = 0
  images_skipped: int = 0
  problems: list[str] = dataclasses.field(default_factory=list)
  not_read: dict[str, int] = dataclasses.field(default_factory=dict)
  channels_skipped: int = 0
  not_scans: dict[str, int] = dataclasses.field(default_factory=dict)
  dicom_skipped: dict[str, int] = dataclasses.field(default_factory=dict)


def find(
    input_path: pathlib.Path,
    output_dir: pathlib.Path,
    *,
    volumes_first: bool,
    channel_names: Sequence[str] = (),
    output_format: str = "same",
    series: str = "",
) -> ScanList:
  """Returns what to predict.

  Args:
    input_path: File or folder.
    output_dir: What lies in it is left out, unless it is the input itself.
    volumes_first: The network was trained on volumes: images beside volumes are left out.
    channel_names: Of the run; the files of a case of several are joined.
    output_format: Of the labels of volumes, one of `scan_files.OUTPUT_FORMATS`.
    series: Chooses DICOM series by number or by the end of their UID; "" takes all.

  Raises:
    InputError: There is nothing to predict, or a label cannot have the format.
  """
  if output_dir.exists() and not output_dir.is_dir():
    raise InputError(f"--output_dir {output_dir} must be a folder. Got a file.")
  if input_path.is_file():
    listing = scan_files.gather([input_path])
    scan = _scan(input_path, pathlib.PurePath(), listing)
    if scan is None:
      raise InputError(
          f"--input {input_path} must be a volume ({scan_files.readable_endings()}) or an image"
          f" ({', '.join(pictures.SUFFIXES)})."
      )
    return ScanList([_with_label_suffix(_whole_case(scan, channel_names), output_format)])
  if not input_path.is_dir():
    raise InputError(f"--input {input_path} must be a file or a folder; there is none.")
  found = _scans_below(input_path, output_dir, series)
  scans, image_files = found.scans, 0
  if volumes_first and any(scan.kind == "volume" for scan in scans):
    image_files = sum(scan.kind == "image" for scan in scans)
    scans = [scan for scan in scans if scan.kind == "volume"]
  joined = _joined(scans, channel_names)
  scans, collisions = _without_collisions(joined.scans)
  problems = [*found.problems, *joined.problems, *collisions]
  skipped = found.channels_skipped + joined.channels_skipped
  if not scans and problems:
    raise errors.from_problems(problems, f"Nothing of --input {input_path} can be predicted.")
  if not scans:
    raise InputError(
        f"--input {input_path} must hold volumes or images. None was found"
        + _instead_found(dataclasses.replace(found, channels_skipped=skipped), channel_names)
    )
  scans = [_with_label_suffix(scan, output_format) for scan in scans]
  return dataclasses.replace(
      found,
      scans=scans,
      images_skipped=image_files,
      problems=problems,
      channels_skipped=skipped,
  )


def _joined(files: Sequence[Scan], channel_names: Sequence[str]) -> ScanList:
  """Returns one scan for each case, named after it, and what is wrong with the others."""
  scans = [own for one in files if (own := _stacked(one, channel_names)) is not None]
  whole = {scan.path for scan in scans}
  files = [one for one in files if one.path not in whole]
  joined = cases.join(
      [cases.ScanName(one.path, one.folder, one.stem) for one in files], channel_names
  )
  for case in joined.cases:
    first, *others = [files[position] for position in case.files]
    paths = tuple(other.path for other in others)
    scans.append(dataclasses.replace(first, stem=case.stem, others=paths))
  scans.sort(key=lambda scan: scan.path)
  return ScanList(scans, problems=joined.problems, channels_skipped=joined.skipped)


def _stacked(scan: Scan, channel_names: Sequence[str]) -> Scan | None:
  """Returns the case of a file that holds the channels of the run in its fourth axis, else None."""
  if scan.kind != "volume":
    return None
  try:
    components = components_of(scan.path, channel_names)
  except InputError:
    return None  # Reading it as a channel says what is wrong.
  return dataclasses.replace(scan, components=components) if components else None


def components_of(path: pathlib.Path, channel_names: Sequence[str]) -> tuple[int, ...]:
  """Returns which volumes along the fourth axis of a file are the channels of a run, in its order.

  Args:
    path: A scan.
    channel_names: Of the run; a run of fewer than two takes no file of four axes.

  Returns:
    Their positions from 0; () where the file has three axes, or does not hold these channels.

  Raises:
    InputError: The header cannot be read.
  """
  if len(channel_names) < 2 or (count := scan_files.num_volumes(path)) < 2:
    return ()
  return cases.components(path, count, channel_names)


def _whole_case(scan: Scan, channel_names: Sequence[str]) -> Scan:
  """Returns the case of a file that is named directly: of several channels, with those beside it.

  Raises:
    InputError: A channel is missing, or the file is none of the run's channels.
  """
  if len(channel_names) < 2:
    return scan
  if (stacked := _stacked(scan, channel_names)) is not None:
    return stacked
  paths = [path for path in sorted(scan.path.parent.iterdir()) if path.is_file()]
  listing = scan_files.gather(paths)
  parts = {file for one in listing.scans for file in one.files if file != one.path}
  beside = [_scan(path, scan.folder, listing) for path in paths if path not in parts]
  files = [one for one in beside if one and one.kind == scan.kind and not _is_label(one)]
  joined = _joined(files, channel_names)
  for case in joined.scans:
    if scan.path in (case.path, *case.others):
      return case
  # The line of its own case, where there is one.
  own = next((line for line in joined.problems if str(scan.path) in line), None)
  raise InputError(
      own
      or _unlike_the_run(scan, channel_names)
      or f"--input {scan.path} must be a channel of a whole case: one file each whose name ends in"
      f" {', '.join(channel_names)}, or in _0000, _0001, ... in this order."
  )


def _unlike_the_run(scan: Scan, channel_names: Sequence[str]) -> str:
  """Returns why a file of four axes does not hold the channels of the run; "" for others."""
  try:
    count = scan_files.num_volumes(scan.path) if scan.kind == "volume" else 1
  except InputError:
    return ""
  if count == 1:
    return ""
  return (
      f"--input {scan.path} must hold the channels {', '.join(channel_names)} of the training along"
      f" its fourth axis. It has {count} volumes; a dataset.json beside it may name them."
  )


def _with_label_suffix(scan: Scan, output_format: str) -> Scan:
  if scan.kind != "volume":
    return scan
  suffix = scan_files.label_ending(scan.suffix, output_format)
  return dataclasses.replace(scan, label_suffix=suffix)


def _instead_found(found: ScanList, channel_names: Sequence[str]) -> str:
  """Returns the end of the sentence that no scan was found."""
  text = "".join(
      f"; {count} {ending} ({scan_files.reason_unread('scan' + ending)})"
      for ending, count in found.not_read.items()
  )
  text += "".join(f"; {count} DICOM ({why})" for why, count in found.dicom_skipped.items())
  if labels := found.labels_skipped:
    text += f"; {labels} files were taken for labels. Name a file or their folder directly"
  if found.channels_skipped:
    text += f"; {found.channels_skipped} files are none of the channels of the run"
    text += f" ({', '.join(channel_names)})" if channel_names else ""
  return f"{text}."


def _scans_below(folder: pathlib.Path, output_dir: pathlib.Path, series: str) -> ScanList:
  """Returns the scans below a folder, and what else lies there."""
  outputs = os.path.realpath(output_dir)
  skip_outputs = outputs != os.path.realpath(folder)
  paths, problems = _files_below(folder)
  if skip_outputs:
    paths = [
        path for path in paths
        if not pathlib.Path(os.path.realpath(path)).is_relative_to(outputs)
    ]  # fmt: skip
  listing = scan_files.gather([path for path in paths if path.is_file()], series)
  parts = {file for scan in listing.scans for file in scan.files if file != scan.path}
  found = ScanList([], problems=problems)
  labels = skipped = 0
  for path in paths:
    if path in parts:
      continue
    scan = _scan(path, path.relative_to(folder).parent, listing)
    if scan is not None and _is_other_modality(scan):
      skipped += 1
    elif scan is not None and _is_label(scan):
      labels += 1
    elif not path.is_file():
      if scan is not None or not path.suffix:  # A dead link to anything else takes nothing away.
        problems.append(str(errors.missing_file(path)))
    elif scan is None:
      if scan_files.is_scan(path):  # By its name: it is DICOM, but none that is wanted.
        why = listing.not_read[path]
        found.dicom_skipped[why] = found.dicom_skipped.get(why, 0) + 1
      elif ending := scan_files.unread_ending(path):
        found.not_read[ending] = found.not_read.get(ending, 0) + 1
      else:
        ending = path.suffix.lower() or "no ending"
        found.not_scans[ending] = found.not_scans.get(ending, 0) + 1
    else:
      found.scans.append(scan)
  return dataclasses.replace(found, labels_skipped=labels, channels_skipped=skipped)


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


def _scan(
    path: pathlib.Path, folder: pathlib.PurePath, listing: scan_files.ScanListing
) -> Scan | None:
  """Returns the scan or image that a file is; one that is not there goes by its name."""
  if own := listing.by_path.get(path):
    # An ending in upper case is kept; files of DICOM may have none.
    suffix = path.name[-len(own.ending) :]
    suffix = suffix if suffix.lower() == own.ending else own.ending
    # What is named after its folder lies where that does.
    folder = folder if own.stem == scan_files.stem_of(path) else folder.parent
    return Scan(path, "volume", folder, own.stem, suffix)
  if path in listing.not_read and scan_files.is_scan(path):
    return None
  if suffix := scan_files.ending_of(path):
    return Scan(path, "volume", folder, path.name[: -len(suffix)], path.name[-len(suffix) :])
  if pictures.is_picture(path):
    return Scan(path, "image", folder, path.stem, path.suffix)
  return None


def _is_label(scan: Scan) -> bool:
  if _LABEL_STEM.fullmatch(scan.stem):
    return True
  return any(_LABEL_FOLDER.fullmatch(part) for part in scan.folder.parts)


def _is_other_modality(scan: Scan) -> bool:
  """Returns whether BIDS keeps a file where no anatomy is: diffusion, function, source data."""
  parts = scan.folder.parts
  if parts[:1] == (_NOT_BIDS,):
    return True
  return scan.stem.startswith("sub-") and any(part in _NOT_ANATOMY for part in parts)


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
