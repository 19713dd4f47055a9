"""Shows how often margins and volume intervals hold for subjects that did not calibrate them.

  flexunet benchmark_coverage                     on made-up subjects
  flexunet benchmark_coverage --run_dir=CV        on the held-out subjects of a cross-validation

A made-up subject is an ellipsoid and what a network could have made of it: moved, larger or
smaller, ragged, now and then with a piece missing or a false one. In each draw some subjects,
chosen at random, calibrate, and the others are tested. That a margin is the smallest which contains
the truth is seen by widening each prediction.

Prints one JSON object: the share of subjects that was covered, what the theory demands,
ceil((n + 1) level) / (n + 1), and the standard error over draws. Margins are distances between
voxels, of which many are equal, so that they cover more subjects than demanded. Nothing is kept.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from flexunet import run_calibration, run_folder
from flexunet.core import command_line, flags
from flexunet.core.errors import InputError
from flexunet.evaluation import conformal

_PROGRAM = flags.Program(__doc__, first=("run_dir", "level"))
_RUN_DIR = _PROGRAM.string(
    "run_dir", None, "Folder of a calibrated cross-validation, instead of made-up subjects."
)
_LEVELS = _PROGRAM.list("level", ["0.5", "0.8", "0.9"], "Shares of subjects.")
_DRAWS = _PROGRAM.integer("draws", 1000, "Draws of calibration subjects.", lower_bound=1)
_CALIBRATION = _PROGRAM.integer(
    "calibration_subjects", 19, "Of each draw of made-up subjects.", lower_bound=1
)
_SUBJECTS = _PROGRAM.integer("subjects", 200, "Made-up subjects to draw from.", lower_bound=2)
_SEED = _PROGRAM.integer("seed", 0, "Decides subjects and draws.")

_SHAPE, _SPACING_MM = (20, 24, 22), (2.0, 1.0, 1.25)


@dataclasses.dataclass(frozen=True)
class Phantom:
  """A made-up subject: bool masks of one shape, what is there and what was predicted."""

  truth: np.ndarray
  found: np.ndarray

  @property
  def log_ratio(self) -> float:
    """Logarithm of true over predicted volume."""
    return math.log(np.count_nonzero(self.truth) / np.count_nonzero(self.found))

  def is_inside(self, margin: float) -> bool:
    """Returns whether the prediction, widened by a margin in mm, contains the truth."""
    return not (self.truth & ~conformal.dilated(self.found, margin, _SPACING_MM)).any()


def phantoms(count: int, seed: int) -> list[Phantom]:
  """Returns made-up subjects.

  Args:
    count: How many.
    seed: Decides them.
  """
  random = np.random.default_rng(seed)
  places = np.moveaxis(np.indices(_SHAPE), 0, -1).astype(np.float64)
  made = []
  for _ in range(count):
    centre = np.array(_SHAPE) / 2 + random.uniform(-1, 1, 3)
    radii = random.uniform((2.5, 4, 3.5), (4, 7, 6))
    off, scale = random.normal(0, 0.5, 3), math.exp(random.normal(-0.05, 0.12))
    truth = (((places - centre) / radii) ** 2).sum(axis=-1) <= 1
    ragged = ndimage.gaussian_filter(random.normal(size=_SHAPE), 1.5) * 2
    found = (((places - centre - off) / (radii * scale)) ** 2).sum(axis=-1) + ragged <= 1
    if random.random() < 0.15:  # A piece is missing.
      found &= places[..., 1] > centre[1] - random.uniform(0.3, 0.8) * radii[1]
    if random.random() < 0.15:  # One is false.
      corner = random.integers(1, 4, 3)
      found[tuple(slice(start, start + 2) for start in corner)] = True
    if found.any():
      made.append(Phantom(truth, found))
  return made


def made_up(
    levels: Sequence[float], draws: int, calibration: int, subjects: int, seed: int
) -> dict[str, Any]:
  """Returns the coverage of made-up subjects.

  Args:
    levels: Shares of subjects.
    draws: Of calibration subjects.
    calibration: Subjects that calibrate.
    subjects: To draw from; the rest of each draw is tested.
    seed: Decides all.

  Raises:
    InputError: Too few subjects calibrate, or none is left.
  """
  if calibration >= subjects:
    raise InputError(
        f"--subjects must be more than --calibration_subjects. Got: {subjects} and {calibration}."
    )
  for level in levels:
    if calibration < conformal.required(level):
      raise InputError(
          f"--level {level:g} takes {conformal.required(level)} --calibration_subjects. Got:"
          f" {calibration}."
      )
  people = phantoms(subjects, seed)
  margins = np.array([
      conformal.containing_margin(one.truth, one.found, _SPACING_MM) for one in people
  ])
  ratios = np.repeat(np.array([one.log_ratio for one in people])[:, None], 2, axis=1)
  checked = _check_by_widening(people, margins)
  random = np.random.default_rng(seed + 1)
  order = [random.permutation(len(people)) for _ in range(draws)]
  entries = []
  for level in levels:
    place = conformal.rank(calibration, level)
    entry: dict[str, Any] = {"level": level, "demanded": place / (calibration + 1)}
    for name, scores in (("margin", margins), ("volume_interval", ratios)):
      parts = ((scores[own[:calibration]], scores[own[calibration:]]) for own in order)
      shares = [float(np.mean(conformal.covers(*part, level))) for part in parts]
      entry[name] = _summary(shares)
    entries.append(entry)
  return {
      "subjects": len(people),
      "calibration_subjects": calibration,
      "draws": draws,
      "widened_and_looked_at": checked,
      "levels": entries,
  }


def _check_by_widening(people: Sequence[Phantom], margins: np.ndarray) -> int:
  """Returns how many subjects were widened: a margin contains the truth, a smaller one does not."""
  for one, margin in zip(people, margins.tolist(), strict=True):
    if not one.is_inside(margin) or (margin > 0 and one.is_inside(margin - 1e-3)):
      raise AssertionError(f"a margin of {margin} mm is not the smallest that contains the truth")
  return len(people)


def _summary(shares: Sequence[float]) -> dict[str, float]:
  spread = float(np.std(shares, ddof=1)) if len(shares) > 1 else math.nan
  return {
      "coverage": float(np.mean(shares)),
      "standard_error": spread / math.sqrt(len(shares)) if len(shares) > 1 else 0.0,
      "lowest": min(shares),
  }


def of_folds(folder: pathlib.Path, levels: Sequence[float]) -> dict[str, Any]:
  """Returns how many subjects of each fold the other folds cover, by class.

  Args:
    folder: Of a cross-validation.
    levels: Shares of subjects.

  Raises:
    InputError: It is not calibrated.
  """
  path = run_folder.RunFolder(folder).calibration_json
  learnt = run_calibration.parsed(path) if path.is_file() else None
  if learnt is None or learnt.coverage is None:
    raise InputError(
        f"--run_dir {folder} must be a calibrated cross-validation. Run flexunet calibrate"
        " --run_dir=CV first."
    )
  kinds = {"margin": learnt.margins.classes}
  if learnt.volume_ratios:
    kinds["volume_interval"] = learnt.volume_ratios.classes
  entries = []
  for level in levels:
    entry: dict[str, Any] = {"level": level}
    for kind, classes in kinds.items():
      counts = {name: conformal.coverage_by_fold(own, level) for name, own in classes.items()}
      entry[kind] = {
          name: {"covered": covered, "subjects": count} for name, (covered, count) in counts.items()
      }
    entries.append(entry)
  return {"subjects": len(learnt.learnt_on["subjects"]), "levels": entries}


def main(argv: Sequence[str]) -> None:
  command_line.no_words(argv)
  levels = [
      conformal.check_level(level, "--level")
      for level in flags.numbers("level", _LEVELS.value, float)
  ]
  if _RUN_DIR.value:
    found = of_folds(pathlib.Path(_RUN_DIR.value).expanduser(), levels)
  else:
    found = made_up(levels, _DRAWS.value, _CALIBRATION.value, _SUBJECTS.value, _SEED.value)
  print(json.dumps(found, indent=2))


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()
