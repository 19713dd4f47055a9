"""Intracranial haemorrhage in head CT, CT-ICH: JPEG slices (v1.0.0) or NIfTI scans (v1.3.1).

Which of the two forms is read is found from the raw folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from flexunet.datasets import published_palettes
from flexunet.datasets.brain_ich_ct import ct_ich_patients, ct_ich_releases
from flexunet.datasets.builder import croissant, raw_folder
from flexunet.datasets.builder.raw_folder import Case, Findings, Notes
from flexunet.datasets.builder.segmentation_builder import Slice
from flexunet.datasets.builder.volume_builder import Scan, VolumeBuilder, VolumeConfig
from flexunet.imaging.intensity import IntensityWindow
from flexunet.imaging.label_scheme import LabelScheme
from flexunet.imaging.slicing import SlicePlan

# JPEG leaves grey noise around the edges of a black and white mask.
MASK_THRESHOLD = 127
_JPEG, _NIFTI = "jpeg", "nifti"


class Builder(VolumeBuilder):
  """Builds axial slices with one class, and the five subtypes as labels of the slice."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar = {"1.0.0": "Initial release."}
  HOMEPAGE = "https://physionet.org/content/ct-ich/"
  LICENSES: ClassVar = (croissant.CC_BY,)  # Of v1.0.0.
  LAYOUT = (
      "hemorrhage_diagnosis.csv and Patients_CT/NNN/brain/N.jpg, N_HGE_Seg.jpg (v1.0.0), or"
      " ct_scans/NNN.nii and masks/NNN.nii (v1.3.1)"
  )
  SPLIT_SALT = ct_ich_patients.SALT
  PUBLISHED_SUBJECTS = r"ctich_\d+"
  HAS_LESIONS = True
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
      "Get CT-ICH from PhysioNet (ct-ich; v1.0.0 is open, v1.3.1 is restricted) or Kaggle"
      f" (vbookshelf/computed-tomography-ct-images) and unpack it: {LAYOUT}."
  )
  BUILDER_CONFIGS: ClassVar = [
      VolumeConfig(name="slices", description="Axial slices in the brain window."),
  ]
  # The JPEG form has no scans.
  EXTRA_CONFIGS: ClassVar = [
      VolumeConfig(name="volumes", form="volumes", description="Whole NIfTI scans, v1.3.1."),
  ]
  DEFAULT_BUILDER_CONFIG_NAME = "slices"

  def label_scheme(self) -> LabelScheme:
    """Returns the classes."""
    return published_palettes.BRAIN_ICH

  def slice_plan(self) -> SlicePlan | None:
    """Returns how volumes are cut; None for the JPEG form."""
    return SlicePlan("LAS", "axial") if self.release == _NIFTI else None

  def intensity(self) -> IntensityWindow:
    """Returns how intensities become 8 bits; the JPEG form is windowed already."""
    if self.release == _NIFTI:
      return IntensityWindow("window", -20, 100)  # The brain window: level 40, width 120 HU.
    return IntensityWindow("none")

  def licenses(self) -> tuple[croissant.License, ...]:
    """Returns the licences of what is built: v1.3.1 is not open."""
    if self.release == _NIFTI:
      return (croissant.License("PhysioNet restricted licence, not to be passed on"),)
    return self.LICENSES

  def extra_features(self) -> dict[str, Any]:
    """Returns the labels of a slice: five subtypes, and fracture."""
    if self.options.form == "volumes":
      return {}
    names = [*ct_ich_releases.SUBTYPES, "fracture"]
    return {
        name: tfds.features.Scalar(np.int32, doc="0 or 1, label of the slice; -1 unknown.")
        for name in names
    }

  def find_cases(self, findings: Findings) -> None:
    """Looks through `findings.root` for one of the two forms."""
    jpeg = raw_folder.find_folder(findings.root, "Patients_CT")
    scans = raw_folder.find_folder(findings.root, "ct_scans")
    options = self.options
    needs_scans = [name for name in ("plane", "window", "isotropic_mm")
                   if getattr(options, name) is not None]  # fmt: skip
    if options.form == "volumes":
      needs_scans.append("form=volumes")
    if options.bias_correction != "none":
      needs_scans.append("bias_correction")
    if scans is not None and (jpeg is None or needs_scans):
      findings.release = _NIFTI
      ct_ich_releases.find_nifti_cases(findings)
    elif needs_scans and jpeg is not None:
      findings.problem(
          f"{findings.root}: holds JPEG slices (v1.0.0), which are 2-D and windowed already;"
          f" {', '.join(needs_scans)} needs the NIfTI scans (v1.3.1)."
      )
    else:
      findings.release = _JPEG
      ct_ich_releases.find_jpeg_cases(findings)
      if scans is not None:
        findings.warn("The folder holds v1.3.1 too; the JPEG slices of v1.0.0 are built.")

  def read_scan(self, case: Case, notes: Notes) -> Scan:
    """Reads one NIfTI scan, in a worker process."""
    return ct_ich_releases.read_scan(case, notes, MASK_THRESHOLD)

  def slices_of(self, case: Case, notes: Notes) -> Iterator[Slice]:
    """Reads one patient of either form, in a worker process."""
    if self.release == _NIFTI:
      rows = {index: ct_ich_releases.SliceRow.from_plain(row) for index, row in case.details}
      if self.options.plane not in (None, "axial") or self.options.isotropic_mm:
        rows = {}  # The readers judged the axial slices of the scan, no others.
      for cut in super().slices_of(case, notes):
        yield dataclasses.replace(cut, extras={**cut.extras, **_extras(rows.get(cut.index))})
      return
    for number, image, label, row in ct_ich_releases.read_slices(case, notes, MASK_THRESHOLD):
      yield Slice(number - 1, image, label, extras=_extras(row))


def _extras(row: ct_ich_releases.SliceRow | None) -> dict[str, int]:
  unknown = ct_ich_releases.UNKNOWN
  row = row or ct_ich_releases.SliceRow((unknown,) * 5, False, unknown)
  return {**dict(zip(ct_ich_releases.SUBTYPES, row.subtypes)), "fracture": row.fracture}
