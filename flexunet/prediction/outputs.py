"""Which files are written for a scan, and what becomes of those that are there already."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flexunet.core import progress
from flexunet.core.errors import InputError, unknown_name
from flexunet.imaging import nifti
from flexunet.prediction.scans import Scan
from flexunet.reporting import animation

if TYPE_CHECKING:  # SciPy: --help does without.
  from flexunet.prediction.error_bounds import ErrorBounds

UNCERTAINTY_KINDS = {
    "none": "no map",
    "entropy": "of the probabilities: 0 certain, 1 all classes equally likely",
    "disagreement": "of several runs, or of slices and their mirror images: 0 where they agree",
}
UNCERTAINTY_ENDINGS = {"volume": "_uncertainty.nii.gz", "image": "_uncertainty.png"}
_TWIN = {".hdr": ".img", ".img": ".hdr"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outputs:
  """What is written beside each label, and what becomes of older files.

  Attributes:
    folder: Where all is written.
    overlay, color_masks, probabilities: What is written beside the label.
    uncertainty: Which map too, one of `UNCERTAINTY_KINDS`.
    bounds: Which margins and volume intervals too.
    animation: A film of the slices of a volume: "none", "gif" or "mp4".
    animation_fps: Slices a second of the film.
    overlay_slices: A folder <stem>_slices with an overlay of each slice of a volume.
    overwrite: Older files are replaced.
    skip_existing: A scan whose label is there is not predicted again. The label is written last, so
      what lies there without one is of a run that was cut short, and is replaced.
  """

  folder: pathlib.Path
  overlay: bool = True
  color_masks: bool = False
  probabilities: bool = False
  uncertainty: str = "none"
  bounds: ErrorBounds | None = None
  animation: str = "none"
  animation_fps: int = 10
  overlay_slices: bool = False
  overwrite: bool = False
  skip_existing: bool = False

  def __post_init__(self):
    if self.overwrite and self.skip_existing:
      raise InputError("--overwrite replaces what --skip_existing keeps. Pass one of the two.")
    if self.uncertainty not in UNCERTAINTY_KINDS:
      raise unknown_name("kind of uncertainty", self.uncertainty, UNCERTAINTY_KINDS)
    animation.check(self.animation)

  def divide(self, scans: Sequence[Scan]) -> tuple[list[Scan], list[Scan]]:
    """Returns the scans to predict, and those to skip since their label is there."""
    wanted: list[Scan] = []
    existing: list[Scan] = []
    for scan in scans:
      there = self.skip_existing and all(path.exists() for path in self._labels(scan))
      (existing if there else wanted).append(scan)
    return wanted, existing

  def lacking(self, existing: Sequence[Scan]) -> list[str]:
    """Returns a line about skipped scans that lack what is asked for beside the label, if any."""
    lacking = [scan for scan in existing if not all(path.exists() for path in self._all(scan))]
    if not lacking:
      return []
    return [
        f"{progress.count(len(lacking), 'scan')} skipped for the label that is there, without all"
        f" else that was asked for ({lacking[0].path}). To write that too, pass --overwrite instead"
        " of --skip_existing."
    ]

  def refuse_existing(self, scan: Scan) -> None:
    """Raises InputError where a file would be replaced that nobody has given up."""
    if self.overwrite or self.skip_existing:  # `divide` has taken out what is to be kept.
      return
    if existing := [path for path in self._all(scan) if path.exists()]:
      raise InputError(
          f"{scan.path}: its output {existing[0]} exists already. Pass --overwrite to replace it,"
          " --skip_existing to keep what is there, or another --output_dir."
      )

  def _labels(self, scan: Scan) -> list[pathlib.Path]:
    """Returns the label, and its twin where it is a pair."""
    label = scan.label_path(self.folder)
    ending = nifti.suffix_of(label)
    if ending[:4] not in _TWIN:
      return [label]
    return [label, scan.output(self.folder, f"_label{_TWIN[ending[:4]]}{ending[4:]}")]

  def _all(self, scan: Scan) -> list[pathlib.Path]:
    """Returns all that is written for a scan, the label first."""
    is_volume = scan.kind == "volume"
    endings = [
        ("_overlay.png", self.overlay),
        (f"_overlay.{self.animation}", self.animation != "none" and is_volume),
        ("_slices", self.overlay_slices and is_volume),
        ("_color.png", self.color_masks and not is_volume),
        ("_probability.npz", self.probabilities),
        (UNCERTAINTY_ENDINGS[scan.kind], self.uncertainty != "none"),
    ]
    ending = scan.label_suffix or scan.suffix if is_volume else ".png"
    endings += [(one, True) for one in (self.bounds.endings(ending) if self.bounds else ())]
    return self._labels(scan) + [scan.output(self.folder, end) for end, asked in endings if asked]
