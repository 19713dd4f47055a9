"""Compares exported graphs with `Predictor`, on real slices where the run's dataset is there.

The files are asked by the runtimes of their formats in a process that imports nothing of flexunet.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from flexunet import config, dataset_access
from flexunet.core import progress
from flexunet.core.errors import InputError
from flexunet.evaluation.labelled_volumes import LabelledVolume
from flexunet.network import exported_answers
from flexunet.network.standalone import Surroundings
from flexunet.pipelines import dataset_source, readers
from flexunet.pipelines.resizing import Resizing
from flexunet.prediction.predictor import Predictor, to_label

# A grey value that falls on a half is rounded up by one program and down by another, which moves
# probabilities around it. What differs by more is another answer.
MAX_DIFFERENCE = 0.01
_MOST_VOLUMES, _SLICES = 3, 8
# Pixels of another size, so that they are scaled as `PixelSizes` asks for.
_LARGER_PIXELS = 1.5
_UNKNOWN_MM = (float("nan"), float("nan"))


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
  """Neighbouring slices of a volume, with what the graph is asked and what prediction answers.

  Attributes:
    slices: uint8 [N, H, W, channels], as records hold them.
    spacing_mm: (row, column), NaN where unknown.
  """

  slices: np.ndarray
  spacing_mm: tuple[float, float]

  def inputs(self, around: Surroundings, real: type[np.floating]) -> dict[str, np.ndarray]:
    """Returns what goes into the graph: intensities whose window gives back these slices."""
    image = self.slices
    if reach := around.context_slices:
      places = np.arange(len(image))[:, None] + np.arange(-reach, reach + 1)
      image = np.moveaxis(image[np.clip(places, 0, len(image) - 1), :, :, 0], 1, -1)
    given = {"image": image}
    if around.windows:
      limits = np.array([
          (one.low, one.high) if one.kind == "window" else (0.0, 255.0) for one in around.windows
      ])
      low, high = limits.T
      given["image"] = (image * ((high - low) / 255.0) + low).astype(np.float32)
      if around.takes_window:
        given["window"] = limits.astype(real)
    if around.pixel_sizes is not None:
      given["spacing_mm"] = np.array(self.spacing_mm, real)
    return given


@dataclasses.dataclass(frozen=True)
class Samples:
  """What exports are compared on.

  Attributes:
    questions: Slices of a few volumes.
    description: What they are, for export.json.
  """

  questions: list[Question]
  description: str


def samples(run_config: config.RunConfig, around: Surroundings) -> Samples:
  """Returns slices of the run's dataset; generated ones where it is not there."""
  kept: list[Question] = []
  split = ""
  try:
    dataset = _dataset(run_config)
    split = next(name for name in ("test", "validation", "train") if name in dataset.splits)
    fitting = (_middle(volume, around.channels) for volume in dataset.volumes(split))
    size = around.native_size
    kept += itertools.islice(
        (one for one in fitting if size in (None, one.slices.shape[1:3])), _MOST_VOLUMES
    )
  except (InputError, StopIteration):
    pass
  description = f"real slices of the split {split}, {progress.count(len(kept), 'volume')}"
  if not kept:
    kept, description = [_generated(around)], "generated slices"
  if around.pixel_sizes is not None:
    larger = tuple(_LARGER_PIXELS * edge for edge in _trained_spacing(around, kept[0].slices))
    kept.append(dataclasses.replace(kept[0], spacing_mm=(larger[0], larger[1])))
  return Samples(kept, description)


def usual_size(run_config: config.RunConfig) -> tuple[int, int] | None:
  """Returns (height, width) of most slices of the run's dataset; None where it is not there."""
  try:
    source = _dataset(run_config).source
    table = readers.slice_table(source, "test" if "test" in source.info.splits else "train")
  except InputError:
    return None
  sizes = zip(table.height.tolist(), table.width.tolist(), strict=True)
  return collections.Counter(sizes).most_common(1)[0][0]


def _dataset(run_config: config.RunConfig) -> dataset_access.Dataset:
  data = run_config.data
  return dataset_access.Dataset(
      dataset_source.open_dataset(data.dataset, data.data_dir, data.feature_keys)
  )


