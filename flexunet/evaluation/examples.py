"""The best and the worst volumes of an evaluation, a slice or two of each, kept for the report.

Stored as `evaluation/examples_<split>.npz`: uint8 arrays `image_<n>_<k>`, `truth_<n>_<k>`,
`prediction_<n>_<k>` [H, W] of slice k of volume n, and `about`, a JSON text that describes each. At
most a few megabytes.
"""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flexunet import run_folder
from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.reporting import overlay

if TYPE_CHECKING:  # It loads TensorFlow, which a page of stored figures does not need.
  from flexunet.evaluation.labelled_volumes import LabelledVolume

_PER_SIDE = 4
_ARRAYS = ("image", "truth", "prediction")


@dataclasses.dataclass(frozen=True, eq=False)
class ExampleSlice:
  """One slice of a volume.

  Attributes:
    image: uint8 [H, W].
    truth: uint8 [H, W] class ids.
    prediction: uint8 [H, W] class ids.
    slice_index: Position in the volume.
    most_truth: Whether no slice of the volume has more true foreground; more that was predicted,
      where the volume has none.
    most_error: Whether no slice of the volume has more pixels of a wrong class.
  """

  image: np.ndarray
  truth: np.ndarray
  prediction: np.ndarray
  slice_index: int
  most_truth: bool
  most_error: bool

  @property
  def wrong_pixels(self) -> int:
    """How many pixels were given a wrong class."""
    return int(np.count_nonzero(self.truth != self.prediction))


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
  """What is shown of a volume, with the scores of the whole volume.

  Attributes:
    slices: That with most truth; behind it that with most error, where it is another one.
    subject: Pseudonym of the person.
    volume: Pseudonym of the scan.
    foreground_dice: Mean Dice of the volume's foreground classes.
    dice: Class name -> Dice of the volume; None where it has none.
    aspect: Height of a pixel over its width; 1 where unknown.
    side: "best" or "worst"; set when the example is written.
  """

  slices: tuple[ExampleSlice, ...]
  subject: str
  volume: str
  foreground_dice: float
  dice: dict[str, float | None]
  aspect: float = 1.0
  side: str = ""


def example_of(
    volume: LabelledVolume,
    predictions: Sequence[np.ndarray],
    rows: Sequence[dict[str, Any]],
    shown_channel: int | None,
) -> Example:
  """Returns what is to be shown of a volume.

  Args:
    volume: Truth.
    predictions: uint8 [H, W] of each slice.
    rows: Scores of the volume, a row per foreground class.
    shown_channel: Which channel is shown; None: the mean of all.
  """
  areas = [np.count_nonzero(label) for label in volume.labels]
  if not any(areas):
    areas = [np.count_nonzero(label) for label in predictions]
  errors = [
      np.count_nonzero(truth != found)
      for truth, found in zip(volume.labels, predictions, strict=True)
  ]
  richest, worst = int(np.argmax(areas)), int(np.argmax(errors))
  if errors[richest] == errors[worst]:
    worst = richest
  dice = {row["class"]: row["dice"] for row in rows}
  defined = [value for value in dice.values() if not np.isnan(value)]
  height, width = volume.spacing_mm
  return Example(
      slices=tuple(
          ExampleSlice(
              image=overlay.grey_of(volume.images[shown], shown_channel),
              truth=volume.labels[shown],
              prediction=predictions[shown],
              slice_index=volume.slice_index[shown],
              most_truth=shown == richest,
              most_error=shown == worst,
          )
          for shown in dict.fromkeys((richest, worst))
      ),
      subject=volume.subject,
      volume=volume.volume,
      foreground_dice=float(np.mean(defined)) if defined else float("nan"),
      dice={name: None if np.isnan(value) else value for name, value in dice.items()},
      aspect=height / width if np.isfinite([height, width]).all() and width > 0 else 1.0,
  )


class ExampleKeeper:
  """Keeps the examples with the lowest and the highest Dice of those offered."""

  def __init__(self) -> None:
    self._kept: list[Example] = []

  def offer(self, example: Example) -> None:
    """Takes one example per volume; those without a Dice are left out."""
    if np.isnan(example.foreground_dice):
      return
    self._kept.append(example)
    self._kept.sort(key=lambda kept: (kept.foreground_dice, kept.volume))
    if len(self._kept) > 2 * _PER_SIDE:
      del self._kept[_PER_SIDE]

  def chosen(self) -> list[Example]:
    """Returns the worst, worst first, then the best, best first; none is on both sides.

    Of the best only the slice with most truth is kept, but of a single volume all is.
    """
    half = len(self._kept) // 2
    worst = [dataclasses.replace(kept, side="worst") for kept in self._kept[:half]]
    best = [
        dataclasses.replace(kept, side="best", slices=kept.slices[: 1 if half else None])
        for kept in self._kept[half:]
    ]
    return worst + best[::-1]


def path_of(run: run_folder.RunFolder, split: str) -> pathlib.Path:
  """Returns where the examples of a split are stored."""
  return run.evaluation / f"examples_{split}.npz"


def write(path: pathlib.Path, examples: Sequence[Example]) -> None:
  """Writes examples; the file is replaced in one step."""
  arrays: dict[str, Any] = {}
  about = []
  for number, example in enumerate(examples):
    slices = []
    for place, shown in enumerate(example.slices):
      values = _fields(shown)
      arrays |= {f"{name}_{number}_{place}": values.pop(name) for name in _ARRAYS}
      slices.append(values)
    about.append({**_fields(example), "slices": slices})
  buffer = io.BytesIO()
  np.savez_compressed(buffer, about=np.array(json.dumps(about, allow_nan=False)), **arrays)
  files.write_bytes(path, buffer.getvalue())


def _fields(entry: Example | ExampleSlice) -> dict[str, Any]:
  """Returns the fields of an entry as they are, by name."""
  return {field.name: getattr(entry, field.name) for field in dataclasses.fields(entry)}


def read(path: pathlib.Path) -> list[Example]:
  """Returns the examples that `write` wrote; an empty list where there is no file.

  Raises:
    InputError: It is damaged.
  """
  if not path.is_file():
    return []
  try:
    with zipfile.ZipFile(path) as archive:
      damaged = archive.testzip()
    if damaged:
      raise ValueError(f"the checksum of {damaged} does not fit")
    with np.load(path, allow_pickle=False) as arrays:
      return [
          _example(arrays, number, about)
          for number, about in enumerate(files.parse_json(str(arrays["about"]), path))
      ]
  except (OSError, EOFError, KeyError, TypeError, ValueError, RuntimeError, OverflowError,
          struct.error, zlib.error, zipfile.BadZipFile) as error:  # fmt: skip
    raise InputError(
        f"{path} must be as the evaluation wrote it, but cannot be read: {error}. Run flexunet"
        " evaluate again."
    ) from error


def _example(arrays: Mapping[str, np.ndarray], number: int, about: dict[str, Any]) -> Example:
  """Returns an example of its arrays and of what is written about it."""
  slices = []
  for place, values in enumerate(about["slices"]):
    fields: dict[str, Any] = {name: arrays[f"{name}_{number}_{place}"] for name in _ARRAYS}
    slices.append(ExampleSlice(**fields, **values))
  return Example(**{**about, "slices": tuple(slices)})
