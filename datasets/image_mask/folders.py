"""Finds the images and masks of a ready-made folder, and pairs them by stem."""

from __future__ import annotations

import dataclasses
import pathlib

from flexunet.core.errors import InputError
from flexunet.datasets.builder import raw_folder
from flexunet.datasets.builder.raw_folder import Findings
from flexunet.imaging import pictures

_SPLITS = {
    "train": ("train", "training"),
    "validation": ("valid", "val", "validation"),
    "test": ("test", "testing"),
}
_IMAGES = ("images", "image", "imgs")
_MASKS = ("masks", "mask", "labels")
_SEARCH_DEPTH = 2


@dataclasses.dataclass(frozen=True)
class Pair:
  """An image and its mask; `split` is "" for folders without splits."""

  stem: str
  split: str
  image: pathlib.Path
  mask: pathlib.Path


def find_pairs(findings: Findings) -> list[Pair]:
  """Returns all pairs below the root; what is wrong becomes a problem."""
  roots = _roots(findings.root)
  if len(roots) > 1:
    names = ", ".join(findings.relative(root) for root in roots[:5])
    findings.problem(f"{findings.root}: holds {len(roots)} datasets: {names}. Name one of them.")
  if len(roots) != 1:
    return []
  pairs = []
  for split, folder in _splits(roots[0]).items():
    pairs += _pairs_of(findings, split, folder)
  return pairs


def _roots(root: pathlib.Path) -> list[pathlib.Path]:
  """Returns the folders nearest to `root` that have splits, or images and masks."""
  level = [root]
  for _ in range(_SEARCH_DEPTH + 1):
    if found := [folder for folder in level if _splits(folder)]:
      return found
    level = [path for folder in level for path in raw_folder.children(folder) if path.is_dir()]
  return []


def _splits(root: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns {split: folder with images and masks}; {"": root} for a plain folder."""
  if _has_both(root):
    return {"": root}
  folders = {split: raw_folder.child(root, *names) for split, names in _SPLITS.items()}
  return {split: folder for split, folder in folders.items() if folder and _has_both(folder)}


def _has_both(folder: pathlib.Path) -> bool:
  if not folder.is_dir():
    return False
  images, masks = raw_folder.child(folder, *_IMAGES), raw_folder.child(folder, *_MASKS)
  return images is not None and masks is not None and images.is_dir() and masks.is_dir()


def _pairs_of(findings: Findings, split: str, folder: pathlib.Path) -> list[Pair]:
  images = _by_stem(findings, raw_folder.child(folder, *_IMAGES))
  masks = _by_stem(findings, raw_folder.child(folder, *_MASKS))
  raw_folder.unpaired(
      findings, [images[s] for s in sorted(images.keys() - masks.keys())], "mask of its name"
  )
  raw_folder.unpaired(
      findings, [masks[s] for s in sorted(masks.keys() - images.keys())], "image of its name"
  )
  pairs = []
  for stem in sorted(images.keys() & masks.keys()):
    if _same_size(findings, images[stem], masks[stem]):
      pairs.append(Pair(stem, split, images[stem], masks[stem]))
  return pairs


def _by_stem(findings: Findings, folder: pathlib.Path | None) -> dict[str, pathlib.Path]:
  found: dict[str, pathlib.Path] = {}
  for path in raw_folder.children(folder) if folder else ():
    if not pictures.is_picture(path):
      findings.leave_out(path, "not a picture (PNG, JPEG or BMP)")
    elif path.stem in found:
      first = findings.relative(found[path.stem])
      findings.problem(f"{findings.relative(path)}: duplicate of {first}; keep one of them.")
    else:
      found[path.stem] = path
  return found


def _same_size(findings: Findings, image: pathlib.Path, mask: pathlib.Path) -> bool:
  sizes = []
  for path in (image, mask):
    try:
      header = pictures.read_header(path)
      sizes.append((header.height, header.width))
    except InputError as error:
      findings.problem(str(error))
  if len(sizes) == 2 and sizes[0] != sizes[1]:
    findings.problem(
        f"{findings.relative(mask)}: a mask has the size of its image {sizes[0]}, got {sizes[1]}."
    )
    return False
  return len(sizes) == 2
