"""From a trained network to labels on the slices' own grid.

Slices are uint8 [H, W], upright, as they stand in a built dataset; labels are uint8 [H, W] class
ids; probabilities are float32 [H, W, classes] at the slice's own resolution.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from flexunet import config, run_folder
from flexunet.core.errors import InputError
from flexunet.imaging.clean_up import CleanUp
from flexunet.network import weights
from flexunet.network.probabilities import class_ids
from flexunet.pipelines import foreground_crop, pixel_size
from flexunet.pipelines.resizing import Resizing, to_channels
from flexunet.prediction import compiled_step, test_time
from flexunet.prediction import tiles as tiling
from flexunet.prediction.compiled_step import SliceBatch
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
