"""Hippocampus in T1-weighted MRI, Henry Ford Hospital (ANALYZE pairs, coronal)."""

from __future__ import annotations

import pathlib
import re
from typing import ClassVar

import tensorflow_datasets as tfds

from flexunet.datasets import published_palettes
from flexunet.datasets.builder import raw_folder, volume_builder
from flexunet.datasets.builder.croissant import License
from flexunet.datasets.builder.raw_folder import Case, Findings
from flexunet.datasets.hippocampus_t1w.options import HippocampusOptions
from flexunet.imaging import scan_files
from flexunet.imaging.intensity import IntensityWindow
from flexunet.imaging.label_scheme import LabelClass, LabelScheme
from flexunet.imaging.slicing import SlicePlan

_SCAN = re.compile(r"HFH_(\d+)", re.IGNORECASE)
_LABEL = re.compile(r"HFH_(\d+)_Hipp_Labels", re.IGNORECASE)
_BACKGROUND = LabelClass("background", (0, 0, 0))


class HippocampusConfig(volume_builder.VolumeConfig):
  """A config of one or two classes."""

  OPTIONS = HippocampusOptions


class Builder(volume_builder.VolumeBuilder):
  """Builds coronal slices with one class (default), with two, or whole volumes."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar = {"1.0.0": "Initial release."}
  HOMEPAGE = "https://www.nitrc.org/projects/hippseg_2011/"
  LICENSES: ClassVar = (License("Research and education", HOMEPAGE),)
  LAYOUT = "Train/HFH_NNN.hdr + .img, Train/Labels/HFH_NNN_Hipp_Labels.hdr + .img, Test/HFH_NNN.*"
  SPLIT_SALT = "hippocampus_t1w"
  PUBLISHED_SUBJECTS = r"hfh_\d+"
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
      "Get the set from Kaggle (andrewmvd/hippocampus-segmentation-in-mri-images) or NITRC"
      f" (hippseg_2011) and unpack it, so that the folder holds {LAYOUT}."
  )
  BUILDER_CONFIGS: ClassVar = [
      HippocampusConfig(name="slices", description="Coronal slices; one hippocampus class."),
      HippocampusConfig(
          name="left_right", two_classes=True, description="Coronal slices; labels 1, 2 stay two."
      ),
      HippocampusConfig(
          name="volumes", form="volumes", two_classes=True, description="Whole scans; two classes."
      ),
  ]
  DEFAULT_BUILDER_CONFIG_NAME = "slices"

  def label_scheme(self) -> LabelScheme:
    """Returns the classes."""
    if self.options.two_classes:
      # Which of the two is the left one is not documented by the publisher: no claim is made.
      sides = LabelClass("hippocampus_1", (255, 0, 0)), LabelClass("hippocampus_2", (0, 255, 0))
      return LabelScheme((_BACKGROUND, *sides))
    return published_palettes.HIPPOCAMPUS

  def label_map(self) -> dict[int, int]:
    """Returns {value in the label file: class id}."""
    return {0: 0, 1: 1, 2: 2 if self.options.two_classes else 1}

  def slice_plan(self) -> SlicePlan:
    """Returns how volumes are cut."""
    # ANALYZE states no orientation. The stored axes run across, forward and up; "L" is its
    # convention for the first one, not a fact about these scans.
    return SlicePlan(axes="LAS", plane="coronal")

  def intensity(self) -> IntensityWindow:
    """Returns how intensities become 8 bits."""
    return IntensityWindow("percentile", 0.5, 99.5)

  def find_cases(self, findings: Findings) -> None:
    """Looks through `findings.root`; reads headers only."""
    folder = raw_folder.find_folder(findings.root, "Train")
    if folder is None:
      return
    train = raw_folder.folder_in(folder, "Train")
    test = raw_folder.child(folder, "Test")
    labels_folder = raw_folder.child(train, "Labels")
    scans = _by_number(findings, train, _SCAN)
    labels = _by_number(findings, labels_folder, _LABEL) if labels_folder else {}
    raw_folder.unpaired(
        findings, [scans[n] for n in sorted(scans.keys() - labels.keys())],
        "Train/Labels/HFH_NNN_Hipp_Labels of its number",
    )
    raw_folder.unpaired(
        findings, [labels[n] for n in sorted(labels.keys() - scans.keys())],
        "Train/HFH_NNN of its number",
    )
    for number in sorted(scans.keys() & labels.keys()):
      _add(findings, number, scans[number], labels[number])
    for number, scan in sorted(_by_number(findings, test, _SCAN).items() if test else ()):
      _add(findings, number, scan, None)
    raw_folder.note(findings)


def _by_number(
    findings: Findings, folder: pathlib.Path, pattern: re.Pattern[str]
) -> dict[str, pathlib.Path]:
  """Returns {subject number: file} of the volumes whose names follow the pattern."""
  found: dict[str, pathlib.Path] = {}
  for stem, path in raw_folder.volumes_by_stem(folder, findings).items():
    if match := pattern.fullmatch(stem):
      number = match[1]
      if number in found:
        findings.problem(f"{findings.relative(path)}: a second file of subject HFH_{number}.")
      found[number] = path
    else:
      findings.leave_out(path, "its name is not one of this dataset")
  return found


def _add(
    findings: Findings, number: str, scan: pathlib.Path, label: pathlib.Path | None
) -> None:
  if not raw_folder.check_volumes(findings, scan, label):
    return
  files = raw_folder.volume_files("image", scan)
  if label is not None:
    files |= raw_folder.volume_files("label", label)
  name = f"hfh_{number}"
  # One scan per subject, so the scan's name is the subject's. The two matrices (256 and 512) come
  # with 0.39 and 0.78 mm pixels; each split gets its share of both.
  fine = min(scan_files.read_header(scan).spacing_mm) < 0.6
  findings.add(
      Case(
          key=name, subject=name, volume=name, files=files, labelled=label is not None,
          stratum="fine" if fine else "coarse",
      )
  )
