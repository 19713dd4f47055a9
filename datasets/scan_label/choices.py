"""What a folder of scans decides for all of its records, each with the reason: classes, modality,
plane, spacing and intensities."""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from flexunet.core import progress
from flexunet.core.errors import InputError
from flexunet.datasets.builder.raw_folder import Case
from flexunet.datasets.scan_label import raw_scans
from flexunet.datasets.scan_label.options import BACKGROUND, ScanLabelOptions
from flexunet.datasets.scan_label.raw_scans import Layout
from flexunet.imaging import scan_files
from flexunet.imaging.label_scheme import IGNORED
from flexunet.imaging.volume import Volume, VolumeHeader

# Spacings within a tenth count as equal: headers round, and nobody resamples for that.
_EQUAL = 1.1
# One axis this much shorter than the others is the one across the slices of a slab.
_SLAB = 0.5
# Air is -1000 HU, fat -100; no other modality goes there.
_HU_AIR = -500.0
# nnU-Net's percentiles of the labelled voxels (Isensee et al., doi 10.1038/s41592-020-01008-z).
CT_PERCENTILES = (0.5, 99.5)
_VOXELS_PER_CASE = 100_000
_ANATOMICAL = {"L": 0, "R": 0, "P": 1, "A": 1, "I": 2, "S": 2}
_PLANE_ACROSS = ("sagittal", "coronal", "axial")
# Anatomical axes along rows and columns of each plane.
_IN_PLANE = {"axial": (1, 0), "coronal": (2, 0), "sagittal": (2, 1)}


def classes(
    layout: Layout, options: ScanLabelOptions, cases: Sequence[Case]
) -> tuple[dict[int, str], int | None, str]:
  """Returns ({label id: class name}, id to ignore, how they were found).

  Ids that become background are in it with that name. Where nothing names the classes all labels
  are read, and ids get the names class_1, class_2, ...

  Raises:
    InputError: An option names an id that there is none of, or no class is left.
  """
  ignore_id = options.ignore_label if options.ignore_label is not None else layout.ignore_id
  if options.classes:
    path = pathlib.Path(options.classes).expanduser()
    names = raw_scans.names_of_ids(raw_scans.read_json(path), path)
    reason = f"named by {path.name}"
  elif layout.class_names:
    names, reason = dict(layout.class_names), f"named by {layout.names_from}"
  elif names := _named_by_labels(cases):
    reason = "named by the labels"
  else:
    names, reason = _counted(cases, ignore_id)
  counted = reason.startswith("nothing")
  names = {number: name for number, name in names.items() if number not in (0, ignore_id)}
  for number, name in options.id_map().items():
    if number and number not in names and counted:
      known = ", ".join(map(str, sorted(names)))
      raise InputError(f"map names label id {number}, but the labels hold the ids {known}.")
    if number:
      names[number] = raw_scans.plain_name(name)
  if counted and names.keys() <= options.id_map().keys():
    reason = "named by --map"
  elif options.map:
    reason += "; changed by --map"
  kept = {number: name for number, name in names.items() if name != BACKGROUND}
  if not kept:
    raise InputError("No class is left besides the background: labels or --map name none.")
  shown = ", ".join(f"{number} {name}" for number, name in sorted(names.items()))
  ignored = "" if ignore_id is None else f"; {ignore_id} is not counted"
  return {0: BACKGROUND, **names}, ignore_id, f"{shown}{ignored} ({reason})"


def _named_by_labels(cases: Sequence[Case]) -> dict[int, str]:
  """Returns the names of segments, which are those of all labels; {} where they hold no names.

  Raises:
    InputError: One number has two names, or some labels name their segments and some do not.
  """
  names: dict[int, str] = {}
  labels = [case.files["label"] for case in cases if case.labelled]
  for path in labels:
    own = {
        number: raw_scans.plain_name(name)
        for number, name in scan_files.label_names(path).items()
    }
    for number, name in own.items():
      if names.setdefault(number, name) != name:
        raise InputError(
            f"{path}: segment {number} is {name!r}, in another label {names[number]!r}. Name the"
            " classes by --classes=classes.json."
        )
    if bool(own) != bool(names):
      raise InputError(
          f"{path}: its segments have no names, those of other labels have. Name the classes by"
          " --classes=classes.json."
      )
  return names


