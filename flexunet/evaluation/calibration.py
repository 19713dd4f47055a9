"""Whether probabilities mean what they say, and the temperature that makes them.

Counted are voxels near the foreground of truth or prediction, within their slice: nearly all of a
scan is air or far from any structure, is right with certainty, and would hide every error. The
region does not depend on a temperature, which changes no label, so figures before and after it are
those of the same voxels.

The expected calibration error (ECE) is that of Guo et al. 2017, https://arxiv.org/abs/1706.04599:
over bins of equal width, the mean distance between the confidence in the predicted class and how
often it is right, weighted by voxels; that of a class compares its probability with how often it is
the true one. The Brier score is the mean over voxels of sum((p - y)^2) over classes, from 0 to 2.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage, optimize

from flexunet.core.errors import InputError
from flexunet.network.probabilities import class_ids, tempered

BINS = 15
REACH_PIXELS = 5
REGION = (
    f"voxels within {REACH_PIXELS} pixels, along rows and columns of their slice, of true or"
    " predicted foreground"
)
RULE = (
    f"Over {REGION}. ECE: mean distance between confidence and accuracy over {BINS} bins of equal"
    " width, weighted by voxels. Brier: mean of the sum over classes of (p - y)^2, 0 to 2; of a"
    " class alone, (p - y)^2. NLL: mean of -log(p of the true class)."
)
# Bounds of the temperature: 1/20 and 20 are sharper and flatter than any trained network needs.
LOWEST, HIGHEST = 0.05, 20.0
_MOST_VOXELS, _MOST_VALUES = 2_000_000, 16_000_000
_CHUNK_VOXELS = 1 << 18
_SMALLEST = 1e-30  # As `probabilities.tempered` takes for 0.


def near_foreground(label: np.ndarray, predicted: np.ndarray) -> np.ndarray:
  """Returns bool [H, W]: the pixels of a slice that count, see `REGION`.

  Args:
    label: True class ids [H, W].
    predicted: Predicted ones.
  """
  foreground = (label > 0) | (predicted > 0)
  return ndimage.maximum_filter(foreground, size=2 * REACH_PIXELS + 1, mode="constant")


class Reliability:
  """Sums of confidence and accuracy, from which all figures of calibration follow."""

  def __init__(self, class_names: Sequence[str]):
    """Starts empty.

    Args:
      class_names: By id, background first.
    """
    self._names = list(class_names)
    # [predicted class, then each class; bin; voxels, confidence, right].
    self._bins = np.zeros((1 + len(class_names), BINS, 3))
    self._brier = np.zeros(len(class_names))
    self._nll = 0.0

  def add(self, label: np.ndarray, probability: np.ndarray) -> None:
    """Takes voxels: class ids [voxels] and float32 [voxels, classes]."""
    if not label.size:
      return
    predicted = class_ids(probability)
    rows = np.arange(label.size)
    self._count(0, probability[rows, predicted], predicted == label)
    for class_id in range(len(self._names)):
      own, true = probability[:, class_id], label == class_id
      self._count(1 + class_id, own, true)
      self._brier[class_id] += np.sum((own - true) ** 2, dtype=np.float64)
    of_truth = np.maximum(probability[rows, label], _SMALLEST)
    self._nll -= float(np.sum(np.log(of_truth), dtype=np.float64))

  def _count(self, part: int, confidence: np.ndarray, right: np.ndarray) -> None:
    places = np.minimum((confidence * BINS).astype(int), BINS - 1)
    for column, weights in enumerate((None, confidence, right)):
      self._bins[part, :, column] += np.bincount(places, weights, BINS)

  def figures(self) -> dict[str, Any]:
    """Returns the figures; those of no voxels are NaN.

    `pixels`, `ece`, `brier`, `nll`, `bins` and per_class {name: `ece`, `brier`, `bins`}; a bin is
    `low`, `high`, `confidence`, `accuracy`, `pixels`.
    """
    voxels = float(self._bins[0, :, 0].sum())
    return {
        "pixels": int(voxels),
        "ece": _ece(self._bins[0]),
        "brier": _ratio(float(self._brier.sum()), voxels),
        "nll": _ratio(self._nll, voxels),
        "bins": _bins(self._bins[0]),
        "per_class": {
            name: {
                "ece": _ece(own),
                "brier": _ratio(float(brier), voxels),
                "bins": _bins(own),
            }
            for name, own, brier in zip(self._names, self._bins[1:], self._brier, strict=True)
        },
    }


def _ece(bins: np.ndarray) -> float:
  """Returns the ECE of float64 [bins, (voxels, confidence, right)]."""
  return _ratio(float(np.abs(bins[:, 1] - bins[:, 2]).sum()), float(bins[:, 0].sum()))


def _ratio(part: float, whole: float) -> float:
  return part / whole if whole else math.nan


def _bins(bins: np.ndarray) -> list[dict[str, Any]]:
  return [
      {
          "low": place / BINS,
          "high": (place + 1) / BINS,
          "confidence": _ratio(confidence, voxels),
          "accuracy": _ratio(right, voxels),
          "pixels": int(voxels),
      }
      for place, (voxels, confidence, right) in enumerate(bins.tolist())
  ]


class CalibrationFigures:
  """The figures of calibration of a split, slice by slice: the entry of `metrics.json`."""

  def __init__(self, class_names: Sequence[str]):
    """Starts empty.

    Args:
      class_names: By id, background first.
    """
    self._sums = Reliability(class_names)

  def add(
      self, label: np.ndarray, probability: np.ndarray, counted: np.ndarray | None = None
  ) -> None:
    """Takes a slice.

    Args:
      label: uint8 [H, W].
      probability: float32 [H, W, classes].
      counted: bool [H, W], the pixels that are not ignored; None: all.
    """
    self._sums.add(*voxels_near_foreground(label, probability, counted))

  def figures(self) -> dict[str, Any]:
    """Returns what is to stand in `metrics.json`."""
    return {"region": REGION, **self._sums.figures(), "rule": RULE}


def voxels_near_foreground(
    label: np.ndarray, probability: np.ndarray, counted: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the pixels of a slice that count, in a row: ids [pixels] and float32 [pixels, classes].

  Arguments as `CalibrationFigures.add`.
  """
  near = near_foreground(label, class_ids(probability))
  if counted is not None:
    near &= counted
  return label[near], probability[near]


