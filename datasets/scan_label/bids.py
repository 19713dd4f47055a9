"""BIDS folders: scans in `sub-*/[ses-*/]anat`, labels in derivatives, names in `dseg.tsv`.

A label belongs to the scan whose entities it has (subject, session, run, acquisition ...). The
sessions of a person stay together. Which of several contrasts are built is `--channels`.
"""

from __future__ import annotations

import csv
import dataclasses
import pathlib
import re
from collections.abc import Iterator, Mapping

from flexunet.core.errors import InputError
from flexunet.datasets.builder import raw_folder
from flexunet.datasets.builder.raw_folder import Findings
from flexunet.datasets.scan_label import raw_scans
from flexunet.datasets.scan_label.raw_scans import Layout, RawScan
from flexunet.imaging import scan_files

_FOLDERS = ("anat", "ct")
_LABEL_SUFFIXES = ("dseg", "mask")
# No scans, whatever folder they lie in.
_OTHER_SUFFIXES = ("probseg", "dseg", "mask", "defacemask")
# Entities by which a label is told from others of one scan, not one scan from another.
_OF_LABEL = {"desc", "label", "space", "atlas", "seg", "res", "den", "hemi"}


@dataclasses.dataclass(frozen=True)
class Named:
  """A file by the parts of its BIDS name, sub-01_ses-a_T1w: entities in order, and suffix."""

  path: pathlib.Path
  entities: Mapping[str, str]
  suffix: str

  def of_scan(self) -> dict[str, str]:
    """Returns the entities that say which scan it is, or belongs to."""
    return {key: value for key, value in self.entities.items() if key not in _OF_LABEL}


def find(folder: pathlib.Path, findings: Findings, channels: tuple[str, ...]) -> Layout | None:
  """Returns the scans of a folder of this layout, or None where it is not.

  Args:
    folder: May be the root of a BIDS dataset.
    findings: Takes what is wrong.
    channels: Suffixes to build, such as T1w and FLAIR; () for the only one there is.
  """
  images = [named for named in _files(folder) if named.suffix not in _OTHER_SUFFIXES]
  if not images:
    return None
  derivatives = raw_folder.child(folder, "derivatives")
  places = [folder, *_pipelines(derivatives)]
  labels = [
      named for place in places for named in _files(place) if named.suffix in _LABEL_SUFFIXES
  ]
  if any(named.suffix == "dseg" for named in labels):
    labels = [named for named in labels if named.suffix == "dseg"]
  else:  # Brain masks and the like are no classes.
    labels = [named for named in labels if "label" in named.entities]
  if not labels:
    findings.problem(
        f"{findings.relative(folder)}: BIDS labels are derivatives/NAME/sub-*/anat/*_dseg.nii.gz,"
        " or *_label-*_mask.nii.gz; none was found."
    )
  suffixes = _chosen_suffixes(images, channels, folder)
  scans = list(_scans(images, labels, suffixes, findings))
  names, source = _class_names(labels, places)
  if source is not None:
    findings.leave_out(source, "read: it names the classes")
  single = len(suffixes) == 1
  return Layout(
      "bids",
      f"sub-*/anat with {', '.join(suffixes)}, labels"
      f" {', '.join(sorted({_kind(label) for label in labels}))}",
      scans,
      class_names=names,
      names_from=source.name if source else "the names of the masks",
      channels=["image"] if single else list(suffixes),
      modality="ct" if set(suffixes) == {"ct"} else "mri",
  )


def _kind(label: Named) -> str:
  described = [f"{key}-{label.entities[key]}" for key in ("desc", "label", "atlas", "seg")
               if key in label.entities]  # fmt: skip
  return "_".join([*described, label.suffix])


def _pipelines(derivatives: pathlib.Path | None) -> list[pathlib.Path]:
  """Returns the folders of derivatives that hold subjects: itself, and its children."""
  if derivatives is None or not derivatives.is_dir():
    return []
  children = [path for path in raw_folder.children(derivatives) if path.is_dir()]
  return [derivatives, *(path for path in children if not path.name.startswith("sub-"))]


def _files(folder: pathlib.Path) -> Iterator[Named]:
  """Yields the volumes below sub-*/[ses-*/]{anat,ct} of a folder."""
  for subject in _children_called(folder, "sub-"):
    for session in (subject, *_children_called(subject, "ses-")):
      for name in _FOLDERS:
        place = session / name
        for path in raw_folder.children(place) if place.is_dir() else ():
          if path.is_file() and scan_files.is_scan(path) and path.name.startswith(subject.name):
            yield _parsed(path)


