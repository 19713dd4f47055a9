"""Margins and volume intervals that hold for a stated share of new subjects (split conformal).

Of n subjects that the network was not trained on, each gives one score: how far around the
prediction the truth reaches, or the ratio of true to predicted volume. The ceil((n + 1) level)-th
smallest score bounds that of a new subject with at least the chance `level`, whatever the
distribution, as long as the new subject is drawn as these were: Vovk et al. 2005; Lei et al. 2018,
https://arxiv.org/abs/1604.04173. Several volumes of a subject are one score, the worst of them.

A margin is the smallest distance such that the truth of a class lies within the predicted structure
dilated by it, the directed Hausdorff distance from truth to prediction, between voxel centres;
infinite where nothing is predicted. Subjects count that have the class. A ratio is that of a
volume in which the class is predicted.
"""

from __future__ import annotations

import dataclasses
import fractions
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage, spatial

from flexunet.core.errors import InputError
from flexunet.evaluation import surface_distance

# Distances are sums of squares; equal ones must not differ by rounding.
_SLACK = 1e-6


def _exact(level: float) -> fractions.Fraction:
  """Returns the level as it was written: 0.9 is 9/10, not the nearest binary fraction."""
  return fractions.Fraction(repr(float(level)))


def check_level(level: float, flag: str) -> float:
  """Returns a level; InputError unless it lies between 0 and 1.

  Args:
    level: Share of subjects.
    flag: What named it, such as "--margin".
  """
  if not 0 < level < 1:
    raise InputError(
        f"{flag} must be a share of subjects above 0 and below 1, such as 0.9. Got: {level:g}."
    )
  return level


def rank(count: int, level: float) -> int:
  """Returns which of `count` sorted scores bounds a new one at a level; above `count`: none."""
  return math.ceil((count + 1) * _exact(level))


def required(level: float) -> int:
  """Returns the fewest scores that bound a new one: the least n of at least level / (1 - level)."""
  return math.ceil(_exact(level) / (1 - _exact(level)))


def bound(scores: Sequence[float], level: float) -> float:
  """Returns what a new score does not exceed with at least the chance `level`.

  Infinite where that takes more scores, see `required`.
  """
  place = rank(len(scores), level)
  return sorted(scores)[place - 1] if place <= len(scores) else math.inf


@dataclasses.dataclass(frozen=True)
class Scores:
  """One score for each subject.

  Attributes:
    subjects: Their names.
    values: float64 [subjects], or [subjects, 2] for the least and the greatest of a subject.
    folds: Which fold each was held out of; None where there are none.
  """

  subjects: tuple[str, ...]
  values: np.ndarray
  folds: tuple[int, ...] | None = None

  def chosen(self, places: Sequence[int]) -> Scores:
    """Returns those of some subjects."""
    folds = None if self.folds is None else tuple(self.folds[place] for place in places)
    subjects = tuple(self.subjects[place] for place in places)
    return Scores(subjects, self.values[list(places)], folds)

  def without_fold(self, fold: int) -> tuple[Scores, Scores]:
    """Returns the scores of the other folds, and those of one."""
    folds = self.folds or ()
    others = [place for place, own in enumerate(folds) if own != fold]
    return self.chosen(others), self.chosen([n for n, own in enumerate(folds) if own == fold])

  def to_json(self, name: str) -> dict[str, Any]:
    """Returns {name: values, "subjects": ...}; what is infinite is null."""
    values = np.where(np.isfinite(self.values), self.values, np.nan).tolist()
    entry = {name: _with_null(values), "subjects": list(self.subjects)}
    return entry if self.folds is None else {**entry, "folds": list(self.folds)}

  @classmethod
  def from_json(cls, entry: Mapping[str, Any], name: str, infinite: Sequence[float]) -> Scores:
    """Reads what `to_json` wrote.

    Args:
      entry: That of a class.
      name: The key of the values.
      infinite: What null stands for: one number, or one for each of two columns.

    Raises:
      ValueError, KeyError, TypeError: It is no such entry.
    """
    subjects = tuple(str(one) for one in entry["subjects"])
    shape = (len(subjects),) if len(infinite) == 1 else (len(subjects), len(infinite))
    values = np.array(entry[name], np.float64).reshape(shape)
    values = np.where(np.isnan(values), np.array(infinite), values)
    folds = tuple(int(one) for one in entry["folds"]) if "folds" in entry else None
    if folds is not None and len(folds) != len(subjects):
      raise ValueError("folds and subjects differ in number")
    return cls(subjects, values.reshape(shape), folds)


def _with_null(values: Any) -> Any:
  if isinstance(values, list):
    return [_with_null(one) for one in values]
  return None if math.isnan(values) else values


