"""Averages the probabilities of several networks on the grid of a scan, then takes class ids.

Networks of one plane see the same slices and are averaged slice by slice. Those of other planes
see the same 8-bit volume, turned (`SlicePlan.turn_slices`), and are summed voxel by voxel. What
remains in memory beside the slices:

  one plane, networks loaded       a batch of each network
  several planes                   the sum, 4 bytes per voxel and class, and a batch of each
                                   network of one plane
  networks that do not all fit     the sum; one network at a time is read, for each scan
  recipes that differ otherwise    the sum on the scan's own grid, and that of the recipe's planes
                                   while it is their turn

Nothing else holds the probabilities of a whole volume, whatever the number of networks. `each`,
by which weights are learnt, does: 2 bytes per voxel, class and network.

Networks stay loaded where the files of all weights together take at most a quarter of the free
memory (`fits_memory`).
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from flexunet import config
from flexunet.core import machine
from flexunet.core.errors import InputError
from flexunet.ensemble_folder import RunSet
from flexunet.imaging import slice_recipe
from flexunet.imaging.clean_up import CleanUp
from flexunet.imaging.slice_recipe import CutVolume, SliceRecipe, StoredChannel
from flexunet.imaging.slicing import SlicePlan
from flexunet.imaging.volume import Volume
from flexunet.network.probabilities import class_ids, entropy
from flexunet.run_folder import RunFolder

# [N, H, W, ...], or a list of N slices, whose sizes may then differ.
SliceList = Sequence[np.ndarray] | np.ndarray
_UNKNOWN_MM = (float("nan"), float("nan"))
_MEMORY_SHARE = 0.25


class SlicePredictor(Protocol):
  """What an ensemble asks of the network of a run: `predictor.Predictor`."""

  def prepare(self, slices: Any, spacing_mm: Sequence[float]) -> Any:
    """Decides how the slices of one volume come to the network; the answer knows `scaling`."""

  def answer(self, given: Any) -> Iterator[np.ndarray]:
    """Yields float32 [H, W, classes] for each slice of a prepared volume, in order."""

  def pass_lines(self) -> list[str]:
    """Returns how slices have been predicted so far, where not whole and once, one line each."""


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
  """A network of an ensemble.

  Attributes:
    open: Reads the network.
    recipe: How its training set was cut; None for a run trained on images.
    weight: Its share of the mean, at least 0.
  """

  open: Callable[[], SlicePredictor]
  recipe: SliceRecipe | None
  weight: float

  @property
  def plan(self) -> SlicePlan | None:
    """Plane and axes of its slices; None for images."""
    return self.recipe.plan if self.recipe else None


def cut_of(recipe: SliceRecipe | None) -> SliceRecipe | None:
  """Returns what decides the 8-bit volume of a recipe, whatever the plane.

  Networks for which it is equal share one cut. Where slices are resampled within their plane, the
  plane decides too.
  """
  if recipe is None or recipe.in_plane_mm is not None:
    return recipe
  return dataclasses.replace(recipe, plan=SlicePlan(recipe.plan.axes, "axial"))


def fits_memory(weight_files: Iterable[pathlib.Path]) -> bool:
  """Returns whether the networks of all files may stay loaded at once."""
  size = sum(path.stat().st_size for path in weight_files)
  return size <= _MEMORY_SHARE * machine.free_main_memory()


@dataclasses.dataclass(frozen=True, eq=False)
class EnsembleInput:
  """The slices of one volume as each plane of an ensemble sees them.

  Attributes:
    slices: Plane -> uint8 [N, H, W] or [N, H, W, channels], or a list of such slices.
    spacing_mm: Plane -> (row, column, slice); NaN where unknown.
    frames: (height, width) of each slice in the plane of the first network.
    scaling: As in `NetworkInput`, of the first network.
  """

  slices: dict[SlicePlan | None, SliceList]
  spacing_mm: dict[SlicePlan | None, tuple[float, ...]]
  frames: list[tuple[int, int]]
  scaling: tuple[float, float]


class Ensemble:
  """Several networks that answer as one; it has the methods of `Predictor`.

  Slices that it is given are those of the first network's plane and recipe.

  Attributes:
    num_classes: Classes of the answer, background included.
    clean_up: What is done to the labels of a whole scan.
  """

  def __init__(
      self,
      members: Sequence[Member],
      num_classes: int,
      *,
      keep_loaded: bool = True,
      clean_up: CleanUp | None = None,
  ):
    """Takes the networks; weights are scaled to the sum 1.

    Args:
      members: At least one, with a weight above 0.
      num_classes: Of their answers, background included.
      keep_loaded: Keeps every network in memory; else each is read when it is its turn.
      clean_up: Of the ensemble; None: none.
    """
    total = sum(member.weight for member in members)
    kept = [member for member in members if member.weight > 0]
    self._loaded: dict[Callable[[], SlicePredictor], SlicePredictor] = {}
    self._lines: dict[str, None] = {}
    self._members = [dataclasses.replace(one, weight=one.weight / total) for one in kept]
    self._first = members[0].recipe
    self._keep_loaded = keep_loaded
    self.num_classes = num_classes
    self.clean_up = clean_up or CleanUp()

  def parts(self) -> list[tuple[Ensemble, SliceRecipe | None, float]]:
    """Returns the ensembles of networks that share a cut, the recipe of each, and their weights."""
    found: dict[SliceRecipe | None, list[Member]] = {}
    for member in self._members:
      found.setdefault(cut_of(member.recipe), []).append(member)
    return [
        (self._of(own), own[0].recipe, sum(one.weight for one in own)) for own in found.values()
    ]

  def shares_cut(self, recipe: SliceRecipe | None) -> bool:
    """Returns whether one cut by a recipe serves all networks, whatever their planes."""
    return all(cut_of(member.recipe) == cut_of(recipe) for member in self._members)

  def pass_lines(self) -> list[str]:
    """Returns how slices have been predicted so far, where not whole and once, one line each."""
    self._note_passes()
    return list(self._lines)

  def _note_passes(self) -> None:
    for predictor in self._loaded.values():
      self._lines.update(dict.fromkeys(predictor.pass_lines()))

  def _of(self, members: Sequence[Member]) -> Ensemble:
    """Returns the ensemble of some of the networks, which are not read again."""
    part = Ensemble(members, self.num_classes, keep_loaded=self._keep_loaded)
    part._loaded, part._lines = self._loaded, self._lines
    return part

  def read_all(self) -> None:
    """Reads each network, which is kept where all may be."""
    for member in self._members:
      self._predictor(member)

  def probabilities(
      self, slices: SliceList, spacing_mm: Sequence[float] = _UNKNOWN_MM
  ) -> Iterator[np.ndarray]:
    """Yields float32 [H, W, classes] for each slice of one volume, in order; see `prepare`."""
    return self.answer(self.prepare(slices, spacing_mm))

  def labels(
      self, slices: SliceList, spacing_mm: Sequence[float] = _UNKNOWN_MM
  ) -> list[np.ndarray]:
    """Returns the uint8 [H, W] class ids of each slice of one volume; as `probabilities`."""
    return [class_ids(one).astype(np.uint8) for one in self.probabilities(slices, spacing_mm)]

  def prepare(
      self, slices: SliceList, spacing_mm: Sequence[float] = _UNKNOWN_MM
  ) -> EnsembleInput:
    """Turns the slices of one volume for each plane.

    Args:
      slices: As of `Predictor.prepare`; of several planes all slices of a volume, of one size.
      spacing_mm: (row, column) spacing of the slices, or (row, column, slice); NaN where unknown.

    Raises:
      InputError: One slice for several planes, or recipes that differ in more than the plane.
    """
    first = self._plan
    row_mm, column_mm, slice_mm = (*spacing_mm, float("nan"))[:3]
    known = (float(row_mm), float(column_mm), float(slice_mm))
    frames = [(height, width) for height, width in (np.shape(one)[:2] for one in slices)]
    seen: dict[SlicePlan | None, SliceList] = {first: slices}
    spacings: dict[SlicePlan | None, tuple[float, ...]] = {first: known}
    for member in self._members:
      plan = member.plan
      if not self.shares_cut(self._first):
        raise InputError(
            "Runs of one ensemble that are to answer for slices must window and resample scans"
            " alike, whatever their plane. Predict the files of scans, which each run cuts by its"
            " own recipe."
        )
      if plan in seen or plan is None or first is None:
        continue
      if len(slices) < 2:
        raise InputError(
            f"Runs of several planes ({first.plane}, {plan.plane}) need a whole volume. Got: a"
            " single slice."
        )
      slices = array = np.asarray(slices)
      seen[plan] = _turned(array, first, plan)
      spacings[plan] = plan.turn_spacing(known, first)
    shown = self._members[0]
    given = self._predictor(shown).prepare(seen[shown.plan], spacings[shown.plan][:2])
    return EnsembleInput(seen, spacings, frames, given.scaling)

  def answer(self, given: EnsembleInput) -> Iterator[np.ndarray]:
    """Yields float32 [H, W, classes] for each slice of a prepared volume, in order."""
    return self._means(given, lambda probability: probability, self.num_classes)

  def answer_with_entropy(
      self, given: EnsembleInput
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (float32 [H, W, classes], float32 [H, W]): as `answer`, and the networks' own entropy.

    The latter is the weighted mean of the entropies of the networks, in nats. The entropy of the
    mean less this is how much they disagree: the mutual information of label and network, 0 where
    all give the same probabilities.
    """
    for both in self._means(given, _with_entropy, self.num_classes + 1):
      yield both[..., :-1], both[..., -1]

  def each(self, given: EnsembleInput) -> Iterator[list[np.ndarray]]:
    """Yields what each network with a weight answers for a slice, in the order of the first plane.

    Args:
      given: A prepared volume.

    Yields:
      [H, W, classes] of each network, float16 or float32.
    """
    streams: list[Iterable[np.ndarray]] = []
    for member in self._members:
      answers = self._answers(member, given)
      if member.plan == self._plan and self._keep_loaded:
        streams.append(answers)
        continue
      kept = _blank(given, self.num_classes, np.float16)
      for own, probability in zip(self._as_seen(kept, member.plan), answers, strict=True):
        own[:] = probability
      streams.append(kept)
    for probabilities in zip(*streams, strict=True):
      yield list(probabilities)

  def _means(
      self,
      given: EnsembleInput,
      extend: Callable[[np.ndarray], np.ndarray],
      channels: int,
  ) -> Iterator[np.ndarray]:
    """Yields the weighted mean float32 [H, W, channels] for each slice of the first plane.

    Args:
      given: A prepared volume.
      extend: float32 [H, W, classes] -> [H, W, channels], what is averaged.
      channels: How many it gives.
    """
    passes = self._passes()
    # The last pass goes through the slices as they are asked for, and needs no place for a volume.
    last = passes.pop() if passes[-1][0].plan == self._plan else []
    total = _blank(given, channels, np.float32) if passes else []
    for members in passes:
      turned = self._as_seen(total, members[0].plan)
      for own, more in zip(turned, self._sums(members, given, extend), strict=True):
        own += more
    if not last:
      yield from total
    for index, own in enumerate(self._sums(last, given, extend) if last else ()):
      yield (own + total[index] if passes else own).astype(np.float32)

  def _passes(self) -> list[list[Member]]:
    """Returns the networks that go through a volume together, those of the first plane last."""
    if not self._keep_loaded:
      passes = [[member] for member in self._members]
    else:
      by_plan: dict[SlicePlan | None, list[Member]] = {}
      for member in self._members:
        by_plan.setdefault(member.plan, []).append(member)
      passes = list(by_plan.values())
    return sorted(passes, key=lambda members: members[0].plan == self._plan)

  def _sums(
      self,
      members: Sequence[Member],
      given: EnsembleInput,
      extend: Callable[[np.ndarray], np.ndarray],
  ) -> Iterator[np.ndarray]:
    """Yields the weighted sum of networks of one plane, float64 [H, W, channels] per slice.

    In float64 the mean of equal probabilities is exactly these.
    """
    streams = [self._answers(one, given) for one in members]
    for probabilities in zip(*streams, strict=True):
      total: np.ndarray | float = 0.0
      for member, probability in zip(members, probabilities, strict=True):
        total = total + member.weight * extend(probability).astype(np.float64)
      yield np.asarray(total)

  def _answers(self, member: Member, given: EnsembleInput) -> Iterator[np.ndarray]:
    predictor, plan = self._predictor(member), member.plan
    return predictor.answer(predictor.prepare(given.slices[plan], given.spacing_mm[plan][:2]))

  def _predictor(self, member: Member) -> SlicePredictor:
    if member.open not in self._loaded:
      if not self._keep_loaded:
        self._note_passes()
        self._loaded.clear()
        gc.collect()  # Keras leaves circles of references.
      self._loaded[member.open] = member.open()
    return self._loaded[member.open]

  @property
  def needs_whole_volumes(self) -> bool:
    """Whether it has networks of several planes, for which volumes are turned."""
    return len({member.plan for member in self._members} | {self._plan}) > 1

  @property
  def _plan(self) -> SlicePlan | None:
    return self._first.plan if self._first else None

  def _as_seen(self, volume: SliceList, plan: SlicePlan | None) -> SliceList:
    """Returns values on the slices of the first plane as slices of another; a view."""
    if plan is None or self._plan is None or plan == self._plan:
      return volume
    return _turned(np.asarray(volume), self._plan, plan)


