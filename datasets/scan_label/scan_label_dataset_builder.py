"""Any folder of scans and label volumes: MSD, nnU-Net, BIDS, pairs of folders, or a table."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from flexunet.core.errors import InputError
from flexunet.datasets import built_dataset, subject_splits
from flexunet.datasets.builder import raw_folder, volume_builder
from flexunet.datasets.builder.croissant import License
from flexunet.datasets.builder.raw_folder import Case, Findings, Notes
from flexunet.datasets.builder.volume_builder import Scan
from flexunet.datasets.scan_label import (
    bids,
    choices,
    dataset_json,
    pairs,
    raw_scans,
    scan_table,
    stacked_channels,
)
from flexunet.datasets.scan_label.options import BACKGROUND, MOST_CHANNELS, ScanLabelOptions
from flexunet.datasets.scan_label.raw_scans import Layout, RawScan
from flexunet.imaging import channel_grid
from flexunet.imaging.intensity import IntensityWindow
from flexunet.imaging.label_scheme import IGNORED, LabelScheme
from flexunet.imaging.slicing import SlicePlan

_SEARCH_DEPTH = 3
_MRI = IntensityWindow("percentile", 0.5, 99.5)
# Where no training label has foreground: air and bone saturate, grey and white matter differ.
_BRAIN_HU = (-20.0, 100.0)


class ScanLabelConfig(volume_builder.VolumeConfig):
  """A config of a folder of scans and labels."""

  OPTIONS = ScanLabelOptions


class Builder(volume_builder.VolumeBuilder):
  """Builds slices or whole volumes of any folder of scans and labels."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar = {"1.0.0": "Initial release."}
  HOMEPAGE = ""
  LICENSES: ClassVar = (License("The licence of the scans"),)  # The user knows it.
  LAYOUT = (
      "images/NAME + labels/NAME (also below train, valid, test), NAME + NAME_seg in one folder,"
      " MSD or nnU-Net (dataset.json, imagesTr, labelsTr), BIDS (sub-*/anat, labels in"
      " derivatives), or a table scans.csv with the columns subject,image[,image2 ...],label"
      "[,split][,fold] and paths from the raw folder"
  )
  SPLIT_SALT = "scan_label"
  MANUAL_DOWNLOAD_INSTRUCTIONS = f"Any folder of one of these forms will do: {LAYOUT}."
  BUILDER_CONFIGS: ClassVar = [
      ScanLabelConfig(name="slices", description="Slices in the plane of the finest spacing."),
      ScanLabelConfig(name="volumes", form="volumes", description="Whole scans."),
  ]
  DEFAULT_BUILDER_CONFIG_NAME = "slices"
  LABEL_ADVICE = "Name them by --classes=classes.json, or drop them by --map=ID:background."

  def _choice(self, name: str, default: Any) -> Any:
    """Returns what the raw folder decided; of a built dataset, what its report says."""
    decided = self.decided
    if not decided and pathlib.Path(self.data_path).is_dir():
      decided = built_dataset.read_report(pathlib.Path(self.data_path)).get("decided", {})
    return decided.get(name, default)

  def label_scheme(self) -> LabelScheme:
    """Returns the classes, made-up ones before the raw folder has been seen."""
    found = self._choice("label_scheme", None)
    return LabelScheme.numbered(2) if found is None else LabelScheme.from_json(found)

  def label_map(self) -> dict[int, int]:
    """Returns {value in the label file: class id}."""
    return dict(self._choice("label_map", [(0, 0)]))

  def slice_plan(self) -> SlicePlan:
    """Returns how volumes are cut."""
    return SlicePlan(self.options.axes, self._choice("plane", "axial"))

  def intensity(self) -> IntensityWindow:
    """Returns how intensities become 8 bits."""
    found = self._choice("intensity", None)
    return _MRI if found is None else IntensityWindow(**found)

  def channel_names(self) -> tuple[str, ...]:
    """Returns the channels of a scan, each a volume of its own on one grid."""
    return tuple(self._choice("channel_names", ("image",)))

  def other_intensities(self) -> tuple[IntensityWindow, ...]:
    """Returns how the intensities of each channel after the first become 8 bits."""
    if self.options.window is not None:
      return (self.active_intensity(),) * (len(self.channel_names()) - 1)
    return tuple(IntensityWindow(**one) for one in self._choice("other_intensities", ()))

  def in_plane_mm(self) -> tuple[float, float] | None:
    """Returns the (row, column) spacing to which slices are brought; None keeps it."""
    found = self._choice("in_plane_mm", None)
    return None if found is None else (found[0], found[1])

  def find_cases(self, findings: Findings) -> None:
    """Looks through `findings.root`; reads headers only."""
    findings.series = self.options.series
    layout = self._find_layout(findings)
    if layout is None:
      return
    layout = stacked_channels.named(layout, self.options.channels)
    findings.choices["layout"] = f"{layout.kind}: {layout.where}"
    channels = self._channels(layout)
    shown = ", ".join(channels) if len(channels) > 1 else "one"
    shown += ", volumes along the fourth axis of each image" if layout.components else ""
    findings.choices["channels"] = shown
    findings.details = dataclasses.replace(layout, channels=channels)
    for scan in self._with_sides(layout.scans, findings):
      if layout.components:
        self._add_stacked(findings, scan, layout.components, channels)
      else:
        self._add(findings, scan, channels)
    raw_folder.note(findings)

  def _with_sides(self, scans: Sequence[RawScan], findings: Findings) -> list[RawScan]:
    """Returns the scans with the sides that are kept; where none validates, some of train do."""
    sides: dict[str, set[str]] = {}
    for scan in scans:
      if scan.side:
        sides.setdefault(scan.subject, set()).add(scan.side)
    published = self.options.split == "published"
    for subject, own in sorted(sides.items()):
      if len(own) > 1:
        advice = " The published split is kept; build with --split=subject to mend it."
        findings.warn(
            f"Subject {subject} stands on two published sides: {', '.join(sorted(own))}."
            + (advice if published else "")
        )
    if not published:
      return [dataclasses.replace(scan, side="") for scan in scans]
    if not sides or "validation" in set.union(*sides.values()):
      return list(scans)
    train = {subject: "" for subject, own in sides.items() if own == {"train"}}
    ratios = {"train": 0.85, "validation": 0.15}
    split_of = subject_splits.assign(train, self.SPLIT_SALT, ratios)
    findings.choices["splits"] = "validation is 15 % of the published training subjects"
    return [
        dataclasses.replace(scan, side=split_of.get(scan.subject, scan.side)) if scan.side else scan
        for scan in scans
    ]

  def _find_layout(self, findings: Findings) -> Layout | None:
    """Returns the layout nearest to the root; several there are a problem, none is None."""
    root, options = findings.root, self.options
    if options.layout in (None, "table") or options.table:
      found = scan_table.find(root, findings, options.table)
      if found is not None or options.layout == "table":
        return found
    level = [root]
    for _ in range(_SEARCH_DEPTH + 1):
      found_here = [entry for folder in level for entry in self._layouts_of(folder, findings)]
      if found_here:
        return _the_only(findings, found_here)
      level = [path for folder in level for path in raw_folder.children(folder) if path.is_dir()]
    return None

  def _layouts_of(
      self, folder: pathlib.Path, findings: Findings
  ) -> list[tuple[pathlib.Path, Layout, Findings]]:
    """Returns (folder, layout, what was noted on the way) of each layout a folder has."""
    wanted = self.options.layout
    found: list[tuple[pathlib.Path, Layout, Findings]] = []
    looks = {
        "dataset.json": (("nnunet", "msd"), lambda own: dataset_json.find(folder, own)),
        "bids": (("bids",), lambda own: bids.find(folder, own, self.options.channels)),
        "pairs": (("pairs",), lambda own: pairs.find(folder, own)),
    }
    for name, (kinds, look) in looks.items():
      # imagesTr and labelsTr are pairs too; dataset.json knows more about them.
      explained = name == "pairs" and any(layout.kind != "bids" for _, layout, _ in found)
      if (wanted is None and explained) or (wanted is not None and wanted not in kinds):
        continue
      own = Findings(findings.root)
      own.series = findings.series
      if (layout := look(own)) is not None:
        found.append((folder, layout, own))
    return found

  def _channels(self, layout: Layout) -> list[str]:
    """Returns the channels to build."""
    chosen = list(layout.channels)
    if layout.kind != "bids" and self.options.channels:  # In BIDS they said what to look for.
      chosen = list(self.options.channels)
    if unknown := [name for name in chosen if name not in layout.channels]:
      raise InputError(f"--channels: the scans have {', '.join(layout.channels)}, no {unknown[0]}.")
    if len(chosen) > MOST_CHANNELS:
      raise InputError(
          f"The scans have {len(chosen)} channels, and {MOST_CHANNELS} are the most. Choose some by"
          " --channels."
      )
    return chosen

  def _add(self, findings: Findings, scan: RawScan, channels: list[str]) -> None:
    """Adds a scan as a case, or notes what is wrong with it."""
    missing = [name for name in channels if name not in scan.images]
    if missing:
      findings.problem(
          f"{findings.relative(next(iter(scan.images.values())))}: scan {scan.name} lacks the"
          f" channel {missing[0]}; every scan needs {', '.join(channels)}."
      )
      return
    files: dict[str, pathlib.Path] = {}
    for number, name in enumerate(channels, start=1):
      label = scan.label if number == 1 else None
      if not raw_folder.check_volumes(findings, scan.images[name], label):
        return
      files |= raw_folder.volume_files(raw_scans.role_of(number), scan.images[name])
    self._add_case(findings, scan, files)

  def _add_stacked(
      self, findings: Findings, scan: RawScan, every: Mapping[str, int], channels: list[str]
  ) -> None:
    """Adds a scan whose channels are volumes along the fourth axis of one file."""
    path = scan.images[next(iter(every))]
    components = [every[name] for name in channels]
    if problem := stacked_channels.problem_of(path, list(every)):
      findings.problem(problem)
    elif raw_folder.check_volumes(findings, path, scan.label, components[0]):
      files = raw_folder.volume_files("image", path)
      self._add_case(findings, scan, files, {"components": components})

  def _add_case(
      self,
      findings: Findings,
      scan: RawScan,
      files: dict[str, pathlib.Path],
      details: dict[str, Any] | None = None,
  ) -> None:
    if scan.label is not None:
      files |= raw_folder.volume_files("label", scan.label)
    subject, name = raw_scans.plain_name(scan.subject), raw_scans.plain_name(scan.name)
    case = Case(name, subject, name, files, labelled=scan.label is not None, details=details)
    findings.add(dataclasses.replace(case, fold=scan.fold, split=scan.side or None))

  def components_of(self, case: Case) -> tuple[int, ...]:
    """Returns which volumes along the fourth axis of "image" are the channels; () where 3-D."""
    return raw_scans.components_of(case)

  def read_scan(self, case: Case, notes: Notes) -> Scan:
    """Reads one case, in a worker process."""
    scan = super().read_scan(case, notes)
    if case.split:
      notes.facts["published_side"] = case.split
    if self.components_of(case):
      return scan  # With all its channels, which share one grid.
    names = self.channel_names()[1:]
    paths = [case.files[f"image_{number}"] for number in range(2, 2 + len(names))]
    others, moved = channel_grid.read_others(
        scan.stored, case.files["image"], paths, self.options.resample_channels
    )
    if moved:
      notes.facts["resampled_channels"] = [names[position] for position in moved]
    return dataclasses.replace(scan, others=tuple(others))

  def voxel_dtype_of(self, findings: Findings) -> np.dtype:
    """Returns the dtype that holds the voxels of all cases without loss."""
    dtype = super().voxel_dtype_of(findings)
    # What is interpolated is no longer a whole number.
    resamples = self.options.form == "volumes" and self.options.resample_channels
    return np.promote_types(dtype, np.float32) if resamples else dtype

  def decide(self, findings: Findings) -> dict[str, Any]:
    """Returns what the raw folder decides for all cases, as JSON; may read voxels."""
    layout, options, cases = findings.details, self.options, findings.cases
    names, ignore_id, why = choices.classes(layout, options, cases)
    findings.choices["classes"] = why
    scheme, label_map = _scheme(names, ignore_id)
    headers = [raw_scans.header_of(case) for case in cases]
    plane, why = choices.plane(headers, options)
    findings.choices["plane"] = f"{plane}: {why}"
    spacing_mm, why = choices.spacing(headers, options, plane)
    shown = "kept" if spacing_mm is None else f"{spacing_mm[0]:g} x {spacing_mm[1]:g} mm"
    findings.choices["spacing"] = f"{shown}: {why}"
    modality, why = choices.modality(layout, options, cases)
    findings.choices["modality"] = f"{modality}: {why}"
    intensities = []
    windows = self._decide_intensities(cases, modality, label_map, len(layout.channels))
    for name, (intensity, why) in zip(layout.channels, windows, strict=True):
      of = f" of {name}" if len(layout.channels) > 1 else ""
      findings.choices[f"intensities{of}"] = why
      intensities.append(dataclasses.asdict(intensity))
    return {
        "label_scheme": scheme.to_json(),
        "label_map": sorted(label_map.items()),
        "plane": plane,
        "in_plane_mm": spacing_mm,
        "intensity": intensities[0],
        "other_intensities": intensities[1:],
        "channel_names": list(layout.channels),
        "modality": modality,
    }

  def _decide_intensities(
      self, cases: list[Case], modality: str, label_map: Mapping[int, int], channels: int
  ) -> list[tuple[IntensityWindow, str]]:
    """Returns what becomes 0 and 255, and why, for each channel."""
    if self.options.window is not None:
      low, high = self.options.window
      why = f"{low:g}..{high:g} for all scans: given"
      return [(IntensityWindow("window", low, high), why)] * channels
    if modality == "mri":
      why = f"percentiles {_MRI.low:g} and {_MRI.high:g} of each volume, as usual for MRI"
      return [(_MRI, why)] * channels
    assigned = self.assign_splits(cases)
    train = [case for case in cases if assigned.split_of(case) == "train"]
    return [_described(found) for found in choices.ct_windows(train, label_map, channels)]


