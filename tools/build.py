"""Builds a dataset: a raw folder, as its publisher ships it, becomes TFRecords split by subject.

  flexunet build hippocampus_t1w --manual_dir=RAW --data_dir=OUT

DATASET is a name, or name/config, e.g. hippocampus_t1w/left_right. RAW is the unpacked download;
nothing in it is changed. The result lies in OUT/DATASET/CONFIG/VERSION, and any TFDS reader opens
it; build_report.json beside the shards tells what was counted, split and left out, and why.

The whole folder is checked first; --dry_run shows what was found and builds nothing. A build that
was interrupted goes on where it stopped when the same command is given again.

What the build tool does around a builder: cleans up after failure, prints its tables.
"""

from __future__ import annotations

import contextlib
import errno
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from flexunet.core import command_line, flags
from flexunet.core.errors import InputError
from flexunet.datasets import catalog
from flexunet.datasets.builder import build_report
from flexunet.datasets.builder.raw_folder import NothingFoundError
from flexunet.imaging import nifti, pictures

_PROGRAM = flags.Program(
    __doc__, usage="flexunet build DATASET --manual_dir=RAW --data_dir=DATA",
    first=("manual_dir", "data_dir", "dry_run"),
)  # fmt: skip
_MANUAL_DIR = _PROGRAM.string("manual_dir", None, "Raw folder: the unpacked download.")
_DATA_DIR = _PROGRAM.string("data_dir", None, "Folder in which datasets are built.")
_NUM_WORKERS = _PROGRAM.integer(
    "num_workers", None, "Processes that read scans; all CPUs by default.", lower_bound=1
)
_OVERWRITE = _PROGRAM.boolean("overwrite", False, "Build again what is built already.")
_DRY_RUN = _PROGRAM.boolean(
    "dry_run", False, "Check the raw folder, print a table per file, build nothing."
)
_FILE_FORMAT = _PROGRAM.enum(
    "file_format", "tfrecord", ["tfrecord", "array_record"],
    "Container of the records; flexunet.train reads tfrecord.",
)
_PLANE = _PROGRAM.enum(
    "plane", None, ["axial", "coronal", "sagittal"], "Cut volumes along another plane."
)
_EMPTY_SLICES = _PROGRAM.string(
    "empty_slices", None,
    "Slices without a labelled pixel: keep, drop, or the share 0..1 to keep, in every labelled"
    " split. Scores of whole volumes need keep.",
)
_MIN_FOREGROUND = _PROGRAM.integer(
    "min_foreground_pixels", None,
    "Leave out slices that have labelled pixels, but fewer than this.", lower_bound=0,
)
_WINDOW = _PROGRAM.list(
    "window", None, "Intensities LOW,HIGH that become 0 and 255, e.g. -20,100 for CT."
)
_ISOTROPIC = _PROGRAM.float(
    "isotropic_mm", None, "Resample volumes to this spacing before they are cut."
)
_CONFIG_NAME = _PROGRAM.string(
    "config_name", None,
    "Name of the built config, so that two folders with equal options can lie side by side.",
)
_PALETTE = _PROGRAM.string(
    "palette", None,
    "image_mask: a preset such as full_head_t1w, or a JSON file {\"background\": [0, 0, 0],"
    " \"tumour\": [255, 0, 0]}.",
)
_SUBJECT_PATTERN = _PROGRAM.string(
    "subject_pattern", None,
    "image_mask: regular expression with a group subject (and maybe slice), found in file names.",
)
_SPLIT = _PROGRAM.enum(
    "split", None, ["published", "subject"],
    "image_mask: keep train, valid and test of the folder, or split anew by subject.",
)
_OFF_PALETTE = _PROGRAM.float(
    "off_palette_limit", None, "image_mask: largest share of a mask's pixels off the palette."
)
_IMAGE_CHANNELS = _PROGRAM.enum(
    "image_channels", None, ["1", "3"], "image_mask: grey or colour pictures."
)
_SHOWN_VALUES = 8
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR)
_SPLIT_ORDER = ("train", "validation", "test", "unlabeled")