class VoxelSample:
  """Voxels of a split drawn at random, at most so many that memory stays bounded.

  Each voxel has the same chance; the draw is the same each time.

  Attributes:
    seen: Voxels that were offered.
  """

  def __init__(self, most: int | None = None):
    """Starts empty.

    Args:
      most: Voxels to keep at most; None: what fits into about 100 MB.
    """
    self.seen = 0
    self._most = most
    self._chance = 1.0
    self._draws = np.random.default_rng(0)
    self._kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

  def add(self, label: np.ndarray, probability: np.ndarray) -> None:
    """Takes voxels: class ids [voxels] and float32 [voxels, classes]."""
    self.seen += label.size
    most = self._most or min(_MOST_VOXELS, _MOST_VALUES // probability.shape[-1])
    self._kept.append((self._draws.random(label.size), label, probability))
    self._thin()
    while sum(draws.size for draws, _, _ in self._kept) > most:
      self._chance /= 2
      self._kept = [tuple(map(np.concatenate, zip(*self._kept, strict=True)))]  # type: ignore[list-item]
      self._thin()

  def _thin(self) -> None:
    draws, label, probability = self._kept[-1]
    chosen = draws < self._chance
    self._kept[-1] = (draws[chosen], label[chosen], probability[chosen])

  def voxels(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ids [voxels] and float32 [voxels, classes] of what was kept."""
    if not self._kept:
      return np.zeros(0, np.uint8), np.zeros((0, 2), np.float32)
    _, label, probability = map(np.concatenate, zip(*self._kept, strict=True))
    return label, probability


def fit_temperature(label: np.ndarray, probability: np.ndarray) -> float:
  """Returns the temperature at which the truth is most likely.

  The mean of -log(p of the true class) is convex in 1 / temperature, so its derivative has one
  root; without one between the bounds the nearer bound is the answer.

  Args:
    label: True class ids [voxels].
    probability: float32 [voxels, classes].

  Raises:
    InputError: There are no voxels.
  """
  if not label.size:
    raise InputError(
        "A temperature is learnt from voxels near foreground. There are none in truth or prediction"
        " of this split."
    )

  def slope(inverse: float) -> float:
    return _nll_slope(label, probability, inverse)

  sharp, flat = 1 / LOWEST, 1 / HIGHEST
  if slope(sharp) <= 0:
    return LOWEST
  if slope(flat) >= 0:
    return HIGHEST
  return 1 / float(optimize.brentq(slope, flat, sharp, xtol=1e-6))


def _nll_slope(label: np.ndarray, probability: np.ndarray, inverse: float) -> float:
  """Returns the derivative of the mean NLL by 1 / temperature, a piece at a time for memory."""
  total = 0.0
  for start in range(0, label.size, _CHUNK_VOXELS):
    part = slice(start, start + _CHUNK_VOXELS)
    logs = np.log(np.maximum(probability[part].astype(np.float64), _SMALLEST))
    scaled = np.exp(inverse * (logs - logs.max(axis=-1, keepdims=True)))
    expected = (scaled * logs).sum(axis=-1) / scaled.sum(axis=-1)
    total += float(np.sum(expected - logs[np.arange(len(logs)), label[part]]))
  return total / label.size


@dataclasses.dataclass(frozen=True)
class TemperatureFit:
  """A temperature and what it changes.

  Attributes:
    temperature: See `fit_temperature`.
    voxels, voxels_seen: By how many it was decided, and of how many these were drawn.
    before, after: `ece`, `brier` and `nll` of these voxels.
  """

  temperature: float
  voxels: int
  voxels_seen: int
  before: dict[str, float]
  after: dict[str, float]

  @classmethod
  def of(cls, sample: VoxelSample) -> TemperatureFit:
    """Fits the temperature to a sample."""
    label, probability = sample.voxels()
    temperature = fit_temperature(label, probability)
    figures = []
    for one in (1.0, temperature):
      sums = Reliability([str(number) for number in range(probability.shape[-1])])
      for start in range(0, label.size, _CHUNK_VOXELS):
        part = slice(start, start + _CHUNK_VOXELS)
        sums.add(label[part], tempered(probability[part], one))
      found = sums.figures()
      figures.append({name: found[name] for name in ("ece", "brier", "nll")})
    return cls(temperature, int(label.size), sample.seen, *figures)

  def to_json(self) -> dict[str, Any]:
    """Returns its part of `calibration.json`."""
    at_bound = self.temperature in (LOWEST, HIGHEST)
    return {**dataclasses.asdict(self), "at_bound": at_bound, "region": REGION}