def _described(found: tuple[float, float] | None) -> tuple[IntensityWindow, str]:
  """Returns the window of a CT channel, and why."""
  low, high = found or _BRAIN_HU
  why = (
      "percentiles 0.5 and 99.5 of the labelled voxels of the training split" if found
      else "brain, since no training label has foreground"
  )  # fmt: skip
  return IntensityWindow("window", low, high), f"{low:g}..{high:g} HU for all scans: {why}"


def _the_only(
    findings: Findings, found: list[tuple[pathlib.Path, Layout, Findings]]
) -> Layout | None:
  """Returns the layout that was found, with what was noted; several are a problem."""
  if len(found) > 1:
    listed = ", ".join(
        f"{layout.kind} in {findings.relative(folder)}" for folder, layout, _ in found[:5]
    )
    findings.problem(
        f"{findings.root}: several layouts fit: {listed}. Name one folder as --manual_dir, choose"
        " by --layout, or write scans.csv."
    )
    return None
  _, layout, noted = found[0]
  findings.left_out |= noted.left_out
  findings.problems += noted.problems
  findings.warnings += noted.warnings
  findings.choices |= noted.choices
  return layout


def _scheme(
    names: Mapping[int, str], ignore_id: int | None
) -> tuple[LabelScheme, dict[int, int]]:
  """Returns (classes in the order of their lowest ids, {label id: class id})."""
  ordered = [BACKGROUND]
  for _, name in sorted(names.items()):
    if name not in ordered:
      ordered.append(name)
  scheme = LabelScheme.from_names(ordered)
  label_map = {number: ordered.index(name) for number, name in names.items()}
  if ignore_id is None:
    return scheme, label_map
  return dataclasses.replace(scheme, ignores=True), {**label_map, ignore_id: IGNORED}
