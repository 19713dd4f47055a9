"""The options of the dataset `scan_label`: how a folder of scans and label volumes is read."""

from __future__ import annotations

import dataclasses
from typing import Any

from flexunet.core.config_fields import knob
from flexunet.core.errors import InputError
from flexunet.datasets.builder.record_options import VolumeOptions

LAYOUTS = ("table", "nnunet", "msd", "bids", "pairs")
MODALITIES = ("mri", "ct")
SPLITS = ("published", "subject")
MOST_CHANNELS = 8
BACKGROUND = "background"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScanLabelOptions(VolumeOptions):
  """Adds layout, classes, channels, modality and spacing."""

  layout: str | None = knob(
      None, "Layout of the folder, where several fit.", choices=LAYOUTS, unset="found out",
  )  # fmt: skip
  table: str = knob(
      "",
      "CSV file with the columns subject, image, image2, ..., label, split, fold (subject and"
      " image are needed; paths from the raw folder). scans.csv in the raw folder needs no flag.",
  )
  classes: str = knob(
      "", "JSON file of class names, {\"1\": \"left\", \"2\": \"right\"}; 0 is the background."
  )
  map: tuple[str, ...] = knob(
      (),
      "Classes of label ids as ID:NAME, e.g. 1:hippocampus,2:hippocampus merges two and"
      " 3:background drops one; other ids stay as they are.",
  )
  ignore_label: int | None = knob(
      None,
      "Label id of voxels that neither loss nor scores count.",
      minimum=1, unset="that of dataset.json",
  )  # fmt: skip
  channels: tuple[str, ...] = knob(
      (),
      "Channels to build, by name and in this order, e.g. T1w,FLAIR; by default all.",
  )
  resample_channels: bool = knob(
      False, "Resample channels on other grids onto the first one of their case."
  )
  series: str = knob(
      "",
      "Builds only DICOM series of this number, or with this end of their UID, where a folder holds"
      " several.",
  )
  modality: str | None = knob(
      None,
      "mri: intensities by percentiles of each volume; ct: by one window for all, chosen from"
      " the foreground of the training split.",
      choices=MODALITIES, unset="that of dataset.json, or found out",
  )  # fmt: skip
  axes: str = knob(
      "LAS",
      "Which way the stored axes point, for scans that state no orientation, such as PRS.",
  )
  spacing_mm: str = knob(
      "auto",
      "In-plane spacing of the slices: keep, or ROW,COLUMN in mm, or auto: their median where the"
      " subjects differ by more than 10 %.",
  )
  split: str = knob(
      "published",
      "Keep train, valid and test of the folder, or split again by subject.",
      choices=SPLITS,
  )

  def __post_init__(self):
    super().__post_init__()
    self.id_map()
    spacing = self.given_spacing_mm()
    if self.isotropic_mm is not None and spacing is not None:
      raise InputError("spacing_mm and isotropic_mm are two targets. Leave out one of them.")
    if len(self.channels) > MOST_CHANNELS or len(set(self.channels)) < len(self.channels):
      raise InputError(
          f"channels must be up to {MOST_CHANNELS} different names. Got: {','.join(self.channels)}."
      )
    if self.form == "volumes" and spacing is not None:
      raise InputError("form=volumes stores scans as they are: leave out spacing_mm.")

  def id_map(self) -> dict[int, str]:
    """Returns {label id: class name} of `map`."""
    found: dict[int, str] = {}
    for entry in self.map:
      text, colon, name = entry.partition(":")
      if not colon or not text.strip().isdigit() or not name.strip():
        raise InputError(f"map must be ID:NAME,ID:NAME, such as 1:hippocampus. Got: {entry!r}.")
      if int(text) in found:
        raise InputError(f"map must name each id once. Got {int(text)} twice.")
      found[int(text)] = name.strip()
    if found.get(0, BACKGROUND) != BACKGROUND:
      raise InputError(f"map must leave id 0 as the background. Got: 0:{found[0]}.")
    return found

  def given_spacing_mm(self) -> tuple[float, float] | None:
    """Returns (row, column) in mm where numbers were given; None for auto and keep."""
    if self.spacing_mm in ("auto", "keep"):
      return None
    try:
      numbers = [float(word) for word in self.spacing_mm.split(",")]
    except ValueError:
      numbers = []
    if len(numbers) == 1:
      numbers *= 2
    if len(numbers) != 2 or not all(0.05 <= number <= 50 for number in numbers):
      raise InputError(
          "spacing_mm must be auto, keep, or ROW,COLUMN in mm from 0.05 to 50. Got:"
          f" {self.spacing_mm!r}."
      )
    return numbers[0], numbers[1]

  def changed(self) -> dict[str, Any]:
    """Returns {name: value} of the options that differ from their defaults, for the report.

    Files of the user leave their names out: what was read in them is in the report itself.
    """
    values = super().changed()
    return {name: value for name, value in values.items() if name not in ("table", "classes")}