@dataclasses.dataclass(frozen=True)
class Margins:
  """The margins of calibration subjects.

  Attributes:
    unit: "mm", or "px" where the spacing is unknown.
    geometry: "3d", or "2d" for margins within slices.
    contained: Share of a structure's voxels that must lie inside.
    classes: Name of a foreground class -> margins of the subjects that have it, ascending.
  """

  unit: str
  geometry: str
  contained: float
  classes: dict[str, Scores]

  def at(self, level: float) -> tuple[dict[str, float], list[str]]:
    """Returns class -> margin at a level, and a line for each class that has none.

    Raises:
      InputError: No class has one.
    """
    found, refused = {}, []
    for name, scores in self.classes.items():
      if math.isfinite(margin := bound(scores.values.tolist(), level)):
        found[name] = margin
      else:
        refused.append(f"{name}: {self._reason(scores, level)}")
    if not found:
      raise InputError(
          f"A margin at the level {level:g} cannot be given. {' '.join(refused)} Name a lower"
          " level, or calibrate on more subjects."
      )
    return found, refused

  def _reason(self, scores: Scores, level: float) -> str:
    count = len(scores.subjects)
    if count < (wanted := required(level)):
      return too_few(count, wanted)
    missed = int(np.isinf(scores.values).sum())
    return (
        f"no finite margin holds for that share of subjects, since the class was missed in {missed}"
        f" of {count}."
    )

  def to_json(self) -> dict[str, Any]:
    """Returns its part of `calibration.json`."""
    return {
        "unit": self.unit,
        "geometry": self.geometry,
        "contained": self.contained,
        "classes": {name: own.to_json("margins") for name, own in self.classes.items()},
    }

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> Margins:
    """Reads what `to_json` wrote; ValueError, KeyError, TypeError where it is something else."""
    if values["unit"] not in ("mm", "px") or values["geometry"] not in ("3d", "2d"):
      raise ValueError("unknown unit or geometry")
    classes = {
        str(name): Scores.from_json(own, "margins", (math.inf,))
        for name, own in values["classes"].items()
    }
    if any((own.values < 0).any() for own in classes.values()):
      raise ValueError("a margin is negative")
    return cls(values["unit"], values["geometry"], float(values["contained"]), classes)


def too_few(count: int, wanted: int) -> str:
  """Returns the sentence that says how many subjects are lacking."""
  return f"it takes {wanted} subjects, and calibration had {count}."


@dataclasses.dataclass(frozen=True)
class RatioBounds:
  """Between which multiples of the predicted volume the true one lies.

  Attributes:
    low, high: Factors; 0 and infinity where nothing is known.
    two_sided: Each side was bounded by itself; otherwise both by the larger deviation.
  """

  low: float
  high: float
  two_sided: bool


@dataclasses.dataclass(frozen=True)
class VolumeRatios:
  """log(true / predicted volume) of calibration subjects.

  Attributes:
    classes: Name of a foreground class -> the least and the greatest of each subject's volumes in
      which the class is predicted.
  """

  classes: dict[str, Scores]

  def at(self, level: float) -> tuple[dict[str, RatioBounds], list[str]]:
    """Returns class -> bounds at a level, and a line for each class that has none.

    Raises:
      InputError: No class has any.
    """
    found, refused = {}, []
    for name, scores in self.classes.items():
      if (count := len(scores.subjects)) >= (wanted := required(level)):
        found[name] = ratio_bounds(scores.values, level)
      else:
        refused.append(f"{name}: {too_few(count, wanted)}")
    if not found:
      raise InputError(
          f"A volume interval at the level {level:g} cannot be given. {' '.join(refused)} Name a"
          " lower level, or calibrate on more subjects."
      )
    return found, refused

  def to_json(self) -> dict[str, Any]:
    """Returns its part of `calibration.json`."""
    return {"classes": {name: own.to_json("log_ratios") for name, own in self.classes.items()}}

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> VolumeRatios:
    """Reads what `to_json` wrote; ValueError, KeyError, TypeError where it is something else."""
    # A truth of nothing has the logarithm minus infinity; what is predicted is more than nothing.
    return cls({
        str(name): Scores.from_json(own, "log_ratios", (-math.inf, -math.inf))
        for name, own in values["classes"].items()
    })