def _children_called(folder: pathlib.Path, start: str) -> list[pathlib.Path]:
  return [p for p in raw_folder.children(folder) if p.is_dir() and p.name.startswith(start)]


def _parsed(path: pathlib.Path) -> Named:
  *parts, suffix = scan_files.stem_of(path).split("_")
  entities = dict(part.split("-", 1) for part in parts if "-" in part)
  return Named(path, entities, suffix)


def _chosen_suffixes(
    images: list[Named], channels: tuple[str, ...], folder: pathlib.Path
) -> tuple[str, ...]:
  there = sorted({named.suffix for named in images})
  if missing := [name for name in channels if name not in there]:
    raise InputError(f"--channels: {folder} has the contrasts {', '.join(there)}, no {missing[0]}.")
  if not channels and len(there) > 1:
    raise InputError(
        f"{folder}: holds the contrasts {', '.join(there)}. Name what to build:"
        f" --channels={there[0]}, or --channels={','.join(there)} where they lie on one grid."
    )
  return channels or tuple(there)


def _scans(
    images: list[Named], labels: list[Named], suffixes: tuple[str, ...], findings: Findings
) -> Iterator[RawScan]:
  """Yields a scan for each image of the first contrast, with its other channels and its label."""
  of_label: dict[pathlib.Path, list[Named]] = {}
  first = [named for named in images if named.suffix == suffixes[0]]
  for label in labels:
    found = _belonging(label.of_scan(), first)
    if len(found) == 1:
      of_label.setdefault(found[0].path, []).append(label)
    else:
      findings.problem(
          f"{findings.relative(label.path)}: must belong to one scan by its entities; it fits"
          f" {', '.join(named.path.name for named in found) or 'none'}. Rename it, or write"
          " scans.csv."
      )
  for image in first:
    own = of_label.get(image.path, [])
    if len(own) > 1:
      findings.problem(
          f"{findings.relative(image.path)}: has {len(own)} labels, {own[0].path.name} and"
          f" {own[1].path.name}. Keep one kind in derivatives, or write scans.csv."
      )
    channels = {}
    for suffix in suffixes:
      others = [named for named in images if named.suffix == suffix]
      found = [image] if suffix == image.suffix else _belonging(image.of_scan(), others)
      if len(found) == 1:
        channels[suffix if len(suffixes) > 1 else "image"] = found[0].path
    entities = image.of_scan()
    name = "_".join(f"{key}-{value}" for key, value in entities.items())
    label_path = own[0].path if own else None
    yield RawScan(f"sub-{entities['sub']}", raw_scans.plain_name(name), channels, label_path)


def _belonging(wanted: Mapping[str, str], images: list[Named]) -> list[Named]:
  """Returns the images whose entities do not contradict, those with most in common only."""
  fitting = []
  for named in images:
    own = named.of_scan()
    same_person = all(own.get(key) == wanted.get(key) for key in ("sub", "ses"))
    agreeing = [key for key in wanted if own.get(key) == wanted[key]]
    contradicting = [key for key in wanted if own.get(key, wanted[key]) != wanted[key]]
    if same_person and not contradicting:
      fitting.append((len(agreeing) - len(own), named))
  best = max((score for score, _ in fitting), default=0)
  return [named for score, named in fitting if score == best]


def _class_names(
    labels: list[Named], places: list[pathlib.Path]
) -> tuple[dict[int, str] | None, pathlib.Path | None]:
  """Returns {id: name} and the file that says so; a binary mask is named by its entity `label`."""
  masks = {label.entities.get("label", "") for label in labels if label.suffix == "mask"}
  if len(masks) == 1 and "" not in masks:
    return {1: raw_scans.plain_name(next(iter(masks)))}, None
  described = {frozenset(label.entities.items()) for label in labels}
  tables = []
  for path in (p for place in places for p in raw_folder.children(place) if p.is_file()):
    if re.fullmatch(r"(.*_)?dseg\.tsv", path.name):
      stated = set(_parsed(path.with_suffix("")).entities.items())
      if any(stated <= own for own in described):
        tables.append((len(stated), path))
  if not tables:
    return None, None
  _, path = max(tables, key=lambda entry: entry[0])
  return _read_names(path), path


def _read_names(path: pathlib.Path) -> dict[int, str]:
  with open(path, newline="", encoding="utf-8-sig") as stream:
    rows = list(csv.DictReader(stream, delimiter="\t"))
  if not rows or not {"index", "name"} <= rows[0].keys():
    raise InputError(f"{path}: must have the columns index and name, separated by tabs.")
  return raw_scans.names_of_ids({row["index"]: row["name"] for row in rows}, path)
