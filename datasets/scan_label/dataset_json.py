"""Folders with a `dataset.json`: Medical Segmentation Decathlon, and the raw form of nnU-Net.

  dataset.json, imagesTr/NAME[_0000], labelsTr/NAME, imagesTs/ and maybe labelsTs/

Both name classes and modality there. nnU-Net numbers channels at the end of names, and keeps its
folds in `splits_final.json`.
"""

from __future__ import annotations

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
  names, ignore_id = _classes(about, path)
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


def _classes(about: Mapping[str, Any], path: pathlib.Path) -> tuple[dict[int, str], int | None]:
  """Returns {id: name} without the ignore label of nnU-Net, and the id of that."""
  labels = about.get("labels") or {}
  if not isinstance(labels, Mapping):
    raise InputError(f"{path}: labels must be an object of names and ids. Got: {str(labels)[:80]}.")
  names = raw_scans.names_of_ids(labels, path)
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
