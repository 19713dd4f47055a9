"""What kind of volumes a split holds, and what a reader of its scores must know of them."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence

from flexunet.core import progress
from flexunet.evaluation.labelled_volumes import LabelledVolume
from flexunet.pipelines.dataset_source import DatasetSource


class SplitContents:
  """Takes note of what kind of volumes a split holds."""

  def __init__(self, source: DatasetSource):
    self._left_out: Mapping[str, Mapping[str, int]] = source.report.get("slices_left_out") or {}
    self._reasons: collections.Counter[str] = collections.Counter()
    self._subjects: set[str] = set()
    self._distances: list[str] = []
    self._axes_mm: list[tuple[float, ...]] = []
    self._slices = self._incomplete = self._resampled = 0
    recipe = source.recipe
    self._build_resamples = recipe is not None and recipe.resamples

  def add(self, volume: LabelledVolume, is_native: bool) -> None:
    """Takes note of one as it is scored; `is_native`: on a grid that is not that of its slices."""
    self._resampled += self._build_resamples and not is_native
    self._subjects.add(volume.subject)
    self._distances.append(volume.distances)
    self._axes_mm.append(volume.axes_mm)
    self._slices += len(volume.labels)
    reasons = self._left_out.get(volume.volume, {})
    self._reasons.update(reasons)
    self._incomplete += bool(reasons) or volume.has_gaps

  def counts(self) -> dict[str, int]:
    """Returns the counts of `SplitScores`."""
    return {
        "subjects": len(self._subjects),
        "volumes": len(self._distances),
        "slices": self._slices,
        "volumes_with_2d_distances": self._distances.count("2d"),
        "volumes_without_spacing": self._distances.count("none"),
        "volumes_without_some_slices": self._incomplete,
        "volumes_on_resampled_grid": self._resampled,
    }

  def warnings(self, tolerances_mm: Sequence[float]) -> list[str]:
    """Returns what a reader of the scores must know, one sentence each."""
    return [
        *self._grid_warnings(), *self._part_warnings(), *self._voxel_warnings(tolerances_mm)
    ]  # fmt: skip

  def _grid_warnings(self) -> list[str]:
    """Returns a sentence where scores are not on the grids of the scans."""
    if not self._resampled:
      return []
    volumes = progress.count(len(self._distances), "volume")
    return [
        f"{self._resampled} of {volumes} scored on the grid to which the build resampled them, not"
        " on that of the scans, where scores are usually lower: the dataset does not hold the"
        " labels of the scans. Build it again."
    ]

  def _part_warnings(self) -> list[str]:
    """Returns a sentence where scores are of parts of volumes."""
    if not self._incomplete:
      return []
    said = "; ".join(f"{progress.count(n, 'slice')}: {why}" for why, n in self._reasons.items())
    reason = f"the build left out {said}" if said else "there are gaps between their slices"
    volumes = progress.count(len(self._distances), "volume")
    return [
        f"{self._incomplete} of {volumes} not whole: {reason}. Scores are of the slices that there"
        " are; what is found wrongly elsewhere does not count."
    ]

  def _voxel_warnings(self, tolerances_mm: Sequence[float]) -> list[str]:
    """Returns a sentence for each tolerance that is below the voxel size of some volumes.

    Surfaces lie on a grid: a distance along an axis is 0 or at least the spacing of that axis.
    """
    sizes = [max(axes) for axes in self._axes_mm if axes]
    found = []
    for tolerance in tolerances_mm:
      coarse = [size for size in sizes if size > tolerance + 1e-6]
      if coarse:
        found.append(
            f"surface Dice at {tolerance:g} mm: the tolerance is below the voxel size, up to"
            f" {max(coarse):.3g} mm, of {len(coarse)} of {progress.count(len(sizes), 'volume')}."
            " Along such an axis surfaces agree only where they coincide."
        )
    return found
