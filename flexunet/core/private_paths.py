"""Paths as files that may be passed on store them: without names of this user or machine."""

from __future__ import annotations

import contextlib
import getpass
import os
import pathlib
import re
import socket

from flexunet.core import remote_folder

# Accounts and machines that are called so by thousands name nobody.
_GENERIC = {
    "root", "user", "users", "home", "admin", "administrator", "ubuntu", "runner", "docker", "node",
    "localhost", "local", "host", "debian", "test", "data", "work", "guest", "nobody", "jovyan",
}  # fmt: skip
_SHORTEST = 3
_HOME_FOLDERS = re.compile(r"^(?:/home/|/Users/|/root(?:/|$)|[A-Za-z]:[\\/])")


def user_names() -> set[str]:
  """Returns the names of this user, in lower case, without those that many users have."""
  found = {os.environ.get(name, "") for name in ("USER", "LOGNAME", "USERNAME", "SUDO_USER")}
  # A process may have no account.
  with contextlib.suppress(OSError, KeyError, RuntimeError, ImportError):
    found |= {getpass.getuser(), pathlib.Path.home().name}
  return _named(found)


def host_names() -> set[str]:
  """Returns the names of this machine, whole and without the domain, in lower case."""
  name = socket.gethostname()
  return _named({name, name.partition(".")[0]})


def _named(found: set[str]) -> set[str]:
  names = {name.lower() for name in found}
  return {name for name in names if len(name) >= _SHORTEST and name not in _GENERIC}


def stored(path: str | os.PathLike, folder: pathlib.Path) -> str:
  """Returns a path as a file in `folder` stores it; `located` reads it.

  It is relative to the folder, or begins with ~. Where either would name this user or machine, or
  lead through the root of the file system, it is the last part of the path alone.
  """
  text = os.fspath(path)
  if address := remote_folder.address_of(text):
    return address  # Of a bucket, not of this machine.
  if text == "~":
    return text
  absolute = os.path.abspath(os.path.expanduser(text))
  for base, prefix in ((os.path.abspath(folder), ""), (os.path.expanduser("~"), "~/")):
    try:
      common = pathlib.Path(os.path.commonpath([absolute, base]))
      relative = pathlib.Path(os.path.relpath(absolute, base)).as_posix()
    except ValueError:  # Another drive.
      continue
    below = not prefix or not relative.startswith("..")
    if below and common not in _above_homes() and not _is_private(relative):
      return f"{prefix}{relative}"
  return pathlib.Path(absolute).name


def located(text: str, folder: pathlib.Path) -> str:
  """Returns the path that `stored` wrote, for the folder as it lies today."""
  if text.startswith("~") or os.path.isabs(text) or remote_folder.address_of(text):
    return text
  # The folder may be reached through a link that was not there when it was written.
  bases = os.path.abspath(folder), os.path.realpath(folder)
  paths = [os.path.normpath(os.path.join(base, text)) for base in bases]
  return next((path for path in paths if os.path.exists(path)), paths[0])


def without_folders(text: str) -> str:
  """Returns a word of a command with the paths in it cut to their ends.

  Relative paths stay, for they say nothing of the machine, unless they name its user.
  """
  pieces = re.split(r"([=,])", text)
  return "".join(
      pathlib.PureWindowsPath(piece).name if _is_local(piece) else piece for piece in pieces
  )


def _is_local(piece: str) -> bool:
  if _HOME_FOLDERS.match(piece) or os.path.isabs(piece):
    return True
  return bool(re.search(r"[/\\]", piece)) and _is_private(piece)


def _is_private(relative: str) -> bool:
  """Returns whether a part of a path is the name of this user or machine."""
  parts = {part.lower() for part in re.split(r"[/\\]", relative)}
  return bool(parts & (user_names() | host_names()) or any(p.startswith("~") for p in parts))


def _above_homes() -> list[pathlib.Path]:
  """Returns the folders above this user's: from there a path would tell whose it is."""
  home = pathlib.Path(os.path.expanduser("~")).absolute()
  return [*home.parents, pathlib.Path(home.anchor)]
