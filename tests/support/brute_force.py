"""Slow and plain arithmetic that fast code is compared with."""

from __future__ import annotations

import itertools

import numpy as np


def flood_fill(mask: np.ndarray, corners: bool = True) -> list[set[tuple[int, ...]]]:
  """Returns the components of a mask as sets of voxels, one voxel at a time.

  Args:
    mask: Boolean, of any number of axes.
    corners: Whether voxels that share an edge or a corner alone are neighbours, too.
  """
  steps = [
      step for step in itertools.product((-1, 0, 1), repeat=mask.ndim)
      if any(step) and (corners or sum(map(abs, step)) == 1)
  ]  # fmt: skip
  left = {tuple(map(int, place)) for place in np.argwhere(mask)}
  found = []
  while left:
    reached = [left.pop()]
    component = set(reached)
    while reached:
      place = reached.pop()
      for step in steps:
        beside = tuple(a + b for a, b in zip(place, step))
        if beside in left:
          left.remove(beside)
          component.add(beside)
          reached.append(beside)
    found.append(component)
  return found


def drawn(*rows: str, marks: str = ".123456789") -> np.ndarray:
  """Returns class ids uint8 [H, W] from text: the place of each mark in `marks`."""
  return np.array([[marks.index(mark) for mark in row] for row in rows], np.uint8)
