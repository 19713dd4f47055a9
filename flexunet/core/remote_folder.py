"""Folders in a bucket (gs://, s3://, memory://, ... what fsspec reads), copied here file by file.

Records are read at random by their offsets, and memory-mapped: that is work for a local disk. So
what lies behind an address is copied once to ~/.cache/flexunet/remote/SCHEME/PATH, and again where
the bucket says that it changed. Each file takes its place whole.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Collection
from typing import Any

from flexunet.core import files
from flexunet.core.errors import InputError

# pathlib makes one slash of the two; a single letter is a drive.
_ADDRESS = re.compile(r"^([a-z][a-z0-9+.-]+):/+(.*)$")
# What file systems say of a file's version.
_VERSION_KEYS = ("size", "etag", "ETag", "md5Hash", "generation", "mtime", "LastModified",
                 "last_modified", "created")  # fmt: skip
_FETCHED_NAME = ".fetched.json"
_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs", "abfs": "adlfs",
             "az": "adlfs", "hf": "huggingface_hub"}  # fmt: skip
_BLOCK_BYTES = 8 << 20


def address_of(path: str | os.PathLike) -> str | None:
  """Returns an address as fsspec takes it, "gs://bucket/data"; None for a path of this machine."""
  found = _ADDRESS.match(os.fspath(path))
  return f"{found[1]}://{found[2].rstrip('/')}" if found else None


class RemoteFolder:
  """A folder behind an address, and its copy on this machine.

  Attributes:
    address: As `address_of` returns it.
    path: Of the copy; what has been fetched lies in it under the same names.
  """

  def __init__(self, address: str, cache: pathlib.Path | None = None):
    """Lists the folder; copies nothing.

    Args:
      address: Its address.
      cache: Folder of all copies; that of the user by default.

    Raises:
      InputError: Nothing reads such addresses here, or there is nothing behind this one.
    """
    self.address = address
    scheme, _, below = address.partition("://")
    if ".." in pathlib.PurePosixPath(below).parts:
      raise InputError(f"{address}: must not hold '..'. Name the folder itself.")
    self.path = (cache or files.user_cache_folder() / "remote") / scheme / below
    self._system, self._root = connect(address)
    try:
      found = self._system.find(self._root, detail=True)
    except Exception as error:  # Each file system raises kinds of its own.
      raise _unreadable(address, error) from error
    if not found:
      raise InputError(f"{address}: there is no file. Name a built dataset or a folder of them.")
    root = self._root.strip("/")
    self._files: dict[str, dict[str, Any]] = {
        pathlib.PurePosixPath(name.strip("/")).relative_to(root).as_posix(): info
        for name, info in found.items()
    }

  @property
  def names(self) -> Collection[str]:
    """Paths of all files below the folder."""
    return self._files.keys()

  def fetch(self, wanted: Callable[[str], bool], check: Callable[[], None] | None = None) -> None:
    """Copies files that are not here yet, or changed.

    Args:
      wanted: Of a file's path below the folder, whether it is wanted.
      check: Called at the end, under the lock; raises where what was copied is damaged.

    Raises:
      InputError: There is too little room, or a file cannot be read.
    """
    # Readers without TensorFlow import this file, and have no tqdm.
    from flexunet.core import progress

    with files.locked(self.path, "--data_dir"):
      record = self.path / _FETCHED_NAME
      known = files.read_json(record) if record.is_file() else {}
      names = [name for name in sorted(self._files) if wanted(name)]
      missing = [name for name in names if not self._is_here(name, known)]
      total = sum(int(self._files[name].get("size") or 0) for name in missing)
      if total > (room := shutil.disk_usage(self.path).free):
        raise InputError(
            f"{self.address}: needs {total / 1e9:.1f} GB in {self.path}, which has"
            f" {room / 1e9:.1f} GB left. Make room, or copy the dataset elsewhere yourself."
        )
      if total:
        progress.say(f"Copying {total / 1e6:.0f} MB of {self.address} to {self.path} ...")
      with progress.bar(total=total, unit="B", unit_scale=True, disable=None, leave=False) as bar:
        for name in missing:
          self._copy(name, bar.update)
          known[name] = version_of(self._files[name])
      if missing:
        files.write_json(record, known)
      if check is not None:
        check()

  def _is_here(self, name: str, known: dict[str, str]) -> bool:
    path, info = self.path / name, self._files[name]
    return (
        path.is_file()
        and path.stat().st_size == info.get("size")
        and known.get(name) == version_of(info)
    )

  def _copy(self, name: str, update: Callable[[int], Any]) -> None:
    target = self.path / name
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=target.parent, prefix=".fetching-")
    try:
      with os.fdopen(handle, "wb") as stream, self._system.open(f"{self._root}/{name}") as source:
        while block := source.read(_BLOCK_BYTES):
          stream.write(block)
          update(len(block))
      os.chmod(partial, 0o644)
      os.replace(partial, target)
    except BaseException as error:
      pathlib.Path(partial).unlink(missing_ok=True)
      if isinstance(error, Exception):
        raise _unreadable(f"{self.address}/{name}", error) from error
      raise


def connect(address: str) -> tuple[Any, str]:
  """Returns the file system of fsspec that reads an address, and the path in it.

  Raises:
    InputError: Nothing reads such addresses here.
  """
  scheme = address.partition("://")[0]
  # Local paths, which most are, need none of it.
  import fsspec

  if scheme not in fsspec.available_protocols():
    raise InputError(
        f"{address}: nothing reads {scheme}:// addresses. Known are"
        f" {', '.join(sorted(_PACKAGES))} and others of fsspec."
    )
  try:
    return fsspec.core.url_to_fs(address)
  except ImportError as error:
    package = _PACKAGES.get(scheme, f"the package of fsspec for {scheme}://")
    raise InputError(
        f"{address}: reading {scheme}:// needs {package}: pip install {package}."
    ) from error
  except Exception as error:  # Such as missing credentials.
    raise _unreadable(address, error) from error


def version_of(info: dict[str, Any]) -> str:
  """Returns what a file system says of a file's version, from its listing."""
  return json.dumps({key: str(info[key]) for key in _VERSION_KEYS if key in info})


def _unreadable(address: str, error: Exception) -> InputError:
  first_line = (str(error).splitlines() or [""])[0]
  return InputError(
      f"{address}: cannot be read: {first_line or type(error).__name__}. Check the address and"
      " your access to it."
  )
