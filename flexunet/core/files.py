from __future__ import annotations

import hashlib
import json
import os
import pathlib
import tempfile
from typing import Any


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
