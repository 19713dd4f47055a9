"""Haemorrhagic and ischaemic stroke in head CT (images in folders of subjects).

Mask files come in several forms. Bleeding: 0 and 255, with grey noise where the file is a JPEG.
Infarcts descend from AISD, whose values are 1 remote, 2 clear acute, 3 blurred acute, 4 invisible,
5 whole infarct; files hold these numbers, or 0 and 251..255, or 0 and 255.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from flexunet.core.errors import InputError
from flexunet.datasets import published_palettes
from flexunet.datasets.brain_ich_ct import ct_ich_patients
from flexunet.datasets.builder import croissant, raw_folder
from flexunet.datasets.builder.raw_folder import Case, Findings, Notes
from flexunet.datasets.builder.segmentation_builder import RecordConfig, SegmentationBuilder, Slice
from flexunet.imaging import pictures
from flexunet.imaging.label_scheme import LabelScheme

_TYPES = ("Hemorrhagic", "Ischemic")
_PARTS = ("Training", "Testing")
_SLICE = re.compile(r"0*(\d+)(?:_HGE_Seg)?", re.IGNORECASE)
_THRESHOLD = 127
_MOST_SMALL = 5
# "Invisible" is drawn where other images of the person show an infarct that this one does not.
_LESION_CODES = (1, 2, 3, 5)
_LOSSY = (".jpg", ".jpeg")


@dataclasses.dataclass
class _Subject:
  """What the folders hold of one subject; slices by number."""

  stroke_type: str
  parts: dict[str, pathlib.Path] = dataclasses.field(default_factory=dict)
  images: dict[int, pathlib.Path] = dataclasses.field(default_factory=dict)
  masks: dict[int, pathlib.Path] = dataclasses.field(default_factory=dict)


class Builder(SegmentationBuilder):
  """Builds CT slices with two classes of stroke."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar = {"1.0.0": "Initial release."}
  HOMEPAGE = (
      "https://www.kaggle.com/datasets/programmer3/"
      "real-time-stroke-detection-in-mri-ct-pet-images"
  )
  LICENSES: ClassVar = (
      croissant.CC_BY,
      croissant.License("Non-commercial use (AISD)", "https://github.com/GriffinLiang/AISD"),
  )
  LAYOUT = (
      "CT Images/data/{Training,Testing}/{Hemorrhagic,Ischemic}/{images,mask}/SUBJECT/SLICE.png"
  )
  SPLIT_SALT = "brain_stroke_ct"
  PUBLISHED_SUBJECTS = r"(aisd|ctich|hemorrhagic)_\d+"
  HAS_LESIONS = True
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
      "Get the set from Kaggle (programmer3/real-time-stroke-detection-in-mri-ct-pet-images) and"
      f" unpack it, so that the folder holds {LAYOUT}."
  )
  BUILDER_CONFIGS: ClassVar = [
      RecordConfig(name="slices", description="CT slices, two classes of stroke."),
  ]
  DEFAULT_BUILDER_CONFIG_NAME = "slices"

  def label_scheme(self) -> LabelScheme:
    """Returns the classes."""
    return published_palettes.BRAIN_STROKE

  def find_cases(self, findings: Findings) -> None:
    """Looks through `findings.root`; reads headers only."""
    data = _data_folder(findings)
    if data is None:
      return
    subjects: dict[str, _Subject] = {}
    for part in _PARTS:
      for stroke_type in _TYPES:
        part_folder = raw_folder.child(data, part)
        folder = raw_folder.child(part_folder, stroke_type) if part_folder else None
        if folder is not None:
          _collect(findings, subjects, folder, part, stroke_type)
    for name in sorted(subjects):
      _add(findings, name, subjects[name])
    raw_folder.note(findings)

  def slices_of(self, case: Case, notes: Notes) -> Iterator[Slice]:
    """Reads one case, in a worker process."""
    ischemic = case.stratum == "ischemic"
    for number in case.details:
      image = pictures.read_gray(case.files[f"image_{number:04d}"])
      path = case.files[f"mask_{number:04d}"]
      mask = pictures.read_gray(path)
      if mask.shape != image.shape:
        raise InputError(
            f"{path}: a mask has the size of its image {image.shape}, got {mask.shape}."
        )
      notes.count_values(f"{case.stratum}_mask", *np.unique(mask, return_counts=True))
      label = lesion(mask, path, ischemic) * np.uint8(2 if ischemic else 1)
      yield Slice(number, image, label)


