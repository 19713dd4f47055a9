"""Which clean-up a run gets: decided on its validation subjects, class by class.

Candidates are listed in `candidates`, from mild to strong. Each is judged alone, by what it changes
for each subject: the Dice of the class and, where classes are lesions, the mean of the changes of
Dice and of lesion F1. Truth and prediction both empty count as 1 here, so that removing a false
alarm is a gain. Of the removals (largest component, small components) the mildest is taken whose
mean gain is at most `LARGEST_LOSS` below the greatest, for a new subject may have small structures
that none here has; holes are decided apart. A candidate must
- have a mean gain of at least `LEAST_GAIN`, and of more than its standard error;
- be a loss for at most `MOST_LOSING` of the subjects;
- leave the mean Dice of the class and that of all classes, and the lesion F1, at most
  `LARGEST_LOSS` lower.
The best of several looks better than it is: the choice is therefore repeated without each subject
in turn, and what it brings to the subject left out must be at least `LEAST_GAIN` in the mean, too.
With fewer than `MIN_SUBJECTS` subjects nothing is cleaned up.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from flexunet.evaluation.confusion import confusion_of
from flexunet.evaluation.labelled_volumes import LabelledVolume
from flexunet.evaluation.lesions import LesionCounts, count_lesions
from flexunet.imaging import clean_up
from flexunet.imaging.clean_up import ClassRule, CleanUp
from flexunet.imaging.components import components_of

MIN_SUBJECTS = 5
LEAST_GAIN, LARGEST_LOSS, MOST_LOSING = 0.002, 0.001, 0.1
SIZES = {
    "ml": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
    "pixels": (3.0, 5.0, 10.0, 20.0, 50.0, 100.0),
}
RULE = (
    f"Adopted where the mean over subjects of the change of Dice (lesions: of Dice and lesion F1)"
    f" is at least {LEAST_GAIN} and above its standard error, also for subjects that the choice did"
    f" not see, at most {MOST_LOSING:.0%} of the subjects lose, and neither mean Dice nor lesion"
    f" F1 falls by more than {LARGEST_LOSS}; from {MIN_SUBJECTS} subjects on. Of removals the"
    f" mildest that gains at most {LARGEST_LOSS} less than the best."
)
_LOSS = 1e-4  # What counts as a loss of one subject: less is a matter of single voxels.


@dataclasses.dataclass(frozen=True, eq=False)
class _Unit:
  """What is cleaned at once: a volume, or one image of it, whose spacing is ()."""

  predicted: np.ndarray
  truth: np.ndarray
  spacing_mm: tuple[float, ...]


def candidates(unit: str) -> list[ClassRule]:
  """Returns the rules that are tried for a class, from mild to strong.

  Args:
    unit: Of sizes; one of `clean_up.UNITS`.
  """
  removals = [ClassRule(min_size=size, unit=unit) for size in SIZES[unit]]
  return [ClassRule(fill_holes=True), *removals, ClassRule(largest=True)]


def choose(
    volumes: Iterable[tuple[LabelledVolume, Sequence[np.ndarray]]],
    class_names: Sequence[str],
    *,
    in_slices: bool,
    lesions: bool,
) -> CleanUp:
  """Returns the clean-up that validation subjects speak for; one volume is in memory at a time.

  Args:
    volumes: Truth and the predicted uint8 [H, W] of each slice, not cleaned up, 0 where pixels are
      ignored.
    class_names: All, background first.
    in_slices: Whether the network predicts single images, as a run trained on images does.
    lesions: Whether the classes are lesions, whose number counts.
  """
  gains = _Gains(class_names, lesions)
  for volume, predictions in volumes:
    if units := _units(volume, predictions, in_slices):
      gains.add(volume.subject, units)
  rules, evidence = {}, {}
  for class_id, name in enumerate(class_names[1:], start=1):
    rule, evidence[name] = gains.decide(class_id)
    if rule:
      rules[class_id] = rule
  about = {"rule": RULE, "subjects": gains.subjects, "unit": gains.unit, "classes": evidence}
  return CleanUp(tuple(class_names), rules, in_slices, about)


def _units(
    volume: LabelledVolume, predictions: Sequence[np.ndarray], in_slices: bool
) -> list[_Unit]:
  """Returns what of a volume is cleaned at once; nothing where its slices form no volume."""
  if in_slices:
    pairs = zip(predictions, volume.labels, strict=True)
    return [_Unit(one, truth, ()) for one, truth in pairs]
  if not volume.is_solid:
    return []
  spacing_mm = (volume.slice_spacing_mm, *volume.spacing_mm)
  return [_Unit(np.stack(predictions), np.stack(volume.labels), spacing_mm)]


class _Gains:
  """What each candidate brings to each subject."""

  def __init__(self, class_names: Sequence[str], lesions: bool):
    self._num_classes = len(class_names)
    self._lesions = lesions
    # Whether sizes can be in ml is known at the end only: all volumes must have a spacing.
    self._known_mm = True
    # (class id, rule) -> subject -> (Dice of the class, Dice of all, lesion F1) of each volume.
    self._changes: dict[tuple[int, ClassRule], dict[str, list[tuple[float, ...]]]] = {}
    self._subjects: dict[str, None] = {}

  @property
  def unit(self) -> str:
    """In what sizes are stated."""
    return "ml" if self._known_mm else "pixels"

  @property
  def subjects(self) -> int:
    """How many there were."""
    return len(self._subjects)

  def add(self, subject: str, units: Sequence[_Unit]) -> None:
    """Takes one volume."""
    self._subjects[subject] = None
    spacing_mm = units[0].spacing_mm
    self._known_mm &= bool(spacing_mm) and bool(np.isfinite(spacing_mm).all())
    each = [confusion_of(unit.truth, unit.predicted, self._num_classes) for unit in units]
    before = np.sum(each, axis=0)
    for class_id in range(1, self._num_classes):
      lesions = self._count_lesions(units, class_id, [unit.predicted for unit in units])
      for rule, changes in self._tried(units, class_id):
        own = (0.0, 0.0, 0.0)
        if any(values.size for _, values in changes):
          own = self._change(units, class_id, changes, before, lesions)
        self._changes.setdefault((class_id, rule), {}).setdefault(subject, []).append(own)

  def _tried(self, units: Sequence[_Unit], class_id: int) -> Iterator[tuple[ClassRule, list]]:
    """Yields each candidate with what it changes in each unit: voxels and new ids."""
    sizes = ("pixels", "ml") if self._known_mm else ("pixels",)
    rules = dict.fromkeys(rule for unit in sizes for rule in candidates(unit))
    found = [components_of(unit.predicted == class_id) for unit in units]
    done: dict[bytes, list] = {}
    for rule in rules:
      if rule.fill_holes:
        yield rule, [clean_up.filled(unit.predicted, [class_id]) for unit in units]
        continue
      gone = [
          rule.removes(own.sizes, unit.spacing_mm)
          for own, unit in zip(found, units, strict=True)
      ]
      key = np.concatenate(gone).tobytes()
      if key not in done:  # Different sizes often remove the same components.
        done[key] = [
            clean_up.replaced(unit.predicted, [(own, chosen)])
            for unit, own, chosen in zip(units, found, gone, strict=True)
        ]
      yield rule, done[key]

  def _change(
      self,
      units: Sequence[_Unit],
      class_id: int,
      changes: Sequence[tuple[tuple[np.ndarray, ...], np.ndarray]],
      before: np.ndarray,
      lesions: LesionCounts,
  ) -> tuple[float, float, float]:
    """Returns by how much Dice of the class, mean Dice and lesion F1 of a volume rise."""
    after = before.copy()
    cleaned = []
    for unit, (places, values) in zip(units, changes, strict=True):
      truth = unit.truth[places]
      after -= confusion_of(truth, unit.predicted[places], self._num_classes)
      after += confusion_of(truth, values, self._num_classes)
      if self._lesions:
        cleaned.append(unit.predicted.copy())
        cleaned[-1][places] = values
    rise = _dice(after) - _dice(before)
    f1 = 0.0
    if self._lesions:
      f1 = _f1(self._count_lesions(units, class_id, cleaned)) - _f1(lesions)
    return float(rise[class_id - 1]), float(rise.mean()), f1

  def _count_lesions(
      self, units: Sequence[_Unit], class_id: int, predicted: Sequence[np.ndarray]
  ) -> LesionCounts:
    if not self._lesions:
      return LesionCounts()
    pairs = zip(units, predicted, strict=True)
    counts = (count_lesions(unit.truth == class_id, one == class_id) for unit, one in pairs)
    return sum(counts, LesionCounts())

  def decide(self, class_id: int) -> tuple[ClassRule, dict[str, Any]]:
    """Returns the rule of a class, and the evidence for it."""
    subjects = list(self._subjects)
    entry: dict[str, Any] = {"tried": [], "adopted": []}
    if len(subjects) < MIN_SUBJECTS:
      entry["reason"] = f"{len(subjects)} subjects, fewer than {MIN_SUBJECTS}"
      return ClassRule(), entry
    fill, *removals = candidates(self.unit)
    adopted = []
    for group in ([fill], removals):
      changes = np.array([
          [np.mean(self._changes[class_id, rule][subject], axis=0) for subject in subjects]
          for rule in group
      ])  # [rules, subjects, 3]
      entry["tried"] += [
          self._figures(rule, own) for rule, own in zip(group, changes, strict=True)
      ]
      if (place := self._best(changes)) is None:
        continue
      unseen = [self._gain_of_left_out(changes, one) for one in range(len(subjects))]
      if np.mean(unseen) >= LEAST_GAIN:
        adopted.append(group[place])
        entry["adopted"].append(str(group[place]))
    removed = next((rule for rule in adopted if not rule.fill_holes), ClassRule())
    entry["reason"] = "it gains enough" if adopted else "no candidate gains enough"
    return dataclasses.replace(removed, fill_holes=fill in adopted), entry

  def _best(self, changes: np.ndarray) -> int | None:
    """Returns which rule to take, given float64 [rules, subjects, 3]; None for none."""
    gains = self._gains(changes)
    means, subjects = gains.mean(axis=1), gains.shape[1]
    errors = gains.std(axis=1, ddof=1) / math.sqrt(subjects)
    passes = (
        (means >= LEAST_GAIN)
        & (means > errors)
        & ((gains < -_LOSS).mean(axis=1) <= MOST_LOSING)
        & (changes.mean(axis=1) >= -LARGEST_LOSS).all(axis=1)
    )
    if not passes.any():
      return None
    return int(np.argmax(passes & (means >= means[passes].max() - LARGEST_LOSS)))

  def _gain_of_left_out(self, changes: np.ndarray, subject: int) -> float:
    """Returns what the choice of the other subjects brings to one."""
    place = self._best(np.delete(changes, subject, axis=1))
    return 0.0 if place is None else float(self._gains(changes)[place, subject])

  def _gains(self, changes: np.ndarray) -> np.ndarray:
    """Returns what decides, float64 [rules, subjects]."""
    dice, f1 = changes[..., 0], changes[..., 2]
    return (dice + f1) / 2 if self._lesions else dice

  def _figures(self, rule: ClassRule, changes: np.ndarray) -> dict[str, Any]:
    """Returns what a rule brings, given float64 [subjects, 3]."""
    dice, overall, f1 = changes.mean(axis=0)
    figures = {"rule": str(rule), "dice": float(dice), "mean_dice": float(overall)}
    if self._lesions:
      figures["lesion_f1"] = float(f1)
    gains = self._gains(changes[None])[0]
    return {
        **figures,
        "subjects_gaining": int(np.count_nonzero(gains > _LOSS)),
        "subjects_losing": int(np.count_nonzero(gains < -_LOSS)),
    }


def _dice(confusion: np.ndarray) -> np.ndarray:
  """Returns the Dice of each foreground class, 1 where truth and prediction are empty."""
  sizes = (confusion.sum(axis=0) + confusion.sum(axis=1))[1:]
  overlap = 2 * np.diag(confusion)[1:]
  return np.where(sizes > 0, overlap / np.maximum(sizes, 1), 1.0)


def _f1(counts: LesionCounts) -> float:
  value = counts.scores()["lesion_f1"]
  return 1.0 if math.isnan(value) else float(value)
