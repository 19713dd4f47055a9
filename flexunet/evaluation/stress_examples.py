"""What disturbances look like at the strength at which Dice has fallen: a slice of each.

Stored as `evaluation/stress_<split>.npz`: uint8 arrays `image_<n>`, `truth_<n>`, `prediction_<n>`
[H, W], and `about`, a JSON text that describes each.
"""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.evaluation import stress_disturbances, stress_summary
from flexunet.evaluation.stress_base import Disturbed, Setting, spacing_of
from flexunet.imaging import slice_recipe
from flexunet.reporting import overlay
from flexunet.run_folder import RunFolder

if TYPE_CHECKING:  # It loads TensorFlow, which a page of stored figures does not need.
  from flexunet.evaluation.labelled_volumes import LabelledVolume

_ARRAYS = ("image", "truth", "prediction")
Answer = Callable[["LabelledVolume", Disturbed], Sequence[np.ndarray]]


@dataclasses.dataclass(frozen=True, eq=False)
class StressExample:
  """A slice of a disturbed volume.

  Attributes:
    image, truth, prediction: uint8 [H, W], as the disturbed slice lies.
    name: Of the disturbance; "clean" for none.
    strength: Of it.
    subject: Pseudonym.
    slice_index: Position in the volume.
    aspect: Height of a pixel over its width; 1 where unknown.
  """

  image: np.ndarray
  truth: np.ndarray
  prediction: np.ndarray
  name: str
  strength: float
  subject: str
  slice_index: int
  aspect: float


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
  """What is to be shown: a volume, and (disturbance, strength) each."""

  volume: tuple[str, str] | None
  shown: list[tuple[str, float]]


