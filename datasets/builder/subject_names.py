"""How records, tables and reports call persons and files: by codes or pseudonyms, never by name.

A name of the raw folder is kept where it is a code: one that the dataset's published layout
defines, or one whose letters several subjects of the folder share (hippocampus_001, sub-01).
Anything else, such as Mueller_Hans_1954, becomes subject_<12 hex digits>: HMAC-SHA256 of the name
with a random salt, which is kept with the names in a key file beside the raw data. The same key
gives the same pseudonyms in later builds.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import hmac
import json
import math
import os
import pathlib
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from flexunet.core import config_fields, files
from flexunet.core.config_fields import knob
from flexunet.core.errors import InputError
from flexunet.datasets.builder.raw_folder import KEY_NAME, Case, Findings

MODES = ("auto", "keep", "pseudonym")
# Words that name nobody: before the number of anybody, and of common layouts.
COMMON_WORDS = frozenset([
    "acq", "adc", "anat", "ax", "axial", "brain", "case", "cases", "changes", "classes", "control",
    "coronal", "ct", "dataset", "derivatives", "description", "dseg", "dwi", "final", "flair",
    "gre", "hc", "head", "id", "image", "images", "imagestr", "imagests", "img", "label", "labels",
    "labelstr", "labelsts", "left", "lesion", "license", "mask", "masks", "mr", "mri", "p",
    "palette", "participants", "pat", "patient", "patients", "pet", "phantom", "probseg", "pt",
    "rawdata", "readme", "right", "run", "s", "sagittal", "scan", "scans", "seg", "segmentation",
    "segmentations", "ses", "session", "slice", "slices", "splits", "stroke", "sub", "subj",
    "subject", "subjects", "t", "test", "testing", "tr", "train", "training", "ts", "val", "valid",
    "validation", "vol", "volume", "volumes", "w", "wi",
])  # fmt: skip
# Endings that say what a file is; any other may be a part of a name.
_SUFFIX = re.compile(
    r"(\.nii|\.hdr|\.img|\.tar)?\.(nii|hdr|img|gz|zip|tar|mgz|mgh|nrrd|nhdr|mha|mhd|dcm|ima|png|jpe?g"
    r"|bmp|tiff?|gif|np[yz]|mat|txt|md|pdf|docx?|xlsx?|csv|tsv|json|xml|html?|ya?ml|log|bak|py|sh)$",
    re.IGNORECASE,
)
_DATE = re.compile(
    r"(?<!\d)(?:(?:19|20)\d\d[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:0[1-9]|[12]\d|3[01])"
    r"|(?:0[1-9]|[12]\d|3[01])[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:19|20)\d\d)(?!\d)"
)
_SHARE, _HEX_DIGITS = 0.05, 12
_LOCK_SECONDS = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class NameOptions(config_fields.Checked):
  """How subjects are called; no part of a config, for it changes no image."""

  subject_names: str = knob(
      "auto",
      "Names of subjects in the records: auto keeps codes (sub-01, hippocampus_001) and makes"
      " pseudonyms of the rest, keep keeps all, pseudonym keeps none.",
      choices=MODES,
  )
  key_file: str | None = knob(
      None, "Where the key of the pseudonyms is kept, outside of --data_dir.",
      unset=f"{KEY_NAME} in the raw folder",
  )  # fmt: skip


class SubjectNames:
  """The names of one build.

  Attributes:
    pseudonyms: {subject as the raw folder calls it: pseudonym}, of those that are no codes.
    key_path: Where the key file lies, or would.
    uses_key: Whether a name is made by the key.
  """

  def __init__(
      self,
      findings: Findings,
      options: NameOptions,
      published: str = "",
      data_dir: pathlib.Path | None = None,
  ):
    """Decides on all names; writes nothing.

    Args:
      findings: The raw folder.
      options: What the user asked for.
      published: Regular expression of the subjects that the dataset's published layout defines.
      data_dir: Folder of built datasets, in which no key may lie; None in a dry run without one.

    Raises:
      InputError: The key file is damaged, or would lie in `data_dir`.
    """
    self._root, self._mode = findings.root, options.subject_names
    self.key_path = pathlib.Path(options.key_file or findings.root / KEY_NAME).expanduser()
    if self.key_path.is_relative_to(findings.root):  # It is no file of the source.
      findings.left_out.pop(findings.relative(self.key_path), None)
    self._codes = _Codes(findings, published, hide=self._mode == "pseudonym")
    self._key = _read_key(self.key_path)
    self._salt = bytes.fromhex(self._key["salt"]) if self._key else secrets.token_bytes(32)
    self.uses_key = False
    self._files: dict[str, str] = {}
    self.pseudonyms = {
        subject: f"subject_{self._digest(subject)}"
        for subject in sorted({case.subject for case in findings.cases})
        if not self._is_kept(subject)
    }
    for case in findings.cases:
      self.written(case)  # Shows whether the key is needed.
    if self.uses_key and data_dir is not None:
      _check_place(self.key_path, data_dir)

  @property
  def is_new_key(self) -> bool:
    """Whether there is no key file yet."""
    return not self._key

  def _is_kept(self, subject: str) -> bool:
    if self._mode == "auto":
      return self._codes.is_code(subject)
    return self._mode == "keep"

  def _digest(self, name: str, digits: int = _HEX_DIGITS) -> str:
    self.uses_key = True
    code = hmac.new(self._salt, name.encode("utf-8", "surrogateescape"), hashlib.sha256)
    return code.hexdigest()[:digits]

  def subject(self, subject: str) -> str:
    """Returns how records call a subject of the raw folder."""
    return self.pseudonyms.get(subject, subject)

  def written(self, case: Case) -> Case:
    """Returns a case with the key, subject and volume under which its records are written."""
    return dataclasses.replace(
        case,
        key=self._of_scan(case.key, case.subject),
        subject=self.subject(case.subject),
        volume=self._of_scan(case.volume, case.subject),
    )

  def _of_scan(self, name: str, subject: str) -> str:
    """Returns a name of a scan: that of its subject, and what follows where that is a code."""
    person = self.subject(subject)
    if self._mode == "keep" or (name == subject and person == subject):
      return name
    rest = name.replace(subject, "", 1) if subject in name else f"_{name}"
    if not rest.strip("_-. ") and subject in name:
      return person
    if person == subject and self._codes.is_code(name):
      return name
    if subject in name and self._codes.is_code_of_scan(rest):
      return name.replace(subject, person, 1)
    return f"{person}_{self._digest(name, 6)}"

  def file(self, relative: str) -> str:
    """Returns how a report calls a file of the source: as it is where it is all codes.

    Others are numbered; the key file, where there is one, and a dry run say which is which.
    """
    if self._mode == "keep" or self._codes.is_path_of_codes(relative):
      return relative
    if relative not in self._files:
      suffix = found[0].lower() if (found := _SUFFIX.search(relative)) else ""
      self._files[relative] = f"file_{len(self._files) + 1:04d}{suffix}"
    return self._files[relative]

  def text(self, line: str) -> str:
    """Returns a line for the report without names of persons and files that are no codes."""
    if self._mode == "keep":
      return line
    line = line.replace(os.fspath(self._root) + os.sep, "")
    for path in self._codes.paths_in(line):
      folder, _, name = path.rpartition("/")
      hides = not (folder and self._codes.is_path_of_codes(name))
      line = line.replace(path, self.file(path) if hides else f"*/{name}")
    for subject in sorted(self.pseudonyms, key=len, reverse=True):
      line = _replace_word(line, subject, self.pseudonyms[subject])
    for name in self._codes.names_in(line):
      line = _replace_word(line, name, self.file(name))
    return line

  def as_in_source(self, line: str) -> str:
    """Returns a line of the report with files as the raw folder names them: for the terminal."""
    for path, label in self._files.items():
      line = line.replace(label, path)
    return line

  def about(self) -> dict[str, Any]:
    """Returns what the report says of the names."""
    return {"asked": self._mode, "pseudonyms": len(self.pseudonyms)}

  def save(self, dataset: str) -> None:
    """Writes the key file, where the key is used; names of earlier builds stay in it.

    Args:
      dataset: Whose files were numbered; others keep their numbers.

    Raises:
      InputError: It cannot be written, or another build has just made another key.
    """
    if not self.uses_key:
      return
    with _locked(self.key_path):
      before = _read_key(self.key_path)
      if before and before["salt"] != self._salt.hex():
        raise InputError(
            f"{self.key_path}: another build has just made this key. Run the same command again."
        )
      subjects = {pseudonym: subject for subject, pseudonym in self.pseudonyms.items()}
      numbered = {label: path for path, label in self._files.items()}
      self._key = {
          "about": "Whose the pseudonyms of built datasets are. Keep this file secret, and keep it:"
                   " without it a later build gives other pseudonyms.",
          "salt": self._salt.hex(),
          "subjects": {**before.get("subjects", {}), **subjects},
          "files": {**before.get("files", {}), dataset: numbered},
      }  # fmt: skip
      if self._key != before:
        _write_key(self.key_path, self._key)


class _Codes:
  """Which names of a raw folder are codes: their letters are shared, only their digits differ."""

  def __init__(self, findings: Findings, published: str, hide: bool):
    self._hide = hide
    self._published = re.compile(published) if published else None
    self._subjects = _owners((case.subject, case.subject) for case in findings.cases)
    self._parts = _owners(_parts_of(findings))
    self._scans = _owners(
        (case.subject, name.replace(case.subject, "", 1))
        for case in findings.cases
        for name in (case.key, case.volume)
    )
    count = len({case.subject for case in findings.cases})
    self._needed = max(2, math.ceil(_SHARE * count))
    self._paths = sorted(
        {findings.relative(path) for case in findings.cases for path in case.files.values()}
        | set(findings.left_out),
        key=lambda path: (-len(path), path),
    )

  def is_code(self, subject: str) -> bool:
    """Returns whether a subject's name says nothing but a number."""
    if self._hide:
      return False
    if self._published is not None and self._published.fullmatch(subject):
      return True
    return self._is_shared(subject, self._subjects)

  def is_code_of_scan(self, rest: str) -> bool:
    """Returns whether what follows the subject in the name of a scan is a code."""
    return self._is_shared(rest, self._scans)

  def is_path_of_codes(self, relative: str) -> bool:
    """Returns whether every folder and the file of a path are codes."""
    return all(self._is_code_part(part) for part in relative.split("/"))

  def _is_code_part(self, part: str) -> bool:
    stem = _SUFFIX.sub("", part)
    if self._hide and any(character.isdigit() for character in stem):
      return False
    if self._published is not None and self._published.fullmatch(stem):
      return True
    return self._is_shared(stem, self._parts)

  def _is_shared(self, name: str, owners: Mapping[str, set[str]]) -> bool:
    if _DATE.search(name):
      return False
    if _is_common(name):
      return True
    return len(owners.get(_skeleton(name), ())) >= self._needed

  def paths_in(self, line: str) -> list[str]:
    """Returns the paths of the source that a line names and that are no codes, longest first."""
    return [path for path in self._paths if path in line and not self.is_path_of_codes(path)]

  def names_in(self, line: str) -> list[str]:
    """Returns the same of the last parts of paths, and of folders."""
    parts = {
        name
        for path in self._paths
        for part in path.split("/")
        for name in (part, _SUFFIX.sub("", part))
        if name in line
    }
    return sorted((p for p in parts if not self._is_code_part(p)), key=len, reverse=True)


