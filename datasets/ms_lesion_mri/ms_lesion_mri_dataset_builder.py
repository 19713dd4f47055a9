"""Lesions of multiple sclerosis in T2, T1 and FLAIR (NIfTI without geometry)."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from flexunet.datasets import published_palettes
from flexunet.datasets.builder import croissant, raw_folder, volume_builder
from flexunet.datasets.builder.raw_folder import Case, Findings, Notes
from flexunet.datasets.ms_lesion_mri import sequence_table
from flexunet.datasets.ms_lesion_mri.options import MODALITIES, MsOptions
from flexunet.imaging.intensity import IntensityWindow
from flexunet.imaging.label_scheme import LabelScheme
from flexunet.imaging.slicing import SlicePlan

_PATIENT = re.compile(r"Patient-(\d+)", re.IGNORECASE)
_FILE = re.compile(r"(\d+)-(LesionSeg-)?(T1|T2|Flair)", re.IGNORECASE)


class MsConfig(volume_builder.VolumeConfig):
  """A config of one of the three scans of a patient."""

  OPTIONS = MsOptions


def _configs() -> list[MsConfig]:
  configs = []
  for modality in MODALITIES:
    name = modality.upper()
    configs.append(MsConfig(name=modality, modality=modality, description=f"Axial {name} slices."))
    configs.append(
        MsConfig(
            name=f"{modality}_volumes", modality=modality, form="volumes",
            description=f"Whole {name} scans.",
        )
    )  # fmt: skip
  return configs


class Builder(volume_builder.VolumeBuilder):
  """Builds axial slices of one modality (T2 by default), or whole volumes."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar = {"1.0.0": "Initial release."}
  HOMEPAGE = "https://data.mendeley.com/datasets/8bctsm8jz7/1"
  LICENSES: ClassVar = (croissant.CC_BY,)
  LAYOUT = "Patient-N/{N-T1,N-T2,N-Flair,N-LesionSeg-T1,N-LesionSeg-T2,N-LesionSeg-Flair}.nii"
  SPLIT_SALT = "ms_lesion_mri"
  PUBLISHED_SUBJECTS = r"ms_\d+"
  HAS_LESIONS = True
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
      "Get the set from Mendeley Data (8bctsm8jz7, version 1) and unpack it with its two"
      f" spreadsheets, so that the folder holds, at any depth, {LAYOUT}."
  )
  BUILDER_CONFIGS: ClassVar = _configs()
  DEFAULT_BUILDER_CONFIG_NAME = "t2"

  def label_scheme(self) -> LabelScheme:
    """Returns the classes."""
    return published_palettes.MS_LESION

  def label_map(self) -> dict[int, int]:
    """Returns {value in the label file: class id}."""
    return {0: 0, 1: 1}

  def slice_plan(self) -> SlicePlan:
    """Returns how volumes are cut."""
    # The files state no orientation. The arrays run to posterior, right and superior; which side
    # is the right one cannot be verified.
    return SlicePlan(axes="PRS", plane="axial")

  def intensity(self) -> IntensityWindow:
    """Returns how intensities become 8 bits."""
    return IntensityWindow("percentile", 0.5, 99.5)

  def find_cases(self, findings: Findings) -> None:
    """Looks through `findings.root`; reads headers only."""
    modality = self.options.modality
    folders = list(_patient_folders(findings.root))
    spacing = sequence_table.slice_spacing_mm(findings, modality) if folders else {}
    for folder in folders:
      _find_patient(findings, folder, modality, spacing)
    if folders:
      _leave_out_tables(findings)
      raw_folder.note(findings)

  def read_scan(self, case: Case, notes: Notes) -> volume_builder.Scan:
    """Reads one case, in a worker process."""
    scan = super().read_scan(case, notes)
    # The headers say 1 mm, which is true of none of these scans.
    spacing_mm = np.array([np.nan, np.nan, case.details["slice_spacing_mm"]])
    return dataclasses.replace(scan, spacing_mm=spacing_mm)


def _patient_folders(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  for path in raw_folder.children(folder):
    if path.is_dir() and not path.is_symlink():
      if _PATIENT.fullmatch(path.name):
        yield path
      else:
        yield from _patient_folders(path)


def _find_patient(
    findings: Findings, folder: pathlib.Path, modality: str, spacing: dict[int, float]
) -> None:
  patient = int(folder.name.partition("-")[2])
  found: dict[bool, pathlib.Path] = {}
  for stem, path in raw_folder.volumes_by_stem(folder, findings).items():
    name = _FILE.fullmatch(stem)
    if name is None:
      findings.leave_out(path, "its name is not one of this dataset")
    elif int(name[1]) != patient:
      findings.problem(
          f"{findings.relative(path)}: names patient {name[1]} in the folder of patient {patient};"
          " put it into its own folder."
      )
    elif name[3].lower() != modality:
      findings.leave_out(path, f"another modality than {modality}")
    else:
      found[bool(name[2])] = path
  if missing := {False, True} - found.keys():
    wanted = f"{patient}-{'LesionSeg-' if True in missing else ''}{modality.capitalize()}.nii"
    findings.problem(f"{findings.relative(folder)}: lacks {wanted}. Add it, or remove the folder.")
    return
  if not raw_folder.check_volumes(findings, found[False], found[True]):
    return
  subject = f"ms_{patient:03d}"
  findings.add(
      Case(
          key=f"{subject}_{modality}", subject=subject, volume=f"{subject}_{modality}",
          files=raw_folder.volume_files("image", found[False])
          | raw_folder.volume_files("label", found[True]),
          details={"slice_spacing_mm": spacing.get(patient, float("nan"))},
      )
  )  # fmt: skip


def _leave_out_tables(findings: Findings) -> None:
  table = sequence_table.find(findings.root)
  for path in findings.root.rglob("*.xlsx"):
    if path == table:
      findings.leave_out(path, "only the spacing between slices is read from it")
    else:
      findings.leave_out(path, "free text on the health of patients stays out of the records")
