"""Whether the channels of a scan lie on one grid, and how one is brought onto that of another."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from flexunet.core.errors import InputError
from flexunet.imaging import scan_files
from flexunet.imaging.slice_recipe import StoredChannel
from flexunet.imaging.volume import Volume

# A tenth of a voxel: headers round, and nothing is moved by that little.
_TOLERANCE = 0.1


def agree(first: Volume, other: Volume) -> bool:
  """Returns whether two volumes lie voxel by voxel on each other, by shape and affine.

  Where one states no orientation, nothing but the shape can speak against it.
  """
  if first.voxels.shape != other.voxels.shape:
    return False
  if not (first.oriented and other.oriented):
    return True
  corners = np.array([[0, 0, 0, 1], [*first.voxels.shape, 1]], np.float64)
  apart = np.abs(corners @ (first.affine - other.affine).T).max()
  return bool(apart <= _TOLERANCE * float(first.spacing_mm.min()))


def read_others(
    first: Volume,
    first_path: str | os.PathLike,
    paths: Sequence[str | os.PathLike],
    resample: bool,
) -> tuple[list[StoredChannel], list[int]]:
  """Reads the channels of a scan after the first one.

  Args:
    first: The first channel.
    first_path: Names its file in errors.
    paths: Files of the others, in order.
    resample: Brings channels on other grids onto that of the first, instead of refusing them.

  Returns:
    (the channels on the grid of the first, positions in `paths` of those that were resampled).

  Raises:
    InputError: A file cannot be read, or lies on another grid.
  """
  channels, moved = [], []
  for position, path in enumerate(paths):
    stored, slope, inter = scan_files.read_stored(path)
    # Axes that only run another way, or come in another order, are turned.
    channel = StoredChannel(stored.turned_like(first), slope, inter)
    if not agree(first, channel.stored):
      if not resample:
        raise _refusal(path, first_path, first, channel.stored)
      channel = _resampled(channel, first, path)
      moved.append(position)
    channels.append(channel)
  return channels, moved


def _refusal(
    path: str | os.PathLike, first_path: str | os.PathLike, first: Volume, other: Volume
) -> InputError:
  return InputError(
      f"{path}: must lie on the grid of {first_path}, {_described(first)}. It has"
      f" {_described(other)}. Register the channels, or build the dataset with --resample_channels"
      " where they are registered in world coordinates."
  )


def _described(volume: Volume) -> str:
  size = " x ".join(map(str, volume.voxels.shape))
  spacing = " x ".join(f"{edge:.3g}" for edge in volume.spacing_mm)
  origin = ", ".join(f"{mm:.4g}" for mm in volume.affine[:3, 3])
  return f"{size} voxels of {spacing} mm, {volume.axis_codes} from ({origin})"


def _resampled(
    channel: StoredChannel, like: Volume, path: str | os.PathLike
) -> StoredChannel:
  """Returns a channel interpolated linearly onto the grid of another; outside of it is 0.

  Args:
    channel: On a grid of its own.
    like: Whose grid is wanted.
    path: Names the file in errors.

  Raises:
    InputError: One of them states no orientation, so nothing says how they lie to each other.
  """
  # Few scans are resampled, and programs import this module for the check alone.
  from scipy import ndimage

  if not (channel.stored.oriented and like.oriented):
    raise InputError(
        f"{path}: resampling needs channels that state their orientation, and one of them does not."
    )
  step = np.linalg.inv(channel.stored.affine) @ like.affine
  values = channel.stored.scaled(channel.slope, channel.inter).voxels.astype(np.float32)
  np.nan_to_num(values, copy=False)
  voxels = ndimage.affine_transform(
      values, step[:3, :3], step[:3, 3], like.voxels.shape, order=1, mode="constant"
  )
  return StoredChannel(Volume(voxels, like.affine, like.oriented))
