"""The options of a build: everything a user may change about the records on disk.

They are plain dataclasses without TFDS: the flags of the build tool and its --help come from them.
What decides on splits decides nothing about a record: it is no part of a config's name.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

from flexunet.core import config_fields
from flexunet.core.config_fields import knob
from flexunet.core.errors import InputError
from flexunet.datasets.builder import splits_file
from flexunet.datasets.builder.splits_file import SplitsFile
from flexunet.datasets.subject_splits import RATIOS
from flexunet.imaging import bias_correction, slicing

FORMS = ("slices", "volumes")
_SPLIT_GROUP = "Splits of all datasets"
_STRATA = {
    "source": "what the builder knows of a subject by its files (diagnosis, matrix)",
    "foreground": "how much of a subject is labelled as well: nothing, little, some or much",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitOptions(config_fields.Checked):
  """Who stands in which split. Files are read at once: a build may replace the folder they lie in.

  Attributes:
    given: What was read from `splits_file`. It has no flag.
    held_out: What was read from `holdout`. It has no flag.
  """

  split_shares: tuple[str, ...] | None = knob(
      None,
      "Percent of the subjects in train, validation and test.",
      unset="70,15,15, or those of --splits_file",
      group=_SPLIT_GROUP,
  )
  split_seed: int | None = knob(
      None, "Another number, other splits.", minimum=0, unset="0, or that of --splits_file",
      group=_SPLIT_GROUP,
  )  # fmt: skip
  splits_file: str = knob(
      "",
      f"{splits_file.NAME} of an earlier build, whose subjects keep split and fold while new ones"
      " are dealt out; or a splits_final.json of nnU-Net, for its folds.",
      group=_SPLIT_GROUP,
  )
  holdout: str = knob(
      "", "Text file of subjects, one a line, that make up the test split, they alone.",
      group=_SPLIT_GROUP,
  )  # fmt: skip
  stratify: str = knob(
      "source",
      "What is spread evenly over splits and folds.",
      choices=_STRATA,
      group=_SPLIT_GROUP,
  )
  given: SplitsFile | None = None
  held_out: tuple = ()

  def __post_init__(self):
    if isinstance(self.split_shares, (list, tuple)):
      shares = tuple(str(share) for share in self.split_shares)
      object.__setattr__(self, "split_shares", shares)
    super().__post_init__()
    self.shares()
    if self.splits_file and self.given is None:
      object.__setattr__(self, "given", splits_file.read(self.splits_file))
    if self.holdout and not self.held_out:
      object.__setattr__(self, "held_out", splits_file.read_names(self.holdout))

  def shares(self) -> dict[str, float]:
    """Returns {split: share}: those that were given, those of the splits file, or the default.

    Raises:
      InputError: They are not three numbers that sum to 100.
    """
    if self.split_shares is None:
      return dict((self.given and self.given.shares) or RATIOS)
    try:
      numbers = [float(share) for share in self.split_shares]
    except ValueError:
      numbers = []
    if not (len(numbers) == len(RATIOS) and min(numbers) >= 0 < numbers[0]
            and abs(sum(numbers) - 100) < 1e-6):  # fmt: skip
      raise InputError(
          "split_shares must be the percent of train, validation and test, such as 70,15,15, that"
          f" sum to 100 with some for train. Got: {','.join(self.split_shares)}."
      )
    return {split: number / 100 for split, number in zip(RATIOS, numbers, strict=True)}

  def seed(self) -> int:
    """Returns the seed: that which was given, that of the splits file, or 0."""
    if self.split_seed is not None:
      return self.split_seed
    return self.given.seed if self.given else 0

  def asked(self) -> dict[str, Any]:
    """Returns {name: value} of what was given, for the report: of files what stands for them."""
    held_out = hashlib.sha256("\n".join(self.held_out).encode()).hexdigest()[:16]
    values = {
        "split_shares": self.split_shares and list(self.shares().values()),
        "split_seed": self.split_seed,
        "splits_file": self.given and self.given.digest,
        "holdout": held_out if self.held_out else None,
        "stratify": self.stratify if self.stratify != "source" else None,
    }
    return {name: value for name, value in values.items() if value is not None}


SPLIT_FIELDS = tuple(field.name for field in dataclasses.fields(SplitOptions))


def split_options(options: Mapping[str, Any]) -> SplitOptions | None:
  """Returns what `options` of a build say of the splits; None where they say nothing."""
  found = {name: value for name, value in options.items() if name in SPLIT_FIELDS}
  return SplitOptions(**found) if found else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordOptions(SplitOptions):
  """Options of every dataset; a dataset adds its own in a subclass."""

  empty_slices: str = knob(
      "keep",
      "Slices without a labelled pixel, in the training split: keep, drop, or the share 0..1 to"
      " keep. Other splits keep them all, so that scores are of whole volumes.",
  )
  min_foreground_pixels: int = knob(
      0,
      "Leave out slices of the training split that have labelled pixels, but fewer than this.",
      minimum=0,
  )

  def __post_init__(self):
    if isinstance(self.empty_slices, (int, float)):
      object.__setattr__(self, "empty_slices", f"{self.empty_slices:g}")
    super().__post_init__()
    try:
      share = self.empty_share
    except ValueError:
      share = -1.0
    if not 0 <= share <= 1:
      raise InputError(
          f"empty_slices must be keep, drop or a share 0..1. Got: {self.empty_slices!r}."
      )

  @property
  def empty_share(self) -> float:
    """Share of the slices without a labelled pixel that is kept."""
    if self.empty_slices in ("keep", "drop"):
      return 1.0 if self.empty_slices == "keep" else 0.0
    return float(self.empty_slices)

  def of_records(self) -> dict[str, Any]:
    """Returns {name: value} of the options that decide what a record is, for worker processes."""
    return {name: value for name, value in dataclasses.asdict(self).items()
            if name not in SPLIT_FIELDS}  # fmt: skip

  def changed(self) -> dict[str, Any]:
    """Returns {name: value} of the options of records that differ from their defaults."""
    values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)
              if field.name not in SPLIT_FIELDS
              and getattr(self, field.name) != field.default}  # fmt: skip
    if values.get("empty_slices", "drop") != "drop":
      values["empty_slices"] = self.empty_share
    return values


@dataclasses.dataclass(frozen=True, kw_only=True)
class VolumeOptions(RecordOptions):
  """Options of the datasets of scans."""

  form: str = knob(
      "slices",
      "A record is a 2-D slice as 8-bit image, or a whole scan without loss.",
      choices=FORMS,
  )
  plane: str | None = knob(
      None, "Plane along which scans are cut.", choices=slicing.PLANES,
      unset="the plane of the dataset",
  )  # fmt: skip
  window: tuple[float, float] | None = knob(
      None, "Intensities LOW,HIGH that become 0 and 255, such as -20,100 for CT.",
      unset="the window of the dataset",
  )  # fmt: skip
  isotropic_mm: float | None = knob(
      None, "Resample scans to this spacing along all axes before they are cut.",
      minimum=0.05, maximum=50, unset="as scanned",
  )  # fmt: skip

  bias_correction: str = knob(
      "none",
      "What takes the bias field, the slow change of brightness across an MRI, out of scans before"
      " they become 8-bit. Prediction and evaluation then do the same.",
      choices=bias_correction.KINDS,
  )

  def __post_init__(self):
    super().__post_init__()
    if self.window is not None and self.bias_correction != "none":
      raise InputError(
          "bias_correction is of MRI, whose window is found in each scan: leave out window."
      )
    if self.window is not None and not self.window[0] < self.window[1]:
      raise InputError(f"window must be LOW,HIGH with LOW below HIGH. Got: {self.window}.")
    of_slices = ("empty_slices", "min_foreground_pixels", "plane", "window", "isotropic_mm",
                 "bias_correction")
    if self.form == "volumes" and (given := [name for name in of_slices if name in self.changed()]):
      raise InputError(f"form=volumes stores scans as they are: leave out {', '.join(given)}.")
