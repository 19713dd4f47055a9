"""What the build tool does around a builder: cleans up after failure, prints its tables."""

from __future__ import annotations

import contextlib
import errno
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from flexunet.datasets import build_report, picture_io, volume_io
from flexunet.datasets.errors import InputError

_SHOWN_VALUES = 8
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR)
_SPLIT_ORDER = ("train", "validation", "test", "unlabeled")


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
  if volume_io.is_volume(path):
    header = volume_io.read_header(path)
    values = _values(volume_io.read(path).voxels) if is_label else ""
    spacing = " x ".join(f"{mm:.3g}" for mm in header.spacing_mm)
    shape = " x ".join(map(str, header.shape))
    return shape, header.dtype.name, spacing, header.axis_codes or "unstated", values
  if not picture_io.is_picture(path):
    return "", "table", "", "", ""
  picture = picture_io.read_header(path)
  values = _values(picture_io.read_rgb(path)[..., 0]) if is_label else ""
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
