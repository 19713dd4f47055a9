"""Files written in one step, hashed, and folders checked before the work begins."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import tempfile
from typing import Any

from flexunet.core.errors import InputError


def write_json(path: pathlib.Path, values: Any) -> None:
  """Writes strict JSON (NaN is refused) in one step."""
  write_bytes(path, (json.dumps(values, indent=2, allow_nan=False) + "\n").encode())


def write_bytes(path: pathlib.Path, data: bytes) -> None:
  """Replaces `path` by `data` in one step: a reader sees the old file or the new one."""
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  try:
    with os.fdopen(handle, "wb") as stream:
      stream.write(data)
      stream.flush()
      os.fsync(stream.fileno())
    os.chmod(name, 0o644)  # mkstemp makes it private; results are as shared as their folder.
    os.replace(name, path)
  except BaseException:
    pathlib.Path(name).unlink(missing_ok=True)
    raise


def sha256_of(path: pathlib.Path) -> str:
  """Returns the sha256 of a file, read in blocks."""
  digest = hashlib.sha256()
  with open(path, "rb") as stream:
    while block := stream.read(1 << 20):
      digest.update(block)
  return digest.hexdigest()


def check_writable(path: str | os.PathLike, flag: str) -> None:
  """Raises InputError unless a file or folder can be made or changed at `path`.

  Args:
    path: It need not exist, nor the folders above it.
    flag: What named it, for the error, e.g. "--output_dir".
  """
  path = pathlib.Path(path).expanduser().absolute()
  there = next(folder for folder in (path, *path.parents) if folder.exists())
  if there != path and not there.is_dir():
    raise InputError(f"{flag} {path} cannot be made: {there} is a file. Name another place.")
  if not os.access(there, os.W_OK):
    raise InputError(f"{flag} {path} must be writable; {there} is not. Name another place.")
