"""Intracranial haemorrhage in head CT, CT-ICH: JPEG slices (v1.0.0) or NIfTI (v1.3.1)."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from flexunet.datasets import (
    base_builder,
    builder_config,
    ct_ich_nifti,
    ct_ich_patients,
    ct_ich_table,
    integrity,
    picture_io,
    volume_builder,
)
from flexunet.datasets.cases import Case, Findings, Notes
from flexunet.datasets.errors import InputError
from flexunet.datasets.intensity import IntensityWindow
from flexunet.datasets.label_scheme import LabelClass, LabelScheme
from flexunet.datasets.slicing import SlicePlan

_SLICE = re.compile(r"(\d+)\.jpe?g", re.IGNORECASE)
_MASK = re.compile(r"(\d+)_HGE_Seg\.jpe?g", re.IGNORECASE)
# JPEG leaves grey noise around the edges of a black and white mask.
MASK_THRESHOLD = 127


@dataclasses.dataclass(kw_only=True)
class IchConfig(builder_config.RecordConfig):
  """Adds which of the two published forms is read: "jpeg" (v1.0.0) or "nifti" (v1.3.1)."""

  source: str = "jpeg"

  def __post_init__(self):
    super().__post_init__()
    if self.source == "jpeg" and (self.plane or self.window or self.isotropic_mm):
      raise InputError(
          "The JPEG form is 2-D and windowed already: plane, window and isotropic_mm need the"
          " NIfTI form (config 'nifti')."
      )


class Builder(volume_builder.VolumeBuilder):
  """Builds axial slices with one class, and the five subtypes as labels of the slice."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar = {"1.0.0": "Initial release."}
  HOMEPAGE = "https://physionet.org/content/ct-ich/"
  LAYOUT = (
      "hemorrhage_diagnosis.csv and Patients_CT/NNN/brain/N.jpg, N_HGE_Seg.jpg (v1.0.0), or for the"
      " nifti configs ct_scans/NNN.nii and masks/NNN.nii (v1.3.1)"
  )
  SPLIT_SALT = ct_ich_patients.SALT
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
      "Get CT-ICH from PhysioNet (ct-ich; v1.0.0 is open, v1.3.1 is restricted) or Kaggle"
      f" (vbookshelf/computed-tomography-ct-images) and unpack it: {LAYOUT}."
  )
  BUILDER_CONFIGS: ClassVar = [
      IchConfig(name="slices", description="650 x 650 JPEG slices in the brain window, v1.0.0."),
      IchConfig(name="nifti", source="nifti", description="512 x 512 slices of the NIfTI form."),
      IchConfig(
          name="volumes", source="nifti", form="volumes", description="Whole NIfTI scans, v1.3.1."
      ),
  ]
  DEFAULT_BUILDER_CONFIG_NAME = "slices"

  def label_scheme(self) -> LabelScheme:
    return LabelScheme(
        (LabelClass("background", (0, 0, 0)), LabelClass("hemorrhage", (255, 0, 0)))
    )

  def slice_plan(self) -> SlicePlan | None:
    return SlicePlan("LAS", "axial") if self.builder_config.source == "nifti" else None

  def intensity(self) -> IntensityWindow:
    if self.builder_config.source == "nifti":
      return IntensityWindow("window", -20, 100)  # The brain window: level 40, width 120 HU.
    return IntensityWindow("none")

  def extra_features(self) -> dict:
    if self.builder_config.form == "volumes":
      return {}
    names = [*ct_ich_table.SUBTYPES, "fracture"]
    return {
        name: tfds.features.Scalar(np.int32, doc="0 or 1, label of the slice; -1 unknown.")
        for name in names
    }

  def split_subjects(self, strata: Mapping[str, str]) -> dict[str, str]:
    sides = ct_ich_patients.sides()
    return {subject: sides[subject] for subject in strata}

  def read_scan(self, case: Case, notes: Notes) -> volume_builder.Scan:
    return ct_ich_nifti.read_scan(case, notes, MASK_THRESHOLD)

  def find_cases(self, findings: Findings) -> None:
    if self.builder_config.source == "nifti":
      ct_ich_nifti.find_cases(findings)
      return
    folder = integrity.find_folder(findings.root, "Patients_CT")
    if folder is None:
      return
    table_file = integrity.child(folder, "hemorrhage_diagnosis.csv")
    if table_file is None:
      findings.problem(
          f"{findings.root}: hemorrhage_diagnosis.csv is missing; without it a slice that has no"
          " mask cannot be told from one without haemorrhage."
      )
      return
    table = ct_ich_table.read(table_file)
    for patient_folder in integrity.children(integrity.folder_in(folder, "Patients_CT")):
      _find_patient(findings, patient_folder, table)

  def slices_of(self, case: Case, notes: Notes) -> Iterator[base_builder.Slice]:
    if self.builder_config.source == "nifti":
      for cut in super().slices_of(case, notes):
        yield dataclasses.replace(cut, extras=_extras(dict(case.details).get(cut.index)))
      return
    for number, row in case.details:
      image = picture_io.read_gray(case.files[f"image_{number:04d}"])
      mask_file = case.files.get(f"mask_{number:04d}")
      label = np.zeros(image.shape, np.uint8)
      if mask_file is not None:
        mask = picture_io.read_gray(mask_file)
        if mask.shape != image.shape:
          raise InputError(
              f"{mask_file}: a mask has the size of its picture {image.shape}, got {mask.shape}."
          )
        notes.count_values("mask_jpeg", *np.unique(mask, return_counts=True))
        label = (mask > MASK_THRESHOLD).astype(np.uint8)
      yield base_builder.Slice(number - 1, image, label, extras=_extras(row))


