"""From a trained network to labels on the slices' own grid.

Slices are uint8 [H, W], upright, as they stand in a built dataset; labels are uint8 [H, W] class
ids; probabilities are float32 [H, W, classes] at the slice's own resolution.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from flexunet import config, run_folder
from flexunet.core.errors import InputError
from flexunet.imaging import channel_grid, intensity, scan_files, slice_recipe, volume_bytes
from flexunet.imaging.clean_up import CleanUp
from flexunet.imaging.slice_recipe import CutVolume, SliceRecipe, StoredChannel
from flexunet.imaging.slicing import Slices
from flexunet.imaging.volume import Volume
from flexunet.network import weights
from flexunet.network.probabilities import class_ids
from flexunet.pipelines import foreground_crop, pixel_size
from flexunet.pipelines.resizing import Resizing, to_channels
from flexunet.prediction import compiled_step, test_time
from flexunet.prediction import tiles as tiling
from flexunet.prediction.compiled_step import SliceBatch
from flexunet.prediction.ensemble import Ensemble, fuse_volume
from flexunet.training import devices

_UNKNOWN_MM = (float("nan"), float("nan"))


def load_model(run: run_folder.RunFolder) -> keras.Model:
  """Returns the run's best `keras.Model`, not compiled.

  Raises:
    InputError: The run has no model yet, or the file is damaged or not the one the run wrote.
  """
  run.check_model()
  return weights.read_model(run.model_keras)


@dataclasses.dataclass(frozen=True, eq=False)
class NetworkInput:
  """The slices of one volume, and how each comes to the network.

  Attributes:
    slices: uint8 [H, W] or [H, W, channels] each, cut to their boxes.
    resizings: How each is brought to the network's input, and its answer back.
    boxes: int32 [N, 4], the part of each slice that is seen; None: all of it.
    frames: (height, width) of each slice before it was cut.
    scaling: Factors (row, column) that the pixel size of the training asks for, on top of how the
      run resizes; 1.0 where it asks for none. Followed where `pixel_size.believed`.
  """

  slices: Sequence[np.ndarray]
  resizings: list[Resizing]
  boxes: np.ndarray | None
  frames: list[tuple[int, int]]
  scaling: tuple[float, float]


class Predictor:
  """A network with what it takes to feed it native slices and to read its answer.

  Attributes:
    num_classes: Classes of the answer, background included; 2 for a network with one output.
    clean_up: What is done to the labels of a whole scan; `probabilities` and `labels` are as the
      network gives them.
  """

  def __init__(
      self,
      model: Any,
      run_config: config.RunConfig,
      *,
      batch_size: int = 8,
      views: test_time.ViewOptions = test_time.ONE_VIEW,
      tiles: tiling.TileOptions = tiling.WHERE_NEEDED,
      temperature: float = 1.0,
      clean_up: CleanUp | None = None,
  ):
    """Prepares prediction.

    Args:
      model: `keras.Model`, or a function of tensors, [B, h, w, channels] in 0..255 -> probabilities
        [B, h, w, classes].
      run_config: Config of the run that trained it.
      batch_size: Slices per step.
      views: Test-time augmentation.
      tiles: Which slices are predicted in tiles.
      temperature: Divides the logarithms of the probabilities, as `probabilities.tempered`.
      clean_up: Of the run; None: none.

    Raises:
      InputError: Views by which labels could change sides, or an overlap of tiles that is too
        large for the network.
    """
    if batch_size < 1:
      raise InputError(f"--batch_size must be at least 1. Got: {batch_size}.")
    if run_config.model.image_size is None:
      raise InputError("config.json must hold model.image_size. Got: null.")
    self._batch_size = batch_size
    plan = run_config.dataset_facts.slice_plan
    shown = run_config.augmentation
    self._trained_degrees = (shown.rotation_degrees or 0) if shown.rotation_probability else 0
    self._views = views.views(
        run_config.laterality, plan.plane if plan else None, self._trained_degrees
    )
    self._tiler = tiling.Tiler(run_config.model, tiles, devices.memory_left())
    self._context = run_config.data.context_slices
    self._pixel_sizes = run_config.dataset_facts.pixel_sizes
    self._input_scale = run_config.dataset_facts.input_scale or (1.0, 1.0)
    self._crops = run_config.data.crop_foreground
    self._resizing = Resizing(run_config.model.image_size, run_config.data.resize_mode)
    self._step = compiled_step.CompiledStep(
        model,
        run_config.model.image_size,
        channels=run_config.model.image_channels,
        views=self._views,
        temperature=temperature,
    )
    self.num_classes = max(2, run_config.model.num_classes)
    self.clean_up = clean_up or CleanUp()

  def probabilities(
      self, slices: Sequence[np.ndarray], spacing_mm: Sequence[float] = _UNKNOWN_MM
  ) -> Iterator[np.ndarray]:
    """Yields float32 [H, W, classes] for each slice of one volume, in order.

    A run with --crop_foreground sees the box of the volume's tissue; outside it is background.

    Args:
      slices: uint8 [H, W] or [H, W, channels] each, neighbours in order; sizes may differ. An
        array [N, H, W] will do. All slices of the volume: the box follows from them.
      spacing_mm: (row, column) spacing of the slices, which (row, column, slice) may state; NaN
        where unknown.
    """
    return self.answer(self.prepare(slices, spacing_mm))

  def prepare(
      self, slices: Sequence[np.ndarray], spacing_mm: Sequence[float] = _UNKNOWN_MM
  ) -> NetworkInput:
    """Decides how the slices of one volume come to the network; arguments as `probabilities`."""
    spacing_mm = spacing_mm[:2]
    frames = [(height, width) for height, width in (np.shape(one)[:2] for one in slices)]
    if not self._crops:
      cut, boxes = slices, None
    else:
      boxes = foreground_crop.volume_boxes(slices)
      cut = [
          foreground_crop.crop(np.asarray(one), box)
          for one, box in zip(slices, boxes, strict=True)
      ]
    sizes = [(height, width) for height, width in (np.shape(one)[:2] for one in cut)]
    known = {size: self._resizing_of(size, spacing_mm) for size in dict.fromkeys(sizes)}
    scaling = self._scaling(sizes[0], spacing_mm) if sizes else (1.0, 1.0)
    return NetworkInput(cut, [known[size] for size in sizes], boxes, frames, scaling)

  def answer(self, given: NetworkInput) -> Iterator[np.ndarray]:
    """Yields float32 [H, W, classes] for each slice of a prepared volume, in order."""
    answers = self._of_network(given)
    if given.boxes is None:
      yield from answers
      return
    for box, frame, probability in zip(given.boxes, given.frames, answers, strict=True):
      yield foreground_crop.uncrop(probability, box, frame)

  def _of_network(self, given: NetworkInput) -> Iterator[np.ndarray]:
    """Yields float32 [H, W, classes] for each slice as it is brought to the network."""
    start, resizings = 0, given.resizings
    kinds = [(np.shape(one)[:2], how) for one, how in zip(given.slices, resizings, strict=True)]
    while start < len(kinds):
      most = self._largest_batch(resizings[start].image_size)
      stop = start + 1
      while stop < len(kinds) and stop < start + most and kinds[stop] == kinds[start]:
        stop += 1
      yield from self._batch(given.slices, range(start, stop), resizings[start])
      start = stop

  def labels(
      self, slices: Sequence[np.ndarray], spacing_mm: Sequence[float] = _UNKNOWN_MM
  ) -> list[np.ndarray]:
    """Returns the uint8 [H, W] class ids of each slice of one volume; as `probabilities`."""
    return [to_label(probability) for probability in self.probabilities(slices, spacing_mm)]

  def _scaling(
      self, native_hw: tuple[int, int], spacing_mm: Sequence[float]
  ) -> tuple[float, float]:
    """Returns the factors (row, column) that bring a slice to the pixel size of the training."""
    if self._pixel_sizes is None:
      return 1.0, 1.0
    inner = self._trained_size(native_hw)
    seen = [mm * old / new for mm, old, new in zip(spacing_mm, native_hw, inner, strict=True)]
    return self._pixel_sizes.scaling(seen)

  def _trained_size(self, native_hw: tuple[int, int]) -> tuple[int, int]:
    return native_hw if self._resizing.mode == "pad" else self._resizing.inner_size(native_hw)

  def _resizing_of(
      self, native_hw: tuple[int, int], spacing_mm: Sequence[float]
  ) -> Resizing:
    """Returns how a slice comes to the network, whose frame grows where the slice is too large."""
    trained = self._resizing
    inner = scaled = self._trained_size(native_hw)
    factors = self._scaling(native_hw, spacing_mm)
    if self._keeps_resolution(spacing_mm):
      scaled = _scaled(native_hw, self._input_scale)
    elif pixel_size.believed(factors):
      scaled = _scaled(inner, factors)
    frame = (max(trained.image_size[0], scaled[0]), max(trained.image_size[1], scaled[1]))
    if frame != trained.image_size and scaled == native_hw:
      return Resizing(frame, "pad")
    if scaled != inner:
      return Resizing(frame, trained.mode, inner_hw=scaled)
    return trained if frame == trained.image_size else Resizing(frame, trained.mode)

  def _keeps_resolution(self, spacing_mm: Sequence[float]) -> bool:
    """Returns whether slices are scaled as those of the training were, instead of to its frame.

    So with tiles of a given size, where no pixel size says how large things are.
    """
    known = self._pixel_sizes is not None and bool(np.isfinite(spacing_mm).all())
    return self._tiler.has_size and not known and self._resizing.mode != "pad"

  def _largest_batch(self, frame_hw: tuple[int, int]) -> int:
    """Returns the frames of a step: fewer where they have grown, for the memory they need."""
    trained = math.prod(self._resizing.image_size)
    return max(1, min(self._batch_size, self._batch_size * trained // math.prod(frame_hw)))

  def pass_lines(self) -> list[str]:
    """Returns how slices have been predicted so far, where not whole and once, one line each."""
    lines = self._tiler.lines()
    if len(self._views) > 1:
      lines.append(f"each slice {len(self._views)} times: {', '.join(map(str, self._views))}")
      if any(view.turns for view in self._views) and self._trained_degrees < 90:
        lines[-1] += (
            f"; training turned slices by {self._trained_degrees:g} degrees at most, so that what"
            " the network makes of turned ones may spoil the mean"
        )
    return [f"Predicted {line}" for line in lines]

  def _batch(
      self, slices: Sequence[np.ndarray], positions: range, resizing: Resizing
  ) -> Iterator[np.ndarray]:
    """Yields float32 [H, W, classes] for neighbouring slices of one size."""
    # Filled up to a power of two: a device sees few sizes of batches, not each rest.
    count = _up_to_power(len(positions), self._largest_batch(resizing.image_size))
    batch = self._given(slices, positions, resizing, count)
    if self._is_whole(resizing.image_size):
      answers = self._step(batch)
    else:
      frames = self._step.frames(batch)[: len(positions)]
      answers = test_time.mean_answer(self._in_tiles, tf.constant(frames), self._views)
      answers = self._step.restored(answers, batch)
    yield from answers[: len(positions)]

  def _is_whole(self, frame_hw: tuple[int, int]) -> bool:
    """Returns whether all views of a frame go through the network at once, in one graph."""
    return self._tiler.tiling(frame_hw) is None and all(view.scale == 1 for view in self._views)

  def _given(
      self, slices: Sequence[np.ndarray], positions: range, resizing: Resizing, count: int
  ) -> SliceBatch:
    """Returns `count` inputs for slices of one size, each alone or with those beside it."""
    height, width = np.shape(slices[positions[0]])[:2]
    reach, native_hw = self._context, (height, width)
    if not reach:
      own = [slices[position] for position in positions]
      return SliceBatch(compiled_step.filled(count, own), resizing, native_hw)
    # Beyond the ends of a volume the outermost slice stands in for its missing neighbour.
    first, last = max(0, positions[0] - reach), min(len(slices) - 1, positions[-1] + reach)
    steps = np.arange(-reach, reach + 1)
    rows = np.zeros((count, len(steps)), np.int32)
    rows[: len(positions)] = (
        np.clip(np.array(positions)[:, None] + steps, 0, len(slices) - 1) - first
    )
    seen = [slices[position] for position in range(first, last + 1)]
    if len({np.shape(one) for one in seen}) == 1:
      return SliceBatch(compiled_step.filled(len(seen), seen), resizing, native_hw, rows)
    # Neighbours of other sizes come to the frame one by one.
    framed = [
        resizing.apply_image(to_channels(tf.constant(compiled_step.filled(1, [one])), 1))
        for one in seen
    ]
    return SliceBatch(np.concatenate(framed), resizing, native_hw, rows, framed=True)

  def _in_tiles(self, images: tf.Tensor) -> np.ndarray:
    """Returns float32 [N, h, w, classes] for uint8 [N, h, w, channels] of any height and width."""
    frames = images.numpy()
    cut = self._tiler.tiling(frames.shape[1:3])
    if cut is None:
      return self._answers(frames)
    return tiling.answer(self._answers, frames, cut, self._largest_batch(cut.tile_hw))

  def _answers(self, frames: np.ndarray) -> np.ndarray:
    """Returns float32 [N, h, w, classes] for uint8 [N, h, w, channels] of any height and width."""
    most = self._largest_batch(frames.shape[1:3])
    parts = []
    for start in range(0, len(frames), most):
      part = frames[start : start + most]
      given = compiled_step.filled(_up_to_power(len(part), most), part)
      parts.append(self._step.probability(given)[: len(part)])
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


@dataclasses.dataclass(frozen=True, eq=False)
class VolumePrediction:
  """What a network makes of a volume.

  Attributes:
    label: Class ids, uint8 [i, j, k] on the voxel grid of the volume.
    probability: float16 [i, j, k, classes] on that grid; None where it was not asked for.
    slices: The upright 8-bit slices on the scan's own grid, [row, column, slice].
    label_slices: Class ids of these slices, uint8 [row, column, slice].
    spacing_mm: (row, column) spacing of the slices as the run cuts them; NaN where unknown.
    scaling: As in `NetworkInput`.
    remarks: Warnings about the scan, one line each.
  """

  label: np.ndarray
  probability: np.ndarray | None
  slices: Slices
  label_slices: np.ndarray
  spacing_mm: tuple[float, float]
  scaling: tuple[float, float]
  remarks: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, eq=False)
class ScanVolume:
  """A scan that has been read.

  Attributes:
    channels: Its channels as stored, on one grid, the first being the scan itself.
    recipe: How the training set was cut.
    name: Names the scan in errors.
    shown_channel: Which channel is shown to people; None: the first.
    remarks: Warnings about the scan, one line each.
  """

  channels: Sequence[StoredChannel]
  recipe: SliceRecipe
  name: str = ""
  shown_channel: int | None = None
  remarks: list[str] = dataclasses.field(default_factory=list)

  @property
  def stored(self) -> Volume:
    """The voxels of the first channel."""
    return self.channels[0].stored

  @functools.cached_property
  def cut(self) -> CutVolume:
    """The slices, cut as in training; InputError where the scan cannot be."""
    first, *others = self.channels
    return self.recipe.cut(
        first.stored, first.slope, first.inter, name=self.name, others=others
    )


@dataclasses.dataclass(frozen=True, eq=False)
class SliceAnswers:
  """What a network makes of the slices of a scan.

  Attributes:
    label: Class ids, uint8 [row, column, slice]; of networks that cut a scan in several ways on
      its own grid, of one on that of the cut.
    probability: float16 [row, column, slice, classes]; None where it was not asked for.
    scaling: As in `NetworkInput`.
    clean_up: What is then done to the labels of the whole scan.
  """

  label: np.ndarray
  probability: np.ndarray | None
  scaling: tuple[float, float]
  clean_up: CleanUp


def read_scan(
    run_config: config.RunConfig,
    path: str | os.PathLike,
    others: Sequence[str | os.PathLike] = (),
    components: Sequence[int] = (),
) -> ScanVolume:
  """Reads a scan for a run; arguments and errors as `predict_scan`."""
  facts = run_config.dataset_facts
  if facts.recipe is None:
    raise InputError(
        f"{path}: the run was trained on images ({facts.name}) and does not know how to cut a"
        " volume into slices. Give it images, or a run trained on volumes."
    )
  stacked = [StoredChannel(*one) for one in scan_files.read_channels(path, components)]
  further, _ = channel_grid.read_others(stacked[0].stored, path, others, facts.resample_channels)
  channels = [*stacked, *further]
  names = [volume_bytes.component_name(path, one) for one in components or (None,)]
  return ScanVolume(
      channels=channels,
      recipe=facts.recipe,
      name=pathlib.Path(path).name,
      shown_channel=run_config.shown_channel,
      remarks=[
          line
          for file, one in zip((*names, *others), channels, strict=True)
          for line in intensity.unknown_voxels(one.stored.voxels, file)
      ],
  )


def answer_slices(
    predictor: Predictor | Ensemble, scan: ScanVolume, *, probabilities: bool = False
) -> SliceAnswers:
  """Segments the slices of a scan: all that needs the network.

  Args:
    predictor: The network.
    scan: As it was read.
    probabilities: Also keeps the probability of each class, 2 bytes per voxel and class.
  """
  if isinstance(predictor, Ensemble) and not predictor.shares_cut(scan.recipe):
    return _fused(predictor, scan, probabilities)
  slices = scan.cut.slices
  label = np.empty(slices.pixels.shape, np.uint8)
  kept = np.empty((*label.shape, predictor.num_classes), np.float16) if probabilities else None
  spacing_mm = (*slices.spacing_mm, slices.slice_spacing_mm)
  given: Any = predictor.prepare(list(scan.cut.images()), spacing_mm)
  for index, probability in enumerate(predictor.answer(given)):
    label[..., index] = to_label(probability)
    if kept is not None:
      kept[..., index, :] = probability
  return SliceAnswers(label, kept, given.scaling, predictor.clean_up)


def restore_volume(scan: ScanVolume, found: SliceAnswers) -> VolumePrediction:
  """Puts the labels of slices back on the grid of their scan, and cleans them up."""
  cut, recipe = scan.cut, scan.recipe
  label = slice_recipe.to_grid(found.label, cut.native.pixels.shape)
  spacing_mm = (*cut.native.spacing_mm, cut.native.slice_spacing_mm)
  label = found.clean_up.apply(label, spacing_mm)
  restored = None
  if found.probability is not None:
    channels = np.moveaxis(found.probability, -1, 0)
    restored = np.stack([recipe.restore(one, scan.stored) for one in channels], axis=-1)
  return VolumePrediction(
      label=recipe.restore(label, scan.stored),
      probability=restored,
      slices=cut.shown(scan.shown_channel),
      label_slices=label,
      spacing_mm=cut.slices.spacing_mm,
      scaling=found.scaling,
      remarks=scan.remarks,
  )


def _fused(
    predictor: Ensemble, scan: ScanVolume, probabilities: bool
) -> SliceAnswers:
  """Returns what networks that cut a scan in several ways make of it, on its own grid."""
  total, scaling = fuse_volume(predictor, scan.channels, {scan.recipe: scan.cut}, scan.name)
  seen = scan.recipe.plan.view(total, scan.stored)
  label = np.empty(seen.shape[:3], np.uint8)
  for index in range(seen.shape[2]):
    label[..., index] = to_label(seen[:, :, index])
  kept = seen.astype(np.float16) if probabilities else None
  return SliceAnswers(label, kept, scaling, predictor.clean_up)


def predict_scan(
    predictor: Predictor | Ensemble,
    run_config: config.RunConfig,
    path: str | os.PathLike,
    others: Sequence[str | os.PathLike] = (),
    *,
    probabilities: bool = False,
    components: Sequence[int] = (),
) -> VolumePrediction:
  """Reads a scan, segments its slices as in training, and puts the labels back on its grid.

  Args:
    predictor: The network.
    run_config: Of the run that trained it.
    path: The scan; its first channel.
    others: Files of its further channels, in the order of the dataset.
    probabilities: Also keeps the probability of each class, 2 bytes per voxel and class.
    components: Volumes along the fourth axis of `path` that are the channels, in the order of the
      dataset; () where each channel is a file.

  Raises:
    InputError: A file cannot be read, channels are missing or lie on other grids, or the run was
      trained on images.
  """
  scan = read_scan(run_config, path, others, components)
  return restore_volume(scan, answer_slices(predictor, scan, probabilities=probabilities))


def to_label(probability: np.ndarray) -> np.ndarray:
  """Returns the class of each pixel, uint8 [H, W], of [H, W, classes]; see `class_ids`."""
  return class_ids(probability).astype(np.uint8)


def _scaled(size_hw: tuple[int, int], factors: Sequence[float]) -> tuple[int, int]:
  height, width = (
      max(1, round(edge * factor)) for edge, factor in zip(size_hw, factors, strict=True)
  )
  return height, width


def _up_to_power(count: int, most: int) -> int:
  """Returns the next power of two, at most `most`."""
  return min(1 << (count - 1).bit_length(), most)
