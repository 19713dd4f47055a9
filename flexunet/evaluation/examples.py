"""The best and the worst volumes of an evaluation, one slice each, kept for the report.

Stored as `evaluation/examples_<split>.npz`: uint8 arrays `image_<n>`, `truth_<n>`,
`prediction_<n>` [H, W] and `about`, a JSON text that describes each. At most a few megabytes.
"""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from flexunet import run_folder
from flexunet.core import files
from flexunet.core.errors import InputError

_PER_SIDE = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
  """One slice of a volume, with the scores of the whole volume.

  Attributes:
    image: uint8 [H, W].
    truth: uint8 [H, W] class ids.
    prediction: uint8 [H, W] class ids.
    subject: Pseudonym of the person.
    volume: Pseudonym of the scan.
    slice_index: Position in the volume.
    foreground_dice: Mean Dice of the volume's foreground classes.
    dice: Class name -> Dice of the volume; None where it has none.
    aspect: Height of a pixel over its width; 1 where unknown.
    side: "best" or "worst"; set when the example is written.
  """

  image: np.ndarray
  truth: np.ndarray
  prediction: np.ndarray
  subject: str
  volume: str
  slice_index: int
  foreground_dice: float
  dice: dict[str, float | None]
  aspect: float = 1.0
  side: str = ""


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
    """Returns the worst, worst first, then the best, best first; none is on both sides."""
    half = len(self._kept) // 2
    worst = [dataclasses.replace(kept, side="worst") for kept in self._kept[:half]]
    best = [dataclasses.replace(kept, side="best") for kept in self._kept[half:]]
    return worst + best[::-1]


def path_of(run: run_folder.RunFolder, split: str) -> pathlib.Path:
  """Returns where the examples of a split are stored."""
  return run.evaluation / f"examples_{split}.npz"


def write(path: pathlib.Path, examples: Sequence[Example]) -> None:
  """Writes examples; the file is replaced in one step."""
  arrays: dict[str, Any] = {}
  about = []
  for number, example in enumerate(examples):
    for name in ("image", "truth", "prediction"):
      arrays[f"{name}_{number}"] = getattr(example, name)
    about.append({
        field.name: getattr(example, field.name)
        for field in dataclasses.fields(example)
        if field.name not in ("image", "truth", "prediction")
    })
  buffer = io.BytesIO()
  np.savez_compressed(buffer, about=np.array(json.dumps(about, allow_nan=False)), **arrays)
  files.write_bytes(path, buffer.getvalue())


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
          Example(
              image=arrays[f"image_{number}"],
              truth=arrays[f"truth_{number}"],
              prediction=arrays[f"prediction_{number}"],
              **about,
          )
          for number, about in enumerate(files.parse_json(str(arrays["about"]), path))
      ]
  except (OSError, EOFError, KeyError, TypeError, ValueError, RuntimeError, OverflowError,
          struct.error, zlib.error, zipfile.BadZipFile) as error:  # fmt: skip
    raise InputError(
        f"{path} must be as the evaluation wrote it, but cannot be read: {error}. Run flexunet"
        " evaluate again."
    ) from error
