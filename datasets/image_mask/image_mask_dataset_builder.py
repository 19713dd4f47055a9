"""Any folder of pictures and colour masks: {train,valid,test}/{images,masks}, or only the two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from flexunet.datasets import base_builder, leftovers, picture_io, record_features
from flexunet.datasets.cases import Case, Findings, Notes
from flexunet.datasets.errors import InputError
from flexunet.datasets.image_mask import colors, folders, naming
from flexunet.datasets.image_mask.image_mask_config import ImageMaskConfig
from flexunet.datasets.label_scheme import LabelScheme
from flexunet.datasets.published_palettes import PRESETS

# Of the painted pixels, how many may be foreign to the palette before the palette is refused.
_FOREIGN_LIMIT = 0.05
_FEW_PIXELS = 50


class Builder(base_builder.BrainBuilder):
  """Builds pictures as they are, masks as class ids."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar = {"1.0.0": "Initial release."}
  HOMEPAGE = ""
  LAYOUT = "{train,valid,test}/{images,masks}/NAME.png, or images/NAME.png and masks/NAME.png"
  SPLIT_SALT = "image_mask"
  MANUAL_DOWNLOAD_INSTRUCTIONS = f"Any folder of this form will do: {LAYOUT}."
  BUILDER_CONFIGS: ClassVar = [
      ImageMaskConfig(name=name, palette=name, description=f"Masks in the colours of {name}.")
      for name in PRESETS
  ]
  DEFAULT_BUILDER_CONFIG_NAME = "binary"

  def label_scheme(self) -> LabelScheme:
    return self.builder_config.scheme()

  def _make_features(self) -> tfds.features.FeaturesDict:
    return record_features.slice_features(
        self.label_scheme(), self.extra_features(), self.builder_config.image_channels
    )

  def split_subjects(self, strata: Mapping[str, str]) -> dict[str, str]:
    # With a published split, the stratum of a case is its side.
    if all(strata.values()):
      return dict(strata)
    return super().split_subjects(strata)

  def find_cases(self, findings: Findings) -> None:
    pairs = folders.find_pairs(findings)
    pattern = self.builder_config.subject_pattern
    names = naming.parse_all([pair.stem for pair in pairs], pattern)
    unmatched = [stem for stem, name in names.items() if name.subject is None]
    if pattern and unmatched:
      findings.problem(naming.rule_problem(pattern, unmatched))
      return
    if unmatched:
      findings.warn(
          f"{len(unmatched)} of {len(names)} file names, such as {unmatched[0]}, tell no subject:"
          " each such picture counts as a subject of its own. Give --subject_pattern if you know"
          " better."
      )
    groups: dict[str, dict[str, list[folders.Pair]]] = {}
    for pair in pairs:
      subject = names[pair.stem].subject or pair.stem
      groups.setdefault(subject, {}).setdefault(pair.side, []).append(pair)
    for subject, by_side in sorted(groups.items()):
      self._add_subject(findings, subject, by_side, names)
    if findings.cases:
      leftovers.note(findings)

  def _add_subject(self, findings: Findings, subject: str, by_side, names) -> None:
    every = [pair for pairs in by_side.values() for pair in pairs]
    published = self.builder_config.split == "published" and "" not in by_side
    if len(by_side) > 1:
      sides = ", ".join(sorted(by_side))
      advice = "" if not published else (
          " The published split is kept; build with --split=subject to mend it."
      )  # fmt: skip
      findings.warn(f"Subject {subject} stands on two published sides: {sides}.{advice}")
    if not published:
      _add_case(findings, subject, subject, every, names, None, "")
    elif len(by_side) == 1:
      [(side, pairs)] = by_side.items()
      _add_case(findings, subject, subject, pairs, names, None, side)
    else:
      for side, pairs in by_side.items():
        _add_case(findings, subject, f"{subject}_{side}", pairs, names, side, side)

  def slices_of(self, case: Case, notes: Notes) -> Iterator[base_builder.Slice]:
    config, scheme = self.builder_config, self.label_scheme()
    read = picture_io.read_gray if config.image_channels == 1 else picture_io.read_rgb
    off_pixels, all_pixels = 0.0, 0
    without_class: list[str] = []
    with_class = False
    for index in case.details:
      path = case.files[f"mask_{index:06d}"]
      rgb = picture_io.read_rgb(path)
      label, off_share = scheme.decode(rgb)
      # JPEG moves every colour a little, which is no sign of another palette.
      lossy = path.suffix.lower() in (".jpg", ".jpeg")
      found = colors.MaskColors(rgb, scheme)
      far_share = found.far_share if lossy else off_share
      if far_share > config.off_palette_limit:
        raise InputError(
            f"{path}: {100 * far_share:.1f} % of its pixels are of no palette colour, the limit is"
            f" {100 * config.off_palette_limit:g} %. Is --palette the one of these masks?"
        )
      if found.foreign > max(_FEW_PIXELS, _FOREIGN_LIMIT * found.painted):
        raise InputError(
            f"{path}: {found.foreign} of its {found.painted} painted pixels are of colours foreign"
            f" to the palette, such as {found.commonest_foreign()}. Is --palette the one of these"
            " masks?"
        )
      if found.has_class_color:
        with_class = True
      elif found.painted > _FEW_PIXELS:
        without_class.append(
            f"{path}: no pixel has the colour of a class, though {found.painted} are painted, such"
            f" as {found.commonest_painted()}."
        )
      _count_gray(rgb, notes)
      off_pixels += off_share * label.size
      all_pixels += label.size
      yield base_builder.Slice(index, read(case.files[f"image_{index:06d}"]), label)
    # A faint mask may be blurred all over; where all of a subject's are, the palette is wrong.
    if without_class and not with_class:
      raise InputError(f"{without_class[0]} Is --palette the one of these masks?")
    notes.warnings.extend(_faint_masks(case, without_class))
    notes.facts["off_palette_share"] = round(off_pixels / max(all_pixels, 1), 6)
    if case.side:
      notes.facts["published_side"] = case.side


def _faint_masks(case: Case, lines: list[str]) -> list[str]:
  """Returns a warning about masks that hold mixed colours only."""
  if not lines:
    return []
  return [f"{case.volume}: masks with colours between those of the palette only: {len(lines)}."]


def _count_gray(rgb: np.ndarray, notes: Notes) -> None:
  """Notes the values of a grey mask; those of a colour mask are told by its shares."""
  if (rgb[..., 0] == rgb[..., 1]).all() and (rgb[..., 1] == rgb[..., 2]).all():
    notes.count_values("gray_mask", *np.unique(rgb[..., 0], return_counts=True))


def _add_case(findings: Findings, subject: str, volume: str, pairs, names, side, stratum) -> None:
  """Adds the pictures of a subject; they are numbered anew where their names do not number them."""
  known = [names[pair.stem].slice_index for pair in pairs]
  if None in known or len(set(known)) < len(known):
    pairs = sorted(pairs, key=lambda pair: (naming.natural(pair.stem), pair.side))
    known = list(range(len(pairs)))
  files = {}
  for index, pair in zip(known, pairs, strict=True):
    files[f"image_{index:06d}"] = pair.image
    files[f"mask_{index:06d}"] = pair.mask
  findings.add(
      Case(
          key=volume, subject=subject, volume=volume, files=files, stratum=stratum, side=side,
          details=tuple(sorted(known)),
      )
  )  # fmt: skip