def _counted(cases: Sequence[Case], ignore_id: int | None) -> tuple[dict[int, str], str]:
  """Returns made-up names for the ids that the labels hold, and how often each occurs."""
  counts: collections.Counter[int] = collections.Counter()
  labelled = [case for case in cases if case.labelled]
  for case in progress.bar(labelled, desc="Reading label ids", unit="label", leave=False, delay=3):
    voxels = _label_of(case, raw_scans.header_of(case)).voxels
    found, number = np.unique(voxels[voxels != 0], return_counts=True)
    for value, count in zip(found.tolist(), number.tolist(), strict=True):
      if not np.isfinite(value) or abs(value - round(value)) > 1e-3 or value < 0:
        raise InputError(
            f"{case.files['label']}: label values must be whole numbers from 0, found {value:g}. Is"
            " this the label file?"
        )
      counts[round(value)] += count
  if len(counts) > 254:
    raise InputError(
        f"The labels hold {len(counts)} ids, and 254 classes are the most. Are these label files?"
        " Name the classes by --classes=classes.json."
    )
  ids = sorted(counts)
  listed = ", ".join(f"{number} ({counts[number]} voxels)" for number in ids)
  example = ", ".join(f'"{number}": "..."' for number in ids[:3] if number != ignore_id)
  return (
      {number: f"class_{number}" for number in ids},
      f"nothing names them; label ids {listed}; name them by --classes=classes.json with"
      f" {{{example}}}",
  )


def _label_of(case: Case, scan: Volume | VolumeHeader) -> Volume:
  """Reads the label of a case, in the voxel order of its scan."""
  return scan_files.read_label(case.files["label"], scan, case.files["image"])[0]


def modality(
    layout: Layout, options: ScanLabelOptions, cases: Sequence[Case]
) -> tuple[str, str]:
  """Returns ("mri" or "ct", why)."""
  if options.modality is not None:
    return options.modality, "given"
  if layout.modality is not None:
    source = "the names of the scans" if layout.kind == "bids" else "dataset.json"
    return layout.modality, f"stated by {source}"
  lowest = np.inf
  for case in cases[:1]:
    stored, slope, inter = scan_files.read_volumes(
        case.files["image"], raw_scans.components_of(case)[:1]
    )[0]
    lowest = float(np.nanmin(stored.scaled(slope, inter).voxels))
  if lowest <= _HU_AIR:
    return "ct", f"the first scan goes down to {lowest:g}, as only Hounsfield units do"
  return "mri", f"the first scan goes down to {lowest:g}, which is no air in Hounsfield units"


def plane(
    headers: Iterable[VolumeHeader], options: ScanLabelOptions
) -> tuple[str, str]:
  """Returns (plane along which scans are cut, why)."""
  if options.plane is not None:
    return options.plane, "given"
  votes = collections.Counter(_across(header, options.axes) for header in headers)
  (winner, reason), count = max(
      votes.items(), key=lambda entry: (entry[1], entry[0][0] == "axial", entry[0])
  )
  total = sum(votes.values())
  return winner, f"{reason}, in {count} of {progress.count(total, 'scan')}"


def _across(header: VolumeHeader, axes: str) -> tuple[str, str]:
  """Returns (plane, why) that one scan speaks for: that of its two finest equal axes."""
  spacing, size = _anatomical(header, axes)
  if not np.isfinite(spacing).all():
    spacing = np.ones(3)
  finest = None
  for across in (2, 1, 0):
    row, column = (axis for axis in range(3) if axis != across)
    low, high = sorted((spacing[row], spacing[column]))
    equal_all = max(spacing) <= _EQUAL * min(spacing)
    if high <= _EQUAL * low and not equal_all and (finest is None or high < finest[0]):
      finest = high, across
  if finest is not None:
    return _PLANE_ACROSS[finest[1]], "its two axes have the finest equal spacing"
  if max(spacing) > _EQUAL * min(spacing):
    return _PLANE_ACROSS[int(np.argmax(spacing))], "it lies across the coarsest axis"
  extent = spacing * size
  shortest = int(np.argmin(extent))
  if extent[shortest] < _SLAB * np.delete(extent, shortest).min():
    return _PLANE_ACROSS[shortest], "voxels are cubes, and scans are thinnest across it"
  return "axial", "voxels are cubes"