def of_runs(
    runs: RunSet, open_one: Callable[[RunFolder, config.RunConfig], SlicePredictor]
) -> Ensemble:
  """Returns the ensemble of the networks of some runs, each read once to see that it can be.

  Args:
    runs: With their weights.
    open_one: Makes what predicts with a run.

  Raises:
    InputError: The runs cannot answer together, or a network cannot be read.
  """
  configs = runs.configs()
  members = [
      Member(functools.partial(open_one, run, own), own.dataset_facts.recipe, weight)
      for run, own, weight in zip(runs.runs, configs, runs.weights, strict=True)
  ]
  ensemble = Ensemble(
      members,
      max(2, configs[0].model.num_classes),
      keep_loaded=fits_memory(run.model_keras for run in runs.runs),
  )
  ensemble.read_all()
  return ensemble


def _turned(volume: np.ndarray, start: SlicePlan, end: SlicePlan) -> np.ndarray:
  """Returns [slice, row, column, ...] of one plane as those of another; a view."""
  return np.moveaxis(end.turn_slices(np.moveaxis(volume, 0, 2), start), 2, 0)


def _blank(given: EnsembleInput, channels: int, dtype: type) -> SliceList:
  """Returns zeros [H, W, channels] for each slice; of one size they are one array."""
  if len(set(given.frames)) > 1:
    return [np.zeros((*frame, channels), dtype) for frame in given.frames]
  return np.zeros((len(given.frames), *given.frames[0], channels), dtype)


