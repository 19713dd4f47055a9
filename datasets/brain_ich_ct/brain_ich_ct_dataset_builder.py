"""Intracranial haemorrhage in head CT, CT-ICH: JPEG slices (v1.0.0) or NIfTI (v1.3.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from flexunet.core.errors import InputError
from flexunet.datasets.brain_ich_ct import ct_ich_jpeg, ct_ich_nifti, ct_ich_patients, ct_ich_table
from flexunet.datasets.builder import record_config, segmentation_builder, volume_builder
from flexunet.datasets.builder.raw_folder import Case, Findings, Notes
from flexunet.imaging.intensity import IntensityWindow
from flexunet.imaging.label_scheme import LabelClass, LabelScheme
from flexunet.imaging.slicing import SlicePlan

# JPEG leaves grey noise around the edges of a black and white mask.
MASK_THRESHOLD = 127


@dataclasses.dataclass(kw_only=True)
class IchConfig(record_config.RecordConfig):
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
    else:
      ct_ich_jpeg.find_cases(findings)

  def slices_of(self, case: Case, notes: Notes) -> Iterator[segmentation_builder.Slice]:
    if self.builder_config.source == "nifti":
      config = self.builder_config
      rows = {index: ct_ich_table.SliceRow.from_plain(row) for index, row in case.details}
      if config.plane not in (None, "axial") or config.isotropic_mm:
        rows = {}  # The readers judged the axial slices of the scan, no others.
      for cut in super().slices_of(case, notes):
        yield dataclasses.replace(cut, extras=_extras(rows.get(cut.index)))
      return
    for number, image, label, row in ct_ich_jpeg.read_slices(case, notes, MASK_THRESHOLD):
      yield segmentation_builder.Slice(number - 1, image, label, extras=_extras(row))


def _extras(row: ct_ich_table.SliceRow | None) -> dict[str, int]:
  row = row or ct_ich_table.SliceRow((ct_ich_table.UNKNOWN,) * 5, False, ct_ich_table.UNKNOWN)
  return {**dict(zip(ct_ich_table.SUBTYPES, row.subtypes)), "fracture": row.fracture}