def main(argv: Sequence[str]) -> None:
  if len(argv) != 2:
    known = ", ".join(catalog.NAMES)
    raise InputError(f"Name one dataset to build, e.g. hippocampus_t1w/left_right. Known: {known}.")
  manual_dir, data_dir = _raw_folder(argv[1]), _DATA_DIR.value
  if data_dir is None and not _DRY_RUN.value:
    raise InputError("--data_dir is missing: the folder in which the dataset is to be built.")
  if data_dir is not None and pathlib.Path(data_dir).is_file():
    raise InputError(f"--data_dir {data_dir}: this is a file; name a folder.")

  def make_builder():
    made = catalog.builder(
        argv[1],
        # A dry run reads no built dataset either.
        data_dir=data_dir or manual_dir / "none",
        options=_options(),
        file_format=_FILE_FORMAT.value,
    )
    made.num_workers = _NUM_WORKERS.value
    return made

  builder = make_builder()
  try:
    if _DRY_RUN.value:
      print_files(builder, manual_dir)
    elif is_built(builder) and not _OVERWRITE.value:
      print(f"Already built: {builder.data_path} (--overwrite builds it again).")
    else:
      print_summary(build(make_builder, manual_dir))
  except KeyboardInterrupt:
    print("\nInterrupted. The same command goes on where it stopped.", file=sys.stderr)
    sys.exit(130)  # What a shell expects of a program ended by Ctrl-C.
  except NothingFoundError as error:
    fitting = catalog.recognise(manual_dir)
    hint = f" The folder looks like {' or '.join(fitting)}." if fitting else ""
    raise InputError(f"{error}{hint}") from error


def _raw_folder(dataset: str) -> pathlib.Path:
  name = dataset.partition("/")[0]
  builder_class = catalog.builder_class(name)
  if _MANUAL_DIR.value is None:
    raise InputError(
        f"--manual_dir is missing: the raw folder of {name}."
        f" {builder_class.MANUAL_DOWNLOAD_INSTRUCTIONS}"
    )
  folder = pathlib.Path(_MANUAL_DIR.value).expanduser()
  if not folder.is_dir() or not any(folder.iterdir()):
    what = "the folder is empty" if folder.is_dir() else "there is no such folder"
    raise InputError(
        f"--manual_dir {folder}: {what}."
        f" {builder_class.MANUAL_DOWNLOAD_INSTRUCTIONS}"
    )
  return folder


def _options() -> dict:
  """Returns the options of the config that were given as flags."""
  given = {
      "plane": _PLANE.value,
      "empty_slices": _EMPTY_SLICES.value,
      "min_foreground_pixels": _MIN_FOREGROUND.value,
      "window": _window(),
      "isotropic_mm": _ISOTROPIC.value,
      "name": _CONFIG_NAME.value,
      "subject_pattern": _SUBJECT_PATTERN.value,
      "split": _SPLIT.value,
      "off_palette_limit": _OFF_PALETTE.value,
      "image_channels": int(_IMAGE_CHANNELS.value) if _IMAGE_CHANNELS.value else None,
  }
  if _PALETTE.value is not None:
    from flexunet.datasets.image_mask import image_mask_dataset_builder

    given |= image_mask_dataset_builder.options_of(_PALETTE.value)
  return {name: value for name, value in given.items() if value is not None}


def _window() -> tuple[float, ...] | None:
  if _WINDOW.value is None:
    return None
  try:
    return tuple(float(limit) for limit in _WINDOW.value)
  except ValueError as error:
    raise InputError(f"--window must be two numbers LOW,HIGH, got {_WINDOW.value}.") from error


def run() -> None:
  command_line.run(main, _PROGRAM)


if __name__ == "__main__":
  run()


def build(make_builder: Callable[[], Any], manual_dir: pathlib.Path) -> Any:
  """Builds a dataset, anew if it is there, and returns its builder.

  After a failure nothing is left but what was there before.
  """
  version_folder = pathlib.Path(make_builder().data_path)
  with _set_aside(version_folder):
    # A builder made before would still hold the splits of the old dataset.
    builder = make_builder()
    _build_new(builder, manual_dir)
  return builder


@contextlib.contextmanager
def _set_aside(version_folder: pathlib.Path) -> Iterator[None]:
  """Puts an existing dataset out of the way, and back when the new one fails."""
  aside = version_folder.with_name(f".replaced-{version_folder.name}")
  if version_folder.exists():
    shutil.rmtree(aside, ignore_errors=True)
    version_folder.rename(aside)
  try:
    yield
  except BaseException:
    if aside.exists() and not version_folder.exists():
      aside.rename(version_folder)
    raise
  shutil.rmtree(aside, ignore_errors=True)


def _build_new(builder, manual_dir: pathlib.Path) -> None:
  import tensorflow_datasets as tfds

  config = tfds.download.DownloadConfig(manual_dir=manual_dir)
  version_folder = pathlib.Path(builder.data_path)
  data_dir = version_folder
  while data_dir.name != builder.name:
    data_dir = data_dir.parent
  data_dir = data_dir.parent
  created = [folder for folder in (data_dir, *data_dir.parents) if not folder.exists()]
  _quiet(builder)
  try:
    builder.download_and_prepare(download_config=config)
  except OSError as error:
    if error.errno in _NOT_WRITABLE:
      raise InputError(
          f"--data_dir {data_dir}: cannot be written ({error.strerror}). Make room, or name another"
          " folder."
      ) from error
    raise
  finally:
    _remove_empty(data_dir / "downloads")
    if not version_folder.exists():
      _remove_leftovers(data_dir / builder.name)
      for folder in created:
        _remove_empty(folder)


