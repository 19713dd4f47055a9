"""Full heads in T1-weighted MRI with seven classes, stroke patients and controls (NIfTI)."""

from __future__ import annotations

import itertools
import pathlib
import re
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from flexunet.datasets import published_palettes
from flexunet.datasets.builder import croissant, raw_folder, volume_builder
from flexunet.datasets.builder.raw_folder import Case, Findings, Notes
from flexunet.imaging.intensity import IntensityWindow
from flexunet.imaging.label_scheme import LabelScheme
from flexunet.imaging.slicing import SlicePlan

# The folder of each group of subjects.
_GROUPS = {"Anonymized_Subjects": "stroke", "Control_Subjects": "control"}
_SCANS, _LABELS = "T1-Weighted MRI", "Full-Head Segmentation"
_MARKS = re.compile(r"_(label|deface)(?=_|$)", re.IGNORECASE)
_GREY, _WHITE, _CSF = 2, 3, 4


class Builder(volume_builder.VolumeBuilder):
  """Builds axial slices (default), or whole volumes."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar = {"1.0.0": "Initial release."}
  HOMEPAGE = (
      "https://www.kaggle.com/datasets/andrewbirnbaum/"
      "full-head-mri-and-segmentation-of-stroke-patients"
  )
  LICENSES: ClassVar = (croissant.CC_BY_NC_SA,)
  LAYOUT = (
      "Data/{Anonymized_Subjects,Control_Subjects}/{T1-Weighted MRI/ID[_deface].nii, Full-Head"
      " Segmentation/ID_label[_deface].nii}"
  )
  SPLIT_SALT = "full_head_t1w"
  PUBLISHED_SUBJECTS = r"(gu|nyu|nc)\d{3}"
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
      "Get the set from Kaggle"
      " (andrewbirnbaum/full-head-mri-and-segmentation-of-stroke-patients) and unpack it, so that"
      f" the folder holds {LAYOUT}."
  )
  BUILDER_CONFIGS: ClassVar = [
      volume_builder.VolumeConfig(name="slices", description="Axial slices, seven classes."),
      volume_builder.VolumeConfig(
          name="volumes", form="volumes", description="Whole scans, seven classes."
      ),
  ]
  DEFAULT_BUILDER_CONFIG_NAME = "slices"

  def label_scheme(self) -> LabelScheme:
    """Returns the classes."""
    return published_palettes.FULL_HEAD

  def label_map(self) -> dict[int, int]:
    """Returns {value in the label file: class id}."""
    return {value: value for value in range(7)}

  def slice_plan(self) -> SlicePlan:
    """Returns how volumes are cut."""
    return SlicePlan(axes="LAS", plane="axial")

  def intensity(self) -> IntensityWindow:
    """Returns how intensities become 8 bits."""
    return IntensityWindow("percentile", 0.5, 99.5)

  def find_cases(self, findings: Findings) -> None:
    """Looks through `findings.root`; reads headers only."""
    folder = raw_folder.find_folder(findings.root, *_GROUPS)
    if folder is None:
      return
    for name, group in _GROUPS.items():
      if group_folder := raw_folder.child(folder, name):
        _find_group(findings, group_folder, group)
    if not any(case.labelled for case in findings.cases) and not findings.problems:
      findings.problem(
          f"{folder}: no scan has a label. A label is called ID_label.nii or ID_label_deface.nii,"
          " where the scan is ID.nii or ID_deface.nii."
      )
    raw_folder.note(findings)

  def read_scan(self, case: Case, notes: Notes) -> volume_builder.Scan:
    """Reads one case, in a worker process."""
    scan = super().read_scan(case, notes)
    if scan.label is not None:
      _check_contrast(case, scan.stored.scaled(scan.slope, scan.inter).voxels, scan.label, notes)
    return scan


def _find_group(findings: Findings, folder: pathlib.Path, group: str) -> None:
  scans = _by_subject(findings, raw_folder.child(folder, _SCANS))
  labels = _by_subject(findings, raw_folder.child(folder, _LABELS))
  # Publications count 54 to 72 subjects of this set, so what has no twin is warned of.
  for subject in sorted(labels.keys() - scans.keys()):
    findings.leave_out(labels[subject], "label without a scan")
    findings.warn(f"{findings.relative(labels[subject])}: has no scan; left out.")
  for subject in sorted(scans):
    scan, label = scans[subject], labels.get(subject)
    if not raw_folder.check_volumes(findings, scan, label):
      continue
    files = raw_folder.volume_files("image", scan)
    if label is None:
      findings.warn(f"{findings.relative(scan)}: has no label; it goes to the split unlabeled.")
    else:
      files |= raw_folder.volume_files("label", label)
    findings.add(
        Case(
            key=subject, subject=subject, volume=subject, files=files,
            labelled=label is not None, stratum=group,
        )
    )  # fmt: skip


def _by_subject(findings: Findings, folder: pathlib.Path | None) -> dict[str, pathlib.Path]:
  """Returns {subject: file}; ID_deface, ID_label_deface, ID_label and ID all name subject ID."""
  found: dict[str, pathlib.Path] = {}
  if folder is None:
    return found
  for stem, path in raw_folder.volumes_by_stem(folder, findings).items():
    subject = re.sub(r"[^a-z0-9]+", "-", _MARKS.sub("", stem).lower())
    if subject in found:
      findings.problem(
          f"{findings.relative(path)}: a second file of subject {subject}, beside"
          f" {findings.relative(found[subject])}; keep one of them."
      )
    found[subject] = path
  return found


def _check_contrast(case: Case, voxels: np.ndarray, label: np.ndarray, notes: Notes) -> None:
  """Notes the mean T1 of the brain tissues; where their order is wrong, so may be the numbering.

  On T1 white matter is brighter than grey, and grey brighter than fluid. Other code for this set
  has labels 2 and 3 the wrong way round.
  """
  means = {}
  for name, value in (("white_matter", _WHITE), ("grey_matter", _GREY), ("csf", _CSF)):
    inside = label == value
    if inside.any():
      means[name] = round(float(np.mean(voxels[inside], dtype=np.float64)), 2)
  notes.facts["mean_t1"] = means
  values = list(means.values())
  in_order = all(brighter > darker for brighter, darker in itertools.pairwise(values))
  notes.facts["white_over_grey_over_csf"] = in_order
  if not in_order:
    notes.warnings.append(
        f"{case.volume}: mean T1 should fall from white matter to grey matter to CSF, but is"
        f" {means}. Are the labels 2 (grey) and 3 (white) swapped in this file?"
    )
