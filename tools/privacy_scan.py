"""Looks through a dataset or a run folder for what must not be passed on with it.

Home folders, names of this user and machine, e-mail addresses, entries of DICOM on patients, and,
where they are given, the names of a key file or of a raw folder. Containers are opened: TFRecords
and TensorBoard events by record, .npz, .keras and .zip by member, text chunks and EXIF of images
also where these lie within records or pages. Memory is bounded by the largest record.
"""

from __future__ import annotations

import base64
import binascii
import collections
import dataclasses
import functools
import gzip
import json
import pathlib
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from flexunet.core import private_paths
from flexunet.core.errors import InputError
from flexunet.datasets.builder import subject_names, tfrecord

_CHUNK_BYTES = 16 << 20
# Chunks overlap by this, so that nothing is cut in two.
_OVERLAP_BYTES = 1 << 10
_HEADER_BYTES = 1 << 16
# Shorter names occur by chance in compressed bytes: they are looked for in texts alone.
_LEAST_IN_BYTES = 6
_LEAST_WORD = 4
_TEXTS = (".json", ".csv", ".html", ".htm", ".txt", ".md", ".tsv", ".bib", ".xml", ".log", ".flags",
          ".yaml", ".yml", "")  # fmt: skip
_ARCHIVES = (".npz", ".keras", ".zip", ".h5.zip")
_HEADERS = (".nii", ".hdr", ".img")
_HOME = (
    rb"(?:/(?:home|Users)/[^\s\"'<>/\\&,;:]+|/root/[\w.]+"
    rb"|[A-Za-z]:(?:\\{1,4}|/)Users(?:\\{1,4}|/)[^\s\"'<>/\\&,;:]+)"
)
_IN_BYTES = {"a home folder": re.compile(_HOME)}
_IN_TEXT = {
    # Within a longer word it is another path, or an address on the web.
    "a home folder": re.compile(rb"(?<![\w.])" + _HOME),
    "an e-mail address": re.compile(
        rb"[\w.%+-]{2,}@[A-Za-z0-9-]{2,}(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}"
    ),
    "an entry on a patient": re.compile(
        rb"\b(?:Patient(?:'?s)?[ _]?(?:Name|Birth[ _]?Date|ID|Address)|date[ _]of[ _]birth"
        rb"|birth[ _]?date|dob|InstitutionName|ReferringPhysician\w*|OperatorsName)"
        rb"[\"']?\s*[:=]\s*[\"']?[^\s\"',}]+",
        re.IGNORECASE,
    ),
}
_COLUMN = re.compile(
    rb"(?i)(?:^|,)\"?(patient[ _]?(?:name|id|address)|birth[ _]?date|date[ _]of[ _]birth|dob"
    rb"|first[ _]?name|surname|last[ _]?name)\"?(?=,|$)"
)
# (0010,0010) the name, (0010,0020) the number and (0010,0030) the date of birth of a patient.
_DICOM_TAGS = {
    b"\x10\x00\x10\x00PN": "the name of a patient (DICOM)",
    b"\x10\x00\x20\x00LO": "the number of a patient (DICOM)",
    b"\x10\x00\x30\x00DA": "a date of birth (DICOM)",
}
_RUNS = re.compile(rb"[\x20-\x7e]{6,}")
_DATA_URI = re.compile(rb"base64,([A-Za-z0-9+/=]{64,})")
# Texts that come from the project, not from anybody's data: authors are named there.
_PUBLISHED = ("citation", "description", "citeAs", "configDescription")


@dataclasses.dataclass(frozen=True)
class Finding:
  """Something that should not be there.

  Attributes:
    where: File, and the place in it.
    what: Of which kind it is.
    text: As it stands there.
  """

  where: str
  what: str
  text: str