def _data_folder(findings: Findings) -> pathlib.Path | None:
  """Returns the folder with Training and Testing of the CT part, noting the other parts."""
  above = raw_folder.find_folder(findings.root, "CT Images")
  part = raw_folder.child(above, "CT Images") if above else None
  if above is not None and part is not None:
    for other in ("MRI Images", "PET Images"):
      if folder := raw_folder.child(above, other):
        findings.leave_out(folder, "only the CT part is used")
    return raw_folder.find_folder(part, *_PARTS)
  return raw_folder.find_folder(findings.root, *_PARTS)


def _collect(
    findings: Findings,
    subjects: dict[str, _Subject],
    folder: pathlib.Path,
    part: str,
    stroke_type: str,
) -> None:
  for kind, names in (("images", ("images", "image")), ("masks", ("mask", "masks"))):
    kind_folder = raw_folder.child(folder, *names)
    for subject_folder in raw_folder.children(kind_folder) if kind_folder else ():
      name = _subject_name(subject_folder, stroke_type)
      if name is None:
        findings.leave_out(subject_folder, "not a folder of a subject, which is a number")
        continue
      subject = subjects.setdefault(name, _Subject(stroke_type))
      subject.parts[part] = subject_folder
      found = subject.images if kind == "images" else subject.masks
      for number, path in _images(findings, subject_folder):
        if number in found:
          findings.problem(
              f"{findings.relative(path)}: duplicate of {findings.relative(found[number])}: both"
              f" are slice {number} of one subject; keep one."
          )
        found[number] = path


def _subject_name(folder: pathlib.Path, stroke_type: str) -> str | None:
  if not folder.is_dir() or not folder.name.isdigit():
    return None
  number = int(folder.name)
  if stroke_type == "Ischemic":
    return f"aisd_{number:07d}"
  # The bleeding subjects are patients of CT-ICH, under the same numbers.
  if ct_ich_patients.is_patient(number):
    return ct_ich_patients.subject_name(number)
  return f"hemorrhagic_{number:03d}"


def _images(findings: Findings, folder: pathlib.Path) -> Iterator[tuple[int, pathlib.Path]]:
  for path in raw_folder.children(folder):
    match = _SLICE.fullmatch(path.stem)
    if match is None or not pictures.is_picture(path):
      findings.leave_out(path, "its name is not one of this dataset")
      continue
    try:
      pictures.read_header(path)
    except InputError as error:
      findings.problem(str(error))
    yield int(match[1]), path


def _add(findings: Findings, name: str, subject: _Subject) -> None:
  if len(subject.parts) > 1:
    findings.warn(f"Subject {name} stands in Training and in Testing; here it is on one side.")
  alone = [subject.masks[n] for n in sorted(subject.masks.keys() - subject.images.keys())]
  raw_folder.unpaired(findings, alone, "image of its number")
  reason = "no mask of this slice: unlabelled" if subject.masks else (
      "no mask folder of this subject: unlabelled"
  )  # fmt: skip
  for number in sorted(subject.images.keys() - subject.masks.keys()):
    findings.leave_out(subject.images[number], reason)
  numbers = tuple(sorted(subject.images.keys() & subject.masks.keys()))
  if not numbers:
    return
  files = {f"image_{n:04d}": subject.images[n] for n in numbers}
  files |= {f"mask_{n:04d}": subject.masks[n] for n in numbers}
  # Patients of CT-ICH stand where they stand in `brain_ich_ct`.
  shared = name.startswith("ctich_")
  findings.add(
      Case(
          key=name, subject=name, volume=name, files=files, details=numbers,
          stratum=subject.stroke_type.lower(),
          fold=ct_ich_patients.fold(int(name.removeprefix("ctich_"))) if shared else None,
          split=ct_ich_patients.splits()[name] if shared else None,
      )
  )  # fmt: skip


def lesion(mask: np.ndarray, path: pathlib.Path, ischemic: bool) -> np.ndarray:
  """Returns where the lesion is, bool [H, W].

  Args:
    mask: uint8 [H, W], as stored.
    path: Its file; the suffix says whether values are exact, and errors name it.
    ischemic: Whether small numbers are AISD's codes.

  Raises:
    InputError: When an exact file holds values of none of the known forms.
  """
  if path.suffix.lower() in _LOSSY:
    return mask > _THRESHOLD
  values = np.unique(mask)
  if values[-1] <= _MOST_SMALL:
    return np.isin(mask, _LESION_CODES) if ischemic else mask > 0
  unclear = values[(values > _MOST_SMALL) & (values < 250)]
  # A few in-between values come from resizing with interpolation; a mask of them is no mask.
  if np.isin(mask, unclear).mean() > 0.01:
    raise InputError(
        f"{path}: mask values must be 0..{_MOST_SMALL} or 0 and 250..255, found"
        f" {', '.join(map(str, unclear[:5]))}{' ...' if len(unclear) > 5 else ''}. Is this a mask?"
    )
  return mask > _THRESHOLD
