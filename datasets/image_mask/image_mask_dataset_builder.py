"""Any folder of images and colour masks: {train,valid,test}/{images,masks}, or only the two."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import tensorflow_datasets as tfds

from flexunet.core.errors import InputError
from flexunet.datasets.builder import raw_folder
from flexunet.datasets.builder.croissant import License
from flexunet.datasets.builder.raw_folder import Case, Findings, Notes
from flexunet.datasets.builder.segmentation_builder import RecordConfig, SegmentationBuilder, Slice
from flexunet.datasets.image_mask import folders, masks
from flexunet.datasets.image_mask.folders import Pair, SliceName
from flexunet.datasets.image_mask.options import ImageMaskOptions
from flexunet.datasets.published_palettes import PRESETS
from flexunet.imaging import pictures
from flexunet.imaging.label_scheme import LabelScheme


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
  LICENSES: ClassVar = (License("The licence of the images"),)  # The user knows it.
  LAYOUT = "{train,valid,test}/{images,masks}/NAME.png, or images/NAME.png and masks/NAME.png"
  SPLIT_SALT = "image_mask"
  PUBLISHED_SUBJECTS = r"HFH_\d+|GU\d{3}|(Hemorrhagic|Ischemic)_\d+"
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

  def find_cases(self, findings: Findings) -> None:
    """Looks through `findings.root`; reads headers, and masks until one shows a colour."""
    pairs = folders.find_pairs(findings)
    pattern = self.options.subject_pattern
    names = folders.parse_all([pair.stem for pair in pairs], pattern)
    unmatched = [stem for stem, name in names.items() if name.subject is None]
    if pattern and unmatched:
      findings.problem(folders.rule_problem(pattern, unmatched))
      return
    if unmatched:
      findings.warn(
          f"{len(unmatched)} of {len(names)} file names, such as {unmatched[0]}, name no subject:"
          " each such image counts as a subject of its own. Give --subject_pattern if you know"
          " better."
      )
    class_of = self._class_of(findings, pairs)
    groups: dict[str, dict[str, list[Pair]]] = {}
    for pair in pairs:
      subject = names[pair.stem].subject or pair.stem
      groups.setdefault(subject, {}).setdefault(pair.split, []).append(pair)
    for subject, by_split in sorted(groups.items()):
      self._add_subject(findings, subject, by_split, names, class_of)
    if findings.cases:
      raw_folder.note(findings)

  def _class_of(self, findings: Findings, pairs: list[Pair]) -> list[tuple[int, int]] | None:
    """Returns (stored value, class id) of all ids, as JSON has it; None for masks in colours."""
    if self.options.mask_threshold is not None:
      return None  # Grey levels are compared, whatever the masks hold.
    try:
      found = masks.find_stored_ids((pair.mask for pair in pairs), self.label_scheme())
    except InputError as error:
      findings.problem(str(error))
      return None
    if found is None:
      return None
    findings.warn(found.reason)
    return sorted(found.class_of.items())

  def _add_subject(
      self,
      findings: Findings,
      subject: str,
      by_split: dict[str, list[Pair]],
      names: dict[str, SliceName],
      class_of: list[tuple[int, int]] | None,
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
      findings.add(_case(subject, subject, every, names, class_of))
    elif len(by_split) == 1:
      [(split, pairs)] = by_split.items()
      findings.add(_case(subject, subject, pairs, names, class_of, split))
    else:
      for split, pairs in by_split.items():
        findings.add(_case(subject, f"{subject}_{split}", pairs, names, class_of, split))

  def slices_of(self, case: Case, notes: Notes) -> Iterator[Slice]:
    """Reads one case, in a worker process."""
    scheme, class_of = self.label_scheme(), case.details["class_of"]
    read = pictures.read_gray if self.options.image_channels == 1 else pictures.read_rgb
    reader: masks.ColorReader | masks.IdReader | masks.ThresholdReader
    if self.options.mask_threshold is not None:
      reader = masks.ThresholdReader(self.options.mask_threshold)
    elif class_of is None:
      reader = masks.ColorReader(scheme, self.options.off_palette_limit)
    else:
      reader = masks.IdReader(dict(class_of))
    for index in case.details["numbers"]:
      label = reader.read(case.files[f"mask_{index:06d}"], notes)
      yield Slice(index, read(case.files[f"image_{index:06d}"]), label)
    reader.finish(case.volume, notes)
    if case.volume != case.subject:  # The publisher divided the subject.
      notes.facts["published_side"] = case.split


def _case(
    subject: str,
    volume: str,
    pairs: list[Pair],
    names: dict[str, SliceName],
    class_of: list[tuple[int, int]] | None,
    split: str | None = None,
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
      key=volume, subject=subject, volume=volume, files=files, split=split,
      details={"numbers": sorted(numbers), "class_of": class_of},
  )  # fmt: skip
