"""What a raw folder holds, found before anything is written: cases, problems, what is left out.

A case is what is read in one go: a scan with its label, or the series of images of one person.
All that is checked here needs headers only. Names are found in any case, and every file that no
record comes from is listed: nothing is left out silently.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from flexunet.core import errors
from flexunet.core.errors import InputError
from flexunet.imaging import scan_files

_SEARCH_DEPTH = 3
# Beside the raw data: whose the pseudonyms of built datasets are (`subject_names`).
KEY_NAME = "flexunet_subject_key.json"
# What operating systems, archives and builds strew about; no part of any dataset.
_LITTER = {".ds_store", "thumbs.db", "desktop.ini", "__macosx", KEY_NAME}


@dataclasses.dataclass(frozen=True)
class Case:
  """One scan, or one series of images.

  Attributes:
    key: Unique and stable; record keys begin with it. No path, no free text of the source.
    subject: Stable pseudonym of the person.
    volume: Stable pseudonym of the scan.
    files: All files of the case by role, e.g. {"image": ..., "label": ...}.
    labelled: False puts the case into the split `unlabeled`.
    stratum: Subjects of one stratum are spread over the splits in the split's ratios.
    fold: Cross-validation fold where the publisher fixed one; None lets the build decide.
    split: train, validation or test where the publisher fixed it; None lets the build decide. A
      subject whose cases differ in it is left divided; the builder warns of it by name.
    details: Whatever else the dataset's `slices_of` needs: numbers, strings, None, lists and
      dicts of them, for it travels to worker processes as JSON.
  """

  key: str
  subject: str
  volume: str
  files: Mapping[str, pathlib.Path]
  labelled: bool = True
  stratum: str = ""
  fold: int | None = None
  split: str | None = None
  details: Any = None

  @property
  def num_bytes(self) -> int:
    """Size of all its files."""
    return sum(path.stat().st_size for path in self.files.values())

  def to_json(self) -> dict[str, Any]:
    """Returns it as JSON, for a worker process."""
    files = {role: os.fspath(path) for role, path in self.files.items()}
    fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    return {**fields, "files": files}

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> Case:
    """Reads what `to_json` wrote."""
    files = {role: pathlib.Path(path) for role, path in values["files"].items()}
    return cls(**{**values, "files": files})

  def state(self, root: pathlib.Path) -> str:
    """Returns a digest that changes when a file of the case does (name, size or time)."""
    parts = [self.key, self.subject, self.volume, str(self.fold), repr(self.details)]
    for role, path in sorted(self.files.items()):
      stat = path.stat()
      name = path.relative_to(root).as_posix()
      parts.append(f"{role}:{name}:{stat.st_size}:{stat.st_mtime_ns}")
    return hashlib.sha256(os.fsencode("\n".join(parts))).hexdigest()


class NothingFoundError(errors.InputError):
  """A raw folder holds nothing of the dataset that was looked for."""


class Findings:
  """Collects what a look through a raw folder finds.

  Attributes:
    root: The raw folder.
    cases: What will be built.
    left_out: {file name relative to the root: reason}; goes into the build report.
    warnings: Lines that the build report and the user get.
    problems: One line each; a single one prevents the build.
    release: Which of several published forms the folder holds; "" where there is one only.
    choices: Subject -> what was found and chosen with its reason, for the user and the report.
    series: Chooses DICOM series by number or by the end of their UID; "" takes all.
    details: Whatever else the dataset's `decide` needs.
  """

  def __init__(self, root: pathlib.Path):
    self.root = pathlib.Path(root)
    self.cases: list[Case] = []
    self.left_out: dict[str, str] = {}
    self.warnings: list[str] = []
    self.problems: list[str] = []
    self.release = ""
    self.series = ""
    self.choices: dict[str, str] = {}
    self.details: Any = None

  def add(self, case: Case) -> None:
    """Notes a case to be built."""
    self.cases.append(case)

  def leave_out(self, path: pathlib.Path, reason: str) -> None:
    """Notes a file of the source that gets no record, and why.

    Of a scan in a format that is not read, the format is the reason, and what converts it.
    """
    if scan_files.unread_ending(path):
      reason = f"{scan_files.unread_ending(path)}: {scan_files.reason_unread(path)}"
    self.left_out[self.relative(path)] = reason

  def warn(self, text: str) -> None:
    """Notes a line for the build report and the user."""
    self.warnings.append(text)

  def problem(self, text: str) -> None:
    """Notes what is wrong: name the file, what must hold, what came."""
    self.problems.append(text)

  def relative(self, path: pathlib.Path) -> str:
    """Returns the file's name below the root; no local path may enter a report.

    Bytes that are no UTF-8 are escaped, for a report is.
    """
    try:
      name = pathlib.Path(path).relative_to(self.root).as_posix()
    except ValueError:
      name = pathlib.Path(path).name
    return os.fsencode(name).decode("utf-8", "backslashreplace")

  def finish(self, expected_layout: str) -> None:
    """Adds what holds for every dataset and raises all problems at once.

    Raises:
      InputError: All problems of the folder, the first ten in full.
    """
    self._check_keys()
    self._check_names()
    self._check_links()
    self._drop_unlabelled_of_labelled()
    if not self.problems and not self.cases:
      raise NothingFoundError(
          f"{self.root}: nothing of this dataset was found in the folder. Expected layout:"
          f" {expected_layout}.{self._formats_not_read()}"
      )
    if self.problems:
      raise errors.from_problems(
          self.problems, f"Nothing was built. Expected layout: {expected_layout}."
      )
    self.cases.sort(key=lambda case: case.key)

  def _formats_not_read(self) -> str:
    """Returns a sentence on the scans below the root that no program here reads, led by a blank."""
    counts: dict[str, int] = {}
    for _, _, names in os.walk(self.root):
      for name in names:
        if ending := scan_files.unread_ending(name):
          counts[ending] = counts.get(ending, 0) + 1
    found = "; ".join(
        f"{count} {ending} ({scan_files.reason_unread('scan' + ending)})"
        for ending, count in sorted(counts.items())
    )
    return f" It holds {found}." if found else ""

  def _check_keys(self) -> None:
    seen: dict[str, Case] = {}
    for case in self.cases:
      if first := seen.get(case.key):
        files = [self.relative(next(iter(c.files.values()))) for c in (first, case)]
        self.problem(f"{files[1]}: duplicate of {files[0]}: both are {case.key!r}; keep one.")
      seen[case.key] = case

  def _check_names(self) -> None:
    for path in self._files():
      if not _is_utf8(path.relative_to(self.root) if path.is_relative_to(self.root) else path):
        self.problem(f"{self.relative(path)}: a file name must be UTF-8. Rename it.")

  def _check_links(self) -> None:
    root = os.path.realpath(self.root)  # Unlike Path.resolve it survives a link to itself.
    links = []
    for path in self._files():
      real = pathlib.Path(os.path.realpath(path))
      if not real.is_relative_to(root):  # The file, or a folder above it, is a link.
        self.problem(
            f"{self.relative(path)}: a link that leads out of the folder; put the file itself"
            " there."
        )
      elif path.is_symlink():
        links.append(path)
    if links:
      self.warn(
          f"Links to files inside the folder were followed: {len(links)}, such as"
          f" {self.relative(links[0])}."
      )

  def _files(self) -> list[pathlib.Path]:
    """Returns the files of all cases, each once."""
    return sorted({path for case in self.cases for path in case.files.values()})

  def _drop_unlabelled_of_labelled(self) -> None:
    labelled = {case.subject for case in self.cases if case.labelled}
    for case in [c for c in self.cases if not c.labelled and c.subject in labelled]:
      self.cases.remove(case)
      for path in case.files.values():
        self.leave_out(path, "unlabelled scan of a subject that has labelled ones")


@dataclasses.dataclass
class Notes:
  """What reading one case found, for the build report; of JSON types.

  Attributes:
    histograms: {mask file kind: {stored value: voxels}}.
    facts: Anything worth a line for this volume, by name.
    left_out: {file name relative to the root: reason}.
    warnings: Lines that the build report and the user get.
    slices_left_out: {reason: slices}, of slices that the options of the build leave out.
  """

  histograms: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
  facts: dict[str, Any] = dataclasses.field(default_factory=dict)
  left_out: dict[str, str] = dataclasses.field(default_factory=dict)
  warnings: list[str] = dataclasses.field(default_factory=list)
  slices_left_out: dict[str, int] = dataclasses.field(default_factory=dict)

  def count_values(self, kind: str, values: Iterable[Any], counts: Iterable[Any]) -> None:
    """Adds the values of a mask file, and how often each occurs, to the histogram of its kind."""
    histogram = self.histograms.setdefault(kind, {})
    for value, count in zip(values, counts, strict=True):
      name = f"{value:g}"
      histogram[name] = histogram.get(name, 0) + int(count)


def children(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns what lies in a folder, sorted, without hidden files and litter.

  Raises:
    InputError: When the folder cannot be read.
  """
  try:
    return sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".") and path.name.lower() not in _LITTER
    )
  except OSError as error:
    raise unreadable(error) from error