def _middle(volume: LabelledVolume, channels: int) -> Question:
  """Returns the slices of a volume around the one with most foreground."""
  most = int(np.argmax([np.count_nonzero(label) for label in volume.labels]))
  start = max(0, min(most - _SLICES // 2, len(volume.images) - _SLICES))
  chosen = volume.images[start : start + _SLICES]
  same = [image for image in chosen if image.shape == chosen[0].shape]
  # Prediction takes images in grey.
  grey = readers.to_channels(tf.constant(np.stack(same)), channels).numpy()
  return Question(grey, volume.spacing_mm)


def _generated(around: Surroundings) -> Question:
  """Returns noise, and bright discs on a ramp, of a size that needs resizing."""
  height, width = around.native_size or (45, 70)
  channels = around.channels
  rows, columns = np.mgrid[:height, :width]
  radius = min(height, width) / np.arange(2, 8)
  discs = np.hypot(rows - height / 2, columns - width / 2) < radius[:, None, None]
  scenes = np.where(discs, 200.0, 100.0 * columns / width)[..., None]
  noise = np.random.default_rng(0).uniform(0, 255, (2, height, width, channels))
  drawn = np.concatenate([np.repeat(scenes, channels, axis=-1), noise])
  return Question(drawn.astype(np.uint8), _UNKNOWN_MM)


def _trained_spacing(around: Surroundings, slices: np.ndarray) -> list[float]:
  """Returns the spacing at which slices of this size come to the network as most of training."""
  sizes = around.pixel_sizes
  if sizes is None:
    return list(_UNKNOWN_MM)
  native = slices.shape[1:3]
  inner = native
  if around.resize_mode != "pad":
    inner = Resizing(around.image_size, around.resize_mode).inner_size(native)
  return [
      mm * new / old for mm, new, old in zip(sizes.median_mm, inner, native, strict=True)
  ]


def predicted(
    network: keras.Model,
    run_config: config.RunConfig,
    given: Sequence[Question],
    temperature: float,
) -> list[np.ndarray]:
  """Returns float32 [N, H, W, classes] for each question, by `Predictor`."""
  options: dict[str, Any] = {} if temperature == 1.0 else {"temperature": temperature}
  predictor = Predictor(network, run_config, **options)
  return [
      np.stack(list(predictor.probabilities(list(one.slices), one.spacing_mm))) for one in given
  ]


def answers(
    format_name: str, path: pathlib.Path, given: Sequence[dict[str, np.ndarray]]
) -> list[np.ndarray]:
  """Returns what an exported file answers to each question, in a process without flexunet.

  Raises:
    RuntimeError: It does not answer.
  """
  with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(scratch)
    # Beside the module lie others whose names other packages may have too.
    script = shutil.copy(exported_answers.__file__, folder / "exported_answers.py")
    questions: dict[str, Any] = {
        f"{number}/{name}": array
        for number, inputs in enumerate(given) for name, array in inputs.items()
    }  # fmt: skip
    np.savez(folder / "questions.npz", **questions)
    done = subprocess.run(
        [sys.executable, str(script), format_name, str(path.resolve()),
         str(folder / "questions.npz"), str(folder / "answers.npz")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
      raise RuntimeError(f"{path} does not answer:\n{done.stderr}")
    with np.load(folder / "answers.npz") as found:
      return [found[str(number)] for number in range(len(given))]


@dataclasses.dataclass(frozen=True)
class Comparison:
  """How far an exported graph is from `Predictor` over all pixels that were compared.

  Attributes:
    max_difference: Of a probability; None where class ids come out.
    differing_pixels: That get another class.
    largest_margin: Between the two most probable classes of such a pixel; 0 where there is none.
    label_agreement: Share of the pixels that get the same class.
    pixels: That were compared.
  """

  max_difference: float | None
  differing_pixels: int
  largest_margin: float
  label_agreement: float
  pixels: int


def compare(
    found: Sequence[np.ndarray], expected: Sequence[np.ndarray], path: pathlib.Path
) -> Comparison:
  """Compares class ids [N, H, W] or probabilities [N, H, W, classes] with the latter.

  Raises:
    RuntimeError: They are those of another network.
  """
  differing, pixels, margin, far = 0, 0, 0.0, None
  for mine, its in zip(found, expected, strict=True):
    if mine.shape not in (its.shape, its.shape[:-1]):
      raise RuntimeError(f"{path} answers with shape {mine.shape}, not {its.shape}.")
    if mine.ndim == its.ndim:
      far = max(far or 0.0, float(np.abs(mine - its).max()))
    other = (to_label(mine) if mine.ndim == its.ndim else mine) != to_label(its)
    second, first = np.moveaxis(np.sort(its, axis=-1)[..., -2:], -1, 0)
    differing, pixels = differing + int(other.sum()), pixels + other.size
    margin = max(margin, float((first - second)[other].max(initial=0.0)))
  # Written so that NaN fails too.
  if not (margin <= MAX_DIFFERENCE and (far is None or far <= MAX_DIFFERENCE)):
    raise RuntimeError(
        f"{path} differs from prediction: {differing} of {pixels} pixels get another class, by"
        f" margins up to {margin:g}, and probabilities are off by up to {far}; at most"
        f" {MAX_DIFFERENCE:g} is tolerated."
    )
  return Comparison(far, differing, margin, 1 - differing / max(1, pixels), pixels)