def _with_entropy(probability: np.ndarray) -> np.ndarray:
  """Returns [H, W, classes + 1]: the probabilities, and their entropy in nats."""
  return np.concatenate([probability, entropy(probability)[..., None]], axis=-1)


def fuse_volume(
    ensemble: Ensemble,
    channels: Sequence[StoredChannel],
    cuts: Mapping[SliceRecipe, CutVolume],
    name: str = "",
) -> tuple[np.ndarray, tuple[float, float]]:
  """Cuts a scan by each recipe of an ensemble and sums the probabilities on the scan's own grid.

  Args:
    ensemble: Its networks' recipes may differ in all.
    channels: Those of the scan, as stored.
    cuts: The scan as it has been cut by some recipe already.
    name: Names the scan in errors.

  Returns:
    float32 [i, j, k, classes], and the scaling of the first network, as in `NetworkInput`.
  """
  first, *others = channels
  stored, scaling = first.stored, None
  total = np.zeros((*stored.voxels.shape, ensemble.num_classes), np.float32)
  for part, recipe, weight in ensemble.parts():
    if recipe is None:
      raise ValueError("Networks that were trained on images cannot cut a scan.")
    cut = cuts.get(recipe) or recipe.cut(
        stored, first.slope, first.inter, name=name, others=others
    )
    spacing_mm = (*cut.slices.spacing_mm, cut.slices.slice_spacing_mm)
    given = part.prepare(list(cut.images()), spacing_mm)
    scaling = scaling or given.scaling
    on_slices = recipe.plan.view(total, stored)
    rows, columns, through = (
        slice_recipe.nearest(*pair)
        for pair in zip(cut.slices.pixels.shape, on_slices.shape[:3], strict=True)
    )
    for index, probability in enumerate(part.answer(given)):
      for place in np.flatnonzero(through == index):
        on_slices[:, :, place] += weight * probability[np.ix_(rows, columns)]
  return total, scaling or (1.0, 1.0)


