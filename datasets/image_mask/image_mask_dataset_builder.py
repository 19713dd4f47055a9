"""Any folder of images and colour masks: {train,valid,test}/{images,masks}, or only the two."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from flexunet.core.errors import InputError
from flexunet.datasets.builder import raw_folder
from flexunet.datasets.builder.croissant import License
from flexunet.datasets.builder.raw_folder import Case, Findings, Notes
from flexunet.datasets.builder.segmentation_builder import RecordConfig, SegmentationBuilder, Slice
from flexunet.datasets.image_mask import colors, folders
from flexunet.datasets.image_mask.folders import Pair, SliceName
from flexunet.datasets.image_mask.options import ImageMaskOptions
from flexunet.datasets.published_palettes import PRESETS
from flexunet.imaging import pictures
from flexunet.imaging.label_scheme import LabelScheme

# Share of the painted pixels that may be foreign to the palette before it is refused.
_FOREIGN_LIMIT = 0.05
_FEW_PIXELS = 50


class ImageMaskConfig(RecordConfig):
  """A config of one palette."""

  OPTIONS = ImageMaskOptions


def _of_preset(name: str) -> ImageMaskConfig:
  return ImageMaskConfig(name=name, palette=name, description=f"Masks in the colours of {name}.")


class Builder(SegmentationBuilder):
  """Builds images as they are, masks as class ids."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar = {"1.0.0": "Initial release."}
  HOMEPAGE = ""
  LICENSES: ClassVar = (License("The licence of the pictures"),)  # The user knows it.
  LAYOUT = "{train,valid,test}/{images,masks}/NAME.png, or images/NAME.png and masks/NAME.png"
  SPLIT_SALT = "image_mask"
  MANUAL_DOWNLOAD_INSTRUCTIONS = f"Any folder of this form will do: {LAYOUT}."
  BUILDER_CONFIGS: ClassVar = [_of_preset("binary")]
  # A folder has the colours of one palette.
  EXTRA_CONFIGS: ClassVar = [_of_preset(name) for name in PRESETS if name != "binary"]
  DEFAULT_BUILDER_CONFIG_NAME = "binary"

  def label_scheme(self) -> LabelScheme:
    """Returns the classes of the palette."""
    return self.options.scheme()

  def image_channels(self) -> int:
    """Returns 1 for grey images, 3 for colour."""
    return self.options.image_channels

  def split_subjects(self, strata: Mapping[str, str]) -> dict[str, str]:
    """Returns {subject: split} for the labelled subjects {subject: stratum}."""
    # With a published split, the stratum of a case is its split.
    if all(strata.values()):
      return dict(strata)
    return super().split_subjects(strata)

  def find_cases(self, findings: Findings) -> None:
    """Looks through `findings.root`; reads headers only."""
    pairs = folders.find_pairs(findings)
    pattern = self.options.subject_pattern
    names = folders.parse_all([pair.stem for pair in pairs], pattern)
    unmatched = [stem for stem, name in names.items() if name.subject is None]
    if pattern and unmatched:
      findings.problem(folders.rule_problem(pattern, unmatched))
      return
    if unmatched:
      findings.warn(
          f"{len(unmatched)} of {len(names)} file names, such as {unmatched[0]}, tell no subject:"
          " each such picture counts as a subject of its own. Give --subject_pattern if you know"
          " better."
      )
    groups: dict[str, dict[str, list[Pair]]] = {}
    for pair in pairs:
      subject = names[pair.stem].subject or pair.stem
      groups.setdefault(subject, {}).setdefault(pair.split, []).append(pair)
    for subject, by_split in sorted(groups.items()):
      self._add_subject(findings, subject, by_split, names)
    if findings.cases:
      raw_folder.note(findings)

  def _add_subject(
      self,
      findings: Findings,
      subject: str,
      by_split: dict[str, list[Pair]],
      names: dict[str, SliceName],
  ) -> None:
    every = [pair for pairs in by_split.values() for pair in pairs]
    published = self.options.split == "published" and "" not in by_split
    if len(by_split) > 1:
      advice = "" if not published else (
          " The published split is kept; build with --split=subject to mend it."
      )  # fmt: skip
      findings.warn(
          f"Subject {subject} stands on two published sides: {', '.join(sorted(by_split))}.{advice}"
      )
    if not published:
      findings.add(_case(subject, subject, every, names))
    elif len(by_split) == 1:
      [(split, pairs)] = by_split.items()
      findings.add(_case(subject, subject, pairs, names, stratum=split))
    else:
      for split, pairs in by_split.items():
        made = _case(subject, f"{subject}_{split}", pairs, names, stratum=split)
        findings.add(dataclasses.replace(made, split=split))

  def slices_of(self, case: Case, notes: Notes) -> Iterator[Slice]:
    """Reads one case, in a worker process."""
    options, scheme = self.options, self.label_scheme()
    read = pictures.read_gray if options.image_channels == 1 else pictures.read_rgb
    off_pixels, all_pixels = 0.0, 0
    without_class: list[str] = []
    with_class = False
    for index in case.details:
      path = case.files[f"mask_{index:06d}"]
      rgb = pictures.read_rgb(path)
      label, off_share = scheme.decode(rgb)
      # JPEG moves every colour a little, which is no sign of another palette.
      lossy = path.suffix.lower() in (".jpg", ".jpeg")
      found = colors.MaskColors(rgb, scheme)
      far_share = found.far_share if lossy else off_share
      if far_share > options.off_palette_limit:
        raise InputError(
            f"{path}: {100 * far_share:.1f} % of its pixels are of no palette colour, the limit is"
            f" {100 * options.off_palette_limit:g} %. {colors.palette_hint(rgb)}"
        )
      if found.foreign > max(_FEW_PIXELS, _FOREIGN_LIMIT * found.painted):
        raise InputError(
            f"{path}: {found.foreign} of its {found.painted} painted pixels are of colours foreign"
            f" to the palette, such as {found.commonest_foreign()}. {colors.palette_hint(rgb)}"
        )
      if found.has_class_color:
        with_class = True
      elif found.painted > _FEW_PIXELS:
        without_class.append(
            f"{path}: no pixel has the colour of a class, though {found.painted} are painted, such"
            f" as {found.commonest_painted()}. {colors.palette_hint(rgb)}"
        )
      _count_gray(rgb, notes)
      off_pixels += off_share * label.size
      all_pixels += label.size
      yield Slice(index, read(case.files[f"image_{index:06d}"]), label)
    # A faint mask may be blurred all over; where all of a subject's are, the palette is wrong.
    if without_class and not with_class:
      raise InputError(without_class[0])
    notes.warnings.extend(_faint_masks(case, without_class))
    notes.facts["off_palette_share"] = round(off_pixels / max(all_pixels, 1), 6)
    if case.split:
      notes.facts["published_side"] = case.split