def chosen(entry: Mapping[str, Any], volumes: Mapping[tuple[str, str], float]) -> Choice:
  """Returns what is to be shown: the volume of median Dice, and each disturbance at its fall.

  Of one that has fallen before the mildest strength that one, of one that has not the strongest.

  Args:
    entry: Figures of a split.
    volumes: (subject, volume) -> its undisturbed Dice, NaN where it has none.
  """
  ranked = sorted((dice, key) for key, dice in volumes.items() if dice == dice)
  if not ranked:
    return Choice(None, [])
  shown = []
  for one in entry["disturbances"]:
    strengths = [grade["strength"] for grade in one["grades"]]
    at = {
        stress_summary.WITHIN: one["fall"]["strength"], stress_summary.BEFORE: strengths[0]
    }.get(one["fall"]["status"], strengths[-1])  # fmt: skip
    shown.append((one["name"], float(at)))
  return Choice(ranked[(len(ranked) - 1) // 2][1], shown)


def make(
    volumes: Iterable[LabelledVolume],
    choice: Choice,
    setting: Setting,
    channel: int | None,
    answer: Answer,
) -> list[StressExample]:
  """Returns the examples, the undisturbed slice first; [] where there is nothing to show.

  Args:
    volumes: Among which is the chosen one.
    choice: What is to be shown.
    setting: As of `stress_disturbances`.
    channel: Which channel is shown; None: the mean of all.
    answer: Volume and disturbed volume -> labels of the undisturbed slices.
  """
  if choice.volume is None:
    return []
  volume = next((v for v in volumes if (v.subject, v.volume) == choice.volume), None)
  if volume is None:
    return []
  named = {one.name: one for one in stress_disturbances.DISTURBANCES}
  areas = np.array([np.count_nonzero(label) for label in volume.labels])
  whole = Disturbed(volume.images, spacing_of(volume))
  made = [_example(volume, whole, answer, int(areas.argmax()), stress_summary.CLEAN, 0.0, channel)]
  for name, strength in choice.shown:
    if named[name].fits(volume):
      disturbed = named[name].apply(volume, strength, setting)
      place = _place(disturbed, areas)
      made.append(_example(volume, disturbed, answer, place, name, strength, channel))
  return made


def _place(disturbed: Disturbed, areas: np.ndarray) -> int:
  """Returns the slice to show: that with most foreground, of those that are missing if any is."""
  geometry = disturbed.geometry
  if geometry.slabs is None or any(len(places) > 1 for places, _ in geometry.slabs):
    return int(areas.argmax())
  kept = {int(places[0]) for places, _ in geometry.slabs}
  gone = [place for place in range(len(areas)) if place not in kept] or list(range(len(areas)))
  return max(gone, key=lambda place: (areas[place], -place))


def _example(
    volume: LabelledVolume,
    disturbed: Disturbed,
    answer: Answer,
    place: int,
    name: str,
    strength: float,
    channel: int | None,
) -> StressExample:
  labels = answer(volume, disturbed)
  image, turned = _seen(volume, disturbed, place)
  row_mm, column_mm = volume.spacing_mm
  known = np.isfinite(volume.spacing_mm).all() and column_mm > 0
  return StressExample(
      image=overlay.grey_of(image, channel),
      truth=turned(volume.labels[place]),
      prediction=turned(labels[place]),
      name=name,
      strength=strength,
      subject=volume.subject,
      slice_index=volume.slice_index[place],
      aspect=row_mm / column_mm if known else 1.0,
  )


def _seen(
    volume: LabelledVolume, disturbed: Disturbed, place: int
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
  """Returns the disturbed slice at the size of the undisturbed one, and how labels come to it."""
  geometry, native = disturbed.geometry, volume.images[place]
  if geometry.slabs is not None:
    whose = [index for index, (places, _) in enumerate(geometry.slabs) if place in places]
    shares = [geometry.slabs[i][1][list(geometry.slabs[i][0]).index(place)] for i in whose]
    if not whose:
      return np.zeros_like(native), lambda label: label
    return disturbed.images[whose[int(np.argmax(shares))]], lambda label: label
  if geometry.reversed_order:
    return disturbed.images[len(disturbed.images) - 1 - place], lambda label: label
  image, there = disturbed.images[place], geometry.there
  if there is None:
    return image, lambda label: label
  if image.shape != native.shape:
    rows, columns = (
        slice_recipe.nearest(*pair) for pair in zip(image.shape[:2], native.shape[:2], strict=True)
    )
    return image[np.ix_(rows, columns)], lambda label: label
  return image, lambda label: _moved(label, there)


def _moved(label: np.ndarray, there: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
  """Returns a label as a disturbed slice of the same size shows it."""
  ids = np.unique(label)
  shares = there((label[..., None] == ids).astype(np.float32))
  # What comes from outside has no share of any class: background.
  found = ids[shares.argmax(axis=-1)]
  return np.where(shares.sum(axis=-1) > 0.5, found, 0).astype(np.uint8)


def path_of(run: RunFolder, split: str) -> pathlib.Path:
  """Returns where the examples of a split are stored."""
  return run.evaluation / f"stress_{split}.npz"


def write(path: pathlib.Path, examples: Sequence[StressExample]) -> None:
  """Writes examples; the file is replaced in one step."""
  arrays: dict[str, Any] = {}
  about = []
  for number, example in enumerate(examples):
    values = {field.name: getattr(example, field.name) for field in dataclasses.fields(example)}
    arrays |= {f"{name}_{number}": values.pop(name) for name in _ARRAYS}
    about.append(values)
  buffer = io.BytesIO()
  np.savez_compressed(buffer, about=np.array(json.dumps(about, allow_nan=False)), **arrays)
  files.write_bytes(path, buffer.getvalue())


def read(path: pathlib.Path) -> list[StressExample]:
  """Returns the examples that `write` wrote; an empty list where there is no file.

  Raises:
    InputError: It is damaged.
  """
  if not path.is_file():
    return []
  try:
    with np.load(path, allow_pickle=False) as arrays:
      return [
          StressExample(**{name: arrays[f"{name}_{number}"] for name in _ARRAYS}, **values)
          for number, values in enumerate(files.parse_json(str(arrays["about"]), path))
      ]
  except (OSError, EOFError, KeyError, TypeError, ValueError, RuntimeError, OverflowError,
          struct.error, zlib.error, zipfile.BadZipFile) as error:  # fmt: skip
    raise InputError(
        f"{path} must be as the stress test wrote it, but cannot be read: {error}. Run flexunet"
        " evaluate --stress again."
    ) from error
