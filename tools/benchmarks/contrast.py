"""Measures whether runs label registered scans of one person alike, whatever their contrast.

  flexunet benchmark_contrast --run_dir=A,B --scans="1-T1.nii,1-T2.nii;2-T1.nii,2-T2.nii"

Each run labels each scan by itself. All scans of a person must lie on one grid; they may be of any
sequence. Compared are the voxels in which every scan of the person is not 0: of skull-stripped
scans the brain. Prints one JSON object: for each run, person and pair of scans the Dice of each
class (null where neither answer has it), the means, and the share of the compared voxels that each
answer gives to each class, since answers that are all the same agree as well. Nothing is kept.
"""

from __future__ import annotations

import functools
import itertools
import json
import pathlib
import statistics
import types
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flexunet.core import command_line, flags
from flexunet.core.errors import InputError
from flexunet.evaluation import scores
from flexunet.imaging import scan_files

_PROGRAM = flags.Program(__doc__, first=("run_dir", "scans"))
_RUN_DIRS = _PROGRAM.list("run_dir", [], "Folders of runs.")
_SCANS = _PROGRAM.string(
    "scans",
    None,
    "Files of registered scans of one person, separated by commas; persons by semicolons.",
    required=True,
)


def main(argv: Sequence[str]) -> None:
  command_line.no_words(argv)
  if not _RUN_DIRS.value:
    raise InputError("--run_dir must name one run or more.")
  persons = [
      [pathlib.Path(name.strip()).expanduser() for name in person.split(",") if name.strip()]
      for person in _SCANS.value.split(";")
  ]
  for person in persons:
    if len(person) < 2 or len({scan.name for scan in person}) < len(person):
      raise InputError(
          "--scans must name two scans or more of each person, each by a file name of its own. Got:"
          f" {', '.join(map(str, person)) or 'none'}."
      )
  masks = [compared_voxels(person) for person in persons]
  print(json.dumps(measure(_RUN_DIRS.value, persons, masks), indent=2))


@functools.cache
def libraries() -> types.SimpleNamespace:
  """Returns what loads TensorFlow, imported when the flags are known to be right."""
  command_line.load_tensorflow()
  # Heavy: --help and a wrong flag are answered without it.
  from flexunet import library

  return types.SimpleNamespace(library=library)


def compared_voxels(scans: Sequence[pathlib.Path]) -> np.ndarray:
  """Returns the voxels [i, j, k] in which no scan is 0.

  Raises:
    InputError: The scans do not lie on one grid, or share no such voxel.
  """
  first, *others = (scan_files.read(scan_files.resolve(scan)) for scan in scans)
  inside = first.voxels != 0
  for scan, other in zip(scans[1:], others, strict=True):
    same = other.voxels.shape == first.voxels.shape
    if not same or not np.allclose(other.affine, first.affine, atol=1e-3):
      raise InputError(
          f"{scan}: scans of one person must lie on the grid of the first, {scans[0]}. Register and"
          " resample it first."
      )
    inside &= other.voxels != 0
  if not inside.any():
    raise InputError(f"{scans[0]}: it and the other scans must share voxels that are not 0.")
  return inside


def measure(
    run_dirs: Sequence[str],
    persons: Sequence[Sequence[pathlib.Path]],
    masks: Sequence[np.ndarray],
) -> dict[str, Any]:
  """Returns the figures of all runs, as `main` prints them.

  Args:
    run_dirs: Folders of runs.
    persons: Scans of each person.
    masks: bool [i, j, k], the compared voxels of each person.
  """
  figures: dict[str, Any] = {"compared_voxels": [int(mask.sum()) for mask in masks], "runs": {}}
  for run_dir in run_dirs:
    run = libraries().library.load(run_dir)
    found: list[dict[str, Any]] = []
    for scans, mask in zip(persons, masks, strict=True):
      labels = {scan.name: run.predict(scan)[mask] for scan in scans}
      found.append({
          "class_shares": {name: shares(one, run.class_names) for name, one in labels.items()},
          "dice": agreement(labels, run.class_names),
      })
    every = [pair for person in found for pair in person["dice"].values()]
    figures["runs"][run_dir] = {
        "mean_dice": {name: _mean([pair[name] for pair in every]) for name in every[0]},
        "persons": found,
    }
  return figures


def agreement(
    labels: Mapping[str, np.ndarray], class_names: Sequence[str]
) -> dict[str, dict[str, float | None]]:
  """Returns {"A | B": {class: Dice, "mean": that of the classes that have one}} of all pairs.

  Args:
    labels: {scan: class ids [voxels]}.
    class_names: By class id, background first, which does not count.
  """
  pairs = {}
  for (first, a), (second, b) in itertools.combinations(labels.items(), 2):
    of_class = {name: dice(a == n, b == n) for n, name in enumerate(class_names) if n}
    pairs[f"{first} | {second}"] = {**of_class, "mean": _mean(list(of_class.values()))}
  return pairs


def dice(first: np.ndarray, second: np.ndarray) -> float | None:
  """Returns the Dice of two bool arrays; None where both are empty."""
  a, b, both = (int(np.count_nonzero(one)) for one in (first, second, first & second))
  value = scores.count_scores(a, b, both, first.size)["dice"]
  return None if a + b == 0 else round(float(value), 4)


def shares(label: np.ndarray, class_names: Sequence[str]) -> dict[str, float]:
  """Returns {class: its share of the voxels}."""
  counts = np.bincount(label, minlength=len(class_names))
  return {name: round(float(counts[n] / label.size), 4) for n, name in enumerate(class_names)}


def _mean(values: Sequence[float | None]) -> float | None:
  known = [value for value in values if value is not None]
  return round(statistics.fmean(known), 4) if known else None


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()
