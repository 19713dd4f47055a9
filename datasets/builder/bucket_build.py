"""Builds whose raw folder or datasets lie in a bucket: fetched before, put there afterwards.

Builds look through a folder and write shards at random places: work for a local disk. So the raw
folder is copied once, what a build writes lies in the user's cache folder until it is whole, and
then goes into the bucket, `dataset_info.json` last: a dataset without it is none.
"""

from __future__ import annotations

import os
import pathlib
import shutil

from flexunet.core import files, progress, remote_folder
from flexunet.core.errors import InputError
from flexunet.core.remote_folder import RemoteFolder
from flexunet.datasets.builder.raw_folder import KEY_NAME
from flexunet.datasets.built_dataset import INFO_NAME


class BuildFolders:
  """Where a build reads and writes on this machine.

  Attributes:
    raw: The raw folder, or its copy.
    data: Folder of built datasets, or where they lie until they are in the bucket.
    raw_address, data_address: Those in buckets; None for folders of this machine.
  """

  def __init__(self, manual_dir: str | os.PathLike, data_dir: str | os.PathLike):
    """Copies a raw folder in a bucket; a path of this machine is only expanded.

    Raises:
      InputError: An address cannot be read.
    """
    self.raw_address = remote_folder.address_of(manual_dir)
    self.data_address = remote_folder.address_of(data_dir)
    self.raw = pathlib.Path(manual_dir).expanduser()
    self.data = pathlib.Path(data_dir).expanduser()
    if self.raw_address:
      self.raw = _fetched(RemoteFolder(self.raw_address))
    if self.data_address:
      scheme, _, below = self.data_address.partition("://")
      if ".." in pathlib.PurePosixPath(below).parts:
        raise InputError(f"{self.data_address}: must not hold '..'. Name the folder itself.")
      self.data = files.user_cache_folder() / "builds" / scheme / below
      remote_folder.connect(self.data_address)  # Fails before hours of work.

  def beam_options(self, text: str | None) -> str | None:
    """Adds to the options of Beam through which buckets its workers read and write."""
    if text is None:
      return None
    own = {"raw_address": self.raw_address, "work_address": self.data_address}
    given = {word.partition("=")[0].strip() for word in text.split(",")}
    added = [f"{name}={value}" for name, value in own.items() if value and name not in given]
    return ",".join([*([text] if text else []), *added])

  def shown(self, version_folder: str | os.PathLike) -> str:
    """Returns where a dataset will lie in the end."""
    if not self.data_address:
      return os.fspath(version_folder)
    below = pathlib.Path(version_folder).relative_to(self.data).as_posix()
    return f"{self.data_address}/{below}"

  def fetch_built(self, version_folder: str | os.PathLike) -> None:
    """Copies the small files of a dataset that is in the bucket already: they say what it is."""
    if not self.data_address:
      return
    folder = pathlib.Path(version_folder)
    shutil.rmtree(folder, ignore_errors=True)  # One that was not put there is built again.
    system, root = remote_folder.connect(self.shown(folder))
    system.invalidate_cache()
    if not system.exists(f"{root}/{INFO_NAME}"):
      return
    folder.mkdir(parents=True)
    for path in system.find(root):
      name = path.rsplit("/", 1)[-1]
      if pathlib.PurePosixPath(name).suffix in (".json", ".txt"):
        system.get_file(path, os.fspath(folder / name))

  def publish(self, version_folder: str | os.PathLike) -> None:
    """Puts a dataset that was built into the bucket; it replaces the one there."""
    if not self.data_address:
      return
    folder = pathlib.Path(version_folder)
    system, root = remote_folder.connect(self.shown(folder))
    system.invalidate_cache()
    if system.exists(root):
      stale = system.find(root)
      # What says that the old one is whole goes first.
      for path in sorted(stale, key=lambda path: not path.endswith(f"/{INFO_NAME}")):
        system.rm_file(path)
    system.makedirs(root, exist_ok=True)
    paths = sorted(path for path in folder.iterdir() if path.is_file() and path.name != INFO_NAME)
    with progress.bar(
        [*paths, folder / INFO_NAME], desc="Putting", unit=" file", disable=None, leave=False
    ) as bar:
      for path in bar:
        system.put_file(os.fspath(path), f"{root}/{path.name}")
    for path in paths:
      if system.size(f"{root}/{path.name}") != path.stat().st_size:
        raise InputError(f"{self.shown(folder)}/{path.name}: arrived with another size. Try again.")

  def forget(self, version_folder: str | os.PathLike) -> None:
    """Removes the copy of a dataset that is in the bucket."""
    if self.data_address:
      shutil.rmtree(version_folder, ignore_errors=True)


def _fetched(remote: RemoteFolder) -> pathlib.Path:
  """Copies a raw folder; what is no longer in the bucket is removed here."""
  remote.fetch(lambda name: True)
  for path in sorted(remote.path.rglob("*")):
    name = path.relative_to(remote.path).as_posix()
    ours = path.name == KEY_NAME or path.name.startswith(".")
    if path.is_file() and not ours and name not in remote.names:
      path.unlink()
  return remote.path
