"""The two releases of CT-ICH: their slice labels, and how their files become cases.

v1.0.0: brain window slices as JPEG, a mask beside the positive ones, `hemorrhage_diagnosis.csv`.
v1.3.1: whole scans as NIfTI, and a table whose slice numbers count from 1 within the scan.
"""

from __future__ import annotations

import csv
import dataclasses
import pathlib
import re
from collections.abc import Iterator, Mapping

import numpy as np

from flexunet.core.errors import InputError
from flexunet.datasets.brain_ich_ct import ct_ich_patients
from flexunet.datasets.builder import raw_folder
from flexunet.datasets.builder.raw_folder import Case, Findings, Notes
from flexunet.datasets.builder.volume_builder import Scan, check_same_grid
from flexunet.imaging import pictures, scan_files

SUBTYPES = ("intraventricular", "intraparenchymal", "subarachnoid", "epidural", "subdural")
UNKNOWN = -1
_SHOWN_NUMBERS = 10
_COLUMNS = ("PatientNumber", "SliceNumber", *(name.capitalize() for name in SUBTYPES))


@dataclasses.dataclass(frozen=True)
class SliceRow:
  """What the readers found in one slice.

  Attributes:
    subtypes: 0 or 1 per entry of `SUBTYPES`; a slice may show several.
    hemorrhage: Whether they called it a haemorrhage.
    fracture: 0 or 1; `UNKNOWN` where the table has no such column.
  """

  subtypes: tuple[int, ...]
  hemorrhage: bool
  fracture: int

  def plain(self) -> list:
    """Returns it as lists and numbers, for `Case.details`."""
    return [list(self.subtypes), self.hemorrhage, self.fracture]

  @classmethod
  def from_plain(cls, values: list) -> SliceRow:
    """Reads what `plain` wrote."""
    subtypes, hemorrhage, fracture = values
    return cls(tuple(subtypes), hemorrhage, fracture)


def read_table(path: pathlib.Path) -> dict[tuple[int, int], SliceRow]:
  """Returns {(patient number, slice number): row}.

  Raises:
    InputError: When columns are missing, a number is none, or a slice is listed twice.
  """
  rows: dict[tuple[int, int], SliceRow] = {}
  try:
    # The published file begins with a byte order mark, which plain utf-8 would put into the name
    # of the first column.
    with open(path, newline="", encoding="utf-8-sig") as stream:
      reader = csv.DictReader(stream)
      names = {name.strip().lower(): name for name in reader.fieldnames or []}
      if missing := [name for name in _COLUMNS if name.lower() not in names]:
        raise InputError(
            f"{path}: needs the columns {', '.join(missing)}, has {', '.join(names) or 'none'}."
            " Fetch the file again."
        )
      for line, row in enumerate(reader, start=2):
        key, found = _parse(path, line, {plain: row[name] for plain, name in names.items()})
        if key in rows:
          raise InputError(f"{path}: line {line} lists slice {key[1]} of patient {key[0]} again.")
        rows[key] = found
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise InputError(f"{path}: cannot be read as a table ({error}). Fetch it again.") from error
  return rows


def _parse(path: pathlib.Path, line: int, row: dict) -> tuple[tuple[int, int], SliceRow]:
  try:
    key = int(row["patientnumber"]), int(row["slicenumber"])
    subtypes = tuple(int(row[name]) for name in SUBTYPES)
    negative = int(row.get("no_hemorrhage", not any(subtypes)))
    fracture = int(row.get("fracture_yes_no", UNKNOWN))
  except (TypeError, ValueError) as error:
    raise InputError(f"{path}: line {line} holds no whole numbers ({error}).") from error
  return key, SliceRow(subtypes, any(subtypes) or not negative, fracture)


_SLICE = re.compile(r"(\d+)\.jpe?g", re.IGNORECASE)
_MASK = re.compile(r"(\d+)_HGE_Seg\.jpe?g", re.IGNORECASE)


def find_jpeg_cases(findings: Findings) -> None:
  """Adds a case per patient folder; its details are the (slice number, table row) to read."""
  folder = raw_folder.find_folder(findings.root, "Patients_CT")
  if folder is None:
    return
  table_file = raw_folder.child(folder, "hemorrhage_diagnosis.csv")
  if table_file is None:
    findings.problem(
        f"{findings.root}: hemorrhage_diagnosis.csv is missing; without it a slice that has no"
        " mask is the same as one without haemorrhage."
    )
    return
  table = read_table(table_file)
  patient_folders = raw_folder.children(raw_folder.folder_in(folder, "Patients_CT"))
  for patient_folder in patient_folders:
    _find_patient(findings, patient_folder, table)
  present = {int(path.name) for path in patient_folders if path.name.isdigit()}
  _warn_of_patients(findings, table_file, {patient for patient, _ in table} - present)
  # What a case becomes depends on the table too.
  findings.cases[:] = [
      dataclasses.replace(case, files={**case.files, "table": table_file})
      for case in findings.cases
  ]
  raw_folder.note(findings)