def _owners(names: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
  """Returns {name with # for its numbers: subjects that have one}."""
  found: dict[str, set[str]] = collections.defaultdict(set)
  for subject, name in names:
    found[_skeleton(name)].add(subject)
  return found


def _parts_of(findings: Findings) -> Iterator[tuple[str, str]]:
  for case in findings.cases:
    for path in case.files.values():
      for part in findings.relative(path).split("/"):
        yield case.subject, _SUFFIX.sub("", part)


def _skeleton(name: str) -> str:
  return re.sub(r"\d+", "#", name.lower())


def _replace_word(line: str, word: str, other: str) -> str:
  """Replaces a name where it stands alone, not within a longer one."""
  pattern = rf"(?<![^\W_]){re.escape(word)}(?![^\W_])"
  return re.sub(pattern, lambda _: other, line, flags=re.IGNORECASE)


def _check_place(path: pathlib.Path, data_dir: pathlib.Path) -> None:
  if pathlib.Path(os.path.realpath(path)).is_relative_to(os.path.realpath(data_dir)):
    raise InputError(
        f"--key_file must lie outside of --data_dir {data_dir}, for whoever gets the datasets must"
        f" not get the names. Got: {path}. Name another place."
    )


def _read_key(path: pathlib.Path) -> dict[str, Any]:
  """Returns the key file; empty where there is none yet."""
  if not path.exists():
    return {}
  try:
    key = files.read_json(path)
    if len(bytes.fromhex(key["salt"])) < 16 or not isinstance(key["subjects"], dict):
      raise ValueError("its salt is too short, or its subjects are no names")
    return key
  except (InputError, ValueError, KeyError, TypeError) as error:
    raise InputError(
        f"{path}: must be the key file that a build wrote, but cannot be read ({error}). Put it"
        " back, or move it away to get new pseudonyms."
    ) from error


def _write_key(path: pathlib.Path, key: Mapping[str, Any]) -> None:
  text = json.dumps(key, indent=1, ensure_ascii=False) + "\n"
  try:
    files.write_bytes(path, text.encode("utf-8", "backslashreplace"), mode=0o600)
  except OSError as error:
    raise _unwritable(path, error) from error


def _unwritable(path: pathlib.Path, error: OSError) -> InputError:
  return InputError(
      f"{path}: the key of the pseudonyms cannot be written ({error.strerror}). Name another place"
      " outside of --data_dir with --key_file=PATH, or keep the names with --subject_names=keep."
  )


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
  """Holds the system's lock of the folder of the key file, for as long as a write takes."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
  except OSError as error:
    if os.name != "nt":  # Windows opens no folders, and has no such locks.
      raise _unwritable(path, error) from error
    yield
    return
  try:
    until = time.monotonic() + _LOCK_SECONDS
    while True:
      try:
        files.lock_stream(folder)
        break
      except BlockingIOError:
        if time.monotonic() > until:
          raise
        time.sleep(0.05)
      except OSError:  # The file system offers no locks.
        break
    yield
  finally:
    os.close(folder)


def names_in_key(path: pathlib.Path) -> set[str]:
  """Returns the names of subjects and files that a key file holds.

  Raises:
    InputError: There is no such file, or it is damaged.
  """
  path = path.expanduser()
  key = _read_key(path)
  if not key:
    raise InputError(f"--key_file {path}: there is no such file.")
  files_of = [name for numbered in key.get("files", {}).values() for name in numbered.values()]
  stems = {without_suffix(part) for name in files_of for part in str(name).split("/")}
  return {*map(str, key["subjects"].values()), *(s for s in stems if not _is_common(s))}


def without_suffix(name: str) -> str:
  """Returns a file name without the endings that say what the file is."""
  return _SUFFIX.sub("", name)


def has_date(text: str) -> bool:
  """Returns whether a text holds a day of the calendar, as 2019-03-04, 20190304 or 04.03.2019."""
  return bool(_DATE.search(text))


def no_codes(names: Iterable[str]) -> set[str]:
  """Returns the names of files and folders that no other one differs from in digits alone."""
  found = set(names)
  counts = collections.Counter(map(_skeleton, found))
  return {
      name
      for name in found
      if (counts[_skeleton(name)] < 2 or _DATE.search(name))
      and not _is_common(name)
  }


def _is_common(name: str) -> bool:
  """Returns whether a name is made of words and numbers that name nobody."""
  return set(re.findall(r"[^\W\d_]+", name.lower())) <= COMMON_WORDS


def lines(names: SubjectNames, subjects: Sequence[str]) -> list[str]:
  """Returns what a dry run says of the names: which subjects become pseudonyms, and by what key."""
  made = [subject for subject in subjects if subject in names.pseudonyms]
  if not made:
    return [f"Subjects keep their names, which are codes: {', '.join(subjects[:3])} ..."]
  shown = [
      f"  {subject} -> {'subject_<12 hex digits>' if names.is_new_key else names.subject(subject)}"
      for subject in made
  ]
  key = "a new key" if names.is_new_key else "the key"
  head = f"{len(made)} of {len(subjects)} subjects become pseudonyms by {key} in {names.key_path}:"
  return [head, *shown]