def unreadable(error: OSError) -> InputError:
  """Returns the error for a file or folder of the source that the system does not let be read."""
  return InputError(
      f"{error.filename}: cannot be read ({error.strerror}). Make it readable, or take it out of"
      " the raw folder."
  )


def _is_utf8(path: pathlib.Path) -> bool:
  try:
    os.fsencode(path).decode("utf-8")
  except UnicodeDecodeError:
    return False
  return True


def child(folder: pathlib.Path, *names: str) -> pathlib.Path | None:
  """Returns the child of one of these names; case, spaces, hyphens and underscores are equal."""
  wanted = {_plain(name) for name in names}
  return next((path for path in children(folder) if _plain(path.name) in wanted), None)


def folder_in(folder: pathlib.Path, *names: str) -> pathlib.Path:
  """Returns the child folder of one of these names.

  Raises:
    InputError: When there is none.
  """
  found = child(folder, *names)
  if found is None or not found.is_dir():
    raise InputError(f"{folder}: has no folder {names[0]}.")
  return found


def find_folder(root: pathlib.Path, *names: str) -> pathlib.Path | None:
  """Returns the folder nearest to `root` that has a child of one of these names.

  Users point at the folder itself, at what an archive was unpacked into, or one above.
  """
  level = [root]
  for _ in range(_SEARCH_DEPTH + 1):
    for folder in level:
      if child(folder, *names) is not None:
        return folder
    level = [path for folder in level for path in children(folder) if path.is_dir()]
  return None