def _extras(row: ct_ich_table.SliceRow | None) -> dict[str, int]:
  row = row or ct_ich_table.SliceRow((ct_ich_table.UNKNOWN,) * 5, False, ct_ich_table.UNKNOWN)
  return {**dict(zip(ct_ich_table.SUBTYPES, row.subtypes)), "fracture": row.fracture}


def _find_patient(findings: Findings, folder, table) -> None:
  """Adds the case of one patient folder, named by a number such as 049."""
  brain = integrity.child(folder, "brain") if folder.is_dir() else None
  if not folder.name.isdigit() or not ct_ich_patients.is_patient(int(folder.name)):
    findings.leave_out(folder, "not a patient folder 049 ... 130")
    return
  if brain is None:
    findings.problem(f"{findings.relative(folder)}: has no folder brain.")
    return
  for other in integrity.children(folder):
    if other != brain:
      findings.leave_out(other, "only the brain window is used")
  patient = int(folder.name)
  images, masks = _pictures(findings, brain)
  for number in sorted(masks.keys() - images.keys()):
    findings.problem(f"{findings.relative(masks[number])}: has no picture {number}.jpg beside it.")
  files, details = {}, []
  for number in sorted(images):
    row, mask = table.get((patient, number)), masks.get(number)
    if row is None:
      findings.leave_out(images[number], "not in hemorrhage_diagnosis.csv, so unlabelled")
      continue
    if row.hemorrhage and mask is None:
      findings.leave_out(images[number], "haemorrhage by the table, but no mask: unlabelled")
      continue
    if mask is not None and not row.hemorrhage:
      findings.warn(f"{findings.relative(mask)}: has haemorrhage, by the table it has none")
    files[f"image_{number:04d}"] = images[number]
    if mask is not None:
      files[f"mask_{number:04d}"] = mask
    details.append((number, row))
  for path in files.values():
    try:
      picture_io.read_header(path)
    except InputError as error:
      findings.problem(str(error))
  if details:
    name = ct_ich_patients.subject_name(patient)
    findings.add(
        Case(
            key=name, subject=name, volume=name, files=files, details=tuple(details),
            stratum=ct_ich_patients.stratum(patient), fold=ct_ich_patients.fold(patient),
        )
    )


def _pictures(findings: Findings, brain) -> tuple[dict, dict]:
  """Returns ({slice number: picture}, {slice number: mask}); 1.jpg is not 10.jpg nor a mask."""
  images: dict[int, pathlib.Path] = {}
  masks: dict[int, pathlib.Path] = {}
  for path in integrity.children(brain):
    for pattern, found in ((_SLICE, images), (_MASK, masks)):
      if match := pattern.fullmatch(path.name):
        number = int(match[1])
        if number in found:
          findings.problem(f"{findings.relative(path)}: a second file of slice {number}.")
        found[number] = path
        break
    else:
      findings.leave_out(path, "its name is not one of this dataset")
  return images, masks
