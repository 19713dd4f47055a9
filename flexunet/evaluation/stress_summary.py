"""From the rows of a stress test to its figures: Dice over strength, and where it has fallen.

A row is a disturbed volume and a class; see `Row`. Stored beside each other are
`evaluation/stress.csv`, all rows, and `evaluation/stress.json`: split -> its figures.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from flexunet.core import files, progress
from flexunet.core.errors import InputError
from flexunet.run_folder import RunFolder

FORM = 1
FALL = 0.05
CLEAN = "clean"
WITHIN, BEYOND, BEFORE, UNGRADED = "within", "beyond", "before", "ungraded"
RULE = (
    "Dice is the mean over the volumes of their mean over the foreground classes that are in the"
    " truth; a class that a volume does not have is counted as a false alarm where it is predicted."
    " The fall is that of the mean, against the same volumes undisturbed. The strength at which it"
    f" reaches {FALL:g} is interpolated linearly between two strengths that were tried. The ceiling"
    " is the Dice of a perfect answer that takes the same way back: what the disturbed scan cannot"
    " show is no fault of the network."
)


@dataclasses.dataclass(frozen=True)
class Row:
  """What a class of a disturbed volume has come to; the columns of `stress.csv`.

  Attributes:
    split, key: Of the split, and a digest of networks, data and options.
    disturbance, strength: As text; "clean" and "" of the undisturbed volume.
    subject, volume: Pseudonyms.
    class_name: "" where voxels of all classes are compared.
    reference_pixels, predicted_pixels, overlap_pixels: Of the class.
    other_side_pixels: Of the class, those that were given its name on the other side of the body.
    ceiling: Dice of a perfect answer that takes the same way back; NaN where it has none.
    differing_voxels, voxels: Of a scan stored in other axes: labels that differ, of how many.
  """

  split: str
  key: str
  disturbance: str
  strength: str
  subject: str
  volume: str
  class_name: str
  reference_pixels: int = 0
  predicted_pixels: int = 0
  overlap_pixels: int = 0
  other_side_pixels: int = 0
  ceiling: float = math.nan
  differing_voxels: int = 0
  voxels: int = 0

  @property
  def dice(self) -> float:
    """Dice of the class; NaN where truth and prediction are empty."""
    total = self.reference_pixels + self.predicted_pixels
    return 2 * self.overlap_pixels / total if total else math.nan

  @property
  def cell(self) -> tuple[str, str, str, str]:
    """Disturbance, strength, subject and volume: what is computed at once."""
    return self.disturbance, self.strength, self.subject, self.volume


_FIELDS = {field.name: str(field.type) for field in dataclasses.fields(Row)}
# As in cases.csv; a field of a dataclass cannot be called so.
_COLUMNS = {name: "class" if name == "class_name" else name for name in _FIELDS}
_READ = {"int": int, "float": float, "str": str}


def json_path(run: RunFolder) -> pathlib.Path:
  """Returns where the figures of a run's stress tests lie."""
  return run.evaluation / "stress.json"


def csv_path(run: RunFolder) -> pathlib.Path:
  """Returns where their rows lie."""
  return run.evaluation / "stress.csv"


def strength_text(strength: float) -> str:
  """Returns a strength as the rows hold it."""
  return f"{strength:g}"


def read_rows(path: pathlib.Path) -> list[Row]:
  """Returns the rows of a file; none where it is not there.

  Raises:
    InputError: It is damaged.
  """
  if not path.is_file():
    return []
  rows = []
  for values in files.read_table(path, _COLUMNS.values()):
    try:
      cells: dict[str, Any] = {
          name: _READ[kind](values[_COLUMNS[name]]) for name, kind in _FIELDS.items()
      }
      rows.append(Row(**cells))
    except ValueError as error:
      raise InputError(
          f"{path} must be as the stress test wrote it: {error}. Remove it, and run flexunet"
          " evaluate --stress again."
      ) from error
  return rows