def volumes_by_stem(folder: pathlib.Path, findings: Findings) -> dict[str, pathlib.Path]:
  """Returns {stem: file} of the volumes in a folder; a pair is named by its header.

  A DICOM series, in the folder or in a child folder, is named by its first file, and has the name
  of its folder. Two volumes of one stem are a problem; files that are no volumes are left out with
  a line.
  """
  found: dict[str, dict[str, pathlib.Path]] = {}
  inside = children(folder)
  files = [path for path in inside if path.is_file() and scan_files.is_dicom(path)]
  series = _series_by_stem(files, findings)
  for child_folder in inside:
    if child_folder.is_dir():
      slices = [one for one in children(child_folder) if one.is_file() and scan_files.is_dicom(one)]
      series.update(_series_by_stem(slices, findings, child_folder.name))
  for stem, path in series.items():
    found[stem] = {".dcm": path}
  elsewhere = {*files, *scan_files.detached_files(inside)}
  for path in inside:
    if path.is_dir() or path in elsewhere:
      continue
    if not scan_files.is_scan(path):
      findings.leave_out(path, scan_files.reason_unread(path))
      continue
    kind = scan_files.ending_of(path)[:4]
    others = found.setdefault(scan_files.stem_of(path), {})
    # A header and its voxels belong together; anything else of one name is a second volume.
    if others and (kind in others or {kind, *others} != {".hdr", ".img"}):
      first = others.get(kind) or next(iter(others.values()))
      findings.problem(
          f"{findings.relative(path)}: duplicate of {findings.relative(first)}; keep one of them."
      )
    others.setdefault(kind, path)
  return {
      stem: kinds.get(".hdr") or next(iter(kinds.values())) for stem, kinds in found.items()
  }


