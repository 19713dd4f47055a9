"""A scan, from its file to labels on its own voxel grid.

In three steps, of which the middle one alone needs the networks, so that a folder of scans can be
read and written meanwhile: `read_scan`, `answer_slices`, `restore_volume`.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from flexunet import config
from flexunet.core.errors import InputError
from flexunet.imaging import channel_grid, intensity, scan_files, slice_recipe, volume_bytes
from flexunet.imaging.clean_up import CleanUp
from flexunet.imaging.slice_recipe import CutVolume, SliceRecipe, StoredChannel
from flexunet.imaging.slicing import Slices
from flexunet.imaging.volume import Volume
from flexunet.prediction.ensemble import Ensemble, fuse_slices
from flexunet.prediction.predictor import Predictor, to_label


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
    oriented: Whether the scan states its orientation: only then are its sides known.
    remarks: Warnings about the scan, one line each.
  """

  label: np.ndarray
  probability: np.ndarray | None
  slices: Slices
  label_slices: np.ndarray
  spacing_mm: tuple[float, float]
  scaling: tuple[float, float]
  oriented: bool = False
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
    return SliceAnswers(*fuse_slices(predictor, scan, probabilities), predictor.clean_up)
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
      oriented=scan.stored.oriented,
  )


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
