"""`build_report.json` and `records.csv`: what a build wrote, what it left out, and why.

Neither holds a time stamp or a path, so building again gives the same bytes.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from flexunet.datasets.builder.raw_folder import Notes
from flexunet.datasets.builder.shard_writer import PlacedRecord, Shard
from flexunet.datasets.builder.subject_names import SubjectNames
from flexunet.datasets.built_dataset import RECORD_COLUMNS, RECORDS_NAME, REPORT_NAME
from flexunet.imaging import label_scheme
from flexunet.imaging.label_scheme import LabelScheme

# A label with less background than this may have its colours swapped.
_LEAST_BACKGROUND = 0.1


@dataclasses.dataclass(frozen=True)
class BuiltSplit:
  """The records of one split in file order, and its shards."""

  records: Sequence[PlacedRecord]
  shards: Sequence[Shard]


def of_source(
    notes: Mapping[str, Notes],
    left_out: Mapping[str, str],
    warnings: Sequence[str],
    names: SubjectNames,
) -> dict[str, Any]:
  """Returns the entries of the report that come from reading the source.

  Args:
    notes: {volume: notes of its case}.
    left_out: {file name relative to the raw folder: reason}.
    warnings: Lines for the user.
    names: How the report calls files and persons.
  """
  left_out, warnings = dict(left_out), list(warnings)
  for note in notes.values():
    left_out.update(note.left_out)
    warnings.extend(note.warnings)
  return {
      "mask_values": _merge_histograms(notes.values()),
      "volume_facts": {volume: note.facts for volume, note in notes.items() if note.facts},
      "left_out": [
          {"file": names.file(file), "reason": names.text(left_out[file])}
          for file in sorted(left_out)
      ],
      "slices_left_out": {
          volume: note.slices_left_out for volume, note in notes.items() if note.slices_left_out
      },
      "warnings": sorted({names.text(line) for line in warnings}),
      "subject_names": names.about(),
  }


def write(
    folder: pathlib.Path,
    about: Mapping[str, Any],
    scheme: LabelScheme,
    splits: Mapping[str, BuiltSplit],
) -> dict[str, Any]:
  """Writes both files and returns the report.

  Args:
    folder: Where the shards lie.
    about: All entries that do not follow from the records; others of it are replaced.
    scheme: The classes.
    splits: In the order they are to be listed.
  """
  report = {
      **about,
      "label_scheme": scheme.to_json(),
      "splits": {name: _split_entry(split, scheme) for name, split in splits.items()},
      "split_realised": _shares(splits),
      "warnings": sorted({*about["warnings"], *label_warnings(scheme, splits)}),
      "shards": [
          {"split": name, **dataclasses.asdict(shard)}
          for name, split in splits.items()
          for shard in split.shards
      ],
      "fingerprint": _fingerprint(splits),
  }
  text = json.dumps(report, indent=1, sort_keys=True, ensure_ascii=False)
  (folder / REPORT_NAME).write_text(text + "\n", encoding="utf-8")
  _write_records(folder / RECORDS_NAME, scheme, splits)
  return report


def label_warnings(scheme: LabelScheme, splits: Mapping[str, BuiltSplit]) -> list[str]:
  """Returns what is suspect about the labels: swapped masks, and splits that lack classes."""
  found = []
  pixels: dict[str, np.ndarray] = {}
  for name, split in splits.items():
    labelled = [record.row for record in split.records if record.case.labelled]
    if not labelled:
      continue
    full = [row.key for row in labelled if row.pixels[0] < _LEAST_BACKGROUND * sum(row.pixels)]
    if full:
      found.append(
          f"Split {name}: {len(full)} of {len(labelled)} labels, such as {full[0]}, are more than"
          f" {100 * (1 - _LEAST_BACKGROUND):.0f} % foreground. Are foreground and background"
          " swapped?"
      )
    pixels[name] = np.array([row.pixels for row in labelled])
  return found + label_scheme.presence_warnings(scheme.names, pixels)


def _split_entry(split: BuiltSplit, scheme: LabelScheme) -> dict[str, Any]:
  pixels = [sum(column) for column in zip(*(r.row.pixels for r in split.records), strict=True)]
  return {
      "subjects": sorted({record.case.subject for record in split.records}),
      "num_subjects": len({record.case.subject for record in split.records}),
      "num_volumes": len({record.case.volume for record in split.records}),
      "num_records": len(split.records),
      "num_foreground_records": sum(any(r.row.pixels[1:]) for r in split.records),
      "pixels": dict(zip(scheme.names, pixels)),
  }


def _shares(splits: Mapping[str, BuiltSplit]) -> dict[str, float]:
  """Returns the share of the labelled subjects that each split got."""
  counts = {
      name: len({record.case.subject for record in split.records if record.case.labelled})
      for name, split in splits.items()
  }
  total = sum(counts.values())
  return {name: round(count / total, 4) for name, count in counts.items() if total and count}


def _merge_histograms(notes: Iterable[Notes]) -> dict[str, dict[str, int]]:
  merged: dict[str, collections.Counter] = {}
  for note in notes:
    for kind, histogram in note.histograms.items():
      merged.setdefault(kind, collections.Counter()).update(histogram)
  return {
      kind: {value: counts[value] for value in sorted(counts, key=float)}
      for kind, counts in sorted(merged.items())
  }


def _fingerprint(splits: Mapping[str, BuiltSplit]) -> str:
  digest = hashlib.sha256()
  for name in sorted(splits):
    for record in splits[name].records:
      digest.update(f"{name}\t{record.row.key}\n".encode())
    for shard in splits[name].shards:
      digest.update(f"{name}\t{shard.sha256}\n".encode())
  return digest.hexdigest()


def _write_records(
    path: pathlib.Path, scheme: LabelScheme, splits: Mapping[str, BuiltSplit]
) -> None:
  with open(path, "w", newline="", encoding="utf-8") as stream:
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*RECORD_COLUMNS, *(f"pixels_{name}" for name in scheme.names)])
    for name, split in splits.items():
      for record in split.records:
        row, case = record.row, record.case
        writer.writerow([
            name, record.shard, record.record, record.offset, row.length, row.key, case.subject,
            case.volume, _blank(row.slice_index), record.fold, _blank(row.height),
            _blank(row.width), *row.pixels,
        ])


def _blank(value: int | None) -> int | str:
  return "" if value is None else value
