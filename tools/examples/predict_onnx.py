"""Segments scans: python predict_onnx.py EXPORT_FOLDER LABEL.nii.gz SCAN.nii.gz [CHANNEL_2 ...]."""

import json
import pathlib
import sys

import nibabel as nib
import numpy as np
import onnxruntime
from nibabel import orientations as turns


def _intensities(scan):
  stored = np.asarray(scan.dataobj.get_unscaled()).reshape(scan.shape[:3])
  if (scan.dataobj.slope, scan.dataobj.inter) == (1, 0):
    return stored
  few_bits = stored.dtype.str[1:] == "f4" or stored.dtype.itemsize <= 2
  scaled = stored.astype(float) * scan.dataobj.slope + scan.dataobj.inter
  return scaled.astype(np.float32 if few_bits else float)


def _limits(voxels, window):
  limits = window["low"], window["high"]
  counted = voxels[np.isfinite(voxels) & (voxels != 0)]
  return np.percentile(counted, limits) if window["kind"] == "percentile" else limits


def main(folder: str, target: str, *paths: str) -> None:
  facts = json.loads(pathlib.Path(folder, "export.json").read_text(encoding="utf-8"))
  geometry, reach = facts["geometry"], facts["context_slices"]
  changed = geometry and (geometry["resampled_to_mm"] or geometry["bias_correction"] != "none")
  if facts["output"] != "labels" or not geometry or changed:
    sys.exit("This example needs --output=labels of a run on volumes as scanned.")
  scans: list = [nib.load(path) for path in paths]
  header, affine = scans[0].header, scans[0].affine
  oriented = header.get("qform_code", 0) > 0 or header.get("sform_code", 0) > 0
  own = turns.io_orientation(affine) if oriented else turns.axcodes2ornt(geometry["axes"])
  upright = turns.axcodes2ornt(geometry["display_axes"])
  turn = turns.ornt_transform(own, upright)
  edges = np.sqrt((affine[:3, :3] ** 2).sum(axis=0)) if oriented else header["pixdim"][1:4]
  edges = np.where(edges > 0, edges, np.nan)[np.argsort(turn[:, 0])].astype(float)
  voxels = [_intensities(scan) for scan in scans]
  window = np.array([_limits(*pair) for pair in zip(voxels, facts["window"], strict=True)], float)
  image = np.stack([turns.apply_orientation(each, turn) for each in voxels])
  image = np.moveaxis(image, [3, 0], [0, 3]).astype(np.float32)  # [slice, row, column, channel]
  if reach:  # Each slice with its neighbours; the outermost stand in for those that are missing.
    near = np.arange(len(image))[:, None] + np.arange(-reach, reach + 1)
    image = np.moveaxis(image[np.clip(near, 0, len(image) - 1), :, :, 0], 1, -1)
  session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
  given = {"image": image, "window": window, "spacing_mm": edges[:2]}
  given = {entry.name: given[entry.name] for entry in session.get_inputs()}
  steps = np.array_split(image, range(8, len(image), 8))
  label = np.concatenate([session.run(None, {**given, "image": step})[0] for step in steps])
  label = turns.apply_orientation(np.moveaxis(label, 0, 2), turns.ornt_transform(upright, own))
  nib.save(nib.Nifti1Image(label, affine), target)


if __name__ == "__main__":
  main(*sys.argv[1:])
