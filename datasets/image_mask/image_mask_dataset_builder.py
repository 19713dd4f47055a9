"""Options of the dataset `image_mask`, as a config of TFDS.

Any folder of pictures and colour masks: {train,valid,test}/{images,masks}, or only the two.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from flexunet.core.errors import InputError, unknown_name
from flexunet.datasets.builder import raw_folder, segmentation_builder
from flexunet.datasets.builder.raw_folder import Case, Findings, Notes
from flexunet.datasets.builder.record_config import RecordConfig
from flexunet.datasets.image_mask import colors, folders, naming
from flexunet.datasets.published_palettes import PRESETS
from flexunet.imaging import pictures
from flexunet.imaging.label_scheme import LabelScheme

SPLITS = ("published", "subject")
# Of the painted pixels, how many may be foreign to the palette before the palette is refused.
_FOREIGN_LIMIT = 0.05
_FEW_PIXELS = 50


@dataclasses.dataclass(kw_only=True)
class ImageMaskConfig(RecordConfig):
  """How a folder of pictures and colour masks is read.

  Attributes:
    palette: A preset's name, or a JSON file {"background": [0, 0, 0], "tumour": [255, 0, 0]}; the
      first class is the background.
    palette_colors: The same as a mapping, or as (name, (r, g, b)) pairs; it wins over `palette`.
    subject_pattern: Regular expression with a group `subject` and maybe a group `slice`, searched
      in the file name without suffix; "" takes the rules of the published names.
    split: "published" keeps train, valid and test of the folder; "subject" splits anew by subject.
    off_palette_limit: Largest share of a mask's pixels, 0..1, that may be of no palette colour.
    image_channels: 1 for grey pictures (also when stored as RGB), 3 for colour.
  """

  palette: str = ""
  palette_colors: tuple | None = None
  subject_pattern: str = ""
  split: str = "published"
  off_palette_limit: float = 0.25
  image_channels: int = 1

  def __post_init__(self):
    super().__post_init__()
    if self.split not in SPLITS:
      raise unknown_name("split", self.split, SPLITS)
    if not 0 <= float(self.off_palette_limit) <= 1:
      raise InputError(f"off_palette_limit is a share 0..1, got {self.off_palette_limit}.")
    if self.image_channels not in (1, 3):
      raise InputError(f"image_channels must be 1 or 3, got {self.image_channels}.")
    unfit = [n for n in ("plane", "window", "isotropic_mm") if getattr(self, n) is not None]
    if unfit or self.form != "slices":
      raise InputError(
          f"Pictures are 2-D and 8-bit already; image_mask does not take"
          f" {', '.join(unfit or ['volumes'])}."
      )
    naming.compile_rules(self.subject_pattern)
    if self.palette_colors is not None:
      self.palette_colors = _as_pairs(dict(self.palette_colors))
    elif self.palette and self.palette not in PRESETS:
      # The colours, not the file, are what a build depends on; a path has no place in a report.
      scheme = colors.palette_scheme(self.palette)
      self.palette_colors = _as_pairs({c.name: c.color for c in scheme.classes})
    if self.palette_colors is not None:
      self.palette = "custom"
      colors.scheme_of(dict(self.palette_colors), "palette_colors")

  def scheme(self) -> LabelScheme:
    """Returns classes and colours."""
    if self.palette_colors is not None:
      return colors.scheme_of(dict(self.palette_colors), "palette_colors")
    return colors.palette_scheme(self.palette or "binary")


def _as_pairs(mapping) -> tuple:
  try:
    return tuple((str(name), tuple(color)) for name, color in mapping.items())
  except TypeError as error:
    raise InputError(
        'palette_colors must be {"background": [0, 0, 0], "tumour": [255, 0, 0], ...}. Got:'
        f" {str(mapping)[:120]}."
    ) from error


def options_of(palette: str) -> dict:
  """Returns the config options that a value of the flag --palette stands for."""
  if palette in PRESETS:
    return {"palette": palette}
  scheme = colors.palette_scheme(palette)
  pairs = _as_pairs({c.name: c.color for c in scheme.classes})
  return {"palette": "custom", "palette_colors": pairs}


class Builder(segmentation_builder.BrainBuilder):
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
    return segmentation_builder.slice_features(
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
      raw_folder.note(findings)

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

  def slices_of(self, case: Case, notes: Notes) -> Iterator[segmentation_builder.Slice]:
    config, scheme = self.builder_config, self.label_scheme()
    read = pictures.read_gray if config.image_channels == 1 else pictures.read_rgb
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
      yield segmentation_builder.Slice(index, read(case.files[f"image_{index:06d}"]), label)
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