class Sought:
  """What is looked for.

  Attributes:
    kinds: What it is, for the user.
  """

  def __init__(self, key_file: pathlib.Path | None = None, manual_dir: pathlib.Path | None = None):
    """Collects it.

    Args:
      key_file: Key of pseudonyms, whose names must not occur.
      manual_dir: Raw folder, whose names must not occur unless they are codes.

    Raises:
      InputError: One of them cannot be read.
    """
    named = dict.fromkeys(private_paths.user_names(), "the name of this user")
    named |= dict.fromkeys(private_paths.host_names(), "the name of this machine")
    whose = sorted({kind.replace("the name of ", "") for kind in named.values()})
    self.kinds = ["home folders", *(f"the name of {one}" for one in whose), "e-mail addresses",
                  "entries on patients"]  # fmt: skip
    if key_file is not None:
      names = subject_names.names_in_key(key_file)
      named |= dict.fromkeys(_with_words(names), "a name of the key file")
      self.kinds.append(f"{len(names)} names of the key file")
    if manual_dir is not None:
      names = raw_names(manual_dir)
      named |= dict.fromkeys(names, "a name of the raw folder")
      self.kinds.append(f"{len(names)} names of the raw folder")
    self._named = {name.lower().encode(): kind for name, kind in named.items() if name}

  @functools.cached_property
  def _word_pattern(self) -> re.Pattern[bytes] | None:
    words = sorted(map(re.escape, self._named), key=len, reverse=True)
    return re.compile(rb"(?<![A-Za-z0-9])(?:" + b"|".join(words) + rb")(?![A-Za-z0-9])",
                      re.IGNORECASE) if words else None  # fmt: skip

  @functools.cached_property
  def _byte_pattern(self) -> re.Pattern[bytes] | None:
    long = [name for name in self._named if len(name) >= _LEAST_IN_BYTES]
    words = sorted(map(re.escape, long), key=len, reverse=True)
    return re.compile(b"|".join(words), re.IGNORECASE) if words else None

  def in_text(self, data: bytes) -> Iterator[tuple[str, str]]:
    """Yields (kind, text) of what a text in UTF-8 holds."""
    for kind, pattern in _IN_TEXT.items():
      for match in pattern.finditer(data):
        yield kind, _shown(match[0])
    yield from self._names(self._word_pattern, data)

  def in_bytes(self, data: bytes) -> Iterator[tuple[str, str]]:
    """Yields (kind, text) of what bytes of any meaning hold, without what chance may put there."""
    for kind, pattern in _IN_BYTES.items():
      for match in pattern.finditer(data):
        yield kind, _shown(match[0])
    yield from self._names(self._byte_pattern, data)

  def _names(self, pattern: re.Pattern[bytes] | None, data: bytes) -> Iterator[tuple[str, str]]:
    for match in pattern.finditer(data) if pattern else ():
      yield self._named.get(match[0].lower(), "a private name"), _shown(match[0])


