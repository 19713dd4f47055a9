"""Whether a scan gives the same answer in whatever axes its file stores it.

The 8-bit slices of a volume are written as NIfTI files in a temporary folder, in several orders and
directions of the axes, each with its affine; each is read and predicted as any file would be. The
labels, turned back, must be equal voxel by voxel.
"""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np

from flexunet import config
from flexunet.imaging.slicing import SlicePlan
from flexunet.prediction import scan_volumes
from flexunet.prediction.ensemble import Ensemble
from flexunet.prediction.predictor import Predictor

if TYPE_CHECKING:
  from flexunet.evaluation.labelled_volumes import LabelledVolume

# Of the 48 that there are: other orders of the axes, other directions, both handednesses.
CODES = ("PIR", "SAL", "RAS", "LPI", "ARS", "IPL")
QUICK_CODES = CODES[:2]
_WORLD = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}


def codes_for(plan: SlicePlan, full: bool) -> list[str]:
  """Returns the axes that are tried, other than those in which slices are shown."""
  return [code for code in (CODES if full else QUICK_CODES) if code != plan.display_axes]


def differing_voxels(
    volume: LabelledVolume,
    predictor: Predictor | Ensemble,
    run_config: config.RunConfig,
    codes: Sequence[str],
) -> dict[str, int]:
  """Returns axes -> how many voxels have another label than with the axes of the slices.

  Args:
    volume: A solid volume.
    predictor: The network.
    run_config: Of the run; it was trained on volumes.
    codes: Orders and directions of the axes, such as "RAS".
  """
  plan = run_config.dataset_facts.slice_plan
  if plan is None:
    raise ValueError("A run that was trained on images knows no axes.")
  own = plan.display_axes
  expected = _label(volume, predictor, run_config, own, own)
  return {
      code: int(np.count_nonzero(_label(volume, predictor, run_config, own, code) != expected))
      for code in codes
  }


def _label(
    volume: LabelledVolume,
    predictor: Predictor | Ensemble,
    run_config: config.RunConfig,
    own: str,
    code: str,
) -> np.ndarray:
  """Returns the label of a volume that was stored in other axes, uint8 [row, column, slice]."""
  with tempfile.TemporaryDirectory() as folder:
    paths = [
        write_turned(pathlib.Path(folder) / f"scan_{channel}.nii", volume, channel, own, code)
        for channel in range(volume.images[0].shape[-1])
    ]
    scan = scan_volumes.read_scan(run_config, paths[0], paths[1:])
    found = scan_volumes.restore_volume(scan, scan_volumes.answer_slices(predictor, scan)).label
  return nib.orientations.apply_orientation(found, _turn(code, own))


def write_turned(
    path: pathlib.Path, volume: LabelledVolume, channel: int, own: str, code: str
) -> pathlib.Path:
  """Writes a channel of a volume as NIfTI in other axes, and returns the path.

  Args:
    path: Of the file.
    volume: Its slices are of one size. Where its spacing is unknown, 1 mm stands for it.
    channel: Which of its images.
    own: Codes towards which row, column and slice run.
    code: The axes wanted.
  """
  voxels = np.stack([image[..., channel] for image in volume.images], axis=-1)
  affine = np.eye(4)
  affine[:3, :3] = 0
  spacing = (*volume.spacing_mm, volume.slice_spacing_mm)
  for axis, (letter, edge) in enumerate(zip(own, spacing, strict=True)):
    world, sign = _WORLD[letter]
    affine[world, axis] = sign * (edge if np.isfinite(edge) and edge > 0 else 1.0)
  turn = _turn(own, code)
  affine = affine @ nib.orientations.inv_ornt_aff(turn, voxels.shape)
  turned = np.ascontiguousarray(nib.orientations.apply_orientation(voxels, turn))
  nib.save(nib.Nifti1Image(turned, affine), path)
  return path


def _turn(start: str, end: str) -> np.ndarray:
  first, last = (nib.orientations.axcodes2ornt(code) for code in (start, end))
  return nib.orientations.ornt_transform(first, last)
