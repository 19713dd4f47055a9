"""Files written in one step, hashed, JSON and tables read, folders checked and locked."""

from __future__ import annotations

import contextlib
import csv
import datetime
import errno
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO, Any

from flexunet.core.errors import InputError

try:
  import fcntl
except ImportError:  # Windows has no such locks.
  fcntl = None  # type: ignore[assignment]

# Hidden, so that no program takes it for a result.
LOCK_NAME = ".lock"
# What file systems answer that offer no locks, such as some network ones.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def write_json(path: pathlib.Path, values: Any) -> None:
  """Writes strict JSON (NaN is refused) in one step."""
  write_bytes(path, (json.dumps(values, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: pathlib.Path, **options: Any) -> Any:
  """Returns the values of a JSON file; for `options` see `json.loads`.

  Raises:
    InputError: It cannot be read, or is no JSON that Python can hold.
  """
  try:
    data = pathlib.Path(path).read_bytes()
  except OSError as error:
    raise InputError(
        f"{path} must be a JSON file that can be read: {error.strerror or error}."
    ) from error
  return parse_json(data, path, **options)


def parse_json(data: bytes | str, source: str | os.PathLike, **options: Any) -> Any:
  """Returns the values of JSON that was read from `source`, which the error names."""
  try:
    text = data.decode("utf-8") if isinstance(data, bytes) else data
    return json.loads(text, **options)
  except InputError:
    raise
  except RecursionError as error:
    raise InputError(
        f"{source} must be readable JSON, but its brackets are nested too deep. Put the original"
        " back."
    ) from error
  except ValueError as error:
    raise InputError(f"{source} must be readable JSON: {error}.") from error


def read_table(path: pathlib.Path, columns: Iterable[str] = ()) -> list[dict[str, str]]:
  """Returns the rows of a CSV file by the names in its first line.

  Args:
    path: The file.
    columns: Names that it must have.

  Raises:
    InputError: It cannot be read, or a row has other cells than the first line.
  """
  advice = "Put the original back."
  try:
    with open(path, newline="", encoding="utf-8") as stream:
      reader = csv.reader(stream, strict=True)
      names = next(reader, [])
      rows = [(reader.line_num, cells) for cells in reader if cells]
  except OSError as error:
    raise InputError(f"{path} must be readable: {error.strerror or error}.") from error
  except (ValueError, csv.Error) as error:
    raise InputError(f"{path} must be readable CSV: {error}. {advice}") from error
  if lacking := [name for name in columns if name not in names]:
    raise InputError(f"{path} must have the column {lacking[0]!r}. {advice}")
  for line, cells in rows:
    if len(cells) != len(names):
      raise InputError(
          f"{path} must have {len(names)} cells in each row; line {line} has {len(cells)}. {advice}"
      )
  return [dict(zip(names, cells, strict=True)) for _, cells in rows]


def write_bytes(path: pathlib.Path, data: bytes, mode: int = 0o644) -> None:
  """Replaces `path` by `data` in one step: a reader sees the old file or the new one.

  Args:
    path: The file.
    data: Its new content.
    mode: Who may read it; by default results are as shared as their folder.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  try:
    with os.fdopen(handle, "wb") as stream:
      stream.write(data)
      stream.flush()
      os.fsync(stream.fileno())
    os.chmod(name, mode)
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


@contextlib.contextmanager
def locked(folder: pathlib.Path, flag: str) -> Iterator[None]:
  """Keeps other programs from writing into a folder while the block runs.

  The system holds the lock, over NFS too, and drops it however the program ends. Where a file
  system offers none, the lock is the file itself: one whose process has died on this machine is
  replaced, and the machine is known by a hash of its boot, not by name.

  Args:
    folder: Made where it does not exist, and removed again where nothing was written into it.
    flag: What named it, for the error, e.g. "--run_dir".

  Raises:
    InputError: Another program writes into it, or it cannot be written.
  """
  missing = [path for path in (folder, *folder.parents) if not path.exists()]
  try:
    with _lock_file(folder, flag):
      yield
  finally:
    for path in missing:
      with contextlib.suppress(OSError):  # It holds something.
        path.rmdir()


def check_unlocked(folder: pathlib.Path, flag: str) -> None:
  """Raises InputError where another program writes into the folder (`locked`)."""
  if (folder / LOCK_NAME).exists():
    with locked(folder, flag):
      pass


def lock_stream(stream: IO[Any] | int) -> None:
  """Takes the system's lock of an open file or folder, which ends with this process.

  Raises:
    BlockingIOError: Another process holds it.
    OSError: The file system offers no locks.
  """
  if fcntl is not None:
    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def _lock_file(folder: pathlib.Path, flag: str) -> Iterator[None]:
  """Holds the lock file of a folder, and removes it at the end."""
  path = folder / LOCK_NAME
  try:
    folder.mkdir(parents=True, exist_ok=True)
    stream = _open_locked(path)
  except BlockingIOError as error:
    raise InputError(
        f"{flag} {folder} must be free, but another program writes into it: {_holder(path)}. Wait"
        f" until it has ended, or name another {flag}."
    ) from error
  except FileExistsError as error:
    raise InputError(
        f"{flag} {folder} must be free, but another program has locked it: {_holder(path)}. Wait"
        f" until it has ended; if it has died, remove {path}."
    ) from error
  except OSError as error:
    raise InputError(
        f"{flag} {folder} must be writable: {error.strerror}. Name another {flag}."
    ) from error
  with stream:
    try:
      with contextlib.suppress(OSError):  # On a full disk the lock holds as well.
        os.write(stream.fileno(), json.dumps(_own_process()).encode())
      yield
    finally:
      path.unlink(missing_ok=True)


def _open_locked(path: pathlib.Path) -> IO[bytes]:
  """Returns the lock file, held; BlockingIOError or FileExistsError where another one holds it."""
  while True:
    stream = open(path, "ab")  # noqa: SIM115 - it stays open while it is held.
    try:
      if fcntl is None:
        raise OSError(errno.ENOSYS, "no locks on this system")
      lock_stream(stream)
    except OSError as error:
      stream.close()
      if error.errno not in _NO_LOCKS:
        raise
      return _create_lock(path)
    # Its holder may have removed it between opening and locking.
    with contextlib.suppress(FileNotFoundError):
      if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
        stream.truncate(0)
        return stream
    stream.close()


def _create_lock(path: pathlib.Path) -> IO[bytes]:
  """Returns a lock file that was not there: the lock where the file system offers none."""
  if not path.stat().st_size or _has_died(_read_holder(path)):
    path.unlink(missing_ok=True)
  return open(path, "xb")


def _own_process() -> dict[str, Any]:
  now = datetime.datetime.now(datetime.timezone.utc)
  return {
      "process": os.getpid(),
      "started": now.strftime("%Y-%m-%d %H:%M:%S UTC"),
      "ticks": _start_ticks(os.getpid()),
      "machine": _machine(),
  }


def _read_holder(path: pathlib.Path) -> dict[str, Any]:
  try:
    values = read_json(path)
  except InputError:  # It is just being written, or removed.
    return {}
  return values if isinstance(values, dict) else {}


def _holder(path: pathlib.Path) -> str:
  """Returns which process holds a lock, for the user."""
  found = _read_holder(path)
  if not found:
    return "a process that has just started"
  return f"process {found.get('process')}, started {found.get('started')}"


def _has_died(holder: dict[str, Any]) -> bool:
  """Returns whether a process has surely ended; one of another machine may live."""
  if holder.get("machine") is None or holder["machine"] != _machine():
    return False
  return _start_ticks(holder.get("process")) != holder.get("ticks")


def _start_ticks(process: Any) -> int | None:
  """Returns when a process started, in ticks of the kernel; None where there is none."""
  try:
    text = pathlib.Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
  except OSError:
    return None
  return int(text.rpartition(")")[2].split()[19])  # The name before it may hold anything.


def _machine() -> str | None:
  """Returns a hash that changes with machine, boot and container; None where it is unknown."""
  try:
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")
    processes = os.readlink("/proc/self/ns/pid")
  except OSError:
    return None
  return hashlib.sha256(f"{boot}{processes}".encode()).hexdigest()[:12]


def user_cache_folder() -> pathlib.Path:
  """Returns where what can be worked out again is kept, for all programs of a user."""
  base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return pathlib.Path(base).expanduser() / "flexunet"