class Scan:
  """One look through a folder.

  Attributes:
    findings: One per file, kind and text, where it stands first.
    files: {kind of file: how many were looked through}.
    records: Records of shards that were opened.
    bytes: Size of all files.
  """

  def __init__(self, folder: pathlib.Path, sought: Sought):
    """Looks through all files below a folder, hidden ones too."""
    self.findings: list[Finding] = []
    self.files: collections.Counter[str] = collections.Counter()
    self.records, self.bytes = 0, 0
    self._sought = sought
    self._seen: set[tuple[str, str, str]] = set()
    for path in sorted(folder.rglob("*")):
      if path.is_symlink() or not path.is_file():
        continue
      name = path.relative_to(folder).as_posix()
      self.bytes += path.stat().st_size
      self._text(name, "its name", name.encode("utf-8", "backslashreplace"))
      self.files[self._look(path, name)] += 1

  def _look(self, path: pathlib.Path, name: str) -> str:
    """Looks through one file; returns of which kind it is."""
    suffix = path.suffix.lower()
    if "tfevents" in path.name:
      return self._events(path, name)
    if "tfrecord" in path.name:
      return self._shard(path, name)
    if suffix in _ARCHIVES:
      return self._archive(path, name)
    if suffix == ".gz":
      return self._compressed(path, name)
    if suffix in _TEXTS:
      return self._plain(path, name)
    with open(path, "rb") as stream:
      head = stream.read(_HEADER_BYTES)
    self._image(name, "", path.read_bytes() if _is_image(head) else b"")
    if suffix in _HEADERS:
      self._text(name, "the header", b"\n".join(_RUNS.findall(head)))
    if head[128:132] == b"DICM":
      self._dicom(name, head)
    self._binary(path, name)
    return suffix.lstrip(".") or "other"

  def _note(self, where: str, place: str, found: Iterator[tuple[str, str]]) -> None:
    for what, text in found:
      if (where, what, text) not in self._seen:
        self._seen.add((where, what, text))
        self.findings.append(Finding(f"{where}, {place}" if place else where, what, text))

  def _text(self, name: str, place: str, data: bytes) -> None:
    self._note(name, place, self._sought.in_text(data))

  def _plain(self, path: pathlib.Path, name: str) -> str:
    """Looks through a file of text by line, or through JSON without the published texts."""
    suffix = path.suffix.lower()
    if suffix == ".json":
      content = _without_published(path.read_bytes())
      self._text(name, "", content)
      return "json"
    with open(path, "rb") as stream:
      for number, line in enumerate(_lines(stream), start=1):
        self._text(name, f"line {number}", line)
        if suffix in (".csv", ".tsv") and number == 1:
          cells = line.replace(b"\t", b",").rstrip(b"\r\n")
          found = (("a column on patients", _shown(m[1])) for m in _COLUMN.finditer(cells))
          self._note(name, "line 1", found)
        for number_of, uri in enumerate(_DATA_URI.finditer(line), start=1):
          self._image(name, f"image {number_of}", _decoded(uri[1]))
    return suffix.lstrip(".") or "text"

  def _binary(self, path: pathlib.Path, name: str) -> None:
    with open(path, "rb") as stream:
      for data in _chunks(stream):
        self._note(name, "", self._sought.in_bytes(data))

  def _shard(self, path: pathlib.Path, name: str) -> str:
    """Looks through the texts and images of each record."""
    # Of TFDS, without TensorFlow; run folders do without both.
    from tensorflow_datasets.proto import tf_example_pb2

    for number, payload in enumerate(_payloads(path)):
      self.records += 1
      try:
        features = tf_example_pb2.Example.FromString(payload).features.feature
      except Exception:  # protobuf raises a kind of its own per implementation.
        self._note(name, f"record {number}", self._sought.in_bytes(payload))
        continue
      for feature in sorted(features):
        for value in features[feature].bytes_list.value:
          place = f"record {number}, {feature}"
          if _is_image(value):
            self._image(name, place, value)
          elif len(value) < _HEADER_BYTES and _is_text(value):
            self._text(name, place, value)
          else:
            self._note(name, place, self._sought.in_bytes(value))
    return "shards of records"

  def _events(self, path: pathlib.Path, name: str) -> str:
    for number, payload in enumerate(_payloads(path)):
      place = f"event {number}"
      self._note(name, place, self._sought.in_bytes(payload))
      self._text(name, place, b"\n".join(_RUNS.findall(payload)))
    return "TensorBoard events"

  def _archive(self, path: pathlib.Path, name: str) -> str:
    try:
      with zipfile.ZipFile(path) as archive:
        self._text(name, "its comment", archive.comment)
        for member in archive.infolist():
          self._text(name, "its members", member.filename.encode())
          with archive.open(member) as stream:
            for data in _chunks(stream):
              plain = member.filename.endswith((".json", ".txt")) or _is_text(data)
              look = self._sought.in_text if plain else self._sought.in_bytes
              self._note(name, member.filename, look(data))
    except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, EOFError):
      self._binary(path, name)
    return path.suffix.lower().lstrip(".")

  def _compressed(self, path: pathlib.Path, name: str) -> str:
    with open(path, "rb") as raw:
      head = raw.read(_OVERLAP_BYTES)
    if len(head) > 10 and head[3] & 8:
      self._text(name, "the file name in its gzip header", head[10:].partition(b"\0")[0])
    try:
      with gzip.open(path, "rb") as stream:
        for number, data in enumerate(_chunks(stream)):
          if not number:
            self._text(name, "the header", b"\n".join(_RUNS.findall(data[:_OVERLAP_BYTES])))
          self._note(name, "", self._sought.in_bytes(data))
    except (OSError, EOFError, zlib.error):
      self._binary(path, name)
    return "gz"

  def _image(self, name: str, place: str, data: bytes) -> None:
    """Looks through what an image says beside its pixels."""
    for what, text in _image_texts(data):
      self._text(name, f"{place}, {what}" if place else what, text)

  def _dicom(self, name: str, head: bytes) -> None:
    for tag, what in _DICOM_TAGS.items():
      at = head.find(tag)
      if at >= 0:
        (length,) = struct.unpack("<H", head[at + 6 : at + 8])
        if value := head[at + 8 : at + 8 + length].strip(b" \0"):
          self._note(name, "its header", iter([(what, _shown(value))]))

  def looked_at(self) -> str:
    """Returns what was looked through, in words."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.files.items()))
    records = f" with {self.records} records" if self.records else ""
    return f"{sum(self.files.values())} files ({kinds}){records}, {self.bytes / 1e6:.1f} MB"


def raw_names(folder: pathlib.Path) -> set[str]:
  """Returns the names of files and folders of a raw folder that are no codes.

  Raises:
    InputError: There is no such folder.
  """
  folder = folder.expanduser()
  if not folder.is_dir():
    raise InputError(f"--manual_dir {folder}: there is no such folder.")
  names = {
      subject_names.without_suffix(path.name)
      for path in folder.rglob("*")
      if not path.name.startswith(".")
  }
  return {name for name in subject_names.no_codes(names) if len(name) > _LEAST_WORD}


def _with_words(names: set[str]) -> set[str]:
  """Returns names, and the words they are made of where these are long enough to be names."""
  words = {word for name in names for word in re.findall(r"[^\W\d_]+", name)}
  return names | {word for word in words if len(word) >= _LEAST_WORD
                  and word.lower() not in subject_names.COMMON_WORDS}  # fmt: skip


def _payloads(path: pathlib.Path) -> Iterator[bytes]:
  """Yields the records of a TFRecord file as far as it can be read."""
  size = path.stat().st_size
  with open(path, "rb") as stream:
    while len(header := stream.read(tfrecord.HEADER_BYTES)) == tfrecord.HEADER_BYTES:
      length = tfrecord.payload_length(header)
      if length > size:
        return
      yield stream.read(length)
      stream.read(tfrecord.FRAME_BYTES - tfrecord.HEADER_BYTES)


def _chunks(stream: Any) -> Iterator[bytes]:
  kept = b""
  while block := stream.read(_CHUNK_BYTES):
    yield kept + block
    kept = block[-_OVERLAP_BYTES:]


def _lines(stream: Any) -> Iterator[bytes]:
  while line := stream.readline(_CHUNK_BYTES):
    yield line


def _is_text(data: bytes) -> bool:
  try:
    return data.decode("utf-8").isprintable() or not re.search(rb"[\0-\x08\x0e-\x1f]", data)
  except UnicodeDecodeError:
    return False


def _is_image(data: bytes) -> bool:
  return data[:8] == b"\x89PNG\r\n\x1a\n" or data[:3] == b"\xff\xd8\xff"


def _image_texts(data: bytes) -> Iterator[tuple[str, bytes]]:
  """Yields (what it is, text) of the text chunks of a PNG and of EXIF and comments of a JPEG."""
  if data[:3] == b"\xff\xd8\xff":
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda" and at + 4 <= len(data):
      (length,) = struct.unpack(">H", data[at + 2 : at + 4])
      if data[at + 1] in (0xE1, 0xED, 0xFE):  # EXIF and XMP, IPTC, a comment.
        yield "EXIF or a comment", b"\n".join(_RUNS.findall(data[at + 4 : at + 2 + length]))
      at += 2 + max(length, 2)
    return
  at = 8
  while at + 8 <= len(data):
    (length,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
    content = data[at + 8 : at + 8 + length]
    if kind in (b"tEXt", b"iTXt", b"zTXt", b"eXIf"):
      yield f"chunk {kind.decode()}", _inflated(kind, content)
    at += 12 + length


def _inflated(kind: bytes, content: bytes) -> bytes:
  """Returns the text of a PNG chunk, compressed or not."""
  if kind == b"eXIf":
    return b"\n".join(_RUNS.findall(content))
  for start in [match.end() for match in re.finditer(rb"\0", content)][:6]:
    for offset in (start, start + 1, start + 2):
      try:
        return content[:start] + zlib.decompressobj().decompress(content[offset:], _CHUNK_BYTES)
      except zlib.error:
        continue
  return content


def _decoded(text: bytes) -> bytes:
  try:
    return base64.b64decode(text, validate=True)
  except binascii.Error:
    return b""


def _without_published(data: bytes) -> bytes:
  """Returns JSON with its texts unescaped, a line each, without those that the project wrote."""
  try:
    tree = json.loads(data)
  except (ValueError, RecursionError):
    return data
  return "\n".join(_entries(tree, "")).encode("utf-8", "backslashreplace")


def _entries(tree: Any, key: str) -> Iterator[str]:
  if isinstance(tree, Mapping):
    for name, value in tree.items():
      if name not in _PUBLISHED or not isinstance(value, str):
        yield from _entries(value, str(name))
  elif isinstance(tree, list):
    for value in tree:
      yield from _entries(value, key)
  else:
    yield f'"{key}": {tree}' if tree is not None else f'"{key}"'


def _shown(data: bytes) -> str:
  return data.decode("utf-8", "backslashreplace")[:120]


def scan(folder: pathlib.Path, sought: Sought) -> Scan:
  """Looks through a folder.

  Raises:
    InputError: There is none, or it is empty.
  """
  if not folder.is_dir():
    raise InputError(f"{folder}: there is no such folder. Name a dataset or a run folder.")
  result = Scan(folder, sought)
  if not result.files:
    raise InputError(f"{folder}: holds no file. Name a dataset or a run folder.")
  return result