class CutScan(Protocol):
  """What fusing asks of a scan that was read: `predictor.ScanVolume`."""

  @property
  def channels(self) -> Sequence[StoredChannel]:
    """Its channels as stored, on one grid."""

  @property
  def recipe(self) -> SliceRecipe:
    """How it was cut."""

  @property
  def name(self) -> str:
    """Names it in errors."""

  @property
  def stored(self) -> Volume:
    """The voxels of the first channel."""

  @property
  def cut(self) -> CutVolume:
    """The slices, cut by the recipe."""


def fuse_slices(
    ensemble: Ensemble, scan: CutScan, probabilities: bool
) -> tuple[np.ndarray, np.ndarray | None, tuple[float, float]]:
  """Returns what networks that cut a scan in several ways make of it, as slices on its own grid.

  Args:
    ensemble: Its networks' recipes may differ in all.
    scan: As it was read; its recipe decides the plane of the answer.
    probabilities: Also keeps the probability of each class.

  Returns:
    Class ids uint8 [row, column, slice]; float16 [row, column, slice, classes] or None; scaling as
    in `NetworkInput`.
  """
  total, scaling = fuse_volume(ensemble, scan.channels, {scan.recipe: scan.cut}, scan.name)
  seen = scan.recipe.plan.view(total, scan.stored)
  label = np.empty(seen.shape[:3], np.uint8)
  for index in range(seen.shape[2]):
    label[..., index] = class_ids(seen[:, :, index])
  return label, seen.astype(np.float16) if probabilities else None, scaling
