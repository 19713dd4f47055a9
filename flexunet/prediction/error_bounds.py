"""What the calibration of a run says of a new scan: margins around structures, volume intervals.

Beside the label of a scan are written
  <stem>_margin_<class>   1 inside a structure and its margin, else 0, on the grid and in the format
                          of the label (of an image 255)
  <stem>_bounds.json      the margins, and the volume of each class with its interval
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flexunet.core import files
from flexunet.core.errors import InputError
from flexunet.evaluation import conformal
from flexunet.evaluation.conformal import RatioBounds
from flexunet.imaging import scan_files
from flexunet.imaging.slicing import SlicePlan
from flexunet.imaging.volume import Volume, VolumeHeader
from flexunet.prediction.scans import Scan
from flexunet.reporting import overlay
from flexunet.run_calibration import RunCalibration

_ENDING = "_bounds.json"


@dataclasses.dataclass(frozen=True)
class ErrorBounds:
  """Margins and intervals at the levels that the user names.

  Attributes:
    class_names: By id, background first.
    margin_level, ratio_level: Shares of subjects; None: not asked for.
    margins: Class -> margin; classes without one are missing.
    unit, geometry, contained: As in `conformal.Margins`.
    ratios: Class -> bounds of the true volume as a multiple of the predicted one.
    subjects: Class -> calibration subjects.
  """

  class_names: tuple[str, ...]
  margin_level: float | None = None
  ratio_level: float | None = None
  margins: Mapping[str, float] = dataclasses.field(default_factory=dict)
  unit: str = "mm"
  geometry: str = "3d"
  contained: float = 1.0
  ratios: Mapping[str, RatioBounds] = dataclasses.field(default_factory=dict)
  subjects: Mapping[str, int] = dataclasses.field(default_factory=dict)

  def endings(self, label_ending: str) -> list[str]:
    """Returns how the files end that are written for a scan.

    Args:
      label_ending: That of its label, such as ".nii.gz".
    """
    return [_ENDING, *(f"_margin_{_slug(name)}{label_ending}" for name in self.margins)]

  def write_volume(self, scan: Scan, label: np.ndarray, plan: SlicePlan, output_dir: Any) -> None:
    """Writes what is said of a scan.

    Args:
      scan: The scan.
      label: Class ids uint8 [i, j, k], as they are written.
      plan: How the run cuts scans.
      output_dir: Where outputs go.

    Raises:
      InputError: Margins in mm of a scan that states no spacing.
    """
    component = next(iter(scan.components), None)
    header = scan_files.read_header(scan.path, component)
    for name, margin in self.margins.items():
      mask = label == self.class_names.index(name)
      inside = self._widened(mask, margin, header, plan, scan)
      scan_files.write_label_like(
          scan.path, inside.astype(np.uint8),
          scan.output(output_dir, f"_margin_{_slug(name)}{_label_ending(scan)}"),
          ["background", f"{name} margin"], component,
      )  # fmt: skip
    voxel_ml = math.prod(header.spacing_mm) / 1000
    self._write_json(scan, label, voxel_ml, output_dir)

  def write_image(self, scan: Scan, label: np.ndarray, output_dir: Any) -> None:
    """Writes what is said of an image, whose label is uint8 [H, W]; as `write_volume`."""
    if self.margins and (self.unit, self.geometry) != ("px", "2d"):
      raise InputError(
          f"{scan.path}: a margin in mm needs a volume that states its spacing. Leave out --margin"
          " for images."
      )
    for name, margin in self.margins.items():
      inside = conformal.dilated(label == self.class_names.index(name), margin, (1.0, 1.0))
      path = scan.output(output_dir, f"_margin_{_slug(name)}.png")
      files.write_bytes(path, overlay.encode_png(inside.astype(np.uint8) * np.uint8(255)))
    self._write_json(scan, label, math.nan, output_dir)

  def _widened(
      self, mask: np.ndarray, margin: float, header: VolumeHeader, plan: SlicePlan, scan: Scan
  ) -> np.ndarray:
    """Returns the mask [i, j, k] widened by its margin, in 3-D or within the slices of the run."""
    like = Volume(mask, header.affine, header.oriented)
    cut = plan.extract(like)
    spacing = (*cut.spacing_mm, cut.slice_spacing_mm)[: 3 if self.geometry == "3d" else 2]
    if self.unit == "px":
      spacing = (1.0,) * len(spacing)
    if not np.isfinite(spacing).all():
      raise InputError(
          f"{scan.path}: margins in mm need a scan that states its spacing; its header states none."
          " Leave out --margin."
      )
    if self.geometry == "3d":
      return plan.restore(conformal.dilated(cut.pixels, margin, spacing), like)
    slices = [conformal.dilated(one, margin, spacing) for one in np.moveaxis(cut.pixels, 2, 0)]
    return plan.restore(np.stack(slices, axis=-1), like)

  def _write_json(
      self, scan: Scan, label: np.ndarray, voxel_ml: float, output_dir: Any
  ) -> None:
    entries: dict[str, Any] = {}
    if self.margin_level is not None:
      entries["margin"] = {
          "level": self.margin_level,
          "unit": self.unit,
          "within_slices": self.geometry == "2d",
          "contained": self.contained,
          "classes": dict(self.margins),
      }
    if self.ratio_level is not None:
      entries["volume"] = {
          "level": self.ratio_level,
          "unit": "ml" if math.isfinite(voxel_ml) else "voxels",
          "classes": {
              name: self._volume(name, int(np.count_nonzero(label == class_id)), voxel_ml)
              for class_id, name in enumerate(self.class_names) if class_id
          },
      }  # fmt: skip
    entries["calibration_subjects"] = dict(self.subjects)
    files.write_json(scan.output(output_dir, _ENDING), entries)

  def _volume(self, name: str, voxels: int, voxel_ml: float) -> dict[str, float | None]:
    """Returns the predicted volume and its interval; null where nothing bounds it."""
    volume = voxels * voxel_ml if math.isfinite(voxel_ml) else float(voxels)
    bounds = self.ratios.get(name)
    if not voxels or bounds is None:
      return {"predicted": volume, "low": None, "high": None}
    high = volume * bounds.high
    return {
        "predicted": volume,
        "low": volume * bounds.low,
        "high": high if math.isfinite(high) else None,
    }


def bounds_of(
    learnt: RunCalibration | None,
    class_names: Sequence[str],
    margin: float | None,
    volume_interval: float | None,
) -> tuple[ErrorBounds | None, list[str]]:
  """Returns the bounds at the levels of the flags, and a line for each class that has none.

  Args:
    learnt: Of the run; None where it was not calibrated.
    class_names: By id, background first.
    margin, volume_interval: Levels; None: not asked for.

  Raises:
    InputError: There is no calibration, or its subjects are too few for the level.
  """
  if margin is None and volume_interval is None:
    return None, []
  if learnt is None:
    raise InputError(
        "--margin and --volume_interval need a calibrated run. Run flexunet calibrate --run_dir=RUN"
        " first; runs that are named one by one have none in common."
    )
  found: dict[str, float] = {}
  fields: dict[str, Any] = {}
  lines: list[str] = []
  subjects: dict[str, int] = {}
  if margin is not None:
    own = learnt.margins
    found, refused = own.at(conformal.check_level(margin, "--margin"))
    lines += [f"no margin around {line}" for line in refused]
    fields = {"unit": own.unit, "geometry": own.geometry, "contained": own.contained}
    subjects |= {name: len(scores.subjects) for name, scores in own.classes.items()}
  ratios: dict[str, RatioBounds] = {}
  if volume_interval is not None:
    conformal.check_level(volume_interval, "--volume_interval")
    if learnt.volume_ratios is None:
      raise InputError("--volume_interval needs a run that was trained on volumes. Leave it out.")
    ratios, refused = learnt.volume_ratios.at(volume_interval)
    lines += [f"no volume interval of {line}" for line in refused]
    subjects |= {name: len(own.subjects) for name, own in learnt.volume_ratios.classes.items()}
  return ErrorBounds(
      class_names=tuple(class_names),
      margin_level=margin,
      ratio_level=volume_interval,
      margins=found,
      ratios=ratios,
      subjects=subjects,
      **fields,
  ), lines


def _slug(name: str) -> str:
  return re.sub(r"[^\w.-]+", "_", name).strip("_")


def _label_ending(scan: Scan) -> str:
  return scan.label_suffix or scan.suffix
