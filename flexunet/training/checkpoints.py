"""Checkpoints on disk: written whole or not at all, checked by hash, a few kept.

    checkpoints/000012_step_240/arrays.npz      variables, no pickle
                                state.json      position, states of the callbacks
                                manifest.json   sha256 of the two
    checkpoints/current                         name of the newest

A folder gets its name only when it lies on the disk as a whole, and only then `current` names it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flexunet.core import files
from flexunet.core.errors import InputError

_NAME = re.compile(r"(\d{6,})_step_\d+")
_PARTIAL = ".partial-"
_WRITE_BYTES = 1 << 22  # Large enough for writing and hashing to leave Python's lock.
_BACKGROUND_NICENESS = 10
_CURRENT, _ARRAYS, _STATE, _MANIFEST = "current", "arrays.npz", "state.json", "manifest.json"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """All that a run needs to be resumed.

  Attributes:
    arrays: Group such as "model" -> values of its variables, in their order.
    state: JSON: "step" and what else the trainer restores.
  """

  arrays: dict[str, list[np.ndarray]]
  state: dict[str, Any]


class CheckpointStore:
  """The checkpoints of one run."""

  def __init__(self, folder: pathlib.Path, keep: int = 2):
    self._folder, self._keep = folder, keep

  def names(self) -> list[str]:
    """Returns the names of the checkpoints, newest first."""
    if not self._folder.is_dir():
      return []
    found = [path.name for path in self._folder.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(found, key=_serial, reverse=True)

  def write(self, checkpoint: Checkpoint) -> str:
    """Writes a checkpoint and removes those beyond the number to keep; returns its name."""
    self._folder.mkdir(parents=True, exist_ok=True)
    names = self.names()
    serial = _serial(names[0]) + 1 if names else 1
    name = f"{serial:06d}_step_{checkpoint.state['step']}"
    partial = pathlib.Path(tempfile.mkdtemp(dir=self._folder, prefix=_PARTIAL))
    try:
      _write_files(partial, checkpoint)
      # mkdtemp makes it private; results are as shared as their folder.
      partial.chmod(self._folder.stat().st_mode)
      os.replace(partial, self._folder / name)
    except BaseException:
      shutil.rmtree(partial, ignore_errors=True)
      raise
    _sync_folder(self._folder)
    files.write_bytes(self._folder / _CURRENT, f"{name}\n".encode())
    for old in self.names()[self._keep :]:
      shutil.rmtree(self._folder / old, ignore_errors=True)
    return name

  def read(self) -> tuple[Checkpoint, str, list[str]]:
    """Reads the newest checkpoint that is whole.

    Returns:
      (the checkpoint, its name, what was wrong with each newer one).

    Raises:
      InputError: None is whole.
    """
    names = self.names()
    current = self._folder / _CURRENT
    # A kill between the new name and the pointer: both checkpoints are whole, the pointer decides.
    # A damaged pointer names none of them.
    first = current.read_text("utf-8", "replace").strip() if current.is_file() else ""
    names.sort(key=lambda name: name != first)
    damaged: list[str] = []
    for name in names:
      try:
        return _read_files(self._folder / name), name, damaged
      except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        damaged.append(f"{name}: {error}")
    raise InputError(
        f"{self._folder} must hold a whole checkpoint to resume from. Damaged:"
        f" {'; '.join(damaged) or 'none there'}. Start a new run in another folder."
    )

  def remove_partial(self) -> None:
    """Removes what a killed writer left behind; call it only while nothing else writes."""
    for path in self._folder.glob(f"{_PARTIAL}*"):
      shutil.rmtree(path, ignore_errors=True)


class BackgroundWriter:
  """Writes checkpoints off the training thread, one at a time.

  Attributes:
    num_submitted: Checkpoints submitted so far.
  """

  def __init__(self, store: CheckpointStore):
    self._store = store
    self.num_submitted = 0
    self._thread: threading.Thread | None = None
    self._error: BaseException | None = None

  @property
  def busy(self) -> bool:
    """Whether a checkpoint is being written."""
    return self._thread is not None and self._thread.is_alive()

  def submit(self, checkpoint: Checkpoint) -> None:
    """Starts writing, after the one before is written."""
    self.wait()
    self.num_submitted += 1
    self._thread = threading.Thread(
        target=self._write, args=(checkpoint,), name="checkpoint", daemon=True
    )
    self._thread.start()

  def wait(self) -> None:
    """Returns when everything is on the disk.

    Raises:
      InputError: It could not be written.
    """
    if self._thread is not None:
      self._thread.join()
      self._thread = None
    if self._error is not None:
      error, self._error = self._error, None
      if isinstance(error, OSError):
        raise InputError(
            f"A checkpoint must fit on the disk, but writing failed: {error.strerror or error}."
            " Free space, or lower --keep_checkpoints, and continue with --resume."
        ) from error
      raise error

  def _write(self, checkpoint: Checkpoint) -> None:
    if sys.platform == "linux":  # Where priorities are those of threads.
      # The training step comes first; a processor is idle often enough to write beside it.
      thread = threading.get_native_id()
      niceness = max(_BACKGROUND_NICENESS, os.getpriority(os.PRIO_PROCESS, thread))
      with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, niceness)
    try:
      self._store.write(checkpoint)
    except BaseException as error:  # Raised again in the training thread.
      self._error = error


def _serial(name: str) -> int:
  return int(name.split("_")[0])


class _HashingFile:
  """A file that is written from first byte to last and hashed on the way.

  It cannot be read or sought in, so that `zipfile` does not go back to what is hashed already.
  """

  def __init__(self, path: pathlib.Path):
    self._stream = open(path, "wb", buffering=0)  # noqa: SIM115 - see `abandon`.
    self._digest = hashlib.sha256()

  def write(self, data: Any) -> int:
    """Writes bytes; returns how many."""
    left = memoryview(data).cast("B")
    count = len(left)
    self._digest.update(left)
    while left:  # A write without a buffer may take a part.
      left = left[self._stream.write(left) :]
    return count

  def flush(self) -> None:
    pass  # Nothing is held back.

  def close(self) -> str:
    """Puts the file on the disk and returns its hash."""
    os.fsync(self._stream.fileno())
    self.abandon()
    return self._digest.hexdigest()

  def abandon(self) -> None:
    self._stream.close()


def _write_files(folder: pathlib.Path, checkpoint: Checkpoint) -> None:
  # Scores can be NaN or infinite before the first validation: this file is for Python alone.
  text = json.dumps({**checkpoint.state, "groups": list(checkpoint.arrays)}, indent=1)
  hashes = {
      _ARRAYS: _write_hashed(folder / _ARRAYS, lambda file: _write_npz(file, checkpoint.arrays)),
      _STATE: _write_hashed(folder / _STATE, lambda file: file.write(text.encode())),
  }
  manifest = json.dumps({"sha256": hashes}, indent=1).encode()
  _write_hashed(folder / _MANIFEST, lambda file: file.write(manifest))
  _sync_folder(folder)


def _write_hashed(path: pathlib.Path, write: Callable[[_HashingFile], Any]) -> str:
  """Returns the sha256 of the file that `write` fills."""
  file = _HashingFile(path)
  try:
    write(file)
    return file.close()
  except BaseException:
    file.abandon()
    raise


def _write_npz(file: _HashingFile, groups: Mapping[str, Sequence[np.ndarray]]) -> None:
  """Writes what `np.load` reads, from the arrays' own memory and in one pass.

  `np.savez` copies every array and leaves the file to be read again for its hash, beside a
  training that needs the processor.
  """
  with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]
    for group, values in groups.items():
      for index, value in enumerate(values):
        array = np.asarray(value, order="C")
        with archive.open(f"{group}/{index:05d}.npy", "w", force_zip64=True) as entry:
          header = np.lib.format.header_data_from_array_1_0(array)
          np.lib.format.write_array_header_1_0(entry, header)
          if array.size:
            numbers = array.reshape(-1).data.cast("B")
            for start in range(0, len(numbers), _WRITE_BYTES):
              entry.write(numbers[start : start + _WRITE_BYTES])


def _read_files(folder: pathlib.Path) -> Checkpoint:
  hashes = files.read_json(folder / _MANIFEST)["sha256"]
  for name in (_ARRAYS, _STATE):
    if files.sha256_of(folder / name) != hashes[name]:
      raise ValueError(f"{name} differs from its hash")
  state = files.read_json(folder / _STATE)
  groups: dict[str, list[np.ndarray]] = {name: [] for name in state.pop("groups")}
  with np.load(folder / _ARRAYS, allow_pickle=False) as arrays:
    for name in sorted(arrays.files):
      groups[name.split("/")[0]].append(arrays[name])
  return Checkpoint(arrays=groups, state=state)


def _sync_folder(folder: pathlib.Path) -> None:
  # The names in a folder are on the disk only when the folder itself is.
  handle = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
