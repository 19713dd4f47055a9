"""Folders of scans beside folders of labels, or both in one folder with names that pair them.

  images/NAME + labels/NAME               also masks/, segmentations/, imagesTr/ + labelsTr/
  {train,valid,test}/{images,labels}/     or images/{train,...} + labels/{train,...}
  NAME + NAME_seg                         also _label, _mask; NAME_t1 + NAME_t2 + NAME_seg
  CASE/imaging + CASE/segmentation        a folder for each case

Scans may be called NAME_0000, NAME_0001, ...: the channels of NAME, as nnU-Net numbers them.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping

from flexunet.datasets.builder import raw_folder
from flexunet.datasets.builder.raw_folder import Findings
from flexunet.datasets.scan_label import raw_scans
from flexunet.datasets.scan_label.options import MOST_CHANNELS
from flexunet.datasets.scan_label.raw_scans import Layout, RawScan

IMAGES = ("images", "image", "imgs", "img", "scans", "volumes", "imagesTr")
LABELS = (
    "labels", "label", "masks", "mask", "segmentations", "segmentation", "segs", "seg",
    "annotations", "ground truth", "gt", "labelsTr",
)  # fmt: skip
_LABEL_WORD = r"(seg|segm|segmentation|labels?|labelmap|masks?|gt|ground[-_ ]?truth)"
_LABEL_STEM = re.compile(rf"(?:(?P<base>.+)[-_. ])?{_LABEL_WORD}", re.IGNORECASE)
_IMAGE_STEM = re.compile(r"(?P<base>.+)[-_. ](image|img|imaging|scan|volume)", re.IGNORECASE)
_NUMBERED = re.compile(r"(?P<base>.+)_(?P<channel>\d{4})")
_SEPARATORS = "-_. "
_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class FolderPair:
  """A folder of scans, and that of their labels where there is one; `side` is "" or a split."""

  side: str
  images: pathlib.Path
  labels: pathlib.Path | None


@dataclasses.dataclass(frozen=True)
class Pairing:
  """Scans of a folder with their labels.

  Attributes:
    images: Scan name -> {number of the channel: file}.
    labels: Scan name -> label.
    lonely: Labels without a scan.
  """

  images: Mapping[str, Mapping[int, pathlib.Path]]
  labels: Mapping[str, pathlib.Path]
  lonely: list[pathlib.Path]


def find(folder: pathlib.Path, findings: Findings) -> Layout | None:
  """Returns the scans of a folder of this layout, or None where it is not."""
  if pairs := folder_pairs(folder):
    scans = scans_of(pairs, findings)
    names = sorted({f"{findings.relative(p.images)}/" for p in pairs if p.labels is not None})
    labels = sorted({f"{findings.relative(p.labels)}/" for p in pairs if p.labels is not None})
    where = f"scans in {', '.join(names)}, labels in {', '.join(labels)}"
    return Layout("pairs", where, scans, channels=_channels_of(scans))
  if scans := _by_suffix(folder, findings):
    where = f"labels beside their scans in {findings.relative(folder)}/, paired by name"
    return Layout("pairs", where, scans, channels=_channels_of(scans))
  return None


def _channels_of(scans: list[RawScan]) -> list[str]:
  return list(dict.fromkeys(name for scan in scans for name in scan.images)) or ["image"]


def folder_pairs(folder: pathlib.Path) -> list[FolderPair]:
  """Returns the folders of scans with those of their labels, at least one pair; else nothing."""
  images, labels = (_folder_of(folder, names) for names in (IMAGES, LABELS))
  found = []
  if raw_scans.holds_volumes(images) and raw_scans.holds_volumes(labels) and images:
    found.append(FolderPair("", images, labels))
  elif images and labels:
    inner = raw_scans.side_folders(labels)
    for side, own in raw_scans.side_folders(images).items():
      if side in inner:
        found.append(FolderPair(side, own, inner[side]))
  for side, own in raw_scans.side_folders(folder).items():
    own_images, own_labels = (_folder_of(own, names) for names in (IMAGES, LABELS))
    if own_images and raw_scans.holds_volumes(own_images) and raw_scans.holds_volumes(own_labels):
      found.append(FolderPair(side, own_images, own_labels))
  if found and found[0].side == "":
    found += _further(folder)
  return found


def _further(folder: pathlib.Path) -> list[FolderPair]:
  """Returns imagesTs and imagesVal, with their labels where there are some."""
  found = []
  for side, ending in (("test", "Ts"), ("validation", "Val")):
    images = raw_folder.child(folder, f"images{ending}")
    if images is not None and raw_scans.holds_volumes(images):
      labels = raw_folder.child(folder, f"labels{ending}")
      labelled = labels is not None and raw_scans.holds_volumes(labels)
      found.append(FolderPair(side if labelled else "", images, labels if labelled else None))
  return found


def _folder_of(folder: pathlib.Path, names: tuple[str, ...]) -> pathlib.Path | None:
  """Returns the child of the first of these names that there is."""
  for name in names:
    child = raw_folder.child(folder, name)
    if child is not None and child.is_dir():
      return child
  return None


def scans_of(
    pairs: list[FolderPair], findings: Findings, channel_names: Mapping[int, str] | None = None
) -> list[RawScan]:
  """Returns the scans of pairs of folders.

  Args:
    pairs: Those with labels first: they show whether names are numbered by channel.
    findings: Takes labels without a scan as problems.
    channel_names: By number; where None, a channel is called by its number.
  """
  labelled_sides = {pair.side for pair in pairs if pair.labels is not None}
  numbered: bool | None = None
  scans = []
  for pair in pairs:
    images = raw_scans.volumes_in(pair.images, findings)
    labels = raw_scans.volumes_in(pair.labels, findings)
    if numbered is None or labels:
      numbered = _is_numbered(images, labels)
    pairing = pair_up(images, labels, numbered)
    raw_folder.unpaired(findings, pairing.lonely, "scan of its name")
    if pair.labels is not None and labels and not pairing.labels:
      findings.problem(
          f"{findings.relative(pair.labels)}: no label is named like a scan, e.g. scan"
          f" {min(images, default='none')}, label {min(labels)}. Rename them, or write scans.csv."
      )
    _warn_of_unlabelled(findings, pairing, bool(labels))
    # Where the folder publishes sides of its own, the side without a name is the training one.
    side = pair.side or ("train" if labelled_sides - {""} else "")
    for name, channels in pairing.images.items():
      label = pairing.labels.get(name)
      images_of = _named(channels, channel_names)
      own_side = side if label is not None else ""
      scans.append(RawScan(name, name, images_of, label, own_side))
  return scans


def _warn_of_unlabelled(findings: Findings, pairing: Pairing, has_labels: bool) -> None:
  """Names the scans without a label in a folder whose other scans have one."""
  bare = [
      findings.relative(channels[min(channels)])
      for name, channels in pairing.images.items()
      if name not in pairing.labels
  ]
  if has_labels and bare:
    more = f" and {len(bare) - _SHOWN} more" if len(bare) > _SHOWN else ""
    findings.warn(
        f"{', '.join(bare[:_SHOWN])}{more}: no label has this name, so it goes to the split"
        " unlabeled."
    )


def _named(
    channels: Mapping[int, pathlib.Path], names: Mapping[int, str] | None
) -> dict[str, pathlib.Path]:
  """Returns the files of a scan by the names of their channels."""
  if names is None:
    if list(channels) == [0]:
      return {"image": channels[0]}
    return {f"channel_{number}": path for number, path in sorted(channels.items())}
  return {names.get(number, f"channel_{number}"): p for number, p in sorted(channels.items())}


def _is_numbered(images: Mapping[str, pathlib.Path], labels: Mapping[str, pathlib.Path]) -> bool:
  """Returns whether stems end in the number of a channel: sub_0000, not sub_1000."""
  matches = [_NUMBERED.fullmatch(stem) for stem in images]
  if not matches or not all(matches):
    return False
  if any(int(match["channel"]) >= MOST_CHANNELS for match in matches if match):
    return False
  if not labels:
    return all(f"{match['base']}_0000" in images for match in matches if match)
  bases = {match["base"] for match in matches if match}
  return len(bases & labels.keys()) > len(images.keys() & labels.keys())


def pair_up(
    images: Mapping[str, pathlib.Path], labels: Mapping[str, pathlib.Path], numbered: bool
) -> Pairing:
  """Pairs scans and labels by their stems; `_seg` and `_image` at their ends do not count."""
  found: dict[str, dict[int, pathlib.Path]] = {}
  for stem, path in sorted(images.items()):
    match = _NUMBERED.fullmatch(stem) if numbered else None
    name, channel = (match["base"], int(match["channel"])) if match else (stem, 0)
    found.setdefault(name, {})[channel] = path
  short = {_stripped(_IMAGE_STEM, name): name for name in found}
  paired: dict[str, pathlib.Path] = {}
  lonely = []
  for stem, path in sorted(labels.items()):
    base = _stripped(_LABEL_STEM, stem)
    names = [name for name in (stem, base, short.get(stem), short.get(base)) if name in found]
    if names and names[0] not in paired:
      paired[str(names[0])] = path
    else:
      lonely.append(path)
  return Pairing(found, paired, lonely)


def _stripped(pattern: re.Pattern[str], stem: str) -> str:
  match = pattern.fullmatch(stem)
  return (match["base"] or "") if match else stem


def _by_suffix(folder: pathlib.Path, findings: Findings) -> list[RawScan]:
  """Returns the scans of a folder that lie beside their labels, or of its child folders."""
  scans = _beside(folder, findings, "")
  if scans:
    return scans
  for child in raw_folder.children(folder):
    if child.is_dir():
      scans += _beside(child, findings, child.name)
  return scans


def _beside(folder: pathlib.Path, findings: Findings, case: str) -> list[RawScan]:
  """Returns the scans right in a folder whose labels lie there too.

  Args:
    folder: Where they lie.
    findings: Takes what is wrong.
    case: Name of the case where the folder is one; "" where it holds many.
  """
  files = raw_scans.volumes_in(folder, findings)
  labels = {stem: _LABEL_STEM.fullmatch(stem) for stem in files}
  bases = {match["base"] or "" for match in labels.values() if match}
  scans: list[RawScan] = []
  for base in sorted(bases, key=len, reverse=True):  # sub_1_a before sub_1.
    own = [s for s, match in labels.items() if match and (match["base"] or "") == base]
    if len(own) > 1:
      findings.problem(
          f"{findings.relative(files[own[1]])}: a second label beside {files[own[0]].name}. Keep"
          " one of them, or write scans.csv."
      )
    taken = {path for scan in scans for path in scan.images.values()}
    images = {
        _channel(stem, base): path
        for stem, path in files.items()
        if labels[stem] is None and path not in taken and _belongs(stem, base)
    }
    if not images or (not base and not case):
      continue
    name = case or base
    scans.append(RawScan(name, name, _one_name(images), files[own[0]]))
  return scans


def _belongs(stem: str, base: str) -> bool:
  longer = stem.startswith(base) and stem[len(base) : len(base) + 1] in _SEPARATORS
  return not base or stem == base or longer


def _channel(stem: str, base: str) -> str:
  """Returns the name of a channel: what its stem has beyond that of the case."""
  rest = stem[len(base) :].strip(_SEPARATORS)
  return raw_scans.plain_name(rest) if rest else "image"


def _one_name(images: dict[str, pathlib.Path]) -> dict[str, pathlib.Path]:
  """Calls the only channel of a case "image", whatever its file adds to the name of the case."""
  if len(images) == 1:
    return {"image": next(iter(images.values()))}
  return dict(sorted(images.items()))
