"""Builds a dataset: a raw folder, as its publisher ships it, becomes TFRecords split by subject.

  flexunet build hippocampus_t1w --manual_dir=RAW --data_dir=OUT

DATASET is a name, or name/config, such as hippocampus_t1w/left_right. RAW is the unpacked download;
nothing in it is changed. The result lies in OUT/DATASET/CONFIG/VERSION, and any TFDS reader opens
it; build_report.json beside the shards says what was counted, split and left out, and why.

The whole folder is checked first; --dry_run shows what was found and builds nothing. A build that
was interrupted continues where it stopped when the same command is given again.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flexunet.core import command_line, flags, progress
from flexunet.core.errors import InputError
from flexunet.datasets import built_dataset, catalog, subject_splits
from flexunet.datasets.builder import splits_file
from flexunet.imaging import nifti, pictures

if TYPE_CHECKING:
  from flexunet.datasets.builder.raw_folder import Findings
  from flexunet.datasets.builder.segmentation_builder import SegmentationBuilder

_PROGRAM = flags.Program(
    __doc__, usage="flexunet build DATASET --manual_dir=RAW --data_dir=DATA",
    first=("manual_dir", "data_dir", "dry_run"),
)  # fmt: skip
_MANUAL_DIR = _PROGRAM.string("manual_dir", None, "Raw folder: the unpacked download.")
_DATA_DIR = _PROGRAM.string(
    "data_dir", None, "Folder in which datasets are built; it is created where there is none."
)
_DRY_RUN = _PROGRAM.boolean(
    "dry_run", False, "Check the raw folder, list its files, build nothing."
)
_OVERWRITE = _PROGRAM.boolean("overwrite", False, "Build again what is built already.")
_NUM_WORKERS = _PROGRAM.integer(
    "num_workers", None, "Processes that read scans; by default as many as there are CPUs.",
    lower_bound=1,
)  # fmt: skip
_FILE_FORMAT = _PROGRAM.enum(
    "file_format", "tfrecord", ["tfrecord", "array_record"],
    "Container of the records; flexunet.train reads tfrecord.",
)  # fmt: skip
_CONFIG_NAME = _PROGRAM.string(
    "config_name", None,
    "Name of the built config, so that two folders with equal options can lie side by side.",
)  # fmt: skip
_SHOWN_VALUES = 8
_COLUMNS = 80


def _option_flags() -> dict[str, flags.FlagHolder]:
  """Defines a flag for each option of any dataset, grouped by the datasets that have it."""
  holders: dict[str, flags.FlagHolder] = {}
  for cls in catalog.OPTIONS.values():
    names = [field.name for field in dataclasses.fields(cls) if "help" in field.metadata]
    for name in names:
      if name not in holders:
        owners = catalog.datasets_with(name)
        everywhere = len(owners) == len(catalog.NAMES)
        group = "Options of " + ("all datasets" if everywhere else ", ".join(owners))
        others = [field.name for field in dataclasses.fields(cls) if field.name != name]
        holders |= _PROGRAM.fields(cls, group=group, skip=others)
  return holders


_OPTIONS = _option_flags()


def main(argv: Sequence[str]) -> None:
  if len(argv) != 2:
    known = ", ".join(catalog.NAMES)
    raise InputError(f"Name one dataset to build, e.g. hippocampus_t1w/left_right. Known: {known}.")
  options = _options(argv[1].partition("/")[0])
  manual_dir, data_dir = _raw_folder(argv[1]), _DATA_DIR.value
  if data_dir is None and not _DRY_RUN.value:
    raise InputError("--data_dir is missing: the folder in which the dataset is to be built.")
  if data_dir is not None and pathlib.Path(data_dir).expanduser().is_file():
    raise InputError(f"--data_dir {data_dir}: this is a file; name a folder.")

  # The flags and the help must not wait for TFDS.
  from flexunet.datasets.builder import build_tool

  make_builder = build_tool.maker(
      argv[1],
      # A dry run reads no built dataset either.
      data_dir=pathlib.Path(data_dir).expanduser() if data_dir else manual_dir / "none",
      num_workers=_NUM_WORKERS.value,
      options=options,
      config_name=_CONFIG_NAME.value,
      file_format=_FILE_FORMAT.value,
  )
  builder = make_builder()
  try:
    if _DRY_RUN.value:
      with build_tool.recognising(manual_dir):
        print_files(builder, manual_dir)
    elif not _OVERWRITE.value and build_tool.is_built(builder):
      print(f"Already built: {builder.data_path} (--overwrite builds it again).")
    else:
      print_summary(build_tool.build(make_builder, manual_dir))
  except KeyboardInterrupt:
    print("\nInterrupted. The same command continues where it stopped.", file=sys.stderr)
    sys.exit(130)  # What a shell expects of a program ended by Ctrl-C.


def _options(dataset: str) -> dict[str, Any]:
  """Returns the options that were given as flags.

  Raises:
    InputError: One that the dataset does not have, or a value out of its bounds.
  """
  cls = catalog.options_class(dataset)
  given = [name for name in _OPTIONS if _PROGRAM.given(name)]
  fields = {field.name for field in dataclasses.fields(cls)}
  for name in given:
    if name not in fields:
      owners = ", ".join(catalog.datasets_with(name))
      raise InputError(f"--{name} is an option of {owners}; {dataset} does not have it.")
  holders = {name: holder for name, holder in _OPTIONS.items() if name in given}
  found = flags.read(cls, holders)
  # What was read from files stands in fields without a flag.
  silent = [field for field in dataclasses.fields(cls) if "help" not in field.metadata]
  read = [field.name for field in silent if getattr(found, field.name) != field.default]
  return {name: getattr(found, name) for name in [*given, *read]}


def _raw_folder(dataset: str) -> pathlib.Path:
  name = dataset.partition("/")[0]
  if _MANUAL_DIR.value is None:
    raise InputError(
        f"--manual_dir is missing: the raw folder of {name}."
        f" {catalog.builder_class(name).MANUAL_DOWNLOAD_INSTRUCTIONS}"
    )
  folder = pathlib.Path(_MANUAL_DIR.value).expanduser()
  try:
    is_empty = folder.is_dir() and not any(folder.iterdir())
  except OSError as error:
    raise InputError(f"--manual_dir {folder}: cannot be read ({error.strerror}).") from error
  if is_empty or not folder.is_dir():
    what = "the folder is empty" if is_empty else "there is no such folder"
    raise InputError(
        f"--manual_dir {folder}: {what}."
        f" {catalog.builder_class(name).MANUAL_DOWNLOAD_INSTRUCTIONS}"
    )
  return folder


def print_summary(builder: SegmentationBuilder) -> None:
  """Prints what was built: a row per split, what was left out, and where it lies."""
  report = built_dataset.read_report(pathlib.Path(builder.data_path))
  rows: list[tuple[str, ...]] = [("split", "subjects", "volumes", "records", "with foreground")]
  for name in built_dataset.ordered_splits(report["splits"]):
    split = report["splits"][name]
    numbers = ("num_subjects", "num_volumes", "num_records", "num_foreground_records")
    rows.append((name, *(str(split[number]) for number in numbers)))
  print(progress.table(rows, _COLUMNS))
  if left_out := report["left_out"]:
    reasons: dict[str, int] = {}
    for entry in left_out:
      reasons[entry["reason"]] = reasons.get(entry["reason"], 0) + 1
    for reason, count in sorted(reasons.items()):
      print(f"left out: {count} ({reason})")
  for reason, count in sorted(_sum_by_reason(report["slices_left_out"]).items()):
    print(f"left out: {count} slices ({reason})")
  for line in report["warnings"]:
    print(f"warning: {line}", file=sys.stderr)
  counts = report["split_by"]
  if decided := _decided_by(counts):
    print(f"subjects{decided}")
  print(f"{builder.info.full_name} lies in {builder.data_path}")
  if counts.keys() != {"publisher"}:
    print(
        "To add subjects later without moving anyone:"
        f" --overwrite --splits_file={pathlib.Path(builder.data_path) / splits_file.NAME}"
    )


def _decided_by(counts: dict[str, int]) -> str:
  """Returns what decided on the subjects' splits, where that was more than their shares."""
  if counts.keys() <= {"shares"}:
    return ""
  return " placed by " + ", ".join(f"{reason} {count}" for reason, count in counts.items())


