"""The one table of the endings of scans that are not read, with what converts them."""

from __future__ import annotations

import os
import pathlib

# {ending: (name, what converts it)}.
_UNREAD = {
    ".mgz": ("a FreeSurfer scan", "mri_convert (FreeSurfer)"),
    ".mgh": ("a FreeSurfer scan", "mri_convert (FreeSurfer)"),
    ".nrrd": ("an NRRD scan", "3D Slicer"),
    ".nhdr": ("an NRRD scan", "3D Slicer"),
    ".mha": ("a MetaImage scan", "3D Slicer"),
    ".mhd": ("a MetaImage scan", "3D Slicer"),
    ".dcm": ("a DICOM image", "dcm2niix"),
    ".dicom": ("a DICOM image", "dcm2niix"),
    ".ima": ("a DICOM image", "dcm2niix"),
    ".mnc": ("a MINC scan", "mnc2nii (MINC tools)"),
    ".mif": ("an MRtrix scan", "mrconvert (MRtrix3)"),
    ".mif.gz": ("an MRtrix scan", "mrconvert (MRtrix3)"),
    ".head": ("an AFNI scan", "3dAFNItoNIFTI (AFNI)"),
    ".brik": ("an AFNI scan", "3dAFNItoNIFTI (AFNI)"),
    ".brik.gz": ("an AFNI scan", "3dAFNItoNIFTI (AFNI)"),
    ".par": ("a Philips PAR/REC scan", "dcm2niix"),
    ".rec": ("a Philips PAR/REC scan", "dcm2niix"),
    ".tif": ("a TIFF image", "any image program, as PNG,"),
    ".tiff": ("a TIFF image", "any image program, as PNG,"),
    ".gif": ("a GIF image", "any image program, as PNG,"),
    ".webp": ("a WebP image", "any image program, as PNG,"),
    ".npy": ("a NumPy array", "a script of its publisher"),
    ".npz": ("a NumPy archive", "a script of its publisher"),
    ".zip": ("an archive", "unzip"),
    ".tar": ("an archive", "tar -xf"),
    ".tar.gz": ("an archive", "tar -xf"),
}


def unread_ending(path: str | os.PathLike) -> str:
  """Returns the ending of a scan or an image that is not read, in lower case; "" for others."""
  name = pathlib.PurePath(path).name.lower()
  return max((one for one in _UNREAD if name.endswith(one)), key=len, default="")


def reason_unread(path: str | os.PathLike) -> str:
  """Returns why a file is no scan that is read, and what converts it, for a list of such files."""
  ending = unread_ending(path)
  if not ending:
    return "not a scan"
  what, tool = _UNREAD[ending]
  verb = "unpacks" if what == "an archive" else "converts"
  return f"{what}, which is not read; {tool} {verb} it"