def _series_by_stem(
    files: list[pathlib.Path], findings: Findings, name: str = ""
) -> dict[str, pathlib.Path]:
  """Returns {stem: first file} of the DICOM scans and segmentations among the files of a folder.

  With a `name` the folder is that of one scan: several in it are a problem.
  """
  if not files:
    return {}
  listing = scan_files.gather(files, findings.series, labels=True)
  for path, reason in listing.not_read.items():
    findings.leave_out(path, reason)
  if not name or not listing.scans:
    return {scan.stem: scan.path for scan in listing.scans}
  if len(listing.scans) > 1:
    folder = files[0].parent
    shown = ", ".join(scan.stem for scan in listing.scans[:5])
    findings.problem(
        f"{findings.relative(folder)}: holds {len(listing.scans)} DICOM scans ({shown}); keep the"
        " one that belongs to the label, or choose it by --series=NUMBER where the dataset has that"
        " option."
    )
  return {name: listing.scans[0].path}


def volume_files(role: str, path: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns {role: file}, and what else belongs to it as {role + "_voxels", ...: file}."""
  first, *others = scan_files.files_of(path)
  files = {role: first}
  for number, other in enumerate(others):
    files[f"{role}_voxels{f'_{number}' if number else ''}"] = other
  return files


def check_volumes(
    findings: Findings,
    image: pathlib.Path,
    label: pathlib.Path | None,
    component: int | None = None,
) -> bool:
  """Reads the headers of a scan and its label; notes what is wrong, returns whether all is well."""
  shapes: list[tuple[int, ...]] = []
  try:
    scan = scan_files.read_header(image, component)
    shapes.append(scan.shape)
    if label is not None:
      shapes.append(scan_files.label_shape(label, scan))
  except InputError as error:
    findings.problem(str(error))
    return False
  if shapes[0] != shapes[-1]:
    findings.problem(
        f"{label}: a label must lie on the grid of its scan. Scan {shapes[0]}, label {shapes[-1]}."
    )
    return False
  return True


def unpaired(findings: Findings, files: Iterable[pathlib.Path], lacks: str) -> None:
  """Notes files that lack their counterpart."""
  for path in files:
    findings.problem(f"{findings.relative(path)}: has no {lacks}. Add it or remove this file.")


def _plain(name: str) -> str:
  return re.sub(r"[\s_-]+", " ", name).lower()


def note(findings: Findings, reason: str = "no part of the dataset's layout") -> None:
  """Leaves out, with a reason, all files that neither a case nor a line names."""
  used = {path for case in findings.cases for path in case.files.values()}
  _walk(findings, findings.root, used, reason)


def _walk(findings: Findings, folder: pathlib.Path, used: set[pathlib.Path], reason: str) -> None:
  for path in children(folder):
    if findings.relative(path) in findings.left_out:
      continue
    # A linked folder may lead in circles; linked files are looked at where they are used.
    if path.is_dir() and not path.is_symlink():
      _walk(findings, path, used, reason)
    elif path not in used:
      findings.leave_out(path, _reason_of_link(path) if path.is_symlink() else reason)


def _reason_of_link(path: pathlib.Path) -> str:
  if not path.exists():
    return "a link that leads nowhere"
  return "a link to a folder, which is not searched" if path.is_dir() else "a link to a file"
