"""Channels in the fourth axis of one file, as Medical Segmentation Decathlon stores several.

Nothing in such a file says that the axis is not time: the layout or `--channels` must.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

from flexunet.core import progress
from flexunet.core.errors import InputError
from flexunet.datasets.scan_label.raw_scans import Layout
from flexunet.imaging import scan_files


def named(layout: Layout, given: Sequence[str]) -> Layout:
  """Returns a layout with the channels that its files hold in their fourth axis.

  It is the layout itself where files have three axes, cases have several files, or nothing says
  that a fourth axis is channels; then reading the headers refuses it as a series.

  Args:
    layout: As found by names.
    given: What `--channels` names; it names all of them where the layout does not.

  Raises:
    InputError: `given` is not as many as the volumes of a file.
  """
  if layout.kind == "bids" or any(len(scan.images) != 1 for scan in layout.scans):
    return layout  # In BIDS --channels names contrasts, which are files.
  paths = [next(iter(scan.images.values())) for scan in layout.scans]
  path, count = next(((p, n) for p, n in zip(paths, map(_count, paths)) if n > 1), (None, 1))
  if path is None:
    return layout
  if layout.stacked_names is None:
    if not given:
      return layout
    if len(given) != count:
      raise InputError(
          f"--channels: {path} has {count} volumes along its fourth axis, and {len(given)} names"
          f" were given: {','.join(given)}. Name each of them, in order."
      )
    names = list(given)
  else:
    names = list(layout.stacked_names) or [f"channel_{n}" for n in range(1, count + 1)]
  scans = [
      dataclasses.replace(scan, images=dict.fromkeys(names, own))
      for scan, own in zip(layout.scans, paths, strict=True)
  ]
  components = {name: number for number, name in enumerate(names)}
  return dataclasses.replace(layout, scans=scans, channels=names, components=components)


def _count(path: pathlib.Path) -> int:
  try:
    return scan_files.num_volumes(path)
  except InputError:
    return 1  # Adding the case says what is wrong.


def problem_of(path: pathlib.Path, names: Sequence[str]) -> str:
  """Returns why a file does not hold these channels in its fourth axis; "" where it does."""
  try:
    count = scan_files.num_volumes(path)
  except InputError as error:
    return str(error)
  if count == len(names) > 1:
    return ""
  wanted = progress.count(len(names), "volume")
  return (
      f"{path}: must have {wanted} along its fourth axis, one for each channel that is named:"
      f" {', '.join(names)}. Found {count}. Mend dataset.json, or leave the file out."
  )
