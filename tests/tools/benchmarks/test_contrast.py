"""Agreement between the answers to scans of one person, by hand-made labels."""

import nibabel as nib
import numpy as np
import pytest

from flexunet.core.errors import InputError
from flexunet.tools.benchmarks import contrast

NAMES = ("background", "grey", "white")


def test_dice_of_each_class_and_pair():
  labels = {
      "t1": np.array([0, 1, 1, 0]), "t2": np.array([0, 1, 0, 0]), "flair": np.array([0, 0, 0, 1])
  }  # fmt: skip
  found = contrast.agreement(labels, NAMES)
  # One voxel of three is common: 2 * 1 / (2 + 1). No answer has white matter.
  assert found["t1 | t2"] == {"grey": 0.6667, "white": None, "mean": 0.6667}
  assert found["t1 | flair"]["grey"] == 0
  assert list(found) == ["t1 | t2", "t1 | flair", "t2 | flair"]
  assert contrast.shares(labels["t1"], NAMES) == {"background": 0.5, "grey": 0.5, "white": 0}


def write(path, voxels, step=1.0):
  nib.save(nib.Nifti1Image(np.asarray(voxels, np.int16), np.diag([step, 1, 1, 1])), path)
  return path


def test_compared_are_the_voxels_that_no_scan_leaves_empty(tmp_path):
  first = np.ones((4, 4, 4))
  second = first.copy()
  first[0], second[:, 0] = 0, 0
  mask = contrast.compared_voxels([
      write(tmp_path / "a.nii", first), write(tmp_path / "b.nii", second)
  ])  # fmt: skip
  assert mask.sum() == 3 * 3 * 4


@pytest.mark.parametrize(
    "voxels, step, words",
    [(np.ones((4, 4, 5)), 1.0, "must lie on the grid"), (np.ones((4, 4, 4)), 2.0, "must lie on"),
     (np.zeros((4, 4, 4)), 1.0, "must share voxels")],
)  # fmt: skip
def test_scans_that_cannot_be_compared_are_refused(tmp_path, voxels, step, words):
  first = write(tmp_path / "a.nii", np.ones((4, 4, 4)))
  with pytest.raises(InputError, match=words):
    contrast.compared_voxels([first, write(tmp_path / "b.nii", voxels, step)])