def ratio_bounds(log_ratios: np.ndarray, level: float) -> RatioBounds:
  """Returns bounds of the ratio of a new subject.

  With enough subjects each side leaves out half of what the level leaves out, so that a network
  that draws too small or too large is corrected. With fewer, the larger deviation of each subject
  bounds both sides alike. The number of subjects alone decides which.

  Args:
    log_ratios: float64 [subjects, 2], the least and the greatest of each.
    level: Share of subjects.
  """
  one_side = float(1 - (1 - _exact(level)) / 2)
  if len(log_ratios) >= required(one_side):
    low, high = -bound((-log_ratios[:, 0]).tolist(), one_side), bound(
        log_ratios[:, 1].tolist(), one_side
    )
    return RatioBounds(math.exp(low), math.exp(high), True)
  most = bound(np.abs(log_ratios).max(axis=1).tolist(), level)
  return RatioBounds(math.exp(-most), math.exp(most), False)


def containing_margin(
    truth: np.ndarray, found: np.ndarray, spacing: Sequence[float], contained: float = 1.0
) -> float:
  """Returns the smallest distance to which `found` must be dilated to contain the truth.

  Args:
    truth, found: bool, masks of one shape, of two or three axes.
    spacing: Of their axes, in mm or 1.0 for voxels.
    contained: Share of the true voxels that must lie inside.

  Returns:
    0.0 where the truth is empty; infinity where it is not, and `found` is.
  """
  return _margin_of(_distances(truth, found, spacing), contained)


def margin_of_slices(
    truth: Sequence[np.ndarray],
    found: Sequence[np.ndarray],
    spacing: Sequence[float],
    contained: float = 1.0,
) -> float:
  """Returns the same for masks that are dilated within their slices, bool [H, W] each."""
  pairs = zip(truth, found, strict=True)
  parts = [_distances(own, other, spacing) for own, other in pairs]
  return _margin_of(np.concatenate(parts), contained)


def _margin_of(distances: np.ndarray, contained: float) -> float:
  if not distances.size:
    return 0.0
  place = math.ceil(distances.size * _exact(contained)) - 1
  return float(np.partition(distances, place)[place])


def _distances(truth: np.ndarray, found: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
  """Returns for each true voxel the distance to the nearest found one, float64 [true voxels]."""
  outside = truth & ~found
  distances = np.zeros(int(np.count_nonzero(truth)))
  if not outside.any():
    return distances
  missed = int(np.count_nonzero(outside))
  if not found.any():
    distances[:missed] = math.inf
    return distances
  # The nearest voxel of a mask lies on its surface.
  points = np.argwhere(surface_distance.surface(found)) * np.asarray(spacing, np.float64)
  tree = spatial.cKDTree(points)
  wanted = np.argwhere(outside) * np.asarray(spacing, np.float64)
  distances[:missed] = tree.query(wanted)[0]
  return distances


def dilated(mask: np.ndarray, margin: float, spacing: Sequence[float]) -> np.ndarray:
  """Returns bool: the voxels whose centre is at most `margin` from one of the mask.

  Memory: 20 bytes for each voxel of the box around the mask and its margin.

  Args:
    mask: bool, of two or three axes.
    margin: In the unit of `spacing`.
    spacing: Of its axes.
  """
  near = np.zeros(mask.shape, bool)
  if not mask.any():
    return near
  box = tuple(
      slice(max(0, side.start - reach), side.stop + reach)
      for side, reach in zip(
          surface_distance.bounding_box(mask),
          (int(margin / step) + 1 for step in spacing),
          strict=True,
      )
  )
  distance = ndimage.distance_transform_edt(~mask[box], sampling=spacing)
  near[box] = distance <= margin + _SLACK
  return near


def coverage_by_fold(scores: Scores, level: float) -> tuple[int, int]:
  """Returns how many subjects the scores of the other folds cover, and of how many.

  Folds whose others are too few for the level are left out.

  Args:
    scores: With folds.
    level: Share of subjects.
  """
  covered = subjects = 0
  for fold in sorted(set(scores.folds or ())):
    others, own = scores.without_fold(fold)
    if len(others.subjects) >= required(level):
      covered += int(np.count_nonzero(covers(others.values, own.values, level)))
      subjects += len(own.subjects)
  return covered, subjects


def covers(calibration: np.ndarray, new: np.ndarray, level: float) -> np.ndarray:
  """Returns bool [new subjects]: whose score lies within the bound of calibration scores.

  Args:
    calibration: float64 [subjects] margins, or [subjects, 2] logarithms of ratios.
    new: The same of other subjects.
    level: Share of subjects.
  """
  if calibration.ndim == 1:
    return new <= bound(calibration.tolist(), level)
  ratios = ratio_bounds(calibration, level)
  return (np.exp(new[:, 0]) >= ratios.low - 1e-12) & (np.exp(new[:, 1]) <= ratios.high + 1e-12)
