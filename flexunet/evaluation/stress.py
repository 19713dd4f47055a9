"""Scores networks on disturbed volumes: how strong may a disturbance be before Dice falls.

Volumes pass one at a time, each with all disturbances. Rows are kept in `evaluation/stress.csv`
after each volume, under a digest of networks, data and options: a test that was interrupted, or
asks for more disturbances later, computes what is missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flexunet import config
from flexunet.core import files, progress
from flexunet.evaluation import stress_disturbances as disturbances
from flexunet.evaluation import stress_examples, stress_orientation, summary
from flexunet.evaluation import stress_summary as figures
from flexunet.evaluation.labelled_volumes import LabelledVolume, read_volumes
from flexunet.evaluation.stress_base import Disturbance, Disturbed, Setting, spacing_of
from flexunet.evaluation.stress_disturbances import Request
from flexunet.evaluation.stress_grey_values import Noise
from flexunet.evaluation.stress_positions import Flip, other_sides
from flexunet.evaluation.stress_summary import CLEAN, Row, strength_text
from flexunet.pipelines.dataset_source import DatasetSource
from flexunet.pipelines.record_table import RecordTable
from flexunet.prediction.ensemble import Ensemble
from flexunet.prediction.predictor import Predictor, to_label
from flexunet.run_folder import RunFolder

_WRITE_SECONDS = 30.0


@dataclasses.dataclass(frozen=True, eq=False)
class Tested:
  """Which networks are tested, and under what.

  Attributes:
    folder: Where figures are written.
    config: Of the run, or of the first run of an ensemble.
    predictor: Its network, or all of them.
    source: The opened dataset.
    about: What identifies networks, data and options, as JSON.
    request: What is asked for.
    show_progress: Draws a bar on standard error.
  """

  folder: RunFolder
  config: config.RunConfig
  predictor: Predictor | Ensemble
  source: DatasetSource
  about: Mapping[str, Any]
  request: Request
  show_progress: bool = True

  @property
  def class_names(self) -> list[str]:
    """By id, background first."""
    return self.config.dataset_facts.label_scheme.names

  def key(self) -> str:
    """Returns a digest of all on which a row depends but its disturbance."""
    text = json.dumps([figures.FORM, dict(self.about)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]

  def volumes(self, table: RecordTable) -> Iterator[LabelledVolume]:
    """Yields the volumes of some records."""
    return read_volumes(self.source, table, (self.source.keys.image, self.source.keys.label))


def stress(tested: Tested, split: str, table: RecordTable) -> dict[str, Any]:
  """Tests networks on disturbed volumes of a split, and writes the figures.

  Args:
    tested: The networks.
    split: Its name.
    table: Its records.

  Returns:
    The entry of the split in `stress.json`.
  """
  notes = _Notes(tested, split)
  survey = _survey(tested, table, notes)
  tried = [one for one in disturbances.DISTURBANCES if one.name in tested.request.names]
  skipped = {one.name: reason for one in tried if (reason := one.against(survey.setting))}
  plan = _Plan(
      [
          (one, strength)
          for one in tried if one.name not in skipped
          for strength in tested.request.strengths(one.grades(survey.setting))
      ],
      _axes(tested, survey.setting, skipped),
  )  # fmt: skip
  _compute(tested, table, plan, survey, notes)
  entry = _entry(tested, survey, notes, skipped, split)
  examples = stress_examples.chosen(entry, survey.volumes)
  shown = stress_examples.make(
      tested.volumes(table), examples, survey.setting, tested.config.shown_channel,
      lambda volume, disturbed: _shown_labels(tested.predictor, volume, disturbed),
  )  # fmt: skip
  stress_examples.write(stress_examples.path_of(tested.folder, split), shown)
  entry = summary.strict(entry)
  stored = figures.read_figures(tested.folder)
  files.write_json(figures.json_path(tested.folder), {**stored, split: entry})
  return entry


def _axes(tested: Tested, setting: Setting, skipped: dict[str, str]) -> list[str]:
  """Returns the axes in which scans are stored; notes why there are none."""
  if disturbances.ORIENTATION not in tested.request.names:
    return []
  if setting.plan is None:
    skipped[disturbances.ORIENTATION] = "images have no axes in the body"
  elif not setting.has_solid:
    skipped[disturbances.ORIENTATION] = "there are no volumes of several slices without gaps"
  else:
    return stress_orientation.codes_for(setting.plan, tested.request.full)
  return []


class _Notes:
  """The rows of a split, written now and then."""

  def __init__(self, tested: Tested, split: str):
    self.split, self.key = split, tested.key()
    self._path = figures.csv_path(tested.folder)
    stored = figures.read_rows(self._path)
    self._others = [row for row in stored if row.split != split]
    self.rows = [row for row in stored if row.split == split and row.key == self.key]
    self._known = {row.cell for row in self.rows}
    self._written = time.monotonic()

  def knows(self, disturbance: str, strength: str, volume: LabelledVolume) -> bool:
    """Returns whether a volume has been disturbed so before."""
    return (disturbance, strength, volume.subject, volume.volume) in self._known

  def add(self, rows: Sequence[Row]) -> None:
    """Takes all rows of a volume and a disturbance."""
    self.rows += rows
    self._known |= {row.cell for row in rows}

  def row(self, disturbance: str, strength: str, volume: LabelledVolume, **values: Any) -> Row:
    """Returns a row of a volume."""
    return Row(
        self.split, self.key, disturbance, strength, volume.subject, volume.volume, **values
    )

  def write(self, now: bool = False) -> None:
    """Writes all rows where the last time is long ago."""
    if now or time.monotonic() - self._written > _WRITE_SECONDS:
      figures.write_rows(self._path, [*self._others, *self.rows])
      self._written = time.monotonic()


@dataclasses.dataclass(frozen=True, eq=False)
class _Plan:
  """What is tried: (disturbance, strength) each, and the axes of stored scans."""

  cells: list[tuple[Disturbance, float]]
  codes: list[str]

  def passes(self, volume: LabelledVolume, notes: _Notes) -> list[tuple[Disturbance, float]]:
    """Returns what is still to be tried on a volume."""
    return [
        (one, strength) for one, strength in self.cells
        if one.fits(volume) and not notes.knows(one.name, strength_text(strength), volume)
    ]  # fmt: skip

  def axes(self, volume: LabelledVolume, notes: _Notes) -> list[str]:
    """Returns the axes still to be tried on a volume."""
    name = disturbances.ORIENTATION
    return [code for code in self.codes if volume.is_solid and not notes.knows(name, code, volume)]


@dataclasses.dataclass(frozen=True, eq=False)
class _Survey:
  """What the undisturbed volumes are like.

  Attributes:
    setting: What they and the run decide.
    volumes: (subject, volume) -> its Dice, NaN where it has no foreground.
    foreground: Mean grey value of the labelled foreground; NaN where there is none.
    seconds: What the network took for a slice; None where all was known.
    slices: How many there are.
  """

  setting: Setting
  volumes: dict[tuple[str, str], float]
  foreground: float
  seconds: float | None
  slices: int


def _survey(tested: Tested, table: RecordTable, notes: _Notes) -> _Survey:
  """Scores the undisturbed volumes, and looks at their geometry."""
  pixels: list[float] = []
  gaps: list[float] = []
  foreground: list[float] = []
  solid, slices, asked, seconds = False, 0, 0, 0.0
  with progress.bar(
      total=len(table), desc=f"{notes.split}: undisturbed", unit="slice",
      disable=not tested.show_progress,
  ) as bar:  # fmt: skip
    for volume in tested.volumes(table):
      pixels.append(float(np.mean(volume.spacing_mm)))
      solid = solid or volume.is_solid
      gaps += [volume.slice_spacing_mm] if volume.is_solid else []
      slices += len(volume.images)
      values = [
          image[label > 0].mean()
          for image, label in zip(volume.images, volume.labels, strict=True) if label.any()
      ]  # fmt: skip
      foreground += [float(np.mean(values))] if values else []
      if not notes.knows(CLEAN, "", volume):
        started = time.monotonic()
        whole = Disturbed(volume.images, spacing_of(volume))
        notes.add(_rows(tested, notes, CLEAN, "", volume, whole))
        seconds += time.monotonic() - started
        asked += len(volume.images)
      bar.update(len(volume.images))
  notes.write(now=True)
  return _Survey(
      setting=_setting(tested, pixels, gaps, solid),
      volumes=_clean_dice(notes.rows),
      foreground=float(np.mean(foreground)) if foreground else float("nan"),
      seconds=seconds / asked if asked else None,
      slices=slices,
  )


def _clean_dice(rows: Sequence[Row]) -> dict[tuple[str, str], float]:
  table = figures.Table([row for row in rows if row.disturbance == CLEAN])
  return {
      key: table.mean(CLEAN, "", [key])["dice"] for key in table.volumes(CLEAN, "")
  }


def _setting(
    tested: Tested, pixels: Sequence[float], gaps: Sequence[float], solid: bool
) -> Setting:
  facts = tested.config.dataset_facts
  windows = [one for one in (facts.intensity, *facts.other_intensities) if one is not None]
  words = re.split(r"[^a-z0-9]+", f"{facts.name}/{tested.source.name}".lower())

  def median(lengths: Sequence[float]) -> float | None:
    known = bool(lengths) and bool(np.isfinite(lengths).all()) and min(lengths) > 0
    return float(np.median(lengths)) if known else None

  return Setting(
      is_ct="ct" in words or any(one.kind == "window" for one in windows),
      windowed=tuple(one.kind == "percentile" for one in windows) or (False,),
      separate_channels=len(facts.channel_names) > 1,
      plan=facts.slice_plan,
      sides=other_sides(tested.class_names),
      whole_volumes=(
          isinstance(tested.predictor, Ensemble) and tested.predictor.needs_whole_volumes
      ),
      pixel_mm=median(pixels),
      slice_mm=median(gaps),
      has_solid=solid,
  )


def _compute(
    tested: Tested, table: RecordTable, plan: _Plan, survey: _Survey, notes: _Notes
) -> None:
  """Disturbs each volume in all ways that are not known yet."""
  total = len(survey.volumes)
  each = len(plan.cells) + (len(plan.codes) + 1 if plan.codes else 0)
  said = f"{notes.split}, disturbed: {progress.count(total, 'volume')}, {each} times each"
  if survey.seconds is not None:
    minutes = each * survey.slices * survey.seconds / 60
    said += f", about {max(1, round(minutes))} min at the speed of the undisturbed ones"
  progress.say(f"{said}.")
  with progress.bar(
      total=each * total, desc=f"{notes.split}: stress", unit="pass",
      disable=not tested.show_progress,
  ) as bar:  # fmt: skip
    for volume in tested.volumes(table):
      for one, strength in (left := plan.passes(volume, notes)):
        disturbed = one.apply(volume, strength, survey.setting)
        text = strength_text(strength)
        notes.add(_rows(tested, notes, one.name, text, volume, disturbed))
        bar.update()
      if codes := plan.axes(volume, notes):
        notes.add(_axes_rows(tested, notes, volume, codes))
      bar.update(each - len(left))
      notes.write()
  notes.write(now=True)


def _axes_rows(
    tested: Tested, notes: _Notes, volume: LabelledVolume, codes: Sequence[str]
) -> list[Row]:
  found = stress_orientation.differing_voxels(volume, tested.predictor, tested.config, codes)
  voxels = sum(label.size for label in volume.labels)
  return [
      notes.row(
          disturbances.ORIENTATION, code, volume, class_name="", differing_voxels=count,
          voxels=voxels,
      )
      for code, count in found.items()
  ]  # fmt: skip


def _rows(
    tested: Tested,
    notes: _Notes,
    name: str,
    strength: str,
    shown: LabelledVolume,
    disturbed: Disturbed,
) -> list[Row]:
  """Returns the rows of a disturbed volume, one per foreground class."""
  volume = shown.on_native_grid()
  count = len(tested.class_names)
  given = (shown, volume, disturbed)
  labels = predicted(tested.predictor, *given)
  met = _confusion(volume, labels, count)
  best = None
  if not disturbed.geometry.keeps_grid:
    best = _confusion(volume, _perfect(*given, count), count)
  sides = other_sides(tested.class_names).tolist()
  rows = []
  for class_id in range(1, count):
    other = sides[class_id]
    truth = int(met[class_id].sum())
    rows.append(notes.row(
        name, strength, shown,
        class_name=tested.class_names[class_id],
        reference_pixels=truth,
        predicted_pixels=int(met[:, class_id].sum()),
        overlap_pixels=int(met[class_id, class_id]),
        other_side_pixels=int(met[class_id, other]) if other != class_id else 0,
        ceiling=float("nan") if not truth else 1.0 if best is None else _dice(best, class_id),
    ))  # fmt: skip
  return rows


def _dice(met: np.ndarray, class_id: int) -> float:
  return float(2 * met[class_id, class_id] / (met[class_id].sum() + met[:, class_id].sum()))


def _confusion(
    volume: LabelledVolume, labels: Sequence[np.ndarray], count: int
) -> np.ndarray:
  """Returns int64 [truth, predicted] of the pixels that are counted."""
  met = np.zeros(count * count, np.int64)
  for place, (truth, found) in enumerate(zip(volume.labels, labels, strict=True)):
    pairs = truth.astype(np.int64) * count + found
    if volume.ignored:
      pairs = pairs[~volume.ignored[place]]
    met += np.bincount(pairs.ravel(), minlength=count * count)
  return met.reshape(count, count)


def predicted(
    predictor: Predictor | Ensemble,
    shown: LabelledVolume,
    volume: LabelledVolume,
    disturbed: Disturbed,
) -> list[np.ndarray]:
  """Returns the labels of a disturbed volume on the scan's own grid, cleaned up.

  Args:
    predictor: The network.
    shown: The undisturbed volume as the network sees it.
    volume: The same on the scan's own grid.
    disturbed: What the network is given.
  """
  answers = predictor.probabilities(disturbed.images, disturbed.spacing_mm)
  labels = _on_native(shown, disturbed.geometry.labels(answers, to_label))
  counted = _without_ignored(volume, labels)
  cleaned = predictor.clean_up.apply_to_slices(
      counted, volume.spacing_mm, volume.slice_spacing_mm, is_solid=volume.is_solid
  )
  return _without_ignored(volume, cleaned)


def _perfect(
    shown: LabelledVolume, volume: LabelledVolume, disturbed: Disturbed, count: int
) -> list[np.ndarray]:
  """Returns the labels of a network that answers as the truth shows itself after a disturbance."""
  geometry = disturbed.geometry
  labels = geometry.labels(geometry.truth(shown.labels, count), to_label)
  return _without_ignored(volume, _on_native(shown, labels))


def _on_native(shown: LabelledVolume, labels: Iterator[np.ndarray]) -> list[np.ndarray]:
  return [
      picked for place, label in enumerate(labels) for picked in shown.to_native_grid(place, label)
  ]


def _without_ignored(
    volume: LabelledVolume, labels: Sequence[np.ndarray]
) -> list[np.ndarray]:
  """Returns labels in which what is not counted is background, as in the truth."""
  if not volume.ignored:
    return list(labels)
  pairs = zip(labels, volume.ignored, strict=True)
  return [np.where(ignored, 0, label).astype(np.uint8) for label, ignored in pairs]


def _shown_labels(
    predictor: Predictor | Ensemble, volume: LabelledVolume, disturbed: Disturbed
) -> list[np.ndarray]:
  """Returns the labels of a disturbed volume on its undisturbed slices, as the network sees it."""
  answers = predictor.probabilities(disturbed.images, disturbed.spacing_mm)
  return list(disturbed.geometry.labels(answers, to_label))


def _entry(
    tested: Tested, survey: _Survey, notes: _Notes, skipped: Mapping[str, str], split: str
) -> dict[str, Any]:
  """Returns the figures of a split, of all rows that are known."""
  table = figures.Table(notes.rows)
  names = tested.class_names[1:]
  setting = survey.setting
  known = {(row.disturbance, row.strength) for row in notes.rows}
  found: list[Mapping[str, Any]] = []
  for one in disturbances.DISTURBANCES:
    grades = [g for g in one.grades(setting) if (one.name, strength_text(g)) in known]
    about = {
        "name": one.name, "title": one.title, "what": one.what, "unit": one.unit(setting),
        "neutral": one.neutral_strength(setting), "graded": one.name != Flip.name,
    }  # fmt: skip
    if grades and (own := figures.figures_of(table, about, grades, names)):
      found.append(_extended(own, survey, table))
  volumes = sorted(key for key, dice in survey.volumes.items() if dice == dice)
  reasons = {one.name: one.title for one in disturbances.DISTURBANCES}
  reasons[disturbances.ORIENTATION] = "Reorientation"
  return {
      "form": figures.FORM,
      "key": notes.key,
      "split": split,
      **tested.about,
      "volumes": len(survey.volumes),
      "volumes_with_foreground": len(volumes),
      "subjects": len({name for name, _ in survey.volumes}),
      "clean": figures.clean_figures(table, volumes, names),
      "disturbances": figures.by_fragility(found),
      "orientation": figures.orientation_figures(notes.rows),
      "skipped": [
          {"name": name, "title": reasons[name], "reason": why} for name, why in skipped.items()
      ],
      "rule": figures.RULE,
  }  # fmt: skip


def _extended(own: dict[str, Any], survey: _Survey, table: figures.Table) -> dict[str, Any]:
  """Returns the figures of a disturbance with what it alone has: SNR, sides."""
  if own["name"] == Noise.name:
    for grade in own["grades"]:
      grade["snr"] = survey.foreground / (255 * grade["strength"])
  if own["name"] == Flip.name:
    sides = survey.setting.sides
    own["named_sides"] = bool((sides != np.arange(len(sides))).any())
    if own["named_sides"]:
      own["other_side"] = {
          CLEAN: table.other_side(CLEAN, ""), "flipped": table.other_side(own["name"], "1")
      }  # fmt: skip
  return own