def read_slices(
    case: Case, notes: Notes, threshold: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray, SliceRow]]:
  """Yields (slice number, image uint8 [H, W], label uint8 [H, W], table row)."""
  for number, plain in case.details:
    row = SliceRow.from_plain(plain)
    image = pictures.read_gray(case.files[f"image_{number:04d}"])
    mask_file = case.files.get(f"mask_{number:04d}")
    label = np.zeros(image.shape, np.uint8)
    if mask_file is not None:
      mask = pictures.read_gray(mask_file)
      if mask.shape != image.shape:
        raise InputError(
            f"{mask_file}: a mask has the size of its image {image.shape}, got {mask.shape}."
        )
      notes.count_values("mask_jpeg", *np.unique(mask, return_counts=True))
      label = (mask > threshold).astype(np.uint8)
    yield number, image, label, row


def _find_patient(
    findings: Findings, folder: pathlib.Path, table: Mapping[tuple[int, int], SliceRow]
) -> None:
  """Adds the case of one patient folder, named by a number such as 049."""
  brain = raw_folder.child(folder, "brain") if folder.is_dir() else None
  if not folder.name.isdigit() or not ct_ich_patients.is_patient(int(folder.name)):
    findings.leave_out(folder, "not a patient folder 049 ... 130")
    return
  if brain is None:
    findings.problem(f"{findings.relative(folder)}: has no folder brain.")
    return
  for other in raw_folder.children(folder):
    if other != brain:
      findings.leave_out(other, "only the brain window is used")
  patient = int(folder.name)
  images, masks = _images(findings, brain)
  for number in sorted(masks.keys() - images.keys()):
    findings.problem(f"{findings.relative(masks[number])}: has no image {number}.jpg beside it.")
  listed = {number for one, number in table if one == patient}
  _warn_of_slices(findings, brain, listed - images.keys())
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
    details.append([number, row.plain()])
  for path in files.values():
    try:
      pictures.read_header(path)
    except InputError as error:
      findings.problem(str(error))
  if details:
    name = ct_ich_patients.subject_name(patient)
    findings.add(
        Case(
            key=name, subject=name, volume=name, files=files, details=details,
            stratum=ct_ich_patients.stratum(patient), fold=ct_ich_patients.fold(patient),
            split=ct_ich_patients.splits()[name],
        )
    )


def _warn_of_patients(findings: Findings, table_file: pathlib.Path, missing: set[int]) -> None:
  if missing:
    findings.warn(
        f"{findings.relative(table_file)}: patients that it lists are missing ({len(missing)}):"
        f" {_listed(missing, '03d')}."
    )


def _warn_of_slices(findings: Findings, path: pathlib.Path, missing: set[int]) -> None:
  if missing:
    findings.warn(
        f"{findings.relative(path)}: slices that the table lists are missing ({len(missing)}):"
        f" {_listed(missing)}."
    )


def _listed(numbers: set[int], form: str = "d") -> str:
  shown = ", ".join(format(number, form) for number in sorted(numbers)[:_SHOWN_NUMBERS])
  return shown + (", ..." if len(numbers) > _SHOWN_NUMBERS else "")


def _images(
    findings: Findings, brain: pathlib.Path
) -> tuple[dict[int, pathlib.Path], dict[int, pathlib.Path]]:
  """Returns ({slice number: image}, {slice number: mask}); 1.jpg is not 10.jpg nor a mask."""
  images: dict[int, pathlib.Path] = {}
  masks: dict[int, pathlib.Path] = {}
  for path in raw_folder.children(brain):
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


def find_nifti_cases(findings: Findings) -> None:
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
  if table_file is not None:
    _warn_of_patients(findings, table_file, rows.keys() - scans.keys())
  for patient in sorted(scans.keys() & masks.keys()):
    if not raw_folder.check_volumes(findings, scans[patient], masks[patient]):
      continue
    depth = scan_files.read_header(scans[patient]).shape[2]  # The scans are stored slice by slice.
    beyond = {number + 1 for number in rows.get(patient, ()) if number >= depth}
    _warn_of_slices(findings, scans[patient], beyond)
    name = ct_ich_patients.subject_name(patient)
    files = raw_folder.volume_files("image", scans[patient])
    files |= raw_folder.volume_files("label", masks[patient])
    if table_file is not None:
      files["table"] = table_file  # What a case becomes depends on it too.
    findings.add(
        Case(
            key=name, subject=name, volume=name, files=files,
            stratum=ct_ich_patients.stratum(patient), fold=ct_ich_patients.fold(patient),
            split=ct_ich_patients.splits()[name],
            details=[[index, row.plain()] for index, row in sorted(rows.get(patient, {}).items())],
        )
    )
  raw_folder.note(findings)


def read_scan(case: Case, notes: Notes, threshold: float) -> Scan:
  """Reads one scan; its mask is 0 or 255 with rounding noise, hence a threshold."""
  stored, slope, inter = scan_files.read_stored(case.files["image"])
  mask, _ = scan_files.read_label(case.files["label"], stored, case.files["image"])
  check_same_grid(stored, mask, case.files["label"], notes)
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
) -> dict[int, dict[int, SliceRow]]:
  """Returns {patient: {0-based slice: row}}; the table numbers the slices of the scan itself."""
  if table_file is None:
    findings.warn("hemorrhage_diagnosis_raw_ct.csv is missing: the subtypes are unknown (-1)")
    return {}
  rows: dict[int, dict[int, SliceRow]] = {}
  for (patient, number), row in read_table(table_file).items():
    rows.setdefault(patient, {})[number] = row
  # Numbered from 0 or from 1: the first slice of the patient shows which.
  return {
      patient: {number - min(found): row for number, row in found.items()}
      for patient, found in rows.items()
  }