def _quiet(builder) -> None:
  """Silences TFDS's own announcement, which speaks of downloads."""
  builder._log_download_bytes = lambda: None
  builder._log_download_done = lambda: None


def _remove_empty(folder: pathlib.Path) -> None:
  """Removes a folder and its subfolders where they hold no file."""
  if not folder.is_dir():
    return
  for child in list(folder.iterdir()):
    if child.is_dir():
      _remove_empty(child)
  if not any(folder.iterdir()):
    folder.rmdir()


def _remove_leftovers(folder: pathlib.Path) -> None:
  """Removes TFDS's note of the default config when no config was built, and empty folders."""
  if not folder.is_dir():
    return
  if {child.name for child in folder.rglob("*") if child.is_file()} <= {"metadata.json"}:
    shutil.rmtree(folder)


def is_built(builder) -> bool:
  """Tells whether the dataset lies there whole: TFDS moves it into place at the end."""
  return (pathlib.Path(builder.data_path) / "dataset_info.json").is_file()


def print_summary(builder) -> None:
  """Prints what was built: a row a split, and where it lies."""
  report = build_report.read(builder.data_path)
  rows: list[tuple[str, ...]] = [("split", "subjects", "volumes", "records", "with foreground")]
  for name in sorted(report["splits"], key=_SPLIT_ORDER.index):
    split = report["splits"][name]
    numbers = ("num_subjects", "num_volumes", "num_records", "num_foreground_records")
    rows.append((name, *(str(split[number]) for number in numbers)))
  print_table(rows)
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
  print(f"{builder.info.full_name} lies in {builder.data_path}")


def _sum_by_reason(by_volume: dict[str, dict[str, int]]) -> dict[str, int]:
  total: dict[str, int] = {}
  for reasons in by_volume.values():
    for reason, count in reasons.items():
      total[reason] = total.get(reason, 0) + count
  return total


def print_files(builder, manual_dir: pathlib.Path) -> None:
  """Prints a line per file of the raw folder; reads the labels to show their values."""
  findings = builder.inspect_source(manual_dir)
  rows: list[tuple[str, ...]] = [
      ("case", "role", "file", "shape", "dtype", "spacing mm", "axes", "label values")
  ]
  for case in findings.cases:
    for role, path in case.files.items():
      if not role.endswith("_voxels"):
        name = findings.relative(path)
        rows.append((case.key, role, name, *_facts(path, role.startswith(("label", "mask")))))
  print_table(rows)
  for file, reason in sorted(findings.left_out.items()):
    print(f"left out: {file} ({reason})")
  for line in findings.warnings:
    print(f"warning: {line}", file=sys.stderr)
  labelled = [case for case in findings.cases if case.labelled]
  sides = builder.split_subjects({case.subject: case.stratum for case in labelled})
  counts = {side: list(sides.values()).count(side) for side in ("train", "validation", "test")}
  print(
      f"{len(findings.cases)} cases, {len(labelled)} labelled; subjects: "
      + ", ".join(f"{side} {count}" for side, count in counts.items())
      + ". Nothing was built (--dry_run)."
  )


def _facts(path: pathlib.Path, is_label: bool) -> tuple[str, ...]:
  """Returns shape, dtype, spacing, axis codes and label values as texts."""
  if nifti.is_volume(path):
    header = nifti.read_header(path)
    values = _values(nifti.read(path).voxels) if is_label else ""
    spacing = " x ".join(f"{mm:.3g}" for mm in header.spacing_mm)
    shape = " x ".join(map(str, header.shape))
    return shape, header.dtype.name, spacing, header.axis_codes or "unstated", values
  if not pictures.is_picture(path):
    return "", "table", "", "", ""
  picture = pictures.read_header(path)
  values = _values(pictures.read_rgb(path)[..., 0]) if is_label else ""
  return f"{picture.height} x {picture.width}", f"8-bit {picture.mode}", "", "", values


def _values(label: np.ndarray) -> str:
  found = np.unique(label)
  shown = " ".join(f"{value:g}" for value in found[:_SHOWN_VALUES])
  return shown + (f" ... {found[-1]:g} ({len(found)})" if len(found) > _SHOWN_VALUES else "")


def print_table(rows: Sequence[Sequence[str]]) -> None:
  """Prints rows in columns; the first row is the heading."""
  widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
  for row in rows:
    print("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip())
