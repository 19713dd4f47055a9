"""Writes small DICOM series and multi-frame images; pydicom is imported when one is written."""

import pathlib

import numpy as np

SERIES = "1.2.826.0.1.3680043.8.498.1"
FRAME_OF_REFERENCE = "1.2.826.0.1.3680043.8.498.2"
STUDY = "1.2.826.0.1.3680043.8.498.3"
CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
EXPLICIT = "1.2.840.10008.1.2.1"
# Columns run to the left of the patient, rows to the back: the usual axial slice.
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def dataset(sop_class=CT, transfer_syntax=EXPLICIT, instance="1", series=SERIES):
  """Returns a data set with what every instance has."""
  import pydicom

  made = pydicom.Dataset()
  made.file_meta = pydicom.dataset.FileMetaDataset()
  made.file_meta.TransferSyntaxUID = transfer_syntax
  made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = sop_class
  made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = f"{series}.{instance}"
  made.PatientName, made.PatientID = "SMITH^JOHN", "PATIENT-7"
  made.PatientBirthDate, made.PatientSex, made.StudyID = "", "", ""
  made.StudyDate, made.StudyTime, made.AccessionNumber = "", "", ""
  made.StudyInstanceUID, made.SeriesInstanceUID = STUDY, series
  made.Modality, made.SeriesNumber = "CT", 4
  made.FrameOfReferenceUID = FRAME_OF_REFERENCE
  return made


def set_pixels(made, pixels, bits_stored=None):
  """Enters pixels [rows, columns] or [frames, rows, columns]."""
  made.Rows, made.Columns = pixels.shape[-2:]
  made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
  made.BitsAllocated = 8 * pixels.dtype.itemsize
  made.BitsStored = bits_stored or made.BitsAllocated
  made.HighBit = made.BitsStored - 1
  made.PixelRepresentation = int(pixels.dtype.kind == "i")
  data = np.ascontiguousarray(pixels).tobytes()
  made.PixelData = data + b"\0" * (len(data) % 2)
  made["PixelData"].VR = "OW" if made.BitsAllocated > 8 else "OB"


def save(made, path):
  """Writes a data set with its preamble."""
  path.parent.mkdir(parents=True, exist_ok=True)
  made.save_as(path, enforce_file_format=True)
  return path


def write_series(
    folder: pathlib.Path,
    voxels: np.ndarray,
    *,
    positions=None,
    orientation=AXIAL,
    spacing_mm=(0.5, 0.75),
    step_mm=2.0,
    scales=None,
    series=SERIES,
    number=4,
    change=None,
    transfer_syntax=EXPLICIT,
    names="IM{:04d}.dcm",
) -> list[pathlib.Path]:
  """Writes a series, one slice a file; returns the files in the order of k.

  Args:
    folder: Made where it is not there.
    voxels: [i, j, k]: column, row, slice.
    positions: Of each slice, LPS+; along the normal from (10, -20, 5) in steps by default.
    orientation: As DICOM states it: where columns ascend, then where rows do.
    spacing_mm: (row, column).
    scales: (slope, intercept) of each slice.
    change: Called with (data set, k) before it is written.
  """
  across, down = np.reshape(orientation, (2, 3))
  normal = np.cross(across, down)
  paths = []
  for k in range(voxels.shape[2]):
    made = dataset(CT, transfer_syntax, str(k + 1), series)
    place = np.array([10.0, -20, 5]) + k * step_mm * normal if positions is None else positions[k]
    made.ImagePositionPatient = [f"{value:.6g}" for value in place]
    made.ImageOrientationPatient = [f"{value:.8g}" for value in orientation]
    made.PixelSpacing, made.SliceThickness = list(spacing_mm), step_mm
    made.InstanceNumber, made.SeriesNumber = k + 1, number
    if scales is not None:
      made.RescaleSlope, made.RescaleIntercept = scales[k]
    set_pixels(made, voxels[:, :, k].T)
    if change is not None:
      change(made, k)
    paths.append(save(made, folder / names.format(k + 1)))
  return paths


def write_multi_frame(path, voxels, order, *, step_mm=2.0, spacing_mm=(0.5, 0.75), scales=None):
  """Writes one enhanced MR file, slice k as frame `order.index(k)`."""
  import pydicom

  def sequence(**values):
    item = pydicom.Dataset()
    for name, value in values.items():
      setattr(item, name, value)
    return pydicom.Sequence([item])

  made = dataset(ENHANCED_MR)
  made.Modality, made.NumberOfFrames = "MR", len(order)
  shared, each = pydicom.Dataset(), []
  shared.PlaneOrientationSequence = sequence(ImageOrientationPatient=list(AXIAL))
  shared.PixelMeasuresSequence = sequence(PixelSpacing=list(spacing_mm), SliceThickness=step_mm)
  for k in order:
    own = pydicom.Dataset()
    own.PlanePositionSequence = sequence(ImagePositionPatient=[10.0, -20.0, 5.0 + k * step_mm])
    slope, inter = scales[k] if scales is not None else (1, 0)
    own.PixelValueTransformationSequence = sequence(
        RescaleSlope=slope, RescaleIntercept=inter, RescaleType="US"
    )
    each.append(own)
  made.SharedFunctionalGroupsSequence = pydicom.Sequence([shared])
  made.PerFrameFunctionalGroupsSequence = pydicom.Sequence(each)
  set_pixels(made, np.moveaxis(voxels, (0, 1, 2), (2, 1, 0))[list(order)])
  return save(made, path)
