"""Work files of a build that workers elsewhere write: in a folder that all see, or in a bucket.

A file takes its place whole, so that reading a case twice, or at two places at once, does no harm.
While a worker reads a case it says so in a file of its own, again and again: a build that sees no
such sign knows that its workers are gone, which a runner may never notice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

from flexunet.core import remote_folder
from flexunet.datasets.builder.raw_folder import Case

PROBLEM_SUFFIX, ALIVE_SUFFIX = ".problem", ".alive"
_SIGN_SECONDS = 5.0


class SharedWork:
  """Where workers put the work files of cases, by name.

  Attributes:
    address: Of a folder in a bucket; None where `folder` itself is seen by all workers.
    folder: Work folder of the build, on the machine of the build.
  """

  def __init__(self, folder: pathlib.Path, address: str | None = None):
    self.folder, self.address = folder, address
    self._system: Any = None
    if address is not None:
      self._system, self._root = remote_folder.connect(address)
      self._root = self._root.rstrip("/")
      self._system.makedirs(self._root, exist_ok=True)  # Buckets have no folders; others do.

  @contextlib.contextmanager
  def scratch(self) -> Iterator[pathlib.Path]:
    """Yields a folder from which `put` moves files."""
    if self.address is None:
      yield self.folder
    else:
      with tempfile.TemporaryDirectory(prefix="flexunet-case-") as folder:
        yield pathlib.Path(folder)

  def put(self, path: pathlib.Path, name: str) -> None:
    """Moves a file of `scratch` to its name."""
    if self.address is None:
      os.replace(path, self.folder / name)
    else:
      self._system.put_file(os.fspath(path), f"{self._root}/{name}")

  def take(self, name: str) -> None:
    """Copies a file from the bucket to the machine of the build."""
    if self.address is not None:
      partial = self.folder / f"{name}.part"
      self._system.get_file(f"{self._root}/{name}", os.fspath(partial))
      os.replace(partial, self.folder / name)

  def versions(self) -> dict[str, str]:
    """Returns {name: what changes when the file does} of all that is there."""
    if self.address is None:
      found = {}
      with os.scandir(self.folder) as entries:
        for entry in entries:
          with contextlib.suppress(FileNotFoundError):  # A sign that was just taken away.
            status = entry.stat()
            found[entry.name] = f"{status.st_size}:{status.st_mtime_ns}"
      return found
    self._system.invalidate_cache()
    try:
      listed = self._system.find(self._root, detail=True)
    except FileNotFoundError:  # Nothing has been put there yet.
      listed = {}
    return {
        path.rsplit("/", 1)[-1]: remote_folder.version_of(info) for path, info in listed.items()
    }

  def remove(self, name: str) -> None:
    """Removes a file, if it is there."""
    if self.address is None:
      (self.folder / name).unlink(missing_ok=True)
    else:
      with contextlib.suppress(FileNotFoundError):
        self._system.rm_file(f"{self._root}/{name}")

  def clear(self) -> None:
    """Removes the folder in the bucket; that of the build is removed by the build."""
    if self.address is not None:
      with contextlib.suppress(FileNotFoundError):
        self._system.rm(self._root, recursive=True)

  @contextlib.contextmanager
  def signs_of_life(self, name: str) -> Iterator[None]:
    """Says every few seconds that a case is being read, until the body ends."""
    name = f"{name}{ALIVE_SUFFIX}"
    ended = threading.Event()

    def say() -> None:
      count = 0
      while True:
        count += 1
        with contextlib.suppress(OSError):  # The next one may succeed.
          self._sign(name, b"." * count)
        if ended.wait(_SIGN_SECONDS):
          return

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
      yield
    finally:
      ended.set()
      thread.join()
      with contextlib.suppress(OSError):
        self.remove(name)

  def _sign(self, name: str, text: bytes) -> None:
    if self.address is None:
      (self.folder / name).write_bytes(text)
    else:
      self._system.pipe_file(f"{self._root}/{name}", text)


@dataclasses.dataclass(frozen=True)
class RawSource:
  """Where workers find the files of a case.

  Attributes:
    root: The raw folder on the machine of the build.
    address: The same folder in a bucket; None where all workers see `root`.
  """

  root: str
  address: str | None = None

  @contextlib.contextmanager
  def at_hand(self, case: Case) -> Iterator[tuple[Case, str]]:
    """Yields the case with files that are on this machine, and the folder they lie in."""
    if self.address is None or all(path.is_file() for path in case.files.values()):
      yield case, self.root
      return
    system, remote_root = remote_folder.connect(self.address)
    with tempfile.TemporaryDirectory(prefix="flexunet-raw-") as folder:
      files = {}
      for role, path in case.files.items():
        # Files that belong together, such as .hdr and .img, stay side by side.
        below = path.relative_to(self.root)
        files[role] = pathlib.Path(folder) / below
        files[role].parent.mkdir(parents=True, exist_ok=True)
        system.get_file(f"{remote_root.rstrip('/')}/{below.as_posix()}", os.fspath(files[role]))
      yield dataclasses.replace(case, files=files), folder
