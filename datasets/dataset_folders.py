"""Finds built datasets: by name below a folder, by their own folder, behind an address."""

from __future__ import annotations

import difflib
import pathlib
from collections.abc import Callable

from flexunet.core import files, remote_folder
from flexunet.core.errors import InputError
from flexunet.core.remote_folder import RemoteFolder
from flexunet.datasets.built_dataset import (
  BUILD_COMMAND,
  INFO_NAME,
  REPORT_NAME,
  BuiltDataset,
  is_shard,
  open_folder,
  read_report,
)


def find(folder: pathlib.Path) -> list[BuiltDataset]:
  """Opens `folder` itself, or every dataset of this project below it.

  Raises:
    InputError: There is none.
  """
  if address := remote_folder.address_of(folder):
    folder = _fetched(RemoteFolder(address), lambda name: True)
  folder = existing_folder(folder)
  reports = sorted(folder.rglob(REPORT_NAME))
  found = [path.parent for path in reports if not _is_unfinished(path.relative_to(folder))]
  if not found and is_version(folder):
    found = [folder]
  if not found:
    raise _nothing_in(folder)
  return [open_folder(path) for path in found]


def find_one(folder: pathlib.Path) -> BuiltDataset:
  """Opens the only dataset of this project at or below `folder`.

  Raises:
    InputError: There is none, or more than one.
  """
  found = find(folder)
  if len(found) > 1:
    names = ", ".join(dataset.name for dataset in found[:8])
    raise InputError(
        f"{folder}: holds {len(found)} built datasets: {names}. Name the folder of one of them."
    )
  return found[0]


def locate(dataset: str | None, data_dir: pathlib.Path) -> pathlib.Path:
  """Returns the version folder of a dataset of any origin.

  Args:
    dataset: NAME, NAME/CONFIG or NAME/CONFIG/VERSION; None where `data_dir` is a version folder.
    data_dir: Folder of built datasets, or a version folder.

  Raises:
    InputError: There is no such dataset; says what is there.
  """
  if address := remote_folder.address_of(data_dir):
    return _locate_remote(dataset, RemoteFolder(address))
  data_dir = existing_folder(data_dir)
  if is_version(data_dir):
    if dataset and not set(dataset.split("/")) <= set(data_dir.resolve().parts):
      raise InputError(f"{data_dir}: is a built dataset, but not {dataset}.")
    return data_dir
  if not dataset:
    raise InputError(
        f"{data_dir}: is no dataset itself. It holds: {_listing(data_dir)}. Pass one as --dataset."
    )
  path = data_dir
  for part in dataset.split("/"):
    if not (path / part).is_dir():
      near = difflib.get_close_matches(part, _built_in(path), n=1)
      hint = f" Did you mean {near[0]!r}?" if near else ""
      raise InputError(
          f"--dataset={dataset}: {path} has no {part!r}. It holds: {_listing(path)}.{hint}"
      )
    path = path / part
  return _descend(path, dataset)


def _locate_remote(dataset: str | None, remote: RemoteFolder) -> pathlib.Path:
  """Returns the copy of a dataset behind an address, as `locate`; others there are not copied."""
  remote.fetch(lambda name: pathlib.PurePosixPath(name).name == INFO_NAME)
  path = locate(dataset, remote.path)
  below = path.relative_to(remote.path).as_posix()
  prefix = "" if below == "." else f"{below}/"
  return _fetched(remote, lambda name: name.startswith(prefix)) / below


def _fetched(remote: RemoteFolder, wanted: Callable[[str], bool]) -> pathlib.Path:
  """Copies datasets behind an address, and returns where; new shards have the hashes of reports."""
  before = {path: path.stat().st_mtime_ns for path in remote.path.rglob("*") if is_shard(path)}

  def check() -> None:
    for report in remote.path.rglob(REPORT_NAME):
      for shard in read_report(report.parent).get("shards", ()):
        path = report.parent / shard["file"]
        if not path.is_file() or before.get(path) == path.stat().st_mtime_ns:
          continue
        if files.sha256_of(path) != shard["sha256"]:
          path.unlink()
          raise InputError(
              f"{remote.address}: {path.name} arrived damaged (sha256 in {REPORT_NAME}). Try again;"
              " where that does not help, the file in the bucket is damaged."
          )

  remote.fetch(wanted, check)
  return remote.path


def existing_folder(folder: pathlib.Path) -> pathlib.Path:
  """Returns a folder of built datasets with ~ expanded.

  Raises:
    InputError: There is no such folder.
  """
  folder = pathlib.Path(folder).expanduser()
  if not folder.is_dir():
    raise InputError(
        f"{folder}: there is no such folder. Name a built dataset or a folder of them; build one:"
        f" {BUILD_COMMAND}."
    )
  return folder


def is_version(path: pathlib.Path) -> bool:
  """Returns whether a folder is a built dataset: TFDS moves it into place at the end."""
  return (path / INFO_NAME).is_file()


def set_aside(version_folder: pathlib.Path) -> pathlib.Path:
  """Returns where a build keeps the dataset that it replaces, until it has succeeded."""
  return version_folder.with_name(f".replaced-{version_folder.name}")


def _descend(path: pathlib.Path, dataset: str) -> pathlib.Path:
  """Goes down to the version: config `slices` where there is a choice, the newest version."""
  for _ in range(3):
    if is_version(path):
      return path
    names = _built_in(path)
    versions = [name for name in names if _version_key(name)]
    if versions:
      path = path / max(versions, key=lambda name: _version_key(name) or ())
    elif "slices" in names:
      path = path / "slices"
    elif len(names) == 1:
      path = path / names[0]
    elif names:
      raise InputError(
          f"--dataset={dataset} has several configs: {', '.join(names)}. Name one:"
          f" --dataset={dataset}/{names[0]}."
      )
    else:
      break
  raise _nothing_in(path)


def _version_key(name: str) -> tuple[int, ...] | None:
  parts = name.split(".")
  is_number = len(parts) == 3 and all(part.isdigit() for part in parts)
  return tuple(int(part) for part in parts) if is_number else None


def _built_in(path: pathlib.Path) -> list[str]:
  """Returns the folders that hold a built dataset, sorted."""
  folders = [p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")]
  return sorted(folder.name for folder in folders if _holds_dataset(folder))


def _holds_dataset(path: pathlib.Path) -> bool:
  """Returns whether a dataset, or a config or version of it, has been built in a folder."""
  # A build that was killed leaves folders in which none has come to its end.
  found = [info for below in ("", "*/", "*/*/") for info in path.glob(f"{below}{INFO_NAME}")]
  return any(not _is_unfinished(info.relative_to(path)) for info in found)


def _is_unfinished(below: pathlib.Path) -> bool:
  """Returns whether a path leads through a folder of a build that was interrupted."""
  return any(part.startswith((".", "incomplete.")) for part in below.parts)


def _listing(path: pathlib.Path) -> str:
  names = _built_in(path)
  return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "") if names else "nothing"


def _nothing_in(folder: pathlib.Path) -> InputError:
  return InputError(f"{folder}: holds no built dataset. Build one: {BUILD_COMMAND}.")