def write_rows(path: pathlib.Path, rows: Sequence[Row]) -> None:
  """Replaces the rows of a file in one step; a column `dice` is added for people."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow([*_COLUMNS.values(), "dice"])
  for row in rows:
    dice = "" if math.isnan(row.dice) else f"{row.dice:.6f}"
    writer.writerow([*dataclasses.astuple(row), dice])
  files.write_bytes(path, text.getvalue().encode("utf-8"))


def read_figures(run: RunFolder) -> dict[str, Any]:
  """Returns split -> figures of a run's stress tests; {} where there are none.

  Figures of another version are left out.

  Raises:
    InputError: The file is damaged.
  """
  path = json_path(run)
  if not path.is_file():
    return {}
  values = files.read_json(path)
  if not isinstance(values, dict) or not all(isinstance(one, dict) for one in values.values()):
    raise InputError(f"{path} must be as flexunet evaluate --stress wrote it. Run it again.")
  return {split: one for split, one in values.items() if one.get("form") == FORM}


class Table:
  """The rows of a split, looked up by what was done to whom."""

  def __init__(self, rows: Sequence[Row]):
    self._dice: dict[tuple[str, str], dict[tuple[str, str], dict[str, Row]]] = {}
    for row in rows:
      done = self._dice.setdefault((row.disturbance, row.strength), {})
      done.setdefault((row.subject, row.volume), {})[row.class_name] = row

  def volumes(self, disturbance: str, strength: str) -> dict[tuple[str, str], dict[str, Row]]:
    """Returns (subject, volume) -> class -> row."""
    return self._dice.get((disturbance, strength), {})

  def other_side(self, disturbance: str, strength: str) -> float:
    """Returns which share of the true pixels was given the name of the other side of the body."""
    rows = [row for own in self.volumes(disturbance, strength).values() for row in own.values()]
    true = sum(row.reference_pixels for row in rows)
    return sum(row.other_side_pixels for row in rows) / true if true else math.nan

  def mean(
      self, disturbance: str, strength: str, among: Sequence[tuple[str, str]], class_name: str = ""
  ) -> dict[str, float]:
    """Returns mean, lowest and highest Dice of volumes, their mean ceiling, and false alarms.

    Args:
      disturbance, strength: What was done.
      among: The volumes that count.
      class_name: Of one class; "": the mean over those that are in the truth.
    """
    found, ceilings, alarms = [], [], 0
    done = self.volumes(disturbance, strength)
    for volume in among:
      own = [row for name, row in done[volume].items() if class_name in ("", name)]
      real = [row for row in own if row.reference_pixels]
      alarms += sum(not row.reference_pixels and row.predicted_pixels > 0 for row in own)
      if real:
        found.append(sum(row.dice for row in real) / len(real))
        known = [row.ceiling for row in real if not math.isnan(row.ceiling)]
        ceilings.append(sum(known) / len(known) if known else math.nan)
    if not found:
      return {"dice": math.nan, "low": math.nan, "high": math.nan, "ceiling": math.nan,
              "false_alarms": alarms}  # fmt: skip
    return {
        "dice": math.fsum(found) / len(found), "low": min(found), "high": max(found),
        "ceiling": math.fsum(ceilings) / len(ceilings), "false_alarms": alarms,
    }  # fmt: skip


def fall_point(
    clean: float, neutral: float, strengths: Sequence[float], dices: Sequence[float]
) -> dict[str, Any]:
  """Returns where Dice has fallen by `FALL`.

  Args:
    clean: Dice of the undisturbed volumes.
    neutral: The strength that changes nothing.
    strengths: Those tried, mildest first.
    dices: Mean Dice at each.

  Returns:
    `status`: "within" the strengths that were tried, at `strength`; "before" the mildest; "beyond"
    the strongest; and `place`, how early among all that were tried, 0 to 1 and beyond.
  """
  lowest = clean - FALL
  count = len(strengths)
  for index, dice in enumerate(dices):
    if not dice < lowest + 1e-12:
      continue
    if not index:
      # How far the mildest has fallen orders those that all have.
      return {"status": BEFORE, "strength": None, "place": min(0.0, FALL - (clean - dice))}
    above, share = dices[index - 1], 1.0
    if above > dice:
      share = (above - lowest) / (above - dice)
    strength = strengths[index - 1] + share * (strengths[index] - strengths[index - 1])
    return {"status": WITHIN, "strength": strength, "place": (index + share) / count}
  fallen = clean - min(dices)
  return {"status": BEYOND, "strength": None, "place": 1.0 + FALL - fallen}


def figures_of(
    table: Table, about: Mapping[str, Any], strengths: Sequence[float], class_names: Sequence[str]
) -> dict[str, Any] | None:
  """Returns the figures of a disturbance; None where no volume was tried at all strengths.

  Args:
    table: All rows of the split.
    about: name, title, what, unit and neutral of the disturbance, and `graded`.
    strengths: Those that were tried, mildest first.
    class_names: Foreground classes.
  """
  name, texts = str(about["name"]), [strength_text(one) for one in strengths]
  done = [set(table.volumes(name, text)) for text in texts]
  whole = table.volumes(CLEAN, "")
  common = set.intersection(*done) & set(whole) if done else set()
  volumes = sorted(
      key for key in common if any(row.reference_pixels for row in whole[key].values())
  )
  if not volumes:
    return None
  clean = table.mean(CLEAN, "", volumes)
  grades: list[dict[str, Any]] = []
  for strength, text in zip(strengths, texts, strict=True):
    own = table.mean(name, text, volumes)
    per_class = {one: table.mean(name, text, volumes, one)["dice"] for one in class_names}
    grades.append({
        "strength": strength, **own, "fall": clean["dice"] - own["dice"], "per_class": per_class
    })  # fmt: skip
  dices = [one["dice"] for one in grades]
  found = {"status": UNGRADED, "strength": None, "place": 1.0 + FALL - (clean["dice"] - min(dices))}
  first = ""
  if about["graded"]:
    found = fall_point(clean["dice"], about["neutral"], strengths, dices)
  falls = _class_falls(table, about, strengths, volumes, class_names)
  if falls:
    first = min(falls, key=lambda one: falls[one]["place"])
  return {
      **about,
      "volumes": len(volumes),
      "clean": clean_figures(table, volumes, class_names),
      "grades": grades,
      "fall": found,
      "per_class_fall": falls,
      "most_fragile_class": first,
  }


def _class_falls(
    table: Table,
    about: Mapping[str, Any],
    strengths: Sequence[float],
    volumes: Sequence[tuple[str, str]],
    class_names: Sequence[str],
) -> dict[str, Any]:
  """Returns class -> `fall_point`, of graded disturbances."""
  falls: dict[str, Any] = {}
  for one in class_names if about["graded"] else ():
    clean = table.mean(CLEAN, "", volumes, one)["dice"]
    if math.isnan(clean):
      continue
    dices = [
        table.mean(about["name"], strength_text(strength), volumes, one)["dice"]
        for strength in strengths
    ]
    falls[one] = fall_point(clean, about["neutral"], strengths, dices)
  return falls


def clean_figures(
    table: Table, volumes: Sequence[tuple[str, str]], class_names: Sequence[str]
) -> dict[str, Any]:
  """Returns the Dice of the undisturbed volumes, in all and per class."""
  return {
      **table.mean(CLEAN, "", volumes),
      "per_class": {one: table.mean(CLEAN, "", volumes, one)["dice"] for one in class_names},
  }


def orientation_figures(rows: Sequence[Row]) -> dict[str, Any] | None:
  """Returns the voxels that differ where scans are stored in other axes; None: not tried."""
  own = [row for row in rows if row.voxels]
  if not own:
    return None
  axes: dict[str, int] = {}
  for row in own:
    axes[row.strength] = axes.get(row.strength, 0) + row.differing_voxels
  return {
      "volumes": len({(row.subject, row.volume) for row in own}),
      "axes": axes,
      "differing_voxels": sum(axes.values()),
      "voxels": sum(row.voxels for row in own),
  }


def by_fragility(entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
  """Returns figures of disturbances, the most harmful first.

  By how early among the strengths that were tried Dice has fallen; then by the fall.
  """
  return sorted(entries, key=lambda one: (one["fall"]["status"] == UNGRADED, one["fall"]["place"]))


def fall_text(entry: Mapping[str, Any], fall: Mapping[str, Any] | None = None) -> str:
  """Returns in words at which strength Dice has fallen by `FALL`.

  Args:
    entry: Figures of a disturbance.
    fall: Of a class; that of the mean where None.
  """
  found = fall or entry["fall"]
  strengths = [one["strength"] for one in entry["grades"]]
  if found["status"] == WITHIN:
    return quantity(found["strength"], entry["unit"])
  if found["status"] == BEFORE:
    return f"before {quantity(strengths[0], entry['unit'])}, the mildest"
  if found["status"] == BEYOND:
    return f"beyond {quantity(strengths[-1], entry['unit'])}, the largest"
  return ""


def text(entry: Mapping[str, Any]) -> str:
  """Returns the figures of a split as a table for people, the most harmful disturbance first."""
  clean = entry["clean"]["dice"]
  lines = [f"{entry['split']}, disturbed: Dice {_number(clean)} undisturbed,"
           f" {progress.count(entry['volumes_with_foreground'], 'volume')}"]  # fmt: skip
  rows = [("disturbance", f"{FALL:g} less at", "least", "at", "ceiling")]
  for one in entry["disturbances"]:
    worst = least_grade(one)
    at = quantity(worst["strength"], one["unit"]) if one["graded"] else ""
    fallen = fall_text(one) or f"{one['clean']['dice'] - worst['dice']:+.3f} less".lstrip("+")
    rows.append((one["title"], fallen, _number(worst["dice"]), at, _number(worst["ceiling"])))
  if entry["disturbances"]:
    lines.append(progress.table(rows))
  if found := entry["orientation"]:
    lines.append(orientation_text(found))
  lines += [f"{one['title']} skipped: {one['reason']}." for one in entry["skipped"]]
  return "\n".join(lines)


def least_grade(entry: Mapping[str, Any]) -> Mapping[str, Any]:
  """Returns the strength of a disturbance at which Dice is least."""
  return min(entry["grades"], key=lambda one: one["dice"])


def orientation_text(found: Mapping[str, Any]) -> str:
  """Returns in words how many voxels differ where scans are stored in other axes."""
  said = f"{found['differing_voxels']:,} of {found['voxels']:,}"
  return f"Stored in other axes ({', '.join(found['axes'])}): {said} voxels have another label."


def _number(value: float | None) -> str:
  return "-" if value is None else f"{value:.3f}"


def quantity(strength: float, unit: str) -> str:
  """Returns a strength with its unit, such as "2.4 mm"; a share of something in percent."""
  if unit.startswith("of the"):
    return f"{100 * strength:.3g} %"
  return f"{strength:.3g} {unit}".strip()
