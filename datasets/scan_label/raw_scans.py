"""What the layouts of a folder have in common: scans, their labels, and names of classes.

Each layout is a module with `find(folder, findings, options)`, which returns a `Layout`, or None
where the folder is not of it. Headers are not read here, only names.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flexunet.core.errors import InputError
from flexunet.datasets.builder import raw_folder
from flexunet.datasets.builder.raw_folder import Case, Findings
from flexunet.imaging import scan_files
from flexunet.imaging.volume import VolumeHeader

# Published sides of a folder, by the names they go by.
SIDES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("valid", "val", "validation"),
    "test": ("test", "testing"),
}


@dataclasses.dataclass(frozen=True)
class RawScan:
  """One scan of a person, with the volumes that are its channels.

  Attributes:
    subject: The person, as the layout names them.
    name: Unique in the folder; the subject itself where there is one scan of each.
    images: Channel name -> file.
    label: None where there is none.
    side: Published split, or "".
    fold: Published fold; None where there is none.
  """

  subject: str
  name: str
  images: Mapping[str, pathlib.Path]
  label: pathlib.Path | None
  side: str = ""
  fold: int | None = None


@dataclasses.dataclass(frozen=True)
class Layout:
  """What was found in a folder.

  Attributes:
    kind: One of `options.LAYOUTS`.
    where: What was found, in words, for the user.
    scans: In no order.
    class_names: {label id: name}; None where the layout names no classes.
    names_from: File that names them.
    channels: Names of the channels in order.
    modality: "mri" or "ct"; None where the layout does not say.
    ignore_id: Label id that is not to be counted; None where there is none.
    stacked_names: Names of the channels that a file may hold in its fourth axis; () where nothing
      names them; None where the layout does not say that a fourth axis is channels.
    components: Channel -> its volume along the fourth axis of each image, from 0; {} where each
      channel is a file.
  """

  kind: str
  where: str
  scans: Sequence[RawScan]
  class_names: Mapping[int, str] | None = None
  names_from: str = ""
  channels: Sequence[str] = ("image",)
  modality: str | None = None
  ignore_id: int | None = None
  stacked_names: Sequence[str] | None = None
  components: Mapping[str, int] = dataclasses.field(default_factory=dict)


def components_of(case: Case) -> tuple[int, ...]:
  """Returns which volumes along the fourth axis of its image are a case's channels, in order."""
  return tuple((case.details or {}).get("components", ()))


def role_of(number: int) -> str:
  """Returns the role of the file of a channel, the first of which has the number 1."""
  return "image" if number == 1 else f"image_{number}"


def header_of(case: Case) -> VolumeHeader:
  """Returns the header of the first channel of a case."""
  return scan_files.read_header(case.files["image"], next(iter(components_of(case)), None))


def plain_name(text: str) -> str:
  """Returns a name of letters, digits and ._- only: it becomes part of keys and columns."""
  return re.sub(r"[^\w.-]+", "_", text.strip()).strip("_") or "unnamed"


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Returns the mapping that a JSON file holds.

  Raises:
    InputError: It holds something else.
  """
  try:
    values = json.loads(path.read_text(encoding="utf-8-sig"))
  except (OSError, ValueError) as error:
    what = str(error).splitlines()[0]
    raise InputError(f"{path}: must be JSON; {what}. Mend the file.") from error
  if not isinstance(values, dict):
    raise InputError(f"{path}: must be a JSON object {{...}}. Got: {str(values)[:80]}.")
  return values


def names_of_ids(values: Mapping[Any, Any], path: pathlib.Path) -> dict[int, str]:
  """Returns {id: name} of a mapping from ids to names, or from names to ids.

  Raises:
    InputError: It is neither, or an id or name occurs twice; a list of ids (a region) is refused.
  """
  found: dict[int, str] = {}
  for key, value in values.items():
    by_id = str(key).strip().lstrip("+").isdigit()
    number, name = (key, value) if by_id and not _is_whole(value) else (value, key)
    if isinstance(number, list):
      raise InputError(
          f"{path}: class {name!r} is a region of the ids {number}, and regions overlap: a"
          " voxel has one class here. Name the ids by --classes=classes.json, merge them by --map."
      )
    if not _is_whole(number) or not isinstance(name, str) or not name.strip():
      raise InputError(
          f"{path}: classes must be {{\"1\": \"name\", ...}}. Got: {str({key: value})[:80]}."
      )
    if int(number) in found:
      raise InputError(f"{path}: id {int(number)} is named twice; name it once.")
    found[int(number)] = plain_name(name)
  return found


def _is_whole(value: Any) -> bool:
  if isinstance(value, bool) or value is None:
    return False
  return isinstance(value, int) or (isinstance(value, str) and value.strip().isdigit())


def side_folders(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns {split: child folder} of the children called train, valid, test and the like."""
  found = {}
  for split, names in SIDES.items():
    child = raw_folder.child(folder, *names)
    if child is not None and child.is_dir():
      found[split] = child
  return found


def volumes_in(folder: pathlib.Path | None, findings: Findings) -> dict[str, pathlib.Path]:
  """Returns {stem: file} of the volumes right in a folder, each stem once."""
  return {} if folder is None else raw_folder.volumes_by_stem(folder, findings)


def holds_volumes(folder: pathlib.Path | None) -> bool:
  """Returns whether a volume lies right in a folder."""
  # A throw-away list: what a look notes must not reach the report.
  return folder is not None and folder.is_dir() and bool(volumes_in(folder, Findings(folder)))