def _faint_masks(case: Case, lines: list[str]) -> list[str]:
  """Returns a warning about masks that hold mixed colours only."""
  if not lines:
    return []
  return [f"{case.volume}: masks with colours between those of the palette only: {len(lines)}."]


def _count_gray(rgb: np.ndarray, notes: Notes) -> None:
  """Notes the values of a grey mask; a colour mask is described by its shares."""
  if (rgb[..., 0] == rgb[..., 1]).all() and (rgb[..., 1] == rgb[..., 2]).all():
    notes.count_values("gray_mask", *np.unique(rgb[..., 0], return_counts=True))


def _case(
    subject: str,
    volume: str,
    pairs: list[Pair],
    names: dict[str, SliceName],
    stratum: str = "",
) -> Case:
  """Returns the images of a subject; they are numbered where their names do not number them."""
  known = [names[pair.stem].slice_index for pair in pairs]
  if None in known or len(set(known)) < len(known):
    pairs = sorted(pairs, key=lambda pair: (folders.natural(pair.stem), pair.split))
    known = list(range(len(pairs)))
  numbers = [number for number in known if number is not None]
  files = {}
  for index, pair in zip(numbers, pairs, strict=True):
    files[f"image_{index:06d}"] = pair.image
    files[f"mask_{index:06d}"] = pair.mask
  return Case(
      key=volume, subject=subject, volume=volume, files=files, stratum=stratum,
      details=tuple(sorted(numbers)),
  )  # fmt: skip
