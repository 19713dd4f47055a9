"""Segments a scan with an exported network: numpy, nibabel and onnxruntime, nothing else.

python predict_onnx.py EXPORT_FOLDER LABEL.nii.gz SCAN.nii.gz [FURTHER_CHANNEL.nii.gz ...]
"""

import json
import sys

import nibabel as nib
import numpy as np
import onnxruntime
from nibabel import orientations as turns


def _intensities(scan):
  stored = np.asarray(scan.dataobj.get_unscaled())
  stored = stored.reshape(stored.shape[:3]).astype(stored.dtype.newbyteorder("="))
  slope, inter = scan.dataobj.slope, scan.dataobj.inter
  few_bits = stored.dtype == np.float32 or stored.dtype.itemsize <= 2
  scaled = np.float32 if few_bits else np.float64
  return stored if (slope, inter) == (1, 0) else (stored * float(slope) + inter).astype(scaled)


def _limits(voxels, window):
  if window["kind"] != "percentile":
    return window["low"], window["high"]
  return np.percentile(voxels[np.isfinite(voxels) & (voxels != 0)], [window["low"], window["high"]])


def main(folder, target, *paths):
  with open(f"{folder}/export.json", encoding="utf-8") as stream:
    facts = json.load(stream)
  geometry, reach = facts["geometry"], facts["context_slices"]
  if facts["output"] != "labels" or not geometry or geometry["resampled_to_mm"]:
    sys.exit("This example needs --output=labels of a run on volumes that were not resampled.")
  scans = [nib.load(path) for path in paths]
  header, affine = scans[0].header, scans[0].affine
  oriented = header.get("qform_code", 0) > 0 or header.get("sform_code", 0) > 0
  own = turns.io_orientation(affine) if oriented else turns.axcodes2ornt(geometry["axes"])
  upright = turns.axcodes2ornt(geometry["display_axes"])
  edges = np.sqrt((affine[:3, :3] ** 2).sum(axis=0)) if oriented else header["pixdim"][1:4]
  turn = turns.ornt_transform(own, upright)
  edges = np.where(edges > 0, edges, np.nan)[np.argsort(turn[:, 0])].astype(float)
  voxels = [_intensities(scan) for scan in scans]
  window = np.array([_limits(*pair) for pair in zip(voxels, facts["window"], strict=True)], float)
  image = np.stack([turns.apply_orientation(each, turn) for each in voxels], axis=-1)
  image = np.moveaxis(image, 2, 0).astype(np.float32)  # [slice, row, column, channel]
  if reach:  # Each slice with its neighbours; the outermost stand in for those that are missing.
    near = np.arange(len(image))[:, None] + np.arange(-reach, reach + 1)
    image = np.moveaxis(image[np.clip(near, 0, len(image) - 1), :, :, 0], 1, -1)
  session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
  names = {entry.name for entry in session.get_inputs()} - {"image"}
  given = {name: {"window": window, "spacing_mm": edges[:2]}[name] for name in names}
  steps = [{**given, "image": image[start : start + 8]} for start in range(0, len(image), 8)]
  label = np.moveaxis(np.concatenate([session.run(None, step)[0] for step in steps]), 0, 2)
  label = turns.apply_orientation(label, turns.ornt_transform(upright, own))
  nib.save(nib.Nifti1Image(label, affine), target)


if __name__ == "__main__":
  main(*sys.argv[1:])
