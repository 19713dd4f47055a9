"""Folders with a `dataset.json`: Medical Segmentation Decathlon, and the raw form of nnU-Net.

  dataset.json, imagesTr/NAME[_0000], labelsTr/NAME, imagesTs/ and maybe labelsTs/

Both name classes and modality there. nnU-Net numbers channels at the end of names, and keeps its
folds in `splits_final.json`.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from flexunet.core.errors import InputError
from flexunet.datasets.builder import raw_folder
from flexunet.datasets.builder.raw_folder import Findings
from flexunet.datasets.scan_label import pairs, raw_scans
from flexunet.datasets.scan_label.raw_scans import Layout, RawScan

_NAME = "dataset.json"
_SPLITS = "splits_final.json"
_IGNORE = "ignore"


def find(folder: pathlib.Path, findings: Findings) -> Layout | None:
  """Returns the scans of a folder of this layout, or None where it is not."""
  path = raw_folder.child(folder, _NAME)
  if path is None or not path.is_file():
    return None
  about = raw_scans.read_json(path)
  if not any(key in about for key in ("labels", "training", "channel_names", "modality")):
    return None
  kind = "nnunet" if "channel_names" in about or "file_ending" in about else "msd"
  channels = _channels(about, path)
  found = [pair for pair in pairs.folder_pairs(folder) if pair.side in ("", "test", "validation")]
  if not found:
    findings.problem(
        f"{findings.relative(path)}: imagesTr and labelsTr must lie beside it and hold volumes."
        " They do not."
    )
  findings.leave_out(path, "read: it names the classes")
  regions = _regions(about)
  names, ignore_id = _classes(about, path)
  if regions:
    findings.choices["regions"] = _about_regions(regions, names)
  scans = pairs.scans_of(found, findings, channels)
  scans = [_with_fold(scan, _folds(folder, findings)) for scan in scans]
  modalities = {_modality(name) for name in _modalities(about).values()}
  return Layout(
      kind,
      f"{findings.relative(path)} with imagesTr/ and labelsTr/",
      scans,
      class_names=names or None,
      names_from=_NAME if names else "",
      channels=[channels[number] for number in sorted(channels)],
      modality="ct" if modalities == {"ct"} else "mri" if "ct" not in modalities else None,
      ignore_id=ignore_id,
      stacked_names=_stacked_names(about, path),
  )


def _modalities(about: Mapping[str, Any]) -> dict[int, str]:
  """Returns {number of the channel: name or modality} as dataset.json states them."""
  stated = about.get("channel_names") or about.get("modality") or {}
  if not isinstance(stated, Mapping):
    return {0: str(stated)}
  return {int(number): str(name) for number, name in stated.items() if str(number).isdigit()}


def _channels(about: Mapping[str, Any], path: pathlib.Path) -> dict[int, str]:
  stated = _modalities(about)
  names = {number: raw_scans.plain_name(name) for number, name in stated.items()}
  if len(names) <= 1:
    return {0: "image"}
  if len(set(names.values())) < len(names):
    raise InputError(f"{path}: channel names must differ. Got: {', '.join(names.values())}.")
  return names


def _stacked_names(about: Mapping[str, Any], path: pathlib.Path) -> list[str]:
  """Returns the stated channels in order, one too, as files of four axes hold them."""
  names, stated = _channels(about, path), _modalities(about)
  return [names[number] for number in sorted(names)] if stated else []


def _modality(name: str) -> str:
  return "ct" if name.strip().lower() in ("ct", "cect", "ncct", "cta") else "mri"


def _regions(about: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
  """Returns {name: ids} of the classes of nnU-Net that are regions, lists of ids that overlap."""
  labels = about.get("labels")
  stated = labels.items() if isinstance(labels, Mapping) else ()
  return {
      str(name): tuple(ids) for name, ids in stated
      if isinstance(ids, list) and ids and all(type(one) is int and one > 0 for one in ids)
  }  # fmt: skip


def _without_regions(
    labels: Mapping[str, Any], regions: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
  """Returns the classes with an id each: an id has the name of the smallest region that holds it.

  Where several ids would have one name, the id stands behind it.
  """
  plain = {name: value for name, value in labels.items() if name not in regions}
  known = {value for value in plain.values() if isinstance(value, int)}
  smallest: dict[int, str] = {}
  for name in sorted(regions, key=lambda name: -len(regions[name])):
    smallest.update(dict.fromkeys(set(regions[name]) - known, name))
  shared = collections.Counter(smallest.values())
  for number, name in sorted(smallest.items()):
    plain[name if shared[name] == 1 else f"{name}_{number}"] = number
  return plain


def _about_regions(regions: Mapping[str, tuple[int, ...]], names: Mapping[int, str]) -> str:
  """Returns what became of regions, for the user and the report."""
  found = ", ".join(f"{name} = {'+'.join(map(str, ids))}" for name, ids in regions.items())
  now = ", ".join(f"{number} {name}" for number, name in sorted(names.items()))
  return f"{found} overlap; a voxel has one class here, so classes are the ids: {now}"


def _classes(about: Mapping[str, Any], path: pathlib.Path) -> tuple[dict[int, str], int | None]:
  """Returns {id: name} without the ignore label of nnU-Net, and the id of that."""
  labels = about.get("labels") or {}
  if not isinstance(labels, Mapping):
    raise InputError(f"{path}: labels must be an object of names and ids. Got: {str(labels)[:80]}.")
  names = raw_scans.names_of_ids(_without_regions(labels, _regions(about)), path)
  ignored = [number for number, name in names.items() if name.lower() == _IGNORE]
  counted = {number: name for number, name in names.items() if number not in ignored}
  return counted, ignored[0] if ignored else None


def _folds(folder: pathlib.Path, findings: Findings) -> dict[str, int]:
  """Returns {case: fold in whose validation it is} of nnU-Net's splits, where they are found."""
  places = [folder, findings.root, findings.root / "nnUNet_preprocessed" / folder.name]
  for place in places:
    path = place / _SPLITS
    if not path.is_file():
      continue
    try:
      folds = json.loads(path.read_text(encoding="utf-8"))
      return {str(case): n for n, fold in enumerate(folds) for case in fold["val"]}
    except (ValueError, TypeError, KeyError) as error:
      raise InputError(
          f"{path}: must be a list of {{\"train\": [...], \"val\": [...]}}; {error}. Mend or remove"
          " it."
      ) from error
  return {}


def _with_fold(scan: RawScan, folds: Mapping[str, int]) -> RawScan:
  return dataclasses.replace(scan, fold=folds.get(scan.name)) if scan.label is not None else scan
