"""Builds a dataset: a raw folder, as its publisher ships it, becomes TFRecords split by subject.

  flexunet build hippocampus_t1w --manual_dir=RAW --data_dir=OUT

DATASET is a name, or name/config, such as hippocampus_t1w/left_right. RAW is the unpacked download;
nothing in it is changed. The result lies in OUT/DATASET/CONFIG/VERSION, and any TFDS reader opens
it; build_report.json beside the shards says what was counted, split and left out, and why.

A builder of your own, in a folder or a .py file with a class `Builder`, is named by --builder, or
is offered by an installed package (entry point group flexunet.datasets) and named as DATASET:

  flexunet build --builder=my_dataset --manual_dir=RAW --data_dir=OUT

Its code is run, and only what you name. All other commands read what was built and do not need it.

The whole folder is checked first; --dry_run shows what was found and builds nothing. A build that
was interrupted continues where it stopped when the same command is given again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags as absl_flags

from flexunet.core import command_line, flags, progress
from flexunet.core.errors import InputError
from flexunet.datasets import built_dataset, catalog, subject_splits
from flexunet.datasets.builder import bucket_build, plugin, splits_file, subject_names
from flexunet.imaging import pictures, scan_files

if TYPE_CHECKING:
  from flexunet.datasets.builder.raw_folder import Findings
  from flexunet.datasets.builder.segmentation_builder import SegmentationBuilder

_PROGRAM = flags.Program(
    __doc__, usage="flexunet build DATASET --manual_dir=RAW --data_dir=DATA",
    first=("manual_dir", "data_dir", "dry_run"),
)  # fmt: skip
_MANUAL_DIR = _PROGRAM.string(
    "manual_dir", None, "Raw folder: the unpacked download, or its address (gs://...)."
)
_DATA_DIR = _PROGRAM.string(
    "data_dir", "~/tensorflow_datasets",
    "Folder in which datasets are built, or its address (gs://...); it is created where there is"
    " none.",
)
_DRY_RUN = _PROGRAM.boolean(
    "dry_run", False, "Check the raw folder, list its files, build nothing."
)
_BUILDER = _PROGRAM.string(
    "builder", None,
    "Folder or .py file with a class Builder of your own, which is run; DATASET may then be left"
    " out. datasets/builder/README.md shows one of 25 lines.",
)  # fmt: skip
_OVERWRITE = _PROGRAM.boolean("overwrite", False, "Build again what is built already.")
_NUM_WORKERS = _PROGRAM.integer(
    "num_workers", None, "Processes that read scans; by default as many as there are CPUs.",
    lower_bound=1,
)  # fmt: skip
_BEAM_OPTIONS = _PROGRAM.string(
    "beam_options", None,
    "Reads the cases on Apache Beam, by its options, such as direct_num_workers=4 (runners of other"
    " machines have not been tried); all workers must see both folders, or both lie in a bucket."
    " start_minutes=10, silent_minutes=5, case_minutes=30 are the longest waits for a worker, for a"
    " sign of one, and for a finished case.",
)  # fmt: skip
_FILE_FORMAT = _PROGRAM.enum(
    "file_format", "tfrecord", ["tfrecord", "array_record"],
    "Container of the records; array_record needs its own package to be read.",
)  # fmt: skip
_CONFIG_NAME = _PROGRAM.string(
    "config_name", None,
    "Name of the built config, so that two folders with equal options can lie side by side.",
)  # fmt: skip
_NAMES = _PROGRAM.fields(subject_names.NameOptions, group="Names of subjects")
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


def expand(argv: Sequence[str]) -> Sequence[str]:
  """Defines the flags of the options of a builder that is not ours, before they are parsed."""
  words = list(argv)
  with contextlib.suppress(absl_flags.Error, OSError):  # The parser will name what is wrong.
    words = _PROGRAM.values.read_flags_from_files(words, force_gnu=True)
  path = None
  for word, after in zip(words, [*words[1:], ""], strict=True):
    name, equals, value = word.lstrip("-").partition("=")
    if word.startswith("-") and name == "builder":
      path = value if equals else after
  dataset = next((word.partition("/")[0] for word in words[1:] if not word.startswith("-")), "")
  if path:
    chosen = catalog.plugin_class(path)
  elif dataset in plugin.installed() and dataset not in catalog.NAMES:
    chosen = catalog.builder_class(dataset)
  else:
    if any(word in ("--help", "-h") for word in words):
      _PROGRAM.doc = f"{__doc__}\nDatasets: {', '.join(catalog.known_names())}."
    return argv
  options = catalog.options_of(chosen)
  fields = {field.name: "help" in field.metadata for field in dataclasses.fields(options)}
  for name in [name for name, has_flag in fields.items() if has_flag and name not in _OPTIONS]:
    others = [field for field in fields if field != name]
    _OPTIONS.update(_PROGRAM.fields(options, group=f"Options of {chosen.name}", skip=others))
  return argv


def main(argv: Sequence[str]) -> None:
  if len(argv) > 2 or (len(argv) < 2 and _BUILDER.value is None):
    known = ", ".join(catalog.known_names())
    raise InputError(
        f"Name one dataset to build, e.g. hippocampus_t1w/left_right. Known: {known}. A builder of"
        " your own is named by --builder."
    )
  dataset = argv[1] if len(argv) > 1 else ""
  options = _options(dataset.partition("/")[0])
  if _MANUAL_DIR.value is None:
    name = dataset.partition("/")[0] or _BUILDER.value
    raise InputError(
        f"--manual_dir is missing: the raw folder of {name}. {_instructions(dataset)}"
    )
  folders = bucket_build.BuildFolders(_MANUAL_DIR.value, _DATA_DIR.value)
  manual_dir, data_dir = _raw_folder(dataset, folders.raw), folders.data
  if data_dir.is_file():
    raise InputError(f"--data_dir {data_dir}: this is a file; name a folder.")

  if _BEAM_OPTIONS.value is not None and _NUM_WORKERS.value is not None:
    raise InputError("--num_workers is of builds without Beam; leave it out beside --beam_options.")
  build_tool = _build_tool()
  make_builder = build_tool.maker(
      dataset,
      # A dry run reads no built dataset either.
      data_dir=manual_dir / "none" if _DRY_RUN.value else data_dir,
      num_workers=_NUM_WORKERS.value,
      options=options,
      config_name=_CONFIG_NAME.value,
      file_format=_FILE_FORMAT.value,
      builder_path=_BUILDER.value,
      name_options=flags.read(subject_names.NameOptions, _NAMES),
  )
  try:
    if _DRY_RUN.value:
      with build_tool.recognising(manual_dir):
        print_files(make_builder(), manual_dir)
    else:
      _build(make_builder, folders)
  except KeyboardInterrupt:
    print("\nInterrupted. The same command continues where it stopped.", file=sys.stderr)
    sys.exit(130)  # What a shell expects of a program ended by Ctrl-C.


def _build(
    make_builder: Callable[[], SegmentationBuilder], folders: bucket_build.BuildFolders
) -> None:
  """Builds what is not built yet, and prints where it lies."""
  build_tool = _build_tool()
  folder = make_builder().data_path
  folders.fetch_built(folder)
  if not _OVERWRITE.value and build_tool.is_built(make_builder()):
    print(f"Already built: {folders.shown(folder)} (--overwrite builds it again).")
  else:
    beam_options = folders.beam_options(_BEAM_OPTIONS.value)
    builder = build_tool.build(make_builder, folders.raw, beam_options)
    folders.publish(folder)
    print_summary(builder, folders)
  folders.forget(folder)


def _build_tool() -> Any:
  # The flags and the help must not wait for TFDS.
  from flexunet.datasets.builder import build_tool

  return build_tool


def _class_of(dataset: str) -> type[SegmentationBuilder]:
  if _BUILDER.value is not None:
    return catalog.plugin_class(_BUILDER.value, dataset)
  return catalog.builder_class(dataset)


def _instructions(dataset: str) -> str:
  """Returns what the raw folder must hold, in the words of its builder."""
  return str(_class_of(dataset.partition("/")[0]).MANUAL_DOWNLOAD_INSTRUCTIONS)


def _options(dataset: str) -> dict[str, Any]:
  """Returns the options that were given as flags.

  Raises:
    InputError: One that the dataset does not have, or a value out of its bounds.
  """
  cls = catalog.options_class(dataset) if _BUILDER.value is None else catalog.options_of(
      _class_of(dataset)
  )
  given = [name for name in _OPTIONS if _PROGRAM.given(name)]
  fields = {field.name for field in dataclasses.fields(cls)}
  for name in given:
    if name not in fields:
      owners = ", ".join(catalog.datasets_with(name)) or "another builder"
      this = dataset or _BUILDER.value
      raise InputError(f"--{name} is an option of {owners}; {this} does not have it.")
  holders = {name: holder for name, holder in _OPTIONS.items() if name in given}
  found = flags.read(cls, holders)
  # What was read from files stands in fields without a flag.
  silent = [field for field in dataclasses.fields(cls) if "help" not in field.metadata]
  read = [field.name for field in silent if getattr(found, field.name) != field.default]
  return {name: getattr(found, name) for name in [*given, *read]}


def _raw_folder(dataset: str, folder: pathlib.Path) -> pathlib.Path:
  try:
    is_empty = folder.is_dir() and not any(folder.iterdir())
  except OSError as error:
    raise InputError(f"--manual_dir {folder}: cannot be read ({error.strerror}).") from error
  if is_empty or not folder.is_dir():
    what = "the folder is empty" if is_empty else "there is no such folder"
    raise InputError(f"--manual_dir {folder}: {what}. {_instructions(dataset)}")
  return folder


def print_summary(builder: SegmentationBuilder, folders: bucket_build.BuildFolders) -> None:
  """Prints what was built: a row per split, what was left out, and where it lies."""
  report = built_dataset.read_report(pathlib.Path(builder.data_path))
  rows: list[tuple[str, ...]] = [("split", "subjects", "volumes", "records", "with foreground")]
  for name in built_dataset.ordered_splits(report["splits"]):
    split = report["splits"][name]
    numbers = ("num_subjects", "num_volumes", "num_records", "num_foreground_records")
    rows.append((name, *(str(split[number]) for number in numbers)))
  print(progress.table(rows, _COLUMNS))
  _print_choices(report["choices"])
  if left_out := report["left_out"]:
    reasons: dict[str, int] = {}
    for entry in left_out:
      reasons[entry["reason"]] = reasons.get(entry["reason"], 0) + 1
    for reason, count in sorted(reasons.items()):
      print(f"left out: {count} ({reason})")
  for reason, count in sorted(_sum_by_reason(report["slices_left_out"]).items()):
    print(f"left out: {count} slices ({reason})")
  for line in report["warnings"]:
    shown = line if builder.names is None else builder.names.as_in_source(line)
    print(f"warning: {shown}", file=sys.stderr)
  counts = report["split_by"]
  if decided := _decided_by(counts):
    print(f"subjects{decided}")
  if builder.names is not None and builder.names.uses_key:
    print(f"Whose the pseudonyms are is in {builder.names.key_path}: keep it, and keep it secret.")
  shown = folders.shown(builder.data_path)
  print(f"{builder.info.full_name} lies in {shown}")
  # A file of splits is read from this machine alone.
  if counts.keys() != {"publisher"} and not folders.data_address:
    print(
        "To add subjects later without moving anyone:"
        f" --overwrite --splits_file={shown}/{splits_file.NAME}"
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
  names = builder.name_subjects(findings)
  for case in findings.cases:
    print(case.key)
    for role, path in case.files.items():
      if "_voxels" not in role:
        facts = "  ".join(_facts(path, role.startswith(("label", "mask"))))
        line = f"  {role}  {findings.relative(path)}"
        fits = len(line) + 2 + len(facts) <= _COLUMNS
        print(f"{line}  {facts}" if fits else f"{line}\n      {facts}")
  builder.decide(findings)
  for file, reason in sorted(findings.left_out.items()):
    print(f"left out: {file} ({reason})")
  _print_choices(findings.choices)
  for line in findings.warnings:
    print(f"warning: {line}", file=sys.stderr)
  num_labelled = sum(case.labelled for case in findings.cases)
  print(f"{len(findings.cases)} cases, {num_labelled} labelled; {_split_counts(builder, findings)}")
  for line in subject_names.lines(names, sorted({case.subject for case in findings.cases})):
    print(line)
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


def _print_choices(choices: Mapping[str, str]) -> None:
  """Prints what was found in the raw folder and chosen by it, each with its reason."""
  for name, text in choices.items():
    print(f"{name}: {text}")


def _facts(path: pathlib.Path, is_label: bool) -> list[str]:
  """Returns shape, dtype, spacing, axis codes and label values as texts."""
  if is_label and (names := scan_files.label_names(path)):
    return ["DICOM-SEG", "segments " + ", ".join(f"{n} {name}" for n, name in names.items())]
  if scan_files.is_scan(path):
    count = 1 if is_label else scan_files.num_volumes(path)
    # What is listed here may hold its channels in a fourth axis, each on the same grid.
    header = scan_files.read_header(path, None if count == 1 else 0)
    facts = [
        " x ".join(map(str, header.shape if count == 1 else (*header.shape, count))),
        header.dtype.name,
        " x ".join(f"{mm:.3g}" for mm in header.spacing_mm) + " mm",
        f"axes {header.axis_codes or 'unstated'}",
    ]
    return [*facts, _values(scan_files.read(path).voxels)] if is_label else facts
  if not pictures.is_picture(path):
    return ["table"]
  entry = "mask" if is_label else "image"
  header_2d = pictures.read_header(path, entry)
  facts = [f"{header_2d.height} x {header_2d.width}", f"8-bit {header_2d.mode}"]
  return [*facts, _values(pictures.read_rgb(path, entry)[..., 0])] if is_label else facts


def _values(label: np.ndarray) -> str:
  found = np.unique(label)
  shown = " ".join(f"{value:g}" for value in found[:_SHOWN_VALUES])
  more = f" ... {found[-1]:g} ({len(found)})" if len(found) > _SHOWN_VALUES else ""
  return f"values {shown}{more}"


def run() -> None:
  command_line.run(main, _PROGRAM, expand=expand)


if __name__ == "__main__":
  run()
