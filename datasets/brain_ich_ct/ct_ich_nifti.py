"""CT-ICH v1.3.1: whole scans as NIfTI, with a table of the slices of each."""

from __future__ import annotations

import pathlib

import numpy as np

from flexunet.core.errors import InputError
from flexunet.datasets.brain_ich_ct import ct_ich_patients, ct_ich_table
from flexunet.datasets.builder import raw_folder
from flexunet.datasets.builder.raw_folder import Case, Findings, Notes
from flexunet.datasets.builder.volume_builder import Scan, check_same_grid
from flexunet.imaging import nifti


def find_cases(findings: Findings) -> None:
  """Pairs ct_scans/NNN.nii with masks/NNN.nii."""
  folder = raw_folder.find_folder(findings.root, "ct_scans")
  if folder is None:
    return
  masks_folder = raw_folder.child(folder, "masks")
  scans = _by_patient(findings, raw_folder.folder_in(folder, "ct_scans"))
  masks = _by_patient(findings, masks_folder) if masks_folder else {}
  raw_folder.unpaired(findings, [scans[p] for p in sorted(scans.keys() - masks.keys())], "mask")
  raw_folder.unpaired(findings, [masks[p] for p in sorted(masks.keys() - scans.keys())], "scan")
  table_file = raw_folder.child(folder, "hemorrhage_diagnosis_raw_ct.csv")
  rows = _rows_by_patient(findings, table_file)
  for patient in sorted(scans.keys() & masks.keys()):
    if not raw_folder.check_volumes(findings, scans[patient], masks[patient]):
      continue
    name = ct_ich_patients.subject_name(patient)
    files = raw_folder.volume_files("image", scans[patient])
    files |= raw_folder.volume_files("label", masks[patient])
    if table_file is not None:
      files["table"] = table_file  # What a case becomes depends on it too.
    findings.add(
        Case(
            key=name, subject=name, volume=name, files=files,
            stratum=ct_ich_patients.stratum(patient), fold=ct_ich_patients.fold(patient),
            details=[[index, row.plain()] for index, row in sorted(rows.get(patient, {}).items())],
        )
    )
  raw_folder.note(findings)


def read_scan(case: Case, notes: Notes, threshold: float) -> Scan:
  """Reads one scan; its mask is 0 or 255 with rounding noise, hence a threshold."""
  stored, slope, inter = nifti.read_stored(case.files["image"])
  mask = nifti.read(case.files["label"])
  check_same_grid(stored, mask, case.files["label"])
  values = np.nan_to_num(mask.voxels, nan=-1.0) if mask.voxels.dtype.kind == "f" else mask.voxels
  if values.min() < -1 or values.max() > 256:
    raise InputError(
        f"{case.files['label']}: a mask holds 0 and 255 (with rounding noise), found"
        f" {values.min():g}..{values.max():g}. Is this the scan?"
    )
  notes.count_values("mask_nifti", *np.unique(np.round(values), return_counts=True))
  return Scan(stored, slope, inter, (values > threshold).astype(np.uint8))


def _by_patient(findings: Findings, folder: pathlib.Path) -> dict[int, pathlib.Path]:
  found = {}
  for stem, path in raw_folder.volumes_by_stem(folder, findings).items():
    if stem.isdigit() and ct_ich_patients.is_patient(int(stem)):
      found[int(stem)] = path
    else:
      findings.leave_out(path, "its name is not that of a patient 049 ... 130")
  return found


def _rows_by_patient(
    findings: Findings, table_file: pathlib.Path | None
) -> dict[int, dict[int, ct_ich_table.SliceRow]]:
  """Returns {patient: {0-based slice: row}}; the table numbers the slices of the scan itself."""
  if table_file is None:
    findings.warn("hemorrhage_diagnosis_raw_ct.csv is missing: the subtypes are unknown (-1)")
    return {}
  rows: dict[int, dict[int, ct_ich_table.SliceRow]] = {}
  for (patient, number), row in ct_ich_table.read(table_file).items():
    rows.setdefault(patient, {})[number] = row
  # Numbered from 0 or from 1: the first slice of the patient shows which.
  return {
      patient: {number - min(found): row for number, row in found.items()}
      for patient, found in rows.items()
  }