def _sum_by_reason(by_volume: dict[str, dict[str, int]]) -> dict[str, int]:
  total: dict[str, int] = {}
  for reasons in by_volume.values():
    for reason, count in reasons.items():
      total[reason] = total.get(reason, 0) + count
  return total


def print_files(builder: SegmentationBuilder, manual_dir: pathlib.Path) -> None:
  """Prints the files of the raw folder by case; reads the labels to show their values."""
  findings = builder.inspect_source(manual_dir)
  for case in findings.cases:
    print(case.key)
    for role, path in case.files.items():
      if not role.endswith("_voxels"):
        facts = "  ".join(_facts(path, role.startswith(("label", "mask"))))
        line = f"  {role}  {findings.relative(path)}"
        fits = len(line) + 2 + len(facts) <= _COLUMNS
        print(f"{line}  {facts}" if fits else f"{line}\n      {facts}")
  for file, reason in sorted(findings.left_out.items()):
    print(f"left out: {file} ({reason})")
  for line in findings.warnings:
    print(f"warning: {line}", file=sys.stderr)
  num_labelled = sum(case.labelled for case in findings.cases)
  print(f"{len(findings.cases)} cases, {num_labelled} labelled; {_split_counts(builder, findings)}")
  print("Nothing was built (--dry_run).")


def _split_counts(builder: SegmentationBuilder, findings: Findings) -> str:
  """Returns how many subjects each split and each fold gets."""
  assigned = builder.assign_splits(findings.cases)
  for line in [*assigned.warnings, *assigned.notices]:
    print(f"warning: {line}", file=sys.stderr)
  splits = list(assigned.splits.values())
  counts = ", ".join(f"{name} {splits.count(name)}" for name in subject_splits.SPLITS)
  sizes = ", ".join(map(str, assigned.fold_sizes()))
  return f"subjects: {counts}; folds of {sizes}{_decided_by(assigned.counts())}."


def _facts(path: pathlib.Path, is_label: bool) -> list[str]:
  """Returns shape, dtype, spacing, axis codes and label values as texts."""
  if nifti.is_volume(path):
    header = nifti.read_header(path)
    facts = [
        " x ".join(map(str, header.shape)),
        header.dtype.name,
        " x ".join(f"{mm:.3g}" for mm in header.spacing_mm) + " mm",
        f"axes {header.axis_codes or 'unstated'}",
    ]
    return [*facts, _values(nifti.read(path).voxels)] if is_label else facts
  if not pictures.is_picture(path):
    return ["table"]
  header_2d = pictures.read_header(path)
  facts = [f"{header_2d.height} x {header_2d.width}", f"8-bit {header_2d.mode}"]
  return [*facts, _values(pictures.read_rgb(path)[..., 0])] if is_label else facts


def _values(label: np.ndarray) -> str:
  found = np.unique(label)
  shown = " ".join(f"{value:g}" for value in found[:_SHOWN_VALUES])
  more = f" ... {found[-1]:g} ({len(found)})" if len(found) > _SHOWN_VALUES else ""
  return f"values {shown}{more}"


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()