def _anatomical(header: VolumeHeader, axes: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns (voxel edges in mm, voxels) along left-right, front-back and up-down."""
  spacing, size = np.full(3, np.nan), np.ones(3)
  for code, edge, number in zip(
      header.axis_codes or axes, header.spacing_mm, header.shape, strict=True
  ):
    spacing[_ANATOMICAL[code]], size[_ANATOMICAL[code]] = edge, number
  return spacing, size


def spacing(
    headers: Iterable[VolumeHeader], options: ScanLabelOptions, plane_name: str
) -> tuple[tuple[float, float] | None, str]:
  """Returns ((row, column) spacing in mm to which slices are brought, or None to keep it, why)."""
  if (given := options.given_spacing_mm()) is not None:
    return given, "given"
  edges = np.array([
      _anatomical(header, options.axes)[0][list(_IN_PLANE[plane_name])] for header in headers
  ])  # fmt: skip
  if not np.isfinite(edges).all():
    return None, "not every scan states its spacing"
  low, high = edges.min(axis=0), edges.max(axis=0)
  shown = " x ".join(
      f"{a:.3g}" if b <= a * 1.005 else f"{a:.3g}..{b:.3g}" for a, b in zip(low, high, strict=True)
  )
  if options.isotropic_mm is not None or options.form == "volumes":
    return None, f"{shown} mm as scanned"
  if options.spacing_mm == "keep":
    return None, f"{shown} mm as scanned: given"
  if (high <= _EQUAL * low).all():
    return None, f"{shown} mm, equal within 10 %"
  row, column = (round(float(edge), 4) for edge in np.median(edges, axis=0))
  return (row, column), f"the median, since scans have {shown} mm"


def ct_windows(
    cases: Sequence[Case], label_map: Mapping[int, int], channels: int
) -> list[tuple[float, float] | None]:
  """Returns the percentiles 0.5 and 99.5 of the labelled voxels of some cases, for each channel.

  A channel without any has None.

  Args:
    cases: Labelled ones.
    label_map: {label id: class id}.
    channels: How many each case has.
  """
  foreground = [number for number, class_id in label_map.items() if 0 < class_id < IGNORED]
  found: list[list[np.ndarray]] = [[] for _ in range(channels)]
  for case in progress.bar(cases, desc="Finding the window", unit="scan", leave=False, delay=3):
    for own, scan in zip(found, _channels_of(case, channels), strict=True):
      label = _label_of(case, scan)
      if scan.voxels.shape != label.voxels.shape:
        continue  # Reading the case says so.
      values = scan.voxels[np.isin(np.round(label.voxels), foreground)].astype(np.float64)
      values = values[np.isfinite(values)]
      own.append(values[:: max(1, len(values) // _VOXELS_PER_CASE)])
  return [_window_of(np.concatenate(own) if own else np.zeros(0)) for own in found]


def _channels_of(case: Case, channels: int) -> Iterator[Volume]:
  """Yields the channels of a case; a file of several is read once, and others one by one."""
  if components := raw_scans.components_of(case):
    for stored, slope, inter in scan_files.read_volumes(case.files["image"], components):
      yield stored.scaled(slope, inter)
    return
  for number in range(1, channels + 1):
    yield scan_files.read(case.files[raw_scans.role_of(number)])


def _window_of(values: np.ndarray) -> tuple[float, float] | None:
  if not values.size:
    return None
  low, high = np.percentile(values, CT_PERCENTILES)
  return round(float(low), 1), round(float(max(high, low + 1)), 1)
