"""Checks of raw folders that need headers only: finding, pairing, shapes, whatever the case."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable

from flexunet.datasets import volume_header, volume_io
from flexunet.datasets.cases import Findings
from flexunet.datasets.errors import InputError

_SEARCH_DEPTH = 3
# What operating systems and archives strew about; no part of any dataset.
_LITTER = {".ds_store", "thumbs.db", "desktop.ini", "__macosx"}


def children(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns what lies in a folder, sorted, without hidden files and litter."""
  return sorted(
      path
      for path in folder.iterdir()
      if not path.name.startswith(".") and path.name.lower() not in _LITTER
  )


def child(folder: pathlib.Path, *names: str) -> pathlib.Path | None:
  """Returns the child of one of these names; case, spaces, hyphens and underscores are equal."""
  wanted = {_plain(name) for name in names}
  return next((path for path in children(folder) if _plain(path.name) in wanted), None)


def folder_in(folder: pathlib.Path, *names: str) -> pathlib.Path:
  """Returns the child folder of one of these names.

  Raises:
    InputError: When there is none.
  """
  found = child(folder, *names)
  if found is None or not found.is_dir():
    raise InputError(f"{folder}: has no folder {names[0]}.")
  return found


def find_folder(root: pathlib.Path, *names: str) -> pathlib.Path | None:
  """Returns the folder nearest to `root` that has a child of one of these names.

  Users point at the folder itself, at what an archive was unpacked into, or one above.
  """
  level = [root]
  for _ in range(_SEARCH_DEPTH + 1):
    for folder in level:
      if child(folder, *names) is not None:
        return folder
    level = [path for folder in level for path in children(folder) if path.is_dir()]
  return None


def volumes_by_stem(folder: pathlib.Path, findings: Findings) -> dict[str, pathlib.Path]:
  """Returns {stem: file} of the volumes in a folder; a pair is named by its header.

  Two volumes of one stem are a problem; files that are no volumes are left out with a line.
  """
  found: dict[str, pathlib.Path] = {}
  for path in children(folder):
    if path.is_dir():
      continue
    if not volume_io.is_volume(path):
      findings.leave_out(path, "not a volume")
      continue
    stem = volume_header.stem_of(path)
    first = found.setdefault(stem, path)
    kinds = {volume_header.suffix_of(file)[:4] for file in (first, path)}
    if first is not path and kinds != {".hdr", ".img"}:
      findings.problem(
          f"{findings.relative(path)}: duplicate of {findings.relative(first)}; keep one of them."
      )
    elif volume_header.suffix_of(path)[:4] == ".hdr":
      found[stem] = path
  return found


def volume_files(role: str, path: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns {role: file}, and the voxel file of a pair as {role + "_voxels": file}."""
  header_path, data_path = volume_header.files_of(path)
  files = {role: header_path}
  if data_path != header_path:
    files[f"{role}_voxels"] = data_path
  return files


def check_volumes(findings: Findings, image: pathlib.Path, label: pathlib.Path | None) -> bool:
  """Reads the headers of a scan and its label; notes what is wrong and tells if all is well."""
  shapes = []
  paths = [image] if label is None else [image, label]
  for path in paths:
    try:
      shapes.append(volume_io.read_header(path).shape)
    except InputError as error:
      findings.problem(str(error))
  if len(set(shapes)) == 2:
    findings.problem(
        f"{label}: a label must lie on the grid of its scan. Scan {shapes[0]}, label {shapes[1]}."
    )
    return False
  return len(shapes) == len(paths)


def unpaired(findings: Findings, files: Iterable[pathlib.Path], lacks: str) -> None:
  """Notes files that lack their counterpart."""
  for path in files:
    findings.problem(f"{findings.relative(path)}: has no {lacks}. Add it or remove this file.")


def _plain(name: str) -> str:
  return re.sub(r"[\s_-]+", " ", name).lower()
