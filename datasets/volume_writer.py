"""Writes a label volume in the format, on the grid and with the header geometry of its scan."""

from __future__ import annotations

import gzip
import io
import os
import pathlib
import tempfile

import nibabel as nib
import numpy as np

from flexunet.datasets import volume_header
from flexunet.datasets.errors import InputError

_IMAGE_CLASSES: dict[type, type] = {
    nib.Nifti1Header: nib.Nifti1Image,
    nib.nifti1.Nifti1PairHeader: nib.Nifti1Pair,
    nib.Nifti2Header: nib.Nifti2Image,
    nib.nifti2.Nifti2PairHeader: nib.Nifti2Pair,
    nib.spm2analyze.Spm2AnalyzeHeader: nib.Spm2AnalyzeImage,
}
# What a header may say about the person or the site; a mask must not carry it on.
_FREE_TEXT = (
    "descrip", "aux_file", "intent_name", "db_name", "data_type", "generated", "scannum",
    "patient_id", "exp_date", "exp_time",
)


def write_like(source_path, label: np.ndarray, target_path) -> None:
  """Writes `label` as uint8 into a file that lies voxel by voxel on the source.

  Shape (trailing axes of length 1 included), affine, codes and byte order are the source's; free
  text is left out. The file appears whole or not at all.

  Args:
    source_path: The scan the label belongs to.
    label: Integer ids [i, j, k], 0..255, on the source's grid.
    target_path: Of the same kind as the source: .nii for .nii, .hdr or .img for a pair; with or
      without .gz.

  Raises:
    InputError: When the kinds or the shapes differ.
  """
  source = volume_header.open_header(source_path)
  target_path = pathlib.Path(target_path)
  label = np.asarray(label)
  if label.shape != source.shape:
    raise InputError(
        f"{target_path}: a label must lie on the grid of its scan. Scan {source.shape}, label"
        f" {label.shape}."
    )
  if label.size and (label.min() < 0 or label.max() > 255):
    raise ValueError(f"Label ids must lie in 0..255, got {label.min()}..{label.max()}.")
  single = source.header_path == source.data_path
  suffix = volume_header.suffix_of(target_path)
  if not suffix or (suffix[:4] == ".nii") != single:
    kind = ".nii or .nii.gz" if single else ".hdr or .img"
    raise InputError(f"{target_path}: the source is {source_path}, so the name must end in {kind}.")
  _write_files(_blobs(source, label, single), target_path, suffix)


def _blobs(source: volume_header.OpenedHeader, label: np.ndarray, single: bool) -> dict:
  """Returns the bytes of each file: {"image": ..., "header": ...} (only "image" for .nii)."""
  header = source.header.copy()
  for field in _FREE_TEXT:
    if field in header:
      header[field] = b""
  header.set_data_dtype(np.uint8)
  if isinstance(header, nib.Nifti1Header):
    header["cal_max"] = header["cal_min"] = 0
  data = label.astype(np.uint8).reshape(source.stored_shape, order="F")
  # No affine is passed: nibabel then leaves qform, sform and origin as they are.
  image = _IMAGE_CLASSES[type(header)](data, None, header)
  keys = ("image",) if single else ("image", "header")
  streams = {key: io.BytesIO() for key in (*keys, "mat")}  # "mat" is SPM's, and stays empty.
  wanted = image.make_file_map()
  image.to_file_map(
      {key: nib.fileholders.FileHolder(fileobj=streams[key]) for key in wanted}
  )
  return {key: streams[key].getvalue() for key in keys}


def _write_files(blobs: dict, target_path: pathlib.Path, suffix: str) -> None:
  names = {"image": target_path.name}
  if "header" in blobs:
    stem = target_path.name[: -len(suffix)]
    compressed = suffix[4:]
    names = {"header": f"{stem}.hdr{compressed}", "image": f"{stem}.img{compressed}"}
  for key, name in names.items():
    blob = blobs[key]
    if name.lower().endswith(".gz"):
      blob = gzip.compress(blob, mtime=0)  # No time stamp: equal labels give equal files.
    handle, temporary = tempfile.mkstemp(dir=target_path.parent, prefix=f".{name}.")
    try:
      with os.fdopen(handle, "wb") as stream:
        stream.write(blob)
      os.chmod(temporary, 0o644)
      os.replace(temporary, target_path.with_name(name))
    except BaseException:
      os.unlink(temporary)
      raise
