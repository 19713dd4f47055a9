"""Connected components of a mask of two or three axes.

Voxels that share a face, an edge or a corner are neighbours: 26 in 3-D, 8 in 2-D. Beyond the array
there is nothing.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage

RULE = "26 neighbours in 3-D, 8 in 2-D"


@dataclasses.dataclass(frozen=True, eq=False)
class Components:
  """The components of a mask, numbered from 1 in the order of their first voxel.

  Attributes:
    box: The smallest box around the mask.
    numbers: int32, of the shape of the box; 0 outside of the mask.
    sizes: int64 [components], their voxels.
  """

  box: tuple[slice, ...]
  numbers: np.ndarray
  sizes: np.ndarray

  def places(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the voxels of some components.

    Args:
      chosen: bool [components].

    Returns:
      Indices in the whole array, int64 [voxels, axes], and the position of each voxel's component
      among all, int64 [voxels].
    """
    inside = np.concatenate([[False], chosen])[self.numbers]
    corner = np.array([side.start for side in self.box], np.int64)
    return np.argwhere(inside) + corner, self.numbers[inside].astype(np.int64) - 1


def components_of(mask: np.ndarray) -> Components:
  """Returns the components of a boolean mask."""
  box = bounding_box(mask)
  numbers, count = ndimage.label(mask[box], np.ones((3,) * mask.ndim, bool))
  return Components(box, numbers, np.bincount(numbers.ravel(), minlength=count + 1)[1:])


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
  """Returns the smallest box around the true voxels; an empty one where there are none."""
  box = []
  for axis in range(mask.ndim):
    others = tuple(other for other in range(mask.ndim) if other != axis)
    along = np.flatnonzero(mask.any(axis=others))
    box.append(slice(int(along[0]), int(along[-1]) + 1) if along.size else slice(0, 0))
  return tuple(box)
